"""What a report is made of: sections, text and tables, apart from how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bench.report.words import MISSING


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading.

    Attributes:
        left: aligned left (words) instead of right (numbers).
        code: names, set as code in Markdown.
        drop: columns with the highest number go first where the terminal is narrow; 0 always stays.
        wrap: long text that may be broken over lines at its spaces.
    """

    name: str
    left: bool = False
    code: bool = False
    drop: int = 0
    wrap: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text, all of one length."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns: {row}")

    def without_empty(self) -> Table:
        """Leave out columns in which nothing was measured."""
        kept = [
            i
            for i, column in enumerate(self.columns)
            if column.drop == 0 or any(row[i] not in ("", MISSING) for row in self.rows)
        ]
        return self.only(kept)

    def only(self, kept: Iterable[int]) -> Table:
        """Some of its columns."""
        kept = list(kept)
        return Table([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows])


MODEL = Column("model", left=True, code=True)
T = TypeVar("T")


Columns = list[tuple[Column, Callable[[T], str]]]  # each with how it is read off an item


def tabled(columns: Sequence[tuple[Column, Callable[[T], str]]], items: Iterable[T]) -> Table:
    """A table of columns, each with how it is read off an item; columns in which nothing is known are left out."""
    rows = [[show(item) for _, show in columns] for item in items]
    return Table([column for column, _ in columns], rows).without_empty()


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; names stand between backticks."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be copied, such as a command."""

    text: str


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that a page folds away under one line; a terminal shows them all."""

    summary: str
    blocks: tuple[Block, ...]


Block = Table | Text | Bullets | Code | Details


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it. Level 1 is the page's own title."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2

"""What a report is made of (sections, text, tables) and how numbers are written, apart from how it is drawn."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, TypeVar

MISSING = "–"


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


def name(text: object) -> str:
    """Set a name as code within a sentence."""
    return "`" + str(text).replace("`", "'") + "`"


def listed(items: Iterable[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def counted(n: int, singular: str, plural: str = "") -> str:
    """``1 cell``, ``2 cells``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def known(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (not None, NaN, a bool or text)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figure(metrics: Mapping[str, object], name: str) -> float | None:
    """A metric, or None where it is absent or no finite number."""
    value = metrics.get(name)
    return float(value) if known(value) else None


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of decimals, or a dash."""
    return f"{value:.{digits}f}" if value is not None and known(value) else MISSING


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}" if value is not None and known(value) else MISSING


def significant(value: float | None, digits: int = 3) -> str:
    """A positive quantity with ``digits`` significant figures; whole numbers from 100 up, thousands separated."""
    if value is None or not known(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if round(abs(value), decimals) >= 10 ** (math.floor(math.log10(abs(value))) + 1):  # 9.999 is 10.0, not 10.00
        decimals = max(0, decimals - 1)
    return f"{value:,.{decimals}f}"


def span(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, or a dash."""
    if low is None or high is None or not known(low) or not known(high):
        return MISSING
    return f"{low:.{digits}f} to {high:.{digits}f}" if low < 0 else f"{low:.{digits}f}–{high:.{digits}f}"


def p_text(p: float | None) -> str:
    """``0.034``, ``< 0.001``, or a dash."""
    return MISSING if p is None or not known(float(p)) else "< 0.001" if p < 0.001 else fixed(float(p))


@functools.lru_cache(maxsize=1 << 14)  # the same few names are sorted over and over
def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``resnet9`` before ``resnet10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))

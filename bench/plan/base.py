"""The Plan: what a sweep means, Cell by Cell. Plain data; :mod:`bench.plan.plan` makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.data.files import Problem
from bench.record.cells import Cell, cell_key
from bench.registry import RegistryError
from bench.sweep.config import ConfigError, Loaded

T = TypeVar("T")


@dataclass(slots=True)
class Plan:
    """What a sweep means.

    Attributes:
        cells: key -> Cell, in the order they run.
        unsupported: key -> reason, for those of ``cells`` that cannot run.
        problems: files that are missing or damaged, each needed by some Cell.
        skipped: one line for each dataset left out by ``--skip-missing``; with it, no Cell needs a missing file.
        fingerprints: of (dataset, size), taken once: a source may list 100,000 files for it.
        remarks: on weights files: what of them is left out, which head starts fresh.
    """

    device: str
    threads: int
    data_root: Path | None
    cells: dict[str, Cell] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fingerprints: dict[tuple[str, int], str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def runnable(self) -> bool:
        """Whether every Cell has its files."""
        return {str(problem) for problem in self.problems} <= set(self.skipped)

    def add(self, cell: Cell, reason: str | None) -> None:
        """Add a Cell once; remember why it cannot run."""
        key = cell_key(cell)
        self.cells[key] = cell
        if reason:
            self.unsupported[key] = reason


def resolved(loaded: Loaded, key: str, expand: Callable[[Sequence[str]], list[T]], names: Sequence[str]) -> list[T]:
    """Expand names. Raises ConfigError naming where they were written."""
    try:
        return expand(names)
    except RegistryError as error:
        raise ConfigError(f"{loaded.origin(key)}: {error}") from None

"""Who shows a run to people: what they are told. The two of ours are in :mod:`bench.runner.progress`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from bench.record.store import Record


class Reporter(Protocol):
    """Hears what happens, to show it."""

    def begin(self, jobs: int, cells: int, done: int, estimate_s: float) -> None:
        """The run starts: ``jobs`` (trips to a worker) to do; ``done`` of its ``cells`` are finished already."""

    def start(self, label: str, estimate_s: float, share: float = 1.0) -> None:
        """A worker starts on what ``label`` says; it takes ``share`` of the machine, beside others."""

    def progress(self, label: str, event: dict[str, Any]) -> None:
        """A worker is in a phase, an epoch; keys as in :class:`bench.record.cells.Context`."""

    def finish(self, label: str, record: Record | None, seconds: float, said: str = "round done") -> None:
        """A job ended; without a ``record`` (a round that is not the last, a stop), ``said`` tells how."""

    def skip(self, estimate_s: float, cells: int = 0) -> None:
        """A job is not needed any more; with it, so many ``cells`` were found done that others ran."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The run ended."""


def steady(reporter: Reporter) -> Reporter:
    """A reporter that goes on when its terminal has gone or its pipe is closed: a sweep is not lost for that."""
    return cast(Reporter, _Steady(reporter))


class _Steady:
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __getattr__(self, name: str) -> Callable[..., None]:
        method = getattr(self._reporter, name)

        def call(*args: object) -> None:
            with contextlib.suppress(OSError):
                method(*args)

        return call

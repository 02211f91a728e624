"""A loaded model for a whole process, set up as a training is: the same threads, deterministic; and a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.deploy.bundle import read_bundle
from bench.deploy.loaded import LoadedModel, load_bundle
from bench.record.cells import Context


def opened(folder: Path, device: str, engine: str | None, threads: int | None, batch: int | None) -> LoadedModel:
    """Load an exported model; other threads or another batch than in training may change the last bits.

    Raises:
        DeployError: as :func:`bench.deploy.loaded.load_model`.
    """
    bundle = read_bundle(folder)
    bundle = replace(bundle, threads=threads or bundle.threads, batch_size=batch or bundle.batch_size)
    model = load_bundle(bundle, folder, device, engine)
    if model.engine == "torch":
        from bench.train.accuracy import set_up

        set_up(Context(device, bundle.threads, None, None, folder, lambda event: None))
    return model


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on standard error, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)

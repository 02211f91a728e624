"""Live progress of a run: what people are told while it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from bench.errors import say
from bench.record.store import Record
from bench.record.types import Fields
from bench.registry import counted

STYLES = {"ok": "green", "unsupported": "dim", "failed": "bold red"}
SHOWN = 8  # running jobs that have a line in a terminal
QUIET_S = 60.0  # a log hears of a running job this often
SMOOTHING_S = 20.0  # seconds of estimates that must have passed before the measured pace corrects the rest


def clock(seconds: float) -> str:
    """Format seconds as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(record: Record) -> str:
    """One line: what came out of a Cell."""
    metrics = record["metrics"]
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason']}"
    if record["kind"] == "trial":
        return ", ".join(f"{name} {_number(metrics.get(f'val_{name}'))}" for name in ("auc", "acc", "loss")) + " (val)"
    if record["kind"] != "efficiency":
        return f"test AUC {_number(metrics.get('test_auc'))}, ACC {_number(metrics.get('test_acc'))}"
    rate = metrics.get("throughput_images_per_s_p50") or metrics.get("train_throughput_images_per_s_p50")
    return f"{_number(rate, 1)} images/s, {_number(metrics.get('macs_g'), 2)} GMACs"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


@dataclass(slots=True)
class _Running:
    """A job in progress: its part of the estimate, and what its worker said last."""

    estimate_s: float
    share: float
    began: float
    spoke: float
    event: Fields = field(default_factory=dict)

    def now(self) -> str:
        """Where it is: phase, epoch, loss, pace, seconds."""
        event = self.event
        parts = [str(event.get("phase", "starting"))]
        if "epoch" in event:
            parts.append(f"epoch {event['epoch']}/{event.get('epochs', '?')}")
        if event.get("loss") is not None:
            parts.append(f"loss {event['loss']:.3f}")
        if event.get("images_per_s"):
            parts.append(f"{event['images_per_s']:.0f} images/s")
        return ", ".join([*parts, f"{time.monotonic() - self.began:.0f} s"])


class Observer:
    """Shows a run: a line when a job ends, and below these lines, in a terminal, a bar and what runs.

    Elsewhere a job that takes longer has a line a minute. ``[3/9]`` before a line counts Cells, those done before this
    run too: a job may be one round of a Cell only. A terminal that has gone, or a closed pipe, ends no run.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.running: dict[str, _Running] = {}
        self.live: Live | None = None

    def begin(self, cells: int, done: int, estimate_s: float) -> None:
        """Say how many Cells there are to do; ``done`` of them are finished already."""
        self.cells, self.done = cells, done
        self.left_s, self.estimated_s, self.taken_s = estimate_s, SMOOTHING_S, SMOOTHING_S
        if done:
            self.note(f"{counted(done, 'cell')} {'is' if done == 1 else 'are'} done already")
        self.note(f"{counted(cells - done, 'cell')} to run, roughly {clock(estimate_s)}")
        if self.console.is_terminal:
            self.live = Live(get_renderable=self._view, console=self.console, refresh_per_second=4)
            self.live.start()

    def start(self, label: str, estimate_s: float, share: float = 1.0) -> None:
        """A worker starts on what ``label`` says; it takes ``share`` of the machine, beside others."""
        now = time.monotonic()
        self.running[label] = _Running(estimate_s, share, now, now)

    def progress(self, label: str, event: Fields) -> None:
        """A worker is in a phase, an epoch; keys as in :class:`bench.record.cells.Context`."""
        job = self.running[label]
        job.event |= event
        if not self.live and time.monotonic() - job.spoke >= QUIET_S:
            job.spoke = time.monotonic()
            self.note(f"[{self.done}/{self.cells}] {label}: {job.now()}")

    def finish(self, label: str, record: Record | None, seconds: float, said: str = "round done") -> None:
        """A job ended; without a ``record`` (a round that is not the last, a stop), ``said`` tells how."""
        job = self.running.pop(label)
        self.skip(job.estimate_s * job.share, record is not None)
        self.estimated_s += job.estimate_s * job.share
        self.taken_s += seconds * job.share
        style = STYLES.get(record["status"], "yellow") if record else ""
        said = describe(record) if record else said
        took = f"({seconds:.1f} s; {clock(self.remaining_s())} left)"
        self.note(f"[{self.done}/{self.cells}] {label}: {said} {took}", style)

    def skip(self, estimate_s: float, cells: int = 0) -> None:
        """So much work is not needed any more; so many ``cells`` were found done that others ran."""
        self.done = min(self.cells, self.done + cells)
        self.left_s = max(0.0, self.left_s - estimate_s)

    def remaining_s(self, spent_s: float = 0.0) -> float:
        """Estimated seconds to the end, corrected by the pace so far; ``spent_s`` of running jobs have passed."""
        return max(0.0, self.left_s - spent_s) * self.taken_s / self.estimated_s

    def note(self, text: str, style: str = "") -> None:
        """Print a line as it is, unwrapped."""
        with contextlib.suppress(OSError, SystemExit):  # with the latter rich answers a closed pipe
            say(self.console, text, style)

    def close(self) -> None:
        """The run ended."""
        with contextlib.suppress(OSError, SystemExit):
            if self.live:
                self.live.stop()

    def _view(self) -> Group:
        now, running = time.monotonic(), list(self.running.items())
        spent = sum(min(now - job.began, job.estimate_s) * job.share for _, job in running)
        lines = [Text(f"{label}: {job.now()}", overflow="ellipsis", no_wrap=True) for label, job in running[:SHOWN]]
        if len(running) > SHOWN:
            lines.append(Text(f"and {len(running) - SHOWN} more", style="dim"))
        left = Text(f"{self.done}/{self.cells} cells, about {clock(self.remaining_s(spent))} left", style="bold")
        return Group(*lines, left, ProgressBar(self.cells, self.done))


@contextmanager
def fetch_bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar for each file that is fetched; yields the callback ``(file, bytes so far, total bytes or None)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield progress

"""Live progress of a run: a rich display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from bench.record.store import Record

MARKS = {"ok": ("ok", "green"), "unsupported": ("unsupported", "dim"), "failed": ("FAILED", "bold red")}
SHOWN = 8  # running jobs that have a line in a terminal
QUIET_S = 60.0  # a log hears of a running job this often
SMOOTHING_S = 20.0  # seconds of estimates that must have passed before the measured pace corrects the rest


def clock(seconds: float) -> str:
    """Format seconds as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(cells: int) -> str:
    """``1 cell``, ``9 cells``."""
    return f"{cells} cell{'s' * (cells != 1)}"


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


def _number(value: Any, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


class _Pace:
    """The estimated end: estimates corrected by the pace measured so far."""

    def __init__(self, total_s: float) -> None:
        self.left_s = total_s
        self.estimated_s = self.taken_s = 0.0

    def done(self, estimate_s: float, seconds: float) -> None:
        self.left_s = max(0.0, self.left_s - estimate_s)
        self.estimated_s += estimate_s
        self.taken_s += seconds

    def remaining_s(self, spent_s: float = 0.0) -> float:
        """Seconds to the end; ``spent_s`` of the current job's estimate have passed."""
        ratio = (self.taken_s + SMOOTHING_S) / (self.estimated_s + SMOOTHING_S)
        return max(0.0, self.left_s - spent_s) * ratio


@dataclass(slots=True)
class _Running:
    """A job in progress: what was estimated and what its worker said last."""

    estimate_s: float
    share: float
    began: float
    spoke: float
    event: dict[str, Any] = field(default_factory=dict)

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
        parts.append(f"{time.monotonic() - self.began:.0f} s")
        return ", ".join(parts)


class PlainObserver:
    """A line when a job ends, and one a minute from a job that takes longer: for logs and CI.

    ``[3/9]`` before a line counts Cells, those done before this run too: a job may be one round of a Cell only.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.running: dict[str, _Running] = {}

    def begin(self, jobs: int, cells: int, done: int, estimate_s: float) -> None:
        """Say how many Cells there are to do; people count those, not the ``jobs`` they take."""
        self.cells, self.done = cells, done
        self.pace = _Pace(estimate_s)
        if done:
            self.note(f"{counted(done)} {'is' if done == 1 else 'are'} done already")
        self.note(f"{counted(cells - done)} to run, roughly {clock(estimate_s)}")

    def start(self, label: str, estimate_s: float, share: float = 1.0) -> None:
        """Remember what runs."""
        now = time.monotonic()
        self.running[label] = _Running(estimate_s, share, now, now)

    def progress(self, label: str, event: dict[str, Any]) -> None:
        """Say once a minute where a long job is."""
        job = self.running[label]
        job.event |= event
        if time.monotonic() - job.spoke >= QUIET_S:
            job.spoke = time.monotonic()
            self.note(f"{self._count()} {label}: {job.now()}")

    def _count(self) -> str:
        return f"[{self.done}/{self.cells}]"

    def _ended(self, label: str, seconds: float) -> None:
        job = self.running.pop(label)
        self.pace.done(job.estimate_s * job.share, seconds * job.share)

    def finish(self, label: str, record: Record | None, seconds: float, said: str = "round done") -> None:
        """Print the job's line."""
        self._ended(label, seconds)
        self.done = min(self.cells, self.done + (record is not None))
        said = describe(record) if record else said
        left = clock(self.pace.remaining_s())
        self.note(f"{self._count()} {label}: {said} ({seconds:.1f} s; {left} left)")

    def skip(self, estimate_s: float, cells: int = 0) -> None:
        """Leave out a job that is not needed any more, and count Cells that others have done."""
        self.done = min(self.cells, self.done + cells)
        self.pace.left_s = max(0.0, self.pace.left_s - estimate_s)

    def note(self, text: str) -> None:
        """Print a line as it is, unwrapped."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Nothing is open."""


class RichObserver(PlainObserver):
    """A bar over all Cells and a line on each running job, below the lines of what is done."""

    def begin(self, jobs: int, cells: int, done: int, estimate_s: float) -> None:
        """Open the live display."""
        super().begin(jobs, cells, done, estimate_s)
        self.bar = Progress(
            TextColumn("[bold]cells"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            expand=True,
        )
        self.task = self.bar.add_task("cells", total=cells, completed=done, left="")
        self.live = Live(get_renderable=self._view, console=self.console, refresh_per_second=4)
        self.live.start()

    def progress(self, label: str, event: dict[str, Any]) -> None:
        """Show the phase, epoch, loss and pace of a running job."""
        self.running[label].event |= event

    def skip(self, estimate_s: float, cells: int = 0) -> None:
        """Move the bar by the Cells that others have done."""
        super().skip(estimate_s, cells)
        self.bar.advance(self.task, cells)

    def finish(self, label: str, record: Record | None, seconds: float, said: str = "round done") -> None:
        """Move the bar; print a line for a finished Cell."""
        self._ended(label, seconds)
        if record:
            self.bar.advance(self.task)
            mark, style = MARKS.get(record["status"], (record["status"].upper(), "yellow"))
            line = Text.assemble(
                (mark.rjust(4), style), " ", label, "  ", (describe(record), "bold"), f"  {seconds:.1f} s"
            )
            self.console.print(line)
        elif said != "round done":
            self.note(f"     {label}: {said}")

    def close(self) -> None:
        """Close the live display."""
        self.live.stop()

    def _view(self) -> Group:
        now = time.monotonic()
        running = list(self.running.items())
        spent = sum(min(now - job.began, job.estimate_s) * job.share for _, job in running)
        self.bar.update(self.task, left=f"about {clock(self.pace.remaining_s(spent))} left")
        lines = [Text(f"{label}: {job.now()}", overflow="ellipsis", no_wrap=True) for label, job in running[:SHOWN]]
        if len(running) > SHOWN:
            lines.append(Text(f"and {len(running) - SHOWN} more", style="dim"))
        return Group(*lines, self.bar)


def make_observer(console: Console) -> PlainObserver:
    """Choose the live display for a terminal, plain lines for anything else."""
    return RichObserver(console) if console.is_terminal else PlainObserver(console)


@contextmanager
def fetch_bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar for each file that is fetched; yields the callback ``(file, bytes so far, total bytes or None)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield progress

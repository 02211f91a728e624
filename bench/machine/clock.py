"""Time as a device sees it: host seconds on the CPU, CUDA events on a GPU. Tests give a fake clock instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Step = Callable[[int], object]  # one step; the argument is the step's number, so that inputs can rotate
Mark = Any  # a point in the device's stream, read later: host seconds, or a CUDA event


class Clock:
    """The CPU's: work is done when the call returns."""

    def now(self) -> float:
        """Host seconds."""
        return time.perf_counter()

    def spent(self) -> float:
        """Seconds of processor time that this process has taken, all threads together."""
        return time.process_time()

    def mark(self) -> Mark:
        """A point in the device's stream."""
        return time.perf_counter()

    def wait(self, mark: Mark) -> None:
        """Return when the device has passed ``mark``."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Device seconds between two marks that were both waited for."""
        return float(end - start)

    def synchronize(self) -> None:
        """Return when the device is idle."""


class CudaClock(Clock):
    """CUDA events on the current stream of one device; their resolution is about 0.5 us."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = torch.device(device)

    def mark(self) -> torch.cuda.Event:  # noqa: D102
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def wait(self, mark: torch.cuda.Event) -> None:  # noqa: D102
        mark.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:  # noqa: D102
        return float(start.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:  # noqa: D102
        self._cuda.synchronize(self._device)


def clock_for(device: str) -> Clock:
    """Return the clock of ``cpu`` or ``cuda:0``."""
    return CudaClock(device) if device.startswith("cuda") else Clock()

"""Time as a device sees it: host seconds on the CPU, CUDA events on a GPU. Tests give a fake clock instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

Step = Callable[[int], Any]  # one step; the argument is the step's number, so that inputs can rotate


class Clock(Protocol):
    """Time as a device sees it. Marks are made in the device's stream and read later."""

    def now(self) -> float:
        """Host seconds."""

    def mark(self) -> Any:
        """A point in the device's stream."""

    def wait(self, mark: Any) -> None:
        """Return when the device has passed ``mark``."""

    def seconds(self, start: Any, end: Any) -> float:
        """Device seconds between two marks that were both waited for."""

    def synchronize(self) -> None:
        """Return when the device is idle."""


class HostClock:
    """The CPU: work is done when the call returns."""

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

    mark = now

    def wait(self, mark: float) -> None:
        """Nothing to wait for."""

    def seconds(self, start: float, end: float) -> float:
        """Seconds between two marks."""
        return end - start

    def synchronize(self) -> None:
        """Nothing runs on its own."""


class CudaClock(HostClock):
    """CUDA events on the current stream of one device."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = torch.device(device)

    def mark(self) -> Any:
        """Record an event."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def wait(self, mark: Any) -> None:
        """Wait for an event."""
        mark.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two events (``elapsed_time`` is in milliseconds, resolution about 0.5 us)."""
        return float(start.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        """Wait for the whole device."""
        self._cuda.synchronize(self._device)


def clock_for(device: str) -> Clock:
    """Return the clock of ``cpu`` or ``cuda:0``."""
    return CudaClock(device) if device.startswith("cuda") else HostClock()

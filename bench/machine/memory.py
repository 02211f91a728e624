"""Memory of this process and its device: peaks of a stretch of work, what is free, and running out of it.

On CUDA three figures: *allocated* (tensors), *reserved* (what the caching allocator took for them) and *device* (what
the GPU lost in all, context and libraries included). On the CPU the peak resident set above a baseline taken
before the model was built. Call these first in a fresh process: earlier work leaves caches behind.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from bench.machine import hardware

MIB = 2**20
Figures = dict[str, float | str]  # by their names in Records


class Meter(Protocol):
    """Measures the memory that a stretch of work needs at most. Its baseline is taken when it is made."""

    def start(self) -> None:
        """Forget earlier peaks; what is held now (the model) still counts."""

    def peak(self) -> Figures:
        """Peaks since ``start``, in MiB above the baseline, with ``peak_memory_mib`` as the headline."""


class RssMeter:
    """Peak resident set of this process above the baseline.

    The kernel keeps the high-water mark exactly (``VmHWM``, reset through /proc/self/clear_refs); where that is not
    allowed, a thread samples the resident set every 2 ms and may miss short peaks. ``rss_method`` says which.
    """

    def __init__(self, exact: bool = True) -> None:
        release_unused()
        self._baseline = resident()
        self._exact = exact
        self._sampler: _Sampler | None = None

    def rebase(self, held: int) -> None:
        """Take the baseline anew: what the process holds now, less the ``held`` bytes that count as the model's.

        For compiled Cells: compilers leave graphs, caches and libraries in this process that no step needs.
        """
        release_unused()
        self._baseline = resident() - held

    def start(self) -> None:
        """Give freed memory back and reset the mark."""
        release_unused()
        if not (self._exact and reset_high_water()):
            self._sampler = _Sampler()
            self._sampler.start()

    def peak(self) -> Figures:
        """``peak_memory_mib`` = ``peak_rss_mib`` above ``rss_baseline_mib``."""
        if self._sampler:
            top, method = self._sampler.stop(), "sampled every 2 ms"
        else:
            top, method = _status("VmHWM") or 0, "kernel high-water mark"
        above = max(0, top - self._baseline) / MIB
        return {
            "peak_memory_mib": above,
            "peak_rss_mib": above,
            "rss_baseline_mib": self._baseline / MIB,
            "rss_method": method,
        }


class CudaMeter:
    """Peaks of the caching allocator, and of the whole device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._used_before = hardware.device_memory_used(device)

    def start(self) -> None:
        """Empty the cache and reset the peaks; the algorithm search of the first step is over by then."""
        import torch  # here and below: what memory is free is asked by plans, which need no torch

        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Figures:
        """Allocated, reserved and device-level peaks; the headline is the allocated one.

        The device figure is the growth since this meter was made, context and libraries included. It is exact as a
        peak because reserved memory is not returned between ``start`` and now, and it would include strangers
        that came meanwhile (they are flagged).
        """
        import torch

        torch.cuda.synchronize(self._device)
        allocated = torch.cuda.max_memory_allocated(self._device) / MIB
        found: Figures = {
            "peak_memory_mib": allocated,
            "peak_allocated_mib": allocated,
            "peak_reserved_mib": torch.cuda.max_memory_reserved(self._device) / MIB,
        }
        used = hardware.device_memory_used(self._device)
        if used is not None and self._used_before is not None:
            found["peak_device_mib"] = (used - self._used_before) / MIB
        return found


def meter_for(device: str) -> Meter:
    """Return the meter of ``cpu`` or ``cuda:0``. Make it before CUDA is initialised and the model is built."""
    return CudaMeter(device) if device.startswith("cuda") else RssMeter()


def peak_of(work: Callable[[], object], meter: Meter) -> Figures:
    """Return the peaks of ``work`` under ``meter``."""
    meter.start()
    work()
    return meter.peak()


# ---- the resident set of this process ----------------------------------------------------------------------------


def release_unused() -> None:
    """Collect garbage and let glibc return freed pages, so that the baseline holds nothing unused."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_high_water() -> bool:
    """Set VmHWM to the present resident set; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    top, now = _status("VmHWM"), _status("VmRSS")
    # Some sandboxes accept the write and ignore it.
    return top is not None and now is not None and top - now < 16 * MIB


def _status(field: str) -> int | None:
    """A memory field of /proc/self/status in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS") or int(psutil.Process().memory_info().rss)


class _Sampler(threading.Thread):
    def __init__(self, interval_s: float = 0.002) -> None:
        super().__init__(daemon=True)
        self._interval = interval_s
        self._done = threading.Event()
        self._top = 0

    def run(self) -> None:
        while not self._done.is_set():
            self._top = max(self._top, resident())
            time.sleep(self._interval)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return max(self._top, resident())


def cap_data(share: float = 0.95) -> None:
    """Let allocations fail, as they do on a GPU, before the kernel kills processes for want of memory (Linux, CPU)."""
    data = _status("VmData")
    if data is None:
        return
    import resource

    limit = data + int(share * available())
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def available() -> int:
    """Bytes this process may still take: of the machine, or of its control group if that is less."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


OOM_WORDS = (
    *("out of memory", "can't allocate memory", "std::bad_alloc", "could not create a memory object"),
    "_alloc_failed",  # cuBLAS, cuDNN, cuFFT: their workspaces and handles
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on either kind of device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in OOM_WORDS)

"""Energy of a workload from NVML's counter: an estimate of the board, not of the machine.

On recent boards the sensor sees only part of the time (arXiv 2312.02741: a quarter on A100 and H100), so the window is
long, the idle power is measured beside it and both are kept. Without such a counter there is no figure, and no guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.machine import hardware
from bench.machine.clock import Clock, Step
from bench.record.types import Fields

SOURCE = "NVML total energy counter of the GPU board, an estimate"
IDLE_S = 2.0
Counter = Callable[[], float]  # joules since some moment


def counter_for(device: str) -> Counter | None:
    """Return the energy counter of ``cuda:N`` in joules, or None where there is none (CPU, before Volta, no NVML)."""
    found = hardware.nvml_handle(device)
    if found is None:
        return None
    nvml, handle = found

    def joules() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

    try:
        joules()
    except nvml.NVMLError:
        return None
    return joules


def measure(
    step: Step,
    images_per_step: int,
    clock: Clock,
    joules: Counter,
    window_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Fields:
    """Run steps for at least ``window_s`` and read the counter around them; idle first, while the device rests.

    Returns:
        ``energy_j_per_image`` (all of the board's power in the window), ``energy_above_idle_j_per_image``,
        ``power_w``, ``power_idle_w``, ``energy_window_s`` and ``energy_source``. A counter that did not move (too
        short a window) gives None.
    """
    clock.synchronize()
    before, start = joules(), clock.now()
    sleep(IDLE_S)
    idle_w = (joules() - before) / (clock.now() - start)
    before, start, steps = joules(), clock.now(), 0
    while clock.now() - start < window_s:
        for _ in range(8):
            step(steps)
            steps += 1
        clock.synchronize()
    used, seconds = joules() - before, clock.now() - start
    images = steps * images_per_step
    moved = used > 0
    return {
        "energy_j_per_image": used / images if moved else None,
        "energy_above_idle_j_per_image": max(0.0, used - idle_w * seconds) / images if moved else None,
        "power_w": used / seconds if moved else None,
        "power_idle_w": idle_w,
        "energy_window_s": seconds,
        "energy_source": SOURCE,
    }

"""Throughput and latency: two passes, two quantities.

*Throughput* is what a busy device sustains: blocks of un-synchronised steps between two marks in the device's own
stream (CUDA events; on the CPU the clock itself). *Latency* is what one request waits: batch 1, synchronised after
each step. A per-step synchronisation in a throughput figure under-rates small models, and a pipelined interval is no
latency, so neither stands for the other.

Every function takes its clock as a parameter; the tests drive them with a fake one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.machine.clock import Clock, Step

MIN_BEYOND = 5  # samples that must lie beyond a tail percentile before it is reported: p90 from 50, p99 from 500
MIN_PAIRS = 8  # pairs of blocks before their spread says how well the ratio is known
RESAMPLES = 1000
DRAWN = 300  # of a round at most: the spread of larger medians follows from that of these


@dataclass(frozen=True, slots=True)
class Budget:
    """How long each pass may take, in seconds, and the least it must see.

    ``from_seconds`` scales all of it from the one number that a Cell carries (``budget_s``: the throughput pass).
    """

    throughput_s: float = 3.0
    latency_s: float = 3.0
    warmup_s: float = 1.0  # the least; it goes on until the windows agree
    warmup_max_s: float = 6.0
    block_s: float = 0.05
    min_blocks: int = 3  # a step of many seconds must not make a round of many minutes: rounds add up
    min_samples: int = 5
    agree: float = 0.03  # relative spread of the last windows that counts as warm
    energy_s: float = 0.0

    @classmethod
    def from_seconds(cls, seconds: float, cuda: bool = False) -> Budget:
        """Scale every pass from the seconds of the throughput pass; GPUs agree within 1 %, and take longer to heat."""
        return cls(
            throughput_s=seconds,
            latency_s=seconds,
            warmup_s=min(seconds / 2, 1.0),
            warmup_max_s=2 * seconds,
            block_s=min(max(seconds / 40, 0.01), 0.25),
            agree=0.01 if cuda else 0.03,
            energy_s=max(seconds, 5.0) if seconds >= 3 else 0.0,
        )


@dataclass(slots=True)
class WarmUp:
    """What the warm-up saw: ``stable`` is False when the windows still differed at the limit."""

    seconds: float
    steps: int
    stable: bool
    spread: float
    step_s: float  # seconds a step, of the last window


def warm_up(step: Step, clock: Clock, budget: Budget) -> WarmUp:
    """Run until the last three windows agree within ``budget.agree``, and for at least ``budget.warmup_s``.

    A window lasts a sixth of ``warmup_s`` or one step, whichever is longer. The first call (lazy initialisation,
    compilation, algorithm choice) is not part of any window and not held against the limit.
    """
    step(0)
    clock.synchronize()
    start, steps, windows = clock.now(), 1, list[float]()
    window_s = budget.warmup_s / 6
    while True:
        begin, done = clock.now(), 0
        while clock.now() - begin < window_s or not done:
            step(steps)
            steps, done = steps + 1, done + 1
            if done % 8 == 0 or not windows:  # the host must not run far ahead of an asynchronous device
                clock.synchronize()
        clock.synchronize()
        windows.append((clock.now() - begin) / done)
        last = windows[-3:]
        spread = (max(last) - min(last)) / min(last) if len(last) == 3 else float("inf")
        elapsed = clock.now() - start
        if (spread <= budget.agree and elapsed >= budget.warmup_s) or elapsed >= budget.warmup_max_s:
            stable = spread <= budget.agree
            return WarmUp(elapsed, steps, stable, spread if np.isfinite(spread) else -1.0, windows[-1])


def throughput_blocks(
    step: Step, clock: Clock, budget: Budget, step_s: float, midway: Callable[[], None] | None = None
) -> tuple[list[float], int]:
    """Time blocks of un-synchronised steps.

    At most two blocks are in flight: before the third, the host waits for the first one's end mark, which lies in
    the past of a busy device. So the queue never drains and the host's clock can still end the pass.

    Args:
        step: the step.
        clock: the device's clock.
        budget: ``throughput_s``, ``block_s`` and ``min_blocks`` are used.
        step_s: seconds a step, from the warm-up; sets the steps of a block.
        midway: called once in the middle, while the device is busy (to read its clocks).

    Returns:
        Seconds a step for each block, and the steps in a block.
    """
    per_block = max(1, round(budget.block_s / max(step_s, 1e-9)))
    clock.synchronize()
    begin, done = clock.now(), 0
    marks = [clock.mark()]
    while len(marks) <= budget.min_blocks or clock.now() - begin < budget.throughput_s:
        for _ in range(per_block):
            step(done)
            done += 1
        marks.append(clock.mark())
        if midway and clock.now() - begin >= budget.throughput_s / 2:
            midway()
            midway = None
        if len(marks) > 2:
            clock.wait(marks[-3])
    clock.synchronize()
    return [clock.seconds(a, b) / per_block for a, b in itertools.pairwise(marks)], per_block


def latency_samples(step: Step, clock: Clock, budget: Budget) -> list[float]:
    """Seconds from the call to the finished result, one sample a step, synchronised each time."""
    step(0)
    clock.synchronize()
    samples: list[float] = []
    begin = clock.now()
    while len(samples) < budget.min_samples or clock.now() - begin < budget.latency_s:
        start = clock.now()
        step(len(samples))
        clock.synchronize()
        samples.append(clock.now() - start)
    return samples


def side_by_side(step: Step, reference: Step, clock: Clock, budget: Budget) -> list[float]:
    """Time blocks of a step and of a reference in turn, so that what slows the machine slows both.

    Blocks are timed in processor time, which others on the machine take none of. It goes on until the median ratio is
    known to a sixth of ``budget.agree`` (standard error), but not longer than twice ``budget.throughput_s``, in
    processor time too.

    Returns:
        The reference's processor time a step over the step's, one ratio for each pair of blocks: how often as fast it
        is.
    """
    counts, ratios, begin = [], list[float](), clock.spent()
    for run in (step, reference):
        warm = warm_up(run, clock, replace(budget, warmup_s=budget.warmup_s / 4, warmup_max_s=budget.warmup_s / 2))
        counts.append(max(1, round(budget.block_s / max(warm.step_s, 1e-9))))
    while clock.spent() - begin < 2 * budget.throughput_s or len(ratios) < budget.min_blocks:
        seconds = [0.0, 0.0]
        for which in (0, 1) if len(ratios) % 2 else (1, 0):
            start = clock.spent()
            for number in range(counts[which]):
                (step, reference)[which](number)
            seconds[which] = (clock.spent() - start) / counts[which]
        ratios.append(seconds[1] / seconds[0])
        if len(ratios) >= MIN_PAIRS and _error_of_median(np.log(ratios)) <= budget.agree / 6:
            break
    return ratios


def _error_of_median(values: np.ndarray[Any, Any]) -> float:
    """Standard error of the median of normal values, from their median absolute deviation."""
    return float(1.2533 * 1.4826 * np.median(np.abs(values - np.median(values))) / np.sqrt(len(values)))


def phase_seconds(phases: Sequence[tuple[str, Step]], clock: Clock, budget: Budget) -> dict[str, list[float]]:
    """Split a step into named phases: marks between them in the stream, no synchronisation inside a step.

    Returns:
        Seconds per phase, one number a step. A pass of its own: the marks would disturb the throughput pass.
    """
    found: dict[str, list[float]] = {name: [] for name, _ in phases}
    clock.synchronize()
    begin, number = clock.now(), 0
    while number < budget.min_blocks or clock.now() - begin < budget.throughput_s / 3:
        marks = [clock.mark()]
        for _, phase in phases:
            phase(number)
            marks.append(clock.mark())
        clock.wait(marks[-1])
        for (name, _), a, b in zip(phases, marks[:-1], marks[1:], strict=True):
            found[name].append(clock.seconds(a, b))
        number += 1
    return found


# ---- statistics of samples: pure ----------------------------------------------------------------------------------


def tail(samples: Sequence[float], percent: float) -> float | None:
    """A percentile, or None when fewer than ``MIN_BEYOND`` samples can be expected beyond it."""
    if len(samples) * (1 - percent / 100) < MIN_BEYOND - 1e-9:
        return None
    return float(np.percentile(np.asarray(samples), percent))


def median_interval(rounds: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median over rounds of samples.

    Samples of one round share its drift, so the rounds are the sample: Student's t on the logarithms of their medians
    (a bootstrap of two or three rounds covers far less than it says). One round has only its own samples, which know
    nothing of drift between processes: :func:`bootstrap_median`.

    Returns:
        Lower and upper bound, in the samples' unit; the median of the rounds' medians lies between them.
    """
    kept = [values for values in rounds if len(values)]
    if not kept:
        raise ValueError("median_interval: no samples")
    if len(kept) == 1:
        return bootstrap_median(kept[0], level)
    from scipy.special import stdtrit

    medians = np.log([np.median(values) for values in kept])
    half = float(stdtrit(len(medians) - 1, (1 + level) / 2) * np.std(medians, ddof=1) / np.sqrt(len(medians)))
    mean, median = float(np.mean(medians)), float(np.median(medians))
    return float(np.exp(min(mean - half, median))), float(np.exp(max(mean + half, median)))


def bootstrap_median(samples: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the median of independent samples.

    Returns:
        Lower and upper bound, in the samples' unit.
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(samples, dtype=float)
    size = min(len(values), DRAWN)
    drawn = np.median(values[rng.integers(0, len(values), (RESAMPLES, size))], axis=1)
    centre = np.median(values)
    estimate = centre + (drawn - centre) * np.sqrt(size / len(values))  # errors shrink with the root of n
    low, high = np.quantile(estimate, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(slots=True)
class Samples:
    """Rounds of samples of one quantity, in seconds."""

    rounds: list[list[float]] = field(default_factory=list)

    def medians(self) -> list[float]:
        """Median of each round."""
        return [float(np.median(r)) for r in self.rounds if r]

    def centre(self) -> float:
        """Median of the rounds' medians: one bad round in three does not move it."""
        return float(np.median(self.medians()))

    def spread(self) -> float | None:
        """Largest relative difference between two rounds, the A/A difference seen; None for a single round."""
        medians = self.medians()
        return (max(medians) - min(medians)) / self.centre() if len(medians) > 1 else None

    def pooled(self) -> list[float]:
        """All samples."""
        return [s for r in self.rounds for s in r]

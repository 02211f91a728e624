"""What repeats of a measurement say of its noise. Pure functions on the metrics of Records."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import log, sqrt
from statistics import fmean

from bench.record.store import NORMAL_95 as NORMAL_95
from bench.record.store import UNUSABLE as UNUSABLE
from bench.record.types import Metrics, Record
from bench.report.words import figure

# What a table calls each speed -> its metric here, and every metric that comes from the same samples.
_SPEEDS = {
    "images/s": (
        "throughput_images_per_s",
        re.compile(
            r"throughput_images_per_s_(p\d+|ci_\w+)|noise_rel|(step|forward|backward|optimizer)_ms_p50"
            r"|energy_j_per_image|achieved_gflops_per_s|mfu|hfu|roofline_fraction"
        ),
    ),
    "latency": ("latency_ms", re.compile(r"latency_ms_(p\d+|ci_\w+)|latency_noise_rel")),
    "device images/s": ("device", re.compile(r"device_(step_ms|images_per_s)_p50|device_noise_rel|launch_bound")),
}


def noise(metrics: Metrics, metric: str = "throughput_images_per_s") -> float | None:
    """Standard deviation of the relative difference of two runs; None without a repeat.

    Records from before the latency had a figure of its own have its interval, which is as wide in proportion to the
    noise as that of the throughput: both are Student's over the same rounds.
    """
    of_throughput = figure(metrics, "noise_rel")
    if metric == "throughput_images_per_s":
        return of_throughput
    own = figure(metrics, f"{metric.partition('_')[0]}_noise_rel")
    width, width_of_throughput = (_log_width(metrics, name) for name in (metric, "throughput_images_per_s"))
    if own is not None or of_throughput is None or width is None or not width_of_throughput:
        return own
    return of_throughput * width / width_of_throughput


def without_unusable(record: Record) -> Record:
    """The Record as boards show it: speeds that its own repeats make meaningless are taken out of its metrics.

    Its metrics then have ``unusable``: for each such speed, the relative difference that 95 % of pairs of runs of it
    would stay below, which is more than :data:`UNUSABLE`. A Record without such a speed is returned as it is.
    """
    metrics = record["metrics"]
    bounds = {speed: NORMAL_95 * (noise(metrics, metric) or 0.0) for speed, (metric, _) in _SPEEDS.items()}
    found = {speed: bound for speed, bound in bounds.items() if bound > UNUSABLE}
    if not found:
        return record
    taken = [_SPEEDS[speed][1] for speed in found]
    kept = {name: value for name, value in metrics.items() if not any(t.fullmatch(name) for t in taken)}
    return {**record, "metrics": {**kept, "unusable": found}}


def noise_floor(records: Iterable[Metrics], metric: str = "throughput_images_per_s") -> float | None:
    """The relative difference that 95 % of pairs of runs of one row stay below, over a table; None without a repeat.

    1.96 times the root mean square over rows: a row's own noise is one standard deviation of such a difference,
    estimated from few rounds, and only its square is right on average.
    """
    squares = [found**2 for r in records if (found := noise(r["metrics"], metric)) is not None]
    return NORMAL_95 * sqrt(fmean(squares)) if squares else None


def _log_width(metrics: Metrics, metric: str) -> float | None:
    low, high = figure(metrics, f"{metric}_ci_low"), figure(metrics, f"{metric}_ci_high")
    return log(high / low) if low and high else None

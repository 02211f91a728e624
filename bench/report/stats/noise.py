"""What repeats of a measurement say of its noise. Pure functions on the metrics of Records."""

from __future__ import annotations

from collections.abc import Iterable
from math import log, sqrt
from statistics import fmean

from bench.record.types import Metrics
from bench.report.blocks import figure

NORMAL_95 = 1.96  # standard deviations within which 95 % of normal differences lie


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

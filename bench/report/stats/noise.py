"""What repeats of a measurement say of its noise. Pure functions on the metrics of Records."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

from bench.report.blocks import known

NORMAL_95 = 1.96  # standard deviations within which 95 % of normal differences lie


def noise(metrics: Mapping[str, Any], metric: str = "throughput_images_per_s") -> float | None:
    """Standard deviation of the relative difference of two runs; None without a repeat.

    Records from before the latency had a figure of its own have its interval, which is as wide in proportion to the
    noise as that of the throughput: both are Student's over the same rounds.
    """
    of_throughput = _value(metrics, "noise_rel")
    if metric == "throughput_images_per_s":
        return of_throughput
    own = _value(metrics, f"{metric.partition('_')[0]}_noise_rel")
    width, width_of_throughput = (_log_width(metrics, name) for name in (metric, "throughput_images_per_s"))
    if own is not None or of_throughput is None or width is None or not width_of_throughput:
        return own
    return of_throughput * width / width_of_throughput


def _log_width(metrics: Mapping[str, Any], metric: str) -> float | None:
    low, high = _value(metrics, f"{metric}_ci_low"), _value(metrics, f"{metric}_ci_high")
    return log(high / low) if low and high else None


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if value is not None and known(value) else None

"""What repeats of a measurement prove: whether two speeds differ. Pure functions on the metrics of Records.

The boards and the regression check share this rule, so that what one calls a difference is one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from bench.report.tables import known

LEAST_CHANGE = 0.01  # no machine repeats itself better than this from one day to the next
NORMAL_95 = 1.96  # standard deviations within which 95 % of normal differences lie
NOISES = 2  # standard deviations of the difference of two runs that a change must exceed


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """Two measurements of one quantity.

    Attributes:
        ratio: the later over the earlier; of a time, 1.2 is a slow-down by a fifth.
        least: the relative change that repeats of these two do not explain.
        apart: whether their 95 % intervals have nothing in common; None where one has no interval over rounds.
    """

    ratio: float
    least: float
    apart: bool | None

    @property
    def differs(self) -> bool:
        """Whether the change is more than noise: intervals apart, and beyond ``least`` whichever way it is read."""
        return bool(self.apart) and abs(log(self.ratio)) > log(1 + self.least)

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, ``same``, or ``unknown`` where no rounds tell the noise."""
        if self.apart is None:
            return "unknown"
        return "same" if not self.differs else "higher" if self.ratio > 1 else "lower"


def speed_change(
    before: Mapping[str, Any], after: Mapping[str, Any], metric: str = "throughput_images_per_s"
) -> SpeedChange | None:
    """Compare one quantity of two efficiency Records of one Cell.

    Args:
        before: ``metrics`` of the earlier Record.
        after: ``metrics`` of the later one.
        metric: ``throughput_images_per_s`` or ``latency_ms``: their ``_p50``, interval and noise are read.

    Returns:
        None where either lacks the figure.
    """
    earlier, later = (_value(m, f"{metric}_p50") for m in (before, after))
    if not earlier or not later:
        return None
    noises = [noise(m, metric) for m in (before, after)]
    least = max([LEAST_CHANGE, *(NOISES * n for n in noises if n is not None)])
    return SpeedChange(later / earlier, least, None if None in noises else _apart(before, after, metric))


def _apart(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> bool | None:
    bounds = [_value(m, f"{metric}_ci_{end}") for m in (before, after) for end in ("low", "high")]
    low, high, other_low, other_high = bounds
    if low is None or high is None or other_low is None or other_high is None:
        return None
    return low > other_high or other_low > high


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

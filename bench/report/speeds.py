"""What repeats of a measurement say of its noise, and speeds relative to a reference. Pure functions on Records.

A speed against a reference model measured in the same rounds is what is left when the machine's drift falls out. On a
CPU each round times the reference in turn with the model, block by block. Where that is missing (a GPU, earlier
Records) the rounds of both are paired: they are interleaved over all models, so a machine that slows down for some
minutes slows all of one round. The reference is then the model that most rows were measured beside, if that of the
CPU is not among them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log, sqrt
from statistics import fmean

import numpy as np

from bench.record.cells import SPEED_REFERENCE
from bench.record.store import NORMAL_95 as NORMAL_95
from bench.record.store import UNUSABLE as UNUSABLE
from bench.record.types import Metrics, Record
from bench.report.words import figure, grouped
from bench.stats.bootstrap import t_interval

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


# --- relative speeds -------------------------------------------------------------------------------------------

_ROUNDS = ("device_images_per_s_rounds", "throughput_images_per_s_rounds")  # the device's own where all have it


def with_relative_speeds(members: Sequence[Record]) -> tuple[list[Record], str]:
    """Give the rows of one table their speed relative to the reference's row of the same resolution and batch.

    Returns:
        The Records, ``relative_speed`` with ``_rounds`` (the ratio of each), ``_ci_low`` and ``_ci_high`` (median and
        Student's 95 % interval of the ratio over the rounds) in the metrics of those that have one; and the reference's
        label, empty without any.
    """
    done = (record for record in members if record["status"] == "ok")
    groups = grouped(done, lambda r: (r["spec"].get("resolution"), r["spec"].get("batch")))
    reference = _reference(members, groups.values())
    found: dict[str, Metrics] = {}
    for group in groups.values():
        of: Metrics = next((r["metrics"] for r in group if r["label"] == reference), {})
        for record in group:
            if ratios := record["metrics"].get("relative_speed_rounds") or _paired(record["metrics"], of):
                found[record["key"]] = _summary(ratios)
    return [{**r, "metrics": {**r["metrics"], **found.get(r["key"], {})}} for r in members], reference if found else ""


def _reference(members: Sequence[Record], groups: Iterable[Sequence[Record]]) -> str:
    if any(r["metrics"].get("relative_speed_rounds") for r in members):
        return SPEED_REFERENCE
    beside = Counter(r["label"] for group in groups if len(group) > 1 for r in group)
    return max(beside, key=lambda label: (label == SPEED_REFERENCE, beside[label], label), default="")


def _paired(metrics: Metrics, reference: Metrics) -> list[float]:
    """The ratio of each round where the two were measured one after the other."""
    pair = next(((metrics[n], reference[n]) for n in _ROUNDS if metrics.get(n) and reference.get(n)), None)
    unusable = {*metrics.get("unusable", ()), *reference.get("unusable", ())}
    if pair is None or unusable or len(pair[0]) != len(pair[1]) or len(pair[0]) < 2 or _apart(metrics, reference):
        return []
    return [float(own / other) for own, other in zip(*pair, strict=True)]


def _summary(ratios: Sequence[float]) -> Metrics:
    logs = np.log(ratios)
    low, high = t_interval(logs.tolist()) if len(ratios) > 1 else (-math.inf, math.inf)
    middle = float(np.median(logs))
    return {
        "relative_speed": math.exp(middle),
        "relative_speed_rounds": list(ratios),
        "relative_speed_ci_low": math.exp(min(low, middle)),
        "relative_speed_ci_high": math.exp(max(high, middle)),
    }


def _apart(metrics: Metrics, reference: Metrics) -> bool:
    """Whether the time stamps show that these are not the same rounds, as when one was measured again on its own."""
    begun = list(zip(*(m.get("rounds_begun", ()) for m in (metrics, reference)), strict=False))  # ISO 8601, all UTC
    return any(max(one) > min(after) for one, after in itertools.pairwise(begun))

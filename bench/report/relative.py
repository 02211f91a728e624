"""Speeds against a reference model measured in the same rounds: what is left when the machine's drift falls out.

On a CPU each round times the reference in turn with the model, block by block. Where that is missing (a GPU, earlier
Records) the rounds of both are paired: they are interleaved over all models, so a machine that slows down for some
minutes slows all of one round. The reference is then the model that most rows were measured beside, if that of the
CPU is not among them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.record.cells import SPEED_REFERENCE
from bench.record.types import Metrics, Record
from bench.stats.bootstrap import t_interval

_ROUNDS = ("device_images_per_s_rounds", "throughput_images_per_s_rounds")  # the device's own where all have it


def with_relative_speeds(members: Sequence[Record]) -> tuple[list[Record], str]:
    """Give the rows of one table their speed relative to the reference's row of the same resolution and batch.

    Returns:
        The Records, ``relative_speed`` with ``_rounds`` (the ratio of each), ``_ci_low`` and ``_ci_high`` (median and
        Student's 95 % interval of the ratio over the rounds) in the metrics of those that have one; and the reference's
        label, empty without any.
    """
    groups: dict[tuple[Any, Any], list[Record]] = defaultdict(list)
    for record in members:
        if record["status"] == "ok":
            groups[record["spec"].get("resolution"), record["spec"].get("batch")].append(record)
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

"""Speeds against a reference model measured in the same rounds: what is left when the machine's drift falls out.

Rounds are interleaved over all models, so a machine that slows down for some minutes slows all of one round.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.record.types import Metrics, Record
from bench.stats.bootstrap import t_interval

REFERENCE = "resnet18"  # where it was measured; else the model that most rows have been measured beside
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
    beside = Counter(r["label"] for group in groups.values() if len(group) > 1 for r in group)
    if not beside:
        return list(members), ""
    reference = max(beside, key=lambda label: (label == REFERENCE, beside[label], label))
    found: dict[str, Metrics] = {}
    for group in groups.values():
        of = next((r for r in group if r["label"] == reference), None)
        for record in group if of is not None else ():
            if ratio := _ratio(record["metrics"], of["metrics"] if of else {}):
                found[record["key"]] = ratio
    return [{**r, "metrics": {**r["metrics"], **found.get(r["key"], {})}} for r in members], reference if found else ""


def _ratio(metrics: Metrics, reference: Metrics) -> Metrics:
    pair = next(((metrics[n], reference[n]) for n in _ROUNDS if metrics.get(n) and reference.get(n)), None)
    unusable = {*metrics.get("unusable", ()), *reference.get("unusable", ())}
    if pair is None or unusable or len(pair[0]) != len(pair[1]) or len(pair[0]) < 2 or _apart(metrics, reference):
        return {}
    ratios = np.asarray(pair[0], dtype=float) / np.asarray(pair[1], dtype=float)
    logs = np.log(ratios)
    low, high = t_interval(logs.tolist())
    middle = float(np.median(logs))
    return {
        "relative_speed": math.exp(middle),
        "relative_speed_rounds": ratios.tolist(),
        "relative_speed_ci_low": math.exp(min(low, middle)),
        "relative_speed_ci_high": math.exp(max(high, middle)),
    }


def _apart(metrics: Metrics, reference: Metrics) -> bool:
    """Whether the time stamps show that these are not the same rounds, as when one was measured again on its own."""
    begun = list(zip(*(m.get("rounds_begun", ()) for m in (metrics, reference)), strict=False))  # ISO 8601, all UTC
    return any(max(one) > min(after) for one, after in itertools.pairwise(begun))

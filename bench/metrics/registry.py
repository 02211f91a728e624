"""Figures of merit of a trained model: each is one entry that says its name, direction, format and how it is tested.

Leaderboards, the regression check, CSV and HTML take what they show from here. A plug-in adds an entry of its own::

    from bench.metrics import register_metric

    @register_metric("top2", label="top-2 ACC")
    def top2(labels, scores, task):
        return float((scores.argsort(1)[:, -2:] == labels.reshape(-1, 1)).any(1).mean())

Its value is computed after every training from validation and test scores and stored in the Record, with what a board
must know of it, so that boards are made again without the plug-in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.metrics import one_vs_rest
from bench.metrics.one_vs_rest import Array
from bench.registry import RegistryError

DEFINITIONS = "metric_definitions"  # the field of a Record's metrics that holds the entries of plug-ins
Function = Callable[[Array, Array, str], float]


@dataclass(frozen=True, slots=True)
class OverImages:
    """A metric in terms of single test images, by which two models are compared image by image.

    Attributes:
        value: (scores, labels) to the metric.
        influence: (scores, labels) to (N,): what drawing each image once more adds to it.
        resampled: (scores, labels, weights (N, n)) to (n,): the metric of each resampled test set.
        by_class: images count as drawn class by class, and not all from one group.
        answers: (scores, labels) to (N,) in [0, 1], where the metric is their mean; for McNemar's test of single seeds.
    """

    value: Callable[[Array, Array], float]
    influence: Callable[[Array, Array], Array]
    resampled: Callable[[Array, Array, Array], Array]
    by_class: bool = True
    answers: Callable[[Array, Array], Array] | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of merit.

    Attributes:
        name: a Record's metrics have it as ``test_<name>``.
        label: its heading.
        unit: shown behind the heading; empty for shares and indices.
        digits: decimals.
        images: how it is tested over test images; None for a metric that is only tested over trainings (seeds).
        compute: of a plug-in's metric, its function of labels, scores and task.
        drop: its column in the table of each dataset goes in this order where a terminal is narrow; 0: it has none.
    """

    name: str
    label: str
    higher_is_better: bool = True
    unit: str = ""
    digits: int = 3
    images: OverImages | None = None
    compute: Function | None = None
    drop: int = 0

    @property
    def field(self) -> str:
        """Its name among the metrics of a Record."""
        return f"test_{self.name}"

    @property
    def over(self) -> OverImages:
        """How it is tested over images. Raises ValueError for a metric that is tested over trainings alone."""
        if self.images is None:
            raise ValueError(f"metric {self.name!r} is not tested over images")
        return self.images

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label} {self.unit}".rstrip()

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    def shown(self, value: float | None) -> str:
        """A value with this metric's decimals, or a dash."""
        return f"{value:.{self.digits}f}" if value is not None and math.isfinite(value) else "–"


AUC = Metric(
    "auc", "AUC", images=OverImages(one_vs_rest.auc, one_vs_rest.auc_influence, one_vs_rest.resampled_auc)
)  # fmt: skip
ACC = Metric(
    "acc", "ACC",
    images=OverImages(
        one_vs_rest.acc, one_vs_rest.acc_influence, one_vs_rest.resampled_acc, by_class=False,
        answers=one_vs_rest.correct,
    ),
)  # fmt: skip
RANKING = AUC  # orders the models of a leaderboard
_BUILT_IN = (
    AUC,
    ACC,
    Metric("balanced_acc", "bal. ACC", drop=5),
    Metric("f1_macro", "F1", drop=7),
    Metric("mcc", "MCC", drop=9),
    Metric("ece", "ECE", higher_is_better=False),
    Metric("brier", "Brier", higher_is_better=False),
    Metric("auprc", "AUPRC", drop=4),
    Metric("loss", "log loss", higher_is_better=False),
    Metric("sensitivity_macro", "macro sensitivity"),
    Metric("specificity_macro", "macro specificity"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _BUILT_IN}
TESTED = tuple(metric for metric in _BUILT_IN if metric.images)  # shown with intervals and tie groups
_OTHERS = "auc_classes precision_macro nll confusion sensitivity specificity qwk mae n"  # what Records hold beside
_TAKEN = {*METRICS, *_OTHERS.split()}


def register_metric(
    name: str, *, label: str = "", higher_is_better: bool = True, unit: str = "", digits: int = 3
) -> Callable[[Function], Function]:
    """Register a function of (labels, scores, task) as a metric that is recorded, shown, ranked and checked.

    ``labels`` are (N,) class indices, or (N, L) in {0, 1} for a multi-label task; ``scores`` are (N, C) probabilities,
    float64; ``task`` is one of :data:`bench.registry.TASKS`. It returns a number; NaN where it is undefined.

    Args:
        name: lower-case letters, digits and ``_``; Records have it as ``test_<name>``.
        label: heading on boards; the name if empty.
        higher_is_better: False for an error or a loss.
        unit: shown behind the label.
        digits: decimals on boards.

    Raises:
        RegistryError: the name cannot be used, or another plug-in has it.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise RegistryError(f"metric {name!r}: a name has lower-case letters, digits and _, and begins with a letter")

    def register(function: Function) -> Function:
        owner = "a metric of medbench" if name in _TAKEN else ""
        if (old := METRICS.get(name)) and old.compute and _file(old.compute) != _file(function):
            owner = f"registered by {_file(old.compute)}"
        if owner:
            raise RegistryError(f"metric {name!r} is {owner}; choose another name")
        METRICS[name] = Metric(name, label or name, higher_is_better, unit, digits, compute=function)
        return function

    return register


def _file(function: Function) -> str:
    code = getattr(function, "__code__", None)
    return code.co_filename if code else getattr(function, "__module__", "")


def of_plugins(labels: Array, scores: Array, task: str) -> dict[str, float]:
    """The metrics that plug-ins registered, by name; one whose function fails is NaN, and the log says why."""
    found = {}
    for metric in METRICS.values():
        if metric.compute is None:
            continue
        try:
            found[metric.name] = float(metric.compute(np.array(labels), np.array(scores), task))
        except Exception as error:  # a plug-in's: hours of training are not to be lost for it
            print(f"metric {metric.name!r} failed and is left empty: {type(error).__name__}: {error}", flush=True)
            found[metric.name] = math.nan
    return found


def definitions(metrics: Iterable[Metric] | None = None) -> dict[str, dict[str, dict[str, object]]]:
    """What a Record says of ``metrics`` (all of plug-ins), ``{DEFINITIONS: {name: fields}}``; empty for none."""
    found = {
        m.name: {"label": m.label, "higher_is_better": m.higher_is_better, "unit": m.unit, "digits": m.digits}
        for m in (metrics if metrics is not None else [m for m in METRICS.values() if m.compute])
    }
    return {DEFINITIONS: found} if found else {}


def defined(records: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """The metrics of plug-ins that Records define, by name; of two definitions the last counts."""
    found: dict[str, Metric] = {}
    for record in records:
        for name, fields in (record["metrics"].get(DEFINITIONS) or {}).items():
            if name not in _TAKEN:
                found[name] = Metric(
                    name, str(fields.get("label", name)), bool(fields.get("higher_is_better", True)),
                    str(fields.get("unit", "")), int(fields.get("digits", 3)),
                )  # fmt: skip
    return tuple(found[name] for name in sorted(found))

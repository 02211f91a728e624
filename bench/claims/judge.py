"""Each claimed improvement of a paper against its test set: supported, unsupported, opposite, not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from bench.claims.figures import Figure, differences
from bench.claims.probability import false_acc, false_auc, measured_phi
from bench.metrics.one_vs_rest import Array, correct
from bench.record import store
from bench.record.paths import predictions_path, require_run
from bench.report.evidence import read_saved
from bench.stats.paired import holm

ALPHA = 0.05
PHI = (0.2, 0.8)  # of different networks on one test set: docs/claims.md
SUPPORTED, UNSUPPORTED, OPPOSITE, NOT_COMPARABLE = "supported", "unsupported", "opposite", "not comparable"
Measured = Mapping[tuple[str, frozenset[str]], tuple[float, float]]  # (dataset, our two models) -> lowest, highest phi


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimed improvement.

    Attributes:
        metric: ``acc`` or ``auc``.
        proposed: the row that is claimed to be better.
        other: the row that it is compared with.
        phi: lowest and highest correlation of the errors that was assumed.
        measured: the correlations were measured on our predictions.
        p: probability that the claim is false at the lowest and at the highest correlation; empty where unknown.
        corrected: the same after Holm's correction for all claims of the paper.
        outcome: one of the four above.
        reason: why so.
        differs: known differences of protocol.
    """

    metric: str
    proposed: Figure
    other: Figure
    phi: tuple[float, float]
    measured: bool
    p: tuple[float, ...]
    corrected: tuple[float, ...]
    outcome: str
    reason: str
    differs: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Figure of the proposed model less that of the other."""
        a, b = getattr(self.proposed, self.metric), getattr(self.other, self.metric)
        return a - b if a is not None and b is not None else None


def judge(
    proposed: Sequence[Figure],
    others: Sequence[Figure],
    phi: tuple[float, float] = PHI,
    measured: Measured | None = None,
    noise: float = 0.0,
) -> list[Claim]:
    """Judge every pair of a proposed and another row on one dataset, as one family of claims.

    Comparisons that came out the other way are in the family: a paper that reports all is corrected for all.

    Args:
        proposed: rows of the model that is claimed to be better.
        others: rows that it is compared with.
        phi: range of the correlation of the errors where it is not measured.
        measured: from :func:`measure`.
        noise: standard deviation of a figure over trainings, assumed of a row that gives no spread.
    """
    found = []
    for a, b in product(proposed, others):
        if a.dataset == b.dataset and a is not b:
            for metric in ("acc", "auc"):
                if getattr(a, metric) is not None or getattr(b, metric) is not None:
                    found.append(_claim(metric, a, b, phi, measured or {}, noise))
    tested = [i for i, claim in enumerate(found) if claim.p]
    corrected = [holm([found[i].p[end] for i in tested]) for end in (0, 1)]
    for at, i in enumerate(tested):
        found[i] = _decided(found[i], (float(corrected[0][at]), float(corrected[1][at])))
    return found


def _claim(metric: str, a: Figure, b: Figure, phi: tuple[float, float], measured: Measured, noise: float) -> Claim:
    own = measured.get((a.dataset, frozenset({a.ours, b.ours}))) if a.ours and b.ours else None
    ends, differs = own or phi, tuple(differences(a, b))
    first, second = getattr(a, metric), getattr(b, metric)

    def claim(outcome: str, reason: str, p: tuple[float, ...] = ()) -> Claim:
        return Claim(metric, a, b, ends, own is not None, p, (), outcome, reason, differs)

    if first is None or second is None:
        return claim(NOT_COMPARABLE, f"{(a if first is None else b).model} has no {metric.upper()}")
    if a.n_test is None or b.n_test is None:
        return claim(NOT_COMPARABLE, "the number of test images is not known; add a column n_test")
    if a.n_test != b.n_test:
        return claim(NOT_COMPARABLE, f"different test sets: {a.n_test:,} and {b.n_test:,} images")
    training = sum(_training(row, metric, noise) for row in (a, b))
    if metric == "acc":
        p = tuple(false_acc(first, second, a.n_test, end, training) for end in ends)
    elif a.n_positive is None:
        return claim(NOT_COMPARABLE, "AUC needs the number of positive images (column n_positive), and two classes")
    else:
        n = a.n_positive, a.n_test - a.n_positive
        p = tuple(false_auc(first, second, *n, end, training) for end in ends)
    if first < second:
        return claim(OPPOSITE, f"{b.model} has the higher {metric.upper()}", p)
    return claim(UNSUPPORTED, "", p)


def _training(row: Figure, metric: str, noise: float) -> float:
    """Variance of a row's figure over trainings."""
    spread = getattr(row, f"{metric}_spread")
    return float((noise if spread is None else spread) ** 2 / (row.seeds or 1))


def _decided(claim: Claim, corrected: tuple[float, float]) -> Claim:
    if claim.outcome == OPPOSITE:
        return replace(claim, corrected=corrected)
    if corrected[0] < ALPHA:
        outcome, reason = SUPPORTED, f"at every correlation from {claim.phi[0]:.2f} up"
    elif corrected[1] < ALPHA:
        outcome, reason = UNSUPPORTED, f"supported only if the errors correlate at about {claim.phi[1]:.2f}"
    elif claim.difference == 0:
        outcome, reason = UNSUPPORTED, "the figures are equal"
    elif max(claim.p) < ALPHA:
        outcome, reason = UNSUPPORTED, "not after correction for the number of comparisons"
    else:
        outcome, reason = UNSUPPORTED, f"{claim.proposed.n_test:,} test images are too few"
    return replace(claim, corrected=corrected, outcome=outcome, reason=reason)


def measure(runs: Sequence[Path]) -> dict[tuple[str, frozenset[str]], tuple[float, float]]:
    """Correlations of the errors of our models, over all pairs of trainings of one protocol.

    Raises:
        StoreError: a folder is not a run directory.
    """
    answers: dict[tuple[str, str], dict[str, list[Array]]] = {}
    for run in runs:
        require_run(run)
        for record in store.read_records(run)[0]:
            path = predictions_path(run, record["key"])
            if record["kind"] == "accuracy" and record["status"] == "ok" and path.is_file():
                spec = record["spec"]
                saved = read_saved(path)
                right = correct(saved.scores, saved.labels)
                place = str(spec["dataset"]), f"{spec.get('size')} {spec.get('resolution')} {spec.get('recipe')}"
                answers.setdefault(place, {}).setdefault(str(spec["model"]), []).append(right)
    found: dict[tuple[str, frozenset[str]], tuple[float, float]] = {}
    for (dataset, _), models in answers.items():
        for a, b in product(models, models):
            pairs = [(x, y) for x in models[a] for y in models[b] if x is not y and len(x) == len(y)]
            if values := [v for x, y in pairs if np.isfinite(v := measured_phi(x, y))]:
                key = dataset, frozenset({a, b})
                before = found.get(key, (1.0, -1.0))
                found[key] = min(before[0], *values), max(before[1], *values)
    return found

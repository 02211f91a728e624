"""The operating point and the calibration of each model on a dataset, and what a decision by it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.calibration import over_seeds
from bench.metrics.one_vs_rest import Array, binary_auc, one_vs_rest
from bench.metrics.operating import YOUDEN, Rule, expected_cost, net_benefit, threshold, treat_all
from bench.metrics.registry import RANKING
from bench.metrics.resampled import average_precision, log_loss, quadratic_kappa
from bench.report.blocks import MODEL, Block, Column, Columns, Table, Text, tabled
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import MISSING, fixed, known, name, span
from bench.stats.bootstrap import interval, seed_of_test_set
from bench.stats.cluster import Ratios, Share, TwoRates, ratios, resamples, two_rates
from bench.stats.separation import estimate

EXACT_LIMIT = 20_000  # images times classes, above which average precision has no interval


def clinical_blocks(members: Sequence[Row], rule: Rule) -> list[Block]:
    """Operating point, calibration and other figures of the models of one dataset and protocol."""
    shown = [row for row in members if row.clinical]
    if not shown:
        return []
    classes = max(len(row.clinical[0].sensitivity) for row in shown)
    blocks = _two_classes(shown, rule) if classes == 1 else []
    blocks += _other_figures(shown)
    if classes > 1:
        blocks += label_blocks(shown) or _per_class(shown, classes)
    return blocks


# --- two classes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """What a row's models say of the test images at the threshold that validation chose for each.

    Attributes:
        yes: (N,) share of the row's trainings that call an image.
        target: (N,) whether it is of the positive class.
        column: (N,) mean score of the positive class.
        threshold: mean over trainings.
    """

    row: Row
    yes: Array
    target: Array
    column: Array
    threshold: float

    @property
    def rates(self) -> TwoRates:
        """Sensitivity and specificity, by patient where patients are known."""
        return two_rates(self.yes, self.target, self.row.evidence.patients if self.row.evidence else None)


def decided(row: Row, rule: Rule) -> Decided | None:
    """Apply a rule to the saved scores of a row; None but for two classes with scores of validation."""
    if not row.evidence or not row.clinical or len(row.clinical[0].thresholds) > 1:
        return None
    number = row.positive.number if row.positive else 1
    yes, columns, thresholds = [], [], []
    target = np.zeros(0, dtype=bool)
    for folds in trainings(row):
        called, scored, truths = [], [], []
        for saved in folds:
            if saved.val_scores is None or saved.val_labels is None:
                return None
            column, targets = one_vs_rest(saved.val_scores, saved.val_labels, number)
            thresholds.append(threshold(column[:, 0], targets[:, 0], rule))
            tested, truth = one_vs_rest(saved.scores, saved.labels, number)
            called.append(tested[:, 0] >= thresholds[-1])
            scored.append(tested[:, 0])
            truths.append(truth[:, 0])
        yes.append(np.concatenate(called))
        columns.append(np.concatenate(scored))
        target = np.concatenate(truths)
    if np.isnan(thresholds).any():
        return None
    return Decided(row, np.mean(yes, axis=0), target, np.mean(columns, axis=0), float(np.mean(thresholds)))


def positive_note(rows: Sequence[Row]) -> str:
    """Which of two classes is the positive one, and if that is a guess, how to change it."""
    found = next((row.positive for row in rows if row.positive), None)
    if found is None:
        return "Sensitivity is that of class 1; these records are too old to name it."
    guess = f", a guess: {name('positive=CLASS')} in the dataset's brackets says which" if found.guessed else ""
    return f"The positive class is {name(found.name)}{guess}."


def _two_classes(shown: Sequence[Row], rule: Rule) -> list[Block]:
    found = [point for row in shown if (point := decided(row, rule))]
    if not found:
        return [Text(f"{positive_note(shown)} Validation has one class only, so there is no operating point.".strip())]
    share = float(found[0].target.mean()) if rule.prevalence is None else rule.prevalence
    of = f" ({positive.name})" if (positive := found[0].row.positive) else ""
    where = f"{rule.name}, images together" if found[0].row.folds else rule.name  # a Record's is of one fold
    columns: Columns[tuple[Decided, TwoRates, Ratios]] = [
        (MODEL, lambda p: p[0].row.model),
        (Column(f"sensitivity{of}", drop=2), lambda p: fixed(p[0].row.mean("test_sensitivity"))),
        (Column(f"specificity{of}", drop=2), lambda p: fixed(p[0].row.mean("test_specificity"))),
        (Column("threshold", drop=3), lambda p: fixed(p[0].threshold)),
        (Column(f"sensitivity {where}{of}"), lambda p: fixed(p[1].sensitivity.value)),
        (Column("sens. 95 %", drop=2), lambda p: _bounds(p[1].sensitivity)),
        (Column(f"specificity {where}{of}"), lambda p: fixed(p[1].specificity.value)),
        (Column("spec. 95 %", drop=2), lambda p: _bounds(p[1].specificity)),
        (Column("PPV", drop=2), lambda p: fixed(p[2].ppv.value)),
        (Column("PPV 95 %", drop=4), lambda p: _bounds(p[2].ppv)),
        (Column("NPV", drop=2), lambda p: fixed(p[2].npv.value)),
        (Column("NPV 95 %", drop=4), lambda p: _bounds(p[2].npv)),
        (Column("LR+", drop=3), lambda p: _ratio(p[2].lr_positive)),
        (Column("LR+ 95 %", drop=5), lambda p: _bounds(p[2].lr_positive, 2)),
        (Column("LR-", drop=3), lambda p: _ratio(p[2].lr_negative)),
        (Column("LR- 95 %", drop=5), lambda p: _bounds(p[2].lr_negative, 2)),
    ]
    if (price := rule.cost) is not None:
        columns.append((Column("expected cost"), lambda p: _cost(p[1], share, price)))
    evidence = found[0].row.evidence
    by = "patients" if evidence and evidence.patients is not None else "images"
    of_whom = "that of the test images" if rule.prevalence is None else "as asked"
    cost = "" if rule.cost is None else " Expected cost: of one patient, in false alarms."
    note = (
        f"{positive_note(shown)} Sensitivity and specificity without more words are at a score of 0.5. "
        f"{rule.name[0].upper()}{rule.name[1:]}: {rule.said}, reported on test; 95 % by Wilson, over {by}. "
        f"Predictive values are at a prevalence of {100 * share:.3g} % ({of_whom}).{cost}"
    )
    table = tabled(columns, [(point, point.rates, ratios(point.rates, share)) for point in found])
    return [Text(note.strip()), table]


def _bounds(one: Share, digits: int = 3) -> str:
    return span(one.low, one.high, digits)


def _ratio(one: Share) -> str:
    return "∞" if one.value == float("inf") else fixed(one.value, 2)


def _cost(rates: TwoRates, share: float, cost: float) -> str:
    return fixed(float(expected_cost(rates.sensitivity.value, rates.specificity.value, share, cost)))


def curve(row: Row, rule: Rule) -> tuple[list[list[float]], list[list[float]]] | None:
    """The decision curve of a row and that of treating everybody: chance and net benefit; None but for two classes."""
    found = decided(row, rule)
    if found is None:
        return None
    share = float(found.target.mean()) if rule.prevalence is None else rule.prevalence
    chances = np.arange(1, 61) / 100
    both = net_benefit(found.column, found.target, chances, share), treat_all(share, chances)
    own, everybody = (np.stack([chances, np.round(values, 5)], axis=1).tolist() for values in both)
    return own, everybody


# --- more classes, calibration, other figures ------------------------------------------------------------------


Resampled = Callable[[Array, Array, Array], Array]
_CALIBRATION = {
    "test_ece": Column("ECE"), "test_ece_scaled": Column("ECE scaled", drop=1), "test_brier": Column("Brier", drop=1),
    "test_brier_scaled": Column("Brier scaled", drop=1), "temperature": Column("temperature", drop=2),
}  # fmt: skip


def _other_figures(shown: Sequence[Row]) -> list[Block]:
    """Calibration; and figures that are no means over images, with intervals from resampled images or patients."""
    note = (
        "Scaled: after temperature scaling fitted on validation; a temperature above 1 says that the model was "
        "overconfident. ECE over 15 bins."
    )
    note += " Over several trainings all are means." if any(len(row.clinical) > 1 for row in shown) else ""
    columns = [MODEL, *_CALIBRATION.values()]
    lines = [[row.model, *(fixed(row.mean(f), 2 if f == "temperature" else 3) for f in _CALIBRATION)] for row in shown]
    if first := shown[0].evidence:
        number = found.number if (found := shown[0].positive) else 1
        asked: list[tuple[str, str, Resampled]] = [("loss", "log loss", log_loss)]
        if len(first.labels) * max(len(shown[0].clinical[0].thresholds), 1) <= EXACT_LIMIT:
            asked.insert(0, ("auprc", "AUPRC", lambda s, y, w: average_precision(s, y, w, number)))
        if any(row.mean("test_qwk") is not None for row in shown):
            asked.append(("qwk", "quadratic kappa", quadratic_kappa))
        weights = resamples(first.labels, first.patients, seed_of_test_set(shown[0].dataset, first.labels))
        for row, line in zip(shown, lines, strict=True):
            saved = [joined(folds) for folds in trainings(row)]
            for field, _, function in asked:
                drawn = (
                    np.mean([function(s.scores, s.labels, weights) for s in saved], axis=0) if saved else np.zeros(0)
                )
                line += [fixed(row.mean(f"test_{field}")), span(*interval(drawn))]
        columns += [
            column for _, label, _ in asked for column in (Column(label, drop=1), Column(f"{label} 95 %", drop=3))
        ]
        by = "images" if first.patients is None else "patients"
        note += f" 95 % intervals over {weights.shape[1]:,} resamples of {by}."
    return [Text(note), Table(columns, lines).without_empty()]


def _per_class(shown: Sequence[Row], classes: int) -> list[Block]:
    first = shown[0].clinical[0]
    names = shown[0].classes
    if len(names) != len(first.positives):
        names = tuple(map(str, range(len(first.positives))))
    heads = [f"{one} (n={n:,})" for one, n in zip(names, first.positives, strict=True)]
    columns = (MODEL, Column("macro"), *(Column(head, drop=1 + i) for i, head in enumerate(heads)))
    lines = []
    for row in shown:
        macro = [fixed(row.mean(f"test_{rate}_youden_macro"), 2) for rate in ("sensitivity", "specificity")]
        pairs = zip(over_seeds(row.clinical, "sensitivity"), over_seeds(row.clinical, "specificity"), strict=True)
        cells = [f"{fixed(float(a), 2)} / {fixed(float(b), 2)}" if known(float(a)) else MISSING for a, b in pairs]
        lines.append((row.model, " / ".join(macro), *cells, *[MISSING] * (classes - len(cells))))
    note = (
        f"Sensitivity / specificity of each class against the rest, at a threshold of its own: {YOUDEN.said}, reported "
        "on test. Macro: the mean over the classes."
    )
    return [Text(note), Table(columns, lines)]


# --- several labels an image ------------------------------------------------------------------------------------


def label_blocks(members: Sequence[Row]) -> list[Block]:
    """Each label of the first model that has scores; nothing but for multi-label tasks."""
    row = next((row for row in members if row.evidence and np.asarray(row.evidence.labels).ndim == 2), None)
    if row is None or row.scored.labels.shape[1] < 2:
        return []
    labels = np.asarray(row.scored.labels)
    scores = [joined(folds).scores for folds in trainings(row)]
    names = row.classes if len(row.classes) == labels.shape[1] else tuple(map(str, range(labels.shape[1])))
    point = [over_seeds(row.clinical, field) for field in ("sensitivity", "specificity")] if row.clinical else []
    lines = [_of_label(row, text, k, scores, point) for k, text in enumerate(names)]
    columns = (
        Column("label", left=True), Column("positive"), Column(RANKING.label), Column(f"{RANKING.label} 95 %", drop=1),
        Column("AUPRC"), Column("sensitivity at Youden", drop=2), Column("specificity at Youden", drop=2),
    )  # fmt: skip
    lines += [_mean_of_labels(row, point), _micro(scores, labels)]
    note = (
        f"Label by label, {name(row.model)}. Macro: the mean over labels; micro: all images and labels together, so "
        "frequent labels count most and scores of different labels are compared."
    )
    return [Text(note), Table(columns, lines).without_empty()]


def _of_label(row: Row, text: str, k: int, scores: Sequence[Array], point: Sequence[Array]) -> tuple[str, ...]:
    labels = row.scored.labels[:, k]
    positive = int((labels > 0).sum())
    cells = [text, f"{positive:,}"]
    if not 0 < positive < len(labels):
        return (*cells, *[MISSING] * 5)
    columns = [own[:, k] for own in scores]
    found = estimate(RANKING.over, columns, labels, row.scored.patients)
    once = np.ones((len(labels), 1))
    precision = float(np.mean([average_precision(c, labels, once)[0] for c in columns]))
    cells += [fixed(found.value), span(*found.interval()), fixed(precision)]
    return (*cells, *(fixed(float(values[k])) for values in point), *[MISSING] * (2 - len(point)))


def _mean_of_labels(row: Row, point: Sequence[Array]) -> tuple[str, ...]:
    ends = [float(np.nanmean(values)) for values in point]
    interval = span(*row.evidence.interval(RANKING)) if row.evidence else MISSING
    cells = ("macro", MISSING, fixed(row.mean(RANKING.field)), interval, fixed(row.mean("test_auprc")))
    return (*cells, *map(fixed, ends), *[MISSING] * (2 - len(ends)))


def _micro(scores: Sequence[Array], labels: Array) -> tuple[str, ...]:
    flat = labels.reshape(-1) > 0
    once = np.ones((len(flat), 1))
    area = float(np.mean([binary_auc(own.reshape(-1), flat) for own in scores]))
    precision = float(np.mean([average_precision(own.reshape(-1), flat.astype(int), once)[0] for own in scores]))
    return ("micro", f"{int(flat.sum()):,}", fixed(area), MISSING, fixed(precision), MISSING, MISSING)

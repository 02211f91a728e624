"""The operating point and the calibration of each model on a dataset, and each class where there are more than two."""

from __future__ import annotations

from collections.abc import Sequence

from bench.metrics.calibration import over_seeds, wilson
from bench.metrics.registry import METRICS
from bench.report.blocks import MISSING, Block, Column, Table, Text, fixed, known, name, rows_of, span
from bench.report.rows import Row

YOUDEN = (
    "At Youden: the score with the highest sensitivity + specificity on validation (of equal ones the most sensitive), "
    "reported on test"
)


def positive_note(rows: Sequence[Row]) -> str:
    """Which of two classes is the positive one, and if that is a guess, how to change it; empty otherwise."""
    found = next((row.positive for row in rows if row.positive), None)
    if found is None:
        return ""
    said = f"The positive class is {name(found.name)}"
    return (
        f"{said}, a guess: {name('positive=CLASS')} in the dataset's brackets says which."
        if found.guessed
        else f"{said}."
    )


def clinical_blocks(members: Sequence[Row]) -> list[Block]:
    """The operating point and the calibration of each model, and each class where there are more than two."""
    shown = [row for row in members if row.clinical]
    if not shown:
        if all(row.mean(METRICS["ece"].field) is None for row in members):
            return []
        return [Text("Calibration as recorded (saved scores would give more):"), _stored_calibration(members)]
    classes = max(len(row.clinical[0].sensitivity) for row in shown)
    positive = next((row.positive for row in shown if row.positive), None)
    of = f" ({positive.name})" if positive else ""
    kind = "" if classes == 1 else "macro "
    columns = (
        Column("model", left=True, code=True), Column(f"sensitivity{of}", drop=2), Column(f"specificity{of}", drop=2),
        Column("threshold", drop=3), Column(f"{kind}sensitivity at Youden{of}"), Column("sens. 95 %", drop=2),
        Column(f"{kind}specificity at Youden{of}"), Column("spec. 95 %", drop=2), Column("ECE"),
        Column("ECE scaled", drop=1), Column("Brier", drop=1), Column("Brier scaled", drop=1),
        Column("temperature", drop=2),
    )  # fmt: skip
    table = Table(columns, rows_of(_clinical_line(row) for row in shown)).without_empty()
    which = "" if classes == 1 else (
        ". Macro: the mean over the classes, each one against the rest at its own threshold"
    )  # fmt: skip
    bounds = "; 95 % by Wilson, over images" if classes == 1 else ""
    plain = "Sensitivity and specificity without more words are at a score of 0.5. " if positive else ""
    note = (
        f"{positive_note(shown)} {plain}{YOUDEN}{bounds}{which}. Scaled: after temperature scaling fitted on "
        "validation; a temperature above 1 says that the model was overconfident. ECE over 15 bins."
    ).strip()
    if any(len(row.clinical) > 1 for row in shown):
        note += " Over several trainings all are means."
    blocks: list[Block] = [Text(note), table]
    return [*blocks, *_per_class(shown, classes)] if classes > 1 else blocks


def _clinical_line(row: Row) -> tuple[str, ...]:
    first = row.clinical[0]
    one = len(first.sensitivity) == 1
    end = "youden" if one else "youden_macro"
    sensitivity, specificity = (row.mean(f"test_{rate}_{end}") for rate in ("sensitivity", "specificity"))
    return (
        row.model,
        fixed(row.mean("test_sensitivity")),
        fixed(row.mean("test_specificity")),
        fixed(row.mean("threshold_youden")),
        fixed(sensitivity),
        span(*wilson(_number(sensitivity), first.positives[0])) if one else MISSING,
        fixed(specificity),
        span(*wilson(_number(specificity), first.negatives[0])) if one else MISSING,
        fixed(row.mean("test_ece")), fixed(row.mean("test_ece_scaled")),
        fixed(row.mean("test_brier")), fixed(row.mean("test_brier_scaled")),
        fixed(row.mean("temperature"), 2),
    )  # fmt: skip


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _per_class(shown: Sequence[Row], classes: int) -> list[Block]:
    first = shown[0].clinical[0]
    names = shown[0].classes
    if len(names) != len(first.positives):
        names = tuple(map(str, range(len(first.positives))))
    heads = [f"{one} (n={n:,})" for one, n in zip(names, first.positives, strict=True)]
    columns = (Column("model", left=True, code=True), *(Column(head, drop=1 + i) for i, head in enumerate(heads)))
    lines = []
    for row in shown:
        pairs = zip(over_seeds(row.clinical, "sensitivity"), over_seeds(row.clinical, "specificity"), strict=True)
        cells = [f"{fixed(float(a), 2)} / {fixed(float(b), 2)}" if known(float(a)) else MISSING for a, b in pairs]
        lines.append((row.model, *cells, *[MISSING] * (classes - len(cells))))
    return [Text("Sensitivity / specificity of each class:"), Table(columns, rows_of(lines))]


def _stored_calibration(members: Sequence[Row]) -> Table:
    """What the records alone say, where the scores are not at hand."""
    columns = (Column("model", left=True, code=True), Column("ECE"), Column("Brier", drop=1))
    lines = [
        (row.model, fixed(row.mean(METRICS["ece"].field)), fixed(row.mean(METRICS["brier"].field)))
        for row in members
        if row.ok
    ]
    return Table(columns, rows_of(lines)).without_empty()

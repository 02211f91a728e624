"""Every dataset on its own: models with intervals over images and over seeds, tie groups, and clinical columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from bench.metrics.calibration import over_seeds, wilson
from bench.metrics.one_vs_rest import Array
from bench.report.blocks import (
    MISSING,
    Block,
    Column,
    Details,
    Section,
    Table,
    Text,
    counted,
    fixed,
    known,
    name,
    natural,
    rows_of,
    signed,
    span,
)
from bench.report.rows import Row
from bench.report.sections.accuracy import proof_note, rank_text
from bench.report.standings import Overall
from bench.report.stats.bootstrap import interval, t_interval
from bench.report.stats.separation import Verdict

OPERATING_POINT = (
    "Operating point: the score with the highest sensitivity + specificity on validation (of equal ones the most "
    "sensitive), reported on test"
)
NO_WIDTH = (
    "An interval of no width says only that these images never contradict the model (AUC 0 or 1) or that it cannot "
    "tell them apart; others might."
)

_COLUMNS = (
    Column("#"), Column("model", left=True, code=True), Column("AUC"), Column("group", left=True, drop=1),
    Column("rank 95 %", drop=5), Column("AUC 95 %", drop=1), Column("sd images", drop=6), Column("sd seeds", drop=4),
    Column("seeds 95 %", drop=5), Column("AUC - 0.5", left=True, drop=2), Column("ACC"), Column("ACC 95 %", drop=3),
    Column("ACC sd seeds", drop=8), Column("ACC group", left=True, drop=6), Column("bal. ACC", drop=5),
    Column("F1", drop=7), Column("MCC", drop=9), Column("seeds", drop=4),
)  # fmt: skip


def dataset_sections(rows: Sequence[Row], boards: Sequence[Overall] = ()) -> list[Section]:
    """One section a dataset; models of different protocols are separate tables and separately numbered."""
    judged = {board.protocol.identity: board.judgement for board in boards}
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.dataset].append(row)
    sections = []
    for dataset in sorted(groups, key=natural):
        by_protocol: dict[str, list[Row]] = defaultdict(list)
        for row in groups[dataset]:
            by_protocol[row.protocol.identity].append(row)
        blocks: list[Block] = [Text(_about(groups[dataset]))]
        for members in sorted(by_protocol.values(), key=lambda g: g[0].protocol.order):
            found = judged.get(members[0].protocol.identity)
            auc, acc = (found.auc.get(dataset), found.acc.get(dataset)) if found else (None, None)
            blocks.append(_protocol_details(members, auc, acc))
        sections.append(Section(name(dataset), blocks, level=3))
    return sections


def _protocol_details(members: list[Row], auc: Verdict | None, acc: Verdict | None) -> Details:
    members.sort(key=lambda r: (-(a if (a := r.mean("test_auc")) is not None else -1), natural(r.model), r.model))
    protocol = members[0].protocol
    letters = (auc.letters() if auc else {}, acc.letters() if acc else {})
    ranks = auc.ranks() if auc else {}
    lines = [_line(row, place, letters, ranks) for place, row in enumerate(members, start=1)]
    blocks: list[Block] = [Table(_COLUMNS, rows_of(lines)).without_empty()]
    most_seeds = max(len(row.ok) for row in members)
    if auc:
        blocks.append(Text(proof_note(auc, "AUC", most_seeds)))
    if acc:
        seeds, exact = "paired over images and seeds", "McNemar, exact"
        mixed = f"{exact}, for two of one training, else {seeds}" if most_seeds > 1 else exact
        test = seeds if acc.retrained else mixed
        blocks.append(
            Text(
                f"ACC group: by ACC ({test}; Holm over {counted(acc.family, 'comparison')}), {acc.proven} of "
                f"{counted(acc.pairs, 'pair')}."
            )
        )
    if any(row.evidence and np.ptp(row.evidence.auc_samples) == 0 for row in members):
        blocks.append(Text(NO_WIDTH))
    blocks += clinical_blocks(members)
    return Details(f"{_leader(members)} Fed at {protocol.pixels}; recipe {protocol.training}.", tuple(blocks))


def _leader(members: Sequence[Row]) -> str:
    best = members[0].mean("test_auc")
    if best is None:
        return "No result."
    scored = sum(row.mean("test_auc") is not None for row in members)
    return f"{name(members[0].model)} has the highest AUC of {scored}, {fixed(best)}." if scored > 1 else "One model."


def _line(
    row: Row, place: int, letters: tuple[Mapping[str, str], Mapping[str, str]], ranks: Mapping[str, tuple[int, int]]
) -> tuple[str, ...]:
    evidence = row.evidence
    auc_low, auc_high = interval(evidence.auc_samples) if evidence else (None, None)
    acc_low, acc_high = interval(evidence.acc_samples) if evidence else (None, None)
    of_images = float(np.nanstd(evidence.auc_samples, ddof=1)) if evidence else None
    seeds = f"{len(row.ok)}" if not row.other else f"{len(row.ok)} of {len(row.ok) + len(row.other)}"
    status = ", ".join(sorted({r["status"] for r in row.other})) if not row.ok else ""
    area = row.mean("test_auc")
    return (
        str(place) if area is not None else MISSING, row.model, status or fixed(area), letters[0].get(row.model, ""),
        rank_text(ranks.get(row.model)), span(auc_low, auc_high), fixed(of_images), fixed(row.spread("test_auc")),
        span(*np.clip(t_interval(row.values("test_auc")), 0.0, 1.0)), from_chance(area, auc_low, auc_high),
        fixed(row.mean("test_acc")),
        span(acc_low, acc_high), fixed(row.spread("test_acc")), letters[1].get(row.model, ""),
        fixed(row.mean("test_balanced_acc")), fixed(row.mean("test_f1_macro")), fixed(row.mean("test_mcc")), seeds,
    )  # fmt: skip


def from_chance(auc: float | None, low: float | None, high: float | None) -> str:
    """The distance of an AUC from chance, and whether its interval leaves chance out."""
    if auc is None or not known(auc):
        return MISSING
    distance = signed(auc - 0.5)
    if low is None or high is None or not known(low) or not known(high):
        return distance
    if low > 0.5:
        return f"{distance} clear"
    return f"{distance} below" if high < 0.5 else f"{distance} unclear"


def _about(rows: Sequence[Row]) -> str:
    sizes = sorted({n for row in rows if (n := row.n_test) is not None})
    parts = [f"{' or '.join(f'{n:,}' for n in sizes)} test images." if sizes else ""]
    majority = sorted({round(row.evidence.majority, 6) for row in rows if row.evidence})
    frequent = f", and ACC {' or '.join(fixed(m) for m in majority)} for the most frequent answer" if majority else ""
    parts.append(f"Chance is AUC 0.5{frequent}.")
    if any(row.evidence for row in rows):
        parts.append(
            "AUC - 0.5 is clear (or below) where the 95 % interval leaves chance out, else unclear; each row by itself."
        )
    if any(len(row.ok) > 1 for row in rows):
        parts.append(
            "Two spreads, shown apart: sd images is over resampled test images, sd seeds over trainings (n - 1); AUC "
            "95 % belongs to the first, seeds 95 % (Student's) to the second."
        )
    return " ".join(part for part in parts if part)


# --- clinical columns ------------------------------------------------------------------------------------------


def clinical_blocks(members: Sequence[Row]) -> list[Block]:
    """The operating point and the calibration of each model, and each class where there are more than two."""
    shown = [row for row in members if row.clinical]
    if not shown:
        if all(row.mean("test_ece") is None for row in members):
            return []
        return [Text("Calibration as recorded (saved scores would give more):"), _stored_calibration(members)]
    classes = max(len(row.clinical[0].sensitivity) for row in shown)
    columns = (
        Column("model", left=True, code=True), Column("threshold", drop=3), Column("sensitivity"),
        Column("sens. 95 %", drop=2), Column("specificity"), Column("spec. 95 %", drop=2), Column("ECE"),
        Column("ECE scaled", drop=1), Column("Brier", drop=1), Column("Brier scaled", drop=1),
        Column("temperature", drop=2),
    )  # fmt: skip
    table = Table(columns, rows_of(_clinical_line(row) for row in shown)).without_empty()
    which = "Sensitivity and specificity are those of class 1" if classes == 1 else (
        "Sensitivity and specificity are means over the classes, each one against the rest at its own threshold"
    )  # fmt: skip
    bounds = " (95 %: Wilson, over images)" if classes == 1 else ""
    note = (
        f"{OPERATING_POINT}. {which}{bounds}. Scaled: after temperature scaling fitted on validation; a temperature "
        "above 1 says that the model was overconfident. ECE over 15 bins."
    )
    if any(len(row.clinical) > 1 for row in shown):
        note += " Over several trainings all are means, the temperature a geometric one."
    blocks: list[Block] = [Text(note), table]
    return [*blocks, *_per_class(shown, classes)] if classes > 1 else blocks


def _clinical_line(row: Row) -> tuple[str, ...]:
    sensitivity, specificity = over_seeds(row.clinical, "sensitivity"), over_seeds(row.clinical, "specificity")
    first = row.clinical[0]
    one = len(sensitivity) == 1
    ece, brier = over_seeds(row.clinical, "ece"), over_seeds(row.clinical, "brier")
    return (
        row.model,
        fixed(float(over_seeds(row.clinical, "thresholds")[0])) if one else MISSING,
        fixed(_mean(sensitivity)),
        span(*wilson(float(sensitivity[0]), first.positives[0])) if one else MISSING,
        fixed(_mean(specificity)),
        span(*wilson(float(specificity[0]), first.negatives[0])) if one else MISSING,
        fixed(float(ece[0])), fixed(float(ece[1])), fixed(float(brier[0])), fixed(float(brier[1])),
        fixed(float(np.exp(np.mean([np.log(c.temperature) for c in row.clinical]))), 2),
    )  # fmt: skip


def _mean(values: Array) -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else float("nan")


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
    lines = [(row.model, fixed(row.mean("test_ece")), fixed(row.mean("test_brier"))) for row in members if row.ok]
    return Table(columns, rows_of(lines)).without_empty()

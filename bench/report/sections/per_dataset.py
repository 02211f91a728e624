"""Every dataset on its own: models with intervals, which are significantly worse, and clinical columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.metrics.operating import YOUDEN, Rule
from bench.metrics.registry import METRICS, RANKING, TESTED, Metric
from bench.report.blocks import MODEL, Block, Column, Columns, Details, Section, Table, Text, tabled
from bench.report.clinical.lesions import lesion_blocks
from bench.report.clinical.points import clinical_blocks
from bench.report.clinical.shortcuts import shortcut_blocks
from bench.report.clinical.subgroups import subgroup_blocks
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.sections.accuracy import basis_note, why_not
from bench.report.standings import Overall, is_worse
from bench.report.words import MISSING, counted, fixed, grouped, known, listed, name, natural, signed, significant, span
from bench.stats.cluster import Z_95, resolvable
from bench.stats.leader import LeaderTest
from bench.stats.separation import compared, estimate

POWER_Z = 0.8416212335729143  # of 80 % power
NO_WIDTH = (
    "An interval of no width says only that these images never contradict the model (AUC 0 or 1) or give all "
    "one answer; others might not."
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row with what its table says of it: its place, and whether it is significantly worse than the leader."""

    row: Row
    place: int
    worse: str

    def interval(self, metric: Metric) -> tuple[float | None, float | None]:
        """Over test images and trainings; None without saved scores."""
        return self.row.evidence.interval(metric) if self.row.evidence else (None, None)


Cells = Columns[Line]


def _columns(others: Sequence[Metric]) -> Cells:
    """The columns of a table, each with how it is read off a line; ``others`` are metrics of plug-ins."""
    first, *rest = (RANKING, *(m for m in TESTED if m != RANKING))
    columns: Cells = [
        (Column("#"), lambda line: str(line.place) if line.row.mean(first.field) is not None else MISSING),
        (MODEL, lambda line: line.row.model),
        (Column(first.heading), lambda line: _status(line.row) or first.shown(line.row.mean(first.field))),
        (Column("significantly worse", left=True, drop=1), lambda line: line.worse),
        (Column(f"{first.label} 95 %", drop=1), lambda line: span(*line.interval(first))),
        (Column("sd images", drop=6), lambda line: fixed(_over_images(line.row, first))),
        (Column("sd seeds", drop=4), lambda line: fixed(line.row.spread(first.field))),
        (Column(f"{first.label} - 0.5", left=True, drop=2), lambda line: _chance(line, first)),
    ]  # fmt: skip
    for metric in rest:
        bounds = Column(f"{metric.label} 95 %", drop=3), lambda line, of=metric: span(*line.interval(of))
        columns += [_mean(metric, 0), bounds, _spread(metric, 8)]
    columns += [_mean(metric, metric.drop) for metric in METRICS.values() if metric.drop]
    for metric in others:
        columns += [_mean(metric, 1), _spread(metric, 6)]
    return [*columns, (Column("seeds", drop=4), lambda line: _seeds(line.row))]


def _mean(metric: Metric, drop: int) -> tuple[Column, Callable[[Line], str]]:
    return Column(metric.heading, drop=drop), lambda line: metric.shown(line.row.mean(metric.field))


def _spread(metric: Metric, drop: int) -> tuple[Column, Callable[[Line], str]]:
    return Column(f"{metric.label} sd seeds", drop=drop), lambda line: metric.shown(line.row.spread(metric.field))


def _chance(line: Line, metric: Metric) -> str:
    return from_chance(line.row.mean(metric.field), *line.interval(metric))


def _status(row: Row) -> str:
    """Why a row has no result; empty where it has one."""
    return ", ".join(sorted({r["status"] for r in row.other})) if not row.ok else ""


def _over_images(row: Row, metric: Metric) -> float | None:
    return row.evidence.estimates[metric.name].over_images ** 0.5 if row.evidence else None


def _seeds(row: Row) -> str:
    if row.folds:
        return f"{row.seeds}, {len(row.ok)} of {row.folds * row.seeds} folds"
    return f"{len(row.ok)}" if not row.other else f"{len(row.ok)} of {len(row.ok) + len(row.other)}"


def dataset_sections(rows: Sequence[Row], boards: Sequence[Overall] = (), rule: Rule = YOUDEN) -> list[Section]:
    """One section a dataset; models of different protocols are separate tables and separately numbered.

    ``rule`` chooses the operating point.
    """
    tested = {board.protocol.identity: board.significance.datasets for board in boards}
    columns = _columns(boards[0].plugins if boards else ())
    groups = grouped(rows, lambda row: row.dataset)
    sections = []
    for dataset in sorted(groups, key=natural):
        by_protocol = grouped(groups[dataset], lambda row: row.protocol.identity)
        blocks: list[Block] = [Text(_about(groups[dataset]))]
        for members in sorted(by_protocol.values(), key=lambda g: g[0].protocol.order):
            tables = tested.get(members[0].protocol.identity, {})
            found = {metric: of[dataset] for metric, of in tables.items() if dataset in of}
            blocks.append(_protocol_details(members, found, columns, rule))
        sections.append(Section(name(dataset), blocks, level=3))
    return sections


def _protocol_details(members: list[Row], tables: Mapping[str, LeaderTest], columns: Cells, rule: Rule) -> Details:
    best = RANKING.field
    members.sort(key=lambda r: (-(a if (a := r.mean(best)) is not None else -1), natural(r.model), r.model))
    protocol = members[0].protocol
    first = tables.get(RANKING.name)
    lines = [Line(row, place, is_worse(first, row.model)) for place, row in enumerate(members, start=1)]
    blocks: list[Block] = [tabled(columns, lines)]
    most_seeds = max(len(row.ok) for row in members)
    if first:
        why = why_not(first, {line.row.model: line.place for line in lines})
        blocks.append(Text(f"{basis_note(first, RANKING, most_seeds)} {why}".rstrip()))
    blocks += [Text(_by_metric(metric, tables[metric.name])) for metric in TESTED[1:] if metric.name in tables]
    if any(row.evidence and not row.evidence.estimates[RANKING.name].variance for row in members):
        blocks.append(Text(NO_WIDTH))
    if said := size_note(members):
        blocks.append(Text(said))
    blocks += _fold_blocks(members)
    blocks += clinical_blocks(members, rule)
    blocks += subgroup_blocks(members, rule)
    blocks += lesion_blocks(members)
    blocks += shortcut_blocks(members)
    scored = [row for row in members if row.mean(best) is not None]
    said = f"{protocol.pixels}, {protocol.training}: {counted(len(scored), 'model')}"
    if scored:
        said += f", first {name(scored[0].model)} with {RANKING.label} {RANKING.shown(scored[0].mean(best))}"
    return Details(said, tuple(blocks))


def _fold_blocks(members: Sequence[Row]) -> list[Block]:
    """Cross-validation: the score of each fold, their mean, and that of all images together; nothing without folds."""
    shown = [row for row in members if row.folds and row.evidence]
    if not shown:
        return []
    folds = shown[0].folds
    label = RANKING.label
    columns = (
        MODEL, *(Column(f"fold {i + 1}", drop=3) for i in range(folds)),
        Column(f"{label}, images together"), Column("95 %", drop=1),
    )  # fmt: skip
    lines = []
    for row in shown:
        scores = [joined(own).scores for own in trainings(row)]
        labels = row.scored.labels
        together = estimate(RANKING.over, scores, labels, row.scored.patients)
        values = row.scored.samples[RANKING.name].values
        lines.append((
            row.model, *map(fixed, values), fixed(together.value), span(*together.interval()),
        ))  # fmt: skip
    note = (
        f"{folds} folds of all images, by patient where patients are known, stratified; in each an eighth of the other "
        "images chooses the epoch. Training sets of two folds overlap, so intervals of the mean and differences of "
        "models use Nadeau and Bengio's (2003) corrected variance over folds. Images together: every image by the "
        "network that did not see it, so scores of several networks are compared. Operating points, subgroups and "
        "shortcuts are of the images together, each at its own fold's threshold."
    )
    return [Text(note), Table(columns, lines)]


def size_note(members: Sequence[Row]) -> str:
    """One or two sentences on the first two models of a table, best first; empty without saved scores of both."""
    rows = [row for row in members if row.evidence and row.mean(RANKING.field) is not None]
    if len(rows) < 2 or rows[0].scored.test_set != rows[1].scored.test_set:
        return ""
    one, two = (row.scored for row in rows[:2])
    pairs, _ = compared(RANKING.over, [e.samples[RANKING.name] for e in (one, two)], one.labels)
    variance, training = float(pairs.variance[0, 1]), float(pairs.training[0, 1])
    difference = abs(float(pairs.difference[0, 1]))
    if not variance:
        return ""
    resolved = significant(resolvable(variance**0.5), 2)
    said = (
        f"With {one.images} the test resolves a difference in {RANKING.label} of {resolved} between "
        f"{name(rows[0].model)} and {name(rows[1].model)} (two-sided 5 %, power 80 %); it is "
        f"{significant(difference, 2)}."
    )
    return f"{said} {_wanted(difference, variance - training, training, one.n_patients or one.n_test, one.n_patients)}"


def _wanted(difference: float, images: float, training: float, n: int, patients: int | None) -> str:
    """How many images or patients, as alike as these, resolve the difference, with as many trainings as here."""
    left = (difference / (Z_95 + POWER_Z)) ** 2 - training
    units = "patients" if patients else "images"
    if difference == 0:
        return "No test set resolves a difference of 0."
    if left <= 0:
        return "More trainings are needed before a larger test set could resolve it."
    wanted = images * n / left
    return f"That takes about {wanted:,.0f} {units} as these." if wanted > n else "The test set is large enough for it."


def _by_metric(metric: Metric, test: LeaderTest) -> str:
    """Who is significantly worse by a metric beside the one that ranks."""
    exact = metric.images and metric.images.answers and not test.retrained
    who = listed(map(name, test.worse)) if test.worse else "no other model"
    return (
        f"By {metric.label} {name(test.leader)} is first and significantly better than {who} "
        f"({'McNemar, exact, for two of one training; ' if exact else ''}corrected for "
        f"{counted(test.comparisons, 'comparison')})."
    )


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
    if clustered := next((row.evidence for row in rows if row.evidence and row.evidence.patients is not None), None):
        parts = [f"Test: {clustered.images}; intervals and tests count the images of a patient together."]
    majority = sorted({round(row.evidence.majority, 6) for row in rows if row.evidence})
    frequent = f", and ACC {' or '.join(fixed(m) for m in majority)} for the most frequent answer" if majority else ""
    parts.append(f"Chance is AUC 0.5{frequent}.")
    if any(row.evidence for row in rows):
        parts.append(
            "AUC - 0.5 is clear (or below) where the 95 % interval leaves chance out, else unclear; each row by itself."
        )
    if any(len(row.ok) > 1 for row in rows):
        parts.append(
            "AUC 95 % covers both spreads: sd images is that of the mean over other test images, sd seeds that of one "
            "training to the next (n - 1)."
        )
    return " ".join(part for part in parts if part)

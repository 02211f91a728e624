"""The regression check: every Cell of a baseline against a current run, and what that comes to. Pure functions.

Exact: parameters and MACs (fewer are a change, more a regression), the arrays of saved predictions. Tested: metrics
over the same test images or over seeds, throughput over rounds, peak memory over runs; one-sided, adjusted by Holm over
all tests of the check, and only an effect of at least the minimum counts. Tests that have too few samples to
ever fire are left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from bench.metrics.registry import TESTED, Metric
from bench.report.compare.gate_stats import (
    MEMORY_NOISE_REL,
    Evidence,
    Parts,
    accuracy_evidence,
    between_runs,
    can_fire,
    memory_evidence,
    of_seeds,
    parts,
    rounds_needed,
    speed_evidence,
)
from bench.report.compare.snapshot import EXACT, ArrayInfo, Snapshot, SnapshotCell, differences, shown_machine
from bench.report.words import MISSING, grouped, significant
from bench.stats.paired import holm

FINE, REGRESSION, BROKEN, INCOMPARABLE, INCOMPLETE = 0, 1, 2, 3, 4
EXACT_NAMES = {"params": "parameters", "macs_g": "GMACs", "train_macs_g": "training GMACs"}


class CheckOutcome(StrEnum):
    """What became of one check of one baseline Cell."""

    FINE = "fine"
    BETTER = "better"
    CHANGED = "changed"
    REGRESSION = "regression"
    FAILED = "failed"
    ABSENT = "absent"
    ALLOWED = "allowed"
    FEW = "few samples"
    OTHER = "not compared"
    NOTHING = "no baseline"


COMPARED = frozenset({CheckOutcome.FINE, CheckOutcome.BETTER, CheckOutcome.CHANGED, CheckOutcome.REGRESSION})


@dataclass(frozen=True, slots=True)
class Options:
    """What counts: the family-wise level, the smallest effects (points, or shares), and whether Cells may be absent.

    ``seed_noise`` is the standard deviation of AUC and ACC over trainings, assumed where there is only one seed.
    """

    alpha: float = 0.05
    min_accuracy: float = 0.01
    min_speed: float = 0.05
    min_memory: float = 0.05
    seed_noise: float = 0.02
    allow_missing: bool = False


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """One check of one Cell (or of all seeds of one row).

    Attributes:
        kind: of the Cell.
        cell: in words.
        check: the label of a metric, ``speed``, ``speed relative to resnet18``, ``memory``, ``parameters``, ``GMACs``,
            ``predictions``, ``status``.
        before: the baseline's figure as text.
        now: the current one.
        message: a sentence.
        evidence: of a test.
        adjusted: its p after Holm.
        kin: findings of one ``kin`` are told in one line; without it, those of one message.
        worse: the direction in which the figure is worse, ``lower`` or ``higher``.
    """

    kind: str
    cell: str
    check: str
    outcome: CheckOutcome
    before: str = ""
    now: str = ""
    message: str = ""
    evidence: Evidence | None = None
    adjusted: float | None = None
    kin: str = ""
    worse: str = "lower"


@dataclass(slots=True)
class CheckResult:
    """All findings, and what they come to."""

    findings: list[CheckFinding]
    options: Options
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tests: int = 0

    def count(self, *outcomes: CheckOutcome) -> int:
        """How many findings have one of these outcomes."""
        return sum(f.outcome in outcomes for f in self.findings)

    @property
    def exit_code(self) -> int:
        """2 broken input, before 1 regression, before 4 Cells failed or absent, before 3 nothing comparable, else 0."""
        if self.problems:
            return BROKEN
        if self.count(CheckOutcome.REGRESSION):
            return REGRESSION
        if self.count(CheckOutcome.FAILED, CheckOutcome.ABSENT):
            return INCOMPLETE
        return FINE if self.count(*COMPARED) else INCOMPARABLE


def check(baseline: Snapshot, current: Snapshot, options: Options | None = None) -> CheckResult:
    """Compare a current run with a baseline.

    Args:
        baseline: of :func:`bench.report.compare.snapshot.read`.
        current: of :func:`bench.report.compare.snapshot.take`, with the baseline's ``max_images``.
        options: what counts.
    """
    options = options or Options()
    there = grouped(current.entries, lambda entry: entry.asked)
    known = {entry.asked for entry in baseline.entries}
    spare = [entry for entry in current.entries if entry.asked not in known]
    findings: list[CheckFinding] = []
    pairs: list[tuple[SnapshotCell, SnapshotCell]] = []
    for before in baseline.entries:
        now = _counterpart(before, there)
        if finding := _presence(before, now, spare, options):
            findings.append(finding)
        elif now:
            pairs.append((before, now))
    for before, now in pairs:
        findings += [*_exact(before, now), *_arrays(before, now)]
    for metric in baseline.metrics:
        findings += _lost(metric, pairs, options)
    efficiency = [(before, now) for before, now in pairs if before.kind == "efficiency"]
    same = [(before, now) for before, now in efficiency if before.machine == now.machine]
    timed = [(before, now) for before, now in same if not _disturbed(before, now)]
    asked = _accuracy(pairs, (*TESTED, *baseline.metrics), options) + _speed(timed, options)
    asked += _memory(same, options)
    findings += [_elsewhere(before, now) for before, now in efficiency if before.machine != now.machine]
    findings += [_busy(before, now) for before, now in same if _disturbed(before, now)]
    judged, tests = judge(asked, options)
    problems = [*baseline.problems, *current.problems]
    notes = [*_notes(baseline, current), *_faster_references(timed, judged, options)]
    return CheckResult([*findings, *judged], options, problems, notes, tests)


# --- is it there? ----------------------------------------------------------------------------------------------


def _counterpart(before: SnapshotCell, there: Mapping[str, Sequence[SnapshotCell]]) -> SnapshotCell | None:
    """The current Cell that asks the same, of the same machine if there is one."""
    found = there.get(before.asked, ())
    return next((now for now in found if now.machine == before.machine), found[0] if found else None)


def _presence(
    before: SnapshotCell, now: SnapshotCell | None, spare: Sequence[SnapshotCell], options: Options
) -> CheckFinding | None:
    """What there is to say of a Cell that cannot be compared; None if it can."""

    def found(outcome: CheckOutcome, message: str) -> CheckFinding:
        return CheckFinding(
            before.kind, before.title(), "status", outcome, before.status, now.status if now else "–", message
        )

    if before.status != "ok":
        return found(CheckOutcome.NOTHING, f"the baseline has no result ({before.status}), so there is nothing to lose")
    if now is None:
        absent = CheckOutcome.ALLOWED if options.allow_missing else CheckOutcome.ABSENT
        return found(absent, _why_absent(before, spare))
    if now.status != "ok":
        return found(CheckOutcome.FAILED, f"{now.status}: {now.reason or 'no reason given'}")
    return None


def _why_absent(before: SnapshotCell, spare: Sequence[SnapshotCell]) -> str:
    """Whether the run has the nearly same Cell among those the baseline has not: another recipe, size or data."""
    if apart := differences(before, spare):
        return f"the current run has it with {apart}; if meant, make a new baseline"
    return "the current run has no such cell"


# --- exact -----------------------------------------------------------------------------------------------------


def _exact(before: SnapshotCell, now: SnapshotCell) -> list[CheckFinding]:
    findings = []
    for name in EXACT:
        if name not in before.exact:
            continue
        old, new = before.exact[name], now.exact.get(name)
        outcome, message = CheckOutcome.FINE, ""
        if new is None:
            outcome, message = CheckOutcome.REGRESSION, "no longer counted; the record says why"
        elif abs(new - old) > 1e-9 * abs(old):  # a decimal fraction may lose its last bit on the way through text
            share = f" ({new / old - 1:+.3%})" if old else ""
            message = f"{EXACT_NAMES[name]} changed from {_number(old)} to {_number(new)}{share}; "
            message += "if meant, make a new baseline"
            outcome = CheckOutcome.REGRESSION if new > old else CheckOutcome.CHANGED  # fewer are no loss
        texts = _number(old), MISSING if new is None else _number(new)
        findings.append(CheckFinding(before.kind, before.title(), EXACT_NAMES[name], outcome, *texts, message))
    return findings


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _arrays(before: SnapshotCell, now: SnapshotCell) -> list[CheckFinding]:
    """The schema of saved predictions: names, types, shapes, and the same test labels."""
    if before.kind == "efficiency":
        return []
    wrong = [
        f"{name} is {_array(now.arrays.get(name))} instead of {_array(before.arrays.get(name))}"
        for name in sorted({*before.arrays, *now.arrays})
        if before.arrays.get(name) != now.arrays.get(name)
    ]
    if before.scores and now.scores and before.scores.test_set != now.scores.test_set:
        wrong.append("the test labels are others")
    outcome = CheckOutcome.REGRESSION if wrong else CheckOutcome.FINE
    return [CheckFinding(before.kind, before.title(), "predictions", outcome, message="; ".join(wrong))]


def _array(value: ArrayInfo | None) -> str:
    return f"{value[0]} {'x'.join(map(str, value[1]))}" if value else "absent"


# --- tested ----------------------------------------------------------------------------------------------------

Asked = list[tuple[CheckFinding, Evidence | None]]


def accuracy_parts(
    pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], metric: Metric
) -> dict[str, tuple[SnapshotCell, Parts, float, float]]:
    """For each row, its seeds put together: a cell that names it, what its images and seeds say, the two means."""
    rows = grouped((pair for pair in pairs if _comparable(*pair, metric)), lambda pair: pair[0].row)
    found = {}
    for row, seeds in rows.items():
        old, new = ([e.shown.get(metric.field, np.nan) for e in side] for side in zip(*seeds, strict=True))
        if metric.images:
            part = parts([(n.scores, b.scores) for b, n in seeds if n.scores and b.scores], metric)
        else:
            part = of_seeds(metric, list(zip(new, old, strict=True)))
        found[row] = (seeds[0][0], part, float(np.mean(old)), float(np.mean(new)))
    return {row: f for row, f in found.items() if np.isfinite(f[1].difference)}


def _comparable(before: SnapshotCell, now: SnapshotCell, metric: Metric) -> bool:
    """Whether both sides have what a metric is tested by: scores of one test set, or values."""
    if metric.images is None:
        return metric.field in before.shown and metric.field in now.shown
    if not before.scores or not now.scores:
        return False
    a, b = before.scores, now.scores
    return a.test_set == b.test_set and a.log_odds.shape == b.log_odds.shape


def _lost(metric: Metric, pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], options: Options) -> list[CheckFinding]:
    """Cells in which the metric of a plug-in is no longer recorded."""
    outcome = CheckOutcome.ALLOWED if options.allow_missing else CheckOutcome.ABSENT
    message = f"the current run did not record {metric.label}; run it with the plug-in that registers it"
    return [
        CheckFinding(b.kind, b.title(), metric.label, outcome, metric.shown(b.shown[metric.field]), MISSING, message)
        for b, n in pairs
        if metric.field in b.shown and metric.field not in n.shown
    ]


def accuracy_tests(
    pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], metric: Metric, least: float = 0.0, assumed: float = 0.0
) -> list[tuple[SnapshotCell, Parts, float, float, Evidence]]:
    """Each row of :func:`accuracy_parts` with its evidence; models of one dataset share what is known of trainings."""
    found = accuracy_parts(pairs, metric).values()
    datasets = grouped(found, lambda row: row[0].kind + str(row[0].identity.get("dataset")))
    return [
        (*row, evidence)
        for rows in datasets.values()
        for row, evidence in zip(rows, accuracy_evidence([row[1] for row in rows], least, assumed), strict=True)
    ]


def _accuracy(pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], metrics: Sequence[Metric], options: Options) -> Asked:
    asked: Asked = []
    for metric in metrics:
        worse = "lower" if metric.higher_is_better else "higher"
        for entry, part, before, now, evidence in accuracy_tests(
            pairs, metric, options.min_accuracy, options.seed_noise
        ):
            seeds = len(part.seeds)
            cell = entry.title(seed=seeds == 1) + (f", {seeds} seeds" if seeds > 1 else "")
            shown = metric.shown(before), metric.shown(now)
            finding = CheckFinding(entry.kind, cell, metric.label, CheckOutcome.FINE, *shown, worse=worse)
            asked.append((finding, evidence))
    return asked


def _speed(pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], options: Options) -> Asked:
    """Speed relative to a reference of the same rounds where both sides have that; else images/s."""
    pairs = [(before, now) for before, now in pairs if before.speed]
    related = [before.beside(now) for before, now in pairs]
    beside = [pair for pair, has in zip(pairs, related, strict=True) if has]
    alone = _rounds([(before, "speed", before.speed, now.speed) for before, now in pairs], options)
    return [
        *_rounds([(b, f"speed relative to {b.reference}", b.relative, n.relative) for b, n in beside], options),
        *(found for found, has in zip(alone, related, strict=True) if not has),
    ]


def _rounds(rows: Sequence[tuple[SnapshotCell, str, list[float], list[float]]], options: Options) -> Asked:
    """One question a row: cell, name of the check, its rounds in the baseline and now."""
    asked: Asked = []
    for cell, name, before, now in rows:
        finding = CheckFinding("efficiency", cell.title(), name, CheckOutcome.FEW, _middle(before), _middle(now))
        evidence = speed_evidence(before, now, options.min_speed)
        if not evidence:
            rounds = f"{len(before)} and {len(now)} rounds"
            finding = replace(finding, message=f"not enough samples: {rounds}, so the noise is unknown")
        asked.append((finding, evidence))
    floor = between_runs([evidence.effect for _, evidence in asked if evidence], options.alpha)
    return [(finding, evidence and replace(evidence, limit=max(evidence.limit, floor))) for finding, evidence in asked]


def _memory(pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], options: Options) -> Asked:
    asked: Asked = []
    for before, now in pairs:
        own = MEMORY_NOISE_REL.get(before.machine[0], MEMORY_NOISE_REL["cpu"])
        if evidence := memory_evidence(before.memory, now.memory, options.min_memory, own):
            old, new = _middle(before.memory), _middle(now.memory)
            finding = CheckFinding("efficiency", before.title(), "memory", CheckOutcome.FINE, old, new, worse="higher")
            asked.append((finding, evidence))
    return asked


def _middle(values: Sequence[float]) -> str:
    return significant(float(np.median(values))) if values else MISSING


def _elsewhere(before: SnapshotCell, now: SnapshotCell) -> CheckFinding:
    places = f"{shown_machine(before.machine)}, now {shown_machine(now.machine)}"
    message = f"measured on another machine: {places}"
    return CheckFinding("efficiency", before.title(), "speed and memory", CheckOutcome.OTHER, message=message)


def _disturbed(before: SnapshotCell, now: SnapshotCell) -> bool:
    """Whether others used the machine, and the speeds are such that it shows."""
    return bool(before.busy or now.busy) and not before.steady(now)


def _busy(before: SnapshotCell, now: SnapshotCell) -> CheckFinding:
    """Others slowed the Cell, so its speed says nothing of the code; its memory and counts are still compared."""
    sides = [(where, entry) for where, entry in (("in the baseline", before), ("now", now)) if entry.busy]
    short = "the machine was busy " + " and ".join(f"{where} ({', '.join(entry.busy)})" for where, entry in sides)
    told = "; ".join(f"{where} ({'; '.join((', '.join(e.busy), *e.evidence))})" for where, e in sides)
    message = f"the machine was busy {told}; run it again with nothing beside it"
    speeds = _middle(before.speed), _middle(now.speed)
    return CheckFinding("efficiency", before.title(), "speed", CheckOutcome.OTHER, *speeds, message, kin=short)


def judge(asked: Asked, options: Options) -> tuple[list[CheckFinding], int]:
    """Adjust all tests together and say what each comes to; also how many were tested."""
    questions = [(finding, evidence) for finding, evidence in asked if evidence]
    can = can_fire([evidence.least_p for _, evidence in questions], options.alpha)
    judged = [finding for finding, evidence in asked if not evidence]
    tested = [question for question, possible in zip(questions, can, strict=True) if possible]
    few = [question for question, possible in zip(questions, can, strict=True) if not possible]
    needed = rounds_needed(len(questions), options.alpha)
    for finding, evidence in few:
        enough = f"{len(questions)} tests need {needed} rounds a side (efficiency.rounds)"
        message = f"not enough samples: {enough}"
        judged.append(replace(finding, outcome=CheckOutcome.FEW, message=message, evidence=evidence))
    worse = holm([evidence.p for _, evidence in tested])
    better = holm([evidence.p_better for _, evidence in tested])
    for (finding, evidence), p, other in zip(tested, worse, better, strict=True):
        outcome = CheckOutcome.FINE
        if evidence.beyond and p <= options.alpha:
            outcome = CheckOutcome.REGRESSION
        elif -evidence.effect >= evidence.limit and other <= options.alpha:
            outcome = CheckOutcome.BETTER
        message = _sentence(finding, evidence, float(other if outcome == CheckOutcome.BETTER else p), len(tested))
        judged.append(replace(finding, outcome=outcome, message=message, evidence=evidence, adjusted=float(p)))
    return judged, len(tested)


def _sentence(finding: CheckFinding, evidence: Evidence, p: float, tests: int) -> str:
    size = f"{abs(evidence.effect):.1%}" if finding.kind == "efficiency" else f"{abs(evidence.effect):.3f}"
    verbs = ("rose", "fell") if finding.worse == "lower" else ("fell", "rose")
    probability = f"p {p:.2g} after Holm over {tests} tests" if tests > 1 else f"p {p:.2g}"
    floor = f"; what counts begins at {evidence.limit:.3g}" if 0 < evidence.effect < evidence.limit else ""
    return f"{finding.check} {verbs[evidence.effect > 0]} by {size} ({probability}{floor})" if evidence.effect else ""


def _faster_references(
    pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], judged: Sequence[CheckFinding], options: Options
) -> list[str]:
    """A reference that became faster lowers all speeds relative to it, which is no loss of theirs."""
    worse = {finding.cell for finding in judged if finding.outcome == CheckOutcome.REGRESSION}
    used = {before.reference for before, now in pairs if before.beside(now) and before.title() in worse}
    return [
        f"the reference {before.title()} did {_middle(before.speed)} images/s and does {_middle(now.speed)} now: if "
        "its code is faster, and not the machine, speeds relative to it fell by as much; make a new baseline"
        for before, now in pairs
        if before.identity.get("model") in used
        and np.median(now.speed) > np.median(before.speed) * (1 + options.min_speed)
    ]


def _notes(baseline: Snapshot, current: Snapshot) -> list[str]:
    """What a reader should know beside the findings."""
    notes = []
    known = {entry.asked for entry in baseline.entries}
    if new := sum(entry.asked not in known for entry in current.entries):
        notes.append(f"{new} cells of the current run are not in the baseline")
    before, now = (s.about.get("versions", {}) for s in (baseline, current))
    if moved := [f"{k} {before[k]} → {now[k]}" for k in sorted({*before} & {*now}) if before[k] != now[k]]:
        notes.append("versions: " + ", ".join(moved))
    there, here = set(baseline.machines), set(current.machines)
    if there and here and (apart := there ^ here):
        notes.append("machines that only one side has: " + "; ".join(map(shown_machine, sorted(apart))))
    return notes

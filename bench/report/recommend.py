"""Which network to take: the cheapest that is not significantly worse than the best, under limits of cost.

Random networks, which stand beside frozen ones on boards, are no candidates.
The best is looked for among the models that keep the limits, and the others of these are compared with it alone
(:mod:`bench.stats.leader`). Of those that are not significantly worse, and lose no more than :data:`MAX_LOSS`, the
cheapest is taken: by measured latency if all of them have a usable one, else by multiply-adds, else by parameters.
Where the noise floor could have swapped two latencies, the more accurate model counts as cheaper. A small test set
leaves nearly every model "not significantly worse", and a large loss that is not proven is still the best estimate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import TypedDict

import numpy as np

from bench.errors import BenchError
from bench.metrics.registry import AUC
from bench.record.types import Record
from bench.registry.names import bare_model
from bench.report.clinical.shortcuts import shortcuts
from bench.report.sections.efficiency import LATENCY as LATENCY_MS
from bench.report.sections.efficiency import cost_beside
from bench.report.sections.summary import headline, incomplete
from bench.report.speeds import noise_floor
from bench.report.standings import Overall, ReportData, Standing
from bench.report.words import counted, listed, name, natural, signed, significant
from bench.stats.leader import LeaderTest, against_leader
from bench.stats.ranking import ALPHA
from bench.stats.separation import Contrast

MIN_PER_CLASS = 50  # test images of the rarest class; of fewer a warning speaks
MAX_LOSS = 0.02  # of the figure that ranks: what being cheaper may cost
LARGE_LOSS = 0.05  # where the data allow one, a warning speaks
MOST_SEEDS, MOST_IMAGES = 50, 20_000  # to ask for; a difference that takes more (or as many patients) is too small
POWER = 0.8  # with which "what it takes to be sure" would show a difference as large as the one seen
INCOMPLETE = "incomplete run"
MAX_MISSES, MAX_AGAINST = 3, 3
Figures = Mapping[str, float | None]


class RecommendError(BenchError, ValueError):
    """There is nothing to recommend from; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network may cost by the board's table of cost; None: no matter. ``device``: cpu, cuda, cuda:1 or empty."""

    max_latency_ms: float | None = None
    min_images_per_s: float | None = None
    max_memory_mib: float | None = None
    max_params: float | None = None
    device: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """A figure of cost: its name in ``cost_beside``, the field of its limit, and how it is written."""

    key: str
    limit: str
    label: str
    unit: str
    factor: float = 1.0
    more_is_better: bool = False

    def text(self, value: float) -> str:
        """``latency 5.59 ms``."""
        return f"{self.label} {significant(value * self.factor)} {self.unit}"

    def excess(self, value: float, limit: float) -> float:
        """How many times a value is beyond its limit; at most 1 where it keeps it."""
        return limit / value if self.more_is_better else value / limit


LATENCY = Cost("latency_ms", "max_latency_ms", "latency", "ms")
MACS = Cost("macs_g", "", "multiply-adds", "GMACs")
PARAMS = Cost("params", "max_params", "parameters", "M", 1e-6)
COSTS = (
    LATENCY,
    Cost("throughput", "min_images_per_s", "throughput", "images/s", more_is_better=True),
    Cost("memory_mib", "max_memory_mib", "peak memory", "MiB"),
    PARAMS,
)


class Resolve(TypedDict, total=False):
    """What would show a difference as large as the one seen, with a power of 80 %; empty without another model.

    ``against`` is the model that the pick is compared with, ``difference`` the pick's figure less that model's.
    ``seeds`` (of each model) or ``test_images`` (over all datasets; ``patients``, where some have several images) would
    do alone, None where no number does; ``both_times`` is how many times as many of both would.
    """

    against: str
    difference: float
    seeds: int | None
    test_images: int | None
    patients: int | None
    both_times: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take and why.

    Attributes:
        model: the pick; None if no model keeps the limits.
        why: its figure, what it is compared with, and its cost.
        runner_up: the next cheapest of those, else the next best that is not significantly worse; None without one.
        not_significantly_worse: than the best that keeps the limits, best first, itself included; empty where nothing
            was tested.
        resolve: what it would take to be sure.
        warnings: what speaks against the pick, the gravest first; and who is out as a figure was not measured.
        misses: without a pick, the models that miss the limits by the least.
    """

    model: str | None
    why: str
    runner_up: str | None = None
    not_significantly_worse: tuple[str, ...] = ()
    resolve: Resolve = field(default_factory=Resolve)
    warnings: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()

    @property
    def against(self) -> tuple[str, ...]:
        """The warnings without that of an incomplete run, which stands above them on every page."""
        return tuple(text for text in self.warnings if not text.startswith(INCOMPLETE))

    def as_json(self) -> dict[str, object]:
        """What ``bench recommend RUN --json`` prints; names without backticks."""
        found = asdict(self)
        nearest = [f"nearest: {text}" for text in found.pop("misses")]
        found["warnings"] = [text.replace("`", "") for text in (*nearest, *self.warnings)]
        found["resolve"] = {k: v.replace("`", "") if isinstance(v, str) else v for k, v in self.resolve.items()}
        return {**found, "why": self.why.replace("`", "")}

    def lines(self) -> tuple[str, str]:
        """The two lines that open a board and end a run."""
        if self.model is None:
            nearest = "; ".join(self.misses) or "no model has all of these figures"
            return f"No recommendation: {self.why}.", f"Nearest: {nearest}."
        second = f" Runner-up: {name(self.runner_up)}." if self.runner_up else ""
        more = len(self.against) - MAX_AGAINST
        shown = "; ".join((*self.against[:MAX_AGAINST], *([f"{more} more (`bench recommend`)"] if more > 0 else ())))
        against = f"Against it: {shown}." if shown else "Nothing recorded speaks against it."
        sure = f" To be sure: {text}." if (text := self.resolve.get("text")) else ""
        return f"Recommended: {name(self.model)}. {self.why[0].upper()}{self.why[1:]}.{second}", f"{against}{sure}"


def recommend(report: ReportData, limits: Limits | None = None, board: Overall | None = None) -> Recommendation:
    """Recommend a network from a run.

    Args:
        report: its Records, rows and boards.
        limits: what the network may cost.
        board: the protocol to choose under; by default the one with the largest table.

    Raises:
        RecommendError: no model has a test result, or nothing was timed on the device asked for.
    """
    limits, board = limits or Limits(), board or headline(report.boards)
    if board is None:
        raise RecommendError("no model has a test result to choose by; a `bench run` of accuracy cells makes them")
    costs, note, floor = costs_of(report, board, limits.device)
    fitting, out = _within(board.candidates, costs, limits)
    if not fitting:
        return _nothing(board, costs, limits, out)
    models = [s.model for s in fitting]
    pairs = contrast_of(board, models)
    test = against_leader(models, pairs, digits=board.metric.digits) if pairs else None
    tied = [s for s in fitting if not (test and s.model in test.worse) and (test or s.score == fitting[0].score)]
    near = [s for s in tied if board.metric.sign * ((fitting[0].score or 0.0) - (s.score or 0.0)) <= MAX_LOSS]
    by, order = cheapest_first(near, costs, floor)
    pick = order[0]
    second = next(iter([*order[1:], *(s for s in tied if s not in near)]), None)
    other = fitting[0] if pick is not fitting[0] else second
    figure = f"{figure_of(board)} {board.metric.shown(pick.score)}"
    if by:
        figure += f", {by.text(costs[pick.model].get(by.key) or 0.0)}{device_of(note) * (by is LATENCY)}"
    against = (*_against(report, board, pick, test, fitting[0]), *out, *_of_cost(board, tied, costs, note, by))
    return Recommendation(
        model=pick.model,
        why=f"{figure}; {_place(board, pick, fitting, tied, near, test, by)}",
        runner_up=second.model if second else None,
        not_significantly_worse=tuple(s.model for s in tied) if test or len(fitting) == 1 else (),
        resolve=resolve(board, pairs, models, pick, other) if pairs and other else Resolve(),
        warnings=against,
    )


# --- who is eligible, and who is cheapest --------------------------------------------------------------------------


def costs_of(report: ReportData, board: Overall, device: str = "") -> tuple[dict[str, Figures], str, float]:
    """What each ranked model costs, how that was measured, and the noise floor of its latency.

    Raises:
        RecommendError: nothing was timed on ``device``.
    """
    timed = [r for r in report.records if r["kind"] == "efficiency"]
    devices = sorted({str(r["spec"].get("device")) for r in timed})
    if device:
        timed = [r for r in timed if device in (own := str(r["spec"].get("device")), own.partition(":")[0])]
        if not timed:
            where = f"only on {listed(devices)}" if devices else "nowhere"
            raise RecommendError(
                f"device {device!r}: nothing was timed on it, {where}; `bench run --kinds efficiency --device "
                f"{device}` with the same models and --out adds that"
            )
    found, note = cost_beside(timed, board.protocol.resolution)
    costs: dict[str, Figures] = {}
    for s in board.ranked:
        trained = next((p for row in s.rows.values() if (p := row.mean("params"))), None)
        costs[s.model] = {"params": trained, **found.get(s.code, {})}
    floor = noise_floor([r for r in timed if r["spec"].get("mode") == "infer"], LATENCY_MS)
    return costs, note, floor or 0.0


def _within(
    ranked: Sequence[Standing], costs: Mapping[str, Figures], limits: Limits
) -> tuple[list[Standing], list[str]]:
    """The models that keep the limits, best first; and who is out because a figure was not measured, in words."""
    fitting, out = list(ranked), []
    for cost, limit in _asked(limits):
        if without := [name(s.model) for s in ranked if not costs[s.model].get(cost.key)]:
            out.append(f"out, as no usable {cost.label} was measured: {listed(without)}")
        fitting = [s for s in fitting if (v := costs[s.model].get(cost.key)) and cost.excess(v, limit) <= 1]
    return fitting, out


def _asked(limits: Limits) -> list[tuple[Cost, float]]:
    return [(cost, limit) for cost in COSTS if (limit := getattr(limits, cost.limit)) is not None]


def _nothing(board: Overall, costs: Mapping[str, Figures], limits: Limits, out: Sequence[str]) -> Recommendation:
    """No model keeps the limits: which come nearest, by the largest of their excesses."""
    if not board.candidates:
        return Recommendation(None, "all models with a result have random weights, which are there to compare with")
    asked = _asked(limits)
    near = []
    for s in board.candidates:
        measured = [(cost, v, cost.excess(v, limit)) for cost, limit in asked if (v := costs[s.model].get(cost.key))]
        if len(measured) == len(asked):
            times = max(excess for *_, excess in measured)
            over = listed(cost.text(v) for cost, v, excess in measured if excess > 1)
            near.append((times, f"{name(s.model)}, {over} ({significant(times)} times the limit)"))
    said = listed(f"{cost.label} {'>=' if cost.more_is_better else '<='} {significant(limit * cost.factor)} {cost.unit}"
                  for cost, limit in asked)  # fmt: skip
    why = f"none of {counted(len(board.candidates), 'model')} has {said}"
    return Recommendation(None, why, warnings=tuple(out), misses=tuple(text for _, text in sorted(near)[:MAX_MISSES]))


def contrast_of(board: Overall, models: Sequence[str]) -> Contrast | None:
    """The pairs of some of the ranked models in their order; None where their protocol was not tested."""
    judged = board.significance.pairs
    if judged is None or not set(models) <= set(judged.models):
        return None
    return judged.contrast.of([judged.models.index(model) for model in models])


def cheapest_first(
    tied: Sequence[Standing], costs: Mapping[str, Figures], floor: float
) -> tuple[Cost | None, list[Standing]]:
    """The cost that all of some models have, and the models by it; without one as they come.

    Args:
        tied: the models, best first.
        costs: of each model.
        floor: the relative difference of two latencies that noise alone makes.
    """
    by = next((c for c in (LATENCY, MACS, PARAMS) if all(costs[s.model].get(c.key) for s in tied)), None)
    if by is None:
        return None, list(tied)
    value = {s.model: costs[s.model].get(by.key) or 0.0 for s in tied}
    left, order = list(tied), []
    while left:
        limit = min(value[s.model] for s in left) * (1 + (floor if by is LATENCY else 0.0))
        first = next(s for s in left if value[s.model] <= limit)  # the best of the cheapest
        order.append(first)
        left.remove(first)
    return by, order


# --- in words ------------------------------------------------------------------------------------------------------


def _place(
    board: Overall, pick: Standing, fitting: Sequence[Standing], tied: Sequence[Standing], near: Sequence[Standing],
    test: LeaderTest | None, by: Cost | None,
) -> str:  # fmt: skip
    """What the pick is compared with: ``tied`` are not significantly worse than the best, ``near`` are close to it."""
    best, within = fitting[0], " within the limits" * (len(fitting) < len(board.candidates))
    if len(fitting) == 1:
        return f"the only model{within}"
    if test is None:
        return f"the highest{within}, not tested for significance"
    if len(tied) == 1:
        return f"significantly better than all others{within}"
    if len(near) == 1:
        return f"best{within}, no other is within {MAX_LOSS:g} of it"
    equals = f"of {len(near)} models within {MAX_LOSS:g} of the best and not significantly worse"
    if found := test.of(pick.model):
        return f"cheapest {equals}, {signed(found.difference, board.metric.digits)} against {name(best.model)}"
    return f"best{' and cheapest' * bool(by)} {equals}"


def figure_of(board: Overall) -> str:
    """``mean AUC`` or ``AUC on `breastmnist```."""
    label = board.metric.label
    return f"mean {label}" if len(board.counted) > 1 else f"{label} on {name(board.counted[0])}"


def device_of(note: str) -> str:
    """`` (cpu)`` of a note on cost; empty where none was measured."""
    device = next((part.split()[0] for part in note.split(", ") if part.startswith(("cpu", "cuda"))), "")
    return f" ({device.strip(';')})" if device else ""


def _against(
    report: ReportData, board: Overall, pick: Standing, test: LeaderTest | None, best: Standing
) -> Iterator[str]:
    """What speaks against the pick, the gravest first."""
    metric = board.metric
    yield from _leaks(report.records, board.counted)
    for dataset in board.counted:
        yield from (f"shortcut on {name(dataset)}: {s.said}" for s in shortcuts(pick.rows[dataset]) if s.warns)
    yield from _majority(board, pick)
    low = pick.interval[0]
    if metric is AUC and low is not None and low <= 0.5:
        yield "it is not significantly better than chance (AUC 0.5)"
    yield from _beside_random(board, pick)
    found = test.of(pick.model) if test else None
    if found and found.low < -LARGE_LOSS:
        yield f"its {metric.label} may be up to {metric.shown(-found.low)} below that of {name(best.model)} (95 %)"
    first = board.candidates[0]
    if first is not best:
        lost = board.significance.leader.of(pick.model) if board.significance.leader else None
        surely = "significantly " if lost and lost.worse else ""
        gap = metric.shown(abs((first.score or 0.0) - (pick.score or 0.0)))
        yield f"{surely}worse by {gap} than {name(first.model)}, which the limits rule out"
    if line := incomplete(report.run_info, report.records)[0]:
        yield line.replace("INCOMPLETE", INCOMPLETE)
    if board.seeds < 2:
        yield "single seed, so training again may change the order"
    if test is None and len(board.candidates) > 1:
        reason = (board.significance.reasons or ["The saved scores are missing."])[0].rstrip(".")
        yield f"which differences are significant is unknown ({reason[0].lower()}{reason[1:]})"
    yield from _few(board, pick)
    yield from _elsewhere(report, board)
    asked = {row.model for row in report.rows if row.protocol == board.protocol and not row.control}
    missing = asked - {s.model for s in board.candidates}
    if missing:
        yield f"not considered, as a result is missing: {listed(map(name, sorted(missing, key=natural)))}"


def _leaks(records: Iterable[Record], datasets: Collection[str]) -> Iterator[str]:
    """Test images or patients that training has seen, a sentence per dataset."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record["kind"] == "accuracy" and record["spec"].get("dataset") in datasets:
            leaks = (one["text"] for one in record.get("data", {}).get("findings", ()) if one["severity"] == "leak")
            found.setdefault(str(record["spec"]["dataset"]), {}).update(dict.fromkeys(leaks))
    for dataset in sorted(found, key=natural):
        if found[dataset]:
            yield f"data of {name(dataset)}: leak, {'; '.join(found[dataset])}"


def _majority(board: Overall, pick: Standing) -> Iterator[str]:
    """Datasets on which a training of the pick gives every test image the same answer."""
    for dataset in board.counted:
        tables = [np.asarray(t) for r in pick.rows[dataset].ok if (t := r["metrics"].get("test_confusion"))]
        same = sum(table.ndim == 2 and int((table.sum(0) > 0).sum()) == 1 for table in tables)
        if same:
            yield f"on {name(dataset)} it always gives the same answer ({same} of {counted(len(tables), 'training')})"


def _beside_random(board: Overall, pick: Standing) -> Iterator[str]:
    """Where the pick's weights may be worth nothing: the same network with random ones is not significantly worse."""
    sign = board.metric.sign
    for control in board.ranked:
        if not control.control or bare_model(control.code[0]) != bare_model(pick.code[0]):
            continue
        models = [pick.model, control.model]
        pair = contrast_of(board, models)
        surely = control.model in against_leader(models, pair).worse if pair else False
        if not surely and (pair or sign * (control.score or 0.0) >= sign * (pick.score or 0.0)):
            than = f"{name(control.model)}, {board.metric.label} {board.metric.shown(control.score)}"
            yield f"it is {'not significantly' if pair else 'not'} better than {than}"


def _few(board: Overall, pick: Standing) -> Iterator[str]:
    """The fewest test images of a class (or patients, where some have several images), if they are few."""
    found = []
    for dataset in board.counted:
        evidence = pick.rows[dataset].evidence
        if evidence and (np.ndim(evidence.labels) == 1 or np.shape(evidence.labels)[1] == 1):
            labels = np.ravel(evidence.labels)
            unit = np.arange(len(labels)) if evidence.patients is None else evidence.patients
            least = min(len(np.unique(unit[labels == k])) for k in np.unique(labels))
            found.append((least, dataset, "test images" if evidence.patients is None else "test patients"))
    if found and min(found)[0] < MIN_PER_CLASS:
        least, dataset, unit_name = min(found)
        yield f"few {unit_name}, {least} of the rarest class of {name(dataset)}"


def _elsewhere(report: ReportData, board: Overall) -> Iterator[str]:
    """A model that has a higher figure on the same datasets under another protocol: frozen, larger images, tuned."""
    sign = board.metric.sign
    same = [b for b in report.boards if b.candidates and b is not board and b.counted == board.counted]
    best = max(same, key=lambda b: sign * (b.candidates[0].score or 0.0), default=None)
    if best and sign * (best.candidates[0].score or 0.0) > sign * (board.candidates[0].score or 0.0):
        first, protocol = best.candidates[0], best.protocol
        yield (
            f"{name(first.model)} has {board.metric.label} {board.metric.shown(first.score)} under another protocol "
            f"({protocol.pixels}, {protocol.training}), which was not compared"
        )


def _of_cost(
    board: Overall, tied: Sequence[Standing], costs: Mapping[str, Figures], note: str, by: Cost | None
) -> Iterator[str]:
    """Where the cost is not what was asked for."""
    without = [name(s.model) for s in tied if not costs[s.model].get(LATENCY.key)]
    if not note:
        yield "no speed was measured" + (f", so cheap means few {by.label}" if by else "")
    elif by is not LATENCY:
        yield f"no usable latency of {listed(without)}" + (f", so cheap means few {by.label}" if by else "")
    if "nothing was measured at" in note:
        yield f"cost was measured at {note.split()[2]} px, not at {board.protocol.resolution} px"


# --- what it would take to be sure ---------------------------------------------------------------------------------


def resolve(board: Overall, pairs: Contrast, models: Sequence[str], pick: Standing, other: Standing) -> Resolve:
    """Seeds or test images that would show a difference as large as the one between two models.

    A difference d is found at level a (:data:`ALPHA` over the number of pairs) with a power of 80 % if its variance
    is at most (d / (z(1 - a / 2) + z(0.8))) ** 2. The part from trainings falls with their number, that from images
    with theirs.

    Args:
        board: the protocol.
        pairs: of ``models``, in that order.
        models: those that keep the limits.
        pick: what was taken.
        other: what it is compared with.
    """
    from scipy.special import ndtri

    i, j = models.index(pick.model), models.index(other.model)
    difference, training = float(pairs.difference[i, j]), float(pairs.training[i, j])
    over_images = float(pairs.variance[i, j]) - training
    found = Resolve(
        against=other.model, difference=board.metric.sign * difference, seeds=None, test_images=None, patients=None,
        both_times=None,
    )  # fmt: skip
    if not difference:
        same = f"{name(other.model)} has the same {board.metric.label}"
        return {**found, "text": f"no number of seeds or images will do, since {same}"}
    level = ALPHA / (len(models) * (len(models) - 1) / 2)
    enough = (difference / float(ndtri(1 - level / 2) + ndtri(POWER))) ** 2
    seeds, images = board.seeds, sum(pick.rows[d].n_test or 0 for d in board.counted)
    patients = sum(e.n_patients or 0 for d in board.counted if (e := pick.rows[d].evidence))
    unit, there = ("patients", patients) if patients else ("images", images)
    now, ways = [counted(seeds, board.unit), counted(images, "image")], []
    if training and over_images < enough:
        found["seeds"] = more = max(seeds, ceil(seeds * training / (enough - over_images)))
        ways += [f"{more:,} seeds"] * (more <= MOST_SEEDS)
    if images and training < enough:
        times = max(1.0, over_images / (enough - training))
        found["test_images"] = ceil(images * times)
        found["patients"] = ceil(patients * times) if patients else None
        many = ceil(there * times)
        ways += [f"{many:,} test {unit}"] * (many <= MOST_IMAGES)
    now += [counted(patients, "patient")] if patients else []
    both = found["both_times"] = round(max(1.0, (training + over_images) / enough), 1)
    does = listed(ways, "or") or f"{significant(both, 2)} times as many seeds and {unit}"
    if not ways and (both * seeds > MOST_SEEDS or both * there > MOST_IMAGES):
        does = f"no realistic number of seeds or test {unit}"
    least = 10.0**-board.metric.digits
    gap = board.metric.shown(abs(difference)) if abs(difference) >= least / 2 else f"below {least:g}"
    once = "" if pairs.retrained else " (single seed: first train with three)"
    of = f"its difference from {name(other.model)}, {gap}"
    return {**found, "text": f"{does} (now {', '.join(now)}) would show {of}{once}"}

"""Where one family overtakes another as the image grows: sentences with their evidence.

The place is interpolated between two measured resolutions. Of two families the pair of models nearest in size speaks
for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import log

from bench.record.types import Record
from bench.report.blocks import counted, listed, name, significant
from bench.report.noise import NORMAL_95, noise, noise_floor
from bench.report.rows import family_of
from bench.report.sections.growth import Cost, Curve, curves, family_exponents, is_plain, metric, time_of
from bench.report.settings import by_setting
from bench.stats.scaling import Crossover, crossovers

DEFAULT_MARGIN = 0.05  # two costs closer than this, or than the noise floor, have no order
# Peak memory is taken once. On a CPU it is that of a process: 95 % of repeats of a sweep (35 rows) were within 9 %.
MEMORY_MARGIN = {"cpu": 0.09, "cuda": 0.02}
MAX_SENTENCES = 12
MAX_IN_SUMMARY = 2
TIME, MEMORY = "time", "memory"
LESS = {TIME: "is faster than", MEMORY: "needs less memory than"}
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of order of two families, by the pair of models nearest in size that makes it.

    Attributes:
        crossover: :data:`pairs` of the two families were compared, :data:`changing` of them change order.
    """

    quantity: str
    batch: int
    crossover: Crossover
    pairs: int
    changing: int


def changes(members: Sequence[Record]) -> tuple[str, ...]:
    """Sentences on where a family becomes faster than another, or needs less memory, in one table."""
    found = find_changes(members)
    several = len({change.batch for change in found}) > 1
    sentences = [_sentence(change, several) for change in found]
    if len(sentences) > MAX_SENTENCES:
        sentences[MAX_SENTENCES:] = [f"{counted(len(sentences) - MAX_SENTENCES, 'more change')} of order not shown."]
    return (*sentences, *_steady(members))


def find_changes(members: Sequence[Record]) -> list[Change]:
    """All measured changes of order between families, of time before memory."""
    found, timed = [], time_of(members)[1]
    noises: dict[int, dict[str, Curve]] = defaultdict(lambda: defaultdict(dict))
    for (model, batch), curve in curves(members, lambda r: noise(r["metrics"], timed)).items():
        noises[batch][model] = {r: NORMAL_95 * value for r, value in curve.items()}
    for quantity in (TIME, MEMORY):
        margin = _margin(members, quantity)
        for batch, costs, pairs in _by_families(members, quantity):
            own = noises[batch] if quantity == TIME else None
            seen = {p: c[-1] for p in pairs if (c := crossovers(p, costs, margin, own))}  # the one that lasts
            if seen:
                nearest = _nearest(seen, members)
                found.append(Change(quantity, batch, seen[nearest], len(pairs), len(seen)))
    return found


def _steady(members: Sequence[Record]) -> list[str]:
    """A sentence for each batch on the families that keep their order in speed at all resolutions measured."""
    kept: dict[int, list[str]] = defaultdict(list)
    margin, batches = _margin(members, TIME), set()
    for batch, costs, pairs in _by_families(members, TIME):
        batches.add(batch)
        a, b = _nearest(pairs, members)
        ratios = {r: costs[b][r] / costs[a][r] for r in costs[a].keys() & costs[b].keys()}
        if min(ratios.values(), default=0.0) < 1:  # the second is the faster one somewhere: then everywhere?
            a, b, ratios = b, a, {r: 1 / ratio for r, ratio in ratios.items()}
        if len(ratios) > 1 and min(ratios.values()) > 1 + margin:
            times = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (min(ratios.values()), max(ratios.values()))))
            kept[batch].append(f"{name(a)} than {name(b)} ({times} times, {min(ratios)} to {max(ratios)} px)")
    return [
        f"Faster at every resolution measured{f'; batch {batch}' if len(batches) > 1 else ''}: {listed(pairs)}."
        for batch, pairs in kept.items()
    ]


def _by_families(members: Sequence[Record], quantity: str) -> Iterable[tuple[int, Mapping[str, Curve], list[Pair]]]:
    """For each batch and two families: the costs of all models, and the pairs of the two's plain models.

    A family without a plain model is there with all that it has.
    """
    done = [r for r in members if r["status"] == "ok"]
    cost: Cost = time_of(done)[0] if quantity == TIME else lambda r: metric(r, "peak_memory_mib")
    family = {record["label"]: family_of(record) for record in done}
    batches: dict[int, dict[str, Curve]] = defaultdict(dict)
    for (model, batch), curve in curves(done, cost).items():
        batches[batch][model] = curve
    for batch, costs in sorted(batches.items()):
        groups: dict[str, list[str]] = defaultdict(list)
        for model in costs:
            groups[family[model]].append(model)
        plain = {f: [m for m in group if is_plain(m)] or group for f, group in groups.items()}
        for first, second in combinations(sorted(plain), 2):
            yield batch, costs, list(product(plain[first], plain[second]))


def _nearest(pairs: Iterable[Pair], members: Iterable[Record]) -> Pair:
    """The pair nearest in number of parameters."""
    sizes = {r["label"]: metric(r, "params") or 0.0 for r in members if r["status"] == "ok"}

    def apart(pair: Pair) -> float:
        first, second = (sizes[model] for model in pair)
        return abs(log(first / second)) if first and second else 0.0

    return min(pairs, key=lambda pair: (apart(pair), pair))


def _margin(members: Sequence[Record], quantity: str) -> float:
    """The relative difference below which two costs have no order."""
    if quantity == TIME:
        return max(DEFAULT_MARGIN, noise_floor(members, time_of(members)[1]) or 0.0)
    on_gpu = any(str(r["spec"].get("device")).startswith("cuda") for r in members)
    return MEMORY_MARGIN["cuda" if on_gpu else "cpu"]


def _sentence(change: Change, several: bool) -> str:
    crossover, (low, high) = change.crossover, change.crossover.between
    at = f", batch {change.batch}" if several else ""
    one_of = ""
    if change.pairs > 1:
        one_of = (
            f" {change.changing} of {change.pairs} pairs of these families change order; this is the nearest in size."
        )
    return (
        f"Above about {crossover.resolution:.0f} px (between the measured {low} and {high} px{at}) "
        f"{name(crossover.above)} {LESS[change.quantity]} {name(crossover.below)}: it takes "
        f"{_percent(crossover.costs[0] - 1)} more {change.quantity} at {low} px and {_percent(1 - crossover.costs[1])} "
        f"less at {high} px.{one_of}"
    )


def _percent(share: float) -> str:
    return f"{significant(100 * share, 2)} %"


def overtaking(records: Iterable[Record]) -> str:
    """For the summary: what the first table with three resolutions says of growth and of the change of order."""
    tables = by_setting(records)
    for key, members in tables.items():
        fits = {f: fit for (f, _), (_, fit, _) in family_exponents(members, least=1).items() if fit}
        if len(fits) < 2:
            continue
        ordered = sorted(fits.items(), key=lambda item: item[1].exponent)
        growth = listed([f"{name(f)} {fit.exponent:.2f} (95 % {fit.low:.2f} to {fit.high:.2f})" for f, fit in ordered])
        slope = {r["label"]: fits[f].exponent for r in members if (f := family_of(r)) in fits}
        found = [c.crossover for c in find_changes(members) if c.quantity == TIME]
        # Where growth differs most, the change of order is of one kind of network over another.
        found.sort(key=lambda c: slope.get(c.above, 1.0) - slope.get(c.below, 1.0))
        said = [
            f"above about {c.resolution:.0f} px {name(c.above)} is faster than {name(c.below)} on this device"
            for c in found[:MAX_IN_SUMMARY]
        ]
        end = listed(said) if said else "no family overtakes another in speed at the resolutions measured"
        which = f" ({key})" if len(tables) > 1 else ""
        return f"Time grows with the number of pixels{which} to the power of {growth}, 1 being linear; {end}."
    return ""

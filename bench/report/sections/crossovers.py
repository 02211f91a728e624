"""Where one family overtakes another as the image grows: sentences with their evidence.

Between two measured resolutions the place is interpolated and has an interval from the noise; beyond the largest one
it is a projection and called one. Of two families the pair of models nearest in size speaks for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import log, sqrt
from statistics import fmean

from bench.report.blocks import counted, listed, name, significant
from bench.report.rows import Record
from bench.report.sections.growth import Cost, curves, family, family_exponents, is_plain, metric, time_of
from bench.report.settings import by_setting
from bench.report.stats.noise import NORMAL_95, noise
from bench.report.stats.scaling import Crossover, Fit, Projection, pair_crossovers, projection

DEFAULT_MARGIN = 0.05  # two costs closer than this, or than the noise, have no order
# Peak memory is taken once. On a CPU it is that of a process: 95 % of repeats of a sweep (35 rows) were within 9 %.
MEMORY_MARGIN = {"cpu": 0.09, "cuda": 0.02}
MAX_SENTENCES = 12
MAX_IN_SUMMARY = 2
By = dict[str, dict[int, float]]  # model -> resolution -> figure


@dataclass(frozen=True, slots=True)
class Quantity:
    """A cost, its name and the words for having less of it; which figures it is read from, the table decides."""

    noun: str
    less: str


TIME = Quantity("time", "is faster than")
MEMORY = Quantity("memory", "needs less memory than")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of order of two families, by the pair of models nearest in size that makes it.

    Attributes:
        crossing: :data:`pairs` of the two families were compared, :data:`changing` of them change order.
    """

    quantity: Quantity
    batch: int
    crossing: Crossover | Projection
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


def _steady(members: Sequence[Record]) -> list[str]:
    """A sentence for each batch on the families that keep their order in speed at all resolutions measured."""
    done, sentences = [r for r in members if r["status"] == "ok"], []
    seconds, timed = time_of(done)
    sizes = {r["label"]: metric(r, "params") or 0.0 for r in done}
    noises = _by_batch(curves(done, lambda r: noise(r["metrics"], timed)))
    by_batch = _by_batch(curves(done, seconds))
    for batch, costs in sorted(by_batch.items()):
        margin, kept = _margin(_at_least_typical(noises.get(batch, {}))), []
        for first, second in combinations(sorted(groups := _families(costs)), 2):
            a, b = min(product(groups[first], groups[second]), key=lambda p: (_apart(sizes[p[0]], sizes[p[1]]), p))
            ratios = {r: costs[b][r] / costs[a][r] for r in costs[a].keys() & costs[b].keys()}
            if min(ratios.values(), default=0.0) < 1:  # the second is the faster one somewhere: then everywhere?
                a, b, ratios = b, a, {r: 1 / ratio for r, ratio in ratios.items()}
            if len(ratios) > 1 and min(ratios.values()) > 1 + margin:
                least, most = (f"{value:.1f}" for value in (min(ratios.values()), max(ratios.values())))
                times = least if least == most else f"{least} to {most}"
                kept.append(f"{name(a)} than {name(b)} ({times} times, {min(ratios)} to {max(ratios)} px)")
        if kept:
            at = f"; batch {batch}" if len(by_batch) > 1 else ""
            sentences.append(f"Faster at every resolution measured{at}: {listed(kept)}.")
    return sentences


def find_changes(members: Sequence[Record]) -> list[Change]:
    """All changes of order between families: measured ones first, of time before memory."""
    done = [r for r in members if r["status"] == "ok"]
    kind = "cuda" if any(str(r["spec"].get("device")).startswith("cuda") for r in done) else "cpu"
    sizes = {r["label"]: metric(r, "params") or 0.0 for r in done}
    seconds, timed = time_of(done)
    cost_of: dict[Quantity, Cost] = {TIME: seconds, MEMORY: lambda r: metric(r, "peak_memory_mib")}
    noises = _by_batch(curves(done, lambda r: noise(r["metrics"], timed)))
    found = []
    for quantity in (TIME, MEMORY):
        for batch, costs in sorted(_by_batch(curves(done, cost_of[quantity])).items()):
            known_noise = _at_least_typical(noises.get(batch, {})) if quantity is TIME else {}
            margin = _margin(known_noise) if quantity is TIME else MEMORY_MARGIN[kind]
            for first, second in combinations(sorted(groups := _families(costs)), 2):
                pairs = [(a, b) for a in groups[first] for b in groups[second]]
                if change := _of_families(quantity, batch, pairs, costs, margin, known_noise, sizes):
                    found.append(change)
    return sorted(found, key=lambda c: (isinstance(c.crossing, Projection), c.quantity is MEMORY))


def _of_families(
    quantity: Quantity,
    batch: int,
    pairs: Sequence[tuple[str, str]],
    costs: By,
    margin: float,
    noises: By,
    sizes: Mapping[str, float],
) -> Change | None:
    crossing: dict[tuple[str, str], Crossover | Projection] = {}
    for pair in pairs:
        measured = pair_crossovers(pair, costs, margin, noises)
        last = measured[-1] if measured else projection(pair, costs, margin)  # of several, the one that lasts
        if last:
            crossing[pair] = last
    # A pair that was seen to change order says more than one that is expected to.
    seen = {pair: c for pair, c in crossing.items() if isinstance(c, Crossover)} or crossing
    if not seen:
        return None
    nearest = min(seen, key=lambda pair: (_apart(sizes[pair[0]], sizes[pair[1]]), pair))
    return Change(quantity, batch, seen[nearest], len(pairs), len(seen))


def _apart(size: float, other: float) -> float:
    return abs(log(size / other)) if size and other else 0.0


def _families(models: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its plain models, or all it has where none is plain."""
    groups: dict[str, list[str]] = defaultdict(list)
    for model in models:
        groups[family(model)].append(model)
    return {key: [m for m in group if is_plain(m)] or group for key, group in groups.items()}


def _by_batch(of: Mapping[tuple[str, int], dict[int, float]]) -> dict[int, By]:
    found: dict[int, By] = defaultdict(dict)
    for (model, batch), curve in of.items():
        found[batch][model] = curve
    return found


def _at_least_typical(noises: By) -> By:
    """No row is quieter than the root mean square of all: that of one, from few rounds, may be small by chance."""
    squares = [value**2 for curve in noises.values() for value in curve.values()]
    typical = sqrt(fmean(squares)) if squares else 0.0
    return {model: {r: max(value, typical) for r, value in curve.items()} for model, curve in noises.items()}


def _margin(noises: By) -> float:
    least = min((value for curve in noises.values() for value in curve.values()), default=0.0)
    return max(DEFAULT_MARGIN, NORMAL_95 * least)


def _sentence(change: Change, several: bool) -> str:
    crossing, words = change.crossing, change.quantity
    at = f", batch {change.batch}" if several else ""
    one_of = ""
    if change.pairs > 1:
        one_of = (
            f" {change.changing} of {change.pairs} pairs of these families change order; this is the nearest in size."
        )
    head = f"{name(crossing.above)} {words.less} {name(crossing.below)}"
    if isinstance(crossing, Projection):
        return (
            f"Extrapolated, not measured: above about {crossing.resolution:.0f} px (95 % {crossing.low:.0f} to "
            f"{crossing.high:.0f}{at}) {head}, if the ratio of the two goes on as it went; at {crossing.last} px, the "
            f"largest measured, it takes {_percent(crossing.cost - 1)} more {words.noun}.{one_of}"
        )
    low, high = crossing.between
    interval = "" if crossing.low is None else f"95 % {crossing.low:.0f} to {crossing.high:.0f}, "
    return (
        f"Above about {crossing.resolution:.0f} px ({interval}between the measured {low} and {high} px{at}) {head}: it "
        f"takes {_percent(crossing.costs[0] - 1)} more {words.noun} at {low} px and {_percent(1 - crossing.costs[1])} "
        f"less at {high} px.{one_of}"
    )


def _percent(share: float) -> str:
    return f"{significant(100 * share, 2)} %"


# --- for the summary -------------------------------------------------------------------------------------------


def overtaking(records: Iterable[Record]) -> str:
    """What the first table with three resolutions says of growth and of the change of order; empty without one."""
    tables = by_setting(records)
    for key, members in tables.items():
        fits = {f: fit for (f, _), (_, fit, _) in family_exponents(members, least=1).items() if fit}
        if len(fits) < 2:
            continue
        growth = listed(
            [f"{name(f)} {fit.exponent:.2f} (95 % {fit.low:.2f} to {fit.high:.2f})" for f, fit in _slowest(fits)]
        )
        measured = [c for c in find_changes(members) if isinstance(c.crossing, Crossover) and c.quantity is TIME]
        # Where growth differs most, the change of order is of one kind of network over another.
        measured.sort(key=lambda c: _slope(fits, c.crossing.above) - _slope(fits, c.crossing.below))
        said = [
            f"above about {c.crossing.resolution:.0f} px {name(c.crossing.above)} is faster than "
            f"{name(c.crossing.below)} on this device"
            for c in measured[:MAX_IN_SUMMARY]
        ]
        end = listed(said) if said else "no family overtakes another in speed at the resolutions measured"
        which = f" ({key})" if len(tables) > 1 else ""
        return f"Time grows with the number of pixels{which} to the power of {growth}, 1 being linear; {end}."
    return ""


def _slowest(fits: Mapping[str, Fit]) -> list[tuple[str, Fit]]:
    return sorted(fits.items(), key=lambda item: item[1].exponent)


def _slope(fits: Mapping[str, Fit], model: str) -> float:
    fit = fits.get(family(model))
    return fit.exponent if fit else 1.0

"""How time and memory grow with the image, model by model and family by family, and where one overtakes another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import log

from bench.record.types import Record
from bench.report.blocks import MODEL, Block, Bullets, Column, Table, Text
from bench.report.rows import family_of
from bench.report.settings import LARGEST
from bench.report.speeds import NORMAL_95, noise, noise_floor
from bench.report.words import MISSING, figure, fixed, grouped, name, natural, percent
from bench.stats.scaling import Crossover, Fit, crossovers, fit_common_exponent, fit_exponent

MIN_SHARE = 0.05  # activations that are less than this of the peak cannot be separated from the weights
_WEIGHTS, _TRAINING = 4, 16  # bytes a parameter: its weight; with its gradient and AdamW's two moments
MIB = 2**20
THROUGHPUT, DEVICE = "throughput_images_per_s", "device"  # the figures whose noise is asked for
DEFAULT_MARGIN = 0.05  # two costs closer than this, or than the noise floor, have no order
# Peak memory is taken once. On a CPU it is that of a process: 95 % of repeats of a sweep (35 rows) were within 9 %.
MEMORY_MARGIN = {"cpu": 0.09, "cuda": 0.02}
TIME, MEMORY = "time", "memory"
Curve = dict[int, float]  # resolution -> value
Cost = Callable[[Record], float | None]
Pair = tuple[str, str]


def metric(record: Record, name: str) -> float | None:
    """A metric of a Record, or None where it is not a finite number."""
    return figure(record["metrics"], name)


def curves(members: Iterable[Record], cost: Cost) -> dict[tuple[str, int], Curve]:
    """Costs of what was measured; not at the largest batch that fits, which is another one at each resolution."""
    found: dict[tuple[str, int], Curve] = defaultdict(dict)
    for record in members:
        batch = int(record["spec"].get("batch") or LARGEST)
        if record["status"] == "ok" and batch != LARGEST and (value := cost(record)) is not None and value > 0:
            found[record["label"], batch][int(record["spec"]["resolution"])] = value
    return found


def time_of(members: Iterable[Record]) -> tuple[Cost, str]:
    """Seconds an image, by which growth and order are judged in a table, and the metric whose noise they have.

    On a GPU small images are ruled by the host's launches, which do not grow: where every row has the device's own
    time, that is what counts; one row without it and all are judged by what a user sees.
    """

    def seconds(name: str) -> Cost:
        return lambda record: 1 / speed if (speed := metric(record, name)) else None

    on_device = seconds("device_images_per_s_p50")
    done = [r for r in members if r["status"] == "ok"]
    if done and all(on_device(r) is not None for r in done):
        return on_device, DEVICE
    return seconds("throughput_images_per_s_p50"), THROUGHPUT


def activation_memory(members: Sequence[Record]) -> tuple[Cost, str]:
    """How the memory of the activations is separated from that of the weights in a table, and the words for it.

    Weights do not grow with the image: with them, whatever has few activations would seem to grow slowly.
    """
    done = [r for r in members if r["status"] == "ok" and metric(r, "peak_memory_mib") is not None]
    training = any(r["spec"].get("mode") == "train" for r in members)
    if training and done and all(metric(r, "saved_activations_mib") is not None for r in done):
        return lambda r: metric(r, "saved_activations_mib"), "memory is what the forward keeps for the backward pass."
    per_parameter = _TRAINING if training else _WEIGHTS

    def beyond_weights(record: Record) -> float | None:
        peak, params = metric(record, "peak_memory_mib"), metric(record, "params")
        if peak is None or params is None:
            return None
        rest = peak - per_parameter * params / MIB
        return rest if rest > MIN_SHARE * peak else None

    what = "weights, gradients and moments" if training else "weights"
    return beyond_weights, (
        f"memory is peak memory less {per_parameter} bytes a parameter ({what}), where more than "
        f"{100 * MIN_SHARE:.0f} % of the peak is left."
    )


# --- exponents -------------------------------------------------------------------------------------------------


def _points(curve: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """Pixels of an image and cost."""
    sides = sorted(curve)
    return [side * side for side in sides], [curve[side] for side in sides]


def is_plain(model: str) -> bool:
    """Whether a model is a family's own: no variant, no parameter-matched ablation, none of another library."""
    return not (":" in model or "[" in model or model.endswith("_twin"))


def growth_blocks(members: Sequence[Record]) -> list[Block]:
    """The table of exponents and what it means; nothing where no model has three resolutions."""
    time_cost, timed = time_of(members)
    memory_cost, memory_words = activation_memory(members)
    both = curves(members, time_cost), curves(members, memory_cost)
    lines: list[tuple[str, ...]] = []
    families: dict[tuple[str, int], list[str]] = defaultdict(list)
    family = {record["label"]: family_of(record) for record in members}
    for model, batch in sorted(both[0].keys() | both[1].keys(), key=lambda k: (natural(k[0]), k)):
        own = [of.get((model, batch), {}) for of in both]
        fits = [fit_exponent(*_points(curve)) for curve in own]
        if any(fits):
            lines.append((model, str(batch), *_cells(fits, [_last(curve) for curve in own])))
        if is_plain(model):
            families[family[model], batch].append(model)
    if not lines:
        return []
    for (name_, batch), models in sorted(families.items()):
        fits = [fit_common_exponent(_points(of[m, batch]) for m in models if (m, batch) in of) for of in both]
        if len(models) > 1 and any(fits):
            lines.append((f"all {name_} ({len(models)} models)", str(batch), *_cells(fits, (None, None))))
    columns = (
        MODEL, Column("batch", drop=5), Column("time exponent"),
        Column("time 95 %", drop=1), Column("last time exponent", drop=3), Column("memory exponent"),
        Column("memory 95 %", drop=2), Column("last memory exponent", drop=3), Column("points", drop=6),
    )  # fmt: skip
    note = (
        "Growth with the image: cost is proportional to pixels (side squared) to the power of the exponent, so 1 is "
        "linear and 2 quadratic; Student's interval. The last exponent is that between the two largest resolutions. A "
        "family's exponent is common to its plain models. "
        f"Time is that of an image{' on the device, launches aside' if timed == DEVICE else ''}; {memory_words}"
    )
    return [Text(note), Table(columns, tuple(lines)).without_empty()]


def _last(curve: Mapping[int, float]) -> float | None:
    """The exponent against pixels between the two largest resolutions."""
    if len(curve) < 2:
        return None
    low, high = sorted(curve)[-2:]
    return log(curve[high] / curve[low]) / log((high / low) ** 2)


def _cells(fits: Sequence[Fit | None], last: Sequence[float | None]) -> tuple[str, ...]:
    """Cells of time and of memory, and the number of points."""
    cells: list[str] = []
    for fit, local in zip(fits, last, strict=True):
        bounds = f"{fit.low:.2f} to {fit.high:.2f}" if fit else MISSING
        cells += [fixed(fit.exponent if fit else None, 2), bounds, fixed(local, 2)]
    return *cells, str(max(fit.n for fit in fits if fit))


# --- changes of order ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A measured change of order of two families, by the pair of models nearest in size that makes it.

    Attributes:
        crossover: :data:`pairs` of the two families were compared, :data:`changing` of them change order.
    """

    quantity: str
    batch: int
    crossover: Crossover
    pairs: int
    changing: int


def find_changes(members: Sequence[Record]) -> list[Change]:
    """All measured changes of order between families, of time before memory."""
    found: list[Change] = []
    time_cost, timed = time_of(members)
    noises: dict[int, dict[str, Curve]] = defaultdict(lambda: defaultdict(dict))
    for (model, batch), curve in curves(members, lambda r: noise(r["metrics"], timed)).items():
        noises[batch][model] = {r: NORMAL_95 * value for r, value in curve.items()}
    on_gpu = any(str(r["spec"].get("device")).startswith("cuda") for r in members)
    margins = max(DEFAULT_MARGIN, noise_floor(members, timed) or 0.0), MEMORY_MARGIN["cuda" if on_gpu else "cpu"]
    sizes = {r["label"]: metric(r, "params") or 0.0 for r in members if r["status"] == "ok"}

    def apart(pair: Pair) -> tuple[float, Pair]:
        first, second = (sizes[model] for model in pair)
        return (abs(log(first / second)) if first and second else 0.0), pair

    for quantity, cost, margin in zip(
        (TIME, MEMORY), (time_cost, lambda r: metric(r, "peak_memory_mib")), margins, strict=True
    ):
        for batch, costs, pairs in _by_families(members, cost):
            own = noises[batch] if quantity == TIME else None
            seen = {p: c[-1] for p in pairs if (c := crossovers(p, costs, margin, own))}  # the one that lasts
            if seen:
                found.append(Change(quantity, batch, seen[min(seen, key=apart)], len(pairs), len(seen)))
    return found


def _by_families(members: Sequence[Record], cost: Cost) -> Iterator[tuple[int, Mapping[str, Curve], list[Pair]]]:
    """For each batch and two families: the costs of all models, and the pairs of the two's plain models.

    A family without a plain model is there with all that it has.
    """
    family = {record["label"]: family_of(record) for record in members}
    batches: dict[int, dict[str, Curve]] = defaultdict(dict)
    for (model, batch), curve in curves(members, cost).items():
        batches[batch][model] = curve
    for batch, costs in sorted(batches.items()):
        groups = grouped(costs, family.__getitem__)
        plain = {f: [m for m in group if is_plain(m)] or group for f, group in groups.items()}
        for first, second in combinations(sorted(plain), 2):
            yield batch, costs, list(product(plain[first], plain[second]))


def change_blocks(members: Sequence[Record]) -> list[Block]:
    """Where a family becomes faster than another, or needs less memory, in one table."""
    found = find_changes(members)
    several = len({change.batch for change in found}) > 1
    return [Bullets(tuple(_sentence(change, several) for change in found))] if found else []


def _sentence(change: Change, several: bool) -> str:
    cross = change.crossover
    (low, high), costs = cross.between, cross.costs
    beats = "is faster than" if change.quantity == TIME else "needs less memory than"
    at = f", batch {change.batch}" if several else ""
    one_of = ""
    if change.pairs > 1:
        one_of = (
            f" {change.changing} of {change.pairs} pairs of these families change order; this is the nearest in size."
        )
    more, less = map(percent, (costs[0] - 1, 1 - costs[1]))
    return (
        f"Above about {cross.resolution:.0f} px {name(cross.above)} {beats} {name(cross.below)} (between the measured "
        f"{low} and {high} px{at}): it takes {more} more "
        f"{change.quantity} at {low} px and {less} less at {high} px.{one_of}"
    )

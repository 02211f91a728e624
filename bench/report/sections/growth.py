"""How time and memory grow with the image, model by model and family by family."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log

from bench.record.types import Record
from bench.report.blocks import MISSING, Block, Column, Table, Text, figure, fixed, natural, rows_of
from bench.report.rows import family_of
from bench.report.settings import LARGEST
from bench.stats.scaling import Fit, fit_common_exponent, fit_exponent

MIN_SHARE = 0.05  # activations that are less than this of the peak cannot be told from the weights
_WEIGHTS, _TRAINING = 4, 16  # bytes a parameter: its weight; with its gradient and AdamW's two moments
MIB = 2**20
THROUGHPUT, DEVICE = "throughput_images_per_s", "device"  # the figures whose noise is asked for
Curve = dict[int, float]  # resolution -> value
Cost = Callable[[Record], float | None]


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


def seconds(record: Record) -> float | None:
    """Seconds an image."""
    speed = metric(record, "throughput_images_per_s_p50")
    return 1 / speed if speed else None


def device_seconds(record: Record) -> float | None:
    """Seconds an image on the device itself, with no launch from the host between its kernels."""
    speed = metric(record, "device_images_per_s_p50")
    return 1 / speed if speed else None


def time_of(members: Iterable[Record]) -> tuple[Cost, str]:
    """The time that growth and order are judged by in a table, and the metric whose noise it has.

    On a GPU small images are ruled by the host's launches, which do not grow: where every row has the device's own
    time, that is what counts; one row without it and all are judged by what a user sees.
    """
    done = [r for r in members if r["status"] == "ok"]
    if done and all(device_seconds(r) is not None for r in done):
        return device_seconds, DEVICE
    return seconds, THROUGHPUT


def activation_memory(members: Sequence[Record]) -> tuple[Cost, str]:
    """How the memory of the activations is told from that of the weights in a table, and the words for it.

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


def exponents(members: Sequence[Record]) -> dict[tuple[str, int], tuple[Fit | None, Fit | None]]:
    """(label, batch) -> fits of seconds per image and of memory against pixels, where 3 resolutions allow one."""
    time, memory = (curves(members, cost) for cost in (time_of(members)[0], activation_memory(members)[0]))
    found = {}
    for key in sorted(time.keys() | memory.keys(), key=lambda k: (natural(k[0]), k)):
        fits = [fit_exponent(*_points(both.get(key, {}))) for both in (time, memory)]
        if any(fits):
            found[key] = (fits[0], fits[1])
    return found


def _points(curve: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """Pixels of an image and cost."""
    sides = sorted(curve)
    return [side * side for side in sides], [curve[side] for side in sides]


def family_exponents(
    members: Sequence[Record], least: int = 2
) -> dict[tuple[str, int], tuple[int, Fit | None, Fit | None]]:
    """(family, batch) -> its number of plain models and the exponents common to them, of ``least`` models or more."""
    both = curves(members, time_of(members)[0]), curves(members, activation_memory(members)[0])
    families: dict[tuple[str, int], set[str]] = defaultdict(set)
    family = {record["label"]: family_of(record) for record in members}
    for model, batch in both[0].keys() | both[1].keys():
        if is_plain(model):
            families[family[model], batch].add(model)
    found = {}
    for (name_, batch), models in sorted(families.items()):
        if len(models) < least:
            continue  # of a single one, the model's own row says it
        fits = [
            fit_common_exponent(_points(of[model, batch]) for model in sorted(models) if (model, batch) in of)
            for of in both
        ]
        if any(fits):
            found[name_, batch] = (len(models), fits[0], fits[1])
    return found


def is_plain(model: str) -> bool:
    """Whether a model is a family's own: no variant, no twin of an ablation, none of another library."""
    return not (":" in model or "[" in model or model.endswith("_twin"))


def growth_blocks(members: Sequence[Record]) -> list[Block]:
    """The table of exponents and what it means; nothing where no model has three resolutions."""
    fits = exponents(members)
    if not fits:
        return []
    columns = (
        Column("model", left=True, code=True), Column("batch", drop=5), Column("time exponent"),
        Column("time 95 %", drop=1), Column("time R²", drop=4), Column("last time exponent", drop=3),
        Column("memory exponent"), Column("memory 95 %", drop=2), Column("memory R²", drop=5),
        Column("last memory exponent", drop=3), Column("points", drop=6),
    )  # fmt: skip
    time_cost, timed = time_of(members)
    costs = [curves(members, cost) for cost in (time_cost, activation_memory(members)[0])]
    of_device = " on the device, launches aside" if timed == DEVICE else ""
    lines = [
        (key[0], str(key[1]), *_fit_cells(pair, [local_exponent(curve.get(key, {})) for curve in costs]))
        for key, pair in fits.items()
    ]
    families = family_exponents(members)
    for (name_, batch), (count, time, memory) in families.items():
        lines.append((f"all {name_} ({count} models)", str(batch), *_fit_cells((time, memory))))
    note = (
        "Growth with the image: cost is proportional to pixels (side squared) to the power of the exponent, so 1 is "
        "linear and 2 quadratic. Fitted on logarithms; the interval is Student's, and wide with few resolutions. "
        "Small images are ruled by what does not grow (weights to read, calls to make); the last exponent, between the "
        "two largest resolutions alone, is nearer to that of growth without end, and noisier. "
        f"Time is that of an image{of_device}; {activation_memory(members)[1]}"
    )
    if families:
        note += " A family's exponent is common to its plain models, each with a factor of its own."
    if any(r["spec"].get("batch") == LARGEST for r in members):
        note += " Rows at the largest batch do not count: it is another one at each resolution."
    return [Text(note), Table(columns, rows_of(lines)).without_empty()]


def local_exponent(curve: Mapping[int, float]) -> float | None:
    """The exponent against pixels between the two largest resolutions."""
    if len(curve) < 2:
        return None
    low, high = sorted(curve)[-2:]
    return log(curve[high] / curve[low]) / log((high / low) ** 2)


def _fit_cells(fits: tuple[Fit | None, Fit | None], last: Sequence[float | None] = (None, None)) -> tuple[str, ...]:
    """Cells of time and of memory, and the number of points."""
    cells: list[str] = []
    for fit, local in zip(fits, last, strict=True):
        fitted = [MISSING] * 3 if fit is None else [fixed(fit.exponent, 2), f"{fit.low:.2f} to {fit.high:.2f}"]
        cells += [*fitted, fixed(fit.r2)] if fit else fitted
        cells.append(fixed(local, 2))
    return *cells, str(max(fit.n for fit in fits if fit))

"""How time and memory grow with the image in one table, and where models overtake each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.report.results import Record
from bench.report.scaling import Fit, crossovers, fit_common_exponent, fit_exponent
from bench.report.settings import LARGEST
from bench.report.tables import MISSING, Block, Column, Table, Text, known, name, natural, rows_of

DEFAULT_MARGIN = 0.05  # two speeds closer than this, or than the noise, have no order
MIN_SHARE = 0.05  # activations that are less than this of the peak cannot be told from the weights
_WEIGHTS, _TRAINING = 4, 16  # bytes a parameter: its weight; with its gradient and AdamW's two moments
MIB = 2**20
Curves = dict[tuple[str, int], dict[int, float]]  # (label, batch) -> resolution -> value
Cost = Callable[[Record], float | None]


def metric(record: Record, metric_name: str) -> float | None:
    """A metric, or None where it is not a finite number."""
    value = record["metrics"].get(metric_name)
    return float(value) if value is not None and known(value) else None


def curves(members: Iterable[Record], cost: Cost) -> Curves:
    """Costs of what was measured; not at the largest batch that fits, which is another one at each resolution."""
    found: Curves = defaultdict(dict)
    for record in members:
        batch = int(record["spec"].get("batch") or LARGEST)
        if record["status"] == "ok" and batch != LARGEST and (value := cost(record)) is not None and value > 0:
            found[record["label"], batch][int(record["spec"]["resolution"])] = value
    return found


def seconds(record: Record) -> float | None:
    """Seconds an image."""
    speed = metric(record, "throughput_images_per_s_p50")
    return 1 / speed if speed else None


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
    time, memory = curves(members, seconds), curves(members, activation_memory(members)[0])
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


def family_exponents(members: Sequence[Record]) -> dict[tuple[str, int], tuple[int, Fit | None, Fit | None]]:
    """(family, batch) -> its number of plain models and the exponents common to them, of two models or more."""
    both = curves(members, seconds), curves(members, activation_memory(members)[0])
    families: dict[tuple[str, int], set[str]] = defaultdict(set)
    for model, batch in both[0].keys() | both[1].keys():
        if is_plain(model):
            families[family(model), batch].add(model)
    found = {}
    for (name_, batch), models in sorted(families.items()):
        if len(models) < 2:
            continue  # the model's own row says it
        fits = [
            fit_common_exponent(_points(of[model, batch]) for model in sorted(models) if (model, batch) in of)
            for of in both
        ]
        if any(fits):
            found[name_, batch] = (len(models), fits[0], fits[1])
    return found


def family(model: str) -> str:
    """The family a name begins with: ``vit`` of ``timm:vit_small_patch16_224``."""
    match = re.match(r"[^\W\d_]+", model.removeprefix("timm:"))
    return match[0] if match else model


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
        Column("time 95 %", drop=1), Column("time R²", drop=3), Column("memory exponent"),
        Column("memory 95 %", drop=2), Column("memory R²", drop=4), Column("points", drop=6),
    )  # fmt: skip
    lines = [(model, str(batch), *_fit_cells(*pair)) for (model, batch), pair in fits.items()]
    families = family_exponents(members)
    for (name_, batch), (count, *pair) in families.items():
        lines.append((f"all {name_} ({count} models)", str(batch), *_fit_cells(*pair)))
    note = (
        "Growth with the image: cost is proportional to pixels (side squared) to the power of the exponent, so 1 is "
        "linear and 2 quadratic. Fitted on logarithms; the interval is Student's, and wide with few resolutions. "
        f"Time is that of an image; {activation_memory(members)[1]}"
    )
    if families:
        note += " A family's exponent is common to its plain models, each with a factor of its own."
    if any(r["spec"].get("batch") == LARGEST for r in members):
        note += " Rows at the largest batch do not count: it is another one at each resolution."
    return [Text(note), Table(columns, rows_of(lines)).without_empty()]


def _fit_cells(time: Fit | None, memory: Fit | None) -> tuple[str, ...]:
    cells: list[str] = []
    for fit in (time, memory):
        cells += (
            [MISSING] * 3
            if fit is None
            else [f"{fit.exponent:.2f}", f"{fit.low:.2f} to {fit.high:.2f}", f"{fit.r2:.3f}"]
        )
    return *cells, str(max(fit.n for fit in (time, memory) if fit))


def changes(members: Sequence[Record], floor: float | None) -> tuple[str, ...]:
    """Sentences on where a model of one family becomes faster than a model of another.

    Args:
        members: Records of one table.
        floor: its noise floor; two rows also have no order where they are closer than twice the larger noise of
            the two.
    """
    costs, noise = _by_batch(curves(members, seconds)), _by_batch(curves(members, lambda r: metric(r, "noise_rel")))
    sentences = []
    for batch in sorted(costs):
        at = f" (batch {batch})" if len(costs) > 1 else ""
        for c in crossovers(costs[batch], max(DEFAULT_MARGIN, floor or 0), noise.get(batch, {})):
            if family(c.below) != family(c.above):
                low, high = c.between
                sentences.append(
                    f"Above about {c.resolution:.0f} px {name(c.above)} is faster than {name(c.below)}{at}: "
                    f"slower at {low} px, faster at {high} px."
                )
    return tuple(sentences)


def _by_batch(of: Curves) -> dict[int, dict[str, dict[int, float]]]:
    found: dict[int, dict[str, dict[int, float]]] = defaultdict(dict)
    for (model, batch), curve in of.items():
        found[batch][model] = curve
    return found

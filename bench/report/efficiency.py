"""The efficiency part of a leaderboard: cost by resolution, its growth, and where models overtake each other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.report.results import Record
from bench.report.scaling import Fit, crossovers, fit_common_exponent, fit_exponent
from bench.report.tables import (
    MISSING,
    Block,
    Bullets,
    Column,
    Section,
    Table,
    Text,
    known,
    name,
    natural,
    rows_of,
    significant,
)

DEFAULT_MARGIN = 0.05  # two speeds closer than this, or than twice the noise floor, have no order
MAX_EVIDENCE = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """What must be equal for two speeds to stand in one table (the batch is a column)."""

    hardware: str
    device: str
    threads: int
    precision: str
    compiled: bool
    mode: str

    def __str__(self) -> str:
        where = f"{self.device} ({self.hardware})" if self.hardware and self.hardware != self.device else self.device
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads and self.device == "cpu" else ""
        compiled = "compiled" if self.compiled else "eager"
        mode = {"infer": "inference", "train": "training step"}.get(self.mode, self.mode)
        return f"{mode}, {self.precision}, {compiled}, {where}{threads}"


def setting(record: Record) -> Setting:
    """The table that an efficiency Record belongs to."""
    spec = record["spec"]
    return Setting(
        hardware=str(spec.get("hardware") or record["environment"].get("hardware") or ""),
        device=str(spec.get("device") or ""),
        threads=int(spec.get("threads") or 0),
        precision=str(spec.get("precision") or ""),
        compiled=bool(spec.get("compile")),
        mode=str(spec.get("mode") or ""),
    )


def by_setting(records: Iterable[Record]) -> dict[Setting, list[Record]]:
    """Efficiency Records by table: inference, eager, fp32 first; in a table by model, pixels, batch."""
    groups: dict[Setting, list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "efficiency":
            groups[setting(record)].append(record)
    for members in groups.values():
        members.sort(key=_row_order)
    return {key: groups[key] for key in sorted(groups, key=_setting_order)}


def _row_order(record: Record) -> tuple[Any, ...]:
    spec = record["spec"]
    return natural(spec["model"]), spec["model"], spec.get("resolution") or 0, spec.get("batch") or 0, record["key"]


def _setting_order(s: Setting) -> tuple[Any, ...]:
    precision = {"fp32": 0, "tf32": 1, "bf16": 2}.get(s.precision, 3)
    return s.mode != "infer", s.compiled, precision, s.precision, not s.device.startswith("cuda"), str(s)


_COLUMNS: tuple[tuple[Column, Callable[[Mapping[str, Any]], str]], ...] = (
    (Column("params M", drop=4), lambda m: significant(_scaled(m, "params", 1e-6))),
    (Column("GMACs", drop=3), lambda m: significant(_scaled(m, "macs_g"))),
    (Column("act. M", drop=7), lambda m: significant(_scaled(m, "activations_m"))),
    (Column("images/s", drop=0), lambda m: significant(_scaled(m, "throughput_images_per_s_p50"))),
    (Column("p10–p90", drop=5), lambda m: _range(m, "throughput_images_per_s_p10", "throughput_images_per_s_p90")),
    (Column("latency p50 ms", drop=1), lambda m: significant(_scaled(m, "latency_ms_p50"))),
    (Column("p90 ms", drop=6), lambda m: significant(_scaled(m, "latency_ms_p90"))),
    (Column("p99 ms", drop=8), lambda m: significant(_scaled(m, "latency_ms_p99"))),
    (Column("peak memory MiB", drop=2), lambda m: significant(_scaled(m, "peak_memory_mib"))),
    (Column("forward ms", drop=5), lambda m: significant(_scaled(m, "forward_ms_p50"))),
    (Column("backward ms", drop=5), lambda m: significant(_scaled(m, "backward_ms_p50"))),
    (Column("optimizer ms", drop=6), lambda m: significant(_scaled(m, "optimizer_ms_p50"))),
    (Column("J/image", drop=6), lambda m: significant(_scaled(m, "energy_j_per_image"))),
    (Column("flags", left=True, drop=1), lambda m: ", ".join(flags(m))),
)


def flags(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of a row must know; the evidence stands below the table."""
    found = ["noisy"] if metrics.get("noisy") else ["disturbed"] if metrics.get("noisy_evidence") else []
    return [*found, "FLOPs not counted"] if metrics.get("flops_error") else found


def _scaled(metrics: Mapping[str, Any], metric: str, factor: float = 1.0) -> float | None:
    value = metrics.get(metric)
    return float(value) * factor if value is not None and known(value) else None


def _range(metrics: Mapping[str, Any], low: str, high: str) -> str:
    if _scaled(metrics, low) is None or _scaled(metrics, high) is None:
        return MISSING
    return f"{significant(_scaled(metrics, low))}–{significant(_scaled(metrics, high))}"


def efficiency_sections(records: Iterable[Record]) -> list[Section]:
    """For each setting: the table, its noise floor, growth with the image, and changes of order."""
    sections = []
    for key, members in by_setting(records).items():
        blocks: list[Block] = [_cost_table(members), Text(_noise_line(members))]
        if evidence := _evidence(members):
            blocks.append(Bullets(evidence))
        blocks += _growth(members)
        if changes := _changes(members):
            blocks.append(Bullets(changes))
        title = str(key)
        sections.append(Section(title[0].upper() + title[1:], blocks, level=3))
    return sections


def _cost_table(members: Sequence[Record]) -> Table:
    columns = (Column("model", left=True, code=True), Column("px"), Column("batch", drop=5), *(c for c, _ in _COLUMNS))
    lines = []
    for record in members:
        spec = record["spec"]
        cells = [show(record["metrics"]) for _, show in _COLUMNS]
        if record["status"] != "ok":  # the reason is listed under "Without a result"
            cells[3] = record["status"]
        lines.append((spec["model"], str(spec.get("resolution", "")), str(spec.get("batch", "")), *cells))
    return Table(columns, rows_of(lines)).without_empty()


def noise_floor(members: Iterable[Record]) -> float | None:
    """The typical (median) relative difference between two runs of one Cell of a table; None without an A/A repeat."""
    values = [float(v) for r in members if known(v := r["metrics"].get("noise_rel"))]
    return median(values) if values else None


def _noise_line(members: Sequence[Record]) -> str:
    floor = noise_floor(members)
    if floor is None:
        return "Noise floor: not measured (no A/A repeat), so small differences prove nothing."
    measured = [r for r in members if known(r["metrics"].get("noise_rel"))]
    worst = max(measured, key=lambda r: (r["metrics"]["noise_rel"], _row_order(r)))
    return (
        f"Noise floor: two runs of one row would differ by about {_percent(floor)} in images/s (median of the A/A "
        f"repeats of {len(measured)} rows; at most {_percent(worst['metrics']['noise_rel'])}, {_which(worst)}). "
        "Smaller differences mean nothing."
    )


def _percent(share: float) -> str:
    return f"{significant(100 * share, 2)} %"


def _which(record: Record) -> str:
    spec = record["spec"]
    return f"{name(spec['model'])} at {spec.get('resolution')} px, batch {spec.get('batch')}"


def _evidence(members: Iterable[Record]) -> tuple[str, ...]:
    """Why rows are flagged, one sentence each; the rest is in the records."""
    lines = []
    for record in members:
        metrics = record["metrics"]
        reasons = [str(reason) for reason in metrics.get("noisy_evidence") or ()]
        if metrics.get("flops_error"):
            reasons.append(f"FLOPs not counted: {metrics['flops_error']}")
        if reasons:
            more = f" ({len(reasons) - 1} more in its record)" if len(reasons) > 1 else ""
            lines.append(f"{_which(record)}: {reasons[0]}{more}.")
    if len(lines) > MAX_EVIDENCE:
        lines[MAX_EVIDENCE:] = [f"{len(lines) - MAX_EVIDENCE} more rows are flagged; their records say why."]
    return tuple(lines)


# --- growth ----------------------------------------------------------------------------------------------------


def _curves(
    members: Iterable[Record], cost: Callable[[Mapping[str, Any]], float | None]
) -> dict[Any, dict[int, float]]:
    """(model, batch) -> resolution -> cost, of what was measured."""
    curves: dict[Any, dict[int, float]] = defaultdict(dict)
    for record in members:
        spec, value = record["spec"], cost(record["metrics"])
        if record["status"] == "ok" and value is not None and value > 0:
            curves[spec["model"], spec.get("batch") or 0][int(spec["resolution"])] = value
    return curves


def _seconds(metrics: Mapping[str, Any]) -> float | None:
    speed = _scaled(metrics, "throughput_images_per_s_p50")
    return 1 / speed if speed else None


def exponents(members: Iterable[Record]) -> dict[tuple[str, int], tuple[Fit | None, Fit | None]]:
    """(model, batch) -> fits of seconds per image and of peak memory against pixels, where 3 resolutions allow one."""
    members = list(members)
    time, memory = _curves(members, _seconds), _curves(members, lambda m: _scaled(m, "peak_memory_mib"))
    found = {}
    for key in sorted(time.keys() | memory.keys(), key=lambda k: (natural(k[0]), k)):
        fits = [_fit(curves.get(key, {})) for curves in (time, memory)]
        if any(fits):
            found[key] = (fits[0], fits[1])
    return found


def _fit(curve: Mapping[int, float]) -> Fit | None:
    return fit_exponent([r * r for r in sorted(curve)], [curve[r] for r in sorted(curve)])


def family_exponents(members: Iterable[Record]) -> dict[str, tuple[int, Fit | None, Fit | None]]:
    """Family -> its number of models and the exponents common to them, of families with two models or more."""
    members = list(members)
    costs = _curves(members, _seconds), _curves(members, lambda m: _scaled(m, "peak_memory_mib"))
    families: dict[str, set[str]] = defaultdict(set)
    for model, _ in costs[0].keys() | costs[1].keys():
        families[family(model)].add(model)
    found = {}
    for name_, models in sorted(families.items()):
        if len(models) < 2:
            continue  # the model's own row says it
        fits = [
            fit_common_exponent(
                ([r * r for r in sorted(curve)], [curve[r] for r in sorted(curve)])
                for (model, _), curve in sorted(curves.items())
                if model in models
            )
            for curves in costs
        ]
        if any(fits):
            found[name_] = (len(models), fits[0], fits[1])
    return found


def _growth(members: Sequence[Record]) -> list[Block]:
    fits = exponents(members)
    if not fits:
        return []
    columns = (
        Column("model", left=True, code=True), Column("batch", drop=5), Column("time exponent"),
        Column("time 95 %", drop=1), Column("time R²", drop=3), Column("memory exponent"),
        Column("memory 95 %", drop=2), Column("memory R²", drop=4), Column("points", drop=6),
    )  # fmt: skip
    lines = []
    for (model, batch), (time, memory) in fits.items():
        n = max(fit.n for fit in (time, memory) if fit)
        lines.append((model, str(batch or ""), *_fit_cells(time), *_fit_cells(memory), str(n)))
    for name_, (count, time, memory) in family_exponents(members).items():
        n = max(fit.n for fit in (time, memory) if fit)
        lines.append((f"all {name_} ({count} models)", "", *_fit_cells(time), *_fit_cells(memory), str(n)))
    note = (
        "Growth with the image: cost is proportional to pixels (side squared) to the power of the exponent, so 1 is "
        "linear and 2 quadratic. Fitted on logarithms; the interval is Student's, and wide with few resolutions. "
        "A family's exponent is common to its models, each with a factor of its own."
    )
    return [Text(note), Table(columns, rows_of(lines)).without_empty()]


def _fit_cells(fit: Fit | None) -> tuple[str, str, str]:
    if fit is None:
        return MISSING, MISSING, MISSING
    return f"{fit.exponent:.2f}", f"{fit.low:.2f} to {fit.high:.2f}", f"{fit.r2:.3f}"


def family(model: str) -> str:
    """The family a name begins with: ``vit`` of ``timm:vit_small_patch16_224``."""
    match = re.match(r"[^\W\d_]+", model.removeprefix("timm:"))
    return match[0] if match else model


def _changes(members: Sequence[Record]) -> tuple[str, ...]:
    """Sentences on where a model of one family becomes faster than a model of another."""
    by_batch: dict[int, dict[str, dict[int, float]]] = defaultdict(dict)
    for (model, batch), curve in _curves(members, _seconds).items():
        by_batch[batch][model] = curve
    margin = max(DEFAULT_MARGIN, 2 * (noise_floor(members) or 0))
    sentences = []
    for batch in sorted(by_batch):
        at = f" (batch {batch})" if len(by_batch) > 1 else ""
        for c in crossovers(by_batch[batch], margin):
            if family(c.below) != family(c.above):
                low, high = c.between
                sentences.append(
                    f"Above about {c.resolution:.0f} px {name(c.above)} is faster than {name(c.below)}{at}: "
                    f"slower at {low} px, faster at {high} px."
                )
    return tuple(sentences)


# --- beside accuracy -------------------------------------------------------------------------------------------


def cost_beside(records: Iterable[Record], resolution: int) -> tuple[dict[str, dict[str, float | None]], str]:
    """Cost of each model at ``resolution`` for the overall table, from one setting, and a sentence that names it.

    Taken is the setting that covers the most models: inference and eager before others, a GPU before the CPU; of its
    batches the one that most models have, the larger of equals.
    """
    groups = {
        key: [r for r in members if r["status"] == "ok" and r["spec"].get("resolution") == resolution]
        for key, members in by_setting(records).items()
    }
    groups = {key: members for key, members in groups.items() if members}
    if not groups:
        return {}, ""
    order = list(groups)
    best = min(order, key=lambda k: (k.mode != "infer", -len({r["spec"]["model"] for r in groups[k]}), order.index(k)))
    batches = Counter(int(r["spec"].get("batch") or 0) for r in groups[best])
    batch = max(batches, key=lambda b: (batches[b], b))
    cost = {}
    for record in groups[best]:
        if int(record["spec"].get("batch") or 0) == batch:
            m = record["metrics"]
            cost[record["spec"]["model"]] = {
                "params": _scaled(m, "params"),
                "macs_g": _scaled(m, "macs_g"),
                "throughput": _scaled(m, "throughput_images_per_s_p50"),
                "latency_ms": _scaled(m, "latency_ms_p50"),
                "memory_mib": _scaled(m, "peak_memory_mib"),
            }
    note = (
        f"Cost at {resolution} px: {best}; 3 channels and 1,000 classes; images/s and peak memory at batch {batch}, "
        "latency (median) at batch 1; GMACs are 10⁹ multiply-adds per image."
    )
    return cost, note

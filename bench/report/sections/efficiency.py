"""The efficiency part of a leaderboard: cost by resolution with its noise, and cost beside accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import log

from bench.record.cells import ONE_THREAD
from bench.record.types import Metrics, Record
from bench.report.blocks import MODEL, Block, Bullets, Column, Columns, Section, Table, Text
from bench.report.rows import Code, code_of
from bench.report.sections.growth import DEVICE, change_blocks, growth_blocks
from bench.report.settings import LARGEST, batch_text, by_setting, row_order
from bench.report.speeds import NORMAL_95, UNUSABLE, noise_floor, with_relative_speeds
from bench.report.words import MISSING, counted, figure, grouped, known, listed, name, percent, significant

MAX_EVIDENCE = 8
RELATIVE = (
    "Relative speed: {} over {} of {} in the same rounds, the median with its 95 % interval. What slows the "
    "whole machine falls out of it, so it repeats better than images/s."
)
LATENCY = "latency_ms"


def _plain(heading: str, metric: str, drop: int, factor: float = 1.0) -> tuple[Column, Callable[[Metrics], str]]:
    """A column of one metric with three figures."""
    return Column(heading, drop=drop), lambda m: significant(_scaled(m, metric, factor))


_COLUMNS: Columns[Metrics] = [
    _plain("params M", "params", 4, 1e-6),
    _plain("GMACs", "macs_g", 3),
    _plain("act. M", "activations_m", 7),
    (Column("images/s", drop=0), lambda m: _speed(m, "images/s", "throughput_images_per_s_p50")),
    (Column("device images/s", drop=2), lambda m: _speed(m, "device images/s", "device_images_per_s_p50")),
    (Column("relative speed", drop=4), lambda m: _relative(m)),
    (Column("p10–p90", drop=5), lambda m: _range(m, "throughput_images_per_s_p10", "throughput_images_per_s_p90")),
    (Column("latency p50 ms", drop=1), lambda m: _speed(m, "latency", "latency_ms_p50")),
    _plain("p90 ms", "latency_ms_p90", 6),
    _plain("p99 ms", "latency_ms_p99", 8),
    _plain("peak memory MiB", "peak_memory_mib", 2),
    _plain("reserved MiB", "peak_reserved_mib", 7),
    _plain("device MiB", "peak_device_mib", 7),
    _plain("kept for backward MiB", "saved_activations_mib", 5),
    _plain("forward ms", "forward_ms_p50", 5),
    _plain("backward ms", "backward_ms_p50", 5),
    _plain("optimizer ms", "optimizer_ms_p50", 6),
    _plain("J/image (est.)", "energy_j_per_image", 6),
    _plain("idle W", "power_idle_w", 8),
    (Column("MFU", drop=6), lambda m: percent(figure(m, "mfu"))),
    (Column("of the roof", drop=8), lambda m: percent(figure(m, "roofline_fraction"))),
    (Column("bound", left=True, drop=8), lambda m: str(m.get("bound") or MISSING)),
    (Column("flags", left=True, drop=1), lambda m: ", ".join(flags(m))),
]


def flags(metrics: Metrics) -> list[str]:
    """What a reader of a row must know; the evidence stands below the table."""
    found = ["noisy"] if metrics.get("noisy") else ["disturbed"] if metrics.get("noisy_evidence") else []
    found += ["launch-bound"] if metrics.get("launch_bound") else []
    return [*found, "FLOPs not counted"] if metrics.get("flops_error") else found


def _speed(metrics: Metrics, speed: str, metric: str) -> str:
    return "unusable" if speed in metrics.get("unusable", ()) else significant(_scaled(metrics, metric))


def _relative(metrics: Metrics) -> str:
    """The ratio and its interval; none for the reference itself."""
    names = ("relative_speed", "relative_speed_ci_low", "relative_speed_ci_high")
    middle, low, high = (figure(metrics, name) for name in names)
    if middle is None:
        return MISSING
    return "1" if low == high == 1 else f"{significant(middle)} ({significant(low)}–{significant(high)})"


def _scaled(metrics: Metrics, metric: str, factor: float = 1.0) -> float | None:
    value = figure(metrics, metric)
    return None if value is None else value * factor


def _range(metrics: Metrics, low: str, high: str) -> str:
    ends = figure(metrics, low), figure(metrics, high)
    return MISSING if None in ends else "–".join(map(significant, ends))


def efficiency_sections(records: Iterable[Record]) -> list[Section]:
    """For each setting: the table, its noise floor, growth with the image, and changes of order."""
    sections = []
    for key, measured in by_setting(records).items():
        members, reference = with_relative_speeds(measured)
        blocks: list[Block] = [_cost_table(members), Text(_noise_line(members))]
        if reference:
            timed = any(record["metrics"].get("relative_in") == ONE_THREAD for record in members)
            of = (f"images per {ONE_THREAD}", "that") if timed else ("images/s", "those")
            blocks.append(Text(RELATIVE.format(*of, name(reference))))
        if unusable := unusable_line(members):
            blocks.append(Text(unusable))
        if waiting := _waiting(members):
            blocks.append(Text(waiting))
        if evidence := _evidence(members):
            blocks.append(Bullets(evidence))
        blocks += [*growth_blocks(members), *change_blocks(members)]
        title = str(key)
        sections.append(Section(title[0].upper() + title[1:], blocks, level=3))
    return sections


def _cost_table(members: Sequence[Record]) -> Table:
    columns = (MODEL, Column("px"), Column("batch", drop=5), *(c for c, _ in _COLUMNS))
    lines = []
    for record in members:
        cells = [show(record["metrics"]) for _, show in _COLUMNS]
        if record["status"] != "ok":  # the reason is listed under "Without a result"
            cells[3] = record["status"]
        lines.append((record["label"], str(record["spec"].get("resolution", "")), batch_text(record), *cells))
    return Table(columns, lines).without_empty()


def _noise_line(members: Sequence[Record]) -> str:
    floor = noise_floor(members)
    if floor is None and any(r["metrics"].get("unusable") for r in members):
        return "Noise floor: unknown, as no row has usable images/s."
    if floor is None:
        return "Noise floor: not measured (no A/A repeat), so small differences prove nothing."
    measured = [r for r in members if known(r["metrics"].get("noise_rel"))]
    worst = max(measured, key=lambda r: (r["metrics"]["noise_rel"], row_order(r)))
    most = f"; {percent(NORMAL_95 * worst['metrics']['noise_rel'])} for the worst, {_which(worst)}"
    latency = noise_floor(members, LATENCY)
    also = f" and {percent(latency)} in latency at batch 1" if latency is not None else ""
    noisy = sum(bool(r["metrics"].get("noisy")) for r in measured)
    share = f"{noisy} of {counted(len(measured), 'row')}" + (f" ({percent(noisy / len(measured))})" if noisy else "")
    return (
        f"Noise floor: {percent(floor)} in images/s{also}; 95 % of repeats of one row differ by less (A/A repeats of "
        f"{counted(len(measured), 'row')}{most if len(measured) > 1 else ''}). Smaller differences between rows mean "
        f"nothing. {share} {'is' if noisy == 1 else 'are'} noisy by {'its' if noisy == 1 else 'their'} own repeats."
    )


def unusable_line(records: Iterable[Record]) -> str:
    """Which speeds were left out of boards as unusable, why, and what to do; empty without one."""
    timed = [r for r in records if r["kind"] == "efficiency" and r["status"] == "ok"]
    found = [r["metrics"]["unusable"] for r in timed if r["metrics"].get("unusable")]
    if not found:
        return ""
    rows = Counter(speed for unusable in found for speed in unusable)
    which = listed([f"{speed} in {n}" for speed, n in sorted(rows.items())])
    worst = max(bound for unusable in found for bound in unusable.values())
    return (
        f"Unusable: {which} of {counted(len(timed), 'row')}. Two runs would differ by up to {percent(worst)} (limit "
        f"{percent(UNUSABLE)}): not shown, ranked or drawn. The machine was probably busy; repeat the command with "
        "`--retry noisy` when it is quiet."
    )


def _waiting(members: Sequence[Record]) -> str:
    """How many rows time the host, and what stands beside them."""
    replayed = [r for r in members if known(r["metrics"].get("device_images_per_s_p50"))]
    if not replayed:
        return ""
    bound = sum(bool(r["metrics"].get("launch_bound")) for r in replayed)
    floor = noise_floor(replayed, DEVICE)
    own = f"; its noise floor is {percent(floor)}" if floor is not None else ""
    return (
        "Device images/s is the same step replayed as one CUDA graph: what the GPU does when no kernel waits for "
        f"Python to launch it{own}. {bound} of {counted(len(replayed), 'row')} {'is' if bound == 1 else 'are'} "
        "launch-bound, more than 1.2 times as slow without the graph: images/s and its noise are then those of the "
        "host's CPU."
    )


def _which(record: Record) -> str:
    return f"{name(record['label'])} at {record['spec'].get('resolution')} px, batch {batch_text(record)}"


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


# --- beside accuracy -------------------------------------------------------------------------------------------

_EACH_IMAGE = {"params": "params", "macs_g": "macs_g", "latency_ms": "latency_ms_p50"}
_EACH_BATCH = {
    "throughput": "throughput_images_per_s_p50", "memory_mib": "peak_memory_mib", "energy": "energy_j_per_image",
    "device": "device_images_per_s_p50",
}  # fmt: skip


def cost_beside(records: Iterable[Record], resolution: int) -> tuple[dict[Code, dict[str, float | None]], str]:
    """Cost of each model for the overall table, from one setting, and a sentence that names it.

    Taken is what was measured at ``resolution``, or at the nearest to it; of that the setting that covers the most
    models: inference and eager before others, a GPU before the CPU; of its batches the one that most models have, the
    larger of equals. The largest batch that fits is another one for each model: with it alone nothing is said that
    depends on the batch.
    """
    timed = [(key, r) for key, members in by_setting(records).items() for r in members if r["status"] == "ok"]
    if not timed:
        return {}, ""
    measured = sorted({int(r["spec"]["resolution"]) for _, r in timed})
    at = min(measured, key=lambda r: abs(log(r / resolution)) if resolution else 0)
    settings = grouped((one for one in timed if one[1]["spec"]["resolution"] == at), lambda one: one[0])
    best = max(settings, key=lambda key: (key.mode == "infer", len({r["label"] for _, r in settings[key]})))
    batches = Counter(_batch(r) for _, r in settings[best] if _batch(r) != LARGEST)
    batch = max(batches, key=lambda b: (batches[b], b)) if batches else LARGEST
    members = [r for _, r in settings[best] if _batch(r) == batch]
    shown = _EACH_IMAGE if batch == LARGEST else _EACH_IMAGE | _EACH_BATCH
    cost = {code_of(r["spec"]): {key: _scaled(r["metrics"], of) for key, of in shown.items()} for r in members}
    nearest = "" if at == resolution else f" (nothing was measured at {resolution} px; this is the nearest)"
    per_batch = "" if batch == LARGEST else f"images/s and peak memory at batch {batch}, "
    note = (
        f"Cost at {at} px{nearest}: {best}; 3 channels and 1,000 classes; {per_batch}latency (median) at batch 1; "
        "GMACs are 10⁹ multiply-adds per image."
    )
    unusable = [name(r["label"]) for r in members if r["metrics"].get("unusable")]
    return cost, f"{note} Unusable speeds: {listed(unusable)}." if unusable else note


def _batch(record: Record) -> int:
    return int(record["spec"].get("batch") or LARGEST)

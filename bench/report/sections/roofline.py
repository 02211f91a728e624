"""How near each row comes to what its machine was measured to do: intensity, achieved fraction, MFU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.record.types import Metrics, Record
from bench.report.blocks import MISSING, Block, Column, Table, Text, figure, rows_of, significant
from bench.report.settings import batch_text

_COLUMNS: tuple[tuple[Column, Callable[[Metrics], str]], ...] = (
    (Column("FLOP/byte", drop=3), lambda m: significant(figure(m, "intensity_flop_per_byte"))),
    (Column("GFLOP/s", drop=4), lambda m: significant(figure(m, "achieved_gflops_per_s"))),
    (Column("roof GFLOP/s", drop=5), lambda m: significant(figure(m, "attainable_gflops_per_s"))),
    (Column("of the roof", drop=1), lambda m: _share(figure(m, "roofline_fraction"))),
    (Column("MFU", drop=1), lambda m: _share(figure(m, "mfu"))),
    (Column("HFU", drop=6), lambda m: _share(figure(m, "hfu"))),
    (Column("bound", left=True, drop=2), lambda m: str(m.get("bound") or MISSING)),
)


def roofline_blocks(members: Sequence[Record]) -> list[Block]:
    """The ceilings that were measured and the rows under them; nothing where no row has a place."""
    placed = [r for r in members if r["status"] == "ok" and figure(r["metrics"], "mfu") is not None]
    if not placed:
        return []
    columns = (Column("model", left=True, code=True), Column("px"), Column("batch", drop=7), *(c for c, _ in _COLUMNS))
    lines = [
        (r["label"], str(r["spec"].get("resolution", "")), batch_text(r), *(show(r["metrics"]) for _, show in _COLUMNS))
        for r in placed
    ]
    return [Text(_ceilings(placed)), Table(columns, rows_of(lines)).without_empty()]


def _ceilings(placed: Sequence[Record]) -> str:
    rates, copies = (_span(placed, name) for name in ("ceiling_gflops_per_s", "ceiling_copy_gb_per_s"))
    precision = placed[0]["spec"].get("precision", "")
    text = f"Roofline: measured ceilings of this machine are {rates} GFLOP/s in {precision}"
    if not copies:  # compiled: what moves is not figure, so there is only the arithmetic ceiling
        return (
            f"{text}. MFU is the model's own FLOPs (2 a multiply-add) over it; a compiler fuses operators, so the "
            "bytes that move, and with them a place under the roof, are not known."
        )
    ridges = [r["metrics"]["ceiling_gflops_per_s"] / r["metrics"]["ceiling_copy_gb_per_s"] for r in placed]
    return (
        f"{text} and {copies} GB/s of a copy: below {significant(min(ridges), 2)} FLOP a byte memory is the bound. "
        "Intensity counts each operator's inputs and outputs once; the roof is the lower of the two ceilings there, "
        "and caches can lift a row above it. MFU is the model's own FLOPs (2 a multiply-add) over the arithmetic "
        "ceiling."
    )


def _span(placed: Sequence[Record], name: str) -> str:
    """A ceiling; of several processes' measurements, the least and the greatest."""
    texts = {significant(v): v for r in placed if (v := figure(r["metrics"], name)) is not None}
    ordered = sorted(texts, key=lambda text: texts[text])
    return f"{ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else "".join(ordered)


def _share(value: float | None) -> str:
    return f"{significant(100 * value, 2)} %" if value is not None else MISSING

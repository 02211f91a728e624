"""Differences between two rows of one test set: ablations against their parent, resolutions, and transfer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.metrics.registry import RANKING, TESTED, Metric
from bench.record.types import Record
from bench.report.blocks import MODEL, Block, Column, Columns, Section, Table, Text, tabled
from bench.report.rows import Code, Row
from bench.report.standings import Overall
from bench.report.words import (
    MISSING,
    counted,
    fixed,
    grouped,
    known,
    listed,
    name,
    natural,
    p_text,
    signed,
    significant,
    span,
)
from bench.stats.paired import holm
from bench.stats.ranking import ALPHA
from bench.stats.separation import compared, mean_contrast

_MATCHED = re.compile(r"_[a-z]+_twin$")


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of one row less that of another, its 95 % interval (None without saved scores) and p, uncorrected."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    retrained: bool = False


def difference(pairs: Sequence[tuple[Row, Row]]) -> Difference | None:
    """The first less the second in the metric that ranks, mean over datasets, paired over test images and seeds."""
    values = [(a.mean(RANKING.field), b.mean(RANKING.field)) for a, b in pairs]
    gaps = [x - y for x, y in values if x is not None and y is not None]
    if not gaps or len(gaps) < len(pairs):
        return None
    if any(not a.evidence or not b.evidence or a.evidence.test_set != b.evidence.test_set for a, b in pairs):
        return Difference(float(np.mean(gaps)))
    evidence = [(a.scored, b.scored) for a, b in pairs]
    found = [compared(RANKING.over, [e.samples[RANKING.name] for e in both], both[0].labels)[0] for both in evidence]
    both = mean_contrast(found)
    value, half = float(both.difference[0, 1]), float(both.half_width()[0, 1])
    return Difference(value, value - half, value + half, float(both.p_values()[0, 1]), both.retrained)


# --- ablations -------------------------------------------------------------------------------------------------


def parent_of(model: str, present: Iterable[str]) -> str | None:
    """The model that ``model`` is a variant of, if it is there: with fewer options, or of the size that it matches."""
    base, bracket, options = model.partition("[")
    present = set(present)
    if "pretrained=" in options:
        return None  # weights are no part of a network: sections/tracks.py compares them
    if bracket:
        own = set(options.rstrip("]").split(","))
        fewer = [
            other
            for other in present
            if other != model
            and other.partition("[")[0] == base
            and set(filter(None, other.partition("[")[2].rstrip("]").split(","))) < own
        ]
        return max(fewer, key=lambda o: (len(o), o)) if fewer else None
    trunk = _MATCHED.sub("", model)
    return trunk if trunk != model and trunk in present else None


@dataclass(frozen=True, slots=True)
class Ablation:
    """A variant less its parent over the ``datasets`` that both have; ``p`` is Holm's over the board's ablations."""

    model: str
    parent: str
    datasets: int
    gap: Difference
    p: float


def ablations(board: Overall) -> list[Ablation]:
    """Each variant against its parent: the comparisons that were planned when the variants were chosen."""
    rows = {s.model: s.rows for s in board.standings}
    found = []
    for model in sorted(rows, key=natural):
        if parent := parent_of(model, rows):
            common = sorted(rows[model].keys() & rows[parent].keys(), key=natural)
            gap = difference([(rows[model][d], rows[parent][d]) for d in common]) if common else None
            found += [(model, parent, len(common), gap)] if gap else []
    adjusted = holm([gap.p if gap.p is not None else float("nan") for *_, gap in found])
    return [Ablation(*one, float(p)) for one, p in zip(found, adjusted, strict=True)]


def ablation_section(board: Overall, cost: Mapping[Code, Mapping[str, float | None]]) -> Section | None:
    """The table of :func:`ablations`; None where there is no variant."""
    found = ablations(board)
    if not found:
        return None
    codes = {s.model: s.code for s in board.standings}

    def times(key: str) -> Callable[[Ablation], str]:
        def show(one: Ablation) -> str:
            own, other = (cost.get(codes[model], {}).get(key) for model in (one.model, one.parent))
            return significant(own / other) if own and other else MISSING

        return show

    columns: Columns[Ablation] = [
        (Column("variant", left=True, code=True), lambda one: one.model),
        (Column("parent", left=True, code=True, drop=5), lambda one: one.parent),
        (Column("datasets", drop=6), lambda one: str(one.datasets)),
        (Column(f"{RANKING.label} difference"), lambda one: signed(one.gap.value)),
        (Column("95 %", drop=1), lambda one: span(one.gap.low, one.gap.high)),
        (Column("p (Holm)", drop=3), lambda one: p_text(one.p)),
        (Column("significantly", left=True, drop=1), lambda one: verdict(one.gap, one.p)),
        (Column("params ×", drop=4), times("params")),
        (Column("MACs ×", drop=3), times("macs_g")),
        (Column("images/s ×", drop=2), times("throughput")),
    ]
    once = "; single seeds among them, so of the trained networks only"
    again = " and over seeds" if all(one.gap.retrained for one in found) else once
    text = (
        f"Variant less parent, mean {RANKING.label} over the datasets that both have, paired over test images{again}. "
        f"Planned comparisons, a family of their own: p is Holm's over {counted(len(found), 'row')}; the interval of "
        "each difference is uncorrected."
    )
    blocks: list[Block] = [Text(text), tabled(columns, found)]
    return Section(f"Ablations: {board.protocol.pixels}, {board.protocol.training}", blocks)


def verdict(gap: Difference, p: float) -> str:
    """``better``, ``worse``, or that nothing is."""
    if not known(float(p)):
        return MISSING
    return "no" if p >= ALPHA else "better" if gap.value > 0 else "worse"


# --- resolutions -----------------------------------------------------------------------------------------------


def resolution_section(rows: Iterable[Row]) -> Section | None:
    """Accuracy by what the model was fed, where a model and recipe ran at several; None where none did."""
    groups: dict[tuple[str, str], dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    order: dict[str, tuple[int, int, str]] = {}
    for row in rows:
        protocol = row.protocol
        if row.mean(RANKING.field) is not None:
            groups[row.dataset, protocol.training][row.model][protocol.pixels] = row
            order[protocol.pixels] = (protocol.resolution, protocol.size, protocol.resize)
    blocks: list[Block] = []
    for (dataset, training), models in sorted(groups.items(), key=lambda g: (natural(g[0][0]), g[0])):
        several = {model: own for model, own in models.items() if len(own) > 1}
        if several:
            blocks += [Text(f"{name(dataset)}, {training}:"), _resolution_table(several, order)]
    if not blocks:
        return None
    text = (
        f"{RANKING.label} by the pixels that a model is fed (size of the data → resolution). The change is "
        "from the smallest to the largest, paired over the same test images, with its 95 % interval."
    )
    return Section("Accuracy by resolution", [Text(text), *blocks])


def _resolution_table(models: Mapping[str, Mapping[str, Row]], order: Mapping[str, tuple[int, int, str]]) -> Table:
    fed = sorted({pixels for own in models.values() for pixels in own}, key=lambda p: order[p])
    columns = (
        MODEL, *(Column(p, drop=2) for p in fed), Column("change"),
        Column("95 %", drop=1),
    )  # fmt: skip
    lines = []
    for model in sorted(models, key=natural):
        own = models[model]
        have = [p for p in fed if p in own]
        gap = difference([(own[have[-1]], own[have[0]])])
        change = (signed(gap.value), span(gap.low, gap.high)) if gap else (MISSING, MISSING)
        lines.append(
            (model, *(RANKING.shown(own[p].mean(RANKING.field)) if p in own else MISSING for p in fed), *change)
        )
    return Table(columns, lines).without_empty()


# --- transfer --------------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """The trainings of one model on one dataset, tested on another."""

    source: str
    target: str
    recipe: str
    resolution: str
    model: str
    records: list[Record]

    def mean(self, metric: str) -> float | None:
        """Mean over trainings of what they state."""
        values = [float(v) for r in self.records if known(v := r["metrics"].get(metric))]
        return float(np.mean(values)) if values else None

    @property
    def drops(self) -> list[float]:
        """Of each training, the figure at home less that on the other dataset."""
        both = ([r["metrics"].get(f"{end}{RANKING.field}") for end in ("source_", "")] for r in self.records)
        return [float(home) - float(away) for home, away in both if known(home) and known(away)]


def transfer_section(records: Iterable[Record]) -> Section | None:
    """Models tested on another dataset than they were trained on, and what that costs; None without such records."""
    done = [r for r in records if r["kind"] == "transfer" and r["status"] == "ok"]
    if not done:
        return None

    def place(record: Record) -> tuple[str, str, str, str, str]:
        asked = {field: str(value) for field, value in record["spec"].items()}
        return asked["source"], asked["dataset"], asked.get("recipe", ""), asked.get("resolution", ""), asked["model"]

    groups = grouped(done, place)
    moved = [Moved(*key, groups[key]) for key in sorted(groups, key=lambda key: [natural(text) for text in key])]

    def mean(metric: Metric, prefix: str) -> Callable[[Moved], str]:
        return lambda m: metric.shown(m.mean(f"{prefix}{metric.field}"))

    columns: Columns[Moved] = [
        (MODEL, lambda m: m.model),
        (Column("trained → tested on", left=True), lambda m: f"{m.source} → {m.target}"),
        (Column("fed", drop=5), lambda m: f"{m.resolution} px"),
        (Column("recipe", left=True, drop=6), lambda m: m.recipe),
        (Column(f"{RANKING.label} in-domain", drop=1), mean(RANKING, "source_")),
        (Column(f"{RANKING.label} out-of-domain"), mean(RANKING, "")),
        (Column("change"), lambda m: signed(-float(np.mean(m.drops)) if m.drops else None)),
        (Column("sd seeds", drop=4), lambda m: fixed(float(np.std(m.drops, ddof=1)) if len(m.drops) > 1 else None)),
    ]
    for metric in TESTED[1:]:
        columns.append((Column(f"{metric.label} in-domain", drop=3), mean(metric, "source_")))
        columns.append((Column(f"{metric.label} out-of-domain", drop=2), mean(metric, "")))
    columns.append((Column("seeds", drop=4), lambda m: str(len(m.records))))
    text = (
        "Trained on one dataset and tested on another without further training, over the classes that the two share. "
        "In-domain is the source's own test split, over the same classes; sd seeds is the spread of the change over "
        "trainings, and how far other test images would move it is not in the table."
    )
    patients = [m for m in moved if any(r["spec"].get("shares_patients") for r in m.records)]
    if shared := {f"{name(m.source)} and {name(m.target)}" for m in patients}:
        text += f" The two share patients, so out-of-domain is not new to the model: {listed(sorted(shared))}."
    return Section("Transfer", [Text(text), tabled(columns, moved)])

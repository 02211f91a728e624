"""``bench compare A B``: two runs, or two models, side by side: what differs, and whether the data can tell.

Differences and ratios are of B against A. p values are two-sided; beside ratios of speeds stands their noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics.registry import TESTED, Metric
from bench.record import store
from bench.record.types import Fields
from bench.report.blocks import Block, Bullets, Column, Columns, Section, Text, tabled
from bench.report.compare.gate import EXACT_NAMES, accuracy_tests
from bench.report.compare.gate_stats import MEMORY_NOISE_REL, memory_evidence, speed_evidence
from bench.report.compare.pairs import PairRow, judged_pairs, pair_blocks, pair_json
from bench.report.compare.snapshot import (
    MAX_NAMED,
    BaselineError,
    Snapshot,
    SnapshotCell,
    canonical,
    nearly,
    shown_machine,
    take,
)
from bench.report.words import MISSING, counted, fixed, grouped, listed, name, significant, some
from bench.report.write.render import terminal
from bench.stats.paired import holm

if TYPE_CHECKING:
    from rich.console import Console

REPEATS_WITHIN = 0.03  # the share of ratios within this is what a repeated measurement is judged by
SPEED, LATENCY = "throughput_images_per_s_p50", "latency_ms_p50"

Pair = tuple[SnapshotCell, SnapshotCell]


@dataclass(frozen=True, slots=True)
class Side:
    """A run, or one model of it."""

    name: str
    model: str | None
    snapshot: Snapshot
    run: Path

    def matched(self, entry: SnapshotCell) -> str:
        """What two Cells must agree in to be compared: all that was asked, but for the model where one is named."""
        identity = {k: v for k, v in entry.identity.items() if not (self.model and k == "model")}
        return canonical([entry.kind, identity])


@dataclass(slots=True)
class Comparison:
    """Two sides, and the Cells that both have with a result."""

    a: Side
    b: Side
    pairs: list[Pair]
    only_a: list[SnapshotCell]
    only_b: list[SnapshotCell]
    judged: list[PairRow] = field(init=False)

    def __post_init__(self) -> None:
        """What the leaderboard of the run says of two of its models."""
        one = self.a.model and self.b.model and self.a.run.resolve() == self.b.run.resolve()
        self.judged = judged_pairs(self.a.run, str(self.a.model), str(self.b.model)) if one else []

    @property
    def of_models(self) -> bool:
        """Whether two models are compared, and not two runs."""
        return self.a.model is not None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that are tested here, not by a leaderboard, and what plug-ins defined on both sides."""
        return (*(() if self.judged else TESTED), *(m for m in self.a.snapshot.metrics if m in self.b.snapshot.metrics))

    @property
    def tested(self) -> list[Pair]:
        """The pairs of accuracy and transfer that have a result."""
        return [(a, b) for a, b in self.pairs if a.kind != "efficiency" and a.status == b.status == "ok"]

    @property
    def timed(self) -> list[Pair]:
        """The pairs of efficiency."""
        return [pair for pair in self.pairs if pair[0].kind == "efficiency"]


def side(text: str) -> Side:
    """Read ``RUN`` or ``RUN:model``.

    Raises:
        BaselineError: there is no such run, or it has no such model (the ones it has are named).
    """
    run, separator, model = (text, "", "") if Path(text).is_dir() else text.rpartition(":")
    snapshot = take(Path(run or text))
    if not separator:
        return Side(text, None, snapshot, Path(text))
    models = sorted({str(entry.identity.get("model")) for entry in snapshot.entries})
    if model not in models:
        raise BaselineError(f"{run} has no model {model!r}; it has {listed(models)}")
    entries = [entry for entry in snapshot.entries if entry.identity.get("model") == model]
    return Side(model, model, Snapshot(entries, snapshot.about, snapshot.problems), Path(run))


def compare(a: Side, b: Side) -> Comparison:
    """Match the Cells of two sides.

    Raises:
        BaselineError: a model is named on one side only, or no Cell is common.
    """
    if (a.model is None) != (b.model is None):
        raise BaselineError("name a model on both sides (RUN:model) or on neither")
    there = grouped(b.snapshot.entries, b.matched)
    pairs, only_a = [], []
    used: set[int] = set()
    for entry in a.snapshot.entries:
        found = there.get(a.matched(entry), [])
        other = next((e for e in found if e.machine == entry.machine), found[0] if found else None)
        if other is None:
            only_a.append(entry)
            continue
        used.add(id(other))
        pairs.append((entry, other))
    only_b = [e for e in b.snapshot.entries if id(e) not in used]
    if not pairs:
        near = nearly(only_a, only_b, b.name, a.model is not None)
        raise BaselineError("; ".join([f"{a.name} and {b.name} have no cell in common", *near]))
    return Comparison(a, b, pairs, only_a, only_b)


def run_compare(a: str, b: str, console: Console, json_path: Path | None = None) -> int:
    """Compare, print, and write JSON if asked; return 0.

    Raises:
        StoreError: a side cannot be read or the file cannot be written.
    """
    found = compare(side(a), side(b))
    terminal(sections(found), console)
    if json_path:
        store.write_json(json_path, to_json(found))
    return 0


def sections(found: Comparison) -> list[Section]:
    """The comparison as a page."""
    page = [Section(f"{found.b.name} against {found.a.name}", _about(found)), Section("Accuracy", _accuracy(found))]
    page += [Section("Efficiency", _efficiency(found))] if found.timed else []
    return [section for section in page if section.blocks]


def _about(found: Comparison) -> list[Block]:
    """What is compared, and what differs around it."""
    lines = [*found.a.snapshot.problems, *found.b.snapshot.problems]
    before, now = (s.snapshot.about.get("versions", {}) for s in (found.a, found.b))
    if apart := [f"{k} {before.get(k, MISSING)} → {now.get(k, MISSING)}" for k in sorted({*before, *now})
                 if before.get(k) != now.get(k)]:  # fmt: skip
        lines.append("versions: " + ", ".join(apart))
    for where, entries in ((found.a.name, found.only_a), (found.b.name, found.only_b)):
        if entries:
            lines.append(f"only in {where}: {listed(some([e.title() for e in entries], MAX_NAMED))}")
    lines += nearly(found.only_a, found.only_b, found.b.name, found.of_models)
    for a, b in found.pairs:
        if a.status != "ok" or b.status != "ok":
            lines.append(f"{a.title()}: {a.status} → {b.status} {b.reason or a.reason}".rstrip())
    text = f"{counted(len(found.pairs), 'cell')} in common. Differences and ratios are of {name(found.b.name)} "
    blocks: list[Block] = [Text(text + f"against {name(found.a.name)}.")]
    return [*blocks, Bullets(tuple(lines))] if lines else blocks


AS_ON_THE_BOARD = (
    "As on the leaderboard of this run, so that both say the same: paired by test image, over trainings too, and "
    "corrected for the comparisons that the leaderboard makes. p by itself is for whoever planned this comparison "
    "alone, before seeing results."
)
PAIRED = "Paired by test image: DeLong for AUC; McNemar (one seed) or paired t for ACC; Holm over each table."


def _accuracy(found: Comparison) -> list[Block]:
    return [*pair_blocks(found.judged, AS_ON_THE_BOARD), *pair_blocks(tested(found), PAIRED)]


def tested(found: Comparison) -> list[PairRow]:
    """Every row that both sides have, in each metric that no leaderboard judges."""
    rows = []
    for metric in found.metrics:
        own = accuracy_tests(found.tested, metric)
        adjusted = holm([evidence.two_sided for *_, evidence in own])
        for (cell, part, before, now, e), p in zip(own, adjusted, strict=True):
            where = cell.title(seed=False, model=not found.of_models)
            rows.append(PairRow(metric, where, cell.identity, len(part.seeds), before, now, -metric.sign * e.effect,
                                e.half_width(), e.two_sided, float(p), counted(len(own), "row")))  # fmt: skip
    return rows


@dataclass(frozen=True, slots=True)
class Timed:
    """One efficiency Cell on both sides; ratios B / A (``relative``: of the speed relative to the reference of each
    side's own rounds), noise as the 95 % bound of a ratio.
    """

    a: SnapshotCell
    b: SnapshotCell
    speed: float | None
    relative: float | None
    noise: float | None
    latency: float | None
    memory: float | None

    @property
    def noisy(self) -> bool:
        """Whether either side was flagged."""
        return self.a.noisy or self.b.noisy

    @property
    def within_noise(self) -> bool:
        """Whether the ratio is one that the rounds' spread explains."""
        return bool(self.speed and self.noise is not None and abs(math.log(self.speed)) <= self.noise)

    @property
    def comparable(self) -> bool:
        """Whether both were measured on one kind of machine."""
        return self.a.machine == self.b.machine


def timed(pairs: Sequence[Pair]) -> list[Timed]:
    """Ratios and noise of all Cells with a result on both sides."""
    found = []
    for a, b in pairs:
        if a.status != "ok" or b.status != "ok":
            continue
        evidence = speed_evidence(a.speed, b.speed, 0.0) if a.machine == b.machine else None
        memory = memory_evidence(a.memory, b.memory, 0.0, MEMORY_NOISE_REL["cpu"])
        relative = float(np.median(b.relative) / np.median(a.relative)) if a.beside(b) else None
        noise, used = evidence.limit if evidence else None, memory.effect + 1 if memory else None
        found.append(Timed(a, b, _ratio(a, b, SPEED), relative, noise, _ratio(a, b, LATENCY), used))
    return found


def _ratio(a: SnapshotCell, b: SnapshotCell, metric: str) -> float | None:
    before, now = a.shown.get(metric), b.shown.get(metric)
    return now / before if before and now else None


def _efficiency(found: Comparison) -> list[Block]:
    rows = timed(found.timed)
    blocks: list[Block] = [Text(text) for text in _statements(found, rows)]
    columns: Columns[Timed] = [
        (Column("where", left=True, wrap=True), lambda row: row.a.title(model=not found.of_models)),
        (Column("img/s A"), lambda row: significant(row.a.shown.get(SPEED))),
        (Column("img/s B"), lambda row: significant(row.b.shown.get(SPEED))),
        (Column("B / A"), lambda row: fixed(row.speed)),
        (Column("noise ±", drop=1), lambda row: f"{row.noise:.1%}" if row.noise is not None else MISSING),
        (Column("latency B / A", drop=4), lambda row: fixed(row.latency)),
        (Column("memory B / A", drop=2), lambda row: fixed(row.memory)),
        (Column("B is", left=True), _speed_word),
    ]
    return [*blocks, tabled(columns, rows)] if rows else blocks


def _speed_word(row: Timed) -> str:
    if not row.comparable:
        return "elsewhere"
    if row.speed is None or row.noise is None:
        return "noise unknown"
    word = "within noise" if row.within_noise else "faster" if row.speed > 1 else "slower"
    return f"{word}, noisy" if row.noisy else word


def _statements(found: Comparison, rows: Sequence[Timed]) -> list[str]:
    texts = []
    if apart := _exact_differences(rows):
        texts.append(f"Counts: {'; '.join(apart)}.")
    else:
        texts.append(f"Parameters and MACs are equal in all {len(rows)} cells.")
    if elsewhere := [row for row in rows if not row.comparable]:
        a, b = shown_machine(elsewhere[0].a.machine), shown_machine(elsewhere[0].b.machine)
        texts.append(f"{counted(len(elsewhere), 'cell')} on different machines: {a}, {b}.")
    if not found.of_models:
        texts += repeatability(rows)
    return texts


def _exact_differences(rows: Sequence[Timed]) -> list[str]:
    """``parameters 11,176,512 → 21,284,672``, each once, with where it holds if not everywhere."""
    cells: dict[str, list[SnapshotCell]] = defaultdict(list)
    for row in rows:
        for metric, text in EXACT_NAMES.items():
            before, now = row.a.exact.get(metric), row.b.exact.get(metric)
            if before != now and (before is not None or now is not None):
                values = [significant(v, 4) if v is not None else MISSING for v in (before, now)]
                cells[f"{text} {values[0]} → {values[1]}"].append(row.a)
    return [
        text if len(where) == len(rows) else f"{text} ({where[0].title()}{' and more' if len(where) > 1 else ''})"
        for text, where in cells.items()
    ]


def repeatability(rows: Sequence[Timed]) -> list[str]:
    """How well the second run repeats the first: one sentence for each of speeds, latency, memory."""
    texts = []
    metrics = ("throughput", "speed"), ("relative speed", "relative"), ("latency", "latency"), ("peak memory", "memory")
    for word, metric in metrics:
        known = [(row, ratio) for row in rows if row.comparable and (ratio := getattr(row, metric)) is not None]
        if not known:
            continue
        apart = np.abs(np.array([ratio for _, ratio in known]) - 1)
        quiet = np.array([not row.noisy for row, _ in known])
        text = (
            f"Repeats of {word}: median ratio {np.median([r for _, r in known]):.3f}, "
            f"{(apart <= REPEATS_WITHIN).sum()} of {counted(len(known), 'cell')} "
            f"({(apart <= REPEATS_WITHIN).mean():.0%}) within {REPEATS_WITHIN:.0%}, "
            f"95 % of them within {np.quantile(apart, 0.95):.1%}"
        )
        if metric != "memory" and not quiet.all() and quiet.any():
            text += f"; without the {(~quiet).sum()} flagged noisy {(apart[quiet] <= REPEATS_WITHIN).mean():.0%}"
        texts.append(text + ".")
    tested = [row for row in rows if row.comparable and row.noise is not None and row.speed is not None]
    if tested:
        inside = sum(row.within_noise for row in tested)
        texts.append(
            f"{inside} of {len(tested)} ratios lie within the noise that their rounds predict (95 % expected)."
        )
    return texts


def to_json(found: Comparison) -> Fields:
    """The figures of the tables."""
    accuracy = pair_json([*found.judged, *tested(found)])
    efficiency = [
        {
            "where": row.a.identity, "same_machine": row.comparable, "throughput_ratio": row.speed,
            "relative_speed_ratio": row.relative, "noise_95": row.noise,
            "latency_ratio": row.latency, "memory_ratio": row.memory, "noisy": row.noisy, "exact_a": row.a.exact,
            "exact_b": row.b.exact,
        }
        for row in timed(found.timed)
    ]  # fmt: skip
    only = {"only_a": [e.title() for e in found.only_a], "only_b": [e.title() for e in found.only_b]}
    return {"a": found.a.name, "b": found.b.name, **only, "accuracy": accuracy, "efficiency": efficiency}

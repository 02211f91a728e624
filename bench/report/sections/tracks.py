"""What pretraining buys: the tracks side by side, their differences, learning curves, and where weights come from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from bench.metrics.registry import RANKING
from bench.record.cells import few_labels, is_control, track_of
from bench.record.types import Record, Spec
from bench.registry.names import bare_model
from bench.report.blocks import Block, Bullets, Column, Columns, Details, Section, Table, Text, tabled
from bench.report.rows import Row
from bench.report.sections.comparisons import Difference, difference
from bench.report.words import MISSING, counted, fixed, grouped, known, name, natural, p_text, signed, span
from bench.stats.paired import holm
from bench.stats.ranking import ALPHA

RANDOM = "frozen, random weights"
SETTINGS = ("weights_sha256", "recipe_settings", "resize", "precision", "leaks", "data_fingerprint")  # of one curve
NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "fair-noncommercial")


def way_of(spec: Spec) -> str:
    """How a network was used, in words: ``frozen, linear``, ``fine-tuned, medmnistplus``, ``scratch, medmnist``."""
    track, recipe = track_of(spec), str(spec.get("recipe") or "")
    if track == "frozen":
        return f"{RANDOM}, {recipe}" if is_control(spec) else f"frozen, {recipe}"
    return f"{'fine-tuned' if track == 'finetune' else 'scratch'}, {recipe}"


@dataclass(frozen=True, slots=True)
class _Used:
    """A row of the boards, the network it is of, and how that was used."""

    row: Row
    network: str
    way: str
    track: str
    pretrained: bool
    recipe: str

    @property
    def fed(self) -> tuple[object, ...]:
        """What must be equal for a comparison of weights alone."""
        protocol = self.row.protocol
        return self.row.dataset, protocol.size, protocol.resolution, protocol.resize, protocol.precision


@dataclass(frozen=True, slots=True)
class _Judged:
    """A difference of two rows on one dataset; ``p`` is Holm's over all of them."""

    one: _Used
    other: _Used
    gap: Difference | None
    p: float

    @property
    def verdict(self) -> str:
        """Better, worse, or neither."""
        if self.gap is None or self.gap.p is None:
            return "not tested"
        return ("better" if self.gap.value > 0 else "worse") if self.p < ALPHA else "no significant difference"


def tracks_section(rows: Iterable[Row], records: Sequence[Record]) -> Section | None:
    """The section, where any row started from weights; None elsewhere."""
    used = [_used(row) for row in rows if row.ok]
    if not any(one.pretrained for one in used):
        return None
    blocks: list[Block] = [*_side_by_side(used), *_gains(used), *weights_used(records)]
    return Section("What pretraining buys", blocks)


def _used(row: Row) -> _Used:
    spec = row.ok[0]["spec"]
    pretrained = bool(spec.get("weights_sha256"))
    network = bare_model(str(spec["model"]))
    return _Used(row, network, way_of(spec), track_of(spec), pretrained, str(spec.get("recipe") or ""))


def _side_by_side(used: Sequence[_Used]) -> list[Block]:
    """One line a network and way, one column per dataset; what is fed otherwise stands in a table of its own."""
    blocks: list[Block] = []
    tables = grouped(used, lambda one: f"{one.row.protocol.pixels}, {one.row.protocol.precision}")
    for fed, members in sorted(tables.items(), key=lambda t: natural(t[0])):
        datasets = sorted({one.row.dataset for one in members}, key=natural)
        found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for one in members:
            if (value := one.row.mean(RANKING.field)) is not None:
                best = found[one.network, one.way].get(one.row.dataset)
                found[one.network, one.way][one.row.dataset] = value if best is None else max(best, value)
        whole = {key: fmean(own.values()) for key, own in found.items() if len(own) == len(datasets)}
        order = sorted(found, key=lambda k: (-whole.get(k, 0.0), natural(k[0]), k[1]))
        columns = [Column("network", left=True, code=True), Column("used", left=True)]
        columns += [Column(dataset, drop=2) for dataset in datasets] + [Column("mean")] * (len(datasets) > 1)
        lines = [
            (*key, *(fixed(found[key].get(d)) for d in datasets), *[fixed(whole.get(key))] * (len(datasets) > 1))
            for key in order
        ]
        text = f"Test {RANKING.label} by how a network was used, {fed}, all labels, mean over seeds:"
        blocks += [Text(text), Table(columns, lines)]
    return blocks


def _gains(used: Sequence[_Used]) -> list[Block]:
    """Differences to the same network with random weights, and to the same network trained from scratch."""
    both = ((one, other) for one in used for other in _opponents(one, used))
    pairs = grouped(both, lambda pair: (pair[0].network, pair[0].way, pair[1].way))
    if not pairs:
        return []
    each = [(*pair, difference([(pair[0].row, pair[1].row)])) for own in pairs.values() for pair in own]
    p = holm([gap.p if gap and gap.p is not None else 1.0 for *_, gap in each]).tolist()
    judged = [_Judged(*parts, value) for parts, value in zip(each, p, strict=True)]
    columns = (
        Column("network", left=True, code=True), Column("used", left=True), Column("against", left=True),
        Column(f"Δ{RANKING.label}"), Column("95 %", drop=1), Column("datasets better / worse"),
    )  # fmt: skip
    lines = []
    for key, own in pairs.items():
        gap = difference([(a.row, b.row) for a, b in own])
        verdicts = [j.verdict for j in judged if (j.one.network, j.one.way, j.other.way) == key]
        counts = f"{verdicts.count('better')} / {verdicts.count('worse')} of {len(own)}"
        lines.append((*key, signed(gap.value if gap else None), _interval(gap), counts))
    lines.sort(key=lambda line: (natural(line[0]), line[1], line[2]))
    text = (
        f"The same network and pixels with other weights: difference in {RANKING.label} (mean over datasets, 95 % "
        f"interval over test images and trainings) and on how many datasets it is significant (one Holm family of "
        f"{counted(len(judged), 'difference')}):"
    )
    return [Text(text), Table(columns, lines), Details("Each dataset", (_each(judged),))]


def _opponents(one: _Used, used: Sequence[_Used]) -> list[_Used]:
    """The rows that differ from a pretrained one in nothing but its weights, or in having been trained from scratch."""
    if not one.pretrained:
        return []
    same = [o for o in used if o.network == one.network and o.fed == one.fed and not o.pretrained]
    found = [o for o in same if o.track == "frozen" and one.track == "frozen" and o.recipe == one.recipe][:1]
    scratch = [o for o in same if o.track == "scratch" and o.row.mean(RANKING.field) is not None]
    best = max(scratch, key=lambda o: o.row.mean(RANKING.field) or 0.0, default=None)  # of several recipes
    return [*found, *([best] if best else [])]


def _interval(gap: Difference | None) -> str:
    return span(gap.low, gap.high) if gap else MISSING


def _each(judged: Sequence[_Judged]) -> Table:
    columns: Columns[_Judged] = [
        (Column("dataset", left=True, code=True), lambda j: j.one.row.dataset),
        (Column("network", left=True, code=True), lambda j: j.one.network),
        (Column("used", left=True), lambda j: j.one.way),
        (Column(RANKING.label), lambda j: fixed(j.one.row.mean(RANKING.field))),
        (Column("against", left=True), lambda j: j.other.way),
        (Column(f"its {RANKING.label}"), lambda j: fixed(j.other.row.mean(RANKING.field))),
        (Column(f"Δ{RANKING.label}"), lambda j: signed(j.gap.value if j.gap else None)),
        (Column("95 %", drop=1), lambda j: _interval(j.gap)),
        (Column("p", drop=2), lambda j: p_text(j.p) if j.gap and j.gap.p is not None else MISSING),
        (Column("verdict", left=True), lambda j: j.verdict),
    ]
    table = tabled(columns, judged)
    return Table(table.columns, sorted(table.rows, key=lambda line: (natural(line[0]), natural(line[1]), line[2:])))


# --- where weights come from -----------------------------------------------------------------------------------


def weights_used(records: Iterable[Record]) -> list[Block]:
    """Licence and training data of all pretrained weights, and which may not be used commercially."""
    found: dict[str, tuple[Mapping[str, str], set[str]]] = {}
    for record in records:
        said = record["metrics"].get("weights")
        if isinstance(said, Mapping):
            found.setdefault(str(said.get("sha256")), (said, set()))[1].add(bare_model(str(record["spec"]["model"])))
    lines = []
    for sha256, (said, models) in sorted(found.items(), key=lambda f: sorted(f[1][1])):
        licence = str(said.get("licence") or "")
        limited = ", not for commercial use" if any(part in licence.lower() for part in NON_COMMERCIAL) else ""
        trained = f"trained on {said['trained_on']}" if said.get("trained_on") else "training data not stated"
        origin = str(said.get("source") or "")
        origin = origin if origin.startswith("hub ") else origin.rpartition("/")[2]
        about = f"{origin}, {licence or 'no licence stated'}{limited}, {trained}"
        lines.append(f"{', '.join(name(m) for m in sorted(models))}: {about}, SHA-256 {sha256[:12]}")
    return [Text("Pretrained weights:"), Bullets(tuple(lines))] if lines else []


# --- learning curves -------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """How many labels in words, images of train that have one, mean, spread over draws, number of draws."""

    labels: str
    images: int
    mean: float
    spread: float | None
    draws: int

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: all labels last."""
        return self.labels == "all", self.images, natural(self.labels)


@dataclass(frozen=True, slots=True)
class Curve:
    """One network and way on one dataset, by the amount of labels."""

    dataset: str
    pixels: str
    network: str
    way: str
    points: tuple[Amount, ...]


def learning_curves(records: Iterable[Record]) -> list[Curve]:
    """Curves of whatever ran with few labels; where it also ran with all of them, that is the last point."""

    def of_curve(record: Record) -> tuple[str, str, str, str, str]:
        spec = record["spec"]
        fed = f"{spec['size']}→" if spec["size"] != spec["resolution"] else ""
        settings = json.dumps([spec.get(name) for name in SETTINGS], sort_keys=True)
        network = bare_model(str(spec["model"]))
        return str(spec["dataset"]), f"{fed}{spec['resolution']} px", network, way_of(spec), settings

    done = [r for r in records if r["kind"] == "accuracy" and r["status"] == "ok"]
    done = [r for r in done if known(r["metrics"].get(RANKING.field))]
    sizes = grouped(done, lambda r: (str(r["spec"]["dataset"]), few_labels(r["spec"])))
    curves = []
    for (dataset, pixels, network, way, _), own in grouped(done, of_curve).items():
        amounts = grouped(own, lambda r: few_labels(r["spec"]))
        points = []
        for labels, members in amounts.items():
            draws = grouped(members, lambda r: int(r["spec"].get("draw") or 0))
            means = [fmean(float(r["metrics"][RANKING.field]) for r in draw) for draw in draws.values()]
            found = (r["metrics"].get("labelled_train") for r in sizes[dataset, labels])
            counts = [int(n) for n in found if known(n)]
            spread = stdev(means) if len(means) > 1 else None
            images = round(fmean(counts)) if counts else 0
            points.append(Amount(labels or "all", images, fmean(means), spread, len(means)))
        if set(amounts) != {""}:
            curves.append(Curve(dataset, pixels, network, way, tuple(sorted(points, key=lambda p: p.order))))
    return sorted(curves, key=lambda c: (natural(c.dataset), c.pixels, -c.points[-1].mean, natural(c.network), c.way))


def few_labels_section(records: Iterable[Record]) -> Section | None:
    """Learning curves as tables, one a dataset; None where everything had all labels."""
    curves = learning_curves(records)
    if not curves:
        return None
    text = (
        f"Test {RANKING.label}, mean over draws of the labels ± their standard deviation (seeds averaged first). "
        "Training and validation have as few labels; the test split is whole. `bench report` draws the curves."
    )
    blocks: list[Block] = [Text(text)]
    for (dataset, pixels), own in grouped(curves, lambda c: (c.dataset, c.pixels)).items():
        amounts = grouped(sorted((p for c in own for p in c.points), key=lambda p: p.order), lambda p: p[:2])
        columns = [Column("network", left=True, code=True), Column("used", left=True)]
        columns += [Column(f"{labels} ({n} images)" if n else labels, drop=1) for labels, n in amounts]
        lines = []
        for curve in own:
            have = {point[:2]: point for point in curve.points}
            lines.append((curve.network, curve.way, *(_point(have.get(amount)) for amount in amounts)))
        blocks += [Text(f"{name(dataset)}, {pixels}:"), Table(columns, lines)]
    return Section("Few labels", blocks)


def _point(point: Amount | None) -> str:
    if point is None:
        return MISSING
    return f"{point.mean:.3f} ± {point.spread:.3f}" if point.spread is not None else f"{point.mean:.3f}"

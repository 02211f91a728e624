"""The figures of a run as PNG and SVG under ``figures/``: which there are, and what each shows.

They are made by ``bench report RUN``, not with the boards: drawing takes a good part of a second each. Same run, same
bytes: no dates, no random identifiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from bench.metrics.registry import METRICS, RANKING
from bench.record.paths import history_path, predictions_path
from bench.record.store import StoreError, atomic_write
from bench.record.types import Record
from bench.report.clinical.lesions import lesion_curve
from bench.report.clinical.points import curve
from bench.report.figures import draw
from bench.report.figures.draw import Axis, Curve, Panel, Point, Rank
from bench.report.rows import Code, Row, family_of
from bench.report.sections.accuracy import front
from bench.report.sections.efficiency import cost_beside
from bench.report.sections.growth import curves
from bench.report.sections.tracks import learning_curves
from bench.report.settings import by_setting
from bench.report.standings import Overall, ReportData
from bench.report.words import figure as figure_of
from bench.report.words import fixed, grouped, known, natural
from bench.report.write.page_data import MEASURES, Measure, history, reliability_of, short
from bench.stats.ranking import ALPHA, Friedman, letters, tie_groups

Figure = partial[None]  # a function of draw.py with all but the canvas
MAX_PANELS = 24  # of confusion matrices and reliability curves, the best models first
MAX_CURVES = 14
MAX_EPOCHS = 300
MAX_NAME = 70
SCALED = "Solid: as the model gives it. Dotted: after temperature scaling on validation. Dashed: perfect."
KINDS = (
    "labels", "pareto", "ranks", "difference", "scaling", "training", "confusion", "reliability", "decision", "lesions",
)  # fmt: skip
_BESIDE = {"latency": "latency_ms", "flops": "macs_g", "memory": "memory_mib"}  # a measure's name in ``cost_beside``


def write_figures(report: ReportData, out: Path) -> list[Path]:
    """Draw every figure of a run into ``out/figures`` as PNG and SVG, and remove those of an earlier state of the run.

    Args:
        report: its Records, rows and boards.
        out: the run directory; ``history/`` and ``predictions/`` are read where they are there.

    Returns:
        The files written, in order.

    Raises:
        StoreError: ``out/figures`` cannot be written.
    """
    paths, folder = [], out / "figures"
    for name, figure in figures(report, out):
        for suffix, data in draw.render(figure).items():
            path = folder / f"{name}.{suffix}"
            atomic_write(path, data)
            paths.append(path)
    for path in sorted(folder.glob("*_*.png")) + sorted(folder.glob("*_*.svg")):
        if path not in paths and path.name.split("_")[0] in KINDS:
            try:
                path.unlink()
            except OSError as error:
                raise StoreError(f"cannot remove the old figure {path}: {error.strerror}") from error
    return paths


def figures(report: ReportData, out: Path) -> Iterator[tuple[str, Figure]]:
    """Name (of the file) and content of every figure, the names all different."""
    taken: set[str] = set()
    for parts, figure in _Figures(report, out).all():
        name = stem = slug(parts)
        i = 2
        while name in taken:
            name, i = f"{stem}-{i}", i + 1
        taken.add(name)
        yield name, figure


def slug(parts: Sequence[str]) -> str:
    """A file name of plain characters."""
    words = [re.sub(r"[^a-z0-9.]+", "-", part.lower().replace("→", "-")).strip("-.") for part in parts]
    return "_".join(word for word in words if word)[:MAX_NAME].rstrip("-_.")


def _lines(title: str, note: str, axes: tuple[Axis, Axis], *panels: Sequence[Curve]) -> Figure:
    return partial(draw.lines, title=title, note=note, axes=[axes] * len(panels), panels=panels)


class _Figures:
    """The figures of a run; colour, marker and dashes follow from the number of a model's family, as in the page."""

    def __init__(self, report: ReportData, out: Path) -> None:
        self.report, self.out = report, out
        families = {str(record["spec"]["model"]): family_of(record) for record in report.records}
        order = sorted(set(families.values()), key=lambda n: (natural(n.lower()), n))
        self.numbers = {model: order.index(family) for model, family in families.items()}
        self.families = len(order)
        self.several = len(report.boards) > 1

    def number(self, model: str) -> int:
        """The number of a model's family, by its name on a board or in a Record."""
        return self.numbers.get(model, self.numbers.get(model.partition(" (")[0], 0))

    def all(self) -> Iterator[tuple[list[str], Figure]]:
        """Parts of the name, and the figure."""
        for board in self.report.boards:
            which = self.label(board) if self.several else ""
            cost = cost_beside(self.report.records, board.protocol.resolution)
            for measure in MEASURES:
                if scatter := self.tradeoff(board, measure, *cost):
                    yield ["pareto", measure.id, which], scatter
            if ranks := self.ranks(board):
                yield ["ranks", RANKING.name, which], ranks
            if board.significance.friedman:
                yield ["difference", RANKING.name, which], self.mean_ranks(board, board.significance.friedman)
        yield from self.scaling()
        yield from self.learning()
        for board in self.report.boards:
            for dataset in board.datasets:
                rows = [s.rows[dataset] for s in board.standings if dataset in s.rows]
                rows.sort(key=lambda row: (-(row.mean(RANKING.field) or 0.0), natural(row.model)))
                title = f"{dataset}: {self.label(board)}"
                where = [dataset, self.label(board) if self.several else ""]
                yield from (([kind, *where], figure) for kind, figure in self.of_dataset(rows, title))

    @staticmethod
    def label(board: Overall) -> str:
        """A protocol in words."""
        return f"{board.protocol.pixels}, {board.protocol.training}"

    def of_dataset(self, rows: Sequence[Row], title: str) -> Iterator[tuple[str, Figure]]:
        """Kind and content of the figures of one dataset under one protocol, whose rows are given, the best first."""
        if training := self.training(rows, title):
            yield "training", training
        if decisions := self.decisions(rows, title):
            yield "decision", decisions
        by_size = [(row, points) for row in rows[:MAX_CURVES] if (points := lesion_curve(row))]
        if by_size:
            axes = Axis("diameter of the lesion (px)", logarithmic=True), Axis(f"test {RANKING.label}")
            note = "Lesions of about one diameter against all images without one; mean over seeds."
            lines = [Curve(short(row.model), self.number(row.model), tuple(points)) for row, points in by_size]
            yield "lesions", _lines(f"Lesions by size, {title}", note, axes, lines)
        if panels := self.confusions(rows):
            yield "confusion", partial(draw.grid, title=f"Confusion, {title}", panels=panels[:MAX_PANELS])
        if panels := self.reliabilities(rows):
            head = f"Reliability, {title}"
            yield "reliability", partial(draw.grid, title=head, panels=panels[:MAX_PANELS], note=SCALED)

    # --- accuracy against cost, and ranks ----------------------------------------------------------------------

    def tradeoff(
        self, board: Overall, measure: Measure, cost: Mapping[Code, Mapping[str, float | None]], note: str
    ) -> Figure | None:
        """Accuracy against one cost of the board's table, with the Pareto front."""
        key = _BESIDE.get(measure.id, measure.id)
        points = []
        for s in board.ranked:
            value = cost.get(s.code, {}).get(key)
            if value and s.score is not None:
                label, number = short(s.model), self.number(s.code[0])
                points.append(Point(value * measure.factor, s.score, label, number, *s.interval))
        if not points:
            return None
        xs = [p.x for p in points]
        kept = map(int, front({str(i): (p.y, p.x) for i, p in enumerate(points)}, measure.more))
        over = board.over.replace("`", "").removeprefix("on ")
        return partial(
            draw.scatter,
            title=f"Test {RANKING.label} ({'mean ' * (len(board.counted) > 1)}{over}) against {measure.label}",
            note=f"{note.replace('`', '')} Dashed: Pareto front. Bars: 95 % intervals.",
            x=Axis(f"{measure.label} ({measure.unit})", logarithmic=max(xs) > 5 * min(xs)),
            y=Axis(f"test {RANKING.label}"),
            points=points,
            front=sorted(kept, key=lambda i: (points[i].x, points[i].y, i)),
        )

    def ranks(self, board: Overall) -> Figure | None:
        """The places that each model can have on these test images."""
        pairs = board.significance.pairs
        if pairs is None or len(pairs.models) < 2:
            return None
        groups, places = pairs.letters(), pairs.ranks()
        ranks = [Rank(short(m), self.number(m), i, *places[m], groups.get(m, ""))
                 for i, m in enumerate(pairs.models, start=1)]  # fmt: skip
        note = (
            f"{pairs.significant} of {pairs.pairs} pairs differ significantly on these test images, corrected for the "
            f"number of pairs; training again is {'' if pairs.contrast.retrained else 'not '}considered. Models that "
            "share a letter are not significantly different."
        )
        title = f"Ranks by test {board.metric.label}, with 95 % intervals"
        return partial(draw.bars, title=title, note=note, axis="rank", ranks=ranks)

    def mean_ranks(self, board: Overall, test: Friedman) -> Figure:
        """The critical-difference diagram: mean ranks over datasets."""
        half, models = test.critical_difference / 2, board.significance.friedman_models
        tied = list(letters(tie_groups(test.better) or (), test.models))
        order = sorted(range(test.models), key=lambda i: (test.mean_ranks[i], i))
        ranks = [Rank(short(models[i]), self.number(models[i]), rank := test.mean_ranks[i], rank - half, rank + half,
                      tied[i]) for i in order]  # fmt: skip
        note = (
            f"Bars are the critical difference long ({test.critical_difference:.2f}, Nemenyi). {friedman_note(test)} "
            "Models that share a letter are not significantly different."
        )
        title = f"Mean ranks over {test.datasets} datasets, with the critical difference"
        return partial(draw.bars, title=title, note=note, axis="mean rank", ranks=ranks)

    # --- scaling and learning curves ---------------------------------------------------------------------------

    def scaling(self) -> Iterator[tuple[list[str], Figure]]:
        """Each cost over the resolution, for each setting and batch."""
        for setting, members in by_setting(self.report.records).items():
            for measure in (m for m in MEASURES if m.source == "cell"):
                yield from self.over_resolution(str(setting), members, measure)

    def over_resolution(
        self, setting: str, members: Sequence[Record], measure: Measure
    ) -> Iterator[tuple[list[str], Figure]]:
        """One cost of each model, for each batch that was measured at several resolutions."""
        found = curves(members, lambda record: figure_of(record["metrics"], measure.metric))
        for batch, models in grouped(sorted(found, key=lambda k: natural(k[0])), lambda k: k[1]).items():
            sides = sorted({side for model in models for side in found[model]})
            if len(sides) < 2:
                continue
            lines = []
            for model in models:
                points = tuple((float(side), measure.factor * y) for side, y in sorted(found[model].items()))
                lines.append(Curve(short(model[0]), self.number(model[0]), points))
            axes = Axis("resolution (px)", True, tuple(sides)), Axis(f"{measure.label} ({measure.unit})", True)
            figure = _lines(f"{measure.label} over resolution", f"{setting}, batch {batch}", axes, lines)
            yield ["scaling", measure.id, f"b{batch} {setting}"], figure

    def learning(self) -> Iterator[tuple[list[str], Figure]]:
        """Learning curves of each dataset: a line per network and way over the number of labelled images."""
        axes = Axis("images with a label (training split)", logarithmic=True), Axis(f"test {RANKING.label}")
        found = learning_curves(self.report.records)
        for (dataset, pixels), own in grouped(found, lambda one: (one.dataset, one.pixels)).items():
            lines = [
                Curve(f"{one.network.removeprefix('timm:')}, {one.way}", number, points)
                for number, one in enumerate(own[:MAX_CURVES])
                if len(points := tuple((float(p.images), p.mean) for p in one.points if p.images)) > 1
            ]
            if lines:
                title = f"Few labels: {dataset}, {pixels}, mean over draws"
                yield ["labels", dataset, pixels], _lines(title, "", axes, lines)

    # --- trainings and predictions of one dataset --------------------------------------------------------------

    def training(self, rows: Sequence[Row], title: str) -> Figure | None:
        """Validation and loss over epochs, one line per seed, of which one has the name."""
        shown = {f"val_{RANKING.name}": f"validation {RANKING.label}", "train_loss": "training loss"}
        panels: dict[str, list[Curve]] = {metric: [] for metric in shown}
        for row in rows:
            for i, record in enumerate([*row.ok, *row.other]):
                read = history(history_path(self.out, record["key"]), MAX_EPOCHS)
                for metric, panel in panels.items():
                    pairs = zip(read.get("epoch", ()), read.get(metric, ()), strict=False)
                    if points := tuple((x, y) for x, y in pairs if known(x) and known(y)):
                        panel.append(Curve("" if i else short(row.model), self.number(row.model), points))
        drawn = {metric: panel for metric, panel in panels.items() if panel}
        axes = [(Axis("epoch", whole=True), Axis(shown[metric])) for metric in drawn]
        head = "Training curves, one line per seed"
        return partial(draw.lines, title=head, note=title, axes=axes, panels=list(drawn.values())) if drawn else None

    def decisions(self, rows: Sequence[Row], title: str) -> Figure | None:
        """Net benefit against the probability from which one treats; treating nobody is 0."""
        found = [(row, both) for row in rows if (both := curve(row, self.report.rule))]
        if not found:
            return None
        least = -0.1 * max(y for _, (own, _) in found for _, y in own) - 0.02
        named = [("treat all", self.families, found[0][1][1])]
        named += [(short(row.model), self.number(row.model), own) for row, (own, _) in found]
        lines = [Curve(label, n, tuple((x, y) for x, y in points if y >= least)) for label, n, points in named]
        axes = Axis("threshold probability (treat from here)"), Axis("net benefit")
        note = "Net benefit in true positives per patient; treating nobody is 0."
        return _lines(f"Decision curves, {title}", note, axes, [line for line in lines if line.points])

    def confusions(self, rows: Sequence[Row]) -> list[Panel]:
        """A table a model, its trainings added up; not of several labels."""
        panels: list[Panel] = []
        for row in rows:
            tables = [t for r in row.ok if (t := r["metrics"].get("test_confusion")) and np.ndim(t) == 2]
            if tables and all(len(t) == len(tables[0]) for t in tables):
                counts = np.sum(tables, axis=0).tolist()
                classes = row.classes if len(row.classes) == len(counts) else ()
                panels.append((short(row.model), partial(draw.confusion, counts=counts, classes=classes)))
        return panels

    def reliabilities(self, rows: Sequence[Row]) -> list[Panel]:
        """Seeds are drawn apart: the mean of two curves would be better calibrated than either."""
        panels: list[Panel] = []
        for row in rows:
            pairs = zip_longest(row.ok, row.clinical)  # of a Record without validation's scores nothing is scaled
            read = [
                reliability_of(predictions_path(self.out, r["key"]), c.temperature if c else None) for r, c in pairs
            ]
            bins, scaled = ([b for own in read if (b := own.get(name))] for name in ("reliability", "calibrated"))
            if bins:
                title = f"{short(row.model)}, ECE {fixed(row.mean(METRICS['ece'].field))}"
                drawn = partial(draw.reliability, bins=bins, scaled=scaled, number=self.number(row.model))
                panels.append((title, drawn))
        return panels


def friedman_note(test: Friedman) -> str:
    """What the bars allow to say: without Friedman's test behind them, bars apart say nothing."""
    if test.p < ALPHA:
        return f"Where two do not overlap, the models differ over datasets like these; Friedman's p = {test.p:.2g}."
    return f"Friedman's p = {test.p:.2g}: no difference in rank is significant, also where bars lie apart."

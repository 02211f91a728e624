"""The figures of a run as PNG and SVG under ``figures/``: which there are, from the document behind ``report.html``.

They are made by ``bench report RUN``, not with the boards: drawing takes a good part of a second each. Same run, same
bytes: no dates, no random identifiers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import TypeGuard

import numpy as np

from bench.metrics.registry import RANKING
from bench.record.store import StoreError, atomic_write
from bench.report.figures import draw
from bench.report.figures.draw import Axis, Curve, Panel, Point, Rank
from bench.report.sections.accuracy import front
from bench.report.words import fixed, grouped, known, natural
from bench.report.write.page_data import Document

Figure = partial[None]  # a function of draw.py with all but the canvas
MAX_PANELS = 24
MAX_CURVES = 14
MAX_NAME = 70
Place = tuple[int, int, int]  # setting, resolution, batch
RANK = ("x", "low", "high", "groups")


def write_figures(document: Document, folder: Path) -> list[Path]:
    """Draw every figure of a run into ``folder`` as PNG and SVG, and remove those of an earlier state of the run.

    Args:
        document: as :func:`bench.report.write.page_data.collect` gives it.
        folder: ``RUN/figures``.

    Returns:
        The files written, in order.

    Raises:
        StoreError: ``folder`` cannot be written.
    """
    paths = []
    for name, figure in figures(document):
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


SCALED = "Solid: as the model gives it. Dotted: after temperature scaling on validation. Dashed: perfect."
KINDS = (
    "labels",
    "pareto",
    "ranks",
    "difference",
    "scaling",
    "training",
    "confusion",
    "reliability",
    "decision",
    "lesions",
)


def figures(document: Document) -> Iterator[tuple[str, Figure]]:
    """Name (of the file) and content of every figure, the names all different."""
    taken: set[str] = set()
    for parts, figure in _Figures(document).all():
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


def _lines(title: str, note: str, axes: Sequence[tuple[Axis, Axis]], panels: Sequence[Sequence[Curve]]) -> Figure:
    return partial(draw.lines, title=title, note=note, axes=axes, panels=panels)


def _positive(value: object) -> TypeGuard[float]:
    return known(value) and value > 0


def _batch(batch: int) -> str:
    return f"batch {batch}" if batch else "the largest batch that fits"


def _place(cell: Document) -> Place:
    spec = cell["spec"]
    return cell["setting"], int(spec["resolution"]), int(spec.get("batch") or 0)


class _Figures:
    """The figures of a document; colour, marker and dashes follow from the number of a family, as in the page."""

    def __init__(self, document: Document) -> None:
        self.document, self.cells, self.protocols = document, document["cells"], document["protocols"]
        self.timed = [cell for cell in self.cells if cell["kind"] == "efficiency" and cell["status"] == "ok"]
        families = {code["family"] for code in document["codes"]}
        self.families = {f: i for i, f in enumerate(sorted(families, key=lambda n: (natural(n.lower()), n)))}

    def label(self, line: Document) -> str:
        """The short name of a model, of whatever refers to one."""
        code = self.document["codes"][line["code"]]
        return str(code["short"] if line["model"] == code["name"] else line["model"])

    def number(self, line: Document) -> int:
        """The number of its family."""
        return self.families[self.document["codes"][line["code"]]["family"]]

    def all(self) -> Iterator[tuple[list[str], Figure]]:
        """Parts of the name, and the figure."""
        several = len(self.protocols) > 1
        for index, protocol in enumerate(self.protocols):
            which = protocol["label"] if several else ""
            for measure in self.document["measures"]:
                if scatter := self.tradeoff(index, measure):
                    yield ["pareto", measure["id"], which], scatter
            for order in protocol["orders"]:
                yield ["ranks" if order["axis"] == "rank" else "difference", RANKING.name, which], self.bars(order)
        yield from self.scaling()
        yield from self.learning()
        for (index, dataset), rows in self.groups().items():
            protocol = self.protocols[index]["label"]
            where, title = [dataset, protocol if several else ""], f"{dataset}: {protocol}"
            if lines := self.training(rows, title):
                yield ["training", *where], lines
            if lines := self.decisions(rows, title):
                yield ["decision", *where], lines
            if lines := self.lesions(rows, title):
                yield ["lesions", *where], lines
            for kind, panels, note in (
                ("confusion", self.confusions(rows), ""), ("reliability", self.reliabilities(rows), SCALED)
            ):  # fmt: skip
                for page, start in enumerate(range(0, len(panels), MAX_PANELS)):
                    shown, head = panels[start : start + MAX_PANELS], f"{kind.capitalize()}, {title}"
                    figure = partial(draw.grid, title=head, panels=shown, note=note)
                    yield [kind, *where, f"{page + 1}" if page else ""], figure

    # --- accuracy against cost ---------------------------------------------------------------------------------

    def place_of_cost(self, protocol: Document) -> Place | None:
        """Where cost is read beside a protocol's accuracy.

        Inference before training steps, the resolution nearest to the protocol's, the most models, the larger batch.
        """
        found: dict[Place, set[int]] = defaultdict(set)
        for cell in self.timed:
            found[_place(cell)].add(cell["code"])
        wanted, settings = protocol["resolution"] or 1, self.document["settings"]

        def order(place: Place) -> tuple[object, ...]:
            setting, resolution, batch = place
            training = not settings[setting].startswith("inference")
            return training, abs(log(resolution / wanted)), -len(found[place]), setting, -batch

        return min(found, key=order, default=None)

    def tradeoff(self, index: int, measure: Document) -> Figure | None:
        """Accuracy against one cost, with the Pareto front."""
        protocol = self.protocols[index]
        place = self.place_of_cost(protocol)
        points = []
        for line in protocol["standings"]:
            cost = self.cost(index, line, measure, place)
            if line["place"] is not None and cost is not None and known(line[RANKING.name]):
                bounds = (line[f"{RANKING.name}_{end}"] for end in ("low", "high"))
                points.append(Point(cost, line[RANKING.name], self.label(line), self.number(line), *bounds))
        if not points:
            return None
        over = protocol["counted"][0] if len(protocol["counted"]) == 1 else f"mean {protocol['over']}"
        note = ""
        if measure["source"] == "cell" and place:
            note = f"Cost at {place[1]} px, {_batch(place[2])}: {self.document['settings'][place[0]]}. "
        xs = [p.x for p in points]
        kept = map(int, front({str(i): (p.y, p.x) for i, p in enumerate(points)}, bool(measure["more"])))
        return partial(
            draw.scatter,
            title=f"Test {RANKING.label} ({over}) against {measure['label']}",
            note=f"{note}Dashed: Pareto front. Bars: 95 % intervals.",
            x=Axis(measure["label"], measure["unit"], logarithmic=max(xs) > 5 * min(xs)),
            y=Axis(f"test {RANKING.label}"),
            points=points,
            front=sorted(kept, key=lambda i: (points[i].x, points[i].y, i)),
        )

    def cost(self, protocol: int, line: Document, measure: Document, place: Place | None) -> float | None:
        """What one model costs: in a row of its trainings, or in an efficiency Cell at ``place``."""
        metric = measure["metric"]
        if measure["source"] == "row":
            rows = [r for r in self.document["rows"] if r["protocol"] == protocol and r["model"] == line["model"]]
            values = [r[metric] for r in rows if _positive(r.get(metric))]
            return sum(values) / len(values) * measure["factor"] if values else None
        same = (cell["metrics"].get(metric) for cell in self.timed
                if cell["code"] == line["code"] and _place(cell) == place)  # fmt: skip
        return next((float(value * measure["factor"]) for value in same if _positive(value)), None)

    def bars(self, order: Document) -> Figure:
        """Ranks with the range that each model can have."""
        ranks = [Rank(self.label(line), self.number(line), *(line[n] for n in RANK)) for line in order["lines"]]
        return partial(draw.bars, title=order["title"], note=order["note"], axis=order["axis"], ranks=ranks)

    # --- scaling -----------------------------------------------------------------------------------------------

    def scaling(self) -> Iterator[tuple[list[str], Figure]]:
        """Each cost over the resolution, for each setting and batch."""
        groups = grouped(self.timed, lambda cell: _place(cell)[::2])
        for (setting, batch), cells in sorted(groups.items()):
            sides = sorted({_place(cell)[1] for cell in cells})
            title = self.document["settings"][setting]
            which = f"b{batch or '-largest'} {title}" if len(groups) > 1 else ""
            for measure in self.document["measures"] if len(sides) > 1 else ():
                curves = self.over_resolution(cells, measure)
                if measure["source"] == "cell" and curves:
                    axes = Axis("resolution", "px", True, tuple(sides)), Axis(measure["label"], measure["unit"], True)
                    head = f"{measure['label']} over resolution"
                    figure = _lines(head, f"{title}, {_batch(batch)}", [axes], [curves])
                    yield ["scaling", measure["id"], which], figure

    def over_resolution(self, cells: Sequence[Document], measure: Document) -> list[Curve]:
        """One cost of each model."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        of: dict[str, Document] = {}
        for cell in cells:
            value = cell["metrics"].get(measure["metric"])
            if _positive(value):
                found[cell["model"]][_place(cell)[1]] = value * measure["factor"]
                of[cell["model"]] = cell
        order = sorted(found, key=lambda model: (natural(model), model))
        return [Curve(self.label(of[m]), self.number(of[m]), tuple(sorted(found[m].items()))) for m in order]

    # --- trainings and predictions -----------------------------------------------------------------------------

    def groups(self) -> dict[tuple[int, str], list[Document]]:
        """Rows by protocol and dataset, the best first."""
        best = RANKING.name

        def order(row: Document) -> tuple[object, ...]:
            return -(row[best] if known(row[best]) else -1), natural(row["model"]), row["model"]

        found = grouped(self.document["rows"], lambda row: (row["protocol"], row["dataset"]))
        return {key: sorted(rows, key=order) for key, rows in found.items()}

    def learning(self) -> Iterator[tuple[list[str], Figure]]:
        """Learning curves of each dataset: a line per network and way over the number of labelled images."""
        groups = grouped(self.document["learning"], lambda curve: (curve["dataset"], curve["pixels"]))
        axes = Axis("images with a label", "training split", logarithmic=True), Axis(f"test {RANKING.label}")
        for (dataset, pixels), curves in groups.items():
            panel = []
            for number, curve in enumerate(curves[:MAX_CURVES]):
                points = tuple((float(n), mean) for _, n, mean, _, _ in curve["points"] if n)
                if len(points) > 1:
                    panel.append(Curve(f"{curve['network'].removeprefix('timm:')}, {curve['way']}", number, points))
            if panel:
                title = f"Few labels: {dataset}, {pixels}, mean over draws"
                yield ["labels", dataset, pixels], _lines(title, "", [axes], [panel])

    def training(self, rows: Sequence[Document], title: str) -> Figure | None:
        """Validation and loss over epochs, one line per seed, of which one has the name."""
        axes, panels = [], []
        for name, text in (
            (f"val_{RANKING.name}", f"validation {RANKING.label}"), ("train_loss", "training loss"),
        ):  # fmt: skip
            panel = []
            for row in rows:
                for i, place in enumerate([*row["cells"], *row["other"]]):
                    history = self.cells[place].get("history") or {}
                    pairs = zip(history.get("epoch", ()), history.get(name, ()), strict=False)
                    if points := tuple((x, y) for x, y in pairs if known(x) and known(y)):
                        panel.append(Curve("" if i else self.label(row), self.number(row), points))
            if panel:
                axes.append((Axis("epoch", whole=True), Axis(text)))
                panels.append(panel)
        return _lines("Training curves, one line per seed", title, axes, panels) if panels else None

    def decisions(self, rows: Sequence[Document], title: str) -> Figure | None:
        """Net benefit against the probability from which one treats; treating nobody is 0."""
        drawn = [row for row in rows if row.get("decision")]
        if not drawn:
            return None
        least = -0.1 * max(y for row in drawn for _, y in row["decision"]) - 0.02
        named = [("treat all", len(self.families), drawn[0]["treat_all"])]
        named += [(self.label(row), self.number(row), row["decision"]) for row in drawn]
        curves = [Curve(label, n, tuple((x, y) for x, y in points if y >= least)) for label, n, points in named]
        axes = Axis("threshold probability (treat from here)"), Axis("net benefit")
        note = "Net benefit in true positives per patient; treating nobody is 0."
        return _lines(f"Decision curves, {title}", note, [axes], [[c for c in curves if c.points]])

    def lesions(self, rows: Sequence[Document], title: str) -> Figure | None:
        """AUC over the diameter of lesions, a line a model."""
        curves = [Curve(self.label(row), self.number(row), tuple(map(tuple, row["lesions"])))
                  for row in rows[:MAX_CURVES] if row.get("lesions")]  # fmt: skip
        axes = Axis("diameter of the lesion", "px", logarithmic=True), Axis(f"test {RANKING.label}")
        note = "Lesions of about one diameter against all images without one; mean over seeds."
        return _lines(f"Lesions by size, {title}", note, [axes], [curves]) if curves else None

    def confusions(self, rows: Sequence[Document]) -> list[Panel]:
        """A table a model, its trainings added up; not of several labels."""
        panels: list[Panel] = []
        for row in rows:
            found = [self.cells[place]["metrics"].get("test_confusion") for place in row["cells"]]
            tables = [t for t in found if t and isinstance(t[0], list) and known(t[0][0])]
            if tables and all(len(t) == len(tables[0]) for t in tables):
                counts = np.sum(tables, axis=0).tolist()
                named = self.cells[row["cells"][0]]["metrics"].get("classes") or ()
                classes = [str(one) for one in named] if len(named) == len(counts) else []
                panels.append((self.label(row), partial(draw.confusion, counts=counts, classes=classes)))
        return panels

    def reliabilities(self, rows: Sequence[Document]) -> list[Panel]:
        """Seeds are drawn apart: the mean of two curves would be better calibrated than either."""
        panels: list[Panel] = []
        for row in rows:
            own = [self.cells[place] for place in row["cells"]]
            bins, scaled = ([b for cell in own if (b := cell.get(name))] for name in ("reliability", "calibrated"))
            if bins:
                title = f"{self.label(row)}, ECE {fixed(row['ece'])}"
                drawn = partial(draw.reliability, bins=bins, scaled=scaled, number=self.number(row))
                panels.append((title, drawn))
        return panels

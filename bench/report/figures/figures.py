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

from bench.metrics.registry import RANKING
from bench.record.store import StoreError, atomic_write
from bench.report.blocks import fixed, known, natural
from bench.report.figures import draw
from bench.report.figures.draw import Axis, Curve, Panel, Point, Rank
from bench.report.sections.pareto import front
from bench.report.write.page_data import Document

Figure = partial[None]  # a function of draw.py with all but the canvas
MAX_PANELS = 24
MAX_CURVES = 14
MAX_NAME = 70
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
KINDS = ("labels", "pareto", "ranks", "difference", "scaling", "training", "confusion", "reliability", "decision")


def figures(document: Document) -> Iterator[tuple[str, Figure]]:
    """Name (of the file) and content of every figure, the names all different."""
    taken: set[str] = set()
    for parts, figure in _all(document):
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


def _all(document: Document) -> Iterator[tuple[list[str], Figure]]:
    colours = Colours(document)
    several = len(document["protocols"]) > 1
    for index, protocol in enumerate(document["protocols"]):
        for measure in document["measures"]:
            scatter = _tradeoff(document, index, measure, colours)
            if scatter:
                yield ["pareto", measure["id"], protocol["label"] if several else ""], scatter
        for order in protocol["orders"]:
            kind = "ranks" if order["axis"] == "rank" else "difference"
            yield [kind, RANKING.name, protocol["label"] if several else ""], _bars(document, order, colours)
    yield from _scaling(document, colours)
    yield from _learning(document)
    for (index, dataset), rows in _groups(document).items():
        which = [dataset, document["protocols"][index]["label"] if several else ""]
        title = f"{dataset}: {document['protocols'][index]['label']}"
        if lines := _training(document, rows, title, colours):
            yield ["training", *which], lines
        if lines := _decisions(document, rows, title, colours):
            yield ["decision", *which], lines
        for page, panels in enumerate(_pages(_confusions(document, rows))):
            yield (
                ["confusion", *which, f"{page + 1}" if page else ""],
                partial(draw.grid, title=f"Confusion, {title}", panels=panels),
            )
        for page, panels in enumerate(_pages(_reliabilities(document, rows, colours))):
            yield (
                ["reliability", *which, f"{page + 1}" if page else ""],
                partial(draw.grid, title=f"Reliability, {title}", panels=panels, note=SCALED),
            )


class Colours:
    """The number of each family; colour, marker and dashes follow from it, as in ``report.html``."""

    def __init__(self, document: Document) -> None:
        names = {code["family"] for code in document["codes"]}
        self.places = {name: i for i, name in enumerate(sorted(names, key=lambda n: (natural(n.lower()), n)))}

    def of(self, document: Document, code: int) -> int:
        """The number of the family of a model."""
        return self.places[document["codes"][code]["family"]]


def _lines(title: str, note: str, axes: Sequence[tuple[Axis, Axis]], panels: Sequence[Sequence[Curve]]) -> Figure:
    return partial(draw.lines, title=title, note=note, axes=axes, panels=panels)


def _label(document: Document, line: Document) -> str:
    code = document["codes"][line["code"]]
    return str(code["short"] if line["model"] == code["name"] else line["model"])


def _positive(value: object) -> TypeGuard[float]:
    return known(value) and value > 0


# --- accuracy against cost -------------------------------------------------------------------------------------


def place_of_cost(document: Document, protocol: int) -> tuple[int, int, int] | None:
    """Where cost is read beside a protocol's accuracy: (setting, resolution, batch).

    Inference before training steps, the resolution nearest to the protocol's, the most models, the larger batch.
    """
    found: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for cell in document["cells"]:
        if cell["kind"] == "efficiency" and cell["status"] == "ok":
            spec = cell["spec"]
            found[cell["setting"], int(spec["resolution"]), int(spec.get("batch") or 0)].add(cell["code"])
    wanted = document["protocols"][protocol]["resolution"] or 1
    return min(
        found,
        key=lambda p: (
            not document["settings"][p[0]].startswith("inference"), abs(log(p[1] / wanted)), -len(found[p]), p[0], -p[2]
        ),
        default=None,
    )  # fmt: skip


def _tradeoff(document: Document, index: int, measure: Document, colours: Colours) -> Figure | None:
    protocol = document["protocols"][index]
    place = place_of_cost(document, index)
    points = []
    for line in protocol["standings"]:
        cost = _cost(document, index, line, measure, place)
        if line["place"] is not None and cost is not None and known(line[RANKING.name]):
            number = colours.of(document, line["code"])
            bounds = (line[f"{RANKING.name}_{end}"] for end in ("low", "high"))
            points.append(Point(cost, line[RANKING.name], _label(document, line), number, *bounds))
    if not points:
        return None
    over = protocol["counted"][0] if len(protocol["counted"]) == 1 else f"mean {protocol['over']}"
    note = ""
    if measure["source"] == "cell" and place:
        batch = f"batch {place[2]}" if place[2] else "the largest batch that fits"
        note = f"Cost at {place[1]} px, {batch}: {document['settings'][place[0]]}. "
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


def _cost(
    document: Document, protocol: int, line: Document, measure: Document,
    place: tuple[int, int, int] | None,
) -> float | None:  # fmt: skip
    if measure["source"] == "row":
        rows = [r for r in document["rows"] if r["protocol"] == protocol and r["model"] == line["model"]]
        values = [r[measure["metric"]] for r in rows if _positive(r.get(measure["metric"]))]
        return sum(values) / len(values) * measure["factor"] if values else None
    for cell in document["cells"]:
        spec = cell["spec"]
        if cell["kind"] != "efficiency" or cell["status"] != "ok" or cell["code"] != line["code"]:
            continue
        value = cell["metrics"].get(measure["metric"])
        if (cell["setting"], spec["resolution"], spec.get("batch") or 0) == place and _positive(value):
            return float(value * measure["factor"])
    return None


def _bars(document: Document, order: Document, colours: Colours) -> Figure:
    ranks = [
        Rank(_label(document, line), colours.of(document, line["code"]), *(line[n] for n in RANK))
        for line in order["lines"]
    ]
    return partial(draw.bars, title=order["title"], note=order["note"], axis=order["axis"], ranks=ranks)


# --- scaling ---------------------------------------------------------------------------------------------------


def _scaling(document: Document, colours: Colours) -> Iterator[tuple[list[str], Figure]]:
    groups: dict[tuple[int, int], list[Document]] = defaultdict(list)
    for cell in document["cells"]:
        if cell["kind"] == "efficiency" and cell["status"] == "ok":
            groups[cell["setting"], int(cell["spec"].get("batch") or 0)].append(cell)
    for (setting, batch), cells in sorted(groups.items()):
        sides = sorted({int(cell["spec"]["resolution"]) for cell in cells})
        if len(sides) < 2:
            continue
        title = document["settings"][setting]
        which = f"b{batch or '-largest'} {title}"
        for measure in document["measures"]:
            curves = _curves_over_resolution(document, cells, measure, colours)
            if measure["source"] == "cell" and curves:
                axes = Axis("resolution", "px", True, tuple(sides)), Axis(measure["label"], measure["unit"], True)
                note = f"{title}, {f'batch {batch}' if batch else 'the largest batch that fits'}"
                lines = _lines(f"{measure['label']} over resolution", note, [axes], [curves])
                yield ["scaling", measure["id"], which if len(groups) > 1 else ""], lines


def _curves_over_resolution(
    document: Document, cells: Sequence[Document], measure: Document, colours: Colours
) -> list[Curve]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    of: dict[str, Document] = {}
    for cell in cells:
        value = cell["metrics"].get(measure["metric"])
        if _positive(value):
            found[cell["model"]][int(cell["spec"]["resolution"])] = value * measure["factor"]
            of[cell["model"]] = cell
    return [
        Curve(
            _label(document, of[model]), colours.of(document, of[model]["code"]), tuple(sorted(points.items()))
        )
        for model, points in sorted(found.items(), key=lambda item: (natural(item[0]), item[0]))
    ]  # fmt: skip


# --- trainings and predictions ---------------------------------------------------------------------------------


def _groups(document: Document) -> dict[tuple[int, str], list[Document]]:
    """Rows by protocol and dataset, the best first."""
    found: dict[tuple[int, str], list[Document]] = defaultdict(list)
    for row in document["rows"]:
        found[row["protocol"], row["dataset"]].append(row)
    for rows in found.values():
        rows.sort(key=lambda r: (-(r[RANKING.name] if known(r[RANKING.name]) else -1), natural(r["model"]), r["model"]))
    return found


def _learning(document: Document) -> Iterator[tuple[list[str], Figure]]:
    """Learning curves of each dataset: a line a network and way over the number of labelled images."""
    groups: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for curve in document["learning"]:
        groups[curve["dataset"], curve["pixels"]].append(curve)
    for (dataset, pixels), curves in groups.items():
        panel = []
        for number, curve in enumerate(curves[:MAX_CURVES]):
            points = tuple((float(n), mean) for _, n, mean, _, _ in curve["points"] if n)
            if len(points) > 1:
                panel.append(Curve(f"{curve['network'].removeprefix('timm:')}, {curve['way']}", number, points))
        if panel:
            axes = [(Axis("images with a label", "training split", logarithmic=True), Axis(f"test {RANKING.label}"))]
            title = f"Few labels: {dataset}, {pixels}, mean over draws"
            yield ["labels", dataset, pixels], _lines(title, "", axes, [panel])


def _training(document: Document, rows: Sequence[Document], title: str, colours: Colours) -> Figure | None:
    panels: list[list[Curve]] = []
    names = {f"val_{RANKING.name}": f"validation {RANKING.label}", "train_loss": "training loss"}
    for curve in names:
        panel = []
        for row in rows:
            for i, place in enumerate([*row["cells"], *row["other"]]):
                history = document["cells"][place].get("history") or {}
                pairs = zip(history.get("epoch", ()), history.get(curve, ()), strict=False)
                points = tuple((x, y) for x, y in pairs if known(x) and known(y))
                label = "" if i else _label(document, row)  # one name for all seeds
                if points:
                    panel.append(Curve(label, colours.of(document, row["code"]), points))
        panels.append(panel)
    if not any(panels):
        return None
    axes = [(Axis("epoch", whole=True), Axis(text)) for text in names.values()]
    shown = [(pair, panel) for pair, panel in zip(axes, panels, strict=True) if panel]
    return _lines("Training curves, one line a seed", title, [pair for pair, _ in shown], [panel for _, panel in shown])


def _decisions(document: Document, rows: Sequence[Document], title: str, colours: Colours) -> Figure | None:
    """Net benefit against the chance from which one treats; treating nobody is 0."""
    curves = [
        Curve(_label(document, row), colours.of(document, row["code"]), tuple((x, y) for x, y in row["decision"]))
        for row in rows
        if row.get("decision")
    ]
    if not curves:
        return None
    everybody = next(row["treat_all"] for row in rows if row.get("treat_all"))
    least = -0.1 * max(y for curve in curves for _, y in curve.points) - 0.02
    kept = [tuple((x, y) for x, y in points if y >= least) for points in (everybody, *(c.points for c in curves))]
    shown = [Curve("treat all", len(colours.places), kept[0])]
    shown += [Curve(c.label, c.number, points) for c, points in zip(curves, kept[1:], strict=True) if points]
    axes = (Axis("chance from which one treats"), Axis("net benefit"))
    return _lines(
        f"Decision curves, {title}", "Net benefit in true positives a patient; treating nobody is 0.", [axes], [shown]
    )


def _confusions(document: Document, rows: Sequence[Document]) -> list[Panel]:
    panels: list[Panel] = []
    for row in rows:
        found = [document["cells"][place]["metrics"].get("test_confusion") for place in row["cells"]]
        tables = [t for t in found if t and isinstance(t[0], list) and known(t[0][0])]
        if tables and all(len(t) == len(tables[0]) for t in tables):
            size = range(len(tables[0]))
            counts = [[sum(t[i][j] for t in tables) for j in size] for i in size]
            panels.append((_label(document, row), partial(draw.confusion, counts=counts)))
    return panels


def _reliabilities(document: Document, rows: Sequence[Document], colours: Colours) -> list[Panel]:
    panels: list[Panel] = []
    for row in rows:
        # Seeds are drawn apart: the mean of two curves would be better calibrated than either.
        curves = [bins for place in row["cells"] if (bins := document["cells"][place].get("reliability"))]
        if curves:
            scaled = [bins for place in row["cells"] if (bins := document["cells"][place].get("calibrated"))]
            title = f"{_label(document, row)}, ECE {fixed(row['ece'])}"
            number = colours.of(document, row["code"])
            panels.append((title, partial(draw.reliability, bins=curves, scaled=scaled, number=number)))
    return panels


def _pages(panels: list[Panel]) -> list[list[Panel]]:
    return [panels[i : i + MAX_PANELS] for i in range(0, len(panels), MAX_PANELS)]

"""The contact sheet of a dataset as a picture: images of every class and split, and the pairs that look the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from textwrap import shorten

import numpy as np
import numpy.typing as npt

from bench.data.cache import load_splits
from bench.data.decode import fit
from bench.data.inspect.scan import Inspection, pick
from bench.data.look import SPLITS
from bench.data.resize import nearest_index
from bench.registry import legible

TILE, STEP, MARGIN, LINE = 84, 88, 16, 15  # pixels: an image, from one to the next
PER_SPLIT = {"train": 8, "val": 4, "test": 4}
MOST_CLASSES, MOST_PAIRS, PAIRS_A_ROW = 24, 12, 4
LABELS = 190  # width of the column of class names
ALARM = (170, 30, 30)

Pixels = npt.NDArray[np.uint8]


def draw_sheet(found: Inspection, root: Path | None, path: Path) -> None:
    """Write the contact sheet of an inspected dataset as PNG.

    Args:
        found: what :func:`bench.data.inspect.scan.inspect` returned.
        root: the data root it was given.
        path: where to; its folder is made.
    """
    info = found.info
    classes = info.classes[:MOST_CLASSES]
    splits = load_splits(info, found.size or TILE, root)
    chosen = {name: _chosen(np.asarray(splits[name].labels), len(classes), PER_SPLIT[name]) for name in SPLITS}
    pairs = (found.equal[: MOST_PAIRS // 2] + found.near)[:MOST_PAIRS]  # exact copies first
    tiles: dict[tuple[str, int], Pixels] = {}
    for name in SPLITS:
        wanted = {index for of_class in chosen[name] for index in of_class}
        wanted |= {member.row for pair in pairs for member in pair[:2] if member.split == name}
        images = pick(info, name, splits[name], found.size or TILE, sorted(wanted))
        tiles |= {(name, index): _tile(image) for index, image in images.items()}

    top = MARGIN + 4 * LINE
    below = top + len(classes) * STEP + MARGIN  # where the pairs begin
    rows = -(-len(pairs) // PAIRS_A_ROW)
    width = 2 * MARGIN + LABELS + sum(PER_SPLIT.values()) * STEP + (len(SPLITS) - 1) * MARGIN
    sheet = _Sheet(width, below + (3 * LINE + rows * (STEP + 3 * LINE) + MARGIN if pairs else 0))
    sheet.write(MARGIN, MARGIN, f"{info.name}{f' at {found.size} pixels' if found.size else ''}", width, size=16)
    left = MARGIN + LABELS
    for name in SPLITS:
        room = PER_SPLIT[name] * STEP
        sheet.write(left, MARGIN + 2 * LINE, f"{name}: {found.images[name]:,} images", room, "gray")
        for row in range(len(classes)):
            for place, index in enumerate(chosen[name][row]):
                sheet.paste(left + place * STEP, top + row * STEP, tiles.get((name, index)))
            if not chosen[name][row]:
                sheet.paste(left, top + row * STEP + TILE // 2 - 3, np.full((6, TILE, 3), ALARM, np.uint8))
                sheet.write(left, top + row * STEP + TILE // 2 + 6, "none", TILE, "firebrick")
        left += room + MARGIN
    for row, label in enumerate(classes):
        y = top + row * STEP + TILE // 2
        sheet.write(MARGIN, y - LINE, label, LABELS, size=13)
        sheet.write(MARGIN, y + 2, " / ".join(f"{found.counts[name][label]:,}" for name in SPLITS), LABELS, "gray")
    if pairs:
        sheet.write(MARGIN, below, "the same, or nearly the same, in two splits", width, "firebrick", 14)
    for number, pair in enumerate(pairs):
        step = (width - 2 * MARGIN) // PAIRS_A_ROW
        x = MARGIN + number % PAIRS_A_ROW * step
        y = below + 2 * LINE + number // PAIRS_A_ROW * (STEP + 3 * LINE)
        said = f"correlation {pair.correlation:.2f}" if pair.bits or pair.correlation < 1 else "same pixels"
        said += " - labels differ" if pair.first.label != pair.second.label else ""
        for place, member in enumerate(pair[:2]):
            sheet.paste(x + place * STEP, y, tiles.get((member.split, member.row)))
        for place, line in enumerate((said, str(pair.first), str(pair.second))):
            sheet.write(x, y + TILE + 3 + place * 13, line, step, "gray" if place else "black", 10)
    sheet.save(path)


class _Sheet:
    """A white page in pixels; x and y from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.figure import Figure

        self._page = np.full((height, width, 3), 255, np.uint8)
        self._figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def paste(self, x: int, y: int, image: Pixels | None) -> None:
        if image is not None:
            self._page[y : y + image.shape[0], x : x + image.shape[1]] = image

    def write(self, x: int, y: int, text: str, room: int, colour: str = "black", size: int = 11) -> None:
        """Write one line, cut to about ``room`` pixels."""
        height, width = self._page.shape[:2]
        text = legible(text)
        short = shorten(text, max(8, round(room / size * 1.8)), placeholder="…")
        said = short if len(short) > 1 else f"{text[: round(room / size * 1.8)]}…"
        where = x / width, 1 - y / height
        self._figure.text(*where, said, color=colour, fontsize=0.72 * size, va="top", parse_math=False)

    def save(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        canvas = FigureCanvasAgg(self._figure)
        self._figure.figimage(self._page)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font lacks
            canvas.draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, "PNG", optimize=True)


def _tile(image: Pixels) -> Pixels:
    """One image in its proportions on a square; small ones are enlarged, pixels showing."""
    colour = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    if max(colour.shape[:2]) < TILE:
        height, width = (max(1, side * TILE // max(colour.shape[:2])) for side in colour.shape[:2])
        rows, columns = nearest_index(colour.shape[0], height), nearest_index(colour.shape[1], width)
        colour = colour[rows][:, columns]
    return fit(np.ascontiguousarray(colour), (TILE, TILE, 3), "pad")


def _chosen(labels: npt.NDArray[np.int64], classes: int, count: int) -> list[list[int]]:
    """For each class up to ``count`` of its images, evenly spread over the split."""
    found = []
    for index in range(classes):
        have = np.flatnonzero(labels[:, index] if labels.ndim == 2 else labels == index)
        found.append([int(i) for i in have[np.linspace(0, len(have) - 1, min(count, len(have))).round().astype(int)]])
    return found

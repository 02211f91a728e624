"""The contact sheet of a dataset as a picture: images of every class and split, and the pairs that look the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.data.cache import load_splits
from bench.data.decode import fit
from bench.data.inspect.scan import Inspection, Pair, pick
from bench.data.look import SPLITS
from bench.data.resize import nearest_index

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

TILE, GAP, MARGIN = 84, 4, 16
PER_SPLIT = {"train": 8, "val": 4, "test": 4}
MOST_CLASSES, MOST_PAIRS, PAIRS_A_ROW = 24, 12, 4
LABELS = 190  # width of the column of class names
LINE = 15
_PAPER, _INK, _FAINT, _ALARM = (255, 255, 255), (25, 25, 25), (120, 120, 120), (170, 30, 30)


def draw_sheet(found: Inspection, root: Path | None, path: Path) -> None:
    """Write the contact sheet of an inspected dataset as PNG.

    Args:
        found: what :func:`bench.data.inspect.scan.inspect` returned.
        root: the data root it was given.
        path: where to; its folder is made.
    """
    from PIL import Image, ImageDraw

    info = found.info
    classes = info.classes[:MOST_CLASSES]
    splits = load_splits(info, found.size or TILE, root)
    chosen = {name: _chosen(np.asarray(splits[name].labels), len(classes), PER_SPLIT[name]) for name in SPLITS}
    pairs = (found.equal[: MOST_PAIRS // 2] + found.near)[:MOST_PAIRS]  # exact copies first
    tiles: dict[tuple[str, int], Image.Image] = {}
    for name in SPLITS:
        wanted = {index for of_class in chosen[name] for index in of_class}
        wanted |= {member.row for pair in pairs for member in pair[:2] if member.split == name}
        images = pick(info, name, splits[name], found.size or TILE, sorted(wanted))
        tiles |= {(name, index): _tile(image) for index, image in images.items()}

    columns = sum(PER_SPLIT.values())
    width = 2 * MARGIN + LABELS + columns * (TILE + GAP) + (len(SPLITS) - 1) * MARGIN
    pair_rows = -(-len(pairs) // PAIRS_A_ROW)
    top = MARGIN + 4 * LINE
    height = top + len(classes) * (TILE + GAP) + MARGIN
    height += (3 * LINE + pair_rows * (TILE + 3 * LINE + GAP) + MARGIN) if pairs else 0
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, found, width)
    _classes(sheet, pen, found, classes, chosen, tiles, top)
    if pairs:
        _draw_pairs(sheet, pen, pairs, tiles, top + len(classes) * (TILE + GAP) + MARGIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)


def _font(size: int) -> FreeTypeFont | ImageFont:
    """A font with many alphabets: the one that comes with matplotlib."""
    from PIL.ImageFont import load_default, truetype

    spec = importlib.util.find_spec("matplotlib")
    folder = next(iter(spec.submodule_search_locations or ()), "") if spec else ""
    path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return truetype(str(path), size) if path.is_file() else load_default(size)


def _fitted(text: str, width: int, size: int) -> str:
    """Cut ``text`` in its middle until it is no wider than ``width`` pixels."""
    font, short, cut = _font(size), text, 0
    while font.getlength(short) > width and cut < len(text):
        cut += 1
        keep = (len(text) - cut) // 2
        short = f"{text[:keep]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - keep :]}"
    return short


def _tile(image: npt.NDArray[np.uint8]) -> Image:
    """One image in its proportions on a square; small ones are enlarged, pixels showing."""
    from PIL import Image

    colour = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    if max(colour.shape[:2]) < TILE:
        height, width = (max(1, side * TILE // max(colour.shape[:2])) for side in colour.shape[:2])
        rows, columns = nearest_index(colour.shape[0], height), nearest_index(colour.shape[1], width)
        colour = colour[rows][:, columns]
    return Image.fromarray(fit(np.ascontiguousarray(colour), (TILE, TILE, 3), "pad"))


def _chosen(labels: npt.NDArray[np.int64], classes: int, count: int) -> list[list[int]]:
    """For each class up to ``count`` of its images, evenly spread over the split."""
    found = []
    for index in range(classes):
        have = np.flatnonzero(labels[:, index] if labels.ndim == 2 else labels == index)
        found.append([int(i) for i in have[np.linspace(0, len(have) - 1, min(count, len(have))).round().astype(int)]])
    return found


def _head(pen: ImageDraw, found: Inspection, width: int) -> None:
    info = found.info
    title = f"{info.name}" + (f" at {found.size} pixels" if found.size else "")
    pen.text((MARGIN, MARGIN), _fitted(title, width - 2 * MARGIN, 16), _INK, _font(16))
    left = MARGIN + LABELS
    for name in SPLITS:
        said = f"{name}: {found.images[name]:,} images"
        room = PER_SPLIT[name] * (TILE + GAP)
        pen.text((left, MARGIN + 2 * LINE), _fitted(said, room, 12), _FAINT, _font(12))
        left += room + MARGIN


def _classes(
    sheet: Image,
    pen: ImageDraw,
    found: Inspection,
    classes: Sequence[str],
    chosen: dict[str, list[list[int]]],
    tiles: dict[tuple[str, int], Image],
    top: int,
) -> None:
    for row, name in enumerate(classes):
        y = top + row * (TILE + GAP)
        pen.text((MARGIN, y + TILE // 2 - LINE), _fitted(name, LABELS - 10, 13), _INK, _font(13))
        counts = " / ".join(f"{found.counts[split][name]:,}" for split in SPLITS)
        pen.text((MARGIN, y + TILE // 2 + 2), counts, _FAINT, _font(11))
        x = MARGIN + LABELS
        for split in SPLITS:
            if not chosen[split][row]:
                pen.text((x, y + TILE // 2 - 6), "none", _ALARM, _font(12))
            for place, index in enumerate(chosen[split][row]):
                if (split, index) in tiles:
                    sheet.paste(tiles[split, index], (x + place * (TILE + GAP), y))
            x += PER_SPLIT[split] * (TILE + GAP) + MARGIN


def _draw_pairs(
    sheet: Image,
    pen: ImageDraw,
    pairs: Sequence[Pair],
    tiles: dict[tuple[str, int], Image],
    top: int,
) -> None:
    pen.text((MARGIN, top), "the same, or nearly the same, in two splits", _ALARM, _font(14))
    step = (sheet.width - 2 * MARGIN) // PAIRS_A_ROW
    for number, pair in enumerate(pairs):
        x = MARGIN + number % PAIRS_A_ROW * step
        y = top + 2 * LINE + number // PAIRS_A_ROW * (TILE + 3 * LINE + GAP)
        for place, member in enumerate(pair[:2]):
            if (member.split, member.row) in tiles:
                sheet.paste(tiles[member.split, member.row], (x + place * (TILE + GAP), y))
        said = f"{pair.bits} bits, r {pair.correlation:.2f}" if pair.bits or pair.correlation < 1 else "same pixels"
        differs = " - labels differ" if pair.first.label != pair.second.label else ""
        lines = [said + differs, str(pair.first), str(pair.second)]
        for place, line in enumerate(lines):
            pen.text((x, y + TILE + place * 13), _fitted(line, step - 10, 10), _FAINT if place else _INK, _font(10))

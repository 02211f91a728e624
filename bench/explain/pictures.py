"""The pictures of ``bench explain``: overlays and receptive fields. Same numbers, same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.explain.field import Map, radii_px

DPI = 100
FLOOR = -6.0  # decades below the brightest pixel at which a map of influence ends


class FieldRow(NamedTuple):
    """One network in a picture of receptive fields: whose, at initialisation or trained, its pixels, stage by stage."""

    label: str
    state: str
    resolution: int
    maps: dict[str, Map]


def overlays(
    title: str, images: npt.NDArray[np.float32], maps: npt.NDArray[np.float32], captions: Sequence[tuple[str, bool]]
) -> bytes:
    """Draw images (n,h,w,3) from 0 to 1, and under each the map (n,h,w) laid over it; a caption each, and if right."""
    figure, panels = _panels(2, len(images), 1.75, 1.9)
    figure.suptitle(textwrap.fill(title, max(44, 30 * len(images))), fontsize=8)
    for column, (text, right) in enumerate(captions):
        above, below = panels[0][column], panels[1][column]
        above.imshow(images[column], interpolation="nearest")
        above.set_title(text, fontsize=7, color="#006a4c" if right else "#952000", linespacing=1.25)
        below.imshow(images[column].mean(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        below.imshow(maps[column], cmap="inferno", vmin=0, vmax=1, alpha=0.55, interpolation="bilinear")
    return _png(figure)


def fields(title: str, rows: Sequence[FieldRow]) -> bytes:
    """Draw maps of influence, logarithmic, one row per network and one column a stage."""
    columns = max(len(row.maps) for row in rows)
    figure, panels = _panels(len(rows), columns, 1.9, 2.05)
    wide = 62 if columns < 3 else 30 * columns
    note = "log scale, 6 decades; radius that holds 50 and 95 % of the influence on the central cell"
    figure.suptitle(textwrap.fill(title, wide) + "\n" + textwrap.fill(note, wide), fontsize=8)
    for axes, row in zip(panels, rows, strict=True):
        for number, (panel, (name, mass)) in enumerate(zip(axes, row.maps.items(), strict=False), 1):
            radii = radii_px(mass)
            said = f"{radii[0]:.1f} and {radii[1]:.1f} px" if radii else "no influence"
            panel.set_title(f"stage {number} ({name})\n{said}", fontsize=6.5)
            if radii:
                with np.errstate(divide="ignore"):
                    shown = np.maximum(np.log10(mass / mass.max()), FLOOR)
                panel.imshow(shown, cmap="magma", vmin=FLOOR, vmax=0, interpolation="nearest")
        for panel in axes[len(row.maps) :]:
            panel.set_axis_off()
        names = (row.label, f"{row.resolution} px, {row.state}") if row.label else (row.state,)
        axes[0].set_ylabel("\n".join(textwrap.fill(name, 28) for name in names), fontsize=7)
    return _png(figure)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(max(width * columns, 3.2), height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    return figure, panels.tolist()


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False, "font.family": "DejaVu Sans"}):
        figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()

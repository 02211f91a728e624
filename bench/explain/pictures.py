"""The pictures of ``bench explain``: overlays, receptive fields, and fields side by side. Same numbers, same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.explain.cam import Choice
from bench.explain.field import Map, Spread

DPI = 100
FLOOR = -6.0  # decades below the brightest pixel at which a map of influence ends
COLOURS = ("#2143e2", "#952000", "#006a4c", "#c45eae", "#809a00", "#498ef5", "#312251")
MARKERS = "os^DXvP"
INITIAL = "at initialisation"
Line = tuple[str, Map, Spread | None]  # of a stage: its name, map and measures


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One network in a picture of receptive fields; ``state`` is ``INITIAL``, pretrained or trained."""

    label: str
    state: str
    resolution: int
    stages: Sequence[Line]


def overlays(
    title: str, images: npt.NDArray[np.float32], maps: npt.NDArray[np.float32], told: Sequence[tuple[Choice, str]]
) -> bytes:
    """Draw images (n,h,w,3) from 0 to 1, and under each the map (n,h,w) laid over it; ``told`` is its caption."""
    figure, panels = _panels(2, len(images), 1.75, 1.9)
    figure.suptitle(title, fontsize=9)
    for column, (choice, text) in enumerate(told):
        above, below = panels[0][column], panels[1][column]
        above.imshow(images[column], interpolation="nearest")
        above.set_title(text, fontsize=7, color="#006a4c" if choice.right else "#952000", linespacing=1.25)
        below.imshow(images[column].mean(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        below.imshow(maps[column], cmap="inferno", vmin=0, vmax=1, alpha=0.55, interpolation="bilinear")
    return _png(figure)


def fields(title: str, rows: Sequence[FieldRow]) -> bytes:
    """Draw maps of influence, logarithmic, one row a network and one column a stage, with the radii as circles."""
    columns = max(len(row.stages) for row in rows)
    figure, panels = _panels(len(rows), columns, 1.9, 2.05)
    wide = 62 if columns < 3 else 30 * columns
    note = "log scale, 6 decades; inner circle 50 %, outer circle 95 % of the influence on the central cell"
    figure.suptitle(textwrap.fill(title, wide) + "\n" + textwrap.fill(note, wide), fontsize=8)
    for axes, row in zip(panels, rows, strict=True):
        for number, (panel, line) in enumerate(zip(axes, row.stages, strict=False), 1):
            _field(panel, f"stage {number} ({line[0]})", line, row.resolution)
        for panel in axes[len(row.stages) :]:
            panel.set_axis_off()
        names = (row.label, f"{row.resolution} px, {row.state}") if row.label else (row.state,)
        axes[0].set_ylabel("\n".join(textwrap.fill(name, 28) for name in names), fontsize=7)
    return _png(figure)


def _field(panel: Any, name: str, line: Line, side: int) -> None:
    from matplotlib.patches import Circle

    _, mass, measured = line
    most = float(mass.max())
    if measured is None or most <= 0:
        panel.set_title(f"{name}\nno influence", fontsize=7)
        return
    with np.errstate(divide="ignore"):
        panel.imshow(
            np.maximum(np.log10(mass / most), FLOOR), cmap="magma", vmin=FLOOR, vmax=0, interpolation="nearest"
        )
    y, x = measured.centre
    for radius, style in ((measured.radius_50_px, "-"), (measured.radius_95_px, "--")):
        panel.add_patch(Circle((x, y), max(radius, 0.5), fill=False, color="#5cf2ff", linewidth=0.9, linestyle=style))
    panel.set_xlim(-0.5, side - 0.5)
    panel.set_ylim(side - 0.5, -0.5)
    figures = f"50 %: {measured.radius_50_px:.1f} px, 95 %: {measured.radius_95_px:.1f} px"
    panel.set_title(f"{name}\n{figures}", fontsize=6.5)


def radii(rows: Sequence[FieldRow]) -> bytes:
    """Draw the radius of half the influence over the stages, as a share of the side: a panel a resolution."""
    from matplotlib.figure import Figure

    sides = sorted({row.resolution for row in rows})
    figure = Figure(figsize=(4.2 * len(sides) + 2.6, 3.6), layout="constrained")
    labels = list(dict.fromkeys(row.label for row in rows))
    even = _even_radius(64)
    for i, side in enumerate(sides):
        panel = figure.add_subplot(1, len(sides), i + 1)
        for row in (row for row in rows if row.resolution == side):
            number = labels.index(row.label)
            values = [spread.radius_50_px / side if spread else np.nan for _, _, spread in row.stages]
            dashed = row.state == INITIAL
            panel.plot(
                range(1, len(values) + 1), values, "--" if dashed else "-", marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)], markersize=4, linewidth=1.2, label=f"{row.label} ({row.state})",
            )  # fmt: skip
        panel.axhline(even, color="#565f6b", linewidth=0.8, linestyle=":")
        panel.annotate("every pixel alike", (1, even), fontsize=7, color="#565f6b", va="bottom")
        panel.set_title(f"{side} px", fontsize=9)
        panel.set_xlabel("stage (of ViT: quarter of its depth)", fontsize=8)
        panel.set_xticks(range(1, 1 + max(len(row.stages) for row in rows)))
        panel.set_ylim(0, 0.5)
        panel.tick_params(labelsize=7)
        if i == 0:
            panel.set_ylabel("radius of half the influence / side", fontsize=8)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(list(handles.values()), list(handles), fontsize=7, loc="outside right center", frameon=False)
    return _png(figure)


def _even_radius(side: int) -> float:
    from bench.explain.field import spread

    measured = spread(np.ones((side, side)))
    assert measured is not None
    return measured.radius_50_px / side


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[list[Any]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * columns, 3.2), height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    return figure, panels.tolist()


def _png(figure: Any) -> bytes:
    import matplotlib

    data = io.BytesIO()
    plain: Any = {"text.usetex": False, "text.parse_math": False, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(plain):
        figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()

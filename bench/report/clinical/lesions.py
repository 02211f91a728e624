"""How small a lesion each model still finds, on the phantom that hides discs of known diameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bench import registry
from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import RANKING
from bench.report.blocks import MODEL, Block, Column, Columns, Text, tabled
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import counted, fixed, significant, span
from bench.stats.separation import Estimate, estimates, groups_of, sample

PHANTOM = "phantom_small"
BINS = 5
LEAST = 10  # lesions of a bin
_Line = tuple[Row, tuple[Estimate, ...]]  # a model with its figure at each size


class Size(NamedTuple):
    """Lesions of about one diameter.

    Attributes:
        low, high: least and largest diameter, pixels as fed.
        images: (N,) whether a test image counts: those with such a lesion, and all without one.
        lesions: how many have one.
    """

    low: float
    high: float
    images: Array
    lesions: int

    @property
    def text(self) -> str:
        """``2.6–3.5 px``."""
        return f"{significant(self.low, 2)}–{significant(self.high, 2)} px"


def sizes_of(row: Row) -> list[Size]:
    """Five bins of equally many lesions, the smallest first; none for other datasets, and other versions of this one.

    The diameters are not stored: the phantom tells them again.
    """
    spec = row.ok[0]["spec"] if row.ok else {}
    if not str(spec.get("dataset")).startswith(PHANTOM) or row.evidence is None or row.folds:
        return []
    try:
        phantom = registry.dataset_info(str(spec["dataset"])).open()
        same = phantom.fingerprint(int(spec["size"]), None) == spec["data_fingerprint"]
    except registry.RegistryError:
        return []
    tell = getattr(phantom, "lesion_diameters", None)
    diameters = tell("test") if tell and same else np.zeros(0)
    if not np.array_equal(diameters > 0, np.ravel(row.evidence.labels) == 1):
        return []
    order = np.argsort(diameters, kind="stable")
    order = order[diameters[order] > 0]
    found = []
    for part in np.array_split(order, min(BINS, len(order) // LEAST)) if len(order) >= LEAST else ():
        images = diameters == 0
        images[part] = True
        low, high = diameters[part[[0, -1]]] * int(spec["resolution"])
        found.append(Size(float(low), float(high), images, len(part)))
    return found


def by_size(rows: Sequence[Row], sizes: Sequence[Size]) -> list[list[Estimate]]:
    """Each size's AUC of each row: its lesions against all images without one."""
    scores = [[joined(folds).scores for folds in trainings(row)] for row in rows]
    labels = np.ravel(rows[0].scored.labels)
    found = []
    for size in sizes:
        own = labels[size.images]
        samples = [sample(RANKING.over, [of[size.images] for of in seeds], own) for seeds in scores]
        found.append(estimates(samples, groups_of(RANKING.over, own)))
    return found


def lesion_curve(row: Row) -> list[tuple[float, float]]:
    """Diameter in pixels (the middle of each bin, by logarithm) and AUC."""
    sizes = sizes_of(row)
    found = by_size([row], sizes) if sizes else []
    return [((size.low * size.high) ** 0.5, own.value) for size, (own,) in zip(sizes, found, strict=True)]


def lesion_blocks(members: Sequence[Row]) -> list[Block]:
    """AUC by the lesions' diameter, one line a model; nothing for other datasets."""
    first = next((row for row in members if row.evidence), None)
    sizes = sizes_of(first) if first else []
    if not first or not sizes:
        return []
    rows = [row for row in members if row.evidence and row.scored.test_set == first.scored.test_set]
    found = list(zip(*by_size(rows, sizes), strict=True))
    lines = list(zip(rows, found, strict=True))
    columns: Columns[_Line] = [
        (MODEL, lambda line: line[0].model),
        (Column("above chance from", drop=1), lambda line: smallest_found(sizes, line[1])),
    ]
    for k, size in enumerate(sizes):
        columns += _columns(k, size)
    lesions = sorted({size.lesions for size in sizes})
    each = f"{lesions[0]}" if len(lesions) == 1 else f"{lesions[0]} to {lesions[-1]}"
    without = int(sizes[0].images.sum()) - sizes[0].lesions
    text = (
        f"{RANKING.label} by the diameter of the lesion, in pixels as fed: {each} lesions of each size (contrast as it "
        f"comes) against all {counted(without, 'image')} without one, mean over seeds. Above chance from: at this size "
        "and all larger ones the 95 % interval, over test images and trainings, lies above 0.5; each by itself."
    )
    return [Text(text), tabled(columns, lines)]


def _columns(k: int, size: Size) -> Columns[_Line]:
    """AUC and interval of the k-th size."""
    return [
        (Column(size.text), lambda line: fixed(line[1][k].value)),
        (Column("95 %", drop=2), lambda line: span(*line[1][k].interval())),
    ]


def smallest_found(sizes: Sequence[Size], found: Sequence[Estimate]) -> str:
    """``3.5 px``: where the sizes begin that are above chance; "none" where the largest is not."""
    missed = [k for k, own in enumerate(found) if not own.interval()[0] > 0.5]
    first = missed[-1] + 1 if missed else 0
    return f"{significant(sizes[first].low, 2)} px" if first < len(sizes) else "none"

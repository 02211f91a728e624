"""The images of a test set by a column of their source's table, and the scores of a row's trainings on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.report.rows import Row

BINS = 3
MOST_VALUES = 12
UNKNOWN = "not stated"


def numbers(values: Sequence[str] | Array) -> Array | None:
    """A column as numbers, NaN where nothing stands; None where it holds words."""
    found = []
    for text in np.asarray(values).tolist():
        try:
            found.append(float(text.replace(",", ".")) if text else float("nan"))
        except ValueError:
            return None
    column = np.array(found)
    return column if np.isfinite(column).any() else None


def by_value(values: Array) -> tuple[list[str], Array]:
    """Names of the groups of a column and the group of each image, (N,); many numbers are binned at their terciles."""
    column = numbers(values)
    if column is not None and len(np.unique(column[np.isfinite(column)])) > 2 * BINS:
        known = column[np.isfinite(column)]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="higher"))
        where = np.searchsorted(edges, column, side="right")
        names = [f"below {edges[0]:g}", *(f"{a:g} to below {b:g}" for a, b in pairwise(edges))]
        names.append(f"{edges[-1]:g} and above")
        where[np.isnan(column)] = len(names)
        return ([*names, UNKNOWN] if np.isnan(column).any() else names), where
    texts, where = np.unique(np.asarray(values).astype(str), return_inverse=True)
    order = [i for i, text in enumerate(texts) if text] + [i for i, text in enumerate(texts) if not text]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return [str(texts[i]) or UNKNOWN for i in order], place[where]


def asked(row: Row) -> tuple[str, ...]:
    """The columns of ``group=``, as a row's Records name them."""
    return next((tuple(map(str, found)) for r in row.ok if (found := r["metrics"].get("subgroups"))), ())

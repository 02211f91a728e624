"""Folds of cross-validation: all images of a set, by patient and stratified; the same on every machine for ever."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.data.cache_entry import Members
from bench.data.files import DataError
from bench.data.look import SPLITS
from bench.datasets import _splits
from bench.registry import Split

VAL_SHARE = 1 / 8  # of the images that are not tested, by which the epoch is chosen
Array = np.ndarray


def fold_of_all(
    data: Mapping[str, Split], who: Mapping[str, Members | None], fold: int, folds: int, classes: tuple[str, ...] = ()
) -> tuple[dict[str, Split], dict[str, Members | None]]:
    """The splits of one fold: its images are the test split, and val is taken from the others, by patient too.

    Args:
        data: the splits of a set; their images are put together.
        who: names and patients of the images of each; where there are none, images are dealt out by their place.
        fold: from 0.
        folds: how many.
        classes: names, for errors.

    Raises:
        DataError: a class has too few patients (or images) to be in every fold, and in val.
    """
    labels = np.concatenate([np.asarray(data[name].labels[:]) for name in SPLITS])
    persons = _together(data, who)
    keys = [name or f"{i}" for i, name in enumerate(persons.names)] if persons else [f"{i}" for i in range(len(labels))]
    groups = persons.groups if persons and any(persons.groups) else ()
    try:
        number = _splits.folds(labels, keys, groups, folds)
        rest = np.flatnonzero(number != fold)
        inside = [keys[i] for i in rest], [groups[i] for i in rest] if groups else ()
        shares = (1 - VAL_SHARE, VAL_SHARE, 0.0)
        chosen = _splits.make(labels[rest], *inside, shares, seed=fold + 1, classes=classes)
    except _splits.SplitError as error:
        raise DataError(f"fold {fold + 1} of {folds}: {error}") from None
    rows = {"train": rest[chosen == 0], "val": rest[chosen == 1], "test": np.flatnonzero(number == fold)}
    lacking = [
        name for name, own in rows.items() if labels.ndim == 1 and len(np.unique(labels[own])) < labels.max() + 1
    ]
    if lacking:
        raise DataError(
            f"fold {fold + 1} of {folds}: {' and '.join(lacking)} would lack a class; ask for fewer folds (--folds)"
        )
    images = np.concatenate([np.asarray(data[name].images[:]) for name in SPLITS])
    splits = {name: Split(images[own], labels[own]) for name, own in rows.items()}
    return splits, {name: persons.at(own) if persons else None for name, own in rows.items()}


def _together(data: Mapping[str, Split], who: Mapping[str, Members | None]) -> Members | None:
    """Names, patients and columns of all images; None where a split has none."""
    parts = [found for name in SPLITS if (found := who[name]) and len(found.names) == len(data[name].labels)]
    if len(parts) < len(SPLITS):
        return None
    columns = {
        name: tuple(value for part in parts for value in part.columns[name])
        for name in parts[0].columns
        if all(name in part.columns for part in parts)
    }
    return Members(
        tuple(n for part in parts for n in part.names), tuple(g for part in parts for g in part.groups), columns
    )

"""Test scores small enough for git: log-odds in float16, of a fixed part of a large test set.

Both sides of a comparison go through this form, so equal scores stay equal. The order of a column's scores stays, but
for scores within 0.05 % of each other's log-odds, which become equal.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, one_vs_rest
from bench.record.types import Fields
from bench.stats.bootstrap import seed_of_test_set

MAX_IMAGES = 2_000
LEAST_OF_A_CLASS = 10
# 1 / (1 + exp(-30)) and the next value of float16 are still two numbers in float64.
MAX_LOG_ODDS = 30.0
_LARGEST = 200_000_000  # bytes of one packed array; more is no test set's scores


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one trained model on its test set, or a fixed part of it.

    Attributes:
        log_odds: (n, C) float16; C is 1 for two classes.
        labels: (n,) classes or (n, C) in {0, 1}.
        test_set: digest of the dataset's name and all its test labels.
        images: of the whole test set.
    """

    log_odds: Array
    labels: Array
    test_set: str
    images: int

    def probabilities(self) -> Array:
        """(n, C) float64."""
        return 1 / (1 + np.exp(-self.log_odds.astype(np.float64)))


def pack_scores(dataset: str, scores: Array, labels: Array, max_images: int = MAX_IMAGES) -> Scores:
    """Take what a comparison needs of a Cell's saved scores.

    Raises:
        ValueError: shapes do not fit, or a score is no probability.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    columns, _ = one_vs_rest(scores, labels)
    if not ((columns >= 0) & (columns <= 1)).all():
        raise ValueError("a test score is not between 0 and 1")
    flat = labels.reshape(len(labels), -1)
    kept = chosen(dataset, labels, max_images)
    with np.errstate(divide="ignore"):
        odds = np.log(columns[kept]) - np.log1p(-columns[kept])
    return Scores(
        odds.clip(-MAX_LOG_ODDS, MAX_LOG_ODDS).astype(np.float16),
        flat[kept, 0].astype(np.int64) if flat.shape[1] == 1 else flat[kept].astype(np.int64),
        f"{seed_of_test_set(dataset, labels):016x}",
        len(labels),
    )


def chosen(dataset: str, labels: Array, max_images: int) -> Array:
    """The numbers of the test images that are kept: all, or a draw by class that depends on the test set alone."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    if len(flat) <= max_images:
        return np.arange(len(flat))
    generator = np.random.default_rng(seed_of_test_set(dataset, labels))
    classes = flat[:, 0] if flat.shape[1] == 1 else np.zeros(len(flat), dtype=np.int64)
    kept = []
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        quota = max(round(max_images * len(members) / len(flat)), min(LEAST_OF_A_CLASS, len(members)))
        kept.append(generator.permutation(members)[:quota])
    return np.sort(np.concatenate(kept))


def to_text(array: Array) -> Fields:
    """An array as JSON: its dtype, shape and compressed bytes; the two bytes of float16 apart compress better."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    planes = little.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()
    packed = base64.b85encode(zlib.compress(planes, 9)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": packed}


def from_text(value: Fields) -> Array:
    """The array of :func:`to_text`, checked.

    Raises:
        ValueError: it is damaged.
    """
    try:
        dtype, shape = np.dtype(str(value["dtype"])), tuple(int(n) for n in value["shape"])
        size = int(np.prod(shape)) * dtype.itemsize
        if dtype.kind not in "iuf" or min(shape, default=0) < 1 or size > _LARGEST:
            raise ValueError(f"dtype {dtype}, shape {shape}")
        planes = zlib.decompressobj().decompress(base64.b85decode(value["data"]), size + 1)  # never more than stated
        if len(planes) != size:
            raise ValueError(f"its data are not the {size} bytes of shape {shape}")
    except (KeyError, TypeError, AttributeError, binascii.Error, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    ordered = np.frombuffer(planes, dtype=np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    return np.frombuffer(ordered, dtype=dtype.newbyteorder("<")).reshape(shape).astype(dtype)

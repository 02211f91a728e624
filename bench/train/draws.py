"""Few labels: which images of a split keep theirs, drawn by hash, stratified by class, spread over patients.

An image's place in the draw comes from a hash of the draw's number and its name (or its row, where it has none), so
it depends on nothing else: more labels of one draw contain the fewer ones, and every model and seed gets the same.
Validation is drawn like training, for who has ten labels a class has no five hundred to choose an epoch by.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def drawn(
    labels: npt.NDArray[np.int64],
    *,
    split: str,
    draw: int,
    shots: int | None = None,
    fraction: float = 1.0,
    names: Sequence[str] = (),
    patients: Sequence[str] = (),
) -> Rows:
    """Return the rows of a split whose labels are kept, in ascending order.

    Args:
        labels: (N,) classes, or (N, L) in {0, 1}.
        split: ``train`` or ``val``: each is drawn by itself.
        draw: its number, from 0.
        shots: images a class (positives a label), as many patients as there are; a class with fewer gives all.
        fraction: of the images of each class, where ``shots`` is None; whole patients where they are known, until the
            part is reached. At least one image of each class.
        names: of the images.
        patients: of the images, or "" where unknown.
    """
    if shots is None and fraction == 1.0:
        return np.arange(len(labels))
    order = _order(len(labels), f"{split} {draw}", names, patients, shots is not None)
    if labels.ndim == 2:
        return _of_labels(labels, order, shots, fraction)
    kept: list[int] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        wanted = shots if shots is not None else max(1, math.ceil(fraction * len(members) - 1e-9))
        kept += members[:wanted].tolist()
    return np.array(sorted(kept), dtype=np.int64)


def _order(n: int, salt: str, names: Sequence[str], patients: Sequence[str], spread: bool) -> Rows:
    """Rows in the order they are drawn: shots take each patient's first image first, fractions whole patients."""
    owners = [str(patients[i]) if len(patients) and patients[i] else f"image {i}" for i in range(n)]
    images = [_hash(f"{salt} image {names[i] if len(names) else i}") for i in range(n)]
    people = {owner: _hash(f"{salt} patient {owner}") for owner in set(owners)} if len(patients) else {}
    seen: Counter[str] = Counter()
    keys: list[tuple[object, ...]] = [()] * n
    for i in sorted(range(n), key=images.__getitem__):
        place = people.get(owners[i], images[i])
        keys[i] = (seen[owners[i]], place, images[i]) if spread else (place, images[i])
        seen[owners[i]] += 1
    return np.array(sorted(range(n), key=keys.__getitem__), dtype=np.int64)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8]


def _of_labels(labels: npt.NDArray[np.int64], order: Rows, shots: int | None, fraction: float) -> Rows:
    """Multi-label: the rarest label first; images already drawn for another label count."""
    kept = np.zeros(len(labels), dtype=bool)
    for label in np.argsort(labels.sum(0), kind="stable"):
        positive = order[labels[order, label] == 1]
        wanted = shots if shots is not None else math.ceil(fraction * len(positive) - 1e-9)
        missing = max(0, min(wanted, len(positive)) - int(kept[positive].sum()))
        kept[positive[~kept[positive]][:missing]] = True
    negative = order[labels[order].sum(1) == 0]  # images without any finding are a class of their own
    kept[negative[: shots if shots is not None else math.ceil(fraction * len(negative) - 1e-9)]] = True
    return np.flatnonzero(kept)

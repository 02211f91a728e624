"""Splits that are made here: grouped by patient, stratified by class, and the same on every machine for ever.

Groups are drawn in the order of a hash of seed and group name, not by a random generator: the result depends on
neither the order of the files nor a library's version, and adding a patient moves hardly any other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bench.registry import counted

Array = np.ndarray

SPLITS = ("train", "val", "test")
FRACTIONS = (0.7, 0.1, 0.2)
# Part of the fingerprints: raise it when the same images would be split otherwise.
VERSION = 1
VERSION_OF_FINDINGS = 2  # of images with several labels
_WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "te"),
}
_BESIDE = frozenset(("set", "sets", "data", "dataset", "split", "images", "image", "imgs", "img", "folder", "cases"))


class SplitError(ValueError):
    """A split cannot be made or is not usable; the message says why."""


def split_of(word: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` for one of the words that people use for it (``Train_set``), else None."""
    parts = re.findall(r"[^\W\d_]+", word.lower())
    parts = [re.sub(r"(?<=..)(sets?|data)$", "", part) or part for part in parts]
    kept = [part for part in parts if part not in _BESIDE]
    return next((split for split, words in _WORDS.items() if len(kept) == 1 and kept[0] in words), None)


def natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Key to sort by as people count: ``stage 2`` before ``stage 10``; case decides last."""
    parts = re.split(r"(\d+)", text)
    return ([(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts if p], text)


def make(
    labels: Array,
    keys: Sequence[str],
    groups: Sequence[str] = (),
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Array:
    """Split images so that no group is torn apart and each class has its share in each split.

    Args:
        labels: classes (N,), or findings (N, L) in {0, 1}.
        keys: one different name an image; it draws the lot of images without a group.
        groups: patient or lesion of each image, "" where unknown.
        fractions: of train, val and test; 0 leaves a split empty.
        seed: another one gives another split.
        classes: their names, for errors.

    Returns:
        0, 1 or 2 (train, val, test) for each image.

    Raises:
        SplitError: a class has too few groups to be in each split.
    """
    names, place, held = _owners(labels, keys, groups)
    lots = _lots(seed, names)
    if labels.ndim == 2:
        return _by_rarest(held, np.bincount(place), lots, fractions)[place]
    alone = bool((held.sum(axis=1) == 1).all())
    result = (_by_class if alone else _by_deficit)(held, lots, fractions)[place]
    _check(result, labels, held, fractions, classes)
    return result


def folds(labels: Array, keys: Sequence[str], groups: Sequence[str], count: int, seed: int = 0) -> Array:
    """Deal images out to folds so that no group is torn apart and each class has its share in each.

    Args:
        labels: as in :func:`make`, and so are ``keys``, ``groups`` and ``seed``.
        keys: one different name an image.
        groups: patient or lesion of each image, "" where unknown.
        count: folds.
        seed: another one gives other folds.

    Returns:
        The fold of each image, from 0.

    Raises:
        SplitError: there are fewer groups than folds.
    """
    names, place, held = _owners(labels, keys, groups)
    if len(names) < count:
        raise SplitError(f"{len(names)} patients or images cannot be dealt out to {count} folds")
    return _by_deficit(held, _lots(seed, names), (1 / count,) * count)[place]


def _owners(labels: Array, keys: Sequence[str], groups: Sequence[str]) -> tuple[Array, Array, Array]:
    """Names of the groups (of an image without one, itself), the group of each image, images of each class it holds.

    Images without a finding are a class too.
    """
    if labels.ndim == 2:
        counts = np.column_stack([labels.astype(np.int64), labels.sum(axis=1) == 0])
    else:
        counts = np.eye(int(labels.max()) + 1, dtype=np.int64)[labels]
    owner = [f"g {group}" if group else f"i {key}" for key, group in zip(keys, groups or [""] * len(keys), strict=True)]
    names, place = np.unique(np.asarray(owner, dtype=object).astype(str), return_inverse=True)
    held = np.zeros((len(names), counts.shape[1]), np.int64)
    np.add.at(held, place, counts)
    return names, place, held


def _lots(seed: int, names: Iterable[str]) -> Array:
    """A hash of seed and name for each; names of files need not be UTF-8."""
    texts = (f"{seed} {name}".encode("utf-8", "surrogateescape") for name in names)
    return np.asarray([hashlib.sha256(text).digest() for text in texts], dtype="S32")


def quotas(total: int, fractions: Sequence[float]) -> list[int]:
    """Share ``total`` out by largest remainder; a split that shall have any gets at least one if there are enough."""
    exact = [total * fraction / sum(fractions) for fraction in fractions]
    shares = [int(np.floor(value + 1e-9)) for value in exact]
    for index in sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))[: total - sum(shares)]:
        shares[index] += 1
    for index, fraction in enumerate(fractions):
        if fraction > 0 and not shares[index] and max(shares) > 1:
            shares[int(np.argmax(shares))] -= 1
            shares[index] = 1
    return shares


def _by_class(held: Array, lots: Array, fractions: tuple[float, float, float]) -> Array:
    """Every group is one image of one class: its class's images are dealt out in the order of their lots."""
    chosen = np.zeros(len(held), np.int64)
    kind = held.argmax(axis=1)
    order = np.argsort(lots, kind="stable")
    for label in range(held.shape[1]):
        mine = order[kind[order] == label]
        train, val, _ = quotas(len(mine), fractions)
        chosen[mine[train : train + val]] = 1
        chosen[mine[train + val :]] = 2
    return chosen


def _by_deficit(held: Array, lots: Array, fractions: Sequence[float]) -> Array:
    """The largest groups first, each to the split that lacks most of what it holds; rare classes count more."""
    total = held.sum(axis=0)
    wanted = np.array([quotas(int(n), fractions) for n in total], float).T  # (3, classes)
    weight = 1 / np.maximum(total, 1)
    chosen = np.zeros(len(held), np.int64)
    order = np.lexsort((np.argsort(np.argsort(lots, kind="stable")), -held.sum(axis=1)))
    allowed = np.asarray(fractions) > 0
    for index in order:
        lack = (wanted * (held[index] * weight)).sum(axis=1)
        # A split that the group would overfill is the worse, the more it would.
        over = (np.maximum(held[index] - np.maximum(wanted, 0), 0) * weight * held[index]).sum(axis=1)
        chosen[index] = int(np.argmax(np.where(allowed, lack - over, -np.inf)))
        wanted[chosen[index]] -= held[index]
    return chosen


def _by_rarest(held: Array, sizes: Array, lots: Array, fractions: Sequence[float]) -> Array:
    """The rarest finding first, each group that has it to the split that lacks most of it, then most images.

    Iterative stratification (Sechidis et al., 2011). Images with many findings would go to train first otherwise, and
    train would have another prevalence than val and test.
    """
    wanted = [quotas(int(n), fractions) for n in held.sum(axis=0)]
    room = quotas(int(sizes.sum()), fractions)
    splits = [split for split, fraction in enumerate(fractions) if fraction > 0]
    chosen = np.full(len(held), -1, np.int64)
    order = np.argsort(lots, kind="stable")
    while (left := chosen < 0).any():
        amounts = held[left].sum(axis=0)
        rarest = min(np.flatnonzero(amounts).tolist(), key=lambda label: amounts[label])
        for group in order[left[order] & (held[order, rarest] > 0)].tolist():
            split = max(splits, key=lambda s: (wanted[rarest][s], room[s], -s))
            chosen[group] = split
            room[split] -= int(sizes[group])
            for label in np.flatnonzero(held[group]).tolist():
                wanted[label][split] -= int(held[group, label])
    return chosen


def _check(
    chosen: Array, labels: Array, held: Array, fractions: tuple[float, float, float], classes: Sequence[str]
) -> None:
    for label in range(held.shape[1]):
        for split, name in enumerate(SPLITS):
            if fractions[split] > 0 and not ((chosen == split) & (labels == label)).any():
                owners, images = int((held[:, label] > 0).sum()), int((labels == label).sum())
                which = repr(classes[label]) if classes else label
                unit = "images" if owners == images else "patients"
                of = counted(images, "image") + (f" of {counted(owners, 'patient')}" if unit == "patients" else "")
                raise SplitError(
                    f"class {which} has {of}, too few to give {name} a share; 3 {unit} are needed, 10 are better"
                )


def by_count(labels: Array, keys: Sequence[str], counts: tuple[int, int, int], seed: int = 0) -> Array:
    """Split image by image, stratified, in the proportion of ``counts``, and exactly so where they add up to N.

    This is how the papers split (groups are torn apart, so test images resemble train images).

    Returns:
        0, 1 or 2 (train, val, test) for each image.
    """
    strata = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    share = len(labels) / sum(counts)
    shares = [len(members) / len(labels) for members in strata]
    wanted = [quotas(round(n * share), shares) if round(n * share) else [0] * len(strata) for n in counts[1:]]
    chosen = np.zeros(len(labels), np.int64)
    for members, val, test in zip(strata, *wanted, strict=True):
        dealt = members[np.argsort(_lots(seed, [keys[i] for i in members.tolist()]), kind="stable")]
        chosen[dealt[:val]] = 1
        chosen[dealt[val : val + test]] = 2
    return chosen


def complete(
    splits: Array,
    labels: Array,
    keys: Sequence[str],
    groups: Sequence[str] = (),
    seed: int = 0,
    classes: Sequence[str] = (),
) -> tuple[Array, tuple[str, ...]]:
    """Take from train what a published split lacks: a tenth for val, a fifth for test.

    Args:
        splits: 0, 1 or 2 for each image, as published.
        labels: as in :func:`make`, and so are the others.
        keys: one different name an image.
        groups: patient or lesion of each image.
        seed: another one gives another split.
        classes: their names, for errors.

    Returns:
        The completed splits, and the names of those that were taken from train.
    """
    lacking = [index for index in (1, 2) if not (splits == index).any()]
    members = np.flatnonzero(splits == 0)
    if not lacking or not len(members):
        return splits, ()
    shares = (0.0, FRACTIONS[1] if 1 in lacking else 0.0, FRACTIONS[2] if 2 in lacking else 0.0)
    part = make(
        labels[members],
        [keys[i] for i in members.tolist()],
        [groups[i] for i in members.tolist()] if groups else (),
        (1 - sum(shares), shares[1], shares[2]),
        seed,
        classes,
    )
    done = splits.copy()
    done[members] = part
    return done, tuple(SPLITS[index] for index in lacking)


def check_classes(splits: Array, labels: Array, classes: Sequence[str], where: str) -> None:
    """Refuse a split that is empty or lacks a class.

    Raises:
        SplitError: naming the class and the split.
    """
    for index, name in enumerate(SPLITS):
        members = splits == index
        if not members.any():
            raise SplitError(f"{where}: there are no {name} images")
        if labels.ndim == 2:
            lacking = [c for c, found in zip(classes, labels[members].any(axis=0), strict=True) if not found]
        else:
            present = set(np.unique(labels[members]).tolist())
            lacking = [c for i, c in enumerate(classes) if i not in present]
        if lacking:
            raise SplitError(f"{where}: no {name} image is of class {listed(lacking)}; no score could be given for it")


def torn(groups: Iterable[str], splits: Array) -> int:
    """Count groups that have images in more than one split."""
    seen: dict[str, set[int]] = {}
    for group, split in zip(groups, splits.tolist(), strict=True):
        if group:
            seen.setdefault(group, set()).add(split)
    return sum(len(found) > 1 for found in seen.values())


def listed(items: Sequence[object], most: int = 3) -> str:
    """Write ``a, b and c``, or the first ``most`` and how many more there are."""
    words = [repr(item) if isinstance(item, str) else str(item) for item in items]
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

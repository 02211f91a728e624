"""What a dataset holds, and what is wrong with it: ``bench inspect``. Every image is decoded once, as it lies there.

A *leak* is certain: the same pixels, or the same patient, in two splits. A *likeness* (near duplicate) is for a person
to look at: the next slice of a scan and a second export of one picture look the same to a hash.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.data.cache import load_splits
from bench.data.cache_entry import AnySplit
from bench.data.decode import blocks_of, check_labels
from bench.data.decode_pool import in_order
from bench.data.inspect import hashes
from bench.data.look import SPLITS
from bench.registry import DatasetInfo, LazySplit, Split

PAIRS = tuple(itertools.combinations(SPLITS, 2))
DEFAULT_GENERATED_SIZE = 64
_CHUNK = 64
_IN_PROCESS_BELOW = 400

Told = Callable[[int, int], None]  # images done, images in all


class Member(NamedTuple):
    """One image of a dataset: ``row`` is its place in the split."""

    split: str
    row: int
    name: str
    label: str


class Pair(NamedTuple):
    """Two images of different splits that are the same, or nearly."""

    first: Member
    second: Member
    bits: int
    correlation: float


@dataclass(slots=True)
class Inspection:
    """What was found.

    Attributes:
        size: side length in pixels of a dataset that has sizes; None where images keep their own.
        counts: split -> class -> images (an image of several labels counts for each).
        sizes: (width, height) -> images.
        unreadable: (image, why).
        same: groups of images with equal pixels, over all splits (blank ones left out).
        leaking: those of ``same`` that lie in more than one split.
        disagreeing: those of ``same`` whose labels differ.
        near: for each image of one split its nearest likeness in another, exact copies left out.
        patients: split -> number of patients (or lesions); empty where the source names none.
        shared_patients: (split, split) -> those in both.
        ungrouped: images without a patient in a source that names patients.
        blank: images that show nothing.
        gray: images of a colour dataset that are gray.
    """

    info: DatasetInfo
    size: int | None
    counts: dict[str, dict[str, int]]
    images: dict[str, int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: list[tuple[Member, str]] = field(default_factory=list)
    same: list[list[Member]] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    patients: dict[str, int] = field(default_factory=dict)
    shared_patients: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    ungrouped: int = 0
    blank: list[Member] = field(default_factory=list)
    gray: int = 0

    @property
    def leaking(self) -> list[list[Member]]:
        """Groups of equal images that lie in more than one split."""
        return [group for group in self.same if len({member.split for member in group}) > 1]

    @property
    def disagreeing(self) -> list[list[Member]]:
        """Groups of equal images with different labels."""
        return [group for group in self.same if len({member.label for member in group}) > 1]

    @property
    def missing_classes(self) -> dict[str, list[str]]:
        """Split -> classes without an image there."""
        found = {split: [name for name, count in by.items() if not count] for split, by in self.counts.items()}
        return {split: names for split, names in found.items() if names}

    @property
    def sound(self) -> bool:
        """Whether nothing leaks for certain and every image can be read."""
        return not (self.unreadable or self.leaking or any(self.shared_patients.values()))


def inspect(
    info: DatasetInfo, size: int | None = None, root: Path | None = None, told: Told | None = None
) -> Inspection:
    """Look at every image of a dataset.

    Args:
        info: of the dataset.
        size: which of its sizes; ``None`` is the smallest. Images of any size are looked at in their own.
        root: folder of its files.
        told: called with the images done and their number.

    Raises:
        DataError: its files are missing or damaged, or hold something else than the info says.
    """
    chosen = size or min(info.sizes, default=DEFAULT_GENERATED_SIZE)
    splits = load_splits(info, chosen, root)
    labels = {name: check_labels(info, name, splits[name]) for name in SPLITS}
    found = Inspection(
        info,
        None if info.varied else chosen,
        {name: _counts(info, labels[name]) for name in SPLITS},
        {name: len(labels[name]) for name in SPLITS},
    )
    small: dict[str, np.ndarray[Any, Any]] = {}
    digests: list[bytes] = []
    who: list[Member] = []
    total = sum(found.images.values())
    for name in SPLITS:
        members = _members(info, name, splits[name], labels[name])
        prints: list[hashes.Print | str] = []
        for part in _prints(info, name, splits[name], chosen):
            prints += part
            if told:
                told(len(who) + len(prints), total)
        small[name] = np.stack([_NOTHING if isinstance(one, str) else one.small for one in prints])
        digests += _note(found, members, prints, hashes.blank(small[name]))
        who += members
    found.same = [[who[index] for index in group] for group in hashes.same(digests)]
    found.near = _near(found, small, who, digests)
    _patients(found, splits)
    return found


_NOTHING = np.zeros((hashes.SIDE, hashes.SIDE), np.uint8)


def _counts(info: DatasetInfo, labels: np.ndarray[Any, Any]) -> dict[str, int]:
    several = labels.ndim == 2
    counts = labels.sum(axis=0) if several else np.bincount(labels, minlength=len(info.classes))
    return {name: int(count) for name, count in zip(info.classes, counts, strict=True)}


def _members(info: DatasetInfo, split: str, given: AnySplit, labels: np.ndarray[Any, Any]) -> list[Member]:
    names = () if isinstance(given, Split) else given.names
    return [
        Member(
            split,
            index,
            names[index] if names else f"{split} {index}",
            "|".join(info.classes[c] for c in np.flatnonzero(label)) if np.ndim(label) else info.classes[int(label)],
        )
        for index, label in enumerate(labels)
    ]


def _prints(info: DatasetInfo, name: str, split: AnySplit, size: int) -> Iterator[list[hashes.Print | str]]:
    """Yield the fingerprints of a split in order; in place of one, why the image cannot be read."""
    if not isinstance(split, LazySplit):
        for block in blocks_of(info, name, split, size, "native"):
            yield [hashes.print_of(image) for image in block]
        return

    def work(start: int, stop: int) -> list[hashes.Print | str]:
        return [_print_of(split, index, info.channels) for index in range(start, stop)]

    count = len(split.labels)
    chunks = [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    yield from in_order(work, chunks, count >= _IN_PROCESS_BELOW)


def _print_of(split: LazySplit, index: int, channels: int) -> hashes.Print | str:
    try:
        image = split.read(index)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
            return f"is {image.shape} of {image.dtype}, expected (H, W, {channels}) of uint8"
        return hashes.print_of(image)
    except (ValueError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__


def _note(
    found: Inspection, members: Sequence[Member], prints: Sequence[hashes.Print | str], blank: np.ndarray[Any, Any]
) -> list[bytes]:
    """Add what single images tell; return their digests, empty for those that show nothing: they are all alike."""
    digests = []
    for member, one, nothing in zip(members, prints, blank.tolist(), strict=True):
        digests.append(b"" if nothing or isinstance(one, str) else one.digest)
        if isinstance(one, str):
            found.unreadable.append((member, one))
            continue
        found.sizes[one.width, one.height] += 1
        found.gray += one.gray and found.info.channels == 3
        if nothing:
            found.blank.append(member)
    return digests


def _near(
    found: Inspection, small: dict[str, np.ndarray[Any, Any]], who: Sequence[Member], digests: Sequence[bytes]
) -> list[Pair]:
    start = dict(zip(SPLITS, np.cumsum([0, *found.images.values()]), strict=False))
    once: dict[str, np.ndarray[Any, Any]] = {}  # rows of a split without its own repetitions
    for name in SPLITS:
        own = digests[start[name] : start[name] + found.images[name]]
        once[name] = np.array(sorted({digest: row for row, digest in reversed(list(enumerate(own)))}.values()), int)
    pairs = []
    for one, two in PAIRS:
        # The smaller split is looked up in the larger: an image of the test split and what it resembles in training.
        first, second = (one, two) if len(small[one]) <= len(small[two]) else (two, one)
        for near in hashes.near(small[first][once[first]], small[second][once[second]]):
            left = start[first] + once[first][near.first]
            right = start[second] + once[second][near.second]
            if digests[left] != digests[right]:
                pairs.append(Pair(who[left], who[right], near.bits, near.correlation))
    return sorted(pairs, key=lambda pair: -pair.correlation)


def _patients(found: Inspection, splits: dict[str, AnySplit]) -> None:
    groups = {name: () if isinstance(split, Split) else split.groups for name, split in splits.items()}
    if not any(any(part) for part in groups.values()):
        return
    sets = {name: {group for group in part if group} for name, part in groups.items()}
    found.patients = {name: len(part) for name, part in sets.items()}
    found.ungrouped = sum(found.images[name] - sum(map(bool, part)) for name, part in groups.items())
    found.shared_patients = {(one, two): sorted(sets[one] & sets[two]) for one, two in PAIRS}


def pick(info: DatasetInfo, split: str, given: AnySplit, size: int, wanted: Sequence[int]) -> dict[int, Any]:
    """Decode some images of a split, index -> uint8 (H, W, C); those that cannot be read are left out."""
    found: dict[int, Any] = {}
    if isinstance(given, LazySplit):
        for index in wanted:
            if not isinstance(_print_of(given, index, info.channels), str):
                found[index] = given.read(index)
        return found
    left, start = set(wanted), 0
    for block in blocks_of(info, split, given, size, "native"):
        here = {index for index in left if start <= index < start + len(block)}
        found |= {index: np.array(block[index - start]) for index in here}
        left -= here
        start += len(block)
        if not left:
            break
    return found

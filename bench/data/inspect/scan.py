"""What a dataset holds, and what is wrong with it: ``bench inspect``. Every image is decoded once, as it lies there.

A *leak* is certain: the same pixels, or the same patient, in two splits. A *likeness* (near duplicate) is for a person
to look at: the next slice of a scan and a second export of one picture look the same to a hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.data.cache import load_splits
from bench.data.cache_entry import AnySplit, groups_of, names_of
from bench.data.decode import blocks_of, check_labels
from bench.data.decode_pool import in_order
from bench.data.inspect import hashes
from bench.data.look import PAIRS, SPLITS, Look, Looked, label_text
from bench.errors import DataError
from bench.registry import DatasetInfo, Finding, LazySplit, SplitByImage, counted

DEFAULT_GENERATED_SIZE = 64
_CHUNK = 64
_IN_PROCESS_BELOW = 400
_NOTHING = np.zeros((hashes.SIDE, hashes.SIDE), np.uint8)


class Member(NamedTuple):
    """One image of a dataset: ``row`` is its place in the split."""

    split: str
    row: int
    name: str
    label: str

    def __str__(self) -> str:
        where = self.name if self.name.startswith(self.split) else f"{self.split}: {self.name}"
        return f"{where} ({self.label})" if self.label else where


class Pair(NamedTuple):
    """Two images of different splits that are the same (0 bits, 1), or nearly."""

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
        looked: equal images, shared patients, blank images, absent classes.
        equal: of each picture in two splits one image of either.
        near: for each image of one split its nearest likeness in another, exact copies left out.
        patients: split -> number of patients (or lesions); empty where the source names none.
        ungrouped: images without a patient in a source that names patients.
        gray: images of a colour dataset that are gray.
    """

    info: DatasetInfo
    size: int | None
    counts: dict[str, dict[str, int]]
    images: dict[str, int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: list[tuple[Member, str]] = field(default_factory=list)
    looked: Looked = field(default_factory=Looked)
    equal: list[Pair] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    patients: dict[str, int] = field(default_factory=dict)
    ungrouped: int = 0
    gray: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing leaks for certain and every image can be read."""
        return not (self.unreadable or self.looked.leaks)

    @property
    def findings(self) -> list[Finding]:
        """All of it in words, the worst first; ``broken`` and ``fine`` are severities besides those of a Finding."""
        order = ("broken", "leak", "warning", "note", "fine")
        found = [*self.looked.findings, *self._told(), *(f for f in self.info.findings if f.severity != "leak")]
        return sorted(found, key=lambda finding: order.index(finding.severity))

    def _told(self) -> Iterator[Finding]:
        if broken := [why if member.name in why else f"{member.name}: {why}" for member, why in self.unreadable]:
            text = f"{len(broken):,} of {sum(self.images.values()):,} images cannot be read"
            yield Finding(text, len(broken), tuple(broken), "broken")
        else:
            yield Finding(f"all {sum(self.images.values()):,} images can be read", severity="fine")
        if not self.looked.leaks:
            patients = ", ".join(f"{name} {count:,}" for name, count in self.patients.items())
            also = f", and no patient or lesion ({patients})" if patients else ""
            yield Finding(f"no image is in two splits with equal pixels{also}", severity="fine")
        if not self.patients and not any(isinstance(f, SplitByImage) for f in self.info.findings):
            yield Finding(
                "this source names no patients, so whether splits share some cannot be checked", severity="note"
            )
        if self.ungrouped:
            text = f"{counted(self.ungrouped, 'image')} without a patient, although the source names patients"
            yield Finding(text, self.ungrouped)
        if self.near:
            lines = (f"{p.first} ~ {p.second}: correlation {p.correlation:.2f}" for p in self.near)
            text = f"{counted(len(self.near), 'image')} nearly the same as one of another split, for you to look at"
            yield Finding(text, len(self.near), tuple(lines))
        if self.gray:
            text = f"{counted(self.gray, 'image')} of this colour dataset without colour"
            yield Finding(text, self.gray, severity="note")
        for issue in () if self.info.findings else self.info.traps:
            yield Finding(f"known issue: {issue}")


def inspect(
    info: DatasetInfo,
    size: int | None = None,
    root: Path | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
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
    names = {name: names_of(splits[name]) for name in SPLITS}
    groups = {name: groups_of(splits[name]) for name in SPLITS}
    counts = {name: _counts(info, labels[name]) for name in SPLITS}
    found = Inspection(info, None if info.varied else chosen, counts, {name: len(labels[name]) for name in SPLITS})
    members = {
        split: [
            Member(split, row, names[split][row] if names[split] else f"{split} {row}", label_text(info, label))
            for row, label in enumerate(labels[split])
        ]
        for split in SPLITS
    }
    look, small, done = Look(), {}, 0
    for name in SPLITS:
        prints: list[hashes.Print | str] = []
        for part in _prints(info, name, splits[name], chosen):
            prints += part
            told(done + len(prints), sum(found.images.values()))
        done += len(prints)
        small[name] = np.stack([_NOTHING if isinstance(one, str) else one.small for one in prints])
        for member, one in zip(members[name], prints, strict=True):
            look.digests[name].append(None if isinstance(one, str) else one.digest)
            if isinstance(one, str):
                found.unreadable.append((member, one))
            else:
                found.sizes[one.width, one.height] += 1
                found.gray += one.gray and info.channels == 3
    if len(found.unreadable) == done:
        _refuse_absent(info, chosen, root)
    found.looked = look.done(info, labels, names, groups, examples=done)
    places = {split: look.rows(split) for split in SPLITS}
    for one, two in PAIRS:
        shared = [digest for digest in places[one] if digest in places[two]]
        found.equal += [Pair(members[one][places[one][d][0]], members[two][places[two][d][0]], 0, 1.0) for d in shared]
    found.near = _near(small, members, look)
    if any(any(part) for part in groups.values()):
        found.patients = {name: len({group for group in part if group}) for name, part in groups.items()}
        found.ungrouped = sum(found.images[name] - sum(map(bool, part)) for name, part in groups.items())
    return found


def _refuse_absent(info: DatasetInfo, size: int, root: Path | None) -> None:
    """No image can be read: where the source finds no files at all, it knows which option would help."""
    try:
        info.open().fingerprint(size, root)
    except ValueError as error:
        raise DataError(f"{info.name}: {error}") from error


def _counts(info: DatasetInfo, labels: npt.NDArray[np.int64]) -> dict[str, int]:
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(info.classes))
    return dict(zip(info.classes, counts.tolist(), strict=True))


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


def _near(small: dict[str, npt.NDArray[np.uint8]], members: dict[str, list[Member]], look: Look) -> list[Pair]:
    once = {  # rows of a split without its own repetitions
        name: np.array(sorted({d: row for row, d in reversed(list(enumerate(look.digests[name]))) if d}.values()), int)
        for name in SPLITS
    }
    pairs = []
    for one, two in PAIRS:
        # The smaller split is looked up in the larger: an image of the test split and what it resembles in training.
        first, second = (one, two) if len(small[one]) <= len(small[two]) else (two, one)
        for near in hashes.near(small[first][once[first]], small[second][once[second]]):
            left, right = int(once[first][near.first]), int(once[second][near.second])
            if look.digests[first][left] != look.digests[second][right]:
                pairs.append(Pair(members[first][left], members[second][right], near.bits, near.correlation))
    return sorted(pairs, key=lambda pair: -pair.correlation)


def pick(
    info: DatasetInfo, split: str, given: AnySplit, size: int, wanted: Sequence[int]
) -> dict[int, npt.NDArray[np.uint8]]:
    """Decode some images of a split, index -> uint8 (H, W, C); those that cannot be read are left out."""
    if isinstance(given, LazySplit):
        readable = [index for index in wanted if not isinstance(_print_of(given, index, info.channels), str)]
        return {index: given.read(index) for index in readable}
    found: dict[int, npt.NDArray[np.uint8]] = {}
    start = 0
    for block in blocks_of(info, split, given, size, "native"):
        found |= {index: np.array(block[index - start]) for index in wanted if start <= index < start + len(block)}
        start += len(block)
    return found

"""What the pixels of a set give away while its decoded cache is made: repeated images, blank ones, shared patients.

Every image is hashed as it is written, at the size it is trained at, so looking needs no pass of its own. Images of one
gray level are all alike and count as blank, not as repeated.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.registry import DatasetInfo, Finding, counted, legible

Array = npt.NDArray[np.generic]
SPLITS = ("train", "val", "test")
PAIRS = tuple(combinations(SPLITS, 2))
EXAMPLES = 5


class Looked(NamedTuple):
    """What was found.

    Attributes:
        findings: in words, the worst first.
        repeated: split -> rows of train and val whose pixels are also in a later split.
    """

    findings: tuple[Finding, ...] = ()
    repeated: Mapping[str, Sequence[int]] = {}

    @property
    def leaks(self) -> list[Finding]:
        """Findings that say that test images or patients are known from training."""
        return [finding for finding in self.findings if finding.severity == "leak"]

    def as_json(self) -> dict[str, Any]:
        """As the cache's manifest keeps it."""
        return {"findings": [asdict(finding) for finding in self.findings], "repeated": dict(self.repeated)}

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Looked:
        """Read it back."""
        findings = tuple(Finding(**{**one, "examples": tuple(one["examples"])}) for one in kept["findings"])
        return cls(findings, kept["repeated"])


def digest_of(image: Array) -> bytes:
    """16 bytes that images share only if shape and pixels are equal; empty for an image of one gray level."""
    if image.max() == image.min():
        return b""
    found = hashlib.blake2b(f"{image.shape}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(image).data)
    return found.digest()


class Look:
    """Collects the digests of images, split by split and in order; None for one that cannot be read."""

    def __init__(self) -> None:
        self.digests: dict[str, list[bytes | None]] = {split: [] for split in SPLITS}

    def add(self, split: str, images: Array) -> None:
        """Look at the next images (N, H, W, C) of a split."""
        self.digests[split] += map(digest_of, images)

    def rows(self, split: str) -> dict[bytes, list[int]]:
        """Digest -> rows of a split, in order of the first."""
        found: dict[bytes, list[int]] = {}
        for row, digest in enumerate(self.digests[split]):
            if digest:
                found.setdefault(digest, []).append(row)
        return found

    def done(
        self,
        info: DatasetInfo,
        labels: Mapping[str, Array],
        names: Mapping[str, Sequence[str]],
        groups: Mapping[str, Sequence[str]],
        examples: int = EXAMPLES,
    ) -> Looked:
        """Say what was found, with the labels, names and patients of all splits."""
        places = {split: self.rows(split) for split in SPLITS}
        findings: list[Finding] = []

        def told(text: str, count: int, shown: Iterable[str], severity: str = "warning") -> None:
            findings.append(Finding(text, count, tuple(islice(shown, examples)), severity))

        def called(*images: tuple[str, int]) -> str:
            """The images, with their labels where these differ."""
            said = []
            differ = len({labels[split][row].tobytes() for split, row in images}) > 1
            for split, row in images:
                name = legible(names[split][row]) if names[split] else f"{split} {row}"
                name = name if name.startswith(split) else f"{split}: {name}"
                said.append(f"{name} ({label_text(info, labels[split][row])})" if differ else name)
            return " = ".join(said)

        repeated: dict[str, set[int]] = {"train": set(), "val": set()}
        for one, two in PAIRS:
            shared = [digest for digest in places[one] if digest in places[two]]
            repeated[one].update(row for digest in shared for row in places[one][digest])
            if shared:
                both = [[(one, r) for r in places[one][d]] + [(two, r) for r in places[two][d]] for d in shared]
                text = f"{counted(len(shared), 'image')} of {one} {_is(len(shared))} in {two} too, with equal pixels"
                pairs = (called((one, places[one][d][0]), (two, places[two][d][0])) for d in shared)
                told(text + _otherwise(labels, both), len(shared), pairs, "leak")
            if patients := sorted((set(groups[one]) & set(groups[two])) - {""}):
                text = (
                    f"{len(patients):,} {'patients are' if len(patients) > 1 else 'patient is'} in {one} and in {two}"
                )
                told(text, len(patients), map(legible, patients), "leak")
        for split in SPLITS:
            again = [[(split, row) for row in rows] for rows in places[split].values() if len(rows) > 1]
            if count := sum(len(rows) - 1 for rows in again):
                text = f"{counted(count, 'image')} of {split} {'repeat' if count > 1 else 'repeats'} another of {split}"
                told(text + _otherwise(labels, again), count, (called(*rows[:2]) for rows in again))
            blank = [row for row, digest in enumerate(self.digests[split]) if digest == b""]
            if blank:
                text = f"{counted(len(blank), 'image')} of {split} {_is(len(blank))} of one gray level"
                told(text, len(blank), (called((split, row)) for row in blank))
            findings += _one_sided(info, split, labels[split])
        return Looked(tuple(findings), {split: sorted(rows) for split, rows in repeated.items()})


def all_findings(info: DatasetInfo, looked: Looked) -> list[Finding]:
    """What the source says and what the pixels show; a leak that both know is said once, split by split."""
    return [*(f for f in info.findings if f.severity != "leak" or not looked.leaks), *looked.findings]


def label_text(info: DatasetInfo, label: Array) -> str:
    """The class of an image, or its findings joined by a bar."""
    return "|".join(info.classes[c] for c in np.flatnonzero(label)) if np.ndim(label) else info.classes[int(label)]


def _is(count: int) -> str:
    return "are" if count != 1 else "is"


def _otherwise(labels: Mapping[str, Array], groups: Iterable[Sequence[tuple[str, int]]]) -> str:
    """How many groups of equal images have several labels."""
    count = sum(len({labels[split][row].tobytes() for split, row in group}) > 1 for group in groups)
    return f" ({count:,} with another label)" if count else ""


def _one_sided(info: DatasetInfo, split: str, labels: Array) -> list[Finding]:
    """Say that a split lacks classes."""
    if labels.ndim == 2:
        lacking = [name for name, n in zip(info.classes, labels.sum(axis=0), strict=True) if not n]
    else:
        count = Counter(labels.tolist())
        lacking = [name for at, name in enumerate(info.classes) if not count[at]]
    if not lacking:
        return []
    only = labels.ndim == 1 and len(info.classes) - len(lacking) == 1
    text = f"{split} has images of one class only" if only else f"{split} has no image of: {', '.join(lacking[:8])}"
    return [Finding(text, len(lacking))]

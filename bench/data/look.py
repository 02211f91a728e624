"""What the pixels of a set give away while its decoded cache is made: repeated images, blank ones, shared patients.

Every image is hashed as it is written, at the size it is trained at, so looking needs no pass of its own. Images of one
gray level are all alike and count as blank, not as repeated.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from bench.registry import DatasetInfo, Finding, legible

Array = np.ndarray[Any, Any]
SPLITS = ("train", "val", "test")
PAIRS = tuple(combinations(SPLITS, 2))
_EXAMPLES = 5


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


class Look:
    """Collects what :func:`add` is shown, split by split and in order."""

    def __init__(self) -> None:
        self._digests: dict[str, list[bytes]] = {split: [] for split in SPLITS}

    def add(self, split: str, images: Array) -> None:
        """Look at the next images (N, H, W, C) of a split; a blank one has no digest."""
        flat = np.ascontiguousarray(images).reshape(len(images), -1)
        blank = flat.max(axis=1) == flat.min(axis=1)
        self._digests[split] += [
            b"" if nothing else hashlib.blake2b(row.data, digest_size=16).digest()
            for row, nothing in zip(flat, blank.tolist(), strict=True)
        ]

    def done(
        self,
        info: DatasetInfo,
        labels: Mapping[str, Array],
        names: Mapping[str, Sequence[str]],
        groups: Mapping[str, Sequence[str]],
    ) -> Looked:
        """Say what was found, with the labels, names and patients of all splits."""
        findings: list[Finding] = []
        places = {
            split: _first_rows(digests) for split, digests in self._digests.items()
        }  # digest -> its rows, of each split

        def called(split: str, row: int) -> str:
            name = legible(names[split][row]) if names[split] else f"{split} {row}"
            return name if name.startswith(split) else f"{split}: {name}"

        repeated: dict[str, set[int]] = {"train": set(), "val": set()}
        for one, two in PAIRS:
            shared = [digest for digest in places[one] if digest in places[two]]
            rows = [row for digest in shared for row in places[one][digest]]
            repeated[one].update(rows)
            if rows:
                pairs = [f"{called(one, places[one][d][0])} = {called(two, places[two][d][0])}" for d in shared]
                other = sum(_differ(labels, one, places[one][d], two, places[two][d]) for d in shared)
                text = f"{_images(len(shared))} of {one} {_is(len(shared))} in {two} too, with equal pixels"
                text += f" ({other:,} with another label)" if other else ""
                findings.append(Finding(text, len(shared), tuple(pairs[:_EXAMPLES]), "leak"))
            if both := sorted((set(groups[one]) & set(groups[two])) - {""}):
                text = f"{len(both):,} {'patients are' if len(both) > 1 else 'patient is'} in {one} and in {two}"
                findings.append(Finding(text, len(both), tuple(map(legible, both[:_EXAMPLES])), "leak"))
        for split in SPLITS:
            findings += _within(split, places[split], labels[split], called)
            blank = [row for row, digest in enumerate(self._digests[split]) if not digest]
            if blank:
                text = f"{_images(len(blank))} of {split} {_is(len(blank))} of one gray level"
                findings.append(Finding(text, len(blank), tuple(called(split, row) for row in blank[:_EXAMPLES])))
            findings += _one_sided(info, split, labels[split])
        return Looked(tuple(findings), {split: sorted(rows) for split, rows in repeated.items()})


def _first_rows(digests: Iterable[bytes]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest:
            found.setdefault(digest, []).append(row)
    return found


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _is(count: int) -> str:
    return "are" if count != 1 else "is"


def _differ(labels: Mapping[str, Array], one: str, first: Sequence[int], two: str, second: Sequence[int]) -> bool:
    """Whether images of equal pixels have several labels."""
    return len({labels[split][row].tobytes() for split, rows in ((one, first), (two, second)) for row in rows}) > 1


def _within(split: str, places: Mapping[bytes, list[int]], labels: Array, called: Any) -> list[Finding]:
    again = [rows for rows in places.values() if len(rows) > 1]
    count = sum(len(rows) - 1 for rows in again)
    other = sum(len({labels[row].tobytes() for row in rows}) > 1 for rows in again)
    if not count:
        return []
    examples = tuple(" = ".join(called(split, row) for row in rows[:2]) for rows in again[:_EXAMPLES])
    text = f"{_images(count)} of {split} {'repeat' if count > 1 else 'repeats'} another of {split}"
    return [Finding(text + (f" ({other:,} with another label)" if other else ""), count, examples)]


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

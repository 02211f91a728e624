"""``folder:PATH``: a folder of images of the user's own, one folder per class.

Either ``PATH/<class>/...`` or ``PATH/<train|val|test>/<class>/...`` (``valid``, ``test_set``, ``Training`` and the like
too), or ``PATH/<class>/<train|val|test>/...``. Below a class, folders may be nested. What is not split is split
70/10/20, stratified, by patient if the names tell patients apart. Options are those of
:mod:`bench.datasets._listing`; two of them mean something of their own here:

    patient=REGEX   finds the patient in an image's path below PATH: its first group, or all of it (no commas, brackets)
    name=NAME       what tables show (default: the folder's name)
    split=...       what the top folders are where the same names lie below each of them: ``patient_folders`` (of one
                    patient each), ``classes``, or ``folders`` with test=NAME+NAME and val=NAME
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bench.datasets import _images, _splits
from bench.datasets._archives import ArchiveError, walk
from bench.datasets._contents import contents
from bench.datasets._listing import OwnSource, Rows
from bench.registry import Finding, SourceName, counted

_EXPECTED = "one folder per class, or train, val and test with one folder per class in each"


class Folder(OwnSource):
    """Adapter; see :class:`bench.registry.Adapter`."""

    told = "one folder per class"

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Names and contents of the files, and what decides the split."""
        digest, place = self.digest(), Path(self.source.place)
        names = sorted(_images_below(place)[0])
        for name, content in zip(names, contents(place, place, names), strict=True):
            digest.update(f"{name}\t{content}\n".encode("utf-8", "surrogateescape"))
        return f"folder-{digest.hexdigest()[:32]}"

    @classmethod
    def rows(cls, source: SourceName) -> Rows:
        """List the images of a folder, with the classes, splits and patients that its layout says.

        Raises:
            ValueError: the layout is not the one expected.
        """
        top = Path(source.place)
        if not top.is_dir():
            raise ValueError(f"there is no folder {top}" if not top.exists() else f"{top} is a file; name its folder")
        options = dict(source.options)
        images, others = _images_below(top)
        placed = _placed(top, sorted(images), options)
        found = {name: place for name, place in placed.items() if place}
        _expect_classes(top, sorted({place.kind for place in found.values()}), len(found))
        names = list(found)
        rows = Rows(
            names,
            ("the folders",),
            [place.kind for place in found.values()],
            lambda bad: f"{top}: {_splits.listed([names[i] for i in bad])}",
            lambda i: (top / names[i], names[i]),
            folder=top,
            deliberate=True,
            findings=_left_out([name for name, place in placed.items() if not place], others),
        )
        if any(place.split for place in found.values()):
            rows.splits = [place.split for place in found.values()]
        if any(place.patient for place in found.values()):
            rows.patients = [place.patient for place in found.values()]
        elif "patient" in options and not options["patient"].startswith("dicom"):
            rows.patients = _patients(names, options["patient"])
        return rows


source_info = Folder.source_info


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """Images, and other files, by their paths below a folder."""
    images: list[str] = []
    others: list[str] = []
    for path in walk(folder):
        found = _images.is_image(path) or _images.is_bare_dicom(f"{folder}/{path}")
        (images if found else others).append(path)
    return images, others


def _left_out(unplaced: list[str], others: list[str]) -> list[Finding]:
    found = []
    if unplaced:
        said = f"{counted(len(unplaced), 'image')} left out: in no class folder"
        found.append(Finding(said, len(unplaced), tuple(unplaced[:5])))
    if others:
        kinds = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in others)
        said = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
        found.append(Finding(f"files of other kinds are left out: {said}", len(others), tuple(others[:5]), "note"))
    return found


class _Place(NamedTuple):
    """Class, split and patient of an image, as folders name them."""

    kind: str
    split: str = ""
    patient: str = ""


def _placed(top: Path, names: list[str], options: dict[str, str]) -> dict[str, _Place | None]:
    """Read the class, and where they are folders the split and the patient, off each image's path."""
    folders = {name: tuple(name.split("/")[:-1]) for name in names}
    first = _folders(top)
    split_at = _split_level(top, first, folders, options)
    depth = 1 if split_at == 0 else 0  # where the classes' folders are
    by_patient = options.get("split") == "patient_folders"
    if not by_patient and split_at != 1:
        if options.get("split") != "classes":
            _refuse_recurring(top, folders, depth)
        if not depth:
            _refuse_empty(top, first, folders)

    def place(path: tuple[str, ...]) -> _Place | None:
        if len(path) <= max(depth, split_at or 0) + by_patient:
            return None
        if by_patient:
            return _Place(path[depth + 1], path[0] if depth else "", path[depth])
        if split_at == 1:
            return _Place(path[0], path[1])
        return _Place(path[depth], path[0] if depth else "")

    return {name: place(path) for name, path in folders.items()}


def _split_level(
    top: Path, first: list[str], folders: dict[str, tuple[str, ...]], options: dict[str, str]
) -> int | None:
    """0 where the top folders are splits, 1 where those below each class are, None where none are."""
    how = options.get("split", "")
    if how not in ("", "classes", "folders", "patient_folders"):
        raise ValueError(f"split={how}: of a folder's, split is patient_folders, classes or folders")
    if how == "folders" or "test" in options or "val" in options:
        return 0
    if how == "classes":
        return None
    words = {name: _splits.split_of(name) for name in first}
    if "train" in words.values() and len(first) > 1:
        for name, split in words.items():
            if split is None:
                raise ValueError(f"{top} holds splits, but also a folder {name!r}, which is none; move it away")
        twice = Counter(words.values())
        if doubled := [split for split, count in twice.items() if count > 1]:
            several = [name for name, split in words.items() if split == doubled[0]]
            raise ValueError(f"{top} holds two folders for {doubled[0]}: {several[0]!r} and {several[1]!r}")
        return 0
    below = {_splits.split_of(path[1]) for path in folders.values() if len(path) > 1}
    deep = all(len(path) > 1 for path in folders.values())
    return 1 if deep and None not in below and "train" in below and len(below) > 1 else None


def _refuse_recurring(top: Path, folders: dict[str, tuple[str, ...]], depth: int) -> None:
    """Refuse the same names below several folders: which of the two layers are the classes is not said."""
    owners: dict[str, set[tuple[str, ...]]] = {}
    for path in folders.values():
        if len(path) > depth + 1 and not _beside(path[depth + 1]):
            owners.setdefault(path[depth + 1], set()).add(path[: depth + 1])
    recurring = sorted(name for name, above in owners.items() if len(above) > 1)
    if len(recurring) > 1:
        above = sorted({path[-1] for name in recurring for path in owners[name]}, key=_splits.natural)
        raise ValueError(
            f"{top}: the same folders ({_splits.listed(recurring)}) lie below {_splits.listed(above)}, so the classes "
            "may be either; set split=patient_folders if each of the upper folders is a patient, split=folders with "
            f"test={above[-1]} (and val=NAME) if they are splits or folds, or split=classes if they are the classes"
        )


def _beside(name: str) -> bool:
    return bool(re.fullmatch(r"images?|imgs?|masks?|segmentations?|annotations?|ground_?truth", name, re.I))


def _folders(top: Path) -> list[str]:
    try:
        with os.scandir(top) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise ArchiveError(f"cannot read the folder {top}: {error.strerror or error}") from None


def _refuse_empty(top: Path, first: list[str], folders: dict[str, tuple[str, ...]]) -> None:
    filled = {path[0] for path in folders.values() if path}
    for name in first:
        if name not in filled:
            others = sorted({os.path.splitext(path)[1].lower() or "without a suffix" for path in walk(top / name)})
            what = f" (files of other kinds: {', '.join(others[:5])})" if others else ""
            raise ValueError(f"the class folder {top / name} holds no image{what}")


def _expect_classes(top: Path, classes: list[str], count: int) -> None:
    if len(classes) >= 2 and count:
        return
    if len(classes) == 1 and len(_folders(top / classes[0])) > 1:
        raise ValueError(f"{top} holds only the folder {classes[0]!r} (is that one meant?); expected {_EXPECTED}")
    if not classes:
        lying = len(_images_below(top)[0])
        inside = "no folder of a class" if _folders(top) else "no folder"
        inside += f" but {counted(lying, 'image')}" if lying else ""
        raise ValueError(f"{top} holds {inside}; expected {_EXPECTED}{_other_source(top)}")
    raise ValueError(
        f"{top} holds {counted(count, 'image')} of one class only, {classes[0]!r}; expected {_EXPECTED}"
        + _other_source(top)
    )


def _other_source(top: Path) -> str:
    """How to name what lies in the folder, where that is another source: a table, files of Hugging Face."""
    files = sorted(walk(top))
    if any(path.endswith((".parquet", ".arrow")) for path in files):
        return f". It looks like a Hugging Face dataset: hf:{top}"
    tables = [path for path in files if path.lower().endswith((".csv", ".tsv"))]
    return f". The labels may be in a table: csv:{top / tables[0]}[label=COLUMN]" if tables else ""


def _patients(names: list[str], pattern: str) -> list[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient={pattern} is not a valid regular expression: {error}") from None
    groups = []
    for name in names:
        match = regex.search(name)
        if not match:
            raise ValueError(f"patient={pattern} finds no patient in {name!r}")
        groups.append(match[1] if regex.groups else match[0])
    return groups

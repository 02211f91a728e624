"""``folder:PATH``: a folder of images of the user's own, one folder a class.

Either ``PATH/<class>/...`` or ``PATH/<train|val|test>/<class>/...`` (``valid``, ``validation``, ``dev`` and the like
too). Below a class, folders may be nested. What is not split is split 70/10/20, stratified, by patient if the names
tell patients apart. Options, in brackets:

    patient=REGEX   finds the patient in an image's path below PATH: its first group, or all of it (no commas, brackets)
    channels=1|3    make every image gray, or colour (else: gray stays gray if all of a sample is)
    mirror=true     a left-right flip keeps every label
    seed=N          another split
    name=NAME       what tables show (default: the folder's name)
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import ArchiveError, walk
from bench.datasets._listing import (
    Array,
    FileReader,
    Listing,
    channels_of,
    checked_options,
    info_of,
    made_here,
    same_as_planned,
)
from bench.registry import DatasetInfo, LazySplit, RegistryError, SourceName, parse_source

VERSION = 1  # raise it when load() would give something else for the same files


def facts(name: str) -> DatasetInfo:
    """Describe ``folder:PATH[options]`` by a look at its names and at the headers of some images.

    Raises:
        RegistryError: there is no such folder, or its layout is not the one expected; the message says what is wrong.
    """
    source = parse_source(name)
    checked_options(source, ("patient",))
    try:
        listing = scan(source)
        channels = channels_of(listing.names, lambda path: (Path(source.place, path), path))
    except (ValueError, OSError) as error:
        raise RegistryError(f"dataset {str(source)!r}: {error}") from None
    summary = f"{len(listing.names):,} images of {len(listing.classes)} classes, one folder a class"
    info: DatasetInfo = info_of(source, listing, channels, "bench.datasets.folder:Folder", summary)
    return info


class Folder:
    """Adapter; see :class:`bench.registry.Adapter`."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._source = parse_source(info.name)

    def files(self, size: int) -> tuple[()]:
        """Nothing that could be fetched."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Names, sizes and times of the files, and what decides the split."""
        digest = hashlib.sha256(f"{VERSION} {_splits.VERSION} {self._source.options} {self.info.channels}".encode())
        for name in sorted(_images_below(Path(self._source.place))):
            status = os.stat(os.path.join(self._source.place, name))
            line = f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return f"folder-{digest.hexdigest()[:32]}"

    def load(self, size: int, root: Path | None) -> dict[str, LazySplit]:
        """List the images; they are decoded one by one."""
        listing = scan(self._source)
        same_as_planned(self.info, {"classes": listing.classes})
        mix = "channels" in dict(self._source.options)

        def reader(members: Array) -> FileReader:
            names = tuple(listing.names[i] for i in members)
            return FileReader(self._source.place, names, self.info.channels, mix)

        made: dict[str, LazySplit] = listing.split(reader)
        return made


def scan(source: SourceName) -> Listing:
    """List the images of a folder and decide their splits.

    Raises:
        ValueError: the layout is not the one expected.
    """
    top = Path(source.place)
    if not top.is_dir():
        raise ValueError(f"there is no folder {top}" if not top.exists() else f"{top} is a file; name its folder")
    layers = _split_folders(top)
    found: list[tuple[int, str, str]] = []
    classes: set[str] = set()
    for split, prefix in layers.items():
        for name in _folders(top / prefix if prefix else top):
            classes.add(name)
            below = f"{prefix}/{name}" if prefix else name
            images = sorted(f"{below}/{path}" for path in _images_below(top / below))
            if not images and not prefix:
                raise ValueError(f"the class folder {top / below} holds no image{_what_else(top / below)}")
            found += [(split, name, path) for path in images]
    return _listed(source, top, layers, sorted(classes, key=_splits.natural), found)


def _listed(
    source: SourceName, top: Path, layers: dict[int, str], classes: list[str], found: list[tuple[int, str, str]]
) -> Listing:
    _expect_classes(top, classes, found)
    options = dict(source.options)
    seed = int(options.get("seed", "0"))
    names = [path for _, _, path in found]
    index = {name: i for i, name in enumerate(classes)}
    labels = np.asarray([index[name] for _, name, _ in found], np.int64)
    groups = _patients(names, options["patient"]) if "patient" in options else []
    traps: list[str] = []
    if layers == {0: ""}:
        splits = _splits.make(labels, names, groups, seed=seed, classes=classes)
        traps.append(made_here(_splits.SPLITS, bool(groups)))
    else:
        published = np.asarray([split for split, _, _ in found], np.int64)
        splits, taken = _splits.complete(published, labels, names, groups, seed, classes)
        if taken:
            traps.append(made_here(taken, bool(groups)))
        traps += _splits.torn_trap(groups, splits)
    _splits.check_classes(splits, labels, classes, str(top))
    return Listing(tuple(classes), tuple(names), labels, splits, tuple(groups), tuple(traps))


def _split_folders(top: Path) -> dict[int, str]:
    """Map split to folder, or 0 to "" where the classes lie at the top."""
    names = _folders(top)
    words = {name: _splits.split_of(name) for name in names}
    if "train" not in words.values() or len(names) < 2:
        return {0: ""}
    layers: dict[int, str] = {}
    for name, split in words.items():
        if split is None:
            raise ValueError(f"{top} holds splits, but also a folder {name!r}, which is none; move it away")
        number = _splits.SPLITS.index(split)
        if number in layers:
            raise ValueError(f"{top} holds two folders for {split}: {layers[number]!r} and {name!r}")
        layers[number] = name
    return dict(sorted(layers.items()))


def _folders(top: Path) -> list[str]:
    try:
        with os.scandir(top) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise ArchiveError(f"cannot read the folder {top}: {error.strerror or error}") from None


def _images_below(folder: Path) -> list[str]:
    return [path for path in walk(folder) if _images.is_image(path) or _images.is_bare_dicom(f"{folder}/{path}")]


def _what_else(folder: Path) -> str:
    others = sorted({os.path.splitext(path)[1].lower() or "no suffix" for path in walk(folder)})
    return f" (files of other kinds: {', '.join(others[:5])})" if others else ""


def _expect_classes(top: Path, classes: list[str], found: list[tuple[int, str, str]]) -> None:
    if len(classes) >= 2 and found:
        return
    expected = "one folder a class, or train, val and test with one folder a class in each"
    if len(classes) == 1 and len(_folders(top / classes[0])) > 1:
        raise ValueError(f"{top} holds only the folder {classes[0]!r} (is that one meant?); expected {expected}")
    if not classes:
        lying = sum(1 for path in walk(top) if _images.is_image(path))
        raise ValueError(f"{top} holds no folder{f' but {lying:,} images' if lying else ''}; expected {expected}")
    raise ValueError(f"{top} holds {len(found)} images of {len(classes)} class; expected {expected}")


def _patients(names: list[str], pattern: str) -> list[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient={pattern} is no regular expression: {error}") from None
    groups = []
    for name in names:
        match = regex.search(name)
        if not match:
            raise ValueError(f"patient={pattern} finds no patient in {name!r}")
        groups.append(match[1] if regex.groups else match[0])
    return groups

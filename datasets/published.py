"""Published sets beside MedMNIST: where the archive lies, whether all of it is there, its labels and its split.

A set is read from ``DATA_ROOT/<name>/``: the official archive as it was downloaded, or what it unpacks to, wherever
below that folder. Options in brackets:

    split=author   image by image in the papers' proportions; images of one patient lie on both sides
    subset=true    what is there may be less than what was published (a subset of one's own: not comparable)
    seed=N         another split
    group=sex+age  columns of the set's table by which results are also reported
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import Member, Tree
from bench.datasets._info import SETS
from bench.datasets._labels import BLANK
from bench.datasets._listing import Array, Listing, asked_groups
from bench.datasets.csv_table import read_table
from bench.registry import DatasetInfo, LazySplit, RegistryError, nearest, parse_source

FRACTIONS = (0.6, 0.1, 0.3)  # as MedMamba splits what has no published split
_OPTIONS = {"split": ("author",), "subset": ("true",), "seed": (), "group": ()}


class MissingArchiveError(ValueError):
    """A published set is not where it should be; the message says what to put where, and where to get it."""


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a published set.

    Attributes:
        names: what the set itself calls each image, however it is packed; decides the split.
        groups: patient (or lesion), or "".
        columns: what else the table of the set says of each image.
        published: 0, 1 or 2 for each image where the set comes with a split.
    """

    members: tuple[Member, ...]
    names: tuple[str, ...]
    labels: Array
    groups: tuple[str, ...] = ()
    published: Array | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemberReader:
    """Decodes image ``i`` of some members of a tree, which it keeps open where it was made."""

    members: tuple[Member, ...]
    how: _images.Decoding
    tree: Tree | None = field(default=None, compare=False)

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        member = self.members[index]
        return _images.decode(member.read(), member.path, self.how)

    def __reduce__(self) -> tuple[type[MemberReader], tuple[tuple[Member, ...], _images.Decoding]]:
        return MemberReader, (self.members, self.how)


class NamedSet:
    """Adapter of a published set; a subclass finds its images and labels. See :class:`bench.registry.Adapter`.

    Attributes:
        version: raise it when load() gives something else for the same files.
        archive: what to put into the folder.
        total: published number of images.
        per_class: of each class; empty where only the total is known.
        author: train, val and test of the papers' image-level split.
        lookalikes: number of images of sets that are easily mistaken for this one.
    """

    version: ClassVar[int] = 1

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        source = parse_source(f"variant:{info.name}")
        self.name, self.options = source.place, dict(source.options)
        self.known = SETS["published"][self.name]
        self.archive: str = self.known["archive"]
        self.total: int = self.known["images"]
        self.per_class = dict(zip(info.classes, self.known.get("per_class", ()), strict=False))
        self.author: tuple[int, int, int] = tuple(self.known.get("author", (6, 1, 3)))
        self.lookalikes = {int(count): name for count, name in self.known.get("lookalikes", {}).items()}

    def files(self, size: int) -> tuple[()]:
        """Nothing is fetched: no checksum of these archives is published."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Checksums in the archive, or names, sizes and times of unpacked files; and what decides the split.

        Raises:
            ValueError: the archive is not there, damaged or not to be trusted.
        """
        tree = self._tree(root, inner=False)
        options = sorted(item for item in self.options.items() if item[0] != "subset")
        text = f"{self.version} {_splits.VERSION} {options} {tree.digest()}"
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def load(self, size: int, root: Path | None) -> dict[str, LazySplit]:
        """List the images and split them; they are decoded one by one, out of the archive.

        Raises:
            ValueError: something is missing or not as published; the message names it.
        """
        tree = self._tree(root, inner=True)
        images = self.images(tree)
        self._complete(images)
        splits = self._splits(images)
        _splits.check_classes(splits, images.labels, self.info.classes, self.info.name)
        listing = Listing(self.info.classes, images.names, images.labels, splits, images.groups, columns=images.columns)

        def reader(chosen: Array) -> MemberReader:
            members = tuple(images.members[i] for i in chosen)
            return MemberReader(members, _images.Decoding(self.info.channels, mix=True), tree)

        return listing.split(reader)

    def images(self, tree: Tree) -> Images:
        """Find images and labels among the files; every set has its own way."""
        raise TypeError(f"{type(self).__name__} does not say what is in it")

    def _tree(self, root: Path | None, inner: bool) -> Tree:
        place = Path(root or ".") / self.name
        try:
            tree = Tree(place, inner=inner)
        except (FileNotFoundError, NotADirectoryError):
            tree = None
        if tree is None or not tree.members:
            raise MissingArchiveError(f"{self.name}: there is nothing in {place}; put there {self.archive}")
        return tree

    def _complete(self, images: Images) -> None:
        found = Counter(images.labels.tolist())
        count = len(images.names)
        wrong = [
            f"{name} {found[i]:,} instead of {self.per_class[name]:,}"
            for i, name in enumerate(self.info.classes)
            if name in self.per_class and found[i] != self.per_class[name]
        ]
        if (count == self.total and not wrong) or (self.options.get("subset") == "true" and count):
            return
        other = f" (as many as {self.lookalikes[count]} has)" if count in self.lookalikes else ""
        detail = f": {', '.join(wrong[:3])}" if wrong and count else ""
        raise ValueError(
            f"{self.name}: found {count:,} images{other}, the published set has {self.total:,}{detail}; expected "
            f"{self.archive}. A subset of your own is read as {self.name}[subset=true]"
        )

    def _splits(self, images: Images) -> Array:
        seed, classes = int(self.options.get("seed", "0")), self.info.classes
        if self.options.get("split") == "author":
            return _splits.by_count(images.labels, images.names, self.author, seed)
        if images.published is not None:
            return _splits.complete(images.published, images.labels, images.names, images.groups, seed, classes)[0]
        return _splits.make(images.labels, images.names, images.groups, FRACTIONS, seed, classes)


def variant(info: DatasetInfo, options: Mapping[str, str]) -> DatasetInfo:
    """Information on a published set with options.

    Raises:
        RegistryError: an unknown option or value, with the nearest right one.
    """
    for key, value in options.items():
        said = f"dataset {info.name!r}: {key}={value}"
        if key not in _OPTIONS:
            raise RegistryError(f"{said}: no such option{nearest(key, _OPTIONS)}; options: {', '.join(_OPTIONS)}")
        if _OPTIONS[key] and value not in _OPTIONS[key]:
            raise RegistryError(f"{said}: the only value is {key}={_OPTIONS[key][0]}")
        if key == "seed" and not value.isdecimal():
            raise RegistryError(f"{said}: a seed is a whole number")
    try:
        groups = asked_groups(options, info.columns)
    except ValueError as error:
        raise RegistryError(f"dataset {info.name!r}: {error}") from None
    if not options:
        return info
    name = f"{info.name}[{','.join(f'{key}={options[key]}' for key in sorted(options))}]"
    traps, count = info.traps, (info.n_train, info.n_val, info.n_test)
    if options.get("split") == "author":
        author: tuple[int, int, int] = getattr(info.open(), "author", (0, 0, 0))
        count = author if sum(author) > 100 else (None, None, None)  # else only the proportions are known
        traps = (
            "the split is by image, as in the papers: images of one patient or lesion lie on both sides, so scores "
            "are too high; proportions are theirs, the images are not, since their lists are not published",
            *traps,
        )
    if options.get("subset") == "true":
        count = (None, None, None)
        traps = ("a subset of the published images: not comparable with published scores", *traps)
    return replace(info, name=name, traps=traps, n_train=count[0], n_val=count[1], n_test=count[2], subgroups=groups)


# --- finding images and labels ---------------------------------------------------------------------------------


def once(members: Sequence[Member]) -> list[Member]:
    """Return images only, without the unpacked copies of those that lie in an archive too."""
    images = [member for member in members if _images.is_image(member.path)]
    packed = {(m.folder, m.name, m.size_bytes) for m in images if m.inner}
    return [m for m in images if m.inner or (m.folder, m.name, m.size_bytes) not in packed]


def twins(members: Sequence[Member]) -> tuple[str, ...]:
    """Give images whose files are the same to the byte one group, and others none."""
    sizes = Counter(member.size_bytes for member in members)
    sums = [(m.crc32(), m.size_bytes) if sizes[m.size_bytes] > 1 else None for m in members]
    count = Counter(sums)
    groups = tuple(f"same-{one[0]:08x}-{one[1]}" if one and count[one] > 1 else "" for one in sums)
    return groups if any(groups) else ()


class ClassFolders(NamedSet):
    """Adapter of a set whose images lie in folders named after the classes.

    None has patient ids or an official split: images are split 60/10/30, stratified, and files that are the same to the
    byte stay together. Frames of one video or patient cannot be told apart and lie on both sides.
    """

    def images(self, tree: Tree) -> Images:
        """Take each image's class from the nearest folder above it that is named like one."""
        known = {_letters(name): index for index, name in enumerate(self.info.classes)}
        found = []
        for member in once(tree.members):
            parts = member.path.split("/")
            for at in range(len(parts) - 2, -1, -1):
                if (label := known.get(_letters(parts[at]))) is not None:
                    found.append(("/".join([self.info.classes[label], *parts[at + 1 :]]), label, member))
                    break
        found.sort(key=lambda image: image[0])
        present = {label for _, label, _ in found}
        if lacking := [name for index, name in enumerate(self.info.classes) if index not in present]:
            raise ValueError(
                f"{self.name}: {tree.place} holds no image of class {_splits.listed(lacking)}; expected {self.archive}"
            )
        members = tuple(member for _, _, member in found)
        labels = np.asarray([label for _, label, _ in found], np.int64)
        return Images(members, tuple(name for name, _, _ in found), labels, twins(members))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


class WithTable(NamedSet):
    """Adapter of a set with a table of its images, labels and patients.

    fetal_planes_db has an official split by patient, whose val is taken from its training patients. In pad_ufes_20
    patients have several lesions and lesions several images, so we split by patient.
    """

    def images(self, tree: Tree) -> Images:
        """Join the table with the images."""
        known: dict[str, str] = self.known["table"]
        member = next((m for m in tree.members if m.name.lower() == known["file"].lower()), None)
        if member is None:
            raise MissingArchiveError(f"{tree.place} holds no {known['file']}; put there {self.archive}")
        table = read_table(member.read(), member.path)
        names = [name + known.get("suffix", "") for name in table.column(known["image"], "of the images")]
        kinds = table.column(known["label"], "of the labels")
        patients = table.column(known["patient"], "of the patients")
        number = {name: index for index, name in enumerate(self.info.classes)}
        table.refuse(kinds, lambda kind: kind not in number, f"{known['label']} is none of the {len(number)} classes")
        table.refuse(patients, lambda patient: not patient, "no patient is named")
        published = None
        if "train" in known:
            train = table.column(known["train"], "of the official split")
            table.refuse(train, lambda value: value not in ("0", "1"), f"{known['train']} should be 0 or 1")
            published = np.where(np.asarray(train) == "1", 0, 2)
        found = {image.name: image for image in once(tree.members)}
        table.refuse(names, lambda name: name not in found, f"the image is not there; expected {self.archive}")
        beside = {name: table.column(name, "") for name in self.info.columns if name in table.columns}
        return Images(
            tuple(found[name] for name in names),
            tuple(names),
            np.asarray([number[kind] for kind in kinds], np.int64),
            tuple(patients),
            published,
            {name: ["" if v.casefold() in BLANK else v for v in values] for name, values in beside.items()},
        )

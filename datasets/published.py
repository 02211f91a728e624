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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import Member, Tree
from bench.datasets._labels import BLANK
from bench.datasets._listing import Array, Listing, MemberReader, asked_groups
from bench.datasets.csv_table import Table, read_table
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


class NamedSet:
    """Adapter of a published set; a subclass says what is in it. See :class:`bench.registry.Adapter`.

    Attributes:
        version: raise it when load() gives something else for the same files.
        archive: what to put into the folder.
        per_class: published number of images of each class; empty where only the total is known.
        total: published number of images.
        author: train, val and test of the papers' image-level split.
        lookalikes: number of images of sets that are easily mistaken for this one.
    """

    version: ClassVar[int] = 1
    archive: str = ""
    per_class: Mapping[str, int] = {}
    total: int = 0
    author: tuple[int, int, int] = (6, 1, 3)
    lookalikes: Mapping[int, str] = {}

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        source = parse_source(f"variant:{info.name}")
        self.name, self.options = source.place, dict(source.options)

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
        listing = Listing(
            self.info.classes, images.names, images.labels, splits, images.groups, columns=images.columns
        )  # fmt: skip

        def reader(chosen: Array) -> MemberReader:
            members = tuple(images.members[i] for i in chosen)
            return MemberReader(members, _images.Decoding(self.info.channels, mix=True), tree)

        made: dict[str, LazySplit] = listing.split(reader)
        return made

    def images(self, tree: Tree) -> Images:
        """Find images and labels among the files; every set has its own way."""
        raise TypeError(f"{type(self).__name__} does not say what is in it")

    def _tree(self, root: Path | None, inner: bool) -> Tree:
        place = Path(root or ".") / self.name
        try:
            tree = Tree(place, inner=inner)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingArchiveError(self._wanted(place)) from None
        if not tree.members:
            raise MissingArchiveError(self._wanted(place))
        return tree

    def _wanted(self, place: Path) -> str:
        return f"{self.name}: there is nothing in {place}; put there {self.archive}"

    def _complete(self, images: Images) -> None:
        found = Counter(images.labels.tolist())
        count = len(images.names)
        wanted = self.total or sum(self.per_class.values())
        wrong = [
            f"{name} {found[i]:,} instead of {self.per_class[name]:,}"
            for i, name in enumerate(self.info.classes)
            if name in self.per_class and found[i] != self.per_class[name]
        ]
        if (count == wanted and not wrong) or (self.options.get("subset") == "true" and count):
            return
        other = f" (as many as {self.lookalikes[count]} has)" if count in self.lookalikes else ""
        detail = f": {', '.join(wrong[:3])}" if wrong and count else ""
        raise ValueError(
            f"{self.name}: found {count:,} images{other}, the published set has {wanted:,}{detail}; expected "
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


# --- helps for subclasses --------------------------------------------------------------------------------------


def once(members: Sequence[Member]) -> list[Member]:
    """Return images only, without the unpacked copies of those that lie in an archive too."""
    images = [member for member in members if _images.is_image(member.path)]
    packed = {(m.folder, m.name, m.size_bytes) for m in images if _is_packed(m)}
    return [m for m in images if _is_packed(m) or (m.folder, m.name, m.size_bytes) not in packed]


def _is_packed(member: Member) -> bool:
    return bool(member.inner) or member.holder.size_bytes >= 0


def by_name(members: Sequence[Member]) -> dict[str, Member]:
    """Map file names to images; the names of such a set are all different."""
    return {member.name: member for member in once(members)}


def table_named(tree: Tree, name: str, wanted: str) -> Member:
    """Return the table of that name.

    Raises:
        MissingArchiveError: there is none.
    """
    for member in tree.members:
        if member.name.lower() == name.lower():
            return member
    raise MissingArchiveError(f"{tree.place} holds no {name}; put there {wanted}")


def twins(members: Sequence[Member]) -> tuple[str, ...]:
    """Give images whose files are the same to the byte one group, and others none."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for index, member in enumerate(members):
        sizes[member.size_bytes].append(index)
    groups = [""] * len(members)
    for size, same in sizes.items():
        if len(same) > 1:
            sums = [members[i].crc32() for i in same]
            count = Counter(sums)
            for index, crc in zip(same, sums, strict=True):
                groups[index] = f"same-{crc:08x}-{size}" if count[crc] > 1 else ""
    return tuple(groups) if any(groups) else ()


def beside(table: Table, columns: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a set's table that are kept with the predictions; what says that nothing is known is blank."""
    found = {name: table.column(name, "of the images") for name in columns if name in table.columns}
    return {name: ["" if v.casefold() in BLANK else v for v in values] for name, values in found.items()}


def labels_of(values: Sequence[str], classes: Sequence[str]) -> Array:
    """Turn class names into numbers."""
    index = {name: i for i, name in enumerate(classes)}
    return np.asarray([index[value] for value in values], np.int64)


# --- sets that are one folder a class --------------------------------------------------------------------------

# None has patient ids or an official split: images are split 60/10/30, stratified, and files that are the same to the
# byte stay together. Frames of one video or patient cannot be told apart and lie on both sides.

_EIGHT = (
    "dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus", "normal-z-line",
    "polyps", "ulcerative-colitis",
)  # fmt: skip


class ClassFolders(NamedSet):
    """Adapter of a set whose images lie in folders named after the classes."""

    def images(self, tree: Tree) -> Images:
        """Take each image's class from the nearest folder above it that is named like one."""
        known = {_letters(name): name for name in self.info.classes}
        found = []
        for member in once(tree.members):
            parts = member.path.split("/")
            for at in range(len(parts) - 2, -1, -1):
                if kind := known.get(_letters(parts[at])):
                    found.append((kind, "/".join([kind, *parts[at + 1 :]]), member))
                    break
        found.sort(key=lambda image: image[1])
        present = {kind for kind, _, _ in found}
        if lacking := [name for name in self.info.classes if name not in present]:
            raise ValueError(
                f"{self.name}: {tree.place} holds no image of class {_splits.listed(lacking)}; expected {self.archive}"
            )
        members = tuple(member for _, _, member in found)
        labels = labels_of([kind for kind, _, _ in found], self.info.classes)
        return Images(members, tuple(name for _, name, _ in found), labels, twins(members))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


class CpnXray(ClassFolders):
    """COVID, normal and pneumonia chest X-rays (Shastri et al., Mendeley Data dvntn9yhd2)."""

    archive = (
        "dvntn9yhd2-1.zip from https://data.mendeley.com/datasets/dvntn9yhd2/1, as it is (an archive in it) or "
        "unpacked (COVID, NORMAL, PNEUMONIA)"
    )
    per_class = {"COVID": 1_626, "NORMAL": 1_802, "PNEUMONIA": 1_800}  # noqa: RUF012
    author = (3_140, 521, 1_567)
    lookalikes = {4_575: "Mendeley jctsfj2sfn", 6_939: "Mendeley mxc6vb7svm (also on Kaggle)"}  # noqa: RUF012


class KvasirV1(ClassFolders):
    """Endoscopy, 500 images a class: the version that MedMamba used (Pogorelov et al., MMSys, 2017)."""

    archive = "kvasir-dataset.zip from https://datasets.simula.no/kvasir, as it is or unpacked (one folder a class)"
    per_class = dict.fromkeys(_EIGHT, 500)
    author = (2_408, 392, 1_200)
    lookalikes = {8_000: "kvasir_v2"}  # noqa: RUF012


class KvasirV2(ClassFolders):
    """Endoscopy, 1,000 images a class."""

    archive = "kvasir-dataset-v2.zip from https://datasets.simula.no/kvasir, as it is or unpacked (one folder a class)"
    per_class = dict.fromkeys(_EIGHT, 1_000)
    lookalikes = {4_000: "kvasir_v1"}  # noqa: RUF012


_NOBODY = "there is no public archive of it"
_ASK = "ask the authors of MedMamba (https://github.com/YubiaoYue/MedMamba, issues 25, 37 and 47: others did)"


class Otoscopy2024(ClassFolders):
    """Ear endoscopy of nine classes, as used by MedMamba; not public."""

    per_class = {  # noqa: RUF012
        "cholesteatoma": 548,
        "chronic suppurative otitis media": 4_021,
        "external ear canal bleeding": 451,
        "impacted cerumen": 6_058,
        "normal": 4_685,
        "otomycosis": 2_507,
        "secretory otitis media": 2_720,
        "tympanic membrane calcification": 1_152,
        "acute otitis media": 439,
    }
    archive = (
        f"one folder a class ({', '.join(per_class)}); {_NOBODY}: {_ASK} or of Zeng et al. "
        "(doi:10.1038/s41598-021-90345-w)"
    )


class CervicalUS(ClassFolders):
    """Ultrasound of cervical lymph nodes, as used by MedMamba; a private set of one hospital."""

    archive = (
        f"one folder a class (normal, benign, primary, metastatic); {_NOBODY}, it belongs to the Second Affiliated "
        f"Hospital of Guangzhou Medical University: {_ASK}"
    )
    per_class = {"normal": 1_217, "benign": 601, "primary": 236, "metastatic": 1_338}  # noqa: RUF012


# --- sets with a table -------------------------------------------------------------------------------------------


class FetalPlanes(NamedSet):
    """Maternal-fetal ultrasound planes (Burgos-Artizzu et al., Scientific Reports 10:10200, 2020).

    The table is separated by semicolons, some names in it and the header ``Train `` end in blanks, and images are named
    without their suffix. Its official split is by patient; val is taken from its training patients.
    """

    archive = (
        "FETAL_PLANES_ZENODO.zip from https://zenodo.org/records/3904280, as it is or unpacked "
        "(FETAL_PLANES_DB_data.csv and Images/*.png)"
    )
    total = 12_400
    per_class = {  # noqa: RUF012
        "Fetal abdomen": 711,
        "Fetal brain": 3_092,
        "Fetal femur": 1_040,
        "Fetal thorax": 1_718,
        "Maternal cervix": 1_626,
        "Other": 4_213,
    }
    author = (7_446, 1_237, 3_717)

    def images(self, tree: Tree) -> Images:
        """Join the table with the images."""
        member = table_named(tree, "FETAL_PLANES_DB_data.csv", self.archive)
        table = read_table(member.read(), member.path)
        names = [f"{name}.png" for name in table.column("Image_name", "of the images")]
        kinds = table.column("Plane", "of the labels")
        patients = table.column("Patient_num", "of the patients")
        train = table.column("Train", "of the official split")
        table.refuse(kinds, lambda kind: kind not in self.info.classes, "Plane is none of the six classes")
        table.refuse(patients, lambda patient: not patient, "no patient is named")
        table.refuse(train, lambda value: value not in ("0", "1"), "Train should be 0 or 1")
        found = by_name(tree.members)
        table.refuse(names, lambda name: name not in found, f"the image is not there; expected {self.archive}")
        return Images(
            tuple(found[name] for name in names),
            tuple(names),
            labels_of(kinds, self.info.classes),
            tuple(patients),
            np.where(np.asarray(train) == "1", 0, 2),
            beside(table, self.info.columns),
        )


class PadUfes20(NamedSet):
    """Smartphone photographs of skin lesions (Pacheco et al., Data in Brief 32:106221, 2020).

    The archive holds ``metadata.csv`` and three archives of images, which are read where they lie. There is no official
    split; patients have several lesions and lesions several images, so we split by patient.
    """

    archive = (
        "zr7vgbcyr2-1.zip from https://data.mendeley.com/datasets/zr7vgbcyr2/1, as it is or unpacked (metadata.csv and "
        "images/imgs_part_1, _2, _3)"
    )
    total = 2_298
    author = (1_384, 227, 687)

    def images(self, tree: Tree) -> Images:
        """Join the table with the images."""
        member = table_named(tree, "metadata.csv", self.archive)
        table = read_table(member.read(), member.path)
        names = table.column("img_id", "of the images")
        kinds = table.column("diagnostic", "of the labels")
        patients = table.column("patient_id", "of the patients")
        table.refuse(kinds, lambda kind: kind not in self.info.classes, "diagnostic is none of the six classes")
        table.refuse(patients, lambda patient: not patient, "no patient is named")
        found = by_name(tree.members)
        table.refuse(names, lambda name: name not in found, f"the image is not there; expected {self.archive}")
        members = tuple(found[name] for name in names)
        labels = labels_of(kinds, self.info.classes)
        return Images(members, tuple(names), labels, tuple(patients), columns=beside(table, self.info.columns))

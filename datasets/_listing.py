"""What every source of single images comes down to: the same options, the same checks, and a list of images.

An adapter reads :class:`Rows` as the source says them; :func:`listed` decides what they mean, and what is left out is
counted in the findings. Options that every source has:

    patient=...             who must not be in two splits: a column (tables), a regular expression (folders), or
                            dicom or dicom:KEYWORD, read from the images' headers (PatientID, or another field)
    split=COLUMN            the published split; val=NAME+NAME and test=NAME+NAME say which folders or values are which
    labels, order, missing, uncertain, spelling, task: see :mod:`bench.datasets._labels`
    masks=ignore|keep       masks beside the images are left out, or are samples
    conflicts=drop          leave out images that the source gives two labels or patients
    window=file|full|bone|lung|brain|CENTRE/WIDTH, frames=first|middle|last|N: see :mod:`bench.datasets._images`
    channels=1|3            make every image gray, or colour (else: gray stays gray if all of a sample is)
    mirror=true             a left-right flip keeps every label
    positive=CLASS          of two classes, the one that sensitivity is of (malignant)
    group=COLUMN+COLUMN     columns by which results are also reported (sex, age, site, view)
    seed=N                  another split
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.datasets import _images, _labels, _splits
from bench.datasets._images import Decoding
from bench.datasets._labels import BLANK, Labels, Reading
from bench.registry import (
    DatasetInfo,
    Finding,
    LazySplit,
    RegistryError,
    SourceName,
    SplitByImage,
    counted,
    legible,
    nearest,
    parse_source,
    positive_of,
)

Array = np.ndarray

_HEADERS = 64  # images that are asked whether they are gray
_EXAMPLES = 5  # of a finding
_STRONG, _EXACT, _MOST_VALUES = 0.5, 0.999, 12  # of a column that goes with the label, or tells it
_TASKS = ("multi-class", "binary-class", "multi-label", "ordinal", "ordinal-regression")
# Option -> what it may be (a pattern), and how that is said.
OPTIONS: dict[str, tuple[str, str]] = {
    "channels": ("[13]", "channels are 1 or 3"),
    "mirror": ("true|false", "write true if a left-right flip keeps every label, else false"),
    "seed": (r"\d+", "a seed is a whole number"),
    "window": (
        r"file|full|bone|lung|brain|-?\d+(\.\d+)?/\d+(\.\d+)?",
        "a window is file, full, bone, lung, brain or CENTRE/WIDTH",
    ),
    "frames": (r"first|middle|last|[1-9]\d*", "frames is first, middle, last or a number from 1"),
    "patient": (".+", "name the patients"),
    "split": (".+", "name the column of the splits"),
    "val": (".+", "name what makes up val"),
    "test": (".+", "name what makes up test"),
    "labels": ("split:.+|whole|rows", "labels is split:SEPARATOR (comma for a comma), whole or rows"),
    "order": (".+<.+", "write the classes from least to most: none<mild<severe"),
    "missing": ("ignore|class|zero", "missing is ignore, class or zero"),
    "uncertain": ("ignore|zero|one", "uncertain is ignore, zero or one"),
    "spelling": ("merge|keep", "spelling is merge or keep"),
    "task": ("|".join(_TASKS), f"is none of {', '.join(_TASKS)}"),
    "masks": ("ignore|keep", "masks is ignore or keep"),
    "conflicts": ("drop", "the only value is conflicts=drop"),
    "positive": (".+", "name the class that is looked for"),
    "group": (".+", "name columns of the table, joined by +"),
}
_USUAL = {  # columns by their usual names, as letters and digits only
    "image": "image file filename path imagepath filepath img imageindex imageid imagename imagefile",
    "label": "label labels class target diagnosis findinglabels category dx",
    "patient": "patient patientid subject subjectid lesion lesionid participant participantid case caseid person"
    " personid pid patientnumber patientno subjectno",
    "split": "split set subset fold partition phase dataset group",
}
_MASK = r"masks?|seg|segs|segmentations?|annotations?|gt|groundtruth|ground_truth|roi|label|labels"
_MASK_FILE = re.compile(
    rf"(?:(?P<base>.+?)[ _.\-]+(?:{_MASK})(?:[ _\-]?\d+)?|(?P<glued>.+?)masks?|(?:mask|seg)[ _\-]+(?P<tail>.+))", re.I
)
_MASK_FOLDER = re.compile(_MASK, re.I)
_SURELY_MASKS = re.compile("masks?|segmentations?|annotations?|ground_?truth", re.I)
_IMAGE_FOLDER = re.compile("images?|imgs?|pictures?|jpe?gimages", re.I)


def usual(kind: str, columns: Iterable[str]) -> list[str]:
    """Columns that by their names are of a kind, the most usual name first."""
    order = _USUAL[kind].split()
    plain = {column: re.sub(r"[\W_]+", "", column.casefold()) for column in columns}
    return sorted((c for c, name in plain.items() if name in order), key=lambda c: order.index(plain[c]))


@dataclass(slots=True)
class Rows:
    """What an adapter reads of a source, as the source says it.

    Attributes:
        names: of each image: its path, or split and row.
        label: name of the labels' column (or columns, or what stands for one), for messages.
        labels: of each row: a text or a list of texts.
        columns: instead of ``labels``, if ``label`` names several: columns of 0 and 1.
        patients, splits: of each row as written, or None where the source has none.
        at: names rows in a message.
        files: names are files, so a name twice is one image twice.
        folder: that the names start from, where they are files.
        source: gives file or bytes and name of a row.
        deliberate: labels are names that somebody gave folders or classes.
        known: classes in an order of the source's own.
        beside: columns that are not used, which may give the labels away.
    """

    names: list[str]
    label: Sequence[str]
    labels: Sequence[object]
    at: Callable[[Sequence[int]], str]
    source: Callable[[int], tuple[Path | bytes, str]]
    columns: Sequence[Sequence[object]] = ()
    patients: list[str] | None = None
    splits: list[str] | None = None
    files: bool = True
    folder: Path = Path()
    deliberate: bool = False
    known: Sequence[str] = ()
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a source.

    Attributes:
        names: of each image: its path relative to the source.
        labels: int64 (N,), or (N, L) in {0, 1}.
        splits: 0, 1 or 2 for train, val and test.
        groups: patient or lesion of each image, or "".
        findings: what was noticed on the way and a reader of a score should know.
        rows: index of each image among the source's rows.
        columns: what else the source says of each image, by column.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Array
    splits: Array
    groups: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    task: str = ""
    rows: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def split(self, read: Callable[[Array], Callable[[int], Array]]) -> dict[str, LazySplit]:
        """Give the three splits; ``read`` makes a reader of the images with these indices."""
        made = {}
        for index, name in enumerate(_splits.SPLITS):
            members = np.flatnonzero(self.splits == index)
            groups = tuple(self.groups[i] for i in members) if self.groups else ()
            columns = {key: tuple(values[i] for i in members.tolist()) for key, values in self.columns.items()}
            names = tuple(self.names[i] for i in members)
            made[name] = LazySplit(self.labels[members], read(members), names, groups, columns)
        return made


# --- options ---------------------------------------------------------------------------------------------------


def checked_options(source: SourceName, own: Iterable[str] = ()) -> dict[str, str]:
    """Return the options of a source's name; ``own`` are those that only its adapter has.

    Raises:
        RegistryError: one is unknown, with the nearest right one, or has an impossible value.
    """
    have = (*own, *OPTIONS)
    options = dict(source.options)
    for key, value in options.items():
        said = f"dataset {str(source)!r}: {key}={value}"
        if key not in have:
            raise RegistryError(f"{said}: no such option{nearest(key, have)}; options: {', '.join(have)}")
        pattern, meant = OPTIONS.get(key, (".*", ""))
        if not re.fullmatch(pattern, value):
            raise RegistryError(f"{said} {meant}" if meant.startswith("is ") else f"{said}: {meant}")
    return options


def decoding(source: SourceName, channels: int) -> Decoding:
    """How the images of a source are decoded."""
    options = dict(source.options)
    return Decoding(channels, "channels" in options, options.get("window", "file"), options.get("frames", ""))


def unused(columns: Iterable[str], options: Mapping[str, str]) -> list[Finding]:
    """Name columns that by their names should decide a split, and that no option names."""
    found = []
    names = [column for column in columns if column not in options.values()]
    if "patient" not in options:
        for column in usual("patient", names):
            without = f"without patient={column} images of one patient may lie on both sides"
            found.append(Finding(f"column {column!r} is not used: {without}"))
    if "split" not in options:
        for column in usual("split", names):
            found.append(Finding(f"column {column!r} is not used: set split={column} if it is the published split"))
    return found


def spare(columns: Iterable[str], used: Collection[str], options: Mapping[str, str]) -> list[str]:
    """Columns that no option reads, which may give the labels away."""
    told = {value for key, value in options.items() if key not in ("group", "positive")}
    return [name for name in columns if name not in used and name not in told]


# --- from rows to a listing ------------------------------------------------------------------------------------


def listed(source: SourceName, rows: Rows) -> Listing:
    """Decide labels, patients and splits.

    Raises:
        ValueError: the source does not say what is needed, or says it in a way that can be meant in several.
    """
    options = dict(source.options)
    keep = np.ones(len(rows.names), bool)
    findings = list(rows.findings)
    if rows.files:
        keep &= _without_masks(rows, options, findings)
    labels = _read_labels(rows, options, keep)
    findings += labels.findings
    groups = _groups(rows, options, keep)
    if rows.files:
        _one_row_an_image(rows, labels, groups, keep, options, findings)
    chosen, left = _published(rows, options, keep)
    findings += left
    kept = np.flatnonzero(keep)
    names, values = [rows.names[i] for i in kept], labels.values[kept]
    groups = [groups[i] for i in kept] if groups else []
    seed, classes = int(options.get("seed", "0")), labels.classes
    findings += _shortcuts(rows.beside, kept, values, classes)
    if chosen is None:
        splits, taken = _splits.make(values, names, groups, seed=seed, classes=classes), _splits.SPLITS
    else:
        splits, taken = _splits.complete(chosen[kept], values, names, groups, seed, classes)
    if taken:
        findings.append(made_here(taken, bool(groups)))
    if torn := _splits.torn(groups, splits) if groups else 0:
        who = "1 patient has" if torn == 1 else f"{torn:,} patients have"
        findings.append(Finding(f"{who} images in more than one split", torn, severity="leak"))
    _splits.check_classes(splits, values, classes, source.place)
    columns = _columns(rows.beside, kept, options)
    return Listing(
        tuple(classes), tuple(names), values, splits, tuple(groups), tuple(findings), labels.task, kept, columns
    )  # fmt: skip


def asked_groups(options: Mapping[str, str], have: Iterable[str]) -> tuple[str, ...]:
    """The columns of ``group=``.

    Raises:
        ValueError: there is no such column, with the nearest one.
    """
    have = list(have)
    asked = tuple(part.strip() for part in options.get("group", "").split("+") if part.strip())
    for name in asked:
        if name not in have:
            listed = f"the columns are {', '.join(have)}" if have else "this source has no columns beside its images"
            raise ValueError(f"group={options['group']}: there is no column {name!r}{nearest(name, have)}; {listed}")
    return asked


def _columns(beside: Mapping[str, Sequence[str]], kept: Array, options: Mapping[str, str]) -> dict[str, list[str]]:
    """Columns that are kept with the predictions: numbers, few values, and those of ``group=``."""
    asked, found = asked_groups(options, beside), {}
    for name, cells in beside.items():
        values = ["" if str(cells[i]).strip().casefold() in BLANK else str(cells[i]).strip() for i in kept.tolist()]
        different = set(values) - {""}
        numeric = all(_labels.number_of(value) is not None for value in different)
        if name in asked or (len(different | ({""} & set(values))) > 1 and (numeric or len(different) <= _MOST_VALUES)):
            found[name] = values
    return found


def _read_labels(rows: Rows, options: Mapping[str, str], keep: Array) -> Labels:
    """Read the labels of the rows that are kept; ``keep`` loses those without one."""
    inside = np.flatnonzero(keep)

    def at(bad: Sequence[int]) -> str:
        return rows.at([int(inside[i]) for i in bad])

    reading = Reading(rows.label[0], at, options, rows.deliberate, rows.known)
    if rows.columns:
        columns = [[column[i] for i in inside.tolist()] for column in rows.columns]
        found = _labels.read_columns(rows.label, columns, reading)
    else:
        values: Sequence[object] = [rows.labels[i] for i in inside.tolist()]
        if options.get("labels") == "rows":
            values = _gathered([rows.names[i] for i in inside], values)
        found = _labels.read(values, reading)
    keep[inside[~found.keep]] = False
    whole = np.zeros((len(keep), *found.values.shape[1:]), np.int64)
    whole[inside] = found.values
    found.values = whole
    return found


def _gathered(names: Sequence[str], values: Sequence[object]) -> list[list[str]]:
    """Give every row of an image all labels that its rows have."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for name, value in zip(names, values, strict=True):
        found[name].update(dict.fromkeys(map(str, value if isinstance(value, list) else [value])))
    return [list(found[name]) for name in names]


def _shortcuts(
    beside: Mapping[str, Sequence[str]], kept: Array, labels: Array, classes: Sequence[str]
) -> list[Finding]:
    """Name columns that go with the label, such as a projection or a scanner: a model may learn them instead."""
    found = []
    for column, cells in beside.items() if labels.ndim == 1 else ():
        names, values = np.unique(
            np.asarray([str(cells[i]).strip() for i in kept], object).astype(str), return_inverse=True
        )
        if not 2 <= len(names) <= _MOST_VALUES:
            continue
        counts = np.zeros((len(classes), len(names)))
        np.add.at(counts, (labels, values), 1)
        expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
        shown = expected > 0
        chi2 = ((counts - expected)[shown] ** 2 / expected[shown]).sum()
        strength = float(np.sqrt(chi2 / (len(labels) * (min(counts.shape) - 1))))  # Cramer's V
        if strength >= _EXACT:
            said = (
                f"column {column!r} tells the label exactly: is it the label by another name, or a shortcut to learn?"
            )
            found.append(Finding(said, len(labels), severity="note"))
        elif strength >= _STRONG:
            at = int(counts.sum(axis=1).argmax())
            most = int(counts[at].argmax())
            of = f"{int(counts[at, most]):,} of {int(counts[at].sum()):,} {classes[at]!r} have {str(names[most])!r}"
            said = (
                f"column {column!r} goes with the label (Cramér's V {strength:.2f}; {of}): a model may learn it instead"
            )
            found.append(Finding(said, len(labels)))
    return found


def _groups(rows: Rows, options: Mapping[str, str], keep: Array) -> list[str]:
    chosen = options.get("patient", "")
    if re.fullmatch(r"dicom(:\w+)?", chosen):
        keyword = chosen.partition(":")[2] or "PatientID"
        return [
            _images.header_field(*rows.source(i), keyword) if kept else "" for i, kept in enumerate(keep.tolist())
        ]  # fmt: skip
    if rows.patients is None:
        return []
    if bad := [i for i in np.flatnonzero(keep).tolist() if rows.patients[i].casefold() in (*BLANK, "none")]:
        raise ValueError(f"{rows.at(bad)}: no patient is named")
    first: dict[str, str] = {}  # P1 and p1 are one patient: taking them for two could tear one apart
    numbers: list[str] = _labels.whole_numbers(rows.patients, keep)
    spelt = {patient: first.setdefault(_labels.spelling_key(patient), patient) for patient in dict.fromkeys(numbers)}
    return [spelt[patient] for patient in numbers]


def _one_row_an_image(
    rows: Rows, labels: Labels, groups: list[str], keep: Array, options: Mapping[str, str], findings: list[Finding]
) -> None:
    """Take an image that is listed several times once; refuse it if its rows do not agree."""
    places: dict[str, list[int]] = defaultdict(list)
    for i in np.flatnonzero(keep).tolist():
        places[rows.names[i]].append(i)
    torn: dict[str, set[int]] = {"labels": set(), "patients": set()}
    again: list[int] = []
    between = 0
    for found in places.values():
        if len({labels.values[i].tobytes() for i in found}) > 1:
            torn["labels"].update(found)
        if groups and len({groups[i] for i in found}) > 1:
            torn["patients"].update(found)
        first = {rows.splits[i] if rows.splits else "": i for i in reversed(found)}
        again += [i for i in found if i not in first.values()]
        between += len(first) > 1
    for what, bad in torn.items():
        if bad and options.get("conflicts") != "drop":
            other = ", or labels=rows if it has all of them" if what == "labels" else ""
            said = f"one image is listed with several {what}; set conflicts=drop to leave such images out{other}"
            raise ValueError(f"{rows.at(sorted(bad))}: {said}")
    dropped = sorted(torn["labels"] | torn["patients"])
    again = sorted(set(again) - set(dropped))
    keep[[*dropped, *again]] = False
    for left, said, severity in (
        (dropped, "images with several labels or patients", "warning"),
        (again, "the image of another row", "note"),
    ):
        if left:
            findings.append(
                Finding(f"{counted(len(left), 'row')} left out: {said}", len(left), (rows.at(left),), severity)
            )
    if between:
        findings.append(Finding(f"{counted(between, 'image')} listed in more than one split", between, severity="leak"))


# --- published splits ------------------------------------------------------------------------------------------


def _published(rows: Rows, options: Mapping[str, str], keep: Array) -> tuple[Array | None, list[Finding]]:
    """Number of each row's split; rows of no split are left out of ``keep`` and counted."""
    named = {part.strip(): split for split in ("val", "test") for part in options.get(split, "").split("+") if part}
    if rows.splits is None:
        if named:
            raise ValueError("val= and test= name parts of a split, but the source has none; set split=COLUMN")
        return None, []
    values = list(dict.fromkeys(rows.splits[i] for i in np.flatnonzero(keep)))
    if unknown := [name for name in named if name not in values]:
        raise ValueError(f"{named[unknown[0]]}={unknown[0]}: there is none{nearest(unknown[0], values)}")
    if named:
        meant: dict[str, str | None] = {value: named.get(value, "train") for value in values}
    else:
        meant = {value: _splits.split_of(value) for value in values}
        if len(values) == 1 and not rows.files:
            return None, []
    if "train" not in meant.values():
        raise ValueError(f"there is no train split; it has {', '.join(values)}; set test=NAME, the rest is train")
    unread = [value for value, split in meant.items() if split is None]
    if unread and rows.files:
        bad = [i for i in np.flatnonzero(keep).tolist() if rows.splits[i] in unread]
        column = f"column {options['split']!r}" if "split" in options else "a split"
        said = f"{column} should say train, val or test, found {unread[0]!r}; test=NAME (and val=NAME) say "
        raise ValueError(f"{rows.at(bad)}: {said}which values are which")
    number = {value: _splits.SPLITS.index(split) if split else -1 for value, split in meant.items()}
    splits = np.asarray([number.get(value, -1) for value in rows.splits], np.int64)
    left = int((keep & (splits < 0)).sum())
    keep &= splits >= 0
    return splits, [Finding(f"the splits {', '.join(unread)} are not used", left)] if unread else []


# --- masks -----------------------------------------------------------------------------------------------------


def _without_masks(rows: Rows, options: Mapping[str, str], findings: list[Finding]) -> Array:
    """Leave out what by name and place is the mask of another image."""
    keep = np.ones(len(rows.names), bool)
    if options.get("masks") == "keep":
        return keep
    images: dict[tuple[tuple[str, ...], str], set[int]] = defaultdict(set)
    parts = [_place_of(name) for name in rows.names]
    for i, (folders, stem) in enumerate(parts):
        images[tuple(f for f in folders if not _IMAGE_FOLDER.fullmatch(f)), stem].add(i)
    lonely = []
    for i, (folders, stem) in enumerate(parts):
        inside = [f for f in folders[-3:] if _MASK_FOLDER.fullmatch(f)]
        match = _MASK_FILE.fullmatch(stem)
        stems = [stem] if inside else []
        stems += [match["base"] or match["glued"] or match["tail"]] if match else []
        place = tuple(f for f in folders if f not in inside and not _IMAGE_FOLDER.fullmatch(f))
        if any(images.get((place, base), set()) - {i} for base in stems):
            keep[i] = False
        elif any(images.get((other, base)) for other in _unmasked(place) for base in (stem, *stems)):
            keep[i] = False  # benign_mask/1.png beside benign/1.png
        elif any(map(_SURELY_MASKS.fullmatch, inside)) and len(inside) < len(folders):
            lonely.append(i)
    if lonely and (not keep.all() or options.get("masks") == "ignore"):
        keep[lonely] = False
    elif lonely and not all(_MASK_FOLDER.fullmatch(parts[i][0][0]) for i in lonely):
        said = f"{counted(len(lonely), 'image')} in a folder named like masks"
        raise ValueError(f"{rows.at(lonely)}: {said}; set masks=ignore to leave them out, or masks=keep")
    twice = [sorted(same) for same in images.values() if len(same) > 1 and keep[sorted(same)].sum() > 1]
    if twice:
        said = f"{counted(len(twice), 'image')} beside another of the same name with another suffix: copies, or masks?"
        examples = [" and ".join(rows.names[i] for i in same) for same in twice[:_EXAMPLES]]
        if any(len({rows.names[i] for i in same}) > 1 for same in twice):
            findings.append(Finding(said, len(twice), tuple(examples)))
    left = np.flatnonzero(~keep).tolist()
    if left:
        said = f"{counted(len(left), 'mask')} beside images left out (masks=keep if they are samples)"
        severity = "note" if "masks" in options else "warning"
        findings.append(Finding(said, len(left), tuple(rows.names[i] for i in left[:_EXAMPLES]), severity))
    return keep


def _unmasked(folders: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The folders that a folder named after another and a mask's word lies beside."""
    found = []
    for at, name in enumerate(folders):
        if (match := _MASK_FILE.fullmatch(name)) and (match["base"] or match["glued"]):
            found.append((*folders[:at], match["base"] or match["glued"], *folders[at + 1 :]))
    return found


def _place_of(name: str) -> tuple[tuple[str, ...], str]:
    *folders, base = name.split("/")
    return tuple(folders), base.rpartition(".")[0] or base


# --- info -----------------------------------------------------------------------------------------------------


def info_of(source: SourceName, listing: Listing, rows: Rows, adapter: str, told: str) -> DatasetInfo:
    """Write down what is known of a listed source; the headers of a sample of its images are read."""
    count = [int((listing.splits == index).sum()) for index in range(3)]
    sample = listing.rows[:: max(1, len(listing.rows) // _HEADERS)].tolist()
    survey = _images.survey((rows.source(i) for i in sample), decoding(source, 3))
    remarks = [
        Finding(f"{text} (of a sample, {len(names)} of {len(sample)})", len(names), tuple(names[:_EXAMPLES]))
        for text, names in survey.remarks.items()
    ]
    options = dict(source.options)
    if options.get("window", "file") != "file":
        remarks.append(Finding(f"gray values are shown through window={options['window']}", severity="note"))
    findings = tuple(replace(f, examples=tuple(map(legible, f.examples))) for f in (*listing.findings, *remarks))
    kind = "findings" if listing.labels.ndim == 2 else "classes"
    told_of = list(findings)
    positive = positive_of(listing.task, listing.classes, options.get("positive", ""))
    if positive and positive.guessed:
        other = listing.classes[1 - positive.number]
        said = f"the positive class is taken to be {positive.name!r}; override with positive={other}"
        told_of.append(Finding(said, severity="note"))
    return DatasetInfo(
        name=str(source),
        task=listing.task,
        classes=listing.classes,
        channels=int(options.get("channels", survey.channels)),
        adapter=adapter,
        varied=True,
        n_train=count[0],
        n_val=count[1],
        n_test=count[2],
        summary=f"{len(listing.names):,} images of {len(listing.classes)} {kind}, {told}",
        source=source.place,
        mirror_safe=options.get("mirror") == "true",
        traps=tuple(finding.text for finding in findings),
        findings=tuple(told_of),
        positive=options.get("positive", ""),
        columns=tuple(listing.columns),
        subgroups=asked_groups(options, listing.columns),
    )


def made_here(names: Sequence[str], grouped: bool) -> Finding:
    """Say that splits were made here."""
    which = "the splits were" if len(names) == 3 else f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
    made = f"{which} made by medbench"
    if grouped:
        return Finding(f"{made}, by patient", severity="note")
    return SplitByImage(f"{made}, image by image: images of one patient, if there are any, may lie on both sides")


# --- adapters --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileReader:
    """Decodes image ``i`` of some files; pickled into the processes that decode."""

    folder: Path
    names: tuple[str, ...]
    how: Decoding

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        name = self.names[index]
        return _images.decode(self.folder / name, name, self.how)


class OwnSource(ABC):
    """Adapter of a user's own images; a subclass says what the source holds. See :class:`bench.registry.Adapter`.

    Attributes:
        version: raise it when load() would give something else for the same files.
        own_options: those that no other source has.
        told: where the images come from, for the summary.
    """

    version: ClassVar[int] = 2
    own_options: ClassVar[tuple[str, ...]] = ()
    told: ClassVar[str] = ""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.source = parse_source(info.name)

    @classmethod
    def source_info(cls, name: str) -> DatasetInfo:
        """Describe a source by what it lists and by the headers of some images.

        Raises:
            RegistryError: it is not usable, or an option is not; the message says what is wrong.
        """
        source = parse_source(name)
        checked_options(source, cls.own_options)
        try:
            rows = cls.rows(source)
            return info_of(source, listed(source, rows), rows, f"{cls.__module__}:{cls.__name__}", cls.told)
        except (ValueError, OSError) as error:
            raise RegistryError(f"dataset {str(source)!r}: {error}") from None

    @classmethod
    @abstractmethod
    def rows(cls, source: SourceName) -> Rows:
        """Read what the source lists. Raises ValueError, naming the place that is not as it should be."""

    def files(self, size: int) -> tuple[()]:
        """Nothing that could be fetched."""
        return ()

    def load(self, size: int, root: Path | None) -> dict[str, LazySplit]:
        """List the images; they are decoded one by one."""
        rows = self.rows(self.source)
        listing = listed(self.source, rows)
        if listing.classes != self.info.classes:
            raise ValueError(
                f"{self.info.name}: its classes were {self.info.classes} and are {listing.classes} now; run again"
            )
        read = self.reader(rows, listing, decoding(self.source, self.info.channels))
        return listing.split(read)

    def reader(self, rows: Rows, listing: Listing, how: Decoding) -> Callable[[Array], Callable[[int], Array]]:
        """What makes a reader of some images of a listing, by their indices."""
        return lambda chosen: FileReader(rows.folder, tuple(listing.names[i] for i in chosen), how)

    def digest(self, *more: str) -> hashlib._Hash:
        """A digest of what decides the split, to which a subclass adds its files."""
        splits = _splits.VERSION_OF_FINDINGS if self.info.task == "multi-label" else _splits.VERSION
        text = " ".join([f"{self.version} {splits}", *more, f"{self.source.options} {self.info.channels}"])
        return hashlib.sha256(text.encode())

"""``csv:PATH[image=COL,label=COL,...]``: a table of images of the user's own, comma-, semicolon- or tab-separated.

    image=COL       path of the image, relative to the table's folder, or to root (default: image, file, filename, path)
    label=COL       the class; several columns of 0 and 1, joined by ``+``, are findings of a multi-label set
    patient=COL     who must not be in two splits; empty fields are refused
    split=COL       the published split (train, val, test and what people write for them); train gives what it lacks
    root=DIR        folder of the images, seen from where bench runs
    suffix=.png     added to each path
    name=NAME       what tables show (default: the file's name without suffix)
    task=ordinal    the classes are grades (else multi-class or binary-class)
    channels=1|3, mirror=true, seed=N as in ``folder:``

Without ``split`` the images are split 70/10/20, stratified, by patient. Names are compared without blanks around them;
the first line names the columns.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.datasets import _splits
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
from bench.registry import DatasetInfo, LazySplit, RegistryError, SourceName, nearest, parse_source

VERSION = 1  # raise it when load() would give something else for the same files
OPTIONS = ("image", "label", "patient", "split", "root", "suffix", "task")
EMPTY = frozenset(("", "nan", "na", "n/a", "<na>", "#n/a", "null"))
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # .xlsx and .ods; .xls
_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "target", "diagnosis")
_PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id", "lesion", "lesion_id")
_TASKS = {"ordinal": "ordinal-regression", "ordinal-regression": "ordinal-regression"}


@dataclass(frozen=True, slots=True)
class Table:
    """The fields of a table, stripped of blanks.

    Attributes:
        place: the file, for messages.
        lines: the line of the file on which each row ends.
    """

    place: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str, meant: str) -> list[str]:
        """Return one column. Raises ValueError, with the nearest name, where there is none."""
        if name not in self.columns:
            raise ValueError(
                f"{self.place} has no column {name!r} ({meant}){nearest(name, self.columns)}; "
                f"it has {', '.join(self.columns)}"
            )
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def at(self, bad: Sequence[int]) -> str:
        """Write ``line 3`` or ``lines 3, 4, 9 and 2 more`` for row indices."""
        lines = [self.lines[i] for i in bad]
        return f"line{'s' if len(lines) > 1 else ''} {_splits.listed(lines, 5)}"

    def refuse(self, values: Sequence[str], wrong: Callable[[str], bool], said: str) -> None:
        """Raise ValueError with the lines of the values that are wrong."""
        if bad := [i for i, value in enumerate(values) if wrong(value)]:
            raise ValueError(f"{self.place}, {self.at(bad)}: {said}")


def read_table(content: bytes, place: str) -> Table:
    """Read a table whose first line names the columns.

    Raises:
        ValueError: naming the file and the line that is not as it should be.
    """
    if content.startswith(_SPREADSHEETS):
        raise ValueError(
            f"{place} is a spreadsheet, not a text table; save it as one in Excel (File, Save As, CSV UTF-8) or "
            "LibreOffice (Save As, Text CSV) and name the .csv file"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{place}, line {line}: is not UTF-8; save the table as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{place} is no table of text")
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        for fields in reader:
            row = [field.strip() for field in fields]
            while row and not row[-1] and len(row) > (len(rows[0]) if rows else 0):
                row.pop()  # empty columns at the end, as spreadsheets write them
            if any(row):
                rows.append(tuple(row))
                lines.append(reader.line_num)
                if len(row) != len(rows[0]):
                    raise ValueError(
                        f"{place}, line {reader.line_num}: has {len(row)} fields, the header {len(rows[0])}"
                    )
    except csv.Error as error:
        raise ValueError(f"{place}, line {reader.line_num}: {error}") from None
    if len(rows) < 2:
        raise ValueError(f"{place} holds {'a header only' if rows else 'nothing'}; rows of images are expected")
    twice = sorted({name for name in rows[0] if rows[0].count(name) > 1})
    if twice:
        raise ValueError(f"{place}: column {_splits.listed(twice)} is there twice")
    return Table(place, rows[0], tuple(rows[1:]), tuple(lines[1:]))


# --- the adapter -----------------------------------------------------------------------------------------------


def facts(name: str) -> DatasetInfo:
    """Describe ``csv:PATH[options]`` by reading the table and the headers of some images.

    Raises:
        RegistryError: the table or its options are not usable; the message says what is wrong.
    """
    source = parse_source(name)
    options = checked_options(source, OPTIONS)
    task = options.get("task", "")
    if task and task not in (*_TASKS, "multi-class", "binary-class"):
        raise RegistryError(f"dataset {str(source)!r}: task={task} is none of {', '.join(_TASKS)}, multi-class")
    try:
        listing = scan(source)
        folder = _folder(source)
        channels = channels_of(listing.names, lambda path: (folder / path, path))
    except (ValueError, OSError) as error:
        raise RegistryError(f"dataset {str(source)!r}: {error}") from None
    kind = "findings" if listing.labels.ndim == 2 else "classes"
    summary = f"{len(listing.names):,} images of {len(listing.classes)} {kind}, listed in a table"
    adapter = "bench.datasets.csv_table:CsvTable"
    info: DatasetInfo = info_of(source, listing, channels, adapter, summary, _TASKS.get(task, task))
    return info


class CsvTable:
    """Adapter; see :class:`bench.registry.Adapter`."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._source = parse_source(info.name)

    def files(self, size: int) -> tuple[()]:
        """Nothing that could be fetched."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """The table's content, sizes and times of the images, and what decides the split.

        Raises:
            ValueError: images that the table lists are not there, with its lines.
        """
        table, names = _images_of(self._source)
        digest = hashlib.sha256(f"{VERSION} {_splits.VERSION} {self._source.options} {self.info.channels}".encode())
        digest.update(Path(self._source.place).read_bytes())
        folder, absent = _folder(self._source), []
        for index, name in enumerate(names):
            try:
                status = os.stat(folder / name)
                digest.update(f"{status.st_size}\t{status.st_mtime_ns}\n".encode())
            except OSError:
                absent.append(index)
        if absent:
            first = folder / names[absent[0]]
            raise ValueError(f"{table.place}, {table.at(absent)}: there is no image {first} (say root=DIR?)")
        return f"csv-{digest.hexdigest()[:32]}"

    def load(self, size: int, root: Path | None) -> dict[str, LazySplit]:
        """List the images; they are decoded one by one."""
        listing = scan(self._source)
        same_as_planned(self.info, {"classes": listing.classes})
        folder, mix = str(_folder(self._source)), "channels" in dict(self._source.options)

        def reader(members: Array) -> FileReader:
            return FileReader(folder, tuple(listing.names[i] for i in members), self.info.channels, mix)

        made: dict[str, LazySplit] = listing.split(reader)
        return made


def _folder(source: SourceName) -> Path:
    root = dict(source.options).get("root")
    return Path(root).expanduser() if root else Path(source.place).parent


def _images_of(source: SourceName) -> tuple[Table, list[str]]:
    path = Path(source.place)
    if not path.is_file():
        raise ValueError(f"there is no table {path}" if not path.exists() else f"{path} is no file; name the table")
    table = read_table(path.read_bytes(), path.name)
    options = dict(source.options)
    values = table.column(_chosen(table, options, "image", _IMAGE_COLUMNS), "of the images")
    table.refuse(values, lambda value: value.lower() in EMPTY, "no image is named")
    return table, [value.replace("\\", "/") + options.get("suffix", "") for value in values]


def _chosen(table: Table, options: dict[str, str], key: str, usual: Sequence[str]) -> str:
    if key in options:
        return options[key]
    for name in usual:
        for column in table.columns:
            if column.lower() == name:
                return column
    raise ValueError(f"{table.place}: say {key}=COLUMN in brackets; it has {', '.join(table.columns)}")


def scan(source: SourceName) -> Listing:
    """Read the table and decide the splits.

    Raises:
        ValueError: naming the file, the column, and the lines that are wrong.
    """
    table, names = _images_of(source)
    options = dict(source.options)
    seed = int(options.get("seed", "0"))
    classes, labels = _labels(table, _chosen(table, options, "label", _LABEL_COLUMNS))
    groups: list[str] = []
    if "patient" in options:
        groups = table.column(options["patient"], "of the patients")
        table.refuse(groups, lambda value: value.lower() in EMPTY, "no patient is named")
    traps = _unused(table, options)
    # An image that is listed twice must not lie in two splits either.
    owners = groups or (names if len(set(names)) < len(names) else [])
    keys = [f"{name} {i}" for i, name in enumerate(names)] if owners is names else names
    if "split" in options:
        published = _published(table, options["split"])
        splits, taken = _splits.complete(published, labels, keys, owners, seed, classes)
        traps += _splits.torn_trap(groups, splits)
    else:
        splits, taken = _splits.make(labels, keys, owners, seed=seed, classes=classes), _splits.SPLITS
    if taken:
        traps.append(made_here(taken, bool(groups)))
    _splits.check_classes(splits, labels, classes, table.place)
    return Listing(tuple(classes), tuple(names), labels, splits, tuple(groups), tuple(traps))


def _unused(table: Table, options: dict[str, str]) -> list[str]:
    """Name columns that by their names should decide the split, and that no option names."""
    said = []
    for column in table.columns:
        if "patient" not in options and column.lower() in _PATIENT_COLUMNS:
            without = f"without patient={column} images of one patient may lie on both sides"
            said.append(f"column {column!r} is not used: {without}")
        if "split" not in options and column.lower() == "split":
            said.append(f"column {column!r} is not used: say split={column} if it is the published split")
    return said


def _labels(table: Table, column: str) -> tuple[list[str], Array]:
    if column not in table.columns and "+" in column:
        return _findings(table, [name.strip() for name in column.split("+") if name.strip()])
    values = table.column(column, "of the labels")
    table.refuse(values, lambda value: value.lower() in EMPTY, f"no label in column {column!r}")
    values = _whole_numbers(values)
    classes = sorted(set(values), key=_splits.natural)
    if len(classes) < 2:
        raise ValueError(f"{table.place}: column {column!r} holds one class only, {classes[0]!r}")
    if len(classes) > 1000 or len(classes) * 2 > len(values) > 20:
        raise ValueError(
            f"{table.place}: column {column!r} holds {len(classes)} different values in {len(values)} rows; "
            "those are no classes"
        )
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.asarray([index[value] for value in values], np.int64)


def _whole_numbers(values: list[str]) -> list[str]:
    """Write ``1.0`` as ``1`` where all values are whole numbers: pandas turns a column with gaps into floats."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return values
    return [str(int(number)) for number in numbers] if all(number.is_integer() for number in numbers) else values


def _findings(table: Table, columns: list[str]) -> tuple[list[str], Array]:
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    found = []
    for column in columns:
        values = [value.lower() for value in table.column(column, "of a finding")]
        table.refuse(values, lambda value: value in EMPTY, f"no label in column {column!r}")
        table.refuse(values, lambda value: value not in known, f"column {column!r} should hold 0 and 1 only")
        found.append([known[value] for value in values])
    return columns, np.asarray(found, np.int64).T.copy()


def _published(table: Table, column: str) -> Array:
    values = table.column(column, "of the splits")
    numbers = [_splits.split_of(value) for value in values]
    if bad := [i for i, split in enumerate(numbers) if split is None]:
        raise ValueError(
            f"{table.place}, {table.at(bad)}: column {column!r} should say train, val or test, found {values[bad[0]]!r}"
        )
    return np.asarray([_splits.SPLITS.index(split or "") for split in numbers], np.int64)

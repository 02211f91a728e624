"""``csv:PATH[image=COL,label=COL,...]``: a table of images of the user's own.

    image=COL       path of the image, relative to the table's folder, or to root (default: image, file, path ...)
    label=COL       the class; several columns of 0 and 1, joined by ``+``, are findings of a multi-label set
    patient=COL     who must not be in two splits; empty fields are refused
    split=COL       the published split (train, val, test and what people write for them); train gives what it lacks
    root=DIR        folder of the images, seen from where bench runs
    strip=PREFIX    removed from the beginning of each path (``C:/Users/me/study``)
    suffix=.png     added to each path
    name=NAME       what tables show (default: the file's name without suffix)
    sep=;           between fields (comma, semicolon, tab, bar), where it cannot be told
    encoding=cp1252 of the text, where it is not UTF-8

The others are those of :mod:`bench.datasets._listing`. Without ``split`` the images are split 70/10/20, stratified, by
patient. Names are compared without blanks around them; the first line names the columns.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from bench.datasets import _images, _splits
from bench.datasets._contents import contents
from bench.datasets._labels import BLANK
from bench.datasets._listing import OwnSource, Rows, spare, unused, usual
from bench.registry import Finding, SourceName, nearest

_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # .xlsx and .ods; .xls
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE = 30  # lines that decide the separator


@dataclass(frozen=True, slots=True)
class Table:
    """The fields of a table, stripped of blanks.

    Attributes:
        place: the file, for messages.
        lines: the line of the file on which each row ends.
        separator: between fields.
    """

    place: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    separator: str = ","

    def column(self, name: str, meant: str) -> list[str]:
        """Return one column. Raises ValueError, with the nearest name, where there is none."""
        if name not in self.columns:
            raise ValueError(
                f"{self.place} has no column {name!r} ({meant}){nearest(name, self.columns)}; "
                f"it has {', '.join(self.columns)}{self.apart}"
            )
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    @property
    def apart(self) -> str:
        """How the separator was understood, where it is no comma or left one column."""
        named = _SEPARATORS.get(self.separator, self.separator)
        guessed = self.separator != "," or len(self.columns) == 1
        return f" (separated by {named}; override with sep=)" if guessed else ""

    def at(self, bad: Sequence[int]) -> str:
        """Write ``line 3`` or ``lines 3, 4, 9 and 2 more`` for row indices."""
        lines = [self.lines[i] for i in bad]
        return f"line{'s' if len(lines) > 1 else ''} {_splits.listed(lines, 5)}"

    def refuse(self, values: Sequence[str], wrong: Callable[[str], bool], said: str) -> None:
        """Raise ValueError with the lines of the values that are wrong."""
        if bad := [i for i, value in enumerate(values) if wrong(value)]:
            raise ValueError(f"{self.place}, {self.at(bad)}: {said}")


def read_table(content: bytes, place: str, separator: str = "", encoding: str = "") -> Table:
    """Read a table whose first line names the columns; ``sep=;`` and comment lines (``#``) may stand before it.

    Args:
        content: the file.
        place: what messages call it.
        separator: between fields; "" finds it: the one of ``, ; tab |`` that all lines agree on.
        encoding: of the text; "" is UTF-8, or UTF-16 with its mark.

    Raises:
        ValueError: naming the file and the line that is not as it should be.
    """
    if content.startswith(_SPREADSHEETS):
        raise ValueError(
            f"{place} is a spreadsheet, not a text table; save it as one in Excel (File, Save As, CSV UTF-8) or "
            "LibreOffice (Save As, Text CSV) and name the .csv file"
        )
    text = _decoded(content, place, encoding)
    begin = 0
    rest = text
    while match := re.match(
        r'"?sep=(.)"?[ ,;\t]*(?:\r\n|\r|\n)|#(?![,;\t|]).*?(?:\r\n|\r|\n)|\s*?(?:\r\n|\r|\n)', rest
    ):
        separator = separator or match[1] or ""
        begin, rest = begin + 1, rest[match.end() :]
    separator = separator or _separator(rest, place)
    reader = csv.reader(io.StringIO(rest, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    first = begin + 1  # line on which the row begins
    try:
        for fields in reader:
            row = _trimmed(fields, len(rows[0]) if rows else 0)
            if any(row):
                rows.append(tuple(row))
                lines.append(begin + reader.line_num)
                _check_row(fields, rows, separator, f"{place}, line {first}")
            first = begin + reader.line_num + 1
    except csv.Error as error:
        opened = "a quote is opened here and never closed" if "end of data" in str(error) else str(error)
        raise ValueError(f"{place}, line {first}: {opened}") from None
    if len(rows) < 2:
        raise ValueError(f"{place} holds {'a header only' if rows else 'nothing'}; rows of images are expected")
    twice = sorted({name for name in rows[0] if name and rows[0].count(name) > 1})
    if twice:
        raise ValueError(f"{place}: column {_splits.listed(twice)} is there twice")
    return Table(place, rows[0], tuple(rows[1:]), tuple(lines[1:]), separator)


def _decoded(content: bytes, place: str, encoding: str) -> str:
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = content.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except LookupError:
        raise ValueError(f"{place}: encoding={encoding} is unknown; utf-8, utf-16, cp1252 are usual") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        other = "save the table as UTF-8, or set encoding=cp1252 (or what it is)"
        raise ValueError(f"{place}, line {line}: is not {encoding or 'UTF-8'}; {other}") from None
    if "\0" in text:
        raise ValueError(f"{place} is not a text table")
    return text.removeprefix("\ufeff")


def _trimmed(fields: Sequence[str], width: int) -> list[str]:
    """Fields without blanks around them, and without empty columns at the end, as spreadsheets write them."""
    row = [field.strip() for field in fields]
    while row and not row[-1] and len(row) > width:
        row.pop()
    return row


def _separator(text: str, place: str) -> str:
    """The separator by which the first lines have the same number of fields, two or more."""
    agreed, widest = [], (0, ",")
    for candidate in ",;\t|":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=candidate)
        try:
            sample = [row for row in itertools.islice(reader, _SAMPLE) if any(field.strip() for field in row)]
        except csv.Error:
            continue
        header = len(_trimmed(sample[0], 0)) if sample else 0
        widest = max(widest, (header, candidate), key=lambda found: found[0])
        if header > 1 and all(len(_trimmed(row, header)) == header for row in sample):
            agreed.append(candidate)
    if len(agreed) > 1:
        named = " and ".join(_SEPARATORS.get(found, found) for found in agreed)
        raise ValueError(f"{place}: {named} both separate its lines evenly; choose one with sep=")
    return agreed[0] if agreed else widest[1]


def _fields(line: str, separator: str, width: int) -> list[str]:
    return _trimmed(next(csv.reader([line], delimiter=separator), []), width)


def _check_row(fields: Sequence[str], rows: Sequence[Sequence[str]], separator: str, where: str) -> None:
    """Refuse a row of another length than the header, and one whose quotes have swallowed other rows."""
    width, named = len(rows[0]), _SEPARATORS.get(separator, separator)
    inside = [_fields(line, separator, width) for field in fields for line in field.splitlines()[1:-1]]
    ends = [_fields(lines[-1], separator, width) for field in fields if len(lines := field.splitlines()) > 1]
    ends = [row for row in ends if any(map(_images.is_image, row))]  # the last line of a note may hold commas
    swallowed = sum(len(row) == width for row in (*inside, *ends))
    if swallowed and width > 1:
        raise ValueError(f"{where}: a quote that is opened here is closed after {swallowed} lines that look like rows")
    if len(rows[-1]) != width:
        raise ValueError(
            f"{where}: has {len(rows[-1])} fields, the header {width} (separated by {named}; override with sep=)"
        )


# --- the adapter -----------------------------------------------------------------------------------------------


class CsvTable(OwnSource):
    """Adapter; see :class:`bench.registry.Adapter`."""

    own_options = ("image", "label", "root", "strip", "suffix", "sep", "encoding")
    told = "listed in a table"

    def fingerprint(self, size: int, root: Path | None) -> str:
        """The contents of the table and of the images, and what decides the split.

        Raises:
            ValueError: images that the table lists are not there, with its lines.
        """
        table, names, _ = _images_of(self.source)
        digest = self.digest()
        digest.update(Path(self.source.place).read_bytes())
        folder = _folder(self.source)
        if absent := [index for index, name in enumerate(names) if not os.path.exists(folder / name)]:
            name = names[absent[0]]
            raise ValueError(
                f"{table.place}, {table.at(absent)}: there is no image {folder / name}{_hint(folder, name)}"
            )
        for content in contents(Path(self.source.place), folder, names):
            digest.update(f"{content}\n".encode())
        return f"csv-{digest.hexdigest()[:32]}"

    @classmethod
    def rows(cls, source: SourceName) -> Rows:
        """Read the table.

        Raises:
            ValueError: naming the file, the column, and the lines that are wrong.
        """
        table, names, findings = _images_of(source)
        options = dict(source.options)
        folder = _folder(source)
        label = _chosen(table, options, "label")
        several = [part.strip() for part in label.split("+") if part.strip()]
        several = [label] if label in table.columns else several
        columns = [table.column(name, "of the labels" if len(several) == 1 else "of a finding") for name in several]
        rows = Rows(
            names,
            several,
            columns[0],
            lambda bad: f"{table.place}, {table.at(bad)}",
            lambda i: (folder / names[i], names[i]),
            columns=columns if len(columns) > 1 else (),
            folder=folder,
            findings=[*findings, *unused(table.columns, options)],
        )
        patient = options.get("patient", "")
        if patient and not patient.startswith("dicom"):
            rows.patients = table.column(patient, "of the patients")
        if "split" in options:
            rows.splits = table.column(options["split"], "of the splits")
        used = {*several, *usual("image", table.columns)[:1]}
        rows.beside = {name: table.column(name, "") for name in spare(table.columns, used, options)}
        return rows


source_info = CsvTable.source_info


def _folder(source: SourceName) -> Path:
    root = dict(source.options).get("root")
    return Path(root).expanduser() if root else Path(source.place).parent


def _images_of(source: SourceName) -> tuple[Table, list[str], list[Finding]]:
    path = Path(source.place)
    if not path.is_file():
        raise ValueError(f"there is no table {path}" if not path.exists() else f"{path} is not a file; name the table")
    options = dict(source.options)
    apart = {named: sign for sign, named in _SEPARATORS.items()}
    separator = apart.get(options.get("sep", ""), options.get("sep", ""))
    table = read_table(path.read_bytes(), path.name, separator, options.get("encoding", ""))
    values = table.column(_chosen(table, options, "image"), "of the images")
    table.refuse(values, lambda value: value.casefold() in BLANK, "no image is named")
    strip = _plain(options["strip"]).rstrip("/") + "/" if "strip" in options else ""
    names = [_plain(value).removeprefix(strip) + options.get("suffix", "") for value in values]
    found, other = _on_disk(_folder(source), names)
    said = f"{len(other):,} paths differ from the names of their files in case or in the form of their letters"
    return table, found, [Finding(said, len(other), tuple(other[:5]), "note")] if other else []


def _chosen(table: Table, options: dict[str, str], key: str) -> str:
    if key in options:
        return options[key]
    if found := usual(key, table.columns):
        return str(found[0])
    binary = [name for name in table.columns if {*table.column(name, "")} <= {"0", "1", "0.0", "1.0"}]
    hint = f" (label={'+'.join(binary)} takes those of 0 and 1)" if key == "label" and len(binary) > 1 else ""
    have = ", ".join(table.columns)
    raise ValueError(f"{table.place}: set {key}=COLUMN in brackets; it has {have}{hint}{table.apart}")


# --- paths in tables -------------------------------------------------------------------------------------------


def _plain(value: str) -> str:
    """A path as this machine writes it: no quotes, no ``file://``, no backslashes, no ``./`` and ``//``."""
    value = value.strip("'\"")
    if value.lower().startswith("file://"):
        value = unquote("/" + value[7:].partition("/")[2])
    return posixpath.normpath(value.replace("\\", "/"))


def _on_disk(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names as the files are called, relative to the folder, and those that are called otherwise.

    A name that no file has takes the one file whose name differs only in case or in how letters are composed.
    """
    listed: dict[str, dict[str, list[str]]] = {}
    top = posixpath.normpath(str(folder.absolute()))
    found, other = [], []

    def inside(place: str) -> dict[str, list[str]]:
        if place not in listed:
            listed[place] = {}
            with contextlib.suppress(OSError):
                for entry in sorted(os.listdir(folder / place)):
                    listed[place].setdefault(_folded(entry), []).append(entry)
        return listed[place]

    for name in names:
        if name.startswith(f"{top}/"):
            name = name[len(top) + 1 :]
        place = "/" if name.startswith("/") else ""
        for part in name.strip("/").split("/"):
            have = [] if part == ".." else inside(place).get(_folded(part), [])
            place = posixpath.join(place, have[0] if len(have) == 1 else part)
        found.append(place)
        if place != name:
            other.append(name)
    return found, other


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _hint(folder: Path, name: str) -> str:
    """What would make a path that leads nowhere lead to a file."""
    parts = name.strip("/").split("/")
    for start in range(1, len(parts)):
        tail = "/".join(parts[start:])
        if (folder / _on_disk(folder, [tail])[0][0]).is_file():
            prefix = name[: len(name) - len(tail)].rstrip("/")
            return f", but {folder / tail} is there: set strip={prefix}"
    for suffix in (".png", ".jpg", ".jpeg", ".tif", ".dcm", ".PNG", ".JPG"):
        if (folder / f"{name}{suffix}").is_file():
            return f", but {name}{suffix} is: set suffix={suffix}"
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir() and (Path(entry.path) / name).is_file():
                return f", but {entry.path}/{name} is: set root={entry.path}"
    return " (set root=DIR?)"

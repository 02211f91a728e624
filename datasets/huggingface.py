"""``hf:NAME[config]``: images by way of Hugging Face's library ``datasets``, from its hub or from a disk, also offline.

``NAME`` is a name on the hub (``owner/name``), or a place on disk: a parquet file, a folder of parquet files, a folder
of images as their ``imagefolder`` wants it, or what ``save_to_disk`` wrote. Options after the config:

    image=COL, label=COL   the columns (default: the one of type Image; label, class, target, diagnosis ...);
                           several label columns joined by ``+`` are findings of a multi-label set
    patient=COL, split=COL who must not be in two splits; the published split of a set that has one table

and those of :mod:`bench.datasets._listing`. Classes are taken by their names, however a split numbers them.
Datasets that bring code to run are not loaded. The library keeps what it reads as Arrow files in a cache of its own
(``HF_HOME``), beside which ours holds the images at the size asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import walk
from bench.datasets._contents import contents
from bench.datasets._images import Decoding
from bench.datasets._listing import Array, Listing, OwnSource, Rows, spare, unused, usual
from bench.registry import Finding, SourceName, counted, nearest

_PLAIN = ("string", "bool", "int8", "int16", "int32", "int64")  # columns that may go with the label


class _Table(Protocol):
    """What is used of the library's ``Dataset``."""

    features: Mapping[str, object]
    _fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, object]: ...

    def select_columns(self, names: list[str]) -> _Table: ...

    def cast_column(self, name: str, feature: object) -> _Table: ...

    def to_dict(self) -> Mapping[str, list[object]]: ...


class HubError(ValueError):
    """A dataset cannot be opened or is not a set of labelled images; the message says why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset's tables, each of one split, and the columns of its images and labels."""

    source: SourceName
    tables: list[tuple[str, _Table]]
    image: str
    labels: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def places(self) -> list[tuple[int, int]]:
        """_Table and row of each image."""
        return [(at, row) for at, (_, table) in enumerate(self.tables) for row in range(len(table))]

    def column(self, name: str) -> list[str | list[str]]:
        """The values of a column; numbers of named classes become their names, so that tables may number them apart."""
        values: list[str | list[str]] = []
        for _, table in self.tables:
            if name not in table.features:
                have = ", ".join(table.features)
                raise HubError(f"there is no column {name!r}{nearest(name, table.features)}; it has {have}")
            named = _names(table.features[name])
            values += [_named(value, named) for value in table.select_columns([name]).to_dict()[name]]
        return values

    def known(self, name: str) -> list[str]:
        """The classes that a column names, in the order of the first table that does."""
        return list(dict.fromkeys(part for _, table in self.tables for part in _names(table.features[name])))


def _names(feature: object) -> list[str]:
    """The classes that a feature names, of one label or a list of them."""
    found: list[str] = (
        getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or []
    )
    return found


def _named(value: object, names: list[str]) -> str | list[str]:
    """A value as text, or a list of texts; -1 and None are no label."""
    if isinstance(value, list | tuple):
        return [str(_named(part, names)) for part in value]
    if value is None or value != value or (names and value == -1):
        return ""
    return names[value] if names and isinstance(value, int) else str(value)


@dataclass(frozen=True, slots=True)
class RowReader:
    """Decodes images of tables that lie on disk; pickled into the processes that decode."""

    tables: tuple[_Table, ...]
    rows: Array  # (n, 2): table and row of each image
    names: tuple[str, ...]
    column: str
    how: Decoding

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        table, row = self.rows[index].tolist()
        content = _content(self.tables[table][row][self.column], self.names[index])
        return _images.decode(content, self.names[index], self.how)


def _content(value: object, name: str) -> Path | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return Path(value)
    raise HubError(f"{name}: there is no image in this row")


class HuggingFace(OwnSource):
    """Adapter; see :class:`bench.registry.Adapter`. A dataset never used before is prepared by the library at once."""

    own_options = ("image", "label")
    told = "from Hugging Face datasets"

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Names and contents of local files, the library's own fingerprint of a hub's; and what splits."""
        digest = self.digest(self.source.config)
        place = Path(self.source.place)
        if place.exists():
            folder, names = (place, sorted(walk(place))) if place.is_dir() else (place.parent, [place.name])
            for name, content in zip(names, contents(place, folder, names), strict=True):
                digest.update(f"{name}\t{content}\n".encode("utf-8", "surrogateescape"))
        else:
            for name, table in _load(_library(), self.source):
                digest.update(f"{name} {table._fingerprint}\n".encode())
        return f"hf-{digest.hexdigest()[:32]}"

    @classmethod
    def rows(cls, source: SourceName) -> TableRows:
        """Open the tables and list their rows.

        Raises:
            ValueError: they cannot be opened, or have no images or labels.
        """
        return _rows(_open_tables(source))

    def reader(self, rows: TableRows, listing: Listing, how: Decoding) -> Callable[[Array], RowReader]:
        """What makes a reader of some images of a listing, by their indices."""
        opened = rows.opened
        tables = tuple(table.select_columns([opened.image]) for _, table in opened.tables)
        places = np.asarray(opened.places)[listing.rows]
        return lambda chosen: RowReader(
            tables, places[chosen], tuple(listing.names[i] for i in chosen), opened.image, how
        )


source_info = HuggingFace.source_info


# --- opening ---------------------------------------------------------------------------------------------------


def _open_tables(source: SourceName) -> Opened:
    """Open every split, images left undecoded.

    Raises:
        HubError: it cannot be opened, or has no images or labels.
    """
    library = _library()
    tables = _load(library, source)
    options = dict(source.options)
    features = tables[0][1].features
    image = options.get("image") or _image_column(library, features)
    label = options.get("label") or next(iter(usual("label", features)), "")
    labels = (label,) if label in features else tuple(part for part in label.split("+") if part)
    for column, key in ((image, "image"), *((name, "label") for name in labels or ("",))):
        if column not in features:
            near = nearest(column, features) if column else f"; set {key}=COLUMN in brackets"
            named = f" {column!r}" if column else ""
            raise HubError(f"there is no {key} column{named}{near}; it has {', '.join(features)}")
    if isinstance(features[image], library.Image):
        plain = library.Image(decode=False)
        tables = [(name, table.cast_column(image, plain)) for name, table in tables]
    findings = [*_without_row(Path(source.place), sum(len(table) for _, table in tables)), *unused(features, options)]
    return Opened(source, tables, image, labels, tuple(findings))


def _without_row(place: Path, count: int) -> list[Finding]:
    """Images of a folder with metadata that no row of it names: the library leaves them out."""
    if not place.is_dir() or not any(place.rglob("metadata.*")):
        return []
    left = sum(map(_images.is_image, walk(place))) - count
    said = f"{counted(left, 'image')} left out: no row in the folder's metadata"
    return [Finding(said, left)] if left > 0 else []


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise HubError(f"Hugging Face's library cannot be imported ({error}): pip install datasets") from None
    return datasets


def _load(library: ModuleType, source: SourceName) -> list[tuple[str, _Table]]:
    """Name of its split, and table: one a split, or one a file where parquet files name their classes apart."""
    place = Path(source.place)
    shown = not library.are_progress_bars_disabled()
    try:
        if place.exists():  # a bar is for downloads
            library.disable_progress_bars()
        if not place.exists():
            loaded = library.load_dataset(source.place, source.config or None)
        elif (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = library.load_from_disk(str(place))
        elif place.is_file():
            loaded = library.load_dataset(_builder(place), data_files=str(place.resolve()))
        else:
            if any(place.glob("*.py")):
                raise HubError(f"{place} needs a loading script, which is not run; use its parquet files")
            loaded = _apart(library, place.resolve(), source.config)
            loaded = loaded or library.load_dataset(str(place.resolve()), source.config or None)
    except HubError:
        raise
    except Exception as error:  # the library raises what its many readers raise
        what = "is not a dataset that can be read" if place.exists() else "is neither on this disk nor on the hub"
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise HubError(f"{source.place} {what}: {said}") from None
    finally:
        if shown:
            library.enable_progress_bars()
    tables = (
        loaded if isinstance(loaded, list) else list(loaded.items() if isinstance(loaded, dict) else [("", loaded)])
    )
    if not tables or not all(len(table) for _, table in tables):
        raise HubError(f"{source.place} has an empty split, or none")
    return [(name or "train", table) for name, table in tables]


def _apart(library: ModuleType, place: Path, config: str) -> list[tuple[str, _Table]]:
    """Split and table of each parquet file where they number their classes differently; else nothing.

    The library takes the first file's classes for all.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    parts = library.load_dataset_builder(str(place), config or None).config.data_files or {}
    files = [(str(split), path) for split, paths in parts.items() for path in paths]
    if not all(path.endswith(".parquet") for _, path in files):
        return []
    told = {(pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface") for _, path in files}
    if len(told) < 2:
        return []
    return [(split, library.load_dataset("parquet", data_files=path, split="train")) for split, path in files]


def _builder(path: Path) -> str:
    kinds = {".parquet": "parquet", ".arrow": "arrow"}
    if path.suffix.lower() not in kinds:
        raise HubError(f"{path} is not a parquet file; give a .parquet or .arrow file, or a folder")
    return kinds[path.suffix.lower()]


def _image_column(library: ModuleType, features: Mapping[str, object]) -> str:
    typed = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    raw = [name for name, kind in features.items() if isinstance(kind, Mapping) and "bytes" in kind]
    return next(iter([*typed, *raw, *(name for name in ("image", "img") if name in features)]), "")


# --- rows --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TableRows(Rows):
    """Rows, and the tables that they come from."""

    opened: Opened = field(kw_only=True)


def _rows(opened: Opened) -> TableRows:
    options = dict(opened.source.options)
    places = opened.places
    numbers = [f"{opened.tables[at][0]}/{row}" for at, row in places]
    columns = [opened.column(name) for name in opened.labels]
    known = opened.known(opened.labels[0]) if len(opened.labels) == 1 else []

    def content(i: int) -> tuple[Path | bytes, str]:
        at, row = places[i]
        return _content(opened.tables[at][1][row][opened.image], numbers[i]), numbers[i]

    rows = TableRows(
        numbers,
        opened.labels,
        columns[0],
        lambda bad: f"row {_splits.listed([numbers[i] for i in bad])}",
        content,
        columns=columns if len(columns) > 1 else (),
        splits=[opened.tables[at][0] for at, _ in places],
        files=False,
        known=known,
        deliberate=bool(known),
        findings=list(opened.findings),
        opened=opened,
    )
    patient = options.get("patient", "")
    if patient and not patient.startswith("dicom"):
        rows.patients = [str(value).strip() for value in opened.column(patient)]
    if "split" in options:
        rows.splits = [str(value).strip() for value in opened.column(options["split"])]
    plain = [name for name, kind in opened.tables[0][1].features.items() if getattr(kind, "dtype", "") in _PLAIN]
    rows.beside = {name: opened.column(name) for name in spare(plain, {opened.image, *opened.labels}, options)}
    return rows

"""``hf:NAME[config]``: images by way of Hugging Face's library ``datasets``, from its hub or from a disk, also offline.

``NAME`` is a name on the hub (``owner/name``), or a place on disk: a parquet file, a folder of parquet files, a folder
of images as their ``imagefolder`` wants it, or what ``save_to_disk`` wrote. Options after the config:

    image=COL, label=COL   the columns (default: the one of type Image; label, labels, class, target or diagnosis);
                           several label columns joined by ``+`` are findings of a multi-label set
    patient=COL            who must not be in two splits
    channels=1|3, mirror=true, seed=N as in ``folder:``

Datasets that bring code to run are not loaded. The library keeps what it reads as Arrow files in a cache of its own
(``HF_HOME``), beside which ours holds the images at the size asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import walk
from bench.datasets._listing import (
    Array,
    Listing,
    channels_of,
    checked_options,
    info_of,
    made_here,
    same_as_planned,
)
from bench.registry import DatasetInfo, LazySplit, RegistryError, SourceName, nearest, parse_source

VERSION = 1  # raise it when load() would give something else for the same files
_LABELS = ("label", "labels", "class", "target", "diagnosis")


class HubError(ValueError):
    """A dataset cannot be opened or is not a set of labelled images; the message says why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset's splits, and the columns of its images and labels."""

    source: SourceName
    splits: Mapping[str, Any]
    image: str
    labels: tuple[str, ...]

    @property
    def tables(self) -> list[Any]:
        """The splits in their order."""
        return list(self.splits.values())


@dataclass(frozen=True, slots=True)
class RowReader:
    """Decodes images of tables that lie on disk; pickled into the processes that decode."""

    tables: tuple[Any, ...]
    rows: Array  # (n, 2): table and row of each image
    names: tuple[str, ...]
    column: str
    channels: int
    mix: bool

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        table, row = self.rows[index].tolist()
        content = _content(self.tables[table][row][self.column], self.names[index])
        return _images.decode(content, self.names[index], self.channels, self.mix)


def _content(value: Any, name: str) -> Path | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return Path(value)
    raise HubError(f"{name}: there is no image in this row")


def facts(name: str) -> DatasetInfo:
    """Describe ``hf:NAME[config,options]``; a dataset that was never used before is prepared by the library now.

    Raises:
        RegistryError: it cannot be opened, or is not a set of labelled images; the message says why.
    """
    source = parse_source(name)
    checked_options(source, ("image", "label", "patient"))
    try:
        opened = open_tables(source)
        listing, rows = scan(opened)
        sample = [(opened.tables[t], r, listing.names[i]) for i, (t, r) in enumerate(rows.tolist())]
        channels = channels_of(sample, lambda at: (_content(at[0][at[1]][opened.image], at[2]), at[2]))
    except (ValueError, OSError) as error:
        raise RegistryError(f"dataset {str(source)!r}: {error}") from None
    kind = "findings" if listing.labels.ndim == 2 else "classes"
    summary = f"{len(listing.names):,} images of {len(listing.classes)} {kind}, by way of Hugging Face datasets"
    info: DatasetInfo = info_of(source, listing, channels, "bench.datasets.huggingface:HuggingFace", summary)
    return info


class HuggingFace:
    """Adapter; see :class:`bench.registry.Adapter`."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._source = parse_source(info.name)

    def files(self, size: int) -> tuple[()]:
        """Nothing: the library fetches for itself."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """Names, sizes and times of local files, the library's own fingerprint of a hub's; and what splits."""
        text = f"{VERSION} {_splits.VERSION} {self._source.config} {self._source.options} {self.info.channels}"
        digest = hashlib.sha256(text.encode())
        place = Path(self._source.place)
        if place.exists():
            for path in sorted(walk(place)) if place.is_dir() else [""]:
                status = os.stat(place / path)
                line = f"{path}\t{status.st_size}\t{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        else:
            for name, table in _load(_library(), self._source).items():
                digest.update(f"{name} {table._fingerprint}\n".encode())
        return f"hf-{digest.hexdigest()[:32]}"

    def load(self, size: int, root: Path | None) -> dict[str, LazySplit]:
        """List the images; they are decoded one by one."""
        opened = open_tables(self._source)
        listing, rows = scan(opened)
        same_as_planned(self.info, {"classes": listing.classes})
        mix = "channels" in dict(self._source.options)
        tables = tuple(table.select_columns([opened.image]) for table in opened.tables)

        def reader(members: Array) -> RowReader:
            names = tuple(listing.names[i] for i in members)
            return RowReader(tables, rows[members], names, opened.image, self.info.channels, mix)

        made: dict[str, LazySplit] = listing.split(reader)
        return made


# --- opening ---------------------------------------------------------------------------------------------------


def open_tables(source: SourceName) -> Opened:
    """Open every split, images left undecoded.

    Raises:
        HubError: it cannot be opened, or has no images or labels.
    """
    library = _library()
    splits = _load(library, source)
    options = dict(source.options)
    features = next(iter(splits.values())).features
    image = options.get("image") or _image_column(library, features)
    label = options.get("label") or next((name for name in _LABELS if name in features), "")
    labels = (label,) if label in features else tuple(part for part in label.split("+") if part)
    for column, key in ((image, "image"), *((name, "label") for name in labels or ("",))):
        if column not in features:
            near = nearest(column, features) if column else f"; say {key}=COLUMN in brackets"
            named = f" {column!r}" if column else ""
            raise HubError(f"there is no {key} column{named}{near}; it has {', '.join(features)}")
    if isinstance(features[image], library.Image):
        plain = library.Image(decode=False)
        splits = {name: table.cast_column(image, plain) for name, table in splits.items()}
    return Opened(source, splits, image, labels)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise HubError(f"Hugging Face's library cannot be imported ({error}): pip install datasets") from None
    return datasets


def _load(library: Any, source: SourceName) -> dict[str, Any]:
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
                raise HubError(f"{place} brings code to run, which is not loaded; use its parquet files")
            loaded = library.load_dataset(str(place.resolve()), source.config or None)
    except HubError:
        raise
    except Exception as error:  # the library raises what its many readers raise
        what = "is not a dataset that can be read" if place.exists() else "is neither on this disk nor to be had"
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise HubError(f"{source.place} {what}: {said}") from None
    finally:
        if shown:
            library.enable_progress_bars()
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    if not splits or not all(len(table) for table in splits.values()):
        raise HubError(f"{source.place} has an empty split, or none")
    return splits


def _builder(path: Path) -> str:
    kinds = {".parquet": "parquet", ".arrow": "arrow"}
    if path.suffix.lower() not in kinds:
        raise HubError(f"{path} is no parquet file; name a .parquet or .arrow file, or a folder")
    return kinds[path.suffix.lower()]


def _image_column(library: Any, features: Mapping[str, Any]) -> str:
    typed = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    raw = [name for name, kind in features.items() if isinstance(kind, Mapping) and "bytes" in kind]
    return next(iter([*typed, *raw, *(name for name in ("image", "img") if name in features)]), "")


# --- labels and splits -----------------------------------------------------------------------------------------


def scan(opened: Opened) -> tuple[Listing, Array]:
    """List the rows and decide their splits.

    Returns:
        The listing, and int64 (N, 2): table and row of each image.

    Raises:
        ValueError: labels are missing or not labels, or a split lacks a class.
    """
    options = dict(opened.source.options)
    tables = opened.tables
    classes, labels = _findings(opened) if len(opened.labels) > 1 else _labels(opened, opened.labels[0])
    rows = np.concatenate([np.column_stack([np.full(len(t), i), np.arange(len(t))]) for i, t in enumerate(tables)])
    names = [f"{split}/{row}" for split, table in opened.splits.items() for row in range(len(table))]
    groups: list[str] = []
    if "patient" in options:
        groups = [str(value).strip() for table in tables for value in _column(table, options["patient"])]
        if lacking := [n for n, group in zip(names, groups, strict=True) if group.lower() in ("", "none", "nan")]:
            raise HubError(f"no patient is named in row {_splits.listed(lacking)}")
    published, traps = _published(opened)
    kept = np.flatnonzero(published >= 0)
    names, labels, rows = [names[i] for i in kept], labels[kept], rows[kept]
    groups = [groups[i] for i in kept] if groups else []
    published, seed = published[kept], int(options.get("seed", "0"))
    if (published == 0).all():
        splits, taken = _splits.make(labels, names, groups, seed=seed, classes=classes), _splits.SPLITS
    else:
        splits, taken = _splits.complete(published, labels, names, groups, seed, classes)
    if taken:
        traps.append(made_here(taken, bool(groups)))
    traps += _splits.torn_trap(groups, splits)
    _splits.check_classes(splits, labels, classes, opened.source.place)
    return Listing(tuple(classes), tuple(names), labels, splits, tuple(groups), tuple(traps)), rows


def _column(table: Any, name: str) -> list[Any]:
    have = table.features
    if name not in have:
        raise HubError(f"there is no column {name!r}{nearest(name, have)}; it has {', '.join(have)}")
    return list(table.select_columns([name])[name])


def _published(opened: Opened) -> tuple[Array, list[str]]:
    """Return 0, 1, 2 for each row of a split called train, val, test, -1 for others; and what to tell about these."""
    known = {name: _splits.split_of(name) for name in opened.splits}
    if len(known) == 1:
        known = dict.fromkeys(known, "train")
    if "train" not in known.values():
        raise HubError(f"there is no train split; it has {', '.join(known)}")
    left = [name for name, split in known.items() if split is None]
    traps = [f"the splits {', '.join(left)} are not used"] if left else []
    number = [_splits.SPLITS.index(split) if split else -1 for split in known.values()]
    return np.repeat(number, [len(table) for table in opened.tables]), traps


def _labels(opened: Opened, column: str) -> tuple[list[str], Array]:
    feature = opened.tables[0].features[column]
    values = [value for table in opened.tables for value in _column(table, column)]
    inner: Any = getattr(feature, "feature", None)
    if hasattr(inner, "names"):
        return _multi_hot(list(inner.names), values, column)
    names = getattr(feature, "names", None)
    _refuse_empty(opened, column, values, lambda v: v is None or v != v or (names is not None and v < 0))
    if names is None:
        kinds = sorted({str(value).strip() for value in values}, key=_splits.natural)
        index = {name: i for i, name in enumerate(kinds)}
        values = [index[str(value).strip()] for value in values]
        names = kinds
    if len(names) < 2 or len(names) > max(1000, len(values) // 2):
        raise HubError(f"column {column!r} holds {len(names)} values in {len(values)} rows; those are no classes")
    return list(names), np.asarray(values, np.int64)


def _multi_hot(names: list[str], values: Iterable[Any], column: str) -> tuple[list[str], Array]:
    rows = list(values)
    labels = np.zeros((len(rows), len(names)), np.int64)
    for index, found in enumerate(rows):
        if found is None:
            raise HubError(f"column {column!r} holds no list in row {index}")
        labels[index, list(found)] = 1
    return names, labels


def _findings(opened: Opened) -> tuple[list[str], Array]:
    columns = []
    for name in opened.labels:
        values = [value for table in opened.tables for value in _column(table, name)]
        _refuse_empty(opened, name, values, lambda value: value not in (0, 1))
        columns.append(np.asarray(values, np.int64))
    return list(opened.labels), np.column_stack(columns)


def _refuse_empty(opened: Opened, column: str, values: list[Any], wrong: Any) -> None:
    names = [f"{split}/{row}" for split, table in opened.splits.items() for row in range(len(table))]
    if bad := [name for name, value in zip(names, values, strict=True) if wrong(value)]:
        raise HubError(f"column {column!r} holds no label in row {_splits.listed(bad)}")

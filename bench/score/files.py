"""Read a file of predictions as named columns: CSV, TSV, Parquet, npz, npy, JSON. Nothing is understood here yet."""

from __future__ import annotations

import csv
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from bench import registry
from bench.errors import DataError
from bench.metrics.one_vs_rest import Array

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".npz", ".npy", ".json")
NOT_BY_IMAGE = {"classes", "class_names", "label_names"}  # arrays of an npz file that are no column
BARE = "scores"  # the column of a file that is one array without a name


@dataclass(frozen=True, slots=True)
class Columns:
    """A file as it is written.

    Attributes:
        path: the file.
        values: name to values: (N,) numbers or texts, or (N, K) numbers.
        headless: the file has no names; its columns are called ``0``, ``1``, ...
    """

    path: Path
    values: Mapping[str, Array]
    headless: bool = False


def bundled(dataset: str) -> Path | None:
    """The file of a set that comes with medbench."""
    root = Path(registry.__file__).parents[2]
    places = (root / folder / "bundled" / f"{dataset}.npz" for folder in ("datasets", "bench/datasets"))
    return next((path for path in places if path.is_file()), None)


def read_columns(path: Path) -> Columns:
    """Read a file.

    Raises:
        DataError: it is missing, damaged, empty, of an unknown kind, or its columns have several lengths.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    readers = {".csv": _csv, ".tsv": _csv, ".txt": _csv, ".json": _json, ".npz": _npz, ".npy": _npy}
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            found = Columns(path, _parquet(path))
        elif suffix in readers:
            found = readers[suffix](path)
        else:
            raise DataError(f"{path}: unknown file type {suffix or '(no suffix)'}; "
                            f"use one of {', '.join(SUFFIXES)}")  # fmt: skip
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    lengths = {name: len(values) for name, values in found.values.items()}
    if not lengths or not max(lengths.values()):
        raise DataError(f"{path}: it has no rows; write one row per image")
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{path}: its columns have different lengths: {', '.join(f'{n} {k:,}' for n, k in lengths.items())}"
        )
    return found


def _csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        start = file.read(4096)
        file.seek(0)
        first = start.partition("\n")[0]
        counts = {mark: first.count(mark) for mark in (",", ";", "\t")}
        mark = max(counts, key=lambda m: counts[m])
        if (numbers := _numbers(file, mark)) is not None:
            return Columns(path, numbers)
        file.seek(0)
        rows = [row for row in csv.reader(file, delimiter=mark) if row]
    if not rows:
        return Columns(path, {})
    headless = all(_is_number(cell) for cell in rows[0])
    names = [str(i) for i in range(len(rows[0]))] if headless else [cell.strip() for cell in rows[0]]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: more than one column is called {', '.join(sorted(repeated))}; rename all but one")
    body = rows if headless else rows[1:]
    for number, row in enumerate(body, start=1 if headless else 2):
        if len(row) != len(names):
            raise DataError(f"{path}, line {number}: {len(row)} cells, but {len(names)} columns")
    return Columns(path, {n: _typed(c) for n, c in zip(names, zip(*body, strict=True), strict=bool(body))}, headless)


def _numbers(file: TextIO, mark: str) -> dict[str, Array] | None:
    """A header and numbers alone, ten times as fast; None for anything else."""
    names = [cell.strip() for cell in next(csv.reader(file, delimiter=mark), [])]
    if not names or len(set(names)) < len(names) or all(_is_number(name) for name in names):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file without rows, which is told later
            block = np.loadtxt(file, delimiter=mark, comments=None, ndmin=2, dtype=np.float64)
    except ValueError:
        return None
    return dict(zip(names, block.T.copy(), strict=True)) if block.shape[1] == len(names) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(cells: Sequence[str]) -> Array:
    """Numbers where all cells are, an empty one being NaN; else texts."""
    array = np.array(cells)
    try:
        return array.astype(np.float64)
    except ValueError:
        stripped = np.char.strip(array)
        known = stripped[stripped != ""]
        if len(known) and np.isin(np.char.lower(known), ("true", "false")).all():
            return np.array([np.nan if not c else float(c.lower() == "true") for c in stripped.tolist()])
        try:
            known.astype(np.float64)
        except ValueError:
            return stripped
        return np.array([float(c) if c else np.nan for c in stripped.tolist()])


def _json(path: Path) -> Columns:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = list(content[0])
        for number, row in enumerate(content):
            if list(row) != names and set(row) != set(names):
                raise DataError(
                    f"{path}, row {number}: its keys are {', '.join(row)}, the first row's {', '.join(names)}"
                )
        content = {name: [row[name] for row in content] for name in names}
    if not isinstance(content, dict):
        raise DataError(
            f'{path}: write a list of rows, [{{"id": ..., "label": ..., "score": ...}}, ...], or one list per column'
        )
    return Columns(path, {str(name): _array(path, str(name), values) for name, values in content.items()})


def _array(path: Path, name: str, values: object) -> Array:
    if not isinstance(values, list):
        raise DataError(f"{path}: {name!r} is not a list with a value for each image")
    try:
        array = np.array([np.nan if v is None else v for v in values])
    except ValueError:
        raise DataError(f"{path}: the rows of {name!r} have different lengths") from None
    return _checked_array(path, name, array)


def _checked_array(path: Path, name: str, array: Array) -> Array:
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind == "S":
        array = np.char.decode(array)
    if array.dtype.kind not in "iufU" or array.ndim not in (1, 2):
        raise DataError(f"{path}: {name!r} has type {array.dtype} and shape {array.shape}; "
                        "write numbers or texts, one row per image")  # fmt: skip
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if not name.endswith("_images")}
    split = "test_"  # medbench's predictions and MedMNIST's files hold several splits: the test split counts
    if any(name.startswith(split) for name in arrays):
        arrays = {n.removeprefix(split): a for n, a in arrays.items() if n.startswith(split)}
    kept = {name: a for name, a in arrays.items() if a.ndim and name not in NOT_BY_IMAGE}
    return Columns(path, {name: _checked_array(path, name, a) for name, a in kept.items()})


def _npy(path: Path) -> Columns:
    return Columns(path, {BARE: _checked_array(path, BARE, np.load(path, allow_pickle=False))}, headless=True)


def _parquet(path: Path) -> dict[str, Array]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'medbench[score]'") from None
    table = parquet.read_table(path)
    found = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        kept = [np.nan if v is None else v for v in values]
        found[name] = _checked_array(path, name, np.array(kept))
    return found

"""Records on disk: one JSON file a Cell, written atomically; a run directory is all there is (no database).

    RUN/run.json                what was asked: command, sweep, datasets left out
    RUN/cells/<key>.json        one Record a Cell
    RUN/predictions/<key>.npz   val_scores, val_labels, test_scores, test_labels of an accuracy Cell
    RUN/history/<key>.csv       one row an epoch
    RUN/rounds/<key>/<n>.json   raw samples of an efficiency Cell whose rounds are not all done
    RUN/logs/<key>.log          what the worker printed

Runs merge by copying files; a crash costs at most the Cell in flight.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = 1
STATUSES = ("ok", "oom", "unsupported", "diverged", "failed", "timeout")
REQUIRED = ("schema", "key", "kind", "status", "reason", "spec", "metrics", "environment")

Record = dict[str, Any]


class StoreError(RuntimeError):
    """A run directory cannot be read or written; the message names the path and what to do."""


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, sees all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; choose another directory with --out") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; nothing was changed") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def plain(value: Any) -> Any:
    """Turn numpy scalars and arrays, tuples, paths and non-finite floats into what JSON can hold (NaN -> null)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented, sorted JSON, atomically."""
    atomic_write(path, _json_bytes(value))


def write_record(
    out: Path,
    record: Record,
    arrays: Mapping[str, np.ndarray[Any, Any]] | None = None,
    history: list[dict[str, Any]] | None = None,
) -> Path:
    """Write what a Cell produced; the Record last, so that a Record on disk always has its scores beside it."""
    if problem := invalid(record):
        raise StoreError(f"refusing to write a record: {problem}")
    key = record["key"]
    if arrays:
        import numpy as np

        if pickled := [name for name, array in arrays.items() if array.dtype.hasobject]:
            raise StoreError(f"refusing to pickle the arrays {', '.join(pickled)} of {key}")
        buffer = io.BytesIO()
        columns: Any = dict(arrays)
        np.savez_compressed(buffer, **columns)
        atomic_write(out / "predictions" / f"{key}.npz", buffer.getvalue())
    if history:
        text = io.StringIO()
        names = list(dict.fromkeys(column for row in history for column in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        atomic_write(out / "history" / f"{key}.csv", text.getvalue().encode())
    path = out / "cells" / f"{key}.json"
    write_json(path, record)
    return path


def invalid(record: Any) -> str | None:
    """Say what is wrong with a Record, or return None."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    if missing := [name for name in REQUIRED if name not in record]:
        return f"it lacks {', '.join(missing)}"
    if record["schema"] != SCHEMA:
        return f"its schema is {record['schema']!r}, this version reads {SCHEMA}"
    for name in ("spec", "metrics", "environment"):
        if not isinstance(record[name], dict):
            return f"its {name} is no JSON object"
    if record["status"] not in STATUSES:
        return f"its status is {record['status']!r}, none of {', '.join(STATUSES)}"
    return None


def read_record(path: Path) -> Record:
    """Read one Record. Raises StoreError naming the file and what is wrong with it."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    if problem := invalid(record):
        raise StoreError(f"{path}: {problem}")
    if record["key"] != path.stem:
        raise StoreError(f"{path}: its key is {record['key']!r}, not the file's name")
    return dict(record)


def read_records(out: Path) -> tuple[list[Record], list[str]]:
    """Read all Records of a run, sorted by key, and one message for each file that could not be read."""
    records, problems = [], []
    for path in sorted((out / "cells").glob("*.json")):
        try:
            records.append(read_record(path))
        except StoreError as error:
            problems.append(str(error))
    return records, problems


def set_aside(out: Path, problems: Iterable[str]) -> list[str]:
    """Move damaged Record files to ``cells/damaged/`` so that their Cells run again; say where they went.

    Raises:
        StoreError: a Record is whole but of another schema, written by another version: it is not ours to move.
    """
    moved = []
    for problem in problems:
        path = Path(problem.split(".json:", 1)[0] + ".json")
        if "its schema is" in problem:
            raise StoreError(f"{problem}; use the version that wrote it, or another --out")
        target = path.parent / "damaged" / path.name
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        moved.append(f"damaged record set aside as {target} ({problem}); its cell runs again")
    return moved


def read_run(out: Path) -> dict[str, Any]:
    """Read ``run.json``; empty where there is none (records copied together by hand)."""
    try:
        info = json.loads((out / "run.json").read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{out / 'run.json'}: {error}") from error
    if not isinstance(info, dict):
        raise StoreError(f"{out / 'run.json'}: it is no JSON object; remove it, the records do not need it")
    return info


def load_records(path: str | Path) -> pd.DataFrame:
    """Load a run as a DataFrame: one row a Record; spec fields, metrics, key, kind, status and reason as columns."""
    import pandas as pd

    records, _ = read_records(Path(path))
    return pd.DataFrame([flatten(record) for record in records])


def flatten(record: Record) -> dict[str, Any]:
    """One flat row of a Record; of two equal names the metric's is prefixed ``metric_``."""
    row = {name: record[name] for name in ("key", "kind", "status", "reason")}
    row.update(record["spec"])
    for name, value in record["metrics"].items():
        row[f"metric_{name}" if name in row else name] = value
    return row

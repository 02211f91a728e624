"""Records on disk: one JSON file a Cell; a run directory is all there is (no database).

Where each file lies is said in :mod:`bench.record.paths`, how it is written in :mod:`bench.record.files`. A crash costs
the Cells in flight.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import StoreError as StoreError
from bench.record.files import atomic_write as atomic_write
from bench.record.paths import history_path, predictions_path, record_path, require_run, run_file
from bench.record.positive import with_positive
from bench.record.types import Fields, Metrics
from bench.record.types import Record as Record

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics.one_vs_rest import Array

SCHEMA = 1
STATUSES = ("ok", "oom", "unsupported", "diverged", "failed", "timeout")
PROBE_BYTES = 1 << 20
NORMAL_95 = 1.96  # standard deviations within which 95 % of normal differences lie
UNUSABLE = 0.5  # a speed is not shown if two runs of it would differ by more than this (95 %)
REQUIRED = ("schema", "key", "kind", "status", "reason", "spec", "metrics", "environment")

# Schema -> what makes a Record of the next one of it. None yet: there has been one schema.
MIGRATIONS: dict[int, Callable[[Fields], Fields]] = {}

Stamp = tuple[int, int]  # when a file was written (ns, its disk's clock) and its bytes: tells two versions of it apart


class State(NamedTuple):
    """What a driver needs to know of a Record."""

    status: str
    stamp: Stamp
    noisy: bool = False  # an efficiency Cell whose rounds differ too much for one of its speeds


def plain(value: object) -> Any:
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


def _json_bytes(value: object) -> bytes:
    return (json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented, sorted JSON, atomically."""
    atomic_write(path, _json_bytes(value))


def write_record(
    out: Path,
    record: Record,
    arrays: Mapping[str, Array] | None = None,
    history: list[Fields] | None = None,
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
        np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
        atomic_write(predictions_path(out, key), buffer.getvalue())
    if history:
        text = io.StringIO()
        names = list(dict.fromkeys(column for row in history for column in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        atomic_write(history_path(out, key), text.getvalue().encode())
    path = record_path(out, key)
    write_json(path, record)
    return path


def invalid(record: object) -> str | None:
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


def stamp_of(path: Path) -> Stamp | None:
    """Tell which version of a file is there; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def migrated(record: Any) -> Any:
    """Bring a Record of an older schema to the present one, where there is a way."""
    while isinstance(record, dict) and isinstance(record.get("schema"), int) and record["schema"] in MIGRATIONS:
        record = MIGRATIONS[record["schema"]](record)
    return record


def read_record(path: Path) -> Record:
    """Read one Record. Raises StoreError naming the file and what is wrong with it."""
    return _read(str(path), path.stem)[0]


def _read(path: str, stem: str) -> tuple[Record, Stamp]:
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            record = migrated(json.loads(file.read()))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    if problem := invalid(record):
        raise StoreError(f"{path}: {problem}")
    if record["key"] != stem:
        raise StoreError(f"{path}: its key is {record['key']!r}, not the file's name")
    return record, (status.st_mtime_ns, status.st_size)


def _scan(out: Path) -> Iterator[tuple[Record, Stamp] | str]:
    """Yield all Records of a run by key; a message for each file that cannot be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(out / "cells") if entry.name.endswith(".json"))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise StoreError(f"{out} is a file, not a run directory; choose another with --out") from None
    folder = str(out / "cells")
    collecting = gc.isenabled()
    gc.disable()  # nothing that is read here is garbage, and looking for it takes longer than reading
    try:
        for name in names:
            if name.startswith("."):  # being written
                continue
            try:
                yield _read(f"{folder}/{name}", name[:-5])
            except StoreError as error:
                yield str(error)
    finally:
        if collecting:
            gc.enable()


def read_records(out: Path) -> tuple[list[Record], list[str]]:
    """Read all Records of a run, sorted by key, and one message for each file that could not be read."""
    records, problems = [], []
    for found in _scan(out):
        if isinstance(found, str):
            problems.append(found)
        else:
            records.append(found[0])
    return records, problems


def read_states(out: Path) -> tuple[dict[str, State], list[str]]:
    """Read the status of every Record of a run, by key, and one message for each file that could not be read."""
    states, problems = {}, []
    for found in _scan(out):
        if isinstance(found, str):
            problems.append(found)
        else:
            record, stamp = found
            states[record["key"]] = State(record["status"], stamp, _is_noisy(record["metrics"]))
    return states, problems


def _is_noisy(metrics: Metrics) -> bool:
    noises = (metrics.get(name) or 0.0 for name in ("noise_rel", "latency_noise_rel", "device_noise_rel"))
    return bool(metrics.get("noisy")) or any(NORMAL_95 * noise > UNUSABLE for noise in noises)


def prepare(out: Path) -> None:
    """Make a run directory. Raises StoreError where that is impossible: it is a file, or cannot be written."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"{out} is, or lies under, a file, not a run directory; choose another with --out") from None
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}; choose another directory with --out") from error
    if problem := unwritable(out):
        raise StoreError(f"{problem}; choose another directory with --out, or make room")


def unwritable(out: Path) -> str | None:
    """Say why Records cannot be written to a run directory now, or return None. Tries it with a megabyte."""
    try:
        with tempfile.TemporaryFile(dir=out / "cells", prefix=".probe.") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write {out}: {error.strerror}"
    return None


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
        try:
            os.replace(path, target)
        except FileNotFoundError:  # another driver was faster
            continue
        moved.append(f"damaged record set aside as {target} ({problem}); its cell runs again")
    return moved


def read_run(out: Path) -> Fields:
    """Read ``run.json``; empty where there is none (records copied together by hand)."""
    path = run_file(out)
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    if not isinstance(info, dict):
        raise StoreError(f"{path}: it is no JSON object; remove it, the records do not need it")
    return info


def planned(info: Mapping[str, object], command: str | None = None) -> set[str]:
    """Keys of the Cells that the commands of a ``run.json``, or one of them, meant; empty where it does not say."""
    found = info.get("planned")
    lists = found if isinstance(found, dict) else {}
    return {str(key) for said, keys in lists.items() if command in (None, said) for key in keys}


def load_records(path: str | Path) -> pd.DataFrame:
    """Load a run as a DataFrame: one row a Record; spec fields, metrics, key, kind, status and reason as columns."""
    import pandas as pd

    require_run(out := Path(path))
    records, _ = read_records(out)
    return pd.DataFrame([flatten(with_positive(record)) for record in records])


def flatten(record: Record) -> Fields:
    """One flat row of a Record; of two equal names the metric's is prefixed ``metric_``."""
    row = {name: record[name] for name in ("key", "kind", "status", "reason")}
    row.update(record["spec"])
    for name, value in record["metrics"].items():
        row[f"metric_{name}" if name in row else name] = value
    return row

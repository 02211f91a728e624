"""``bench submit``: a run's results and scores as one file that others can check.

A zip with ``submission.json`` (schema, who, licence, digests of all members), ``cells/<key>.json`` and
``predictions/<key>.npz``. Scores and labels are kept bit for bit. Names of images are left out, patients are numbered,
and columns of a table (sex, age, ...) are left out: nothing in it says who was imaged. Equal runs give equal files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench import registry
from bench.errors import StoreError
from bench.machine.versions import VERSION
from bench.metrics.one_vs_rest import Array
from bench.record import store
from bench.record.paths import predictions_path, require_run
from bench.record.types import Fields, Record
from bench.score.run import RECIPE

SCHEMA = 1
MANIFEST = "submission.json"
ENDING = ".medbench.zip"
LICENCES = ("CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0", "Apache-2.0", "MIT")
ARRAYS = ("val_scores", "val_labels", "test_scores", "test_labels")
_TIME = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal runs give equal files


def submit(run: Path, out: Path, licence: str, author: str, note: str = "") -> Fields:
    """Pack the results of a run; return what ``submission.json`` says.

    Args:
        run: a run directory, also one of ``bench score``.
        out: the file, ending in ``.medbench.zip``.
        licence: of the results, one of LICENCES.
        author: who submits, as it will be shown.
        note: what a reader should know, as a link to code or paper.

    Raises:
        StoreError: no results, a damaged Record, a dataset of one's own, or ``out`` cannot be written.
    """
    require_run(run)
    if not out.name.endswith(ENDING):
        raise StoreError(f"--out {out}: the name of a submission must end in {ENDING}")
    if licence not in LICENCES:
        raise StoreError(f"licence {licence!r}{registry.nearest(licence, LICENCES)}: use one of {', '.join(LICENCES)}")
    if not author.strip():
        raise StoreError("--author: say who submits these results")
    records, problems = store.read_records(run)
    if problems:
        raise StoreError(f"{run} holds damaged records; run its command again, or remove them: {problems[0]}")
    members: dict[str, bytes] = {}
    left_out: Counter[str] = Counter()
    for record in records:
        if record["status"] != "ok":
            left_out[record["status"]] += 1
        elif record["kind"] not in ("accuracy", "efficiency"):
            left_out[record["kind"]] += 1
        else:
            members |= _members(run, record)
    if not members:
        raise StoreError(f"{run} has no result to submit")
    manifest = {
        "schema": SCHEMA, "medbench": VERSION, "author": author.strip(), "licence": licence, "note": note.strip(),
        "left_out": dict(sorted(left_out.items())),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(members.items())},
    }  # fmt: skip
    store.atomic_write(out, _zipped({MANIFEST: _json(manifest), **members}))
    return manifest


def _members(run: Path, record: Record) -> dict[str, bytes]:
    key = record["key"]
    kept = {k: v for k, v in record.items() if k != "log_tail"}  # worker's output: paths of the machine
    found = {f"cells/{key}.json": _json(kept)}
    if record["kind"] != "accuracy":
        return found
    dataset = str(record["spec"]["dataset"])
    if ":" in dataset or "/" in dataset:
        raise StoreError(
            f"{run}: {dataset!r} is a dataset of your own, which nobody else can check, and its path would be public; "
            "submit a run of published datasets, or name the test set: bench score ... --dataset NAME"
        )
    path = predictions_path(run, key)
    if not path.is_file():
        raise StoreError(
            f"{path}: the scores of {record['spec']['model']} on {dataset} are missing; nothing can be checked"
        )
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name in ARRAYS}
        for split in ("val", "test"):
            if f"{split}_patients" in file.files:
                arrays[f"{split}_patients"] = _numbered(file[f"{split}_patients"])
    found[f"predictions/{key}.npz"] = _npz(arrays)
    return found


def _numbered(patients: Array) -> Array:
    """Patients by number, in the order in which they appear; an unknown one stays empty."""
    numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(p for p in patients.tolist() if p))}
    return np.array([numbers.get(name, "") for name in patients.tolist()])


def _json(value: Mapping[str, object]) -> bytes:
    text = json.dumps(store.plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """An npz whose bytes depend on the arrays alone (numpy's own writes the time)."""
    members = {}
    for name, array in sorted(arrays.items()):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    return _zipped(members)


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def is_foreign(record: Record) -> bool:
    """A Record of `bench score`: its training was not ours."""
    return bool(record["spec"].get("recipe") == RECIPE)

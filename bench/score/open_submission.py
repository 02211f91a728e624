"""Read a submission without trusting it: names, sizes and digests first, then Records and arrays."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.errors import StoreError
from bench.metrics.one_vs_rest import Array
from bench.record import store
from bench.record.cells import spec_key
from bench.record.types import Fields, Record
from bench.score.submit import LICENCES, MANIFEST, SCHEMA

MOST_BYTES, MOST_MEMBERS = 1 << 30, 20_000  # unpacked; more is not a submission
_MEMBER = re.compile(r"cells/[0-9a-f]{20}\.json|predictions/[0-9a-f]{20}\.npz")
Arrays = dict[str, Array]


@dataclass(slots=True)
class Submission:
    """What a file holds; ``problems`` are sentences on what is wrong with its form."""

    path: Path
    manifest: Fields
    records: dict[str, Record] = field(default_factory=dict)
    arrays: dict[str, Arrays] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def open_submission(path: Path) -> Submission:
    """Read a submission.

    Raises:
        StoreError: it is not a zip file, has no readable ``submission.json``, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if len(infos) > MOST_MEMBERS or sum(info.file_size for info in infos) > MOST_BYTES:
                raise StoreError(
                    f"{path}: it would unpack to more than {MOST_BYTES >> 30} GiB or {MOST_MEMBERS:,} files"
                )
            members = {info.filename: _read(archive, info, path) for info in infos}
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} is not a submission of `bench submit`: {error}") from error
    try:
        manifest = json.loads(members.pop(MANIFEST))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path} is not a submission of `bench submit`: no readable {MANIFEST}") from error
    found = Submission(path, manifest if isinstance(manifest, dict) else {})
    if len({info.filename for info in infos}) < len(infos):
        found.problems.append("it holds two files of one name")
    _check_manifest(found, members)
    for name, data in members.items():
        _take(found, name, data)
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)  # never more than stated
    if len(data) != info.file_size:
        raise StoreError(f"{path}: {info.filename} is not as long as stated ({info.file_size} bytes)")
    return data


def _check_manifest(found: Submission, members: dict[str, bytes]) -> None:
    manifest, problems = found.manifest, found.problems
    if manifest.get("schema") != SCHEMA:
        problems.append(f"{MANIFEST}: schema {manifest.get('schema')!r}; this version of medbench reads {SCHEMA}")
    if manifest.get("licence") not in LICENCES:
        problems.append(f"{MANIFEST}: licence {manifest.get('licence')!r} is none of {', '.join(LICENCES)}")
    if not str(manifest.get("author") or "").strip():
        problems.append(f"{MANIFEST}: no author")
    stated = manifest.get("files")
    stated = stated if isinstance(stated, dict) else {}
    for name in sorted({*stated, *members}):
        if name not in members:
            problems.append(f"{name}: listed in {MANIFEST}, but missing")
        elif name not in stated:
            problems.append(f"{name}: not listed in {MANIFEST}")
        elif hashlib.sha256(members[name]).hexdigest() != stated[name]:
            problems.append(f"{name}: its SHA-256 is not the one in {MANIFEST}; the file was changed")


def _take(found: Submission, name: str, data: bytes) -> None:
    if not _MEMBER.fullmatch(name):
        found.problems.append(f"{name!r}: only cells/<key>.json and predictions/<key>.npz belong in a submission")
        return
    key = name.partition("/")[2].partition(".")[0]
    if name.startswith("predictions/"):
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                found.arrays[key] = {array: file[array] for array in file.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            found.problems.append(f"{name}: {error}")
        return
    try:
        record = json.loads(data)
    except ValueError as error:
        found.problems.append(f"{name}: {error}")
        return
    if problem := store.invalid(record):
        found.problems.append(f"{name}: {problem}")
        return
    right = spec_key(record["kind"], record["spec"])
    if right != key or record["key"] != key:
        found.problems.append(f"{name}: by its spec its key should be {right}; the record was edited")
        return
    found.records[key] = record

"""Join runs: Records of several run directories in one, with what lies beside them.

A Record is taken only if its key is the hash of its spec, as it was when it was written: a file that was renamed,
edited or made by hand is refused. What is there already stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.record import store
from bench.record.cells import spec_key
from bench.record.files import replacing
from bench.record.paths import NOT_COMPANIONS, record_path, require_run, run_file, splits_folder
from bench.record.store import Record, StoreError
from bench.record.types import Fields


@dataclass(slots=True)
class Merged:
    """What a merge did: Records written and replaced, found there already, and a line for each oddity."""

    out: Path
    added: int = 0
    replaced: int = 0
    present: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge(out: Path, runs: Sequence[Path]) -> Merged:
    """Copy the Records of ``runs`` into ``out``, in this order; of two for one Cell the first with a result stays.

    Args:
        out: a run directory, made if it is not there; it may hold Records already.
        runs: run directories; they are only read.

    Raises:
        StoreError: one of ``runs`` is not a run directory, or ``out`` cannot be written or holds Records that this
            version cannot read.
    """
    for run in runs:
        require_run(run)
        if run.resolve() == out.resolve():
            raise StoreError(f"{run} is the directory to merge into; name the others only")
    store.prepare(out)
    merged = Merged(out)
    known = {record["key"]: record for record in _sound(out, merged)}
    if merged.refused:
        raise StoreError(f"{out} holds records that do not fit; nothing was merged:\n" + "\n".join(merged.refused))
    for run in runs:
        beside = _companions(run)
        for record in _sound(run, merged):
            _take(run, record, known, beside.get(record["key"], ()), merged)
        _copy_splits(run, out, merged)
    store.write_json(run_file(out), _joined_info(out, runs))
    return merged


def _sound(run: Path, merged: Merged) -> Iterator[Record]:
    """Yield the Records of a run whose keys are right; note the others."""
    records, problems = store.read_records(run)
    merged.refused += problems
    for record in records:
        right = spec_key(record["kind"], record["spec"])
        if right == record["key"]:
            yield record
        else:
            path = record_path(run, record["key"])
            merged.refused.append(f"{path}: its key should be {right}, by what its spec says; it was changed by hand")


def _take(run: Path, record: Record, known: dict[str, Record], beside: Iterable[Path], merged: Merged) -> None:
    key = record["key"]
    before = known.get(key)
    if before is not None:
        if before["status"] == "ok" or record["status"] != "ok":
            merged.present += 1
            if before["status"] == record["status"] == "ok" and _scores(before) != _scores(record):
                merged.notes.append(f"{run}, cell {key}: its scores differ from those that are there, which are kept")
            return
        merged.replaced += 1
    else:
        merged.added += 1
    for path in beside:  # the Record last: where it is, everything is
        _copy(path, merged.out / path.relative_to(run))
    store.write_json(record_path(merged.out, key), record)
    known[key] = record


def _scores(record: Record) -> list[object]:
    """What two Records of one Cell should agree in; nothing of a measured one."""
    return [value for name, value in sorted(record["metrics"].items()) if name.startswith(("test_", "val_"))]


def _companions(run: Path) -> dict[str, list[Path]]:
    """The files of a run that belong to a Cell, by key: scores, history, log, weights and what else is named by it."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(entry.path for entry in os.scandir(run) if entry.is_dir(follow_symlinks=False)):
        if os.path.basename(folder) in NOT_COMPANIONS:
            continue
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            path = Path(entry.path)
            files = [path] if entry.is_file() else [p for p in sorted(path.iterdir()) if p.is_file()]  # explain/<key>/
            found.setdefault(entry.name.partition(".")[0], []).extend(files)
    return found


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that a reader sees all of it or nothing."""
    try:
        with replacing(target) as part:
            shutil.copyfile(source, part)
    except OSError as error:
        raise StoreError(f"cannot copy {source} to {target}: {error.strerror}") from error


def _copy_splits(run: Path, out: Path, merged: Merged) -> None:
    """Copy how datasets were split; two different splits under one name are worth a word."""
    for source in sorted(splits_folder(run).glob("*.csv")):
        target = splits_folder(out) / source.name
        if not target.exists():
            _copy(source, target)
        elif target.read_bytes() != source.read_bytes():
            merged.notes.append(f"{source} differs from {target}, which is kept: two versions of one dataset")


def _joined_info(out: Path, runs: Sequence[Path]) -> Fields:
    """One ``run.json``: the first sweep, all commands, all datasets and what is known of them."""
    infos: list[Fields] = [info for run in (out, *runs) if (info := store.read_run(run))]
    commands = [line for info in infos for line in str(info.get("command", "")).splitlines()]
    skipped = [line for info in infos for line in info.get("skipped", ())]
    datasets: Fields = {}
    for info in infos:
        datasets = {**(info.get("datasets") or {}), **datasets}  # the first one stays
    planned: dict[str, set[str]] = {}  # by command: parts of one sweep, run on several machines, have the same
    for info in infos:
        for command in info.get("planned") or ():
            planned[command] = planned.get(command, set()) | store.planned(info, command)
    first = dict(infos[0]) if infos else {}
    dates = [str(info["date"]) for info in infos if info.get("date")]
    return {
        **first,
        **({"date": max(dates)} if dates else {}),
        **({"datasets": dict(sorted(datasets.items()))} if datasets else {}),
        **({"planned": {c: sorted(keys) for c, keys in sorted(planned.items())}} if planned else {}),
        "schema": store.SCHEMA,
        "command": "\n".join(dict.fromkeys(commands)),
        "skipped": list(dict.fromkeys(skipped)),
    }

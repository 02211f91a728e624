"""Entries of the decoded cache on disk: a folder of plain ``.npy`` arrays, a table of their members, and a manifest.

An entry is written beside its place and renamed into it, so a reader sees all of it or nothing. Arrays are written
block by block and checked block by block: an entry of any size needs a few MiB of memory.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from bench.data.decode import blocks_of, check_labels
from bench.data.files import DataError
from bench.data.look import SPLITS, Look, Looked, label_text
from bench.registry import BlockSplit, DatasetInfo, LazySplit, Split, file_stem

FORMAT = 3  # raise it when the layout of an entry, or how images are resized, changes
MEMBERS = "members.csv"
CRC_LIMIT_BYTES = 1 << 30  # larger entries are read in full only when a file's time says that it was touched
_BLOCK = 1 << 24
_SPARE_BYTES = 1 << 26

Progress = Callable[[int, int], None]  # images done, images in all
AnySplit = Split | LazySplit | BlockSplit


class Identity(TypedDict):
    """Everything that decides the bytes of an entry."""

    format: int
    dataset: str
    size: int
    fingerprint: str
    plugin_sha256: str | None  # an edited plug-in may decode otherwise
    classes: list[str]
    channels: int
    resize: NotRequired[str]  # only where images are resized when they are decoded
    columns: NotRequired[list[str]]


class File(TypedDict):
    """A file of an entry, as its manifest has it."""

    bytes: int
    crc32: int
    mtime_ns: int
    inode: int
    shape: NotRequired[list[int]]
    dtype: NotRequired[str]


class Entry(NamedTuple):
    """What is read back: the splits, memory-mapped, the folder they lie in, the fingerprint, and what was noticed."""

    splits: dict[str, Split]
    folder: Path
    fingerprint: str
    looked: Looked = Looked()


def identity_of(info: DatasetInfo, size: int, fingerprint: str, rule: str) -> Identity:
    """The identity of a dataset's entry at a size, by a resize rule."""
    source = Path(info.plugin_file or "")
    found: Identity = {
        "format": FORMAT,
        "dataset": info.name,
        "size": size,
        "fingerprint": fingerprint,
        "plugin_sha256": hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None,
        "classes": list(info.classes),
        "channels": info.channels,
    }
    if info.varied:
        found["resize"] = rule
    if info.columns:
        found["columns"] = list(info.columns)
    return found


def without_repeats(entry: Entry) -> dict[str, Split]:
    """The splits without the images of train and val whose pixels a later split has; test is left as it is."""
    found = dict(entry.splits)
    for name, rows in entry.looked.repeated.items():
        if rows:
            kept = not_repeated(entry, name)
            found[name] = Split(found[name].images[kept], found[name].labels[kept])
    return found


def not_repeated(entry: Entry, split: str) -> np.ndarray:
    """Indices of the images of a split that no later split has."""
    everything = np.arange(len(entry.splits[split].labels))
    kept: np.ndarray = np.setdiff1d(everything, entry.looked.repeated.get(split, ()))
    return kept


def entry_name(identity: Identity) -> str:
    """A folder's name: legible, and another one for every identity."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{file_stem(identity['dataset'])}-{identity['size']}-{digest}"


@contextlib.contextmanager
def only_one(entry: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the entry's lock: one process makes it, the others wait (``waits`` is called once before that)."""
    from filelock import FileLock, Timeout

    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.parent / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- writing ---------------------------------------------------------------------------------------------------


def write(
    entry: Path, identity: Identity, info: DatasetInfo, splits: Mapping[str, AnySplit], progress: Progress
) -> None:
    """Decode ``splits`` into an entry beside its place and rename it; the caller holds the entry's lock.

    Raises:
        DataError: the splits are not what the info says, or the disk has no room for them.
        OSError: the disk cannot be written.
    """
    size, rule = identity["size"], identity.get("resize", "native")
    labels = {name: check_labels(info, name, splits[name]) for name in SPLITS}
    total = sum(len(part) for part in labels.values())
    for remains in entry.parent.glob(f".{entry.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(remains, ignore_errors=True)
    _check_room(entry.parent, info, size, total, sum(part.nbytes for part in labels.values()))
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.tmp-", dir=entry.parent))
    try:
        progress(0, total)
        files: dict[str, File] = {}
        done, look = 0, Look()
        for name in SPLITS:
            shape = (len(labels[name]), size, size, info.channels)
            blocks = _counted(blocks_of(info, name, splits[name], size, rule), done, total, progress, look, name)
            path = temporary / f"{name}_images.npy"
            files[path.name] = _write_array(path, f"{info.name}, split {name}", shape, np.dtype(np.uint8), blocks)
            path = temporary / f"{name}_labels.npy"
            files[path.name] = _write_array(path, path.name, labels[name].shape, np.dtype(np.int64), [labels[name]])
            done += len(labels[name])
        if any(names_of(split) or groups_of(split) for split in splits.values()):
            files[MEMBERS] = _write_members(temporary / MEMBERS, info, splits, labels)
        names = {name: names_of(split) for name, split in splits.items()}
        looked = look.done(info, labels, names, {name: groups_of(split) for name, split in splits.items()})
        _publish(temporary, entry, {"identity": dict(identity), "files": files, "look": looked.as_json()})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def names_of(split: AnySplit) -> Sequence[str]:
    """What the images are called; empty where the source does not say."""
    return () if isinstance(split, Split) else split.names


def groups_of(split: AnySplit) -> Sequence[str]:
    """The patient or lesion of each image, or "" where unknown; empty where the source names none."""
    return () if isinstance(split, Split) else split.groups


def _counted(
    blocks: Iterable[np.ndarray], done: int, total: int, progress: Progress, look: Look, split: str
) -> Iterator[np.ndarray]:
    """Pass blocks on, looking at them and telling how many have been written when the next one is asked for."""
    for block in blocks:
        look.add(split, block)
        yield block
        done += len(block)
        progress(done, total)


def _publish(temporary: Path, entry: Path, manifest: Mapping[str, object]) -> None:
    """Write the manifest, last of all, and rename the folder into its place."""
    with (temporary / "manifest.json").open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o755)
    if entry.exists():  # damaged, or it would have been read; processes that map its files keep them
        damaged = Path(tempfile.mkdtemp(prefix=f".{entry.name}.tmp-", dir=entry.parent))
        os.replace(entry, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    os.replace(temporary, entry)


def _check_room(folder: Path, info: DatasetInfo, size: int, count: int, label_bytes: int) -> None:
    needed = count * size * size * info.channels + label_bytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{info.name} at {size} pixels: {count:,} decoded images take {needed / 2**30:.1f} GiB, but {folder} has "
            f"{free / 2**30:.1f} GiB free; make room (entries there may be deleted), or set MEDBENCH_CACHE to a folder "
            "on a larger disk"
        )


def _write_array(path: Path, where: str, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> File:
    """Write a ``.npy`` file block by block; return what its manifest says."""
    header = io.BytesIO()
    plain = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, plain)
    rows, crc = 0, zlib.crc32(header.getvalue())
    with path.open("wb") as stream:
        stream.write(header.getvalue())
        for block in blocks:
            rows += len(block)
            content = np.ascontiguousarray(block).data.cast("B") if block.size else b""
            crc = zlib.crc32(content, crc)
            stream.write(content)
        if rows != shape[0]:
            raise DataError(f"{where}: the adapter gave {rows:,} images for {shape[0]:,} labels")
        stream.flush()
        os.fsync(stream.fileno())
    return {**_info(path, crc), "shape": list(shape), "dtype": str(dtype)}


def _info(path: Path, crc: int) -> File:
    status = path.stat()
    return {"bytes": status.st_size, "crc32": crc, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


_OWN = ("name", "label", "split", "group")


def _column(name: str) -> str:
    """A column's name in the table of members."""
    return f"{name} (source)" if name in _OWN else name


def _write_members(
    path: Path, info: DatasetInfo, splits: Mapping[str, AnySplit], labels: Mapping[str, np.ndarray]
) -> File:
    """Write the table (name, label, split, group, other columns): what is in which split, for anyone to use again."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*_OWN, *map(_column, info.columns)))
    for split in SPLITS:
        names, groups = names_of(splits[split]), groups_of(splits[split])
        found = getattr(splits[split], "columns", {})
        columns = [found.get(name, [""] * len(labels[split])) for name in info.columns]
        for index, label in enumerate(labels[split]):
            said = label_text(info, label)
            own = (names[index] if names else "", said, split, groups[index] if groups else "")
            table.writerow((*own, *(column[index] for column in columns)))
    content = text.getvalue().encode("utf-8", "surrogateescape")
    path.write_bytes(content)
    return _info(path, zlib.crc32(content))


# --- reading ---------------------------------------------------------------------------------------------------


def read(entry: Path, identity: Identity) -> Entry | None:
    """Map an entry's arrays; None if there is none, or if it is damaged in any way."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        files: dict[str, File] = manifest["files"]
        if manifest["identity"] != identity:
            return None
        whole = sum(info["bytes"] for info in files.values()) <= CRC_LIMIT_BYTES
        for name, info in files.items():
            _check(entry / name, info, whole)
        found = {name: _mapped(entry / name, info) for name, info in files.items() if name.endswith(".npy")}
        splits = {name: Split(found[f"{name}_images.npy"], found[f"{name}_labels.npy"]) for name in SPLITS}
        return Entry(splits, entry, identity["fingerprint"], Looked.of_json(manifest["look"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _check(path: Path, info: File, whole: bool) -> None:
    status = path.stat()
    touched = (status.st_mtime_ns, status.st_ino) != (info["mtime_ns"], info["inode"])
    if status.st_size != info["bytes"] or ((whole or touched) and crc32_of(path) != info["crc32"]):
        raise ValueError(f"{path} is damaged")


def crc32_of(path: Path) -> int:
    """CRC-32 of a file, read block by block."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _mapped(path: Path, info: File) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != info["shape"] or str(array.dtype) != info["dtype"]:
        raise ValueError(f"{path} is not what its manifest says")
    return array


class Members(NamedTuple):
    """What the images of a split are called, which belong together ("" where unknown), and what else is known of each.

    ``columns`` are those of the source's table, by their names.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def at(self, rows: np.ndarray) -> Members:
        """Some of the images, in the order of ``rows``."""
        chosen = rows.tolist()
        columns = {name: tuple(values[i] for i in chosen) for name, values in self.columns.items()}
        return Members(tuple(self.names[i] for i in chosen), tuple(self.groups[i] for i in chosen), columns)


def members(folder: Path) -> dict[str, Members]:
    """Read the table of an entry; no split where its source has no names."""
    path = folder / MEMBERS
    if not path.is_file():
        return {}
    found: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        table = csv.reader(stream)
        heads = [head.removesuffix(" (source)") for head in next(table)[len(_OWN) :]]
        for row in table:
            found[row[2]].append(row)
    return {
        split: Members(
            tuple(row[0] for row in rows), tuple(row[3] for row in rows),
            {head: tuple(row[len(_OWN) + at] for row in rows) for at, head in enumerate(heads)},
        )
        for split, rows in found.items()
    }  # fmt: skip

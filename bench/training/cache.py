"""One decoded cache for every source, so that all train equally fast and the loop knows one form.

An entry is a folder of plain ``.npy`` arrays with a manifest, named by dataset, size, the adapter's fingerprint and
the cache's format. It is written beside its place and renamed into it, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import registry
from bench.files import DataError, MissingFilesError, default_root, preflight
from bench.registry import DatasetInfo, Split

__all__ = ["LoadedDataset", "default_cache_dir", "load_dataset", "open_dataset", "preflight"]

FORMAT = 1  # raise it when the layout of an entry changes
SPLITS = ("train", "val", "test")
_CRC_LIMIT_BYTES = 1 << 30  # larger entries are checked by size and header only: a reader would wait for minutes
_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """A dataset's facts and its three splits.

    Attributes:
        splits: ``train``, ``val``, ``test``; images uint8 (N, H, W, C), memory-mapped and read-only; labels int64
            (N,), or (N, L) in {0, 1} for multi-label.
        fingerprint: changes whenever the data would.
    """

    info: DatasetInfo
    size: int
    splits: Mapping[str, Split]
    fingerprint: str

    @property
    def train(self) -> Split:
        """The images to learn from."""
        return self.splits["train"]

    @property
    def val(self) -> Split:
        """The images to choose a model by."""
        return self.splits["val"]

    @property
    def test(self) -> Split:
        """The images to report on, once."""
        return self.splits["test"]


def default_cache_dir() -> Path:
    """Where decoded arrays are kept: ``$MEDBENCH_CACHE``, else the user's cache folder."""
    if named := os.environ.get("MEDBENCH_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("medbench", appauthor=False))


def load_dataset(
    name: str, size: int = 28, root: str | Path | None = None, cache_dir: str | Path | None = None
) -> LoadedDataset:
    """Open a dataset by name.

    Args:
        name: as ``bench list datasets`` shows it.
        size: side length in pixels; one the dataset exists in, or any for generated ones.
        root: folder of its files; ``None`` is :func:`bench.files.default_root`.
        cache_dir: folder of decoded arrays; ``None`` is :func:`default_cache_dir`.

    Raises:
        RegistryError: an unknown name.
        DataError: a file is missing or damaged, or holds something else than the facts say.
    """
    info = registry.dataset_facts(name, refresh=True)
    splits = open_dataset(info, size, Path(root) if root else None, Path(cache_dir) if cache_dir else None)
    return LoadedDataset(info, size, splits, info.open().fingerprint(size, _root(root)))


def open_dataset(
    info: DatasetInfo, size: int, root: Path | None = None, cache_dir: Path | None = None
) -> dict[str, Split]:
    """Return the splits of ``info`` at ``size`` pixels, decoding the source at first use.

    Processes may call this at the same time: one decodes, the others wait. A damaged entry is made anew.

    Raises:
        DataError: the source is missing or damaged (:class:`~bench.files.MissingFilesError`, listing the files),
            does not hold what the facts say, or the cache cannot be written.
    """
    if info.sizes and size not in info.sizes:
        raise DataError(f"{info.name} has no size {size}; it exists in {', '.join(map(str, info.sizes))} pixels")
    folder = cache_dir or default_cache_dir()
    try:
        fingerprint = info.open().fingerprint(size, _root(root))
        identity = _identity(info, size, fingerprint)
        entry = folder / "decoded" / _entry_name(identity)
        splits = _read(entry, identity)
        if splits is None:
            with _only_one(entry):
                splits = _read(entry, identity)  # another process may have been faster
                if splits is None:
                    _write(entry, identity, _decode(info, size, root))
                    splits = _read(entry, identity)
    except OSError as error:
        raise DataError(
            f"{info.name}: cannot use the cache of decoded images in {folder}: {error.strerror or error}; "
            "set MEDBENCH_CACHE to a folder with room that you may write to"
        ) from error
    if splits is None:
        raise DataError(f"{info.name}: what was just written to {entry} reads back damaged; is the disk in order?")
    return splits


def _root(root: str | Path | None) -> Path:
    return Path(root) if root else default_root()


# --- from the source -------------------------------------------------------------------------------------------


def _decode(info: DatasetInfo, size: int, root: Path | None) -> dict[str, Split]:
    if problems := preflight([(info, size)], root):
        raise MissingFilesError(problems)
    try:
        splits = info.open().load(size, _root(root))
    except (ValueError, OSError) as error:
        raise DataError(f"{info.name} at {size} pixels: {error}") from error
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        raise DataError(f"{info.name}: the adapter gave no split {', '.join(missing)}")
    return {name: _checked(info, size, name, splits[name]) for name in SPLITS}


def _checked(info: DatasetInfo, size: int, name: str, split: Any) -> Split:
    """Hold what an adapter returned to the contract, whoever wrote it."""
    where = f"{info.name}, split {name}"
    images, labels = np.asarray(split[0]), np.asarray(split[1])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, info.channels):
        raise DataError(
            f"{where}: images should be (N, {size}, {size}, {info.channels}) of uint8, "
            f"found {images.shape} of {images.dtype}"
        )
    several = info.task == "multi-label"
    expected = (len(images), len(info.classes)) if several else (len(images),)
    if labels.shape != expected or labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels should be {expected} of integers, found {labels.shape} of {labels.dtype}")
    if not len(images):
        raise DataError(f"{where}: there are no images")
    top = 1 if several else len(info.classes) - 1
    if labels.min() < 0 or labels.max() > top:
        raise DataError(f"{where}: labels should lie in 0..{top}, found {labels.min()}..{labels.max()}")
    return Split(images, labels.astype(np.int64))


# --- entries on disk -------------------------------------------------------------------------------------------


def _identity(info: DatasetInfo, size: int, fingerprint: str) -> dict[str, Any]:
    source = Path(info.plugin_file or "")  # an edited plug-in may decode otherwise
    plugin = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None
    return {"format": FORMAT, "dataset": info.name, "size": size, "fingerprint": fingerprint, "plugin_sha256": plugin}


def _entry_name(identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{identity['dataset']}-{identity['size']}-{digest}"


@contextlib.contextmanager
def _only_one(entry: Path) -> Iterator[None]:
    from filelock import FileLock

    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.parent / f".{entry.name}.lock"):
        yield


def _write(entry: Path, identity: Mapping[str, Any], splits: Mapping[str, Split]) -> None:
    """Write an entry beside its place and rename it; the caller holds the entry's lock."""
    for remains in entry.parent.glob(f".{entry.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(remains, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}.tmp-", dir=entry.parent))
    try:
        arrays: dict[str, dict[str, Any]] = {}
        for name, split in splits.items():
            for part, array in split._asdict().items():
                arrays[f"{name}_{part}.npy"] = _write_array(temporary / f"{name}_{part}.npy", array)
        manifest = {"identity": dict(identity), "arrays": arrays}
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_array(path: Path, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    with path.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    return {
        "bytes": path.stat().st_size,
        "crc32": _crc32(path),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
    }


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _read(entry: Path, identity: Mapping[str, Any]) -> dict[str, Split] | None:
    """Map an entry's arrays; None if there is none, or if it is damaged in any way."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        arrays: dict[str, dict[str, Any]] = manifest["arrays"]
        if manifest["identity"] != identity:
            return None
        total = sum(facts["bytes"] for facts in arrays.values())
        found = {name: _read_array(entry / name, facts, total <= _CRC_LIMIT_BYTES) for name, facts in arrays.items()}
        return {name: Split(found[f"{name}_images.npy"], found[f"{name}_labels.npy"]) for name in SPLITS}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _read_array(path: Path, facts: Mapping[str, Any], whole: bool) -> np.ndarray[Any, Any]:
    if path.stat().st_size != facts["bytes"] or (whole and _crc32(path) != facts["crc32"]):
        raise ValueError(f"{path} is damaged")
    array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != facts["shape"] or str(array.dtype) != facts["dtype"]:
        raise ValueError(f"{path} is not what its manifest says")
    return array

"""MD5 of files, read once: what was found is kept beside the decoded images, with what tells that a file changed.

A stamp is a file's path, size, time of change of content and of state, device and inode, with its MD5. The files of
stamps (one for each folder of data, JSON) are replaced atomically, may be deleted at any time, and are only ever a
short cut: a file that is about to be decoded is read in full all the same (:func:`bench.data.files.check` with
``fresh``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.record.files import replacing

_BLOCK = 1 << 20
_RACY_NS = 2_000_000_000  # a file changed this recently could change again within the resolution of its times

_known: dict[str, tuple[list[int], str]] = {}  # of this process: path -> (stamp, MD5)
_loaded: set[Path] = set()


def md5_of(path: Path, cache_dir: Path, fresh: bool = False) -> str:
    """MD5 of a file, read again only when it changed; ``fresh`` reads it in full unless this process has done so.

    Raises:
        OSError: it cannot be read.
    """
    return md5_of_all([path], path.absolute().parent, cache_dir, fresh)[0]


def md5_of_all(paths: Sequence[Path], folder: Path, cache_dir: Path, fresh: bool = False) -> list[str]:
    """MD5 of each file, several at a time; their stamps are kept together under the name of ``folder``.

    Raises:
        OSError: one of them cannot be read.
    """
    store = _store(folder, cache_dir)
    named = [(str(path.absolute()), path) for path in paths]
    stamps = [_stamp(path) for path in paths]

    def missing() -> list[int]:
        return [i for i, (name, _) in enumerate(named) if _known.get(name, ([], ""))[0] != stamps[i]]

    todo = missing()
    if todo and not fresh:
        _load(store)
        todo = missing()
    if todo:
        workers = min(8, os.cpu_count() or 1, len(todo))
        with ThreadPoolExecutor(workers, "md5") as pool:  # hashing releases the GIL
            for index, digest in zip(todo, pool.map(lambda i: _hash(named[i][1]), todo), strict=True):
                _known[named[index][0]] = (stamps[index], digest)
        _save(store, [named[index][0] for index in todo])
    return [_known[name][1] for name, _ in named]


def tree_digest(names: Iterable[str], folder: Path, cache_dir: Path) -> str:
    """One digest over the names and contents of files (relative to ``folder``), whatever their order or times."""
    ordered = sorted(set(names))
    total = hashlib.sha256()
    found = md5_of_all([folder / name for name in ordered], folder, cache_dir)
    for name, digest in zip(ordered, found, strict=True):
        total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _hash(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the published checksums are MD5
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _store(folder: Path, cache_dir: Path) -> Path:
    name = hashlib.sha256(str(folder.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_dir / "verified" / f"{name}.json"


def _stored(store: Path) -> dict[str, tuple[list[int], str]]:
    """Read a file of stamps; one that is missing or no such file holds none."""
    try:
        content = json.loads(store.read_text(encoding="utf-8", errors="surrogateescape"))
        return {str(path): ([int(n) for n in stamp], str(digest)) for path, (stamp, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _load(store: Path) -> None:
    if store not in _loaded:
        _loaded.add(store)
        for path, known in _stored(store).items():
            _known.setdefault(path, known)


def _save(store: Path, names: Iterable[str]) -> None:
    """Add what was just read to the file of stamps; a cache that cannot be written costs time and nothing else."""
    now = time.time_ns()
    settled = {name: _known[name] for name in names if now - max(_known[name][0][1:3]) > _RACY_NS}
    if not settled:
        return
    with contextlib.suppress(OSError):
        kept = {path: known for path, known in _stored(store).items() if os.path.exists(path)} | settled
        with replacing(store) as part:
            part.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8", errors="surrogateescape")

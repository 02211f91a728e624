"""What files hold, by SHA-256: each is read once, and again when it may have changed.

As in git's index, a file is taken to be what it was while its size, inode and times (of its content and of its state,
which no program can set back) are what they were. The index of a source lies in the cache and may be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.record.files import replacing
from bench.record.paths import default_cache_dir

_RACY_NS = 2_000_000_000  # a file changed this recently could change again within the resolution of its times
_AT_ONCE, _READERS = 64, 4  # files a thread reads in one go; threads, for disks that are slow to answer
_TOLD_BYTES = 1 << 30


class _Seen(NamedTuple):
    """A file as it was found: what tells that it changed, its size, and its latest time."""

    stamp: str
    size: int
    touched_ns: int


def contents(source: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """SHA-256 of some files, in hex.

    Args:
        source: what they belong to: a table, a folder or an archive; names the index.
        folder: that their names start from.
        names: of the files.

    Raises:
        OSError: one is not there or cannot be read.
    """
    place = _index_of(source, folder)
    known = _read(place)
    seen = {name: _look(os.path.join(folder, name)) for name in names}
    fresh = [name for name in names if known.get(name, ("", ""))[0] != seen[name].stamp]
    if not fresh:
        return [known[name][1] for name in names]
    _tell(source, [seen[name].size for name in fresh])
    now = time.time_ns()
    digests = _hashed([os.path.join(folder, name) for name in fresh])
    found = known | {name: (seen[name].stamp, digest) for name, digest in zip(fresh, digests, strict=True)}
    sure = {name: found[name] for name in names if now - seen[name].touched_ns > _RACY_NS}
    if sure:
        with contextlib.suppress(OSError):  # what cannot be written costs only time
            _write(place, sure)
    return [found[name][1] for name in names]


def _look(path: str) -> _Seen:
    status = os.stat(path)
    stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return _Seen(stamp, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))


def _tell(source: Path, sizes: Sequence[int]) -> None:
    if sum(sizes) > _TOLD_BYTES:
        what = f"{sum(sizes) / 2**30:,.1f} GiB in {len(sizes):,} files"
        print(f"{source}: reading {what}, to know them again by what they hold", file=sys.stderr, flush=True)


def _hashed(paths: Sequence[str]) -> list[str]:
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(min(_READERS, len(parts))) as pool:
        return [digest for part in pool.map(_hash, parts) for digest in part]


def _hash(paths: Iterable[str]) -> list[str]:
    found = []
    for path in paths:
        with open(path, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


# --- the index: a checksum, then name, stamp and digest of each file, all separated by zero bytes --------------------


def _index_of(source: Path, folder: Path) -> Path:
    text = f"{os.path.abspath(source)}\0{os.path.abspath(folder)}"
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return default_cache_dir() / "contents" / name


def _read(place: Path) -> dict[str, tuple[str, str]]:
    """Name to stamp and digest; empty where there is no index, or it is damaged."""
    try:
        checksum, _, body = place.read_bytes().partition(b"\0")
    except OSError:
        return {}
    if checksum != _checksum(body):
        return {}
    fields = body.decode("utf-8", "surrogateescape").split("\0")
    return {name: (stamp, digest) for name, stamp, digest in zip(fields[::3], fields[1::3], fields[2::3], strict=False)}


def _write(place: Path, entries: dict[str, tuple[str, str]]) -> None:
    body = "\0".join(f"{name}\0{stamp}\0{digest}" for name, (stamp, digest) in entries.items())
    content = body.encode("utf-8", "surrogateescape")
    with replacing(place) as part:
        part.write_bytes(_checksum(content) + b"\0" + content)


def _checksum(body: bytes) -> bytes:
    return f"1 {zlib.crc32(body):08x}".encode()  # the number is that of the format

"""MD5 of files, read once: what was found is kept beside the decoded images, with what tells that a file changed.

A stamp is a file's size, time of change of content and of state, inode and device. Stamps may be deleted at any time:
a file that is about to be decoded is read in full all the same (``fresh``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path

from bench.record.files import replacing

_RACY_NS = 2_000_000_000  # a file changed this recently could change again within the resolution of its times
_known: dict[str, tuple[list[int], str]] = {}  # of this process: path -> (stamp, MD5)


def md5_of(path: Path, cache_dir: Path, fresh: bool = False) -> str:
    """MD5 of a file, read again only when it changed; ``fresh`` reads it in full unless this process has done so.

    Raises:
        OSError: it cannot be read.
    """
    name, status = str(path.absolute()), path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    if name in _known and _known[name][0] == stamp:
        return _known[name][1]
    key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    store = cache_dir / "verified" / f"{key}.json"
    digest = "" if fresh else _stored(store, stamp)
    if not digest:
        digest = _hash(path)
        if time.time_ns() - max(stamp[1:3]) > _RACY_NS:
            with contextlib.suppress(OSError), replacing(store) as part:  # what cannot be written costs only time
                part.write_text(json.dumps({"stamp": stamp, "md5": digest}), encoding="utf-8")
    _known[name] = (stamp, digest)
    return digest


def _stored(store: Path, stamp: list[int]) -> str:
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
        return str(found["md5"]) if found["stamp"] == stamp else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _hash(path: Path) -> str:
    with path.open("rb") as stream:  # the published checksums are MD5
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

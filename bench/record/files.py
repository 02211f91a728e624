"""Atomic writing: files are written beside their place and renamed into it, so nothing needs a lock.

A file being written is named ``.NAME.RANDOM.PID@MACHINE``: whoever ends a run removes what a killed process had begun.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import ELSEWHERE, StoreError
from bench.record.paths import WRITTEN

_BEGUN = re.compile(r"\..+\.(?P<process>\d+)@(?P<machine>[0-9a-f]{8})")
_LONG_S = 86_400.0
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place to write to that becomes ``path`` at the end: a reader, or a crash, sees all of it or nothing.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}@{_machine_digest()}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_UMASK)  # some libraries write files that their owner alone can read
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, all or nothing. Raises StoreError."""
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; {ELSEWHERE}") from error


def clear_abandoned(out: Path) -> None:
    """Remove from a run directory the files that killed processes had begun to write.

    Each tells whose it is. Of this machine's, those go whose process has gone; of another's (or another container's,
    which numbers its own processes) those that are a day old: nobody can be asked there, and no write lasts so long.
    """
    import psutil

    for folder in (out, *(folder for pattern in WRITTEN for folder in out.glob(pattern))):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                begun = _BEGUN.fullmatch(entry.name)
                if begun is None:
                    continue
                here = begun["machine"] == _machine_digest()
                gone = not psutil.pid_exists(int(begun["process"]))
                if gone if here else time.time() - entry.stat().st_mtime > _LONG_S:
                    with contextlib.suppress(OSError):  # another driver was faster
                        os.unlink(entry.path)


def this_machine() -> str | None:
    """This boot of this machine, and the numbering of processes (a container has its own); None where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


@functools.cache
def _machine_digest() -> str:
    """Eight hex digits for it; where it is unknown, of the machine's name."""
    return hashlib.sha256((this_machine() or platform.node()).encode()).hexdigest()[:8]

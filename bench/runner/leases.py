"""Leases: who works on what, among drivers that share a run directory and nothing else.

    RUN/claims/<name>.<n>.claim     the n-th lease on a name; the one with the highest n counts

A lease is a file created exclusively, which every local disk and NFS since version 3 does atomically; no lock is asked
for. Its owner touches it every few seconds. It is stale when its owner, a process of this machine, is gone, or when its
time stamp has not changed while we watched for :data:`EXPIRY_S` of our own monotonic clock: clocks of machines are
never compared, so they may differ and jump. A stale lease is not removed but succeeded by the next number, created
exclusively as well: of several heirs one wins, and an owner that was only asleep sees its heir.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.errors import StoreError
from bench.record.files import this_machine
from bench.record.paths import leases_folder
from bench.record.types import Fields

BEAT_S = 10.0
EXPIRY_S = 90.0  # above what NFS clients remember of a file's times (60 s)
_FILE = re.compile(r"(.+)\.(\d+)\.claim")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of ours on ``name``."""

    name: str
    path: Path
    number: int


class Leases:
    """The leases of one driver in one run directory. Touches them from a thread of its own until closed.

    Args:
        out: the run directory.
        beat_s: how often a lease is touched.
        expiry_s: how long an untouched lease of another machine is respected.
    """

    def __init__(self, out: Path, beat_s: float = BEAT_S, expiry_s: float = EXPIRY_S) -> None:
        self.folder = leases_folder(out)
        self.expiry_s = expiry_s
        self.held: dict[str, Lease] = {}
        self._seen: dict[Path, tuple[int, float]] = {}
        self._identity = json.dumps({**process_identity(), "token": secrets.token_hex(8)}).encode()
        self._closed = threading.Event()
        self._guard = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error.strerror}; choose another with --out") from error
        self._thread = threading.Thread(target=self._beat, args=(beat_s,), daemon=True, name="leases")
        self._thread.start()

    def take(self, name: str) -> Lease | None:
        """Lease ``name``; None if another driver, alive as far as can be told, has it. What is ours is given again.

        Raises:
            StoreError: the folder cannot be written.
        """
        if name in self.held:
            return self.held[name]
        before = self._files(name)
        if any(not self._stale(path) for path in before.values()):
            return None
        dead = {path: _read(path).get("token") for path in before.values()}
        number = max(before, default=-1) + 1
        path = self.folder / f"{name}.{number}.claim"
        try:
            self.folder.mkdir(exist_ok=True)  # another driver, ending when nobody had a lease, has cleared it away
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, FileNotFoundError):
            return None
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
        try:
            os.write(handle, self._identity)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
        finally:
            os.close(handle)
        # Between looking and creating another may have leased under a number that was free again: both then step back.
        rivals = [p for n, p in self._files(name).items() if n != number]
        if any(p not in dead or _read(p).get("token", dead[p]) != dead[p] for p in rivals):
            path.unlink(missing_ok=True)
            return None
        lease = Lease(name, path, number)
        with self._guard:
            self.held[name] = lease
        return lease

    def release(self, name: str, done: bool = False) -> None:
        """Give a lease back. ``done``: what was leased is on disk, so nobody needs to know of earlier leases."""
        with self._guard:
            lease = self.held.pop(name, None)
        if lease is None:
            return
        with contextlib.suppress(OSError):
            lease.path.unlink(missing_ok=True)
            for number, path in self._files(name).items() if done else ():
                if number < lease.number:
                    path.unlink(missing_ok=True)

    def lost(self, name: str) -> bool:
        """Whether another driver has taken our lease for abandoned and succeeded us, or somebody removed it."""
        lease = self.held.get(name)
        return lease is None or max(self._files(name), default=-1) != lease.number

    def holder(self, name: str) -> str | None:
        """Who else has ``name`` now, for people; None if it is ours or free."""
        if name in self.held:
            return None
        for _, path in sorted(self._files(name).items(), reverse=True):
            if not self._stale(path):
                owner = _read(path)
                return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        return None

    def others(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix`` and are leased by others now."""
        return [name for name in sorted(self._names(prefix)) if name not in self.held and self.holder(name)]

    def close(self) -> None:
        """Give everything back."""
        self._closed.set()
        self._thread.join()
        for name in list(self.held):
            self.release(name)
        self._sweep()

    def _names(self, prefix: str = "") -> set[str]:
        found = set()
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if (match := _FILE.fullmatch(entry.name)) and match[1].startswith(prefix):
                    found.add(match[1])
        return found

    def _files(self, name: str) -> dict[int, Path]:
        """The files of all leases on ``name`` by number."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                if (match := _FILE.fullmatch(entry.name)) and match[1] == name:
                    found[int(match[2])] = Path(entry.path)
        return found

    def _stale(self, path: Path) -> bool:
        """Whether the owner of a lease file is gone; a file that vanishes meanwhile is no lease either."""
        try:
            with path.open("rb") as file:  # opening makes an NFS client ask the server
                touched = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return not path.exists()
        alive = _alive(_read(path))
        if alive is not None:
            return not alive
        now = time.monotonic()
        before = self._seen.get(path)
        if before is None or before[0] != touched:
            self._seen[path] = (touched, now)
            return False
        return now - before[1] > self.expiry_s

    def _sweep(self) -> None:
        """Remove the folder if nobody has a lease; what dead drivers left goes with the last one to end."""
        names = self._names()
        if any(self.holder(name) for name in names):
            return
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.folder)):
                if entry.name.endswith(".claim"):
                    os.unlink(entry.path)
            self.folder.rmdir()

    def _beat(self, beat_s: float) -> None:
        while not self._closed.wait(beat_s):
            with self._guard:
                mine = list(self.held.values())
            for lease in mine:
                with contextlib.suppress(OSError):  # succeeded or removed; found out before anything is written
                    os.utime(lease.path)


def process_identity() -> Fields:
    """What identifies this process to others, here and elsewhere."""
    return {"host": platform.node(), "pid": os.getpid(), "machine": this_machine(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the boot: a number that was given out again is another process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _alive(owner: Fields) -> bool | None:
    """Whether the owner runs; None where that cannot be known from here."""
    machine = this_machine()
    if machine is None or owner.get("machine") != machine or not isinstance(owner.get("pid"), int):
        return None
    return _started(owner["pid"]) == owner.get("started")


def _read(path: Path) -> Fields:
    """The owner of a lease; {} while it is being written, or when a crash left it empty."""
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}

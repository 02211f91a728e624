"""Files in folders, zip and tar archives (archives inside them too) seen as one list of members.

Nothing is unpacked by name, so no member can be written outside of anything; an archive whose members are named
``../x`` or absolutely, or that holds links, is refused all the same: whoever made it meant no good. An archive inside
another is read in place where it is stored plainly, and otherwise copied to a temporary file that lives as long as
the tree that was opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

MAX_MEMBER_BYTES = 1 << 29  # of one image or table read into memory
_DEPTH = 3
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, NotImplementedError)
_IGNORED = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


class ArchiveError(ValueError):
    """An archive is damaged or not to be trusted; the message names it and the member."""


class Holder(NamedTuple):
    """A file on disk, or ``size_bytes`` of it from ``start`` on."""

    path: str
    start: int = 0
    size_bytes: int = -1


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tree.

    Attributes:
        path: folders, archives and members joined by ``/``: ``images/imgs_part_1.zip/imgs_part_1/a.png``.
        holder: where its bytes lie: a file, all of it or a part.
        inner: its name, if ``holder`` is a zip archive that it has to be read out of.
        size_bytes: unpacked.
        stamp: what changes when it does: its checksum in an archive, its time on disk.
    """

    path: str
    holder: Holder
    inner: str
    size_bytes: int
    stamp: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The name of the folder that it lies in, "" at the top."""
        return self.path.rpartition("/")[0].rpartition("/")[2]

    def read(self) -> bytes:
        """Return its content.

        Raises:
            ArchiveError: it is too large, cut off, or its checksum is wrong.
        """
        if self.size_bytes > MAX_MEMBER_BYTES:
            raise ArchiveError(f"{self.path} has {self.size_bytes / 2**20:,.0f} MiB; files up to 512 MiB are read")
        try:
            if self.inner:
                return _zip_of(self.holder, _stamp(self.holder.path), os.getpid()).read(self.inner)
            with open(self.holder.path, "rb") as stream:
                stream.seek(self.holder.start)
                content = stream.read(self.size_bytes)
        except FileNotFoundError:
            raise ArchiveError(f"{self.path}: {self.holder.path} is gone") from None
        except (*_BROKEN, RuntimeError, KeyError) as error:
            raise ArchiveError(f"{self.path} cannot be read: {_said(error)}") from error
        if len(content) != self.size_bytes:
            raise ArchiveError(f"{self.path} is cut off: {len(content)} of {self.size_bytes} bytes")
        return content

    def crc32(self) -> int:
        """CRC-32 of its content, off the archive's directory where there is one."""
        return int(self.stamp, 16) if self.inner else zlib.crc32(self.read())


class _Part(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, holder: Holder) -> None:
        self._stream = open(holder.path, "rb")  # noqa: SIM115  # closed in close()
        self._start, self._size, self._at = holder.start, holder.size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._at)
        block = self._stream.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()


@functools.lru_cache(maxsize=8)
def _zip_of(holder: Holder, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Keep archives open; each process has its own handle, since a fork would share the file's position."""
    return zipfile.ZipFile(holder.path if holder.size_bytes < 0 else io.BufferedReader(_Part(holder)))


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


class Tree:
    """All files under a folder or in an archive, and those in the archives among them.

    Args:
        place: a folder or an archive.
        inner: open archives that lie in archives too; otherwise they are members like any other, which is enough for
            :meth:`digest` and unpacks nothing.

    Raises:
        ArchiveError: an archive is damaged or not to be trusted, or a folder cannot be read.
        FileNotFoundError: there is no such place.
    """

    def __init__(self, place: Path, inner: bool = True) -> None:
        self.place = place
        self._inner = inner
        self._spilled: list[str] = []
        self._cleanup = weakref.finalize(self, _remove, self._spilled, os.getpid())
        if place.is_dir():
            found = self._walk(place)
        elif place.is_file():
            found = self._archive(Holder(str(place)), place.name, 0)
        else:
            raise FileNotFoundError(f"there is no {place}")
        self.members = tuple(sorted(found, key=lambda member: member.path))

    def digest(self) -> str:
        """Change when a file is added, removed, renamed or changed."""
        text = "\n".join(f"{m.path}\t{m.size_bytes}\t{m.stamp}" for m in self.members)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _walk(self, folder: Path) -> Iterator[Member]:
        for relative in walk(folder):
            path = os.path.join(folder, relative)
            if relative.lower().endswith(_ARCHIVES):
                yield from self._archive(Holder(path), relative, 0)
            else:
                status = os.stat(path)
                yield Member(relative, Holder(path), "", status.st_size, f"t{status.st_mtime_ns}")

    def _archive(self, holder: Holder, prefix: str, depth: int) -> Iterator[Member]:
        if depth >= _DEPTH:
            raise ArchiveError(f"{prefix}: archives lie more than {_DEPTH} deep in each other; that is not read")
        try:
            for member in self._zip(holder, prefix) if prefix.lower().endswith(".zip") else self._tar(holder, prefix):
                if self._inner and member.path.lower().endswith(_ARCHIVES):
                    yield from self._archive(self._reachable(member), member.path, depth + 1)
                else:
                    yield member
        except _BROKEN as error:
            raise ArchiveError(f"{prefix} is not a readable archive: {_said(error)}; fetch it again") from error

    def _zip(self, holder: Holder, prefix: str) -> Iterator[Member]:
        for entry in _zip_of(holder, _stamp(holder.path), os.getpid()).infolist():
            _safe(prefix, entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise ArchiveError(f"{prefix}: member {entry.filename!r} is a link; the archive is not read")
            if entry.is_dir() or _ignored(entry.filename):
                continue
            if entry.flag_bits & 1:
                raise ArchiveError(f"{prefix}: member {entry.filename!r} is encrypted; unpack the archive yourself")
            yield Member(f"{prefix}/{entry.filename}", holder, entry.filename, entry.file_size, f"{entry.CRC:08x}")

    def _tar(self, holder: Holder, prefix: str) -> Iterator[Member]:
        plain = self._plain_tar(holder, prefix)
        with _opened(plain) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            entries = archive.getmembers()
        for entry in entries:
            _safe(prefix, entry.name)
            if entry.isdir() or _ignored(entry.name):
                continue
            if not entry.isfile() or entry.sparse is not None:
                raise ArchiveError(f"{prefix}: member {entry.name!r} is a link or device; the archive is not read")
            place = Holder(plain.path, plain.start + entry.offset_data, entry.size)
            yield Member(f"{prefix}/{entry.name}", place, "", entry.size, f"t{int(entry.mtime)}")

    def _plain_tar(self, holder: Holder, prefix: str) -> Holder:
        """Unpack a compressed tar archive, whose members could only be reached from its start."""
        with _opened(holder) as stream:
            head = stream.read(6)
            stream.seek(0)
            for magic, module in ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "lzma")):
                if head.startswith(magic):
                    return self._copy(importlib.import_module(module).open(stream, "rb"), prefix, None)
        return holder

    def _reachable(self, member: Member) -> Holder:
        """Say where the bytes of an archive within an archive lie, copying them to a file if they are packed."""
        if not member.inner:
            return member.holder
        outer = _zip_of(member.holder, _stamp(member.holder.path), os.getpid())
        entry = outer.getinfo(member.inner)
        if entry.compress_type == zipfile.ZIP_STORED:
            with _opened(member.holder) as stream:
                stream.seek(entry.header_offset)
                header = stream.read(30)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            return Holder(member.holder.path, member.holder.start + entry.header_offset + 30 + names, entry.file_size)
        with outer.open(entry) as packed:
            return self._copy(packed, member.path, member.size_bytes)

    def _copy(self, stream: Any, prefix: str, size_bytes: int | None) -> Holder:
        folder = os.environ.get("MEDBENCH_CACHE") or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="medbench-unpacked-", dir=folder)
        self._spilled.append(path)
        left = size_bytes or 0
        with os.fdopen(handle, "wb") as target:
            while block := stream.read(1 << 20):
                if shutil.disk_usage(folder).free < max(left, len(block)):
                    raise ArchiveError(
                        f"{prefix} does not fit into {folder}, where it has to be unpacked for reading; "
                        "set MEDBENCH_CACHE to a folder with room"
                    )
                target.write(block)
                left -= len(block)
        return Holder(path)


def _opened(holder: Holder) -> BinaryIO:
    return open(holder.path, "rb") if holder.size_bytes < 0 else io.BufferedReader(_Part(holder))  # type: ignore[return-value]


def _remove(paths: list[str], process: int) -> None:
    if os.getpid() == process:  # a forked worker that ends must not take its parent's files along
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _ignored(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part in _IGNORED or part.startswith(".") for part in parts)


def _safe(archive: str, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ArchiveError(f"{archive}: member {name!r} would lie outside of the folder; the archive is not read")


def walk(folder: Path | str) -> Iterator[str]:
    """Give every file below a folder by its path from there, joined by ``/``; hidden ones aside.

    Links are followed, and no folder is visited twice.

    Raises:
        ArchiveError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def visit(path: str, prefix: str) -> Iterator[str]:
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                found = sorted((e.name, e.is_dir()) for e in entries if e.name[0] != "." and e.name not in _IGNORED)
        except OSError as error:
            raise ArchiveError(f"cannot read the folder {path}: {_said(error)}") from error
        for name, is_folder in found:
            if is_folder:
                yield from visit(os.path.join(path, name), f"{prefix}{name}/")
            else:
                yield prefix + name

    yield from visit(str(folder), "")

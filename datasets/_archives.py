"""Files in folders and zip archives (an archive inside another too) seen as one list of members.

Nothing is unpacked by name, so no member can be written outside of anything; an archive whose members are named
``../x`` or absolutely, or that holds links, is refused all the same: whoever made it meant no good. An archive inside
another is copied to a temporary file that lives as long as the tree that was opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bench.datasets._contents import contents

MAX_MEMBER_BYTES = 1 << 29  # of one image or table read into memory
_BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, KeyError)
_IGNORED = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


class ArchiveError(ValueError):
    """An archive is damaged or not to be trusted; the message names it and the member."""


class Member(NamedTuple):
    """A file in a tree.

    Attributes:
        path: folders, archives and members joined by ``/``: ``images/imgs_part_1.zip/imgs_part_1/a.png``.
        file: on disk: itself, or the archive that it is read out of.
        inner: its name in that archive, or "".
        size_bytes: unpacked.
        stamp: its checksum in an archive, "" on disk.
    """

    path: str
    file: str
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
            return _zip(self.file).read(self.inner) if self.inner else Path(self.file).read_bytes()
        except FileNotFoundError:
            raise ArchiveError(f"{self.path}: {self.file} is gone") from None
        except _BROKEN as error:
            raise ArchiveError(f"{self.path} cannot be read: {_said(error)}") from error

    def crc32(self) -> int:
        """CRC-32 of its content, off the archive's directory where there is one."""
        return int(self.stamp, 16) if self.inner else zlib.crc32(self.read())


def _zip(path: str) -> zipfile.ZipFile:
    status = os.stat(path)
    return _kept_open(path, (status.st_size, status.st_mtime_ns), os.getpid())


@functools.lru_cache(maxsize=8)
def _kept_open(path: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Each process has its own handle, since a fork would share the file's position."""
    return zipfile.ZipFile(path)


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


class Tree:
    """All files under a folder or in a zip archive, and those in the archives among them.

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
        self._copies: list[str] = []
        weakref.finalize(self, _remove, self._copies, os.getpid())
        if place.is_dir():
            found = self._below(place)
        elif place.is_file():
            found = self._archive(str(place), place.name)
        else:
            raise FileNotFoundError(f"there is no {place}")
        self.members = tuple(sorted(found))

    def digest(self) -> str:
        """Change when a file is added, removed, renamed or changed."""
        loose = [m.path for m in self.members if not m.inner]
        found = dict(zip(loose, contents(self.place, self.place, loose), strict=True)) if loose else {}
        text = "\n".join(f"{m.path}\t{m.size_bytes}\t{found.get(m.path, m.stamp)}" for m in self.members)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _below(self, folder: Path) -> Iterator[Member]:
        for relative in walk(folder):
            path = os.path.join(folder, relative)
            if relative.lower().endswith(".zip"):
                yield from self._archive(path, relative)
            else:
                status = os.stat(path)
                yield Member(relative, path, "", status.st_size, "")

    def _archive(self, path: str, prefix: str, depth: int = 0) -> Iterator[Member]:
        try:
            for entry in _zip(path).infolist():
                name = entry.filename
                _refuse_unsafe(prefix, entry)
                if entry.is_dir() or any(part in _IGNORED or part[0] == "." for part in PurePosixPath(name).parts):
                    continue
                member = Member(f"{prefix}/{name}", path, name, entry.file_size, f"{entry.CRC:08x}")
                if not (self._inner and name.lower().endswith(".zip")):
                    yield member
                elif depth:
                    raise ArchiveError(f"{member.path}: an archive in an archive in an archive is not read; unpack it")
                else:
                    yield from self._archive(self._copied(member), member.path, depth + 1)
        except _BROKEN as error:
            raise ArchiveError(f"{prefix} is not a readable archive: {_said(error)}; fetch it again") from error

    def _copied(self, member: Member) -> str:
        folder = os.environ.get("MEDBENCH_CACHE") or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        if shutil.disk_usage(folder).free < member.size_bytes:
            raise ArchiveError(
                f"{member.path} does not fit into {folder}, where it has to be unpacked for reading; "
                "set MEDBENCH_CACHE to a folder with room"
            )
        handle, path = tempfile.mkstemp(prefix="medbench-unpacked-", dir=folder)
        self._copies.append(path)
        with os.fdopen(handle, "wb") as target, _zip(member.file).open(member.inner) as stream:
            shutil.copyfileobj(stream, target, 1 << 20)
        return path


def _remove(paths: list[str], process: int) -> None:
    if os.getpid() == process:  # a forked worker that ends must not take its parent's files along
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _refuse_unsafe(archive: str, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ArchiveError(f"{archive}: member {name!r} would lie outside of the folder; the archive is not read")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ArchiveError(f"{archive}: member {name!r} is a link; the archive is not read")
    if entry.flag_bits & 1:
        raise ArchiveError(f"{archive}: member {name!r} is encrypted; unpack the archive yourself")


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

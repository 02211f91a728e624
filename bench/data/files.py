"""Files that datasets need: verified before they are read, and fetched (:mod:`bench.data.download` does the transfer).

:func:`check` lists what is missing or damaged, :func:`fetch` downloads it, :func:`preflight` and
:func:`fetch_datasets` do so for datasets by name. Imports neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench import registry
from bench.data import checksums
from bench.data.download import HEADERS, UnreachableError, download, in_lines
from bench.data.download import DataError as DataError
from bench.data.download import FetchError as FetchError
from bench.data.download import Progress as Progress
from bench.record.paths import default_cache_dir
from bench.registry import DatasetInfo, RemoteFile

if TYPE_CHECKING:
    import requests


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used.

    Attributes:
        path: where the file has to lie.
        reason: ``missing``, ``damaged`` or ``unreadable``.
        found_md5: of the file that lies there, if one could be read.
        dataset, size: what needs it, where known.
        detail: why it cannot be read.
    """

    file: RemoteFile
    path: Path
    reason: str
    found_md5: str | None = None
    dataset: str = ""
    size: int = 0
    detail: str = ""

    def __str__(self) -> str:
        wanted_by = f"{self.dataset} at {self.size} pixels: " if self.dataset else ""
        found = f" (MD5 {self.found_md5}, expected {self.file.md5})" if self.found_md5 else ""
        return f"{wanted_by}{self.path} is {self.reason}{f': {self.detail}' if self.detail else ''}{found}"

    @property
    def root(self) -> Path:
        """The data root that the file belongs in."""
        return self.path.parents[len(PurePosixPath(self.file.name).parts) - 1]


class MissingFilesError(DataError):
    """Files are missing or damaged. The message is short; ``details`` holds links and checksums, ``problems`` all.

    Args:
        problems: what is wrong.
        download: why an attempt to download them failed, if there was one.
        without: how to go on without them, if anything is left to do then.
    """

    def __init__(self, problems: Sequence[Problem], download: FetchError | None = None, without: str = "") -> None:
        super().__init__(missing_message(problems, download, without))
        self.problems = tuple(problems)
        self.details = missing_details(problems)


def default_root() -> Path:
    """Where dataset files lie when no data root is given: ``$MEDBENCH_DATA``, else the user's data folder."""
    if named := os.environ.get("MEDBENCH_DATA"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("medbench", appauthor=False))


# --- verifying -------------------------------------------------------------------------------------------------


def place(file: RemoteFile, root: Path) -> Path:
    """Return the path of ``file`` under ``root``.

    Raises:
        ValueError: its name would lead out of ``root``.
    """
    name = PurePosixPath(file.name)
    if name.is_absolute() or ".." in name.parts or "\\" in file.name or not name.name:
        raise ValueError(f"file name {file.name!r} would lie outside of the data root {root}")
    return root / name


def _problem(file: RemoteFile, root: Path, dataset: str = "", size: int = 0, fresh: bool = False) -> Problem | None:
    place(file, root)  # refuses a name that leads out of the root
    path = file.locate(root)
    try:
        found = checksums.md5_of(path, default_cache_dir(), fresh)
    except (FileNotFoundError, NotADirectoryError):
        return Problem(file, path, "missing", None, dataset, size)
    except OSError as error:
        return Problem(file, path, "unreadable", None, dataset, size, error.strerror or str(error))
    return None if found == file.md5.lower() else Problem(file, path, "damaged", found, dataset, size)


def check(files: Iterable[RemoteFile], root: Path) -> list[Problem]:
    """Compare each file under ``root`` with its MD5 and return those that are missing, unreadable or different."""
    return [problem for file in files if (problem := _problem(file, root))]


def preflight(wanted: Iterable[tuple[DatasetInfo, int]], root: Path | None, *, fresh: bool = False) -> list[Problem]:
    """Verify all files of ``wanted`` (dataset, size in pixels) and return every missing or damaged one.

    A file that was verified before, by whatever process, and did not change since is not read again unless ``fresh``.
    """
    folder = root or default_root()
    needs = [(file, folder, info.name, size, fresh) for info, size in wanted for file in info.open().files(size)]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        found = list(pool.map(lambda need: _problem(*need), dict.fromkeys(needs)))
    return [problem for problem in found if problem]


def bundled_note(info: DatasetInfo, size: int, root: Path | None) -> str:
    """Say that a dataset is read from the copy inside the package, the data root having none; else ""."""
    if size not in info.bundled:
        return ""
    folder = root or default_root()
    used = [file for file in info.open().files(size) if file.locate(folder) == file.bundled]
    return f"{info.name} at {size} px: bundled with medbench ({info.licence}), no file in {folder}" if used else ""


def missing_message(problems: Sequence[Problem], download: FetchError | None = None, without: str = "") -> str:
    """Say in a few lines of at most 80 columns which files are wrong, where they belong and what to type."""
    absent = [problem for problem in problems if problem.reason == "missing"]
    lines = []
    if absent:
        count = "1 data file is" if len(absent) == 1 else f"{len(absent)} data files are"
        lines += [f"{count} missing from {absent[0].root}:", *in_lines([p.file.name for p in absent])]
    for problem in problems:
        if problem.reason != "missing":
            cause = problem.detail or "its MD5 is not the published one; remove it to have it downloaded again"
            lines.append(f"{problem.path} is {problem.reason}: {cause}")
    if isinstance(download, UnreachableError) and download.unresolved:
        lines.append(f"There is no network: {download.host} cannot be resolved.")
    elif download:
        lines.append(f"The download failed: {str(download).splitlines()[0]}")
    if names := list(dict.fromkeys(p.dataset for p in problems if p.dataset)):
        sizes = ",".join(map(str, dict.fromkeys(p.size for p in problems if p.dataset)))
        root = problems[0].root
        there = "" if root == default_root() else f" --data-root {shlex.quote(str(root))}"
        lines += [
            "Copy them there, name their folder with --data-root DIR, or download them:",
            f"  bench fetch --datasets {_shortest(names)} --sizes {sizes}{there}",
        ]
    return "\n".join(lines + ([without] if without else []))


def _shortest(names: Sequence[str]) -> str:
    """The names, or the group (``medmnist``) of them and at most one more: what is here is not fetched again."""
    groups = {group for info in registry.datasets.values() for group in info.groups} if len(names) > 2 else set()
    for group in sorted(groups):
        members = registry.datasets.expand(group)
        if set(names) <= set(members) and len(members) <= len(names) + 1:
            return group
    return ",".join(names)


def missing_details(problems: Sequence[Problem]) -> str:
    """Each file's link, path and MD5 sums."""
    lines = []
    for problem in problems:
        wanted_by = f" ({problem.dataset}, {problem.size} pixels)" if problem.dataset else ""
        lines += [
            f"{problem.file.name}{wanted_by}: {problem.reason}",
            f"  from          {problem.file.url}",
            f"  put it at     {problem.path}",
            f"  MD5 expected  {problem.file.md5}",
            *([f"  MD5 found     {problem.found_md5}"] if problem.found_md5 else []),
        ]
    return "\n".join(lines)


# --- downloading -----------------------------------------------------------------------------------------------


def fetch_datasets(
    names: Sequence[str], sizes: Sequence[int], root: Path | None, progress: Progress | None = None
) -> list[Path]:
    """Download what the named datasets (words and globs too) need at ``sizes``; verified files are left alone.

    Args:
        names: as everywhere: ``medmnist``, ``organ*``, ``breastmnist``.
        sizes: in pixels; a dataset that exists in one size only, or in none, ignores them.
        root: the data root; ``None`` is :func:`default_root`.
        progress: called for every block.

    Returns:
        The path of each file needed.

    Raises:
        RegistryError: an unknown name, or a size that a named dataset does not exist in.
        FetchError: listing every file that could not be had, and what has to be fetched by hand.
    """
    files: dict[RemoteFile, None] = {}
    absent: list[str] = []
    for info in (registry.dataset_info(name) for name in registry.expand_datasets(names)):
        if info.varied:  # not fetched by us: whoever reads it says what is missing and where it is to be had
            try:
                info.open().fingerprint(0, root or default_root())
            except (ValueError, OSError) as error:
                absent.append(str(error))
        chosen = info.sizes if len(info.sizes) < 2 else tuple(sizes)
        for size in chosen:
            if size not in info.sizes:
                have = ", ".join(map(str, info.sizes))
                raise registry.RegistryError(f"{info.name} has no size {size}; it exists in {have} pixels")
            files.update(dict.fromkeys(info.open().files(size)))
    paths = fetch(list(files), root or default_root(), progress)
    if absent:
        raise FetchError("\n".join(["these have to be fetched by hand:", *absent]))
    return paths


def fetch(
    files: Iterable[RemoteFile],
    root: Path,
    progress: Progress | None = None,
    *,
    attempts: int = 5,
    pause_s: float = 1.0,
) -> list[Path]:
    """Download each file into ``root`` unless it is there and intact.

    A cut connection is resumed where it ended, at once and also by the next call; each file is checked against its
    MD5 before it takes its name; several processes may fetch into one folder (they take turns file by file).

    Args:
        files: name, URL and MD5 of each.
        root: made if it does not exist.
        progress: called for every block.
        attempts: tries in a row that bring no byte before a file is given up.
        pause_s: wait before the second such try, doubled for each further one.

    Returns:
        The paths, in the order of ``files``.

    Raises:
        FetchError: listing every file that could not be had, after all others were fetched.
    """
    import requests

    paths: list[Path] = []
    failures: list[FetchError] = []
    cut_off: dict[str, UnreachableError] = {}  # hosts that cannot be reached: nothing more is asked of them
    with requests.Session() as session:
        session.headers.update(HEADERS)
        for file in files:
            host = urlsplit(file.url).netloc
            if (error := cut_off.get(host)) and _problem(file, root):
                cut_off[host] = UnreachableError(
                    error.host, error.cause, *error.files, file, unresolved=error.unresolved
                )
                continue
            try:
                paths.append(_fetch_one(session, file, root, progress, attempts, pause_s))
            except UnreachableError as failure:
                cut_off[host] = failure
            except FetchError as failure:
                failures.append(failure)
            except OSError as failure:
                failures.append(FetchError(f"{file.name}: cannot write to {root}: {failure.strerror or failure}"))
    failures += cut_off.values()
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise FetchError("\n".join(map(str, failures)))
    return paths


def _fetch_one(
    session: requests.Session,
    file: RemoteFile,
    root: Path,
    progress: Progress | None,
    attempts: int,
    pause_s: float,
) -> Path:
    from filelock import FileLock

    path = place(file, root)
    if _problem(file, root) is None:  # before anything is written: the folder may be read-only
        return file.locate(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if _problem(file, root) is None:  # also when another process has just fetched it
            return path
        for fresh in (False, True):
            if fresh:
                part.unlink(missing_ok=True)
            resumed = part.is_file() and part.stat().st_size > 0
            download(session, file, part, progress, attempts, pause_s)
            found = checksums.md5_of(part, default_cache_dir())
            if found == file.md5.lower():
                os.replace(part, path)
                _sync_folder(path.parent)
                return path
            if not resumed:
                break  # what was resumed may have been another version of the file: that alone deserves a second try
        part.unlink(missing_ok=True)
        raise FetchError(
            f"{file.name}: what {file.url} sent has MD5 {found}, expected {file.md5}; nothing was kept. "
            "The file may have been replaced at its source, or a proxy answers in its place."
        )


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the rename stands all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

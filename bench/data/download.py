"""One download over HTTP: resumed by byte range, retried with growing pauses, never waiting for ever."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from bench.errors import DataError as DataError
from bench.registry import RemoteFile

if TYPE_CHECKING:
    import requests

#: ``(file name, bytes so far, bytes in all or None)``
Progress = Callable[[str, int, int | None], None]

HEADERS = {
    # Zenodo refuses agents that call themselves a browser and nothing else.
    "User-Agent": "medbench (benchmark harness; requests)",
    "Accept-Encoding": "identity",  # byte ranges count the file's own bytes
}
_BLOCK = 1 << 16  # a cut connection loses at most this much
_TIMEOUT_S = (15.0, 60.0)  # connect, and silence between two blocks
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 60.0
_UNRESOLVED = "the host name cannot be resolved; is there a network?"
MOST_NAMED = 12  # files that a message names
_NO_WAY = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH})


class FetchError(DataError):
    """A download failed for good; the message names the file, the URL and the cause."""


class UnreachableError(FetchError):
    """Not one byte came, because there is no way to the host.

    Attributes:
        host: where.
        cause: why there is no way.
        files: what was asked for.
        unresolved: the host's name is not known here, as without a network: asking again does not help.
    """

    def __init__(self, host: str, cause: str, *files: RemoteFile, unresolved: bool) -> None:
        one = f"{files[0].name}: {files[0].url}: {cause}"
        several = [f"{host}: {cause} Not fetched:", *in_lines([file.name for file in files])]
        super().__init__(one if len(files) == 1 else "\n".join(several))
        self.host, self.cause, self.files, self.unresolved = host, cause, files, unresolved


def in_lines(names: Sequence[str]) -> list[str]:
    """Names in lines of 80 columns, at most a dozen."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return textwrap.wrap(
        ", ".join(names[:MOST_NAMED]) + more, 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def download(
    session: requests.Session,
    file: RemoteFile,
    part: Path,
    progress: Progress | None,
    attempts: int,
    pause_s: float,
) -> None:
    """Bring ``part`` to its full length, resuming from what it holds; its content is not verified here.

    Raises:
        FetchError: the server refuses, nothing came in ``attempts`` tries in a row, or the disk is too small.
    """
    import requests

    failed, most, before = 0, _size(part), _size(part)
    while True:
        wait_s, unreachable = 0.0, None
        try:
            _stream(session, file, part, progress)
            return
        except _RefusalError as refused:
            cause, wait_s = str(refused), refused.wait_s
            if not refused.temporary:
                raise FetchError(f"{file.name}: {file.url}: {cause}") from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            cause, unreachable = _plain(error, file)
        except requests.RequestException as error:  # a malformed URL, a redirection loop
            raise FetchError(f"{file.name}: {file.url}: {error}") from error
        have = _size(part)
        if unreachable and unreachable.unresolved and most == before:
            raise unreachable  # there is no network; one that breaks in the middle of a file may come back
        failed = 1 if have > most else failed + 1
        most = max(most, have)  # a server without ranges starts again: only more than ever before is progress
        if failed >= attempts:
            tries = f" ({failed} attempts in a row)" if failed > 1 else ""
            kept = f"; {have:,} bytes are kept and the next call goes on from there" if have else ""
            raise unreachable or FetchError(f"{file.name}: {file.url}: {cause}{tries}{kept}")
        time.sleep(min(max(pause_s * 2 ** (failed - 1), wait_s), _LONGEST_PAUSE_S))


def unresolved(file: RemoteFile) -> UnreachableError | None:
    """The error that fetching would end with because its host has no address here; None where it has one.

    Behind a proxy names are resolved by the proxy, so nothing is known.
    """
    host = urlsplit(file.url).hostname or ""
    if getproxies():
        return None
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return UnreachableError(host, _UNRESOLVED, file, unresolved=True)
    return None


class _RefusalError(Exception):
    def __init__(self, message: str, *, temporary: bool, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.wait_s = wait_s


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _plain(error: Exception, file: RemoteFile) -> tuple[str, UnreachableError | None]:
    """Why a connection failed, and the error where there is no way to the host."""
    import requests

    host = urlsplit(file.url).hostname or ""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return _UNRESOLVED, UnreachableError(host, _UNRESOLVED, file, unresolved=True)
    if any(isinstance(cause, OSError) and cause.errno in _NO_WAY for cause in causes):
        text = "no connection to the host; is there a network, or a proxy to name in HTTPS_PROXY?"
        return text, UnreachableError(host, text, file, unresolved=False)
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time", None
    return f"the connection broke ({type(error).__name__})", None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and, down to the operating system's, what it was raised for."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _stream(session: requests.Session, file: RemoteFile, part: Path, progress: Progress | None) -> None:
    have = _size(part)
    asked = {"Range": f"bytes={have}-"} if have else {}
    with session.get(file.url, headers=asked, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == 416 and have:
            return  # nothing follows what is there; the checksum tells whether that is the whole file
        if response.status_code not in (200, 206):
            wait = response.headers.get("Retry-After", "")
            raise _RefusalError(
                f"the server answered {response.status_code}",
                temporary=response.status_code in _RETRIED,
                wait_s=float(wait) if wait.isdigit() else 0.0,
            )
        start = _start(response.status_code, response.headers, have)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else file.size_bytes
        needed, free = (total or 0) - start, shutil.disk_usage(part.parent).free
        if needed > free:
            where = f"{part.parent}, which has {free / 1e9:.1f} GB free"
            raise FetchError(f"{file.name}: needs {needed / 1e9:.1f} GB in {where}")
        with part.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.truncate()
            done = start
            for block in response.iter_content(_BLOCK):
                stream.write(block)
                done += len(block)
                if progress:
                    progress(file.name, done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _RefusalError(f"the connection ended after {done:,} of {total:,} bytes", temporary=True)


def _start(status: int, headers: Mapping[str, str], have: int) -> int:
    """Offset of the first byte sent: a server that ignores the range makes us start again, a wrong range is refused."""
    if status == 200:
        return 0
    begins = headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    if not begins.isdigit() or int(begins) != have:
        raise _RefusalError(f"asked for bytes from {have}, was sent {headers.get('Content-Range')!r}", temporary=False)
    return have

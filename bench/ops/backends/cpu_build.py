"""Compile the CPU kernel at first use and keep the result: no work for the user, nothing to build at installation.

Why so: the source has a plain C interface and is loaded with ctypes, so it needs neither torch's headers nor its ABI,
compiles in one to two seconds with any g++ or clang++, and is built for exactly the machine it runs on. A wheel would
have to be built for the oldest one: on the first stage of MedMamba-T at 224 px, one thread of an AMD EPYC takes 2.5 ms
with AVX-512, 6.5 ms with AVX2 and 23 ms with SSE2 alone. Numba, the way without a compiler, was measured at 15 ms
against 5.1 ms for a plain C++ loop on two threads (1.3 ms is what this kernel takes there), costs 100 MB of LLVM, and
compiles or caches at first use all the same.

The library lies in the user's cache directory (MEDBENCH_CACHE overrides it), named by a hash of the sources, the
flags, the compiler's version and the CPU's features: what changes one of these compiles anew. It is compiled under
another name and renamed when complete, under a lock between processes, and loaded only if its digest, written beside
it, still fits. A directory that cannot be written or executed from is passed over for a private temporary one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

SOURCES = ("scan_cpu.cpp", "scan_simd.h")
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: NaN and infinity must reach the output of a diverged training.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions",
         "-fno-rtti", "-w", "-shared", "-fPIC", "-pthread")  # fmt: skip
NATIVE = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
COMPILE_TIMEOUT_S = 120


class BuildError(Exception):
    """No kernel can be had; the message is one line that says why and what to do."""


def find_compiler() -> str:
    """Path of the user's C++ compiler: $CXX if set, otherwise c++, g++ or clang++.

    Raises:
        BuildError: If there is none.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    for name in wanted:
        if path := shutil.which(name):
            return path
    raise BuildError(f"no C++ compiler ({', '.join(wanted)} not found); install g++ or clang++ for the fast kernel")


def _output_of(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout + result.stderr


def cpu_features() -> str:
    """What -march=native depends on: a home directory shared by different machines must not share the library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {_output_of('sysctl', '-n', 'machdep.cpu.brand_string')}"
    wanted = ("flags", "Features", "model name", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip(" :") in wanted}))


def build_key(compiler: str, extra: tuple[str, ...]) -> str:
    """Hash of everything that decides the compiled library."""
    here = Path(__file__).parent
    parts = [(here / name).read_text() for name in SOURCES]
    parts += [repr((FLAGS, extra)), _output_of(compiler, "--version"), cpu_features(), platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _directories() -> Iterator[Path]:
    """Where the library may lie, in order of preference."""
    override = os.environ.get("MEDBENCH_CACHE")
    yield (Path(override).expanduser() if override else user_cache_path("medbench")) / "ops"
    owner = os.getuid() if hasattr(os, "getuid") else 0
    yield Path(tempfile.gettempdir()) / f"medbench-ops-{owner}"


def _usable(directory: Path) -> bool:
    """Create the directory if need be; refuse one that others could have filled, or that cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH):
            return False
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _complete(library: Path) -> bool:
    """Whether the library is the one its digest was written for: a truncated one would crash the process."""
    try:
        return library.with_suffix(".sha256").read_text().strip() == _digest(library)
    except OSError:
        return False


def _compile(compiler: str, extra: tuple[str, ...], key: str, library: Path) -> None:
    """Compile beside the final place, then rename. The caller holds the library's lock."""
    source = Path(__file__).parent / SOURCES[0]
    failure = ""
    prefix = f"build-{key}-"
    for remains in library.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(remains, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=prefix) as folder:
        built = Path(folder) / library.name
        temporary = {**os.environ, "TMPDIR": folder}  # a compiler that is killed leaves its files there
        for native in NATIVE:
            command = [compiler, *FLAGS, *native, *extra, f'-DMEDBENCH_SCAN_KEY="{key}"', "-o", str(built), str(source)]
            try:
                result = subprocess.run(
                    command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False, env=temporary
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BuildError(f"{compiler} could not be run: {error}") from error
            if result.returncode == 0 and built.is_file():
                digest = built.with_suffix(".sha256")
                digest.write_text(_digest(built) + "\n")
                os.replace(digest, library.with_suffix(".sha256"))
                os.replace(built, library)
                return
            failure = failure or (result.stderr.strip().splitlines() or ["no message"])[0]
    raise BuildError(f"{compiler} failed on the scan kernel: {failure}")


def _load(library: Path, key: str) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.medbench_scan_version.restype = ctypes.c_char_p
    if loaded.medbench_scan_version() != key.encode():
        raise OSError(f"{library} was built from other sources")
    return loaded


def load_library() -> ctypes.CDLL:
    """The compiled kernel, from the cache or compiled now (about a second).

    Extra compiler flags may be given in MEDBENCH_CXXFLAGS (for instance -mno-avx512f, to try the portable code).

    Raises:
        BuildError: If there is no compiler, it fails, or no directory can hold the library.
    """
    extra = tuple(os.environ.get("MEDBENCH_CXXFLAGS", "").split())
    compiler = find_compiler()
    key = build_key(compiler, extra)
    problems = []
    for directory in _directories():
        if not _usable(directory):
            problems.append(f"{directory} cannot be written")
            continue
        library = directory / f"scan-{key}.so"
        try:
            with FileLock(directory / f"scan-{key}.lock", timeout=2 * COMPILE_TIMEOUT_S):
                if not _complete(library):
                    _compile(compiler, extra, key, library)
                return _load(library, key)
        except (OSError, AttributeError, Timeout) as error:  # no space, no execution allowed there, a foreign file
            problems.append(f"{directory}: {error}")
    raise BuildError(f"no place for the compiled kernel ({'; '.join(problems)}); set MEDBENCH_CACHE to a folder")

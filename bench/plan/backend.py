"""Which scan backend workers will use here, and what of it decides a speed: its sources and libraries' versions.

Found without torch, and so without importing :mod:`bench.ops`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from importlib import util
from pathlib import Path

from bench.machine.versions import library_versions

BACKENDS = Path(__file__).parents[1] / "ops" / "backends"
SOURCES = {
    "cpu": ("cpu.py", "cpu_build.py", "*.cpp", "*.h"),
    "triton": ("triton/*.py",),
    "mamba-ssm": ("mamba_ssm.py",),
    "reference": ("reference.py",),
}  # of each backend, in BACKENDS


def scan_backend(device: str) -> str:
    """Name the selective-scan backend that workers will use on this machine (``bench doctor`` says why).

    Decided without torch from what the dispatcher looks for; the environment of each Record has the one that ran.
    """
    if forced := os.environ.get("MEDBENCH_SCAN_BACKEND"):
        return forced
    if device != "cpu":
        return "triton" if util.find_spec("triton") else "reference"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return "cpu" if any(name and shutil.which(name) for name in compilers) else "reference"


def deciding_versions(backend: str) -> dict[str, str]:
    """The versions of the libraries that decide a speed with ``backend``: a part of an efficiency Cell's key."""
    return library_versions(("torch", "timm", "triton", *(["mamba-ssm"] if backend == "mamba-ssm" else [])))


@functools.cache
def kernels_digest(backend: str) -> str:
    """Twelve hex digits of the sources of a scan backend: a part of an efficiency Cell's key.

    medbench's own version is not: a release that leaves the kernels as they are repeats no measurement.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES.get(backend, ()) for path in BACKENDS.glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]

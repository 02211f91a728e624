"""Versions of medbench and of the libraries that decide speed, without importing them."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

DECIDING = ("torch", "timm", "triton", "mamba-ssm", "fvcore", "medbench")

try:
    VERSION = version("medbench")
except PackageNotFoundError:  # a checkout on sys.path that was never installed
    VERSION = "0+checkout"


@functools.cache
def library_versions(names: tuple[str, ...] = DECIDING) -> dict[str, str]:
    """Return the installed versions of the libraries that decide speed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""What the user is told: :class:`BenchError` and its kinds. Each is also imported from the room that raises it.

A message names the file, key or value, what was wrong with it, and what to do. The command line prints it and ends with
exit code 2; any other exception is a fault of the tool and keeps its traceback.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


PLACE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of the disk, not of the tool
ELSEWHERE = "free space, or choose another place (--out)"


class BenchError(Exception):
    """An error whose message is for the user.

    Attributes:
        details: more lines, shown with ``--verbose``.
    """

    details: str = ""


class ConfigError(BenchError, ValueError):
    """The configuration is wrong; the message names the file and line, or the flag, and the nearest right name."""


class RegistryError(BenchError, ValueError):
    """A name, option or registration is wrong; the message says which and what would be right."""


class DataError(BenchError, RuntimeError):
    """A data file is missing, damaged or cannot be had; the message says which and what to do."""


class StoreError(BenchError, RuntimeError):
    """A run directory or a file in it cannot be read or written; the message names it."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print lines for people: in a terminal broken between words, in a log or a pipe not at all.

    Indented lines are commands to be copied, and never broken.
    """
    for line in text.split("\n"):
        unbroken = line.startswith("  ") or not console.is_terminal
        console.print(line, style=style, soft_wrap=unbroken, markup=False, highlight=False)

"""What is found once a run and read by all its later processes: one small JSON file each, never seen half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.record.files import replacing

Found = TypeVar("Found")


def kept(path: Path, find: Callable[[], Found]) -> Found:
    """Read ``path``; where it is absent or no JSON, call ``find`` and keep its answer (plain data) there."""
    try:
        found: Found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        text = json.dumps(find())
        with replacing(path) as part:
            part.write_text(text)
        found = json.loads(text)  # the same to its finder as to its readers
    return found

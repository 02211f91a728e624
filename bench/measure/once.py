"""What is found once a run and read by all its later processes: one small JSON file each, never seen half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record.files import replacing


def kept(path: Path, find: Callable[[], Any]) -> Any:
    """Read ``path``; where it is absent or no JSON, call ``find`` and keep its answer (plain data) there."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        pass
    found = find()
    with replacing(path) as part:
        part.write_text(json.dumps(found))
    return json.loads(json.dumps(found))  # the same to its finder as to its readers

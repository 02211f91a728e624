"""What pretrained weights expect of their input. Torch-free until somebody asks for pretrained weights of timm.

A network that was trained on images normalised one way is fed so when it goes on: the recipe's ``mean`` and ``std`` are
for networks that start from nothing (recipes may insist on theirs with ``normalisation = "recipe"``).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from bench import registry
from bench.registry import ModelSpec

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

_HEADER_LIMIT = 100 << 20  # as safetensors itself allows


def normalisation(spec: ModelSpec) -> Normalisation | None:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1; None without pretrained weights.

    Files of weights that this program wrote say so themselves (:mod:`bench.train.weights`); of any other it is what
    timm states for the architecture's own weights. None, too, where nobody says: the recipe's values stand.
    """
    weights = dict(spec.options).get("pretrained")
    if not weights:
        return None
    if isinstance(weights, str) and (stated := _stated_by_file(Path(weights).expanduser())):
        return stated
    return _stated_by_timm(spec)


def facts_of(path: Path) -> dict[str, Any]:
    """What a file of weights that this program wrote says of itself; empty for any other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                return {}
            found = json.loads(json.loads(file.read(length))["__metadata__"]["medbench"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _stated_by_file(path: Path) -> Normalisation | None:
    stated = facts_of(path)
    try:
        mean, std = (tuple(float(v) for v in stated[name]) for name in ("mean", "std"))
    except (KeyError, ValueError, TypeError):
        return None
    return (mean, std) if mean and len(mean) == len(std) and min(std) > 0 else None


def _stated_by_timm(spec: ModelSpec) -> Normalisation | None:
    import timm

    builder: Any = registry.model_info(spec.name).builder
    if isinstance(builder, str):
        importlib.import_module(builder.partition(":")[0])  # our own families register with timm
    name = spec.name.removeprefix("timm:")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.mean or not config.std:
        return None
    return tuple(map(float, config.mean)), tuple(map(float, config.std))

"""What pretrained weights expect of their input. Torch-free until somebody asks for pretrained weights of timm.

A network that was trained on images normalised one way is fed so when it goes on: the recipe's ``mean`` and ``std`` are
for networks that start from nothing (recipes may insist on theirs with ``normalisation = "recipe"``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from bench import registry
from bench.registry import ModelSpec
from bench.registry.weights import info_of, weights_file

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def normalisation(spec: ModelSpec) -> Normalisation | None:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1; None without pretrained weights.

    Files of weights that this program wrote say so themselves (:mod:`bench.train.weights`); of any other it is what
    timm states for the architecture's own weights. None, too, where nobody says: the recipe's values stand.
    """
    weights = dict(spec.options).get("pretrained")
    if not weights:
        return None
    if isinstance(weights, str) and (stated := _stated_by_file(weights_file(weights))):
        return stated
    return _stated_by_timm(spec)


def _stated_by_file(path: Path) -> Normalisation | None:
    stated = info_of(path)
    try:
        mean, std = (tuple(float(v) for v in stated[name]) for name in ("mean", "std"))
    except (KeyError, ValueError, TypeError):
        return None
    return (mean, std) if mean and len(mean) == len(std) and min(std) > 0 else None


def _stated_by_timm(spec: ModelSpec) -> Normalisation | None:
    config = timm_config(spec.name)
    if config is None or not config.mean or not config.std:
        return None
    return tuple(map(float, config.mean)), tuple(map(float, config.std))


def timm_config(name: str) -> Any:
    """What timm knows of a model's weights (mean, licence, hub); None for what timm does not have."""
    info = registry.model_info(name)
    if name.startswith("timm:"):
        return info.weights_config
    import timm

    if isinstance(info.builder, str):
        importlib.import_module(info.builder.partition(":")[0])  # our own families register with timm
    return timm.get_pretrained_cfg(name) if timm.is_model(name) else None

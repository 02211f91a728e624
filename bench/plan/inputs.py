"""By which rule images are brought to the resolution that a model is fed, and what cannot be fed. Torch-free."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench import registry
from bench.data.files import default_root
from bench.record.cells import AccuracyCell, Cell
from bench.registry import DatasetInfo
from bench.registry.info import LazySplit
from bench.sweep.config import ConfigError, Loaded


def resize_rule(loaded: Loaded, info: DatasetInfo, size: int, resolution: int) -> str:
    """Resolve ``auto``: MedMNIST's official rule for sets of one size, an antialiased one for images of any size."""
    rule = loaded.sweep.sweep.resize
    if info.varied:
        return "bilinear" if rule == "auto" else rule
    if size == resolution:
        return "native"
    if rule == "native":
        raise ConfigError(
            f"{loaded.origin('sweep.resize')}: native feeds images as they are, but those of {info.name} have {size} "
            f"pixels, not {resolution}; choose nearest, bilinear, bicubic or pad"
        )
    return "nearest" if rule == "auto" else rule


def unfeedable(
    info: DatasetInfo, size: int, resolution: int, resize: str, root: Path | None, fingerprint: str
) -> str | None:
    """Say why images of a dataset cannot be fed like this, or return None; for ``native`` one image is looked at."""
    if size < info.least_size:
        return f"{info.name} cannot be made at {size} pixels: its texture needs {info.least_size} or more"
    if resize == "pad" and not info.varied and size > resolution:
        return f"zero padding cannot shrink {size} pixels to {resolution}"
    found = _shape_of_one(info, size, root, fingerprint) if resize == "native" and info.varied else None
    if found and found != (resolution, resolution):
        shape = f"{found[1]} x {found[0]} pixels"
        return f"native feeds images as they are, but an image of {info.name} has {shape}, not {resolution}"
    return None


_shapes: dict[tuple[str, str], tuple[int, int] | None] = {}


def _shape_of_one(info: DatasetInfo, size: int, root: Path | None, fingerprint: str) -> tuple[int, int] | None:
    """Height and width of the first image for training, decoded once; None where that says nothing."""
    key = info.name, fingerprint
    if key not in _shapes:
        _shapes[key] = None
        # Whatever an adapter, perhaps a plug-in's, raises: the Cell will meet it and say so with its log.
        with contextlib.suppress(Exception):
            split = info.open().load(size, root or default_root())["train"]
            if isinstance(split, LazySplit) and len(split.labels):
                height, width = split.read(0).shape[:2]
                _shapes[key] = height, width
    return _shapes[key]


def refuse_unfeedable(cells: Iterable[Cell], loaded: Loaded, root: Path | None) -> None:
    """Raise ConfigError for a dataset that no Cell can be fed; where some can, the others are unsupported."""
    found: dict[str, set[tuple[int, int, str, str]]] = defaultdict(set)
    for cell in cells:
        if isinstance(cell, AccuracyCell):
            found[cell.dataset].add((cell.size, cell.resolution, cell.resize, cell.data_fingerprint))
    for dataset, ways in found.items():
        info = registry.dataset_info(dataset)
        reasons = dict.fromkeys(unfeedable(info, *way[:3], root, way[3]) for way in sorted(ways))
        if None not in reasons:
            key = "sweep.resolutions" if info.least_size else "sweep.resize"
            raise ConfigError(f"{loaded.origin(key)}: {'; '.join(map(str, reasons))} ({dataset})")

"""By which rule images are brought to the resolution that a model is fed, and what cannot be fed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from bench import registry
from bench.cells import AccuracyCell, Cell
from bench.config import ConfigError, Loaded
from bench.registry import DatasetInfo


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


def unfeedable(info: DatasetInfo, size: int, resolution: int, resize: str) -> str | None:
    """Say why images of a dataset cannot be fed like this, or return None."""
    if size < info.least_size:
        return f"{info.name} cannot be made at {size} pixels: its texture needs {info.least_size} or more"
    if resize == "pad" and not info.varied and size > resolution:
        return f"zero padding cannot shrink {size} pixels to {resolution}"
    return None


def refuse_unfeedable(cells: Iterable[Cell], loaded: Loaded) -> None:
    """Raise ConfigError for a dataset that no Cell can be fed; where some can, the others are unsupported."""
    trained = [cell for cell in cells if isinstance(cell, AccuracyCell)]
    for dataset in dict.fromkeys(cell.dataset for cell in trained):
        info = registry.dataset_facts(dataset)
        ways = sorted({(cell.size, cell.resolution, cell.resize) for cell in trained if cell.dataset == dataset})
        if all(reasons := [unfeedable(info, *way) for way in ways]):
            key = "sweep.resize" if ways[0][2] == "pad" else "sweep.resolutions"
            raise ConfigError(f"{loaded.origin(key)}: {'; '.join(map(str, reasons))} ({dataset})")

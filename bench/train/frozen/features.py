"""The pooled features of a network, computed once and shared by every head, seed and draw.

They lie in ``features/`` of the cache, one safetensors file for a network, its weights and the images as they are fed.
A checksum of each array is part of the file; a damaged file is made anew.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from bench import registry
from bench.data.cache_entry import only_one
from bench.record.cells import AccuracyCell, Context, features_key
from bench.record.files import replacing
from bench.record.paths import default_cache_dir
from bench.record.types import Fields
from bench.registry import DatasetInfo, Split
from bench.train.loop import forward
from bench.train.pipeline import Pipeline
from bench.train.replay import Replayed

FORMAT = "1"
CPU_BATCH = 64  # what fits into the cache: tf_efficientnet_lite0 at 96 px takes half the time an image of batch 256
Features = dict[str, npt.NDArray[np.float32]]


def features(
    cell: AccuracyCell,
    info: DatasetInfo,
    data: Mapping[str, Split],
    ctx: Context,
    build: Callable[[], tuple[nn.Module, bool]],
    timings: dict[str, float],
) -> Features:
    """Return float32 (N, D) of each split, from the cache or computed now.

    Args:
        cell: names the network, its weights, and how images are fed; its head and labels change nothing.
        info: of the dataset.
        data: its splits.
        ctx: device and cache.
        build: makes the network without a classifier and says whether it is laid out channels_last.
        timings: gets ``features_s``, ``features_images_per_s`` and ``features_mib`` where they were computed now.

    Raises:
        ValueError: the network gives no features (no vector an image), or numbers that are not finite.
    """
    folder = (ctx.cache_dir or default_cache_dir()) / "features"
    key = features_key(cell)
    path = folder / f"{registry.file_stem(cell.dataset)}-{key}.safetensors"
    rows = {name: len(split.labels) for name, split in data.items()}
    if found := read(path, rows):
        return found
    with only_one(path, lambda: ctx.progress({"phase": "waiting for features, which another process computes"})):
        if found := read(path, rows):
            return found
        started = time.perf_counter()
        model, channels_last = build()
        model.eval()
        computed = {name: _of_split(model, split, cell, info, ctx, channels_last, name) for name, split in data.items()}
        timings["features_s"] = time.perf_counter() - started
        timings["features_images_per_s"] = sum(rows.values()) / timings["features_s"]
        timings["features_mib"] = sum(array.nbytes for array in computed.values()) / 2**20
        write(path, computed)
    return computed


def _of_split(
    model: nn.Module, split: Split, cell: AccuracyCell, info: DatasetInfo, ctx: Context, channels_last: bool, name: str
) -> npt.NDArray[np.float32]:
    device = torch.device(ctx.device)
    batch = cell.recipe["eval_batch_size"]
    recipe = {**cell.recipe, "eval_batch_size": min(batch, CPU_BATCH) if device.type == "cpu" else batch}
    reader = Pipeline(
        split.images, split.labels, recipe, resolution=cell.resolution, resize=cell.resize, device=device,
        mirror_safe=info.mirror_safe, channels_last=channels_last, normalisation=cell.normalisation,
    )  # fmt: skip
    step = Replayed(lambda images: forward(model, images, cell.precision).float(), device)
    found, told = [], 0.0
    with torch.inference_mode():
        for images in reader.eval_batches():
            given = step(images)
            if given.ndim != 2 or not given.shape[1]:
                shape = tuple(given.shape)
                raise ValueError(
                    f"{cell.model} gives no features: with num_classes=0 its output is {shape}, not (N, D)"
                )
            found.append(given.cpu())
            if (now := time.monotonic()) - told > 0.5:
                told = now
                done = sum(map(len, found))
                ctx.progress({"phase": f"features of {name}: {done:,} of {len(split.labels):,} images"})
    whole = torch.cat(found).numpy()
    if not np.isfinite(whole).all():
        raise ValueError(f"features of {cell.model} on {cell.dataset}, split {name}, are not all finite")
    return whole


def read(path: Path, rows: Mapping[str, int]) -> Features | None:
    """Read a file of features; None if there is none of so many ``rows``, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            sums = json.loads(file.metadata()["medbench_features"])
            found = {name: file.get_tensor(name) for name in rows}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    fits = all(len(found[name]) == count and _checksum(found[name]) == sums.get(name) for name, count in rows.items())
    return found if fits and sums.get("format") == FORMAT else None


def write(path: Path, arrays: Features) -> None:
    """Write features, all or nothing."""
    said: Fields = {"format": FORMAT, **{name: _checksum(array) for name, array in arrays.items()}}
    with replacing(path) as part:
        save_file(arrays, part, {"medbench_features": json.dumps(said, sort_keys=True)})


def _checksum(array: npt.NDArray[np.float32]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)

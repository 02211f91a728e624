"""The data path: a split stays on the device as uint8; batches are normalised, resized and augmented there.

A split that takes more than :data:`RESIDENT_SHARE` of a GPU's free memory stays in host memory instead, and its batches
are gathered into pinned memory and copied one ahead. Which of the two it is changes nothing in the numbers.

The last batch of an epoch may be smaller, but is never one image (batch statistics of one image are undefined): a
single left-over joins the batch before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.training import augment, streams
from bench.training.resize import nearest_index, resize_matrix

RESIDENT_SHARE = 0.6


def batch_bounds(n: int, batch_size: int, merge_single: bool = True) -> list[tuple[int, int]]:
    """Split 0..n into batches; with ``merge_single`` a last batch of one image joins the one before."""
    starts = list(range(0, n, batch_size))
    if merge_single and len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))


def fits_on(device: torch.device, size_bytes: int) -> bool:
    """Say whether a split should live on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= RESIDENT_SHARE * free


class Pipeline:
    """One split, ready to be read in batches on a device.

    Args:
        images: uint8 (N, H, W, C); may be memory-mapped.
        labels: int64 (N,), or (N, L) for multi-label.
        recipe: a resolved recipe; its normalisation, channels and augmentation are used.
        resolution: side length in pixels that the model is fed.
        resize: the resize rule, see :mod:`bench.training.resize`.
        device: where batches are wanted.
        mirror_safe: whether a left-right flip keeps every label.
        channels_last: memory format of the batches.
        resident: keep the split on the device; decided by its size when None.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[Any],
        recipe: Mapping[str, Any],
        *,
        resolution: int,
        resize: str,
        device: torch.device,
        mirror_safe: bool = False,
        channels_last: bool = False,
        resident: bool | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images should be uint8 (N, H, W, C), not {images.dtype} {images.shape}, {len(labels)} labels"
            )
        _, height, width, self.channels = images.shape
        self.recipe, self.resolution, self.resize, self.device = recipe, resolution, resize, device
        self.mirror_safe, self.channels_last = mirror_safe, channels_last
        self.rows = torch.from_numpy(resize_matrix(height, resolution, resize)).float().to(device)
        self.columns = torch.from_numpy(resize_matrix(width, resolution, resize)).float().to(device)
        self.same_size = (height, width) == (resolution, resolution)
        self.nearest = tuple(torch.from_numpy(nearest_index(side, resolution)).to(device) for side in (height, width))
        self.resident = fits_on(device, images.nbytes) if resident is None else resident
        self.images = _as_tensor(images).to(device) if self.resident else _as_tensor(images)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_chans(self) -> int:
        """Channels the model is fed."""
        return 3 if self.channels == 1 and self.recipe["as_rgb"] else self.channels

    def train_batches(self, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images float32 (B, C, R, R), labels) of one epoch in its random order, augmented."""
        n = len(self)
        if n < 2:
            raise ValueError(f"training needs at least 2 images, but the split has {n}")
        order = torch.from_numpy(streams.order(n, seed, epoch))
        plan = augment.draw(n, self.resolution, self.recipe, mirror_safe=self.mirror_safe, seed=seed, epoch=epoch)
        plan = plan.to(self.device) if plan else None
        bounds = batch_bounds(n, self.recipe["batch_size"])
        on_device = order.to(self.device)
        for (start, stop), pixels in zip(bounds, self._gathered(order, bounds), strict=True):
            index = on_device[start:stop]
            yield self.prepare(pixels, plan.rows(index) if plan else None), self.labels[index]

    def eval_batches(self) -> Iterator[torch.Tensor]:
        """Yield images float32 (B, C, R, R) in their stored order, not augmented."""
        bounds = batch_bounds(len(self), self.recipe["eval_batch_size"], merge_single=False)
        for pixels in self._gathered(torch.arange(len(self)), bounds):
            yield self.prepare(pixels, None)

    def prepare(self, pixels: torch.Tensor, plan: augment.Augmentation | None) -> torch.Tensor:
        """Turn uint8 (B, H, W, C) on the device into the model's input, float32 (B, C, R, R)."""
        images = pixels.float().div_(255.0).sub_(self.recipe["mean"]).div_(self.recipe["std"])
        if plan is not None:
            top, left, height, width = plan.boxes.unbind(1)
            rows = augment.crop_weights(self.rows, top, height, None)
            columns = augment.crop_weights(self.columns, left, width, plan.flips)
            images = _resample(images, rows, columns)
        elif self.same_size:
            images = images.permute(0, 3, 1, 2)
        elif self.resize == "nearest":
            rows, columns = self.nearest
            images = images.permute(0, 3, 1, 2).index_select(3, columns).index_select(2, rows)
        else:
            size = len(images)
            images = _resample(images, self.rows.expand(size, -1, -1), self.columns.expand(size, -1, -1))
        if self.resize == "bicubic":  # as Pillow, which stops overshoot at black and white
            images = images.clamp(
                (0 - self.recipe["mean"]) / self.recipe["std"], (1 - self.recipe["mean"]) / self.recipe["std"]
            )
        if self.channels != self.in_chans:
            images = images.expand(-1, self.in_chans, -1, -1)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def _gathered(self, order: torch.Tensor, bounds: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yield the uint8 pixels of each batch on the device."""
        if self.resident:
            on_device = order.to(self.device)
            for start, stop in bounds:
                yield self.images[on_device[start:stop]]
            return
        with ThreadPoolExecutor(1, "gather") as ahead:
            pending = ahead.submit(self._gather, order[slice(*bounds[0])])
            for following in [*bounds[1:], None]:
                pixels = pending.result()
                if following:
                    pending = ahead.submit(self._gather, order[slice(*following)])
                yield pixels.to(self.device, non_blocking=True)

    def _gather(self, index: torch.Tensor) -> torch.Tensor:
        pixels = self.images[index]
        return pixels.pin_memory() if self.device.type == "cuda" else pixels


def _resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C), (B, R, H), (B, R, W) -> (B, C, R, R)."""
    batch, height, width, channels = images.shape
    resolution = rows.shape[1]
    tall = torch.bmm(rows, images.reshape(batch, height, width * channels)).view(batch, resolution, width, channels)
    tall = tall.permute(0, 3, 1, 2).reshape(batch, channels * resolution, width)
    return torch.bmm(tall, columns.transpose(1, 2)).view(batch, channels, resolution, resolution)


def _as_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    with warnings.catch_warnings():  # a read-only memory map is only ever read here
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(images))

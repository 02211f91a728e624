"""The data path: a split stays on the device as uint8; batches are normalised, resized and augmented there.

A split that takes more than :data:`RESIDENT_SHARE` of a GPU's free memory stays in host memory instead, and its batches
are gathered into pinned memory and copied one ahead. Which of the two it is changes nothing in the numbers.

The last batch of an epoch may be smaller, but is never one image (batch statistics of one image are undefined): a
single left-over joins the batch before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from bench.metrics.one_vs_rest import Array
from bench.record.types import Recipe
from bench.registry.normalisation import Normalisation
from bench.train import augment, rng
from bench.train.preprocess import Preprocess

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
        resize: the resize rule, see :mod:`bench.data.resize`.
        device: where batches are wanted.
        mirror_safe: whether a left-right flip keeps every label.
        channels_last: memory format of the batches.
        resident: keep the split on the device; decided by its size when None.
        normalisation: in place of the recipe's: what pretrained weights expect.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: Array,
        recipe: Recipe,
        *,
        resolution: int,
        resize: str,
        device: torch.device,
        mirror_safe: bool = False,
        channels_last: bool = False,
        resident: bool | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images should be uint8 (N, H, W, C), not {images.dtype} {images.shape}, {len(labels)} labels"
            )
        self.recipe, self.resolution, self.device, self.mirror_safe = recipe, resolution, device, mirror_safe
        shape = (images.shape[1], images.shape[2], images.shape[3])
        self.preprocess = Preprocess(shape, recipe, resolution, resize, device, channels_last, normalisation)
        self.resident = fits_on(device, images.nbytes) if resident is None else resident
        self.images = _as_tensor(images).to(device) if self.resident else _as_tensor(images)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_chans(self) -> int:
        """Channels the model is fed."""
        return self.preprocess.in_chans

    @property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of each channel, of pixels scaled to 0..1."""
        return self.preprocess.mean, self.preprocess.std

    def train_batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images float32 (B, C, R, R), labels) of an epoch, in its random order and augmented.

        ``first`` is the batch to begin with.
        """
        n = len(self)
        if n < 2:
            raise ValueError(f"training needs at least 2 images, but the split has {n}")
        order = torch.from_numpy(rng.order(n, seed, epoch))
        plan = augment.draw(n, self.resolution, self.recipe, mirror_safe=self.mirror_safe, seed=seed, epoch=epoch)
        plan = plan.to(self.device) if plan else None
        bounds = batch_bounds(n, self.recipe["batch_size"])[first:]
        on_device = order.to(self.device)
        for (start, stop), pixels in zip(bounds, self._gathered(order, bounds), strict=True):
            index = on_device[start:stop]
            yield self.preprocess(pixels, plan.rows(index) if plan else None), self.labels[index]

    def eval_batches(self) -> Iterator[torch.Tensor]:
        """Yield images float32 (B, C, R, R) in their stored order, not augmented."""
        bounds = batch_bounds(len(self), self.recipe["eval_batch_size"], merge_single=False)
        for pixels in self._gathered(torch.arange(len(self)), bounds):
            yield self.preprocess(pixels, None)

    def _gathered(self, order: torch.Tensor, bounds: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yield the uint8 pixels of each batch on the device."""
        if self.resident:
            on_device = order.to(self.device)
            for start, stop in bounds:
                index = on_device[start:stop]  # on a CPU, index_select copies image by image instead of byte by byte
                yield self.images.index_select(0, index) if self.device.type == "cpu" else self.images[index]
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


def _as_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    with warnings.catch_warnings():  # a read-only memory map is only ever read here
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(images))

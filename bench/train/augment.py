"""Augmentation of whole batches on the device: random crop resized back, and left-right flip.

Every image draws its own numbers from a counter-based stream, so what happens to image ``i`` in epoch ``e`` depends on
the seed and on nothing else. A flip is possible only when the dataset says that it keeps every label
(``DatasetInfo.mirror_safe``): there is no way to ask for one otherwise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bench.record.types import Recipe
from bench.train import rng

TRIES = 10  # as torchvision's RandomResizedCrop, which then falls back to the whole image at an allowed ratio
COLUMNS = 2 * TRIES + 3

IntArray = npt.NDArray[np.int64]


class Augmentation(NamedTuple):
    """What happens to each image of an epoch: ``boxes`` (N, 4) top, left, height, width in pixels; ``flips`` (N,)."""

    boxes: torch.Tensor
    flips: torch.Tensor

    def rows(self, index: torch.Tensor | slice) -> Augmentation:
        """Return the augmentation of the images ``index``."""
        return Augmentation(self.boxes[index], self.flips[index])

    def crops(self, resolution: int) -> bool:
        """Say whether any box is not the whole image of ``resolution`` pixels; asks the device."""
        return bool((self.boxes[:, 2:] != resolution).any())

    def to(self, device: torch.device) -> Augmentation:
        """Return it on a device."""
        return Augmentation(self.boxes.to(device), self.flips.to(device))


def flips_allowed(recipe: Recipe, mirror_safe: bool) -> bool:
    """Say whether this recipe flips images of a dataset."""
    return recipe["flip"] > 0 and mirror_safe


def draw(n: int, resolution: int, recipe: Recipe, *, mirror_safe: bool, seed: int, epoch: int) -> Augmentation | None:
    """Draw the augmentation of an epoch's ``n`` images; None if the recipe has none for this dataset."""
    flip = recipe["flip"] if flips_allowed(recipe, mirror_safe) else 0.0
    crops = [*recipe["crop_scale"], *recipe["crop_ratio"]] != [1.0] * 4
    if not crops and not flip:
        return None
    numbers = rng.uniforms(seed, rng.AUGMENT, epoch, n, COLUMNS)
    boxes = np.tile(np.array([0, 0, resolution, resolution]), (n, 1))
    if crops:
        boxes = random_boxes(numbers[:, :-1], resolution, resolution, recipe["crop_scale"], recipe["crop_ratio"])
    return Augmentation(torch.from_numpy(boxes), torch.from_numpy(numbers[:, -1] < flip))


def random_boxes(
    numbers: npt.NDArray[np.float64], height: int, width: int, scale: list[float], ratio: list[float]
) -> IntArray:
    """Turn uniform numbers (N, 22) into boxes (N, 4) distributed as torchvision's ``RandomResizedCrop``."""
    area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[:, 0 : 2 * TRIES : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * numbers[:, 1 : 2 * TRIES : 2])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    whole_w, whole_h = _largest_box(height, width, ratio)
    found = fits.any(axis=1)
    w = np.where(found, np.take_along_axis(w, first, 1)[:, 0], whole_w)
    h = np.where(found, np.take_along_axis(h, first, 1)[:, 0], whole_h)
    top = np.where(found, np.floor(numbers[:, -2] * (height - h + 1)), (height - h) // 2)
    left = np.where(found, np.floor(numbers[:, -1] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def _largest_box(height: int, width: int, ratio: list[float]) -> tuple[int, int]:
    aspect = width / height
    if aspect < ratio[0]:
        return width, round(width / ratio[0])
    if aspect > ratio[1]:
        return round(height * ratio[1]), height
    return width, height


def crop_weights(
    base: torch.Tensor, start: torch.Tensor, length: torch.Tensor, mirrored: torch.Tensor | None
) -> torch.Tensor:
    """Compose a resize rule with each image's crop, resized back bilinearly, along one axis.

    A crop is never larger than the output, so the resampling only enlarges and needs no antialiasing. Coordinates
    stop at the crop's own border, as when the crop is cut out first.

    Args:
        base: (R, size) weights of the resize rule.
        start: (B,) first pixel of the crop, of R.
        length: (B,) its length in pixels, at most R.
        mirrored: (B,) which images to reverse along this axis.

    Returns:
        (B, R, size) weights.
    """
    below, above, share = crop_positions(base.shape[0], start, length, mirrored)
    return torch.lerp(base[below], base[above], share[:, :, None])


def crop_positions(
    resolution: int, start: torch.Tensor, length: torch.Tensor, mirrored: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Say between which two pixels of the uncropped image each output pixel lies, along one axis.

    Arguments as of :func:`crop_weights`.

    Returns:
        The pixel below and the pixel above, int64 (B, R), and the share of the one above, float32 (B, R).
    """
    target = torch.arange(resolution, device=start.device)[None, :]
    if mirrored is not None:
        target = torch.where(mirrored[:, None], resolution - 1 - target, target)
    span = length[:, None].float()
    position = ((target + 0.5) * (span / resolution) - 0.5).clamp(min=0)
    position = torch.minimum(position, span - 1)
    lower = position.floor()
    below = start[:, None] + lower.long()
    above = torch.minimum(below + 1, (start + length - 1)[:, None])
    return below, above, position - lower

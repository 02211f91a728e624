"""From uint8 pixels to a model's input: normalise, resize by the Cell's rule, crop and flip, lay out.

Two ways to the same numbers (but for rounding in the last bits). On a GPU whole batches go through matrices: a crop
composed with the resize rule is one (R, H) and one (R, W) matrix an image. On a CPU, where memory is slow and matrices
are mostly zeros, a few images at a time are taken from pixels to input while they lie in the cache, written where the
batch will lie, in the layout the model takes: small images by the same matrices, larger ones (whose matrices would cost
more than the network) by cutting the crop out and interpolating it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from bench.training import augment
from bench.training.normalisation import Normalisation
from bench.training.resize import nearest_index, resize_matrix

CHUNK_PIXELS = 16 * 224 * 224  # of the output, taken through at once on a CPU
LARGE = 64  # from this side on, an image's crop is cut out and interpolated on a CPU
PICKING = ("native", "nearest")  # rules that only pick pixels


class Preparation:
    """The way of one split's images (H, W, C) to the input of a model.

    Attributes:
        in_chans: channels the model is fed.
        mean, std: per channel of the input.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        recipe: Mapping[str, Any],
        resolution: int,
        resize: str,
        device: torch.device,
        channels_last: bool = False,
        normalisation: Normalisation | None = None,
    ) -> None:
        height, width, self.channels = shape
        self.resolution, self.resize, self.device = resolution, resize, device
        self.in_chans = 3 if self.channels == 1 and recipe["as_rgb"] else self.channels
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.rows = torch.from_numpy(resize_matrix(height, resolution, resize)).float().to(device)
        self.columns = torch.from_numpy(resize_matrix(width, resolution, resize)).float().to(device)
        self.same_size = (height, width) == (resolution, resolution)
        picked = (nearest_index(side, resolution) for side in (height, width))
        self.row_index, self.column_index = (torch.from_numpy(index).to(device) for index in picked)
        self.interpolated = max(height, width) >= LARGE and (self.same_size or resize in PICKING)
        self._set_normalisation(recipe, normalisation)

    def _set_normalisation(self, recipe: Mapping[str, Any], given: Normalisation | None) -> None:
        mean, std = given or ((recipe["mean"],) * self.in_chans, (recipe["std"],) * self.in_chans)
        if len(mean) != self.in_chans:  # weights of colour images on gray ones: of the mean image
            mean, std = (sum(mean) / len(mean),) * self.in_chans, (sum(std) / len(std),) * self.in_chans
        self.mean, self.std = mean, std
        self.uniform = len(set(mean)) == len(set(std)) == 1
        # Plain numbers where the channels are alike: the arithmetic of torchvision's Normalize, bit for bit.
        self._mean: Any = mean[0] if self.uniform else torch.tensor(mean, device=self.device)
        self._std: Any = std[0] if self.uniform else torch.tensor(std, device=self.device)
        self._low, self._high = (0 - self._mean) / self._std, (1 - self._mean) / self._std

    def __call__(self, pixels: torch.Tensor, plan: augment.Augmentation | None) -> torch.Tensor:
        """Turn uint8 (B, H, W, C) on the device into float32 (B, in_chans, R, R)."""
        if not self.uniform and self.channels != self.in_chans:
            pixels = pixels.expand(-1, -1, -1, self.in_chans)
        if self.device.type != "cpu":
            return self._whole(pixels, plan)
        side = self.resolution
        out = torch.empty(len(pixels), self.in_chans, side, side, memory_format=self.layout)
        step = max(1, CHUNK_PIXELS // side**2)
        for start in range(0, len(pixels), step):
            part = slice(start, start + step)
            self._fill(out[part], pixels[part], plan.rows(part) if plan else None)
        return out

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().div_(255.0).sub_(self._mean).div_(self._std)

    def _whole(self, pixels: torch.Tensor, plan: augment.Augmentation | None) -> torch.Tensor:
        """Prepare a batch at once."""
        images = self._normalised(pixels)
        if plan is not None:
            images = _resample(images, *self._weights(plan))
        elif self.same_size:
            images = images.permute(0, 3, 1, 2)
        elif self.resize == "nearest":
            images = images.permute(0, 3, 1, 2).index_select(3, self.column_index).index_select(2, self.row_index)
        else:
            size = len(images)
            images = _resample(images, self.rows.expand(size, -1, -1), self.columns.expand(size, -1, -1))
        if self.resize == "bicubic":  # as Pillow, which stops overshoot at black and white
            images = self._stopped(images)
        if images.shape[1] != self.in_chans:
            images = images.expand(-1, self.in_chans, -1, -1)
        return images.contiguous(memory_format=self.layout)

    def _weights(self, plan: augment.Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
        top, left, height, width = plan.boxes.unbind(1)
        rows = augment.crop_weights(self.rows, top, height, None)
        return rows, augment.crop_weights(self.columns, left, width, plan.flips)

    def _stopped(self, images: torch.Tensor) -> torch.Tensor:
        if self.uniform:
            return images.clamp(self._low, self._high)
        return images.clamp(self._low[:, None, None], self._high[:, None, None])

    # --- on a CPU ----------------------------------------------------------------------------------------------

    def _fill(self, out: torch.Tensor, pixels: torch.Tensor, plan: augment.Augmentation | None) -> None:
        """Prepare a few images in place, ``out`` (b, in_chans, R, R)."""
        if pixels.shape[-1] != out.shape[1]:  # gray as RGB: once, then copied
            gray = torch.empty(len(out), 1, *out.shape[2:])
            self._fill(gray, pixels, plan)
            out.copy_(gray.expand_as(out))
            return
        if plan is not None and not plan.crops(self.resolution):
            self._fill(out, pixels, None)
            if len(mirrored := plan.flips.nonzero()[:, 0]):
                out[mirrored] = out[mirrored].flip(3)
            return
        if plan is not None and self.interpolated:
            self._interpolate(out, pixels, plan)
            return
        images = self._normalised(pixels)
        if plan is not None:
            _resample_into(out, images, *self._weights(plan))
        elif self.same_size:
            out.copy_(images.permute(0, 3, 1, 2))
        elif self.resize == "nearest":
            self._pick(out, images)
        else:
            size = len(images)
            _resample_into(out, images, self.rows.expand(size, -1, -1), self.columns.expand(size, -1, -1))
        if self.resize == "bicubic":
            out.copy_(self._stopped(out))

    def _pick(self, out: torch.Tensor, images: torch.Tensor) -> None:
        """Nearest neighbours: columns while the image is small, then whole rows."""
        if _interleaved(out):
            picked = images.index_select(2, self.column_index).index_select(1, self.row_index)
            out.copy_(picked.permute(0, 3, 1, 2))
        else:
            planes = images.permute(0, 3, 1, 2).contiguous()
            out.copy_(planes.index_select(3, self.column_index).index_select(2, self.row_index))

    def _interpolate(self, out: torch.Tensor, pixels: torch.Tensor, plan: augment.Augmentation) -> None:
        """Cut each crop out of the resized image and bring it back to R x R; a mirrored one is turned while small."""
        size = (self.resolution, self.resolution)
        for target, image, (top, left, height, width), mirrored in zip(
            out, pixels, plan.boxes.tolist(), plan.flips.tolist(), strict=True
        ):
            rows, columns = slice(top, top + height), slice(left, left + width)
            if self.same_size:
                crop = image[rows, columns]
            else:
                crop = image.index_select(0, self.row_index[rows]).index_select(1, self.column_index[columns])
            planes = self._normalised(crop).permute(2, 0, 1).contiguous()
            planes = planes.flip(2) if mirrored else planes
            target.copy_(F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0])


def _interleaved(out: torch.Tensor) -> bool:
    """Whether (B, C, H, W) is laid out channels_last, and not also contiguous."""
    return not out.is_contiguous() and out.is_contiguous(memory_format=torch.channels_last)


def _resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C), (B, R, H), (B, R, W) -> (B, C, R, R)."""
    batch, height, width, channels = images.shape
    resolution = rows.shape[1]
    tall = torch.bmm(rows, images.reshape(batch, height, width * channels)).view(batch, resolution, width, channels)
    tall = tall.permute(0, 3, 1, 2).reshape(batch, channels * resolution, width)
    return torch.bmm(tall, columns.transpose(1, 2)).view(batch, channels, resolution, resolution)


def _resample_into(out: torch.Tensor, images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
    """As :func:`_resample`, the last product written straight into ``out`` (B, C, R, R) of either layout."""
    batch, height, width, channels = images.shape
    side = rows.shape[1]
    if _interleaved(out):
        wide = torch.bmm(columns, images.permute(0, 2, 1, 3).reshape(batch, width, height * channels))
        wide = wide.view(batch, side, height, channels).permute(0, 2, 1, 3).reshape(batch, height, side * channels)
        torch.bmm(rows, wide, out=out.permute(0, 2, 3, 1).view(batch, side, side * channels))
    else:
        tall = torch.bmm(rows, images.reshape(batch, height, width * channels)).view(batch, side, width, channels)
        tall = tall.permute(0, 3, 1, 2).reshape(batch, channels * side, width)
        torch.bmm(tall, columns.transpose(1, 2), out=out.view(batch, channels * side, side))

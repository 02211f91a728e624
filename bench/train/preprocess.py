"""From uint8 pixels to a model's input: normalise, resize by the Cell's rule, crop and flip, lay out.

Two ways to the same numbers (but for rounding in the last bits). On a GPU whole batches go through matrices: a crop
composed with the resize rule is one (R, H) and one (R, W) matrix an image. On a CPU such matrices, mostly zeros, cost
more than some networks, and memory is slow: a few images at a time go from pixels to input while they lie in the cache,
and into their place in the batch, in the layout the model takes. Where the rule only picks pixels, each output pixel
lies between two of the image's along either axis; whole columns, then whole rows are taken and mixed.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.data.resize import nearest_index, resize_matrix
from bench.record.types import Recipe
from bench.registry.normalisation import Normalisation
from bench.train import augment

CHUNK_PIXELS = 8 * 224 * 224  # of the output, taken through at once on a CPU
WORTH_CUTTING = 64 * 64  # pixels from which an image is cut before anything else is done to it
Positions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # line below, line above, share of the one above: (B, R)
PICKING = ("native", "nearest")  # rules that only pick pixels


class Preprocess:
    """The way of one split's images (H, W, C) to the input of a model.

    Attributes:
        in_chans: channels the model is fed.
        mean, std: per channel of the input.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        recipe: Recipe,
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
        self.picks = self.same_size or resize in PICKING
        self._set_normalisation(recipe, normalisation)

    def _set_normalisation(self, recipe: Recipe, given: Normalisation | None) -> None:
        mean, std = given or ((recipe["mean"],) * self.in_chans, (recipe["std"],) * self.in_chans)
        if len(mean) != self.in_chans:  # weights of colour images on gray ones: of the mean image
            mean, std = (sum(mean) / len(mean),) * self.in_chans, (sum(std) / len(std),) * self.in_chans
        self.mean, self.std = mean, std
        self.uniform = len(set(mean)) == len(set(std)) == 1
        # Plain numbers where the channels are alike: the arithmetic of torchvision's Normalize, bit for bit.
        self._mean: Any = mean[0] if self.uniform else torch.tensor(mean, device=self.device)
        self._std: Any = std[0] if self.uniform else torch.tensor(std, device=self.device)

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
        low, high = ((bound - self._mean) / self._std for bound in (0, 1))
        if self.uniform:
            return images.clamp(low, high)
        return images.clamp(low[:, None, None], high[:, None, None])

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
        if plan is not None and self.picks:
            self._mix(out, pixels, plan)
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

    def _mix(self, out: torch.Tensor, pixels: torch.Tensor, plan: augment.Augmentation) -> None:
        """Crop and bring back to R x R: mix the two columns, then the two rows, next to each output pixel."""
        top, left, tall, wide = plan.boxes.unbind(1)
        rows = augment.crop_positions(self.resolution, top, tall, None)
        columns = augment.crop_positions(self.resolution, left, wide, plan.flips)
        rows = (self.row_index[rows[0]], self.row_index[rows[1]], rows[2])
        columns = (self.column_index[columns[0]], self.column_index[columns[1]], columns[2])
        if pixels.shape[1] * pixels.shape[2] < WORTH_CUTTING:
            self._mix_lines(out, pixels, rows, columns)
            return
        # Of a large image only the crop is worth turning into floats, one image at a time.
        spans = [[part.amin(1).tolist(), (other.amax(1) + 1).tolist()] for part, other, _ in (rows, columns)]
        for i, (y, bottom, x, right) in enumerate(zip(*spans[0], *spans[1], strict=True)):
            one = slice(i, i + 1)
            here, there = (
                (low[one] - at, high[one] - at, share[one]) for (low, high, share), at in ((rows, y), (columns, x))
            )
            self._mix_lines(out[one], pixels[one, y:bottom, x:right], here, there)

    def _mix_lines(self, out: torch.Tensor, pixels: torch.Tensor, rows: Positions, columns: Positions) -> None:
        batch, height, width, channels = pixels.shape
        side = self.resolution
        turned = torch.empty(batch, width, height, channels).copy_(pixels.permute(0, 2, 1, 3))
        turned.div_(255.0).sub_(self._mean).div_(self._std)
        mixed = _mixed(turned, columns)  # (B, R, H, C)
        if _interleaved(out):
            _mixed(mixed.permute(0, 2, 1, 3).contiguous(), rows, out.permute(0, 2, 3, 1))
            return
        planes = mixed.permute(0, 3, 2, 1).contiguous().view(batch * channels, height, side)
        if channels > 1:
            rows = tuple(part.repeat_interleave(channels, 0) for part in rows)  # type: ignore[assignment]
        _mixed(planes, rows, out.view(batch * channels, side, side))


def _mixed(lines: torch.Tensor, positions: Positions, out: torch.Tensor | None = None) -> torch.Tensor:
    """(B, lines, ...) -> (B, R, ...): each output line lies between two lines of its image."""
    batch, size = lines.shape[:2]
    below, above, share = positions
    if batch > 1:
        first = (torch.arange(batch) * size)[:, None]
        below, above = below + first, above + first
    flat = lines.view(batch * size, -1)
    lower, upper = flat.index_select(0, below.reshape(-1)), flat.index_select(0, above.reshape(-1))
    weight = share.reshape(-1, 1)
    if out is None:
        return lower.lerp_(upper, weight).view(batch, -1, *lines.shape[2:])
    return torch.lerp(lower, upper, weight, out=out.view(lower.shape))


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

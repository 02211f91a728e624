"""The effective receptive field: how much each pixel moves the central feature of a stage.

Luo et al., "Understanding the effective receptive field in deep convolutional neural networks" (arXiv:1701.04128): the
gradient of the central cell with respect to the input, here of a random combination (signs) of its channels, because
their plain sum is constant behind a layer norm; its absolute value, summed over the input's channels, averaged over
images and combinations. The network is in evaluation mode: batch statistics would let every image see every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.explain.stages import StageOutput, outputs_of
from bench.registry import RegistryError

Map = npt.NDArray[np.float64]

PROBES = 4  # combinations of channels a stage
CHUNK = 8  # images whose graph is held at once


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a map of mass reaches, in pixels of the input.

    Attributes:
        radius_50_px, radius_95_px: of the smallest disc around the centre of mass that holds that share of it.
        sd_px: standard deviation along an axis (root of the mean of both variances).
        area_50, area_95: the smallest share of the image's pixels that holds that share of the mass; 0.5 and 0.95 are
            an even map.
        reach: share of the pixels that have any influence.
        rows_px, columns_px: extent of those pixels.
        centre: (row, column) of the centre of mass.
    """

    radius_50_px: float
    radius_95_px: float
    sd_px: float
    area_50: float
    area_95: float
    reach: float
    rows_px: int
    columns_px: int
    centre: tuple[float, float]


def receptive_fields(model: nn.Module, images: Tensor, stages: Sequence[StageOutput], seed: int = 0) -> list[Map]:
    """Map, for each stage, the influence of every pixel on its central cell.

    Args:
        model: the network; put into evaluation mode.
        images: (b,c,h,w) over which is averaged.
        stages: of :func:`bench.explain.stages.find_stages`.
        seed: of the combinations of channels.

    Returns:
        One float64 (h,w) a stage, of sum 1; all zeros where no pixel has any influence.

    Raises:
        RegistryError: a gradient is not finite.
    """
    model.eval()
    sums = [torch.zeros(images.shape[2:], dtype=torch.float64) for _ in stages]
    draws = [torch.Generator().manual_seed(seed) for _ in stages]
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].detach().clone().requires_grad_()
        with outputs_of(model, {stage.name for stage in stages}) as outputs, torch.enable_grad():
            model(part)
        for stage, total, draw in zip(stages, sums, draws, strict=True):
            features = stage.as_grid(outputs[stage.name])
            centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
            # Drawn image by image, so that the result does not depend on how many are taken at once.
            signs = torch.stack([_signs(PROBES, centre.shape[1], draw) for _ in range(len(part))], dim=1)
            for row in signs.to(centre):
                (gradient,) = torch.autograd.grad((centre * row).sum(), part, retain_graph=True)
                total += gradient.detach().abs().sum(1).double().sum(0).cpu()
        del outputs, features, centre, gradient
    return [_normalised(total.numpy(), stage) for total, stage in zip(sums, stages, strict=True)]


def _signs(count: int, channels: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, channels), generator=draw).float() * 2 - 1


def _normalised(total: Map, stage: StageOutput) -> Map:
    mass = float(total.sum())
    if not np.isfinite(mass):
        raise RegistryError(f"gradients of {stage.name} are not finite: the weights, or the images, are broken")
    return total / mass if mass > 0 else total


def spread(mass: Map) -> Spread | None:
    """Measure a map (h,w) of non-negative mass; None where there is none."""
    total = float(mass.sum())
    if total <= 0:
        return None
    share = mass / total
    rows, columns = (np.arange(side, dtype=float) for side in share.shape)
    centre = float(share.sum(1) @ rows), float(share.sum(0) @ columns)
    variance = float(share.sum(1) @ (rows - centre[0]) ** 2 + share.sum(0) @ (columns - centre[1]) ** 2) / 2
    distance = np.hypot(rows[:, None] - centre[0], columns[None, :] - centre[1])
    order = np.argsort(distance, axis=None, kind="stable")
    within = np.cumsum(share.ravel()[order])
    largest = np.cumsum(np.sort(share, axis=None)[::-1])
    radii = [float(distance.ravel()[order][_first(within, part)]) for part in (0.5, 0.95)]
    areas = [(_first(largest, part) + 1) / share.size for part in (0.5, 0.95)]
    touched = np.asarray(share > 0)
    return Spread(
        radius_50_px=radii[0],
        radius_95_px=radii[1],
        sd_px=float(np.sqrt(max(variance, 0.0))),
        area_50=areas[0],
        area_95=areas[1],
        reach=float(touched.mean()),
        rows_px=_extent(np.asarray(touched.any(1))),
        columns_px=_extent(np.asarray(touched.any(0))),
        centre=centre,
    )


def _first(cumulative: Map, share: float) -> int:
    """The first place at which a running sum holds ``share``, but for rounding."""
    return min(int(np.searchsorted(cumulative, share * (1 - 1e-9))), len(cumulative) - 1)


def _extent(touched: npt.NDArray[np.bool_]) -> int:
    places = np.flatnonzero(touched)
    return int(places[-1] - places[0]) + 1

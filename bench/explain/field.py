"""The effective receptive field: how much each pixel moves the central feature of a stage.

Luo et al., "Understanding the effective receptive field in deep convolutional neural networks" (arXiv:1701.04128): the
gradient of the central cell with respect to the input, here of a random combination (signs) of its channels, because
their plain sum is constant behind a layer norm; its absolute value, summed over the input's channels, averaged over
images and combinations. The network is in evaluation mode: batch statistics would let every image see every other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.explain.stages import StageOutput, outputs_of
from bench.registry import RegistryError

Map = npt.NDArray[np.float64]

PROBES = 4  # combinations of channels a stage
CHUNK = 8  # images whose graph is held at once


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
            shape = PROBES, centre.shape[1]
            signs = torch.stack([torch.randint(0, 2, shape, generator=draw) for _ in part], dim=1).float() * 2 - 1
            for row in signs.to(centre):
                (gradient,) = torch.autograd.grad((centre * row).sum(), part, retain_graph=True)
                total += gradient.detach().abs().sum(1).double().sum(0).cpu()
        del outputs, features, centre, gradient
    return [_normalised(total.numpy(), stage) for total, stage in zip(sums, stages, strict=True)]


def _normalised(total: Map, stage: StageOutput) -> Map:
    mass = float(total.sum())
    if not np.isfinite(mass):
        raise RegistryError(f"gradients of {stage.name} are not finite: the weights, or the images, are broken")
    return total / mass if mass > 0 else total


def radii_px(mass: Map) -> tuple[float, float] | None:
    """Radii of the discs around the centre of mass of a map (h,w) that hold 50 and 95 % of it; None where it is 0."""
    total = float(mass.sum())
    if total <= 0:
        return None
    rows, columns = np.indices(mass.shape)
    away = np.hypot(rows - (mass * rows).sum() / total, columns - (mass * columns).sum() / total).ravel()
    order = np.argsort(away, kind="stable")
    within = np.cumsum(mass.ravel()[order]) / total
    half, most = (int((within < share - 1e-9).sum()) for share in (0.5, 0.95))
    return float(away[order[half]]), float(away[order[most]])

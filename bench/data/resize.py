"""Resize rules as matrices: every rule is linear in the pixels and separable, ``output = Y @ image @ X.T``.

So one code path serves all rules and random crops on every device, deterministically, and equals Pillow (whose
fixed-point rounding to whole gray levels it leaves out). The rules: ``native`` (no resizing), ``nearest`` (MedMNIST's
official 28 -> 224), ``bilinear`` and ``bicubic`` (with antialiasing), ``pad`` (zeros around the *normalised* image).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

RULES = ("native", "nearest", "bilinear", "bicubic", "pad")

Floats = npt.NDArray[np.float64]


def nearest_index(size: int, resolution: int) -> npt.NDArray[np.int64]:
    """Return the source pixel of each target pixel, (resolution,), as Pillow's ``Image.NEAREST`` picks it.

    Pillow adds up the step in float64, so the sum is repeated here rather than multiplied: the two differ by one
    pixel at some sizes.
    """
    step = size / resolution
    steps = np.full(resolution, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size - 1)


def resize_matrix(size: int, resolution: int, rule: str) -> Floats:
    """Return the (resolution, size) weights of a rule along one axis.

    Raises:
        ValueError: an unknown rule, ``native`` with another size, or ``pad`` of an image that is larger.
    """
    if rule not in RULES:
        raise ValueError(f"unknown resize rule {rule!r}; rules: {', '.join(RULES)}")
    if rule == "native" and size != resolution:
        raise ValueError(
            f"resize rule 'native' feeds images as they are, but they have {size} pixels, not {resolution}"
        )
    if rule == "pad" and size > resolution:
        raise ValueError(f"resize rule 'pad' cannot shrink {size} pixels to {resolution}")
    if size == resolution:
        return np.eye(size)
    if rule == "nearest":
        return np.eye(size)[nearest_index(size, resolution)]
    if rule == "pad":
        return np.eye(resolution, size, -((resolution - size) // 2))
    return (
        _filtered(size, resolution, _triangle, 1.0) if rule == "bilinear" else _filtered(size, resolution, _cubic, 2.0)
    )


def _triangle(distance: Floats) -> Floats:
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _cubic(distance: Floats) -> Floats:
    # Keys (1981), a = -0.5, as Pillow uses.
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _filtered(size: int, resolution: int, kernel: object, support: float) -> Floats:
    """Antialiased resampling: the kernel is widened when shrinking, cut at the border and normalised to 1."""
    ratio = size / resolution
    widened = max(ratio, 1.0)
    reach = support * widened
    weights = np.zeros((resolution, size))
    for target in range(resolution):
        center = (target + 0.5) * ratio
        first = max(0, math.floor(center - reach + 0.5))
        last = min(size, math.floor(center + reach + 0.5))
        taps = kernel((np.arange(first, last) - center + 0.5) / widened)  # type: ignore[operator]
        weights[target, first:last] = taps / taps.sum()
    return weights

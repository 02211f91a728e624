"""What a backend is asked to compute: one scan over an image, or over sequences."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ImageScan(NamedTuple):
    """Scans of an image in k directions, added; see `bench.ops.cross_selective_scan`.

    x (b,h,w,d) and proj (b,h,w,k,r+2n) are contiguous; dt_weight (k,d,r), dt_bias (k,d), A (k,d,n), D (k,d).
    """

    x: Tensor
    proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    directions: list[int]


class SequenceScan(NamedTuple):
    """A scan of sequences; see `bench.ops.selective_scan`. u, delta, B and C are contiguous.

    u, delta (b,d,l); A (d,n); B, C (b,g,n,l); D, delta_bias (d,) or None.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

"""Selective scans for image models: several backends, one meaning.

`selective_scan` runs over sequences; `cross_selective_scan` is the whole four-direction core of MedMamba and VMamba on
the block's own layout (channels last). Both are differentiable once, run under autocast, torch.compile and
torch.export, and are counted by fvcore (`fvcore_handles`) and torch's FlopCounterMode. `selective_scan_fn` is the first
under mamba_ssm's signature; `install_as_mamba_ssm` lets code written for that package find it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import library as _library
from bench.ops.dispatch import backend_report, chosen_backend, overridden, resolve, use_backend
from bench.ops.flops import fvcore_handles
from bench.ops.fused import ConvAct, NormGate, add_shuffled
from bench.ops.mamba_interface import install_as_mamba_ssm, selective_scan_fn
from bench.ops.sequence import check, needs_carry, parameter, selective_scan

__all__ = [
    "ConvAct",
    "NormGate",
    "add_shuffled",
    "backend_report",
    "chosen_backend",
    "cross_selective_scan",
    "fvcore_handles",
    "install_as_mamba_ssm",
    "selective_scan",
    "selective_scan_fn",
    "use_backend",
]

ALL_DIRECTIONS = (0, 1, 2, 3)


def cross_selective_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    directions: Sequence[int] = ALL_DIRECTIONS,
    backend: str | None = None,
) -> Tensor:
    """Scan an image along several directions and add the results (the SS2D core of VMamba, arXiv 2401.10166, fig. 3).

    Each direction k projects every pixel to r step-size features and n weights B and C each, expands the features to
    softplus step sizes of all channels, scans, and adds its output at the pixel it came from. Nothing is flipped,
    transposed, repeated or merged in memory, except by the PyTorch backend.

    Args:
        x: Features, (b,h,w,d), channels last.
        x_proj_weight: (k,r+2n,d): rows for the step-size features, then B, then C.
        dt_proj_weight: Step-size projections, (k,d,r).
        dt_bias: Step-size biases, (k,d).
        A: Continuous-time decays, (k,d,n), negative.
        D: Skip weights, (k,d).
        directions: One id per k: 0 row by row, 1 column by column, 2 and 3 the same two backwards.
        backend: Run this backend instead of the preferred one.

    Returns:
        (b,h,w,d), in the type of x, or in autocast's type inside autocast.

    Raises:
        ValueError: If shapes do not fit together, a direction is unknown or the backend cannot run here.
    """
    check(x.dim() == 4, f"cross_selective_scan: x must be (b,h,w,d), not {tuple(x.shape)}")
    b, h, w, d = x.shape
    k, n, r = len(directions), A.shape[-1], dt_proj_weight.shape[-1]
    check(all(i in ALL_DIRECTIONS for i in directions) and k > 0,
           f"cross_selective_scan: directions are among 0, 1, 2, 3, not {tuple(directions)}")  # fmt: skip
    expected = {"x_proj_weight": (x_proj_weight, (k, r + 2 * n, d)), "dt_proj_weight": (dt_proj_weight, (k, d, r)),
                "dt_bias": (dt_bias, (k, d)), "A": (A, (k, d, n)), "D": (D, (k, d))}  # fmt: skip
    for name, (t, shape) in expected.items():
        check(t.shape == shape, f"cross_selective_scan: {name} must be {shape}, not {tuple(t.shape)}")
    # One product for all directions: they read the same pixels. Its type is autocast's inside autocast.
    proj = F.linear(x, x_proj_weight.flatten(0, 1)).view(b, h, w, k, r + 2 * n)
    x = x.to(proj.dtype)
    name = resolve(x.device.type, x.dtype == torch.float64, backend or overridden())
    dt_proj_weight, dt_bias = parameter(dt_proj_weight, x), parameter(dt_bias, x)
    A, D = parameter(A, x), parameter(D, x)
    save = needs_carry(x, proj, dt_proj_weight, dt_bias, A, D)
    y: Tensor = _library.cross_scan(x, proj, dt_proj_weight, dt_bias, A, D, list(directions), name, save)[0]
    return y

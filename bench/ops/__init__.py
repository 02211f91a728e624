"""Selective scans for image models: two functions, several backends, one meaning.

`selective_scan` runs over sequences; `cross_selective_scan` is the whole four-direction core of MedMamba and VMamba on
the block's own layout (channels last). Both are differentiable once, run under autocast, torch.compile and
torch.export, and are counted by fvcore (`fvcore_handles`) and torch's FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import library as _library
from bench.ops.dispatch import backend_report, chosen_backend, overridden, resolve, use_backend
from bench.ops.flops import fvcore_handles

__all__ = [
    "backend_report",
    "chosen_backend",
    "cross_selective_scan",
    "fvcore_handles",
    "selective_scan",
    "use_backend",
]

ALL_DIRECTIONS = (0, 1, 2, 3)


def _parameter(t: Tensor, like: Tensor) -> Tensor:
    """Parameters enter in float32 (float64 beside float64 inputs), also in a model cast to half precision."""
    return t.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def _needs_carry(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow. An exported program recomputes its carry instead, should it be trained."""
    if torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Selective scan over sequences (Mamba, arXiv 2312.00752, section 3.2).

    With s_t = delta_t + delta_bias, or its softplus (which returns arguments above 20 unchanged):
    h_t = exp(s_t A) h_{t-1} + s_t B_t u_t from h_0 = 0, and out_t = <C_t, h_t> + D u_t.

    Args:
        u: Inputs, (b,d,l); float32, bfloat16, float16 or float64.
        delta: Step sizes, (b,d,l).
        A: Continuous-time decay, (d,n), negative (not its logarithm).
        B: Input weights, (b,g,n,l); g divides d and channel c reads group c // (d/g).
        C: Output weights, (b,g,n,l).
        D: Skip weights, (d,).
        delta_bias: Added to every step size, (d,).
        delta_softplus: Pass the step sizes through softplus.
        backend: Run this backend ("reference", "cpu", "triton", "mamba-ssm") instead of the preferred one.

    Returns:
        (b,d,l) in the type of u. States and sums are float32 (float64 for float64).

    Raises:
        ValueError: If shapes do not fit together or the backend cannot run here.
    """
    _check(u.dim() == 3, f"selective_scan: u must be (b,d,l), not {tuple(u.shape)}")
    _check(u.shape == delta.shape, f"selective_scan: delta {tuple(delta.shape)} must have u's shape {tuple(u.shape)}")
    _check(B.dim() == 4 and B.shape == C.shape, f"selective_scan: B {tuple(B.shape)} and C {tuple(C.shape)} must both "
           "be (b,g,n,l)")  # fmt: skip
    d = u.shape[1]
    _check(A.dim() == 2 and A.shape[0] == d and A.shape[1] == B.shape[2],
           f"selective_scan: A must be (d,n) = ({d},{B.shape[2]}), not {tuple(A.shape)}")  # fmt: skip
    _check(B.shape[0] == u.shape[0] and B.shape[3] == u.shape[2],
           f"selective_scan: B {tuple(B.shape)} must have the batch and length of u {tuple(u.shape)}")  # fmt: skip
    _check(d % B.shape[1] == 0, f"selective_scan: {B.shape[1]} groups do not divide {d} channels")
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        _check(t is None or t.shape == (d,), f"selective_scan: {name} must be ({d},)")
    name = resolve(u.device.type, u.dtype == torch.float64, backend or overridden())
    delta, B, C = delta.to(u.dtype), B.to(u.dtype), C.to(u.dtype)
    A = _parameter(A, u)
    D = None if D is None else _parameter(D, u)
    delta_bias = None if delta_bias is None else _parameter(delta_bias, u)
    save = _needs_carry(u, delta, A, B, C, D, delta_bias)
    out: Tensor = _library.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, name, save)[0]
    return out


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
    _check(x.dim() == 4, f"cross_selective_scan: x must be (b,h,w,d), not {tuple(x.shape)}")
    b, h, w, d = x.shape
    k, n, r = len(directions), A.shape[-1], dt_proj_weight.shape[-1]
    _check(all(i in ALL_DIRECTIONS for i in directions) and k > 0,
           f"cross_selective_scan: directions are among 0, 1, 2, 3, not {tuple(directions)}")  # fmt: skip
    expected = {"x_proj_weight": (x_proj_weight, (k, r + 2 * n, d)), "dt_proj_weight": (dt_proj_weight, (k, d, r)),
                "dt_bias": (dt_bias, (k, d)), "A": (A, (k, d, n)), "D": (D, (k, d))}  # fmt: skip
    for name, (t, shape) in expected.items():
        _check(t.shape == shape, f"cross_selective_scan: {name} must be {shape}, not {tuple(t.shape)}")
    # One product for all directions: they read the same pixels. Its type is autocast's inside autocast.
    proj = F.linear(x, x_proj_weight.flatten(0, 1)).view(b, h, w, k, r + 2 * n)
    x = x.to(proj.dtype)
    name = resolve(x.device.type, x.dtype == torch.float64, backend or overridden())
    dt_proj_weight, dt_bias = _parameter(dt_proj_weight, x), _parameter(dt_bias, x)
    A, D = _parameter(A, x), _parameter(D, x)
    save = _needs_carry(x, proj, dt_proj_weight, dt_bias, A, D)
    y: Tensor = _library.cross_scan(x, proj, dt_proj_weight, dt_bias, A, D, list(directions), name, save)[0]
    return y

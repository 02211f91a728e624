"""The scan over sequences: arguments are checked and converted, a backend is chosen, the operator is called."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ops import library
from bench.ops.dispatch import overridden, resolve


def parameter(t: Tensor, like: Tensor) -> Tensor:
    """Parameters enter in float32 (float64 beside float64 inputs), also in a model cast to half precision."""
    return t.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def needs_carry(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow. An exported program recomputes its carry instead, should it be trained."""
    if torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
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
    check(u.dim() == 3, f"selective_scan: u must be (b,d,l), not {tuple(u.shape)}")
    check(u.shape == delta.shape, f"selective_scan: delta {tuple(delta.shape)} must have u's shape {tuple(u.shape)}")
    check(B.dim() == 4 and B.shape == C.shape, f"selective_scan: B {tuple(B.shape)} and C {tuple(C.shape)} must both "
           "be (b,g,n,l)")  # fmt: skip
    d = u.shape[1]
    check(A.dim() == 2 and A.shape[0] == d and A.shape[1] == B.shape[2],
           f"selective_scan: A must be (d,n) = ({d},{B.shape[2]}), not {tuple(A.shape)}")  # fmt: skip
    check(B.shape[0] == u.shape[0] and B.shape[3] == u.shape[2],
           f"selective_scan: B {tuple(B.shape)} must have the batch and length of u {tuple(u.shape)}")  # fmt: skip
    check(d % B.shape[1] == 0, f"selective_scan: {B.shape[1]} groups do not divide {d} channels")
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        check(t is None or t.shape == (d,), f"selective_scan: {name} must be ({d},)")
    name = resolve(u.device.type, u.dtype == torch.float64, backend or overridden())
    delta, B, C = delta.to(u.dtype), B.to(u.dtype), C.to(u.dtype)
    A = parameter(A, u)
    D = None if D is None else parameter(D, u)
    delta_bias = None if delta_bias is None else parameter(delta_bias, u)
    save = needs_carry(u, delta, A, B, C, D, delta_bias)
    out: Tensor = library.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, name, save)[0]
    return out

"""The scans as torch custom operators, so that torch.compile, torch.export and the FLOP counters see them.

Four operators in the namespace ``medbench``, each with a fake implementation; the two forwards have the two backwards
as their autograd formula. The backend is an argument: it is decided where the program is traced or called. ``carry``
is what a backend keeps for its backward besides the inputs; a backward that gets an empty one recomputes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.ops import flops
from bench.ops.dispatch import backend_module
from bench.ops.problems import ImageScan, SequenceScan


def _without_autocast(x: Tensor) -> torch.autocast:
    """Operators decide their own precision: state and sums in float32, whatever autocast is set to."""
    return torch.autocast(x.device.type, enabled=False)


def _carry(x: Tensor, shape: tuple[int, ...], save: bool, backend: str = "") -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if save and backend == "triton":
        dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    return x.new_empty(shape if save else (0,), dtype=dtype)


def _refuse_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "the selective scan has no second derivative: its backward cannot be differentiated. Do without "
        "create_graph=True, or compute second derivatives by finite differences of the gradient"
    )


# ---- four directions over an image ---------------------------------------------------------------------------------


@torch.library.custom_op("medbench::cross_scan", mutates_args=())
def cross_scan(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    directions: list[int],
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Scan x (b,h,w,d) in k directions with the projections proj (b,h,w,k,r+2n); returns the sum and the carry."""
    scan = ImageScan(x.contiguous(), proj.contiguous(), dt_weight, dt_bias, A, D, directions)
    with _without_autocast(x):
        y, carry = backend_module(backend).cross_scan_forward(scan, save)
    return y, carry if save else _carry(x, (), False)


@cross_scan.register_fake
def _(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, backend, save = rest
    b, h, w, d = x.shape
    k, _, r = dt_weight.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    shape = backend_module(backend).cross_scan_carry_shape(b, h, w, d, A.shape[-1], r, k)
    return y, _carry(x, shape, save, backend)


@torch.library.custom_op("medbench::cross_scan_backward", mutates_args=())
def cross_scan_backward(
    grad_y: Tensor,
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    carry: Tensor,
    directions: list[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `cross_scan` with respect to x, proj, dt_weight, dt_bias, A and D."""
    module = backend_module(backend)
    scan = ImageScan(x.contiguous(), proj.contiguous(), dt_weight, dt_bias, A, D, directions)
    with _without_autocast(x):
        if carry.numel() == 0:
            carry = module.cross_scan_forward(scan, True)[1]
        return module.cross_scan_backward(grad_y.contiguous(), scan, carry)


@cross_scan_backward.register_fake
def _(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:6])


def _cross_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.directions, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _cross_autograd(ctx: Any, grad_y: Tensor, grad_carry: Tensor | None) -> tuple[Any, ...]:
    grads = cross_scan_backward(grad_y, *ctx.saved_tensors, ctx.directions, ctx.backend)
    return *grads, None, None, None


cross_scan.register_autograd(_cross_autograd, setup_context=_cross_setup)
cross_scan_backward.register_autograd(_refuse_double_backward)


# ---- sequences -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("medbench::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Scan u (b,d,l) with step sizes delta (b,d,l) and B, C (b,g,n,l); returns the output and the carry."""
    u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
    with _without_autocast(u):
        out, carry = backend_module(backend).selective_scan_forward(
            SequenceScan(u, delta, A, B, C, D, delta_bias, delta_softplus), save
        )
    return out, carry if save else _carry(u, (), False)


@selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, backend, save = rest
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    b, d, length = u.shape
    shape = backend_module(backend).selective_scan_carry_shape(b, d, length, A.shape[1], B.shape[1])
    return out, _carry(u, shape, save, backend)


@torch.library.custom_op("medbench::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad_out: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    carry: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_scan` with respect to its seven tensors; empty for an absent D or delta_bias."""
    module = backend_module(backend)
    u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
    scan = SequenceScan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    with _without_autocast(u):
        if carry.numel() == 0:
            carry = module.selective_scan_forward(scan, True)[1]
        *grads, grad_d, grad_bias = module.selective_scan_backward(grad_out.contiguous(), scan, carry)
    gu, gdelta, ga, gb, gc = grads
    return gu, gdelta, ga, gb, gc, _or_empty(grad_d, A), _or_empty(grad_bias, A)


def _or_empty(t: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if t is None else t


@selective_scan_backward.register_fake
def _(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    present = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:5]]
    return *present, *(inputs[2].new_empty((0,) if t is None else t.shape) for t in inputs[5:7])


def _selective_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _selective_autograd(ctx: Any, grad_out: Tensor, grad_carry: Tensor | None) -> tuple[Any, ...]:
    u, delta, A, B, C, D, bias, carry = ctx.saved_tensors
    *grads, grad_d, grad_bias = selective_scan_backward(
        grad_out, u, delta, A, B, C, D, bias, ctx.softplus, carry, ctx.backend
    )
    return *grads, None if D is None else grad_d, None if bias is None else grad_bias, None, None, None


selective_scan.register_autograd(_selective_autograd, setup_context=_selective_setup)
selective_scan_backward.register_autograd(_refuse_double_backward)

flops.register_torch_formulas()

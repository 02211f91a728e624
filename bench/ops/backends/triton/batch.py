"""Triton kernels of batch norm in training, with ReLU and a cast: two passes forward, two backward.

Sums of a fixed number of programs are added by a second kernel in a fixed order: the same bits on every run. Deviations
are summed about the first row, so that a mean far from zero costs no digits.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.ops.backends.triton.layout import on_device as _on
from bench.ops.backends.triton.norm import PART, programs_for, row_view, sum_parts, tile_of


@triton.jit(do_not_specialize=["rows"])
def deviations(x, parts, rows, stride, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr):
    """Write parts (programs, 2, D): sums of x - x_0 and of its square over the tiles of a program."""
    c = tl.arange(0, CB)
    pivot = tl.load(x + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros([RB, CB], tl.float32)
    second = tl.zeros([RB, CB], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0)):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        v = tl.load(x + r[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.where(mask, v - pivot, 0.0)
        first += v
        second += v * v
    parts += tl.program_id(0) * 2 * D + c
    tl.store(parts, tl.sum(first, axis=0), mask=c < D)
    tl.store(parts + D, tl.sum(second, axis=0), mask=c < D)


@triton.jit(do_not_specialize=["programs"])
def moments(
    x, parts, stats, running_mean, running_var, bias, programs, count, momentum, eps,
    D: tl.constexpr, PB: tl.constexpr, CB: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Write stats (2, D), mean and 1 / deviation, and move the running ones; bias: what was left out of x."""
    p = tl.arange(0, PB)
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    mask = (p < programs)[:, None] & (c < D)[None, :]
    at = parts + p[:, None] * 2 * D + c[None, :]
    first = tl.sum(tl.load(at, mask=mask, other=0.0), axis=0) / count
    second = tl.sum(tl.load(at + D, mask=mask, other=0.0), axis=0) / count
    mean = tl.load(x + c, mask=c < D, other=0.0).to(tl.float32) + first
    var = tl.maximum(second - first * first, 0.0)
    tl.store(stats + c, mean, mask=c < D)
    tl.store(stats + D + c, 1.0 / tl.sqrt_rn(var + eps), mask=c < D)
    if BIAS:
        mean += tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    old = tl.load(running_mean + c, mask=c < D, other=0.0)
    tl.store(running_mean + c, old + momentum * (mean - old), mask=c < D)
    old = tl.load(running_var + c, mask=c < D, other=0.0)
    tl.store(running_var + c, old + momentum * (var * (count / (count - 1.0)) - old), mask=c < D)


@triton.jit
def _parameters(stats, weight, bias, c, D: tl.constexpr):
    mean = tl.load(stats + c, mask=c < D, other=0.0)[None, :]
    rstd = tl.load(stats + D + c, mask=c < D, other=0.0)[None, :]
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    return mean, rstd, w, b


@triton.jit(do_not_specialize=["rows"])
def batch_forward(
    x, stats, weight, bias, out, rows, stride, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, RELU: tl.constexpr
):
    """Write the normalised x times weight plus bias, and its ReLU."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < D)[None, :]
    mean, rstd, w, b = _parameters(stats, weight, bias, c, D)
    v = tl.load(x + r[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    y = (v - mean) * rstd * w + b
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out + r[:, None] * D + c[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def batch_sums(
    grad, x, stats, weight, bias, again, parts, rows, stride,
    D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Write again, the output of `batch_forward`, and parts (programs, 2, D): what weight and bias get."""
    c = tl.arange(0, CB)
    mean, rstd, w, b = _parameters(stats, weight, bias, c, D)
    to_weight = tl.zeros([RB, CB], tl.float32)
    to_bias = tl.zeros([RB, CB], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0)):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        at = r[:, None] * D + c[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(x + r[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        v = (v - mean) * rstd
        y = v * w + b
        if RELU:
            g = tl.where(y > 0.0, g, 0.0)
            y = tl.maximum(y, 0.0)
        tl.store(again + at, y.to(again.dtype.element_ty), mask=mask)
        to_weight += g * v
        to_bias += g
    parts += tl.program_id(0) * 2 * D + c
    tl.store(parts, tl.sum(to_weight, axis=0), mask=c < D)
    tl.store(parts + D, tl.sum(to_bias, axis=0), mask=c < D)


@triton.jit(do_not_specialize=["rows"])
def batch_backward(
    grad, x, stats, weight, bias, sums, grad_x, rows, stride,
    D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x; sums (2, D): those of weight and bias."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < D)[None, :]
    at = r[:, None] * D + c[None, :]
    mean, rstd, w, b = _parameters(stats, weight, bias, c, D)
    along = tl.load(sums + c, mask=c < D, other=0.0)[None, :] / rows
    level = tl.load(sums + D + c, mask=c < D, other=0.0)[None, :] / rows
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    v = (tl.load(x + r[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32) - mean) * rstd
    if RELU:
        g = tl.where(v * w + b > 0.0, g, 0.0)
    g = (g - level - v * along) * (rstd * w)
    tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, left_out: Tensor | None,
    momentum: float, eps: float, relu: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Batch norm of the rows of x, and ReLU, as dtype; with (2,d), mean and 1 / deviation. Running ones are moved."""
    d = x.shape[-1]
    x, stride = row_view(x)
    rows, tile = x.numel() // d, tile_of(d)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    programs = programs_for(rows, tile, x)
    parts = torch.empty((programs, 2, d), dtype=torch.float32, device=x.device)
    stats = parts.new_empty((2, d))
    with _on(x):
        deviations[(programs,)](x, parts, rows, stride, **tile)
        moments[(triton.cdiv(d, PART),)](
            x, parts, stats, running_mean, running_var, bias if left_out is None else left_out, programs, float(rows),
            momentum, eps, D=d, PB=triton.next_power_of_2(programs), CB=PART, BIAS=left_out is not None, num_warps=8,
        )  # fmt: skip
        batch_forward[(triton.cdiv(rows, tile["RB"]),)](x, stats, weight, bias, out, rows, stride, **tile, RELU=relu)
    return out, stats


def batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, and the forward's output again in the type of grad."""
    d = x.shape[-1]
    grad = grad.contiguous()
    x, stride = row_view(x)
    rows, tile = x.numel() // d, tile_of(d)
    again = torch.empty(x.shape, dtype=grad.dtype, device=x.device)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = programs_for(rows, tile, x)
    parts = torch.empty((programs, 2, d), dtype=torch.float32, device=x.device)
    with _on(x):
        batch_sums[(programs,)](grad, x, stats, weight, bias, again, parts, rows, stride, **tile, RELU=relu)
        sums = sum_parts(parts)
        batch_backward[(triton.cdiv(rows, tile["RB"]),)](
            grad, x, stats, weight, bias, sums, grad_x, rows, stride, **tile, RELU=relu
        )
    return grad_x, sums[0].to(weight.dtype, copy=True), sums[1].to(bias.dtype, copy=True), again

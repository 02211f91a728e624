"""Triton kernels around the scan: layer norm with gate and cast, bias with activation, a shuffled residual sum.

Each reads its inputs once and writes its outputs once, in the types of the tensors; arithmetic is float32. Gradients
of weights are partial sums of a fixed number of programs, added by a second reduction: the same bits on every run.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.ops.backends.triton.layout import on_device as _on
from bench.ops.backends.triton.layout import processors

TILE = 2048  # elements of a tile of rows
PROGRAMS = 4  # programs a multiprocessor that sum the gradients of weights
PAIRS = 1024  # pairs of channels of a program that shuffles


@triton.jit
def _normalised(x, r, c, mask, stride, D: tl.constexpr, eps):
    v = tl.load(x + r[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=1) / D
    v = tl.where(mask, v - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(v * v, axis=1) / D + eps)
    return v * rstd[:, None], rstd


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x, weight, bias, gate, out, rows, stride, eps,
    D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Write (norm(x) * weight + bias) * silu(gate); rows of x lie `stride` apart, those of gate and out D."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < D)[None, :]
    y, _ = _normalised(x, r, c, mask, stride, D, eps)
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    y = y * w[None, :] + b[None, :]
    at = r[:, None] * D + c[None, :]
    if GATE:
        z = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
        y *= z * tl.sigmoid(z)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def norm_backward(
    grad_out, x, weight, bias, gate, grad_x, grad_gate, sums, rows, stride, eps,
    D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Gradients of `norm_forward`; sums (programs, 2, D): those of weight and bias over the tiles of a program."""
    c = tl.arange(0, CB)
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    grad_w = tl.zeros([RB, CB], tl.float32)
    grad_b = tl.zeros([RB, CB], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0)):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        at = r[:, None] * D + c[None, :]
        g = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        y, rstd = _normalised(x, r, c, mask, stride, D, eps)
        if GATE:
            z = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
            s = tl.sigmoid(z)
            grad_z = g * (y * w + b) * s * (1.0 + z * (1.0 - s))
            tl.store(grad_gate + at, grad_z.to(grad_gate.dtype.element_ty), mask=mask)
            g *= z * s
        grad_w += g * y
        grad_b += g
        g *= w
        along = tl.sum(g * y, axis=1) / D
        mean = tl.sum(g, axis=1) / D
        g = (g - mean[:, None] - y * along[:, None]) * rstd[:, None]
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    sums += tl.program_id(0) * 2 * D + c
    tl.store(sums, tl.sum(grad_w, axis=0), mask=c < D)
    tl.store(sums + D, tl.sum(grad_b, axis=0), mask=c < D)


@triton.jit
def _activated(v, SILU: tl.constexpr):
    """The activation of v and its derivative: SiLU or ReLU."""
    if SILU:
        s = tl.sigmoid(v)
        return v * s, s * (1.0 + v * (1.0 - s))
    else:
        return tl.maximum(v, 0.0), tl.where(v > 0.0, 1.0, 0.0)


@triton.jit(do_not_specialize=["rows"])
def bias_forward(x, bias, out, rows, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, SILU: tl.constexpr):
    """Write the activation of x + bias."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < D)[None, :]
    at = r[:, None] * D + c[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    y, _ = _activated(v + tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :], SILU)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def bias_backward(
    grad_out, x, bias, grad_x, sums, rows, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, SILU: tl.constexpr
):
    """Gradient of x; sums (programs, D): that of bias over the tiles of a program."""
    c = tl.arange(0, CB)
    b = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([RB, CB], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0)):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        at = r[:, None] * D + c[None, :]
        g = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        _, slope = _activated(tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + b, SILU)
        g *= slope
        total += g
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(sums + tl.program_id(0) * D + c, tl.sum(total, axis=0), mask=c < D)


@triton.jit(do_not_specialize=["pairs"])
def add_shuffled_forward(x, left, right, out, pairs, B: tl.constexpr):
    """Write x + (left_0, right_0, left_1, ...)."""
    start = tl.program_id(0).to(tl.int64) * B
    i = start + tl.arange(0, B)
    two = 2 * start + tl.arange(0, 2 * B)
    first = tl.load(left + i, mask=i < pairs, other=0.0).to(tl.float32)
    second = tl.load(right + i, mask=i < pairs, other=0.0).to(tl.float32)
    total = tl.load(x + two, mask=two < 2 * pairs, other=0.0).to(tl.float32) + tl.interleave(first, second)
    tl.store(out + two, total.to(out.dtype.element_ty), mask=two < 2 * pairs)


@triton.jit(do_not_specialize=["pairs"])
def unshuffle(grad, left, right, pairs, B: tl.constexpr):
    """Write the even elements of grad to left and the odd ones to right."""
    start = tl.program_id(0).to(tl.int64) * B
    i = start + tl.arange(0, B)
    first = tl.load(grad + 2 * i, mask=i < pairs, other=0.0)
    second = tl.load(grad + 2 * i + 1, mask=i < pairs, other=0.0)
    tl.store(left + i, first.to(left.dtype.element_ty), mask=i < pairs)
    tl.store(right + i, second.to(right.dtype.element_ty), mask=i < pairs)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """The tensor with its rows (last axis) at one distance, without a copy where they are already, and the distance."""
    if x.stride(-1) == 1 and x.dim() > 1:
        distance = x.stride(-2)
        if all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2)):
            return x, distance
    return x.contiguous(), x.shape[-1]


def _tile(d: int) -> dict[str, int]:
    width = triton.next_power_of_2(d)
    return {"D": d, "CB": width, "RB": max(1, TILE // width), "num_warps": 4 if width <= 2048 else 8}


def norm_gate(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm over the last axis of x times silu(gate), contiguous and of type dtype."""
    d = x.shape[-1]
    x, stride = _rows(x)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows, tile = x.numel() // d, _tile(d)
    gate = out if gate is None else gate.contiguous()
    if rows:
        with _on(x):
            norm_forward[(triton.cdiv(rows, tile["RB"]),)](
                x, weight, bias, gate, out, rows, stride, eps, **tile, GATE=gate is not out
            )
    return out


def norm_gate_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and gate (empty without one)."""
    d = x.shape[-1]
    x, stride = _rows(x)
    rows, tile = x.numel() // d, _tile(d)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_gate = x.new_empty(0) if gate is None else torch.empty(x.shape, dtype=gate.dtype, device=x.device)
    programs = min(triton.cdiv(rows, tile["RB"]), PROGRAMS * processors(x.device))
    sums = torch.empty((programs, 2, d), dtype=torch.float32, device=x.device)
    if rows:
        with _on(x):
            norm_backward[(programs,)](
                grad_out.contiguous(), x, weight, bias, x if gate is None else gate.contiguous(), grad_x, grad_gate,
                sums, rows, stride, eps, **tile, GATE=gate is not None,
            )  # fmt: skip
    grad_weight, grad_bias = sums.sum(0).unbind()
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype, copy=True), grad_gate


def bias_act(x: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """SiLU or ReLU of x + bias, contiguous."""
    d = x.shape[-1]
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, tile = x.numel() // d, _tile(d)
    if rows:
        with _on(x):
            bias_forward[(triton.cdiv(rows, tile["RB"]),)](x, bias, out, rows, **tile, SILU=silu)
    return out


def bias_act_backward(grad_out: Tensor, x: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    d = x.shape[-1]
    x, grad_x = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, tile = x.numel() // d, _tile(d)
    programs = min(triton.cdiv(rows, tile["RB"]), PROGRAMS * processors(x.device))
    sums = torch.empty((programs, d), dtype=torch.float32, device=x.device)
    if rows:
        with _on(x):
            bias_backward[(programs,)](grad_out.contiguous(), x, bias, grad_x, sums, rows, **tile, SILU=silu)
    return grad_x, sums.sum(0).to(bias.dtype)


def add_shuffled(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add (left_0, right_0, left_1, ...) along the last axis, in the type of x."""
    x, left, right = x.contiguous(), left.contiguous(), right.contiguous()
    out = torch.empty_like(x)
    if pairs := left.numel():
        with _on(x):
            add_shuffled_forward[(triton.cdiv(pairs, PAIRS),)](x, left, right, out, pairs, B=PAIRS)
    return out


def add_shuffled_backward(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of left and right, in dtype."""
    shape = (*grad.shape[:-1], grad.shape[-1] // 2)
    left, right = (torch.empty(shape, dtype=dtype, device=grad.device) for _ in range(2))
    if pairs := left.numel():
        with _on(grad):
            unshuffle[(triton.cdiv(pairs, PAIRS),)](grad.contiguous(), left, right, pairs, B=PAIRS)
    return left, right

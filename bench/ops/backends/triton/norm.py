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
PROGRAMS = 8  # programs a multiprocessor that sum the gradients of weights
PAIRS = 1024  # pairs of channels of a program that shuffles
PART = 8  # columns of a program that adds up partial sums


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
    grad_out, x, weight, bias, gate, plus, grad_x, grad_gate, again, sums, rows, stride, eps,
    D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr, GATE: tl.constexpr, AGAIN: tl.constexpr, PLUS: tl.constexpr,
):  # fmt: skip
    """Gradients of `norm_forward`; sums (programs, 2, D): those of weight and bias over the tiles of a program.

    AGAIN: also write the forward's output. PLUS: add plus to the gradient of x.
    """
    c = tl.arange(0, CB)
    w = tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    grad_w = tl.zeros([RB, CB], tl.float32)
    grad_b = tl.zeros([RB, CB], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0), num_stages=2):
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
        if AGAIN:
            o = y * w + b
            if GATE:
                o *= z * s
            tl.store(again + at, o.to(again.dtype.element_ty), mask=mask)
        grad_w += g * y
        grad_b += g
        g *= w
        along = tl.sum(g * y, axis=1) / D
        mean = tl.sum(g, axis=1) / D
        g = (g - mean[:, None] - y * along[:, None]) * rstd[:, None]
        if PLUS:
            g += tl.load(plus + at, mask=mask, other=0.0).to(tl.float32)
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
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0), num_stages=2):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        at = r[:, None] * D + c[None, :]
        g = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        _, slope = _activated(tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + b, SILU)
        g *= slope
        total += g
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(sums + tl.program_id(0) * D + c, tl.sum(total, axis=0), mask=c < D)


@triton.jit
def _normal_share(v, bell):
    """The normal distribution function of v, of bell = exp(-v^2/2), to an absolute 8e-8 (Abramowitz, Stegun, 7.1.26).

    An erf of its own would be most of the time of GELU's backward.
    """
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(v))
    p = t * (0.127414796 + t * (-0.142248368 + t * (0.71070687 + t * (-0.72657601 + t * 0.53070271))))
    tail = p * bell
    return tl.where(v > 0.0, 1.0 - tail, tail)


@triton.jit(do_not_specialize=["rows"])
def gelu_sums(grad, x, grad_x, again, sums, rows, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr):
    """Write the gradient of x through GELU, the GELU again, and sums (programs, D): that gradient over tiles."""
    c = tl.arange(0, CB)
    total = tl.zeros([RB, CB], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, RB), tl.num_programs(0), num_stages=2):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        mask = (r < rows)[:, None] & (c < D)[None, :]
        at = r[:, None] * D + c[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        bell = tl.exp2(v * v * -0.7213475204444817)
        share = _normal_share(v, bell)
        tl.store(again + at, (v * share).to(again.dtype.element_ty), mask=mask)
        slope = share + v * 0.3989422804014327 * bell
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * slope
        total += g
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(sums + tl.program_id(0) * D + c, tl.sum(total, axis=0), mask=c < D)


@triton.jit(do_not_specialize=["size"])
def add_scaled_forward(x, y, scale, out, size, B: tl.constexpr):
    """Write x + f y of one image, with its factor f of scale; an image has `size` elements."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * B + tl.arange(0, B)
    factor = tl.load(scale + image).to(tl.float32)
    total = factor * tl.load(y + image * size + i, mask=i < size, other=0.0).to(tl.float32)
    total += tl.load(x + image * size + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(out + image * size + i, total.to(out.dtype.element_ty), mask=i < size)


@triton.jit(do_not_specialize=["size"])
def scale_images(x, scale, out, size, B: tl.constexpr):
    """Write f x of one image."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(scale + image).to(tl.float32) * tl.load(x + image * size + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(out + image * size + i, v.to(out.dtype.element_ty), mask=i < size)


@triton.jit(do_not_specialize=["pairs"])
def add_shuffled_forward(x, left, right, scale, out, pairs, B: tl.constexpr, SCALE: tl.constexpr):
    """Write x + (left_0, f right_0, left_1, ...) of one image, with its factor f of scale; an image has `pairs`."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * B + tl.arange(0, B)
    two = 2 * tl.program_id(0) * B + tl.arange(0, 2 * B)
    first = tl.load(left + image * pairs + i, mask=i < pairs, other=0.0).to(tl.float32)
    second = tl.load(right + image * pairs + i, mask=i < pairs, other=0.0).to(tl.float32)
    if SCALE:
        second *= tl.load(scale + image).to(tl.float32)
    total = tl.load(x + 2 * image * pairs + two, mask=two < 2 * pairs, other=0.0).to(tl.float32)
    total += tl.interleave(first, second)
    tl.store(out + 2 * image * pairs + two, total.to(out.dtype.element_ty), mask=two < 2 * pairs)


@triton.jit(do_not_specialize=["pairs"])
def unshuffle(grad, scale, left, right, pairs, B: tl.constexpr, SCALE: tl.constexpr):
    """Write the even elements of grad to left and the odd ones, times the image's factor, to right."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * B + tl.arange(0, B)
    two = 2 * tl.program_id(0) * B + tl.arange(0, 2 * B)
    both = tl.load(grad + 2 * image * pairs + two, mask=two < 2 * pairs, other=0.0).to(tl.float32)
    first, second = tl.split(tl.reshape(both, [B, 2]))
    if SCALE:
        second *= tl.load(scale + image).to(tl.float32)
    tl.store(left + image * pairs + i, first.to(left.dtype.element_ty), mask=i < pairs)
    tl.store(right + image * pairs + i, second.to(right.dtype.element_ty), mask=i < pairs)


@triton.jit(do_not_specialize=["rows"])
def add_beside(grad, left, right, out, rows, D: tl.constexpr, CB: tl.constexpr, RB: tl.constexpr):
    """Write grad + (left, right), halves of D channels side by side."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < D)[None, :]
    at, to = r[:, None] * D + c[None, :], r[:, None] * 2 * D + c[None, :]
    first = tl.load(grad + to, mask=mask, other=0.0).to(tl.float32) + tl.load(left + at, mask=mask, other=0.0)
    second = tl.load(grad + to + D, mask=mask, other=0.0).to(tl.float32) + tl.load(right + at, mask=mask, other=0.0)
    tl.store(out + to, first.to(out.dtype.element_ty), mask=mask)
    tl.store(out + to + D, second.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["parts"])
def add_parts(x, out, parts, columns, PB: tl.constexpr, CB: tl.constexpr):
    """Write the sum of x (parts, columns) over its parts."""
    p = tl.arange(0, PB)
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    mask = (p < parts)[:, None] & (c < columns)[None, :]
    total = tl.sum(tl.load(x + p[:, None] * columns + c[None, :], mask=mask, other=0.0), axis=0)
    tl.store(out + c, total, mask=c < columns)


def row_view(x: Tensor) -> tuple[Tensor, int]:
    """The tensor with its rows (last axis) at one distance, without a copy where they are already, and the distance."""
    if x.stride(-1) == 1 and x.dim() > 1:
        distance = x.stride(-2)
        if all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2)):
            return x, distance
    return x.contiguous(), x.shape[-1]


def tile_of(d: int) -> dict[str, int]:
    """Constants of the kernels that work on tiles of whole rows of d channels."""
    width = triton.next_power_of_2(d)
    return {"D": d, "CB": width, "RB": max(1, TILE // width), "num_warps": 4 if width <= 2048 else 8}


def programs_for(rows: int, tile: dict[str, int], x: Tensor) -> int:
    """Programs that add up over rows: as many as there are tiles, or as fill the device."""
    return max(1, min(triton.cdiv(rows, tile["RB"]), PROGRAMS * processors(x.device)))


def sum_parts(parts: Tensor) -> Tensor:
    """The sum over the first axis, float32."""
    out = torch.empty(parts.shape[1:], dtype=torch.float32, device=parts.device)
    number, columns = parts.shape[0], out.numel()
    with _on(parts):
        add_parts[(triton.cdiv(columns, PART),)](
            parts, out, number, columns, PB=triton.next_power_of_2(number), CB=PART, num_warps=8
        )
    return out


def norm_gate(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm over the last axis of x times silu(gate), contiguous and of type dtype."""
    d = x.shape[-1]
    x, stride = row_view(x)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows, tile = x.numel() // d, tile_of(d)
    gate = out if gate is None else gate.contiguous()
    if rows:
        with _on(x):
            norm_forward[(triton.cdiv(rows, tile["RB"]),)](
                x, weight, bias, gate, out, rows, stride, eps, **tile, GATE=gate is not out
            )
    return out


def norm_gate_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, plus: Tensor | None, eps: float,
    again: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and gate (empty without one); and the output again, in grad_out's type, or empty.

    plus is added to the gradient of x.
    """
    d = x.shape[-1]
    x, stride = row_view(x)
    rows, tile = x.numel() // d, tile_of(d)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_gate = x.new_empty(0) if gate is None else torch.empty(x.shape, dtype=gate.dtype, device=x.device)
    out = torch.empty(x.shape if again else (0,), dtype=grad_out.dtype, device=x.device)
    programs = programs_for(rows, tile, x)
    sums = torch.empty((programs, 2, d), dtype=torch.float32, device=x.device)
    with _on(x):
        norm_backward[(programs,)](
            grad_out.contiguous(), x, weight, bias, x if gate is None else gate.contiguous(),
            x if plus is None else plus.contiguous(), grad_x, grad_gate, out, sums, rows, stride, eps, **tile,
            GATE=gate is not None, AGAIN=again, PLUS=plus is not None,
        )  # fmt: skip
    grad_weight, grad_bias = sum_parts(sums).unbind()
    return grad_x, grad_weight.to(weight.dtype, copy=True), grad_bias.to(bias.dtype, copy=True), grad_gate, out


def bias_act(x: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """SiLU or ReLU of x + bias, contiguous."""
    d = x.shape[-1]
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, tile = x.numel() // d, tile_of(d)
    if rows:
        with _on(x):
            bias_forward[(triton.cdiv(rows, tile["RB"]),)](x, bias, out, rows, **tile, SILU=silu)
    return out


def bias_act_backward(grad_out: Tensor, x: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    d = x.shape[-1]
    x, grad_x = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, tile = x.numel() // d, tile_of(d)
    programs = programs_for(rows, tile, x)
    sums = torch.empty((programs, d), dtype=torch.float32, device=x.device)
    with _on(x):
        bias_backward[(programs,)](grad_out.contiguous(), x, bias, grad_x, sums, rows, **tile, SILU=silu)
    return grad_x, sum_parts(sums).to(bias.dtype)


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x through GELU, its sum over rows (float32), and the GELU of x again."""
    d = x.shape[-1]
    x = x.contiguous()
    grad_x, again = torch.empty_like(x), torch.empty_like(x)
    rows, tile = x.numel() // d, tile_of(d)
    programs = programs_for(rows, tile, x)
    sums = torch.empty((programs, d), dtype=torch.float32, device=x.device)
    with _on(x):
        gelu_sums[(programs,)](grad.contiguous(), x, grad_x, again, sums, rows, **tile)
    return grad_x, sum_parts(sums), again


def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Add y, times a factor an image, to x, in the type of x."""
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        size = x[0].numel()
        with _on(x):
            add_scaled_forward[(triton.cdiv(size, 2 * PAIRS), len(x))](x, y, scale, out, size, B=2 * PAIRS)
    return out


def scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply x with a factor an image; in dtype."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        size = x[0].numel()
        with _on(x):
            scale_images[(triton.cdiv(size, 2 * PAIRS), len(x))](x, scale, out, size, B=2 * PAIRS)
    return out


def add_shuffled(x: Tensor, left: Tensor, right: Tensor, scale: Tensor | None) -> Tensor:
    """Add (left_0, f right_0, left_1, ...) along the last axis, in the type of x; f: an image's factor, if any."""
    x, left, right = x.contiguous(), left.contiguous(), right.contiguous()
    out = torch.empty_like(x)
    if left.numel():
        pairs = left[0].numel()
        with _on(x):
            add_shuffled_forward[(triton.cdiv(pairs, PAIRS), len(x))](
                x, left, right, x if scale is None else scale, out, pairs, B=PAIRS, SCALE=scale is not None
            )
    return out


def add_shuffled_backward(grad: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of left and right, in dtype."""
    shape = (*grad.shape[:-1], grad.shape[-1] // 2)
    left, right = (torch.empty(shape, dtype=dtype, device=grad.device) for _ in range(2))
    if left.numel():
        pairs = left[0].numel()
        with _on(grad):
            unshuffle[(triton.cdiv(pairs, PAIRS), len(grad))](
                grad.contiguous(), grad if scale is None else scale, left, right, pairs, B=PAIRS,
                SCALE=scale is not None,
            )  # fmt: skip
    return left, right


def add_halves(grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add (left, right), side by side along the last axis, to grad, in the type of grad."""
    d = left.shape[-1]
    grad, rows, tile = grad.contiguous(), left.numel() // d, tile_of(d)
    out = torch.empty_like(grad)
    if rows:
        with _on(grad):
            add_beside[(triton.cdiv(rows, tile["RB"]),)](grad, left.contiguous(), right.contiguous(), out, rows, **tile)
    return out

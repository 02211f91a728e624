"""The Triton backend: fused scans on CUDA, compute capability 8.0 and later, or on the CPU under TRITON_INTERPRET=1.

The kernels are in `walks.py`, `lines.py`, `backward.py` and `sums.py`; this file chooses how work is cut into
blocks and adds up what blocks leave behind, always in the same order: results are the same from run to run.

A sequence is one warp's work for each 32 channels. Where images and channels are too few to fill the device, a
sequence is cut into segments: a first walk finds what each segment adds to the state (the decay over it is
exp(A * sum of steps)), a small kernel joins them, and the outputs are computed in a second walk.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench.ops.backends.triton import backward, lines, sums, walks
from bench.ops.backends.triton.layout import CARRY_EVERY, CHANNELS, Layout, order_table
from bench.ops.backends.triton.layout import on_device as _on
from bench.ops.backends.triton.steps import step_gradients, step_sizes
from bench.ops.backends.triton.tiles import INTERPRETED
from bench.ops.problems import ImageScan, SequenceScan

NAME = "triton"
WALK_TILE = 8  # positions loaded at a time by the walks
MAX_FUSED_RANK = 8  # a step-size projection of higher rank is one matrix product before the scan
# Warps a multiprocessor runs at once without slowing each other down: the walk forward is limited by its schedulers,
# the backward by its registers, of which 168 a thread let it run 12 (both measured on an H200).
FORWARD_SLOTS, BACKWARD_SLOTS = 6, 12
REGISTERS, LINE_REGISTERS = 168, 128
MERGE_ROWS, BC_CHUNKS, PROJ_CHUNKS = 8, 2, 4  # rows and chunks of a block in the kernels that add or reorder


def unavailable(device_type: str) -> str | None:
    """Say why the backend cannot run on a device, or None where it can."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device_type != "cuda":
        return f"Triton compiles for CUDA, not for {device_type} (TRITON_INTERPRET=1 runs it slowly anywhere)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"needs compute capability 8.0 or later; this device has {major}.{minor}"
    return None


class _Steps(NamedTuple):
    """Step sizes: given (delta), or a product of rank r of the projections with weight (k,d,r); bias (k*d) or None."""

    delta: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    softplus: bool

    @property
    def constants(self) -> dict[str, Any]:
        fused = self.delta is None and self.weight is not None
        rank = self.weight.shape[-1] if fused and self.weight is not None else 0
        return {"R": rank, "DIRECT": not fused, "SOFTPLUS": self.softplus, "HAS_BIAS": self.bias is not None}


def carry_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of what is kept, and of what kernels hand to one another, for inputs of a type; arithmetic is float32.

    A bfloat16 has the range of a float32, and its rounding is that of the inputs themselves.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def carry_shape(sequences: int, length: int, n: int, d: int) -> tuple[int, ...]:
    """Shape of the states kept: one before every `CARRY_EVERY`-th position, by blocks of channels; see `walks.py`."""
    return (sequences, -(-length // CARRY_EVERY), -(-d // CHANNELS), n * CHANNELS)


def _carry(p: Layout, x: Tensor, save: bool) -> Tensor:
    shape = carry_shape(p.sequences, p.length, p.n, p.d) if save else (0,)
    return torch.empty(shape, dtype=carry_dtype(x.dtype), device=x.device)


def _decays(A: Tensor, p: Layout) -> Tensor:
    """A as (k,n,d), so that neighbouring channels read neighbouring words."""
    return A.view(p.k, p.d, p.n).transpose(1, 2).contiguous()


def _scan(
    p: Layout, x: Tensor, proj: Tensor, steps: _Steps, A: Tensor, D: Tensor | None, order: Tensor, y: Tensor,
    skip_features: int, save: bool,
) -> Tensor:  # fmt: skip
    """Write outputs to y (x's or the per-direction layout); returns the carry. B and C follow `skip_features`."""
    segments, each = p.segments(x.device, FORWARD_SLOTS, 1.0)
    carry = _carry(p, x, save)
    span = each * CARRY_EVERY
    sizes_of_blocks = {"NP": triton.next_power_of_2(p.n), "CB": CHANNELS, "K": CARRY_EVERY, "T": WALK_TILE}
    constants = {**steps.constants, "N": p.n, "G": p.group, **sizes_of_blocks}
    proj = _features(proj, skip_features, steps)
    delta, weight, bias = (x if t is None else t for t in (steps.delta, steps.weight, steps.bias))
    grid = (p.blocks, segments, p.sequences)
    sizes = (order, p.length, span, segments, p.chunks, p.k, p.d, *p.strides)
    start, end, total = (A, A, A)
    with _on(x):
        if segments > 1:
            start, end = p.state(segments, x), p.state(segments, x)
            total = end.new_empty((p.sequences, segments, p.d))
            walks.walk_forward[(p.blocks, segments - 1, p.sequences)](
                x, delta, proj, weight, bias, A, A, y, carry, start, end, total, *sizes, 0, 0, **constants,
                HAS_D=False, END=True, num_warps=1, maxnreg=REGISTERS,
            )  # fmt: skip
            walks.join_segments[(p.blocks, p.n, p.sequences)](
                A, end, total, start, segments, p.k, p.d, N=p.n, CB=CHANNELS, REVERSE=False, num_warps=1
            )
        if p.n == 1 and x.dtype == torch.bfloat16 and steps.softplus and D is None and not INTERPRETED:
            lines.walk_lines[grid](
                x, delta, proj, weight, bias, A, y, carry, start, *sizes, int(segments > 1), int(save),
                R=constants["R"], K=CARRY_EVERY, DIRECT=constants["DIRECT"], HAS_BIAS=constants["HAS_BIAS"],
                num_warps=1, maxnreg=LINE_REGISTERS,
            )  # fmt: skip
            return carry
        walks.walk_forward[grid](
            x, delta, proj, weight, bias, A, A if D is None else D, y, carry, start, end, total, *sizes,
            int(segments > 1), int(save), **constants, HAS_D=D is not None, END=False, num_warps=1, maxnreg=REGISTERS,
        )  # fmt: skip
    return carry


def _features(proj: Tensor, skip: int, steps: _Steps) -> Tensor:
    """The projections as the kernel sees them: without the step-size features where it does not use them."""
    return proj.view(-1)[skip:] if steps.constants["DIRECT"] else proj


class _Grads(NamedTuple):
    raw: Tensor  # of the step size before softplus, per-direction layout
    A: Tensor  # (k, d, n) float32
    D: Tensor  # (k, d) float32
    bias: Tensor  # (k, d) float32, of the step size before softplus
    bc: Tensor  # (blocks, s, 2n, l), to be summed over blocks


def _scan_backward(
    p: Layout, grad_y: Tensor, x: Tensor, proj: Tensor, steps: _Steps, A: Tensor, D: Tensor | None, order: Tensor,
    carry: Tensor, grad_x: Tensor, skip_features: int,
) -> _Grads:  # fmt: skip
    """Write the gradient of x to grad_x (per-direction layout) and return the others."""
    segments, each = p.segments(x.device, BACKWARD_SLOTS, 0.2)
    constants = {**steps.constants, "N": p.n, "CB": CHANNELS}
    features = _features(proj, skip_features, steps)
    delta, weight, bias = (x if t is None else t for t in (steps.delta, steps.weight, steps.bias))
    state = torch.zeros((p.sequences, segments, p.blocks, p.n, CHANNELS, 2), device=x.device)
    dtype = carry_dtype(x.dtype)
    grad_raw = torch.empty_like(grad_x, dtype=dtype)
    grad_bc = state.new_empty((p.blocks, p.sequences, p.chunks, 2 * p.n * CARRY_EVERY), dtype=dtype)
    bc = state.new_empty((p.sequences, p.chunks, 2 * p.n * CARRY_EVERY))
    grad_rest = state.new_zeros((p.sequences, segments, 2, p.d))
    grid = (p.blocks, segments, p.sequences)
    with _on(x):
        sums.order_bc[(triton.cdiv(p.chunks, BC_CHUNKS), p.sequences)](
            features, bc, order, p.length, p.chunks, p.k, p.pb, p.pk, p.ps, R=constants["R"], N=p.n,
            NP=triton.next_power_of_2(p.n), K=CARRY_EVERY, G=p.group, C=BC_CHUNKS,
        )  # fmt: skip
        if segments > 1:
            end, total, by_state = p.state(segments, x), state.new_empty((p.sequences, segments, p.d)), _decays(A, p)
            walks.walk_adjoint[(p.blocks, segments - 1, p.sequences)](
                grad_y, delta, features, weight, bias, by_state, end, total, order, p.length, each * CARRY_EVERY,
                segments, p.k, p.d, *p.strides, **constants, NP=triton.next_power_of_2(p.n), T=WALK_TILE, num_warps=1,
            )  # fmt: skip
            walks.join_segments[(p.blocks, p.n, p.sequences)](
                by_state, end, total, state, segments, p.k, p.d, N=p.n, CB=CHANNELS, REVERSE=True, num_warps=1
            )
        backward.scan_backward[grid](
            grad_y, x, delta, features, bc, weight, bias, p.by_groups(A), A if D is None else D, carry, state, grad_x,
            grad_raw, grad_bc, grad_rest, order, p.length, each, segments, p.chunks, p.k, p.d, *p.strides, p.sequences,
            **constants, HAS_D=D is not None, T=CARRY_EVERY, G=p.group, num_warps=1, maxnreg=REGISTERS,
        )  # fmt: skip
    to_a = state[..., 1].unflatten(0, (p.batch, p.k)).sum((0, 2))  # (k, blocks, n, CHANNELS)
    grad_a = to_a.transpose(2, 3).reshape(p.k, -1, p.n)[:, : p.d].contiguous()
    rest = grad_rest.view(p.batch, p.k, segments, 2, p.d).sum((0, 2)).unbind(1)
    to_d, to_bias = (t.clone() for t in rest)  # an operator's outputs must not share memory
    return _Grads(grad_raw, grad_a, to_d, to_bias, grad_bc)


def _merge(parts: Tensor, other: Tensor, skip: Tensor, out: Tensor) -> None:
    """Write parts.sum(0) + skip * other to out, with the sum in float32."""
    k, rows, d = parts.shape
    with _on(out):
        sums.merge[triton.cdiv(rows, MERGE_ROWS), triton.cdiv(d, 128)](
            parts, other, skip, out, rows, d, K=k, RB=MERGE_ROWS, CB=128
        )


def _merge_proj(p: Layout, grads: _Grads, grad_proj: Tensor, order: Tensor, weight: Tensor | None) -> None:
    rank = 0 if weight is None else weight.shape[-1]
    with _on(grad_proj):
        sums.merge_proj[(triton.cdiv(p.chunks, PROJ_CHUNKS), p.sequences)](
            grads.bc, grads.raw, grads.raw if weight is None else weight, grad_proj, order, p.length, p.chunks, p.k,
            p.sequences, p.blocks, p.d, p.pb, p.pk, p.ps, R=rank, RP=max(16, triton.next_power_of_2(rank)), N=p.n,
            NP=triton.next_power_of_2(p.n), K=CARRY_EVERY, G=p.group, C=PROJ_CHUNKS,
            CB=CHANNELS if p.d % 64 else 64,
        )  # fmt: skip


# ---- the four-direction form ---------------------------------------------------------------------------------------


def cross_scan_carry_shape(b: int, h: int, w: int, d: int, n: int, r: int, k: int) -> tuple[int, ...]:
    """Shape of the states kept for the backward."""
    return carry_shape(b * k, h * w, n, d)


def _cross_layout(x: Tensor, proj: Tensor, n: int) -> Layout:
    b, h, w, d = x.shape
    k, features, length = proj.shape[3], proj.shape[4], h * w
    return Layout(b, k, length, d, n, length * d, 0, d, length * d, b * length * d, d,
                   length * k * features, features, k * features)  # fmt: skip


def _cross_steps(proj: Tensor, dt_weight: Tensor, dt_bias: Tensor) -> _Steps:
    r = dt_weight.shape[-1]
    if r <= MAX_FUSED_RANK:
        return _Steps(None, dt_weight.contiguous(), dt_bias.contiguous(), True)
    with _on(proj):
        delta = step_sizes(proj, dt_weight.contiguous())
    return _Steps(delta, None, dt_bias.contiguous(), True)


def cross_scan_forward(scan: ImageScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan an image (b,h,w,d) in every direction and add the results; see `bench.ops.cross_selective_scan`."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, d = x.shape
    p = _cross_layout(x, proj, A.shape[-1])
    order = order_table(h, w, tuple(directions), x.device)
    parts = torch.empty((p.k, p.batch * p.length, d), dtype=carry_dtype(x.dtype), device=x.device)
    steps = _cross_steps(proj, dt_weight, dt_bias)
    carry = _scan(p, x, proj, steps, _decays(A, p), None, order, parts, dt_weight.shape[-1], save)
    y = torch.empty_like(x)
    _merge(parts, x, D.sum(0), y)
    return y, carry


def cross_scan_backward(
    grad_y: Tensor, scan: ImageScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, proj, dt_weight, dt_bias, A, D, in this order."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, d = x.shape
    r = dt_weight.shape[-1]
    p = _cross_layout(x, proj, A.shape[-1])
    order = order_table(h, w, tuple(directions), x.device)
    parts = torch.empty((p.k, p.batch * p.length, d), dtype=carry_dtype(x.dtype), device=x.device)
    steps = _cross_steps(proj, dt_weight, dt_bias)
    grads = _scan_backward(p, grad_y, x, proj, steps, A, None, order, carry, parts, r)
    grad_x = torch.empty_like(x)
    _merge(parts, grad_y, D.sum(0), grad_x)
    grad_proj = torch.empty_like(proj)
    dt_weight = dt_weight.contiguous()
    _merge_proj(p, grads, grad_proj, order, dt_weight)
    with _on(x):
        grad_weight = step_gradients(grads.raw, proj, dt_weight)
    return grad_x, grad_proj, grad_weight, grads.bias, grads.A, grads.D


# ---- the (b,d,l) form ----------------------------------------------------------------------------------------------


def selective_scan_carry_shape(b: int, d: int, length: int, n: int, g: int) -> tuple[int, ...]:
    """Shape of the states kept for the backward."""
    return carry_shape(b * g, length, n, d // g)


def _sequence_layout(u: Tensor, B: Tensor) -> Layout:
    b, d, length = u.shape
    g, n = B.shape[1], B.shape[2]
    return Layout(b, g, length, d // g, n, length * d, d // g, d, length * d, d // g, d,
                   length * g * 2 * n, 2 * n, g * 2 * n)  # fmt: skip


def _channels_last(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous()


def selective_scan_forward(scan: SequenceScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan sequences (b,d,l); see `bench.ops.selective_scan`. They are transposed to channels last and back."""
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    p = _sequence_layout(u, B)
    order = order_table(1, p.length, (0,) * p.k, u.device)
    x, bc = _channels_last(u), torch.cat([B, C], 2).permute(0, 3, 1, 2).contiguous()
    y = torch.empty_like(x)
    steps = _Steps(_channels_last(delta), None, delta_bias, delta_softplus)
    carry = _scan(p, x, bc, steps, _decays(A, p), D, order, y, 0, save)
    return _channels_last(y), carry


def selective_scan_backward(
    grad_out: Tensor, scan: SequenceScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to u, delta, A, B, C, D, delta_bias, in this order."""
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    p = _sequence_layout(u, B)
    order = order_table(1, p.length, (0,) * p.k, u.device)
    x, bc = _channels_last(u), torch.cat([B, C], 2).permute(0, 3, 1, 2).contiguous()
    grad_y, grad_x, grad_bc = _channels_last(grad_out), torch.empty_like(x), torch.empty_like(bc)
    steps = _Steps(_channels_last(delta), None, delta_bias, delta_softplus)
    grads = _scan_backward(p, grad_y, x, bc, steps, A, D, order, carry, grad_x, 0)
    _merge_proj(p, grads, grad_bc, order, None)
    grad_b, grad_c = (t.clone() for t in grad_bc.permute(0, 2, 3, 1).contiguous().split(p.n, dim=2))
    grad_d = None if D is None else grads.D.view(D.shape)
    grad_bias = None if delta_bias is None else grads.bias.view(delta_bias.shape)
    grad_delta = _channels_last(grads.raw.to(delta.dtype))
    grad_a = grads.A.view(A.shape)
    return _channels_last(grad_x), grad_delta, grad_a, grad_b, grad_c, grad_d, grad_bias

"""Triton kernels of the step-size projection, delta = features @ weight^T, and of its gradients.

Products of float32 on tensor cores, each of three products of TF32 parts, so that the error is that of float32. PyTorch
would compute them without tensor cores, from copies of the features. Rows are the pixels of all images; delta and its
gradient raw are (k, rows, d), weight is (k, d, R), the features are the first R of a row of the projections.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.ops.backends.triton.layout import processors
from bench.ops.backends.triton.tiles import NARROW

ROWS, COLUMNS = 64, 64  # of a tile


@triton.jit
def _features(proj, r, j, rows, ps, R: tl.constexpr):
    live = (r < rows)[:, None] & (j < R)[None, :]
    return tl.load(proj + r[:, None] * ps + j[None, :], mask=live, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "ps", "pk"])
def project(
    proj, weight, delta, rows, d, ps, pk, R: tl.constexpr, RP: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr
):
    """Write delta."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    k = tl.program_id(2).to(tl.int64)
    j = tl.arange(0, RP)
    f = _features(proj + k * pk, r, j, rows, ps, R)
    w = tl.load(weight + (k * d + c[None, :]) * R + j[:, None], mask=(c < d)[None, :] & (j < R)[:, None], other=0.0)
    at = (k * rows + r[:, None]) * d + c[None, :]
    tl.store(delta + at, tl.dot(f, w, input_precision="tf32x3"), mask=(r < rows)[:, None] & (c < d)[None, :])


@triton.jit
def multiply_exactly(g, w, total):
    """Add g @ w, of which w is float32, to total; what g is exact in bfloat16 takes two products with parts of w."""
    if g.dtype == NARROW:
        high = w.to(tl.bfloat16)
        total = tl.dot(g, high, total)
        return tl.dot(g, (w - high.to(tl.float32)).to(tl.bfloat16), total)
    else:
        return tl.dot(g.to(tl.float32), w, total, input_precision="tf32x3")


@triton.jit(do_not_specialize=["rows", "ps", "pk"])
def project_weights(
    raw, proj, sums, rows, d, ps, pk, R: tl.constexpr, RP: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr
):
    """Write sums (programs, k, d, R): of raw times the features, over a program's tiles of rows."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    k = tl.program_id(1).to(tl.int64)
    j = tl.arange(0, RP)
    total = tl.zeros([CB, RP], tl.float32)
    for tile in range(tl.program_id(2), tl.cdiv(rows, RB), tl.num_programs(2)):
        r = (tile * RB + tl.arange(0, RB)).to(tl.int64)
        at = (k * rows + r[None, :]) * d + c[:, None]
        g = tl.load(raw + at, mask=(c < d)[:, None] & (r < rows)[None, :], other=0.0)
        f = _features(proj + k * pk, r, j, rows, ps, R)
        if raw.dtype.element_ty == NARROW:  # then the features are bf16 too
            total = tl.dot(g, f.to(tl.bfloat16), total)
        else:
            total = tl.dot(g.to(tl.float32), f, total, input_precision="tf32x3")
    to = sums + ((tl.program_id(2) * tl.num_programs(1) + k) * d + c[:, None]) * R + j[None, :]
    tl.store(to, total, mask=(c < d)[:, None] & (j < R)[None, :])


def _constants(rank: int) -> dict[str, int]:
    return {"R": rank, "RP": max(16, triton.next_power_of_2(rank)), "RB": ROWS, "CB": COLUMNS}


def step_sizes(proj: Tensor, weight: Tensor) -> Tensor:
    """Step sizes (k, rows, d) float32, of projections (b,h,w,k,features) and weight (k,d,r), both contiguous."""
    k, d, r = weight.shape
    features = proj.shape[-1]
    rows = proj.numel() // (k * features)
    delta = torch.empty((k, rows, d), dtype=torch.float32, device=proj.device)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(d, COLUMNS), k)
    project[grid](proj, weight, delta, rows, d, k * features, features, **_constants(r))
    return delta


def step_gradients(raw: Tensor, proj: Tensor, weight: Tensor) -> Tensor:
    """The gradient of weight (k,d,r), of raw (k, rows, d) and the projections."""
    k, d, r = weight.shape
    features = proj.shape[-1]
    rows = proj.numel() // (k * features)
    tiles, blocks = triton.cdiv(rows, ROWS), triton.cdiv(d, COLUMNS)
    programs = max(1, min(tiles, 4 * processors(raw.device) // (k * blocks)))
    sums = torch.empty((programs, k, d, r), dtype=torch.float32, device=raw.device)
    project_weights[blocks, k, programs](raw, proj, sums, rows, d, k * features, features, **_constants(r))
    return sums.sum(0)

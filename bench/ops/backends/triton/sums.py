"""Triton kernels that add up what blocks left behind, in a fixed order, and reorder B and C for the backward."""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.steps import multiply_exactly


@triton.jit(do_not_specialize=["rows"])
def merge(parts, other, skip, out, rows, d, K: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr):
    """Write out: the sum of K partial results (K, rows, d) in a fixed order, plus skip (d,) times other (rows, d)."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < d)[None, :]
    at = r[:, None] * d + c[None, :]
    weight = tl.load(skip + c, mask=c < d, other=0.0)
    total = tl.load(other + at, mask=mask, other=0.0).to(tl.float32) * weight[None, :]
    for i in tl.static_range(K):
        total += tl.load(parts + i * rows.to(tl.int64) * d + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["nchunk", "k", "pb", "pk", "ps"])
def order_bc(
    proj, bc, order, L, nchunk, k, pb, pk, ps,
    R: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write B and C of C chunks of K positions as `scan_backward` reads them, zero behind the end."""
    first = tl.program_id(0) * C
    t = first * K + tl.arange(0, C * K)
    s = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, 2 * NP)  # B, then C
    pixel = tl.load(order + (s % k) * L + t, mask=t < L, other=0)
    at = (s // k) * pb + (s % k) * pk + pixel[:, None] * ps + R + (f // NP * N + f % NP)[None, :]
    row = tl.load(proj + at, mask=(t < L)[:, None] & (f % NP < N)[None, :], other=0.0).to(tl.float32)
    groups = tl.permute(tl.reshape(row, [C, K, 2, NP // G, G]), (0, 3, 2, 1, 4))
    j = tl.arange(0, NP * 2 * K)
    chunk = first + tl.arange(0, C)
    inside = (chunk < nchunk)[:, None] & (j < N * 2 * K)[None, :]
    to = bc + (s * nchunk + chunk[:, None]) * N * 2 * K + j[None, :]
    tl.store(to, tl.reshape(groups, [C, NP * 2 * K]), mask=inside)


@triton.jit(do_not_specialize=["nchunk", "k", "batch_k", "ncb", "pb", "pk", "ps"])
def merge_proj(
    grad_bc, raw, weight, grad_proj, order, L, nchunk, k, batch_k, ncb, d, pb, pk, ps, R: tl.constexpr,
    RP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the projections of C chunks of K positions of a sequence.

    For B and C the sum of grad_bc, as `scan_backward` leaves it, over ncb blocks of channels; for R step-size features
    the product of raw (k, images, L, d), by pixels, with weight (k, d, R). One kernel for both: a row is not written in
    two parts.
    """
    t = tl.program_id(0) * C * K + tl.arange(0, C * K)
    s = tl.program_id(1).to(tl.int64)
    image = s // k
    direction = s % k
    chunk = tl.program_id(0) * C + tl.arange(0, C)
    j = tl.arange(0, NP * 2 * K)
    inside = (chunk < nchunk)[:, None] & (j < N * 2 * K)[None, :]
    total = tl.zeros([C, NP * 2 * K], tl.float32)
    for i in range(ncb):
        at = ((i * batch_k + s) * nchunk + chunk[:, None]) * N * 2 * K + j[None, :]
        total += tl.load(grad_bc + at, mask=inside, other=0.0).to(tl.float32)
    rows = tl.reshape(tl.permute(tl.reshape(total, [C, NP // G, 2, K, G]), (0, 3, 2, 1, 4)), [C * K, 2 * NP])
    pixel = tl.load(order + direction * L + t, mask=t < L, other=0)
    row = grad_proj + image * pb + direction * pk + pixel * ps
    if R > 0:
        feature = tl.arange(0, RP)
        raw += (direction * (batch_k // k) + image) * L * d
        weight += direction * d * R
        product = tl.zeros([C * K, RP], tl.float32)
        for start in range(0, d, CB):
            c = start + tl.arange(0, CB)
            g = tl.load(raw + pixel[:, None] * d + c[None, :], mask=(t < L)[:, None] & (c < d)[None, :], other=0.0)
            at = weight + c[:, None] * R + feature[None, :]
            w = tl.load(at, mask=(c < d)[:, None] & (feature < R)[None, :], other=0.0)
            product = multiply_exactly(g, w, product)
        there = (t < L)[:, None] & (feature < R)[None, :]
        tl.store(row[:, None] + feature[None, :], product.to(grad_proj.dtype.element_ty), mask=there)
    f = tl.arange(0, 2 * NP)  # B, then C
    to = row[:, None] + R + (f // NP * N + f % NP)[None, :]
    tl.store(to, rows.to(grad_proj.dtype.element_ty), mask=(t < L)[:, None] & (f % NP < N)[None, :])

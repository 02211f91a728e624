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


@triton.jit(do_not_specialize=["k", "pb", "pk", "ps"])
def order_bc(proj, bc, order, L, k, pb, pk, ps, R: tl.constexpr, N2: tl.constexpr, NP2: tl.constexpr, T: tl.constexpr):
    """Write B and C as sequences, (s, 2N, L): the backward reads one state at many positions."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    s = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, NP2)
    mask = (t < L)[:, None] & (f < N2)[None, :]
    pixel = tl.load(order + (s % k) * L + t, mask=t < L, other=0)
    at = (s // k) * pb + (s % k) * pk + pixel[:, None] * ps + R + f[None, :]
    row = tl.load(proj + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(bc + s * N2 * L + f[None, :] * L + t[:, None], row.to(bc.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["k", "batch_k", "ncb", "pb", "pk", "ps"])
def merge_proj(
    grad_bc, raw, weight, grad_proj, order, L, k, batch_k, ncb, d, pb, pk, ps,
    R: tl.constexpr, RP: tl.constexpr, N2: tl.constexpr, NP2: tl.constexpr, T: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the projections of T positions of a sequence.

    For B and C the sum of grad_bc (ncb, s, 2N, L) over channel blocks; for R step-size features the product of raw
    (k, images, L, d), by pixels, with weight (k, d, R). One kernel for both: a row is not written in two parts.
    """
    t = tl.program_id(0) * T + tl.arange(0, T)
    s = tl.program_id(1).to(tl.int64)
    image = s // k
    direction = s % k
    f = tl.arange(0, NP2)
    mask = (f < N2)[:, None] & (t < L)[None, :]
    total = tl.zeros([NP2, T], tl.float32)
    for i in range(ncb):
        at = (i * batch_k + s) * N2 * L + f[:, None] * L + t[None, :]
        total += tl.load(grad_bc + at, mask=mask, other=0.0).to(tl.float32)
    pixel = tl.load(order + direction * L + t, mask=t < L, other=0)
    row = grad_proj + image * pb + direction * pk + pixel * ps
    if R > 0:
        j = tl.arange(0, RP)
        raw += (direction * (batch_k // k) + image) * L * d
        weight += direction * d * R
        product = tl.zeros([T, RP], tl.float32)
        for start in range(0, d, CB):
            c = start + tl.arange(0, CB)
            g = tl.load(raw + pixel[:, None] * d + c[None, :], mask=(t < L)[:, None] & (c < d)[None, :], other=0.0)
            w = tl.load(weight + c[:, None] * R + j[None, :], mask=(c < d)[:, None] & (j < R)[None, :], other=0.0)
            product = multiply_exactly(g, w, product)
        inside = (t < L)[:, None] & (j < R)[None, :]
        tl.store(row[:, None] + j[None, :], product.to(grad_proj.dtype.element_ty), mask=inside)
    tl.store(row[None, :] + R + f[:, None], total.to(grad_proj.dtype.element_ty), mask=mask)

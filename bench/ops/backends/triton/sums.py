"""Triton kernels that add up what blocks left behind, in a fixed order, and reorder B and C for the backward."""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def merge(
    parts, other, skip, out, x, grad_d, rows, d,
    K: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr, WITH_D: tl.constexpr,
):  # fmt: skip
    """Write out: the sum of K partial results (K, rows, d) in a fixed order, plus skip (d,) times other (rows, d).

    WITH_D: also sum other * x over this block's rows into grad_d (row blocks, d).
    """
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < d)[None, :]
    at = r[:, None] * d + c[None, :]
    weight = tl.load(skip + c, mask=c < d, other=0.0)
    factor = tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    total = factor * weight[None, :]
    for i in tl.static_range(K):
        total += tl.load(parts + i * rows.to(tl.int64) * d + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
    if WITH_D:
        product = factor * tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_d + tl.program_id(0) * d + c, tl.sum(product, axis=0), mask=c < d)


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
def merge_bc(
    grad_bc, grad_proj, order, L, k, batch_k, ncb, pb, pk, ps,
    R: tl.constexpr, N2: tl.constexpr, NP2: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Sum grad_bc (ncb, s, 2N, L) over channel blocks and put it where B and C came from."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    s = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, NP2)
    mask = (f < N2)[:, None] & (t < L)[None, :]
    total = tl.zeros([NP2, T], tl.float32)
    for i in range(ncb):
        at = (i * batch_k + s) * N2 * L + f[:, None] * L + t[None, :]
        total += tl.load(grad_bc + at, mask=mask, other=0.0).to(tl.float32)
    pixel = tl.load(order + (s % k) * L + t, mask=t < L, other=0)
    to = (s // k) * pb + (s % k) * pk + pixel[None, :] * ps + R + f[:, None]
    tl.store(grad_proj + to, total.to(grad_proj.dtype.element_ty), mask=mask)

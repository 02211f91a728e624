"""Functions that several Triton kernels share: step sizes, and moves between tiles and vectors.

A tile [CB, T] is T positions of CB channels; a thread keeps all positions of its channels in registers.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# The body of a kernel is Triton's language, not Python: types are the compiler's, and it knows no (*a, b).

from __future__ import annotations

import os

import triton
import triton.language as tl

from bench.ops.backends.triton.lanes import log2

# Sizes that a kernel is not compiled anew for. By itself Triton makes a variant for each that is 1 or a multiple of 16:
# at another resolution a network's stages then compile for a minute what runs the same, and a size of 1 is not even a
# value of the kernel's language any more. Channels and their strides stay out: their loads gain by it.
SIZES = ("L", "span", "chunks", "nseg", "nchunk", "k", "pb", "pk", "ps", "batch_k", "resume", "save")
LOG2E = tl.constexpr(1.4426950408889634)
LOG2E_LOW = tl.constexpr(1.925963033500946e-08)  # log2(e) minus its float32 rounding
LN2 = tl.constexpr(0.6931471805599453)
# A GPU's exp2 is too small by a relative 2e-8 in the mean (measured on an H200), which a state adds up over its memory:
# the gradient of A missed its limit. The interpreter's exp2 is exact.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXP2_SHIFT = tl.constexpr(0.0 if INTERPRETED else 2.1e-8)
# The type that is computed with less care, on tensor cores and by special functions, for it is rounded more than that
# costs. Triton's interpreter has none of these instructions, and multiplies the bits of bfloat16 as integers.
NARROW = tl.constexpr(tl.float64 if INTERPRETED else tl.bfloat16)


@triton.jit
def decay(a2, step):
    """exp(A * step), of a2 = A * log2(e)."""
    return tl.exp2(a2 * step + EXP2_SHIFT)


@triton.jit
def exp_negative(x):
    """exp(x) for x <= 0 with a relative error that does not grow with |x|, as exp2 of a rounded product would."""
    z = x * LOG2E
    low = tl.fma(x, LOG2E, -z) + x * LOG2E_LOW
    e = tl.exp2(z)
    return tl.fma(e, low * LN2, e)


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1]: polynomial of degree 10, relative error 1.2e-7."""
    p = e * -0.003243866842240095 + 0.019850749522447586
    p = p * e - 0.05695819482207298
    p = p * e + 0.10603519529104233
    p = p * e - 0.1530551314353943
    p = p * e + 0.19675911962985992
    p = p * e - 0.2495412826538086
    p = p * e + 0.3332996070384979
    p = p * e - 0.4999990165233612
    p = p * e + 1.0
    return p * e


@triton.jit
def softplus(x, NARROWED: tl.constexpr):
    """log(1 + exp(x)); above 20 that rounds to x, which torch returns there. NARROWED: to an absolute 3e-7."""
    if NARROWED:
        return tl.maximum(x, 0.0) + LN2 * log2(1.0 + tl.exp2(-tl.abs(x) * LOG2E))
    else:
        return tl.maximum(x, 0.0) + log1p_unit(exp_negative(-tl.abs(x)))


@triton.jit
def softplus_slope(s, NARROWED: tl.constexpr):
    """The derivative of softplus where it is s: 1 - exp(-s). NARROWED: to an absolute 1e-7."""
    exact = 1.0 - tl.exp2(s * -LOG2E)
    if NARROWED:
        return exact
    else:
        small = s * (1.0 - s * (0.5 - s * (1.0 / 6 - s * (1.0 / 24 - s * (1.0 / 120 - s * (1.0 / 720))))))
        return tl.where(s < 0.3, small, exact)


@triton.jit
def row(tile, index, i: tl.constexpr):
    """Row i of a tile whose first axis lies in registers: the compiler folds this to a register name."""
    return tl.sum(tl.where(index[:, None] == i, tile, -0.0), axis=0)


@triton.jit
def spread(tile, T: tl.constexpr, CB: tl.constexpr):
    """The T columns (a power of two, at most 64) of a tile [CB, T] as T vectors [CB]."""
    parts = (tile,)
    for level in tl.static_range(6):
        if (1 << level) < T:
            even = ()
            odd = ()
            for i in tl.static_range(1 << level):
                a, b = tl.split(tl.reshape(parts[i], [CB, T >> (level + 1), 2]))
                even += (a,)
                odd += (b,)
            parts = even + odd
    out = ()
    for i in tl.static_range(T):
        out += (tl.reshape(parts[i], [CB]),)
    return out


@triton.jit
def stack(columns, T: tl.constexpr, CB: tl.constexpr):
    """T vectors [CB] (a power of two, at most 64) as a tile [CB, T]; a thread keeps its own channel."""
    parts = columns
    for level in tl.static_range(6):
        if (1 << level) < T:
            joined = ()
            for i in tl.static_range(T >> (level + 1)):
                joined += (tl.reshape(tl.join(parts[i], parts[i + (T >> (level + 1))]), [CB, 2 << level]),)
            parts = joined
    return tl.reshape(parts[0], [CB, T])


@triton.jit
def sum_last(tile, T: tl.constexpr, CB: tl.constexpr):
    """Sum of [T, CB] over CB by halves: one transposition through shared memory, then additions within threads.

    tl.sum would shuffle every value five times, here the larger part of the kernel.
    """
    total = tile
    for level in tl.static_range(6):
        if (1 << level) < CB:
            a, b = tl.split(tl.reshape(total, [T, CB >> (level + 1), 2]))
            total = a + b
    return tl.reshape(total, [T])


@triton.jit
def load_weights(weight, bias, at, mask, R: tl.constexpr, HAS_BIAS: tl.constexpr, CB: tl.constexpr):
    """What turns features into step sizes: R weights and the bias of each channel, as a tuple of [CB]."""
    parts = ()
    for i in tl.static_range(R):
        parts += (tl.load(weight + at * R + i, mask=mask, other=0.0),)
    if HAS_BIAS:
        return parts + (tl.load(bias + at, mask=mask, other=0.0),)
    else:
        return parts + (tl.zeros([CB], tl.float32),)


@triton.jit
def load_steps(
    delta, proj, c, pixel, both, ys, ps, R: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """What step sizes at T pixels are made of: a tuple of R step-size features [T], or of one tile [CB, T]."""
    parts = ()
    if DIRECT:
        parts = (tl.load(delta + pixel[None, :] * ys + c[:, None], mask=both, other=0.0),)
    for j in tl.static_range(R):
        parts += (tl.load(proj + pixel * ps + j),)
    return parts


@triton.jit
def raw_steps(parts, weights, R: tl.constexpr, DIRECT: tl.constexpr, T: tl.constexpr, CB: tl.constexpr):
    """Step sizes before softplus, [CB, T]."""
    raw = tl.broadcast_to(weights[R][:, None], [CB, T])
    if DIRECT:
        raw += parts[0].to(tl.float32)
    for j in tl.static_range(R):
        raw += weights[j][:, None] * parts[j].to(tl.float32)[None, :]
    return raw

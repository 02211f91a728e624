"""The Triton kernel of the walk forward of one state in bfloat16: `walk_forward` without shared memory.

A lane is a channel. What all channels of a position share is read by two lanes a position and passed on by shuffles.
Addresses are those of `walks.py`.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.lanes import bits, from_lane
from bench.ops.backends.triton.tiles import LOG2E, SIZES, decay, load_weights, softplus


@triton.jit
def _load_line(x, delta, proj, order, t, L, c, mask, lane, xs, ys, ps, R: tl.constexpr, DIRECT: tl.constexpr):
    """Of positions t to t + 15: x by position, step sizes by position, and the projections, two a position and lane."""
    pixel = tl.load(order + tl.minimum(t + lane // 2, L - 1))
    inputs = ()
    steps = ()
    for i in tl.static_range(16):
        p = from_lane(pixel, 2 * i)
        inputs += (tl.load(x + p * xs + c, mask=mask, other=0.0),)
        if DIRECT:
            steps += (tl.load(delta + p * ys + c, mask=mask, other=0.0),)
    features = ()
    for j in tl.static_range(0, R + 2, 2):
        features += (tl.load(proj + pixel * ps + tl.minimum(j + lane % 2, R + 1)),)
    return inputs, steps, features


@triton.jit(do_not_specialize=SIZES)
def walk_lines(
    x, delta, proj, weight, bias, A, y, carry, start_state, order,
    L, span, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, resume, save,
    R: tl.constexpr, K: tl.constexpr, DIRECT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Walk positions seg * span to (seg + 1) * span of a sequence of one state; see `walk_forward`. K: 16."""
    lane = tl.arange(0, 32)
    c = tl.program_id(0) * 32 + lane
    seg = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    x += image * xb + direction * xk
    proj += image * pb + direction * pk
    y += image * yb + direction * yk + c
    delta += image * yb + direction * yk
    order += direction * L
    a2 = tl.load(A + direction * d + c, mask=mask, other=0.0) * LOG2E
    h = tl.zeros([32], tl.float32)
    if resume != 0:
        h = tl.load(start_state + (s * nseg + seg) * d + c, mask=mask, other=0.0)
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, 32)
    first = seg * span
    last = tl.minimum(first + span, L)
    until = tl.where(mask, last, first)  # nothing is written for channels that are not there
    carry += ((s * nchunk + first // K) * tl.num_programs(0) + tl.program_id(0)) * 32 + lane
    # A tile is loaded while the one before it is walked.
    next_x, next_steps, next_row = _load_line(x, delta, proj, order, first, L, c, mask, lane, xs, ys, ps, R, DIRECT)
    for t in range(first, last, K):
        if save != 0:
            tl.store(carry, h.to(carry.dtype.element_ty))
            carry += tl.num_programs(0) * 32
        pixel = tl.load(order + tl.minimum(t + lane // 2, L - 1))
        steps = ()
        inputs = ()
        row = ()
        for j in tl.static_range((R + 3) // 2):
            row += (bits(next_row[j].to(tl.float32)),)
        for i in tl.static_range(16):
            step = weights[R]
            if DIRECT:
                step += next_steps[i].to(tl.float32)
            for j in tl.static_range(R):
                step += weights[j] * from_lane(row[j // 2], 2 * i + j % 2).to(tl.float32, bitcast=True)
            steps += (tl.where(last > t + i, softplus(step, True), 0.0),)
            inputs += (steps[i] * next_x[i].to(tl.float32),)
        next_x, next_steps, next_row = _load_line(x, delta, proj, order, t + K, L, c, mask, lane, xs, ys, ps, R, DIRECT)
        for i in tl.static_range(16):
            b = from_lane(row[R // 2], 2 * i + R % 2).to(tl.float32, bitcast=True)
            cc = from_lane(row[(R + 1) // 2], 2 * i + (R + 1) % 2).to(tl.float32, bitcast=True)
            h = decay(a2, steps[i]) * h + inputs[i] * b
            to = y + from_lane(pixel, 2 * i) * ys
            tl.store(to, (h * cc).to(y.dtype.element_ty), mask=until > t + i)

"""Triton kernels of the walk forward in bfloat16: `walk_forward` for 16 states and for one, shared out otherwise.

16 states: lane 4g + t of a warp keeps states 4t to 4t + 3 of the block's channels 4g to 4g + 3. So B is read once for
four channels, C once for 8 positions, and tensor cores sum outputs over states, where `walk_forward` reads both for
each channel from shared memory. Step sizes are computed by lanes of a channel each. One state: a lane is a channel, and
nothing is moved through shared memory. Addresses are those of `walks.py`.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.lanes import CUT_OFF, bits, from_lane, from_quad, multiply_add
from bench.ops.backends.triton.tiles import LOG2E, SIZES, decay, load_weights, softplus, spread, stack

POSITIONS = tl.constexpr(8)  # of a tile: the columns of an accumulator


@triton.jit
def _load_tile(x, delta, proj, order, t, L, c, mask, lane, xs, ys, ps, R: tl.constexpr, DIRECT: tl.constexpr):
    """Of positions t to t + 7: x by position, step sizes by position or features, and B and C of a lane's states."""
    pixel = tl.load(order + tl.minimum(t + lane // 4, L - 1))  # that of position g in quad g
    inputs = ()
    steps = ()
    for i in tl.static_range(POSITIONS):
        p = from_lane(pixel, 4 * i)
        inputs += (tl.load(x + p * xs + c, mask=mask, other=0.0),)
        if DIRECT:
            steps += (tl.load(delta + p * ys + c, mask=mask, other=0.0),)
    row = proj + pixel * ps
    for j in tl.static_range((R + 3) // 4):
        steps += (tl.load(row + 4 * j + lane % 4),)
    bc = ()
    for j in tl.static_range(8):
        bc += (tl.load(row + R + j // 4 * 16 + lane % 4 * 4 + j % 4),)
    return inputs, steps, bc


@triton.jit(do_not_specialize=SIZES)
def walk_quads(
    x, delta, proj, weight, bias, A, y, carry, start_state, order,
    L, span, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, resume, save,
    R: tl.constexpr, K: tl.constexpr, DIRECT: tl.constexpr, HAS_BIAS: tl.constexpr, AHEAD: tl.constexpr = False,
):  # fmt: skip
    """Walk positions seg * span to (seg + 1) * span of a sequence; see `walk_forward`. K: a multiple of 8."""
    lane = tl.arange(0, 32)
    four = tl.arange(0, 4)
    first_c = tl.program_id(0) * 32
    c = first_c + lane  # whose step sizes a lane computes
    mine = first_c + lane // 4 * 4  # the first of the channels whose states it keeps
    seg = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    kept = mine[:, None] + four[None, :] < d
    x += image * xb + direction * xk
    proj += image * pb + direction * pk
    y += image * yb + direction * yk
    delta += image * yb + direction * yk
    order += direction * L
    state_at = lane % 4 * 4 * d + mine
    A += direction * d * 16
    start_state += (s * nseg + seg) * 16 * d
    by_state_a = ()
    by_state_h = ()
    for j in tl.static_range(4):
        tile = (state_at + j * d)[:, None] + four[None, :]
        by_state_a += spread(tl.load(A + tile, mask=kept, other=0.0) * LOG2E, 4, 32)
        by_state_h += spread(
            tl.load(start_state + tile, mask=kept & (four[None, :] < 4 * resume), other=0.0).to(tl.float32), 4, 32
        )
    a2 = ()
    h = ()
    for i in tl.static_range(16):  # state i % 4 of channel i // 4
        a2 += (by_state_a[i % 4 * 4 + i // 4],)
        h += (by_state_h[i % 4 * 4 + i // 4],)
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, 32)
    first = seg * span
    last = tl.minimum(first + span, L)
    carry += (s * nchunk + first // K) * 16 * d + state_at
    # A tile is loaded while the one before it is walked.
    if AHEAD:
        next_x, next_steps, next_bc = _load_tile(x, delta, proj, order, first, L, c, mask, lane, xs, ys, ps, R, DIRECT)
    for chunk in range(first, last, K):
        if save != 0:
            for j in tl.static_range(4):
                states = stack((h[j], h[4 + j], h[8 + j], h[12 + j]), 4, 32)
                tl.store(carry[:, None] + j * d + four[None, :], states.to(carry.dtype.element_ty), mask=kept)
            carry += 16 * d
        for t in range(chunk, tl.minimum(chunk + K, last), POSITIONS):
            if not AHEAD:
                next_x, next_steps, next_bc = _load_tile(
                    x, delta, proj, order, t, L, c, mask, lane, xs, ys, ps, R, DIRECT
                )
            steps = ()
            inputs = ()
            for i in tl.static_range(POSITIONS):
                step = weights[R]
                if DIRECT:
                    step += next_steps[i].to(tl.float32)
                for j in tl.static_range(R):
                    feature = from_lane(bits(next_steps[j // 4].to(tl.float32)), 4 * i + j % 4)
                    step += weights[j] * feature.to(tl.float32, bitcast=True)
                steps += (tl.where(t + i < last, softplus(step, True), 0.0),)
                inputs += (steps[i] * next_x[i].to(tl.float32),)
            bc = ()
            for j in tl.static_range(8):
                bc += (next_bc[j].to(tl.float32),)
            if AHEAD:
                next_x, next_steps, next_bc = _load_tile(
                    x, delta, proj, order, t + POSITIONS, L, c, mask, lane, xs, ys, ps, R, DIRECT
                )
            zero = tl.zeros([32], tl.float32)
            first_two = (zero, zero, zero, zero)  # outputs of two channels a lane, at two positions
            last_two = (zero, zero, zero, zero)
            for i in tl.static_range(POSITIONS):
                b = ()
                cc = ()  # C in the column of this position
                for j in tl.static_range(4):
                    b += (from_lane(bits(bc[j]), 4 * i + lane % 4).to(tl.float32, bitcast=True),)
                    cc += (tl.where(lane // 4 == i, bc[4 + j], 0.0),)
                new = ()
                for m in tl.static_range(4):
                    step = from_quad(steps[i], m)
                    u = from_quad(inputs[i], m)
                    for j in tl.static_range(4):
                        new += (decay(a2[4 * m + j], step) * h[4 * m + j] + u * b[j],)
                h = new
                first_two = multiply_add(h[0], h[4], h[1], h[5], cc[0], cc[1], first_two)
                first_two = multiply_add(h[2], h[6], h[3], h[7], cc[2], cc[3], first_two)
                last_two = multiply_add(h[8], h[12], h[9], h[13], cc[0], cc[1], last_two)
                last_two = multiply_add(h[10], h[14], h[11], h[15], cc[2], cc[3], last_two)
            for i in tl.static_range(2):
                at = t + lane % 4 * 2 + i
                pixel = tl.load(order + tl.minimum(at, L - 1))
                out = stack((first_two[i], first_two[2 + i], last_two[i], last_two[2 + i]), 4, 32) * (1.0 + CUT_OFF)
                to = y + (pixel * ys + mine)[:, None] + four[None, :]
                tl.store(to, out.to(y.dtype.element_ty), mask=kept & (at < last)[:, None])


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
    R: tl.constexpr, K: tl.constexpr, DIRECT: tl.constexpr, HAS_BIAS: tl.constexpr, AHEAD: tl.constexpr = True,
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
    h = tl.load(start_state + (s * nseg + seg) * d + c, mask=mask & (lane < 32 * resume), other=0.0).to(tl.float32)
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, 32)
    first = seg * span
    last = tl.minimum(first + span, L)
    carry += (s * nchunk + first // K) * d + c
    # A tile is loaded while the one before it is walked.
    next_x, next_steps, next_row = _load_line(x, delta, proj, order, first, L, c, mask, lane, xs, ys, ps, R, DIRECT)
    for t in range(first, last, K):
        if save != 0:
            tl.store(carry, h.to(carry.dtype.element_ty), mask=mask)
            carry += d
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
            steps += (tl.where(t + i < last, softplus(step, True), 0.0),)
            inputs += (steps[i] * next_x[i].to(tl.float32),)
        next_x, next_steps, next_row = _load_line(x, delta, proj, order, t + K, L, c, mask, lane, xs, ys, ps, R, DIRECT)
        for i in tl.static_range(16):
            b = from_lane(row[R // 2], 2 * i + R % 2).to(tl.float32, bitcast=True)
            cc = from_lane(row[(R + 1) // 2], 2 * i + (R + 1) % 2).to(tl.float32, bitcast=True)
            h = decay(a2, steps[i]) * h + inputs[i] * b
            to = y + from_lane(pixel, 2 * i) * ys
            tl.store(to, (h * cc).to(y.dtype.element_ty), mask=c < tl.where(t + i < last, d, 0))

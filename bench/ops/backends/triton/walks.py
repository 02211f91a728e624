"""Triton kernels that walk sequences position by position, with all states of 32 channels in one warp.

A thread is a channel and keeps its n states in registers. Positions are read where they lie (channels last), in the
order given by a table, so that nothing is flipped or transposed. Sequences have the index s = image * k + direction.

Addresses, also in `backward.py`: x and grad_y lie at image * xb + direction * xk + pixel * xs + channel; the
per-direction tensors (output, step sizes, gradients of both) at image * yb + direction * yk + pixel * ys + channel;
the projections at image * pb + direction * pk + pixel * ps + feature, features being r of the step size, n of B and n
of C. A is (k,n,d). What the backward reads for one state after the other lies in groups of G states side by side, G
being 2 where n is even: the states kept are carry (s, chunk, block of channels, group, 32, G).
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.tiles import (
    LOG2E,
    NARROW,
    SIZES,
    decay,
    load_steps,
    load_weights,
    raw_steps,
    row,
    softplus,
    spread,
    stack,
)


@triton.jit
def load_decay(A, c, mask, state, d, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr):
    """The decays A * log2(e) as [NP, CB]; padded states get 0."""
    a2 = tl.zeros([NP, CB], tl.float32)
    for i in tl.static_range(N):
        a_i = tl.load(A + i * d + c, mask=mask, other=0.0) * LOG2E
        a2 = tl.where(state[:, None] == i, a_i[None, :], a2)
    return a2


@triton.jit(do_not_specialize=SIZES)
def walk_forward(
    x, delta, proj, weight, bias, A, D, y, carry, start_state, end_state, end_step, order,
    L, span, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, resume, save,
    R: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    G: tl.constexpr, DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
    END: tl.constexpr,
):  # fmt: skip
    """Walk positions seg * span to (seg + 1) * span of a sequence.

    resume: begin from start_state (s, seg, N, d) instead of zero. END: write the last state and the sum of the steps
    instead of outputs. save: write the state before every K-th position to carry. Both are no constants, so
    that training and evaluation share one compiled kernel.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    seg = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    state = tl.arange(0, NP)
    both = tl.arange(0, 2 * NP)
    feature = R + tl.where(both < NP, both, both - NP + N)
    bc_mask = tl.where(both < NP, both, both - NP) < N

    x += image * xb + direction * xk
    proj += image * pb + direction * pk
    y += image * yb + direction * yk
    delta += image * yb + direction * yk
    order += direction * L
    a2 = load_decay(A + direction * d * N, c, mask, state, d, N, NP, CB)
    h = tl.zeros([NP, CB], tl.float32)
    if resume != 0:
        for i in tl.static_range(N):
            h_i = tl.load(start_state + ((s * nseg + seg) * N + i) * d + c, mask=mask, other=0.0)
            h = tl.where(state[:, None] == i, h_i[None, :], h)
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)

    first = seg * span
    last = tl.minimum(first + span, L)
    carry += ((s * nchunk + first // K) * tl.num_programs(0) + tl.program_id(0)) * N * CB
    in_group = tl.arange(0, CB)[:, None] * G + tl.arange(0, G)[None, :]
    total = tl.zeros([CB], tl.float32)
    tt = tl.arange(0, T)
    # A tile is loaded while the one before it is walked, and its pixels one tile earlier still.
    pixel = tl.load(order + tl.minimum(first + tt, L - 1))
    next_pixel = tl.load(order + tl.minimum(first + T + tt, L - 1))
    x_next = tl.load(x + pixel[None, :] * xs + c[:, None], mask=mask[:, None], other=0.0)
    bc_next = tl.load(proj + pixel[:, None] * ps + feature[None, :], mask=bc_mask[None, :], other=0.0)
    parts = load_steps(delta, proj, c, pixel, mask[:, None], ys, ps, R, DIRECT)
    for chunk in range(first, last, K):
        if save != 0:
            for g in tl.static_range(0, N, G):
                kept = ()
                for i in tl.static_range(G):
                    kept += (row(h, state, g + i).to(carry.dtype.element_ty),)
                tl.store(carry + g * CB + in_group, stack(kept, G, CB))
            carry += tl.num_programs(0) * N * CB
        for t in range(chunk, tl.minimum(chunk + K, last), T):
            live = t + tt < last
            if R > 4:  # held through the loop, many weights would spill
                weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
            step = raw_steps(parts, weights, R, DIRECT, T, CB)
            if SOFTPLUS:
                step = softplus(step, x.dtype.element_ty == NARROW)
            step = tl.where(live[None, :], step, 0.0)
            x_tile = x_next.to(tl.float32)
            steps = spread(step, T, CB)
            inputs = spread(step * x_tile, T, CB)
            bc_rows = spread(tl.trans(bc_next.to(tl.float32)), T, 2 * NP)
            here = pixel
            pixel = next_pixel
            next_pixel = tl.load(order + tl.minimum(t + 2 * T + tt, L - 1))
            x_next = tl.load(x + pixel[None, :] * xs + c[:, None], mask=mask[:, None], other=0.0)
            bc_next = tl.load(proj + pixel[:, None] * ps + feature[None, :], mask=bc_mask[None, :], other=0.0)
            parts = load_steps(delta, proj, c, pixel, mask[:, None], ys, ps, R, DIRECT)
            outs = ()
            for i in tl.static_range(T):
                B_t, C_t = tl.split(tl.trans(tl.reshape(bc_rows[i], [2, NP])))
                h = decay(a2, steps[i][None, :]) * h + B_t[:, None] * inputs[i][None, :]
                if not END:
                    outs += (tl.sum(h * C_t[:, None], axis=0),)
            if END:
                total += tl.sum(step, axis=1)
            else:
                out = stack(outs, T, CB)
                if HAS_D:
                    out += skip[:, None] * x_tile
                inside = mask[:, None] & live[None, :]
                tl.store(y + here[None, :] * ys + c[:, None], out.to(y.dtype.element_ty), mask=inside)
    if END:
        for i in tl.static_range(N):
            tl.store(end_state + ((s * nseg + seg) * N + i) * d + c, row(h, state, i), mask=mask)
        tl.store(end_step + (s * nseg + seg) * d + c, total, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def walk_adjoint(
    grad_y, delta, proj, weight, bias, A, end_state, end_step, order,
    L, span, nseg, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps,
    R: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr, T: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Walk a segment backwards from a zero adjoint; write what it passes on to the segment before, and its steps."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    seg = tl.program_id(1) + 1  # nothing lies before the first
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    state = tl.arange(0, NP)
    grad_y += image * xb + direction * xk
    proj += image * pb + direction * pk
    delta += image * yb + direction * yk
    order += direction * L
    a2 = load_decay(A + direction * d * N, c, mask, state, d, N, NP, CB)
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
    feature = R + N + state
    passed = tl.zeros([NP, CB], tl.float32)
    total = tl.zeros([CB], tl.float32)
    first = seg * span
    last = tl.minimum(first + span, L)
    tt = tl.arange(0, T)
    pixel = tl.load(order + tl.maximum(last - 1 - tt, 0))
    next_pixel = tl.load(order + tl.maximum(last - 1 - T - tt, 0))
    gy_next = tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=mask[:, None], other=0.0)
    c_next = tl.load(proj + pixel[:, None] * ps + feature[None, :], mask=(state < N)[None, :], other=0.0)
    parts = load_steps(delta, proj, c, pixel, mask[:, None], ys, ps, R, DIRECT)
    for done in range(0, last - first, T):
        live = done + tt < last - first
        step = raw_steps(parts, weights, R, DIRECT, T, CB)
        if SOFTPLUS:
            step = softplus(step, grad_y.dtype.element_ty == NARROW)
        step = tl.where(live[None, :], step, 0.0)
        steps = spread(step, T, CB)
        gys = spread(tl.where(live[None, :], gy_next.to(tl.float32), 0.0), T, CB)
        c_rows = spread(tl.trans(c_next.to(tl.float32)), T, NP)
        pixel = next_pixel
        next_pixel = tl.load(order + tl.maximum(last - 1 - done - 2 * T - tt, 0))
        gy_next = tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=mask[:, None], other=0.0)
        c_next = tl.load(proj + pixel[:, None] * ps + feature[None, :], mask=(state < N)[None, :], other=0.0)
        parts = load_steps(delta, proj, c, pixel, mask[:, None], ys, ps, R, DIRECT)
        for i in tl.static_range(T):
            passed = decay(a2, steps[i][None, :]) * (c_rows[i][:, None] * gys[i][None, :] + passed)
        total += tl.sum(step, axis=1)
    for i in tl.static_range(N):
        tl.store(end_state + ((s * nseg + seg) * N + i) * d + c, row(passed, state, i), mask=mask)
    tl.store(end_step + (s * nseg + seg) * d + c, total, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def join_segments(
    A, end_state, end_step, start_state, nseg, k, d,
    N: tl.constexpr, CB: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Turn what segments add into what they start from: start' = exp(A * sum of steps) * start + end.

    start_state is (s, seg, N, d); if REVERSE, the `state` of the backward.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    n = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    mask = c < d
    a2 = tl.load(A + ((s % k) * N + n) * d + c, mask=mask, other=0.0) * LOG2E
    h = tl.zeros([CB], tl.float32)
    for j in range(nseg):
        seg = j
        if REVERSE:
            seg = nseg - 1 - j
        at = ((s * nseg + seg) * N + n) * d + c
        if REVERSE:
            block = (s * nseg + seg) * tl.num_programs(0) + tl.program_id(0)
            tl.store(start_state + ((block * N + n) * CB + tl.arange(0, CB)) * 2, h)
        else:
            tl.store(start_state + at, h, mask=mask)
        if j < nseg - 1:  # nothing follows the last
            steps = tl.load(end_step + (s * nseg + seg) * d + c, mask=mask, other=0.0)
            h = decay(a2, steps) * h + tl.load(end_state + at, mask=mask, other=0.0)

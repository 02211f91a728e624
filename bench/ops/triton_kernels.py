"""Triton kernels of the selective scan; `triton_scan.py` launches them.

One warp walks 32 channels of one direction of one image: a thread is a channel and keeps its n states in registers.
Positions are read where they lie (channels last), in the order given by a table, so that nothing is flipped or
transposed. Sequences have the index s = image * k + direction.

Addresses: x and grad_y lie at image * xb + direction * xk + pixel * xs + channel, the per-direction tensors (output,
step sizes, gradients of both) at image * yb + direction * yk + pixel * ys + channel, and the projections at
image * pb + direction * pk + pixel * ps + feature, features being r of the step size, n of B and n of C.

The walks forward and backward keep states as [n, channels] and move position by position; the main backward kernel
takes T positions of one state at once, [T, channels], so that the states of T positions are in registers when the
adjoint walks back over them.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# The body of a kernel is Triton's language, not Python: types are the compiler's, and it knows no (*a, b).

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOG2E_LOW = tl.constexpr(1.925963033500946e-08)  # log2(e) minus its float32 rounding
LN2 = tl.constexpr(0.6931471805599453)


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
def softplus(x):
    """log(1 + exp(x)); above 20 the logarithm is less than half a unit in the last place, so x comes back, as in torch."""
    return tl.maximum(x, 0.0) + log1p_unit(exp_negative(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), the derivative of softplus."""
    e = exp_negative(-tl.abs(x))
    root = tl.rsqrt(1.0 + e)  # its square is the reciprocal, at half the instructions of a division
    return tl.where(x >= 0, 1.0, e) * (root * root)


@triton.jit
def row(tile, index, i: tl.constexpr):
    """Row i of a tile whose first axis lies in registers: the compiler folds this to a register name."""
    return tl.sum(tl.where(index[:, None] == i, tile, -0.0), axis=0)


@triton.jit
def load_decay(A, c, mask, state, d, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr):
    """The decays A * log2(e) as [NP, CB]; padded states get 0."""
    a2 = tl.zeros([NP, CB], tl.float32)
    for i in tl.static_range(N):
        a_i = tl.load(A + c * N + i, mask=mask, other=0.0) * LOG2E
        a2 = tl.where(state[:, None] == i, a_i[None, :], a2)
    return a2


@triton.jit
def walk_forward(
    x, delta, proj, weight, bias, A, D, y, carry, start_state, end_state, end_step, order,
    L, span, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps,
    R: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr, K: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Walk positions seg * span to (seg + 1) * span of a sequence.

    START: begin from start_state (s, seg, N, d) instead of zero. END: write the last state and the sum of the steps
    instead of outputs. SAVE: write the state before every K-th position to carry (s, chunk, N, d).
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
    if START:
        for i in tl.static_range(N):
            h_i = tl.load(start_state + ((s * nseg + seg) * N + i) * d + c, mask=mask, other=0.0)
            h = tl.where(state[:, None] == i, h_i[None, :], h)
    bias_c = tl.zeros([CB], tl.float32)
    if HAS_BIAS:
        bias_c = tl.load(bias + direction * d + c, mask=mask, other=0.0)
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)
    w = ()
    for i in tl.static_range(R):
        w += (tl.load(weight + (direction * d + c) * R + i, mask=mask, other=0.0),)

    first = seg * span
    last = tl.minimum(first + span, L)
    carry += (s * nchunk + first // K) * N * d
    total = tl.zeros([CB], tl.float32)
    # Everything a position needs is loaded one position ahead: the state update hides the latency.
    pixel = tl.load(order + first)
    next_pixel = tl.load(order + tl.minimum(first + 1, L - 1))
    x_next = tl.load(x + pixel * xs + c, mask=mask, other=0.0)
    bc_next = tl.load(proj + pixel * ps + feature, mask=bc_mask, other=0.0)
    raw_next = x_next
    if DIRECT:
        raw_next = tl.load(delta + pixel * ys + c, mask=mask, other=0.0)
    low_next = ()
    for i in tl.static_range(R):
        low_next += (tl.load(proj + pixel * ps + i),)
    for chunk in range(first, last, K):
        if SAVE:
            for i in tl.static_range(N):
                tl.store(carry + i * d + c, row(h, state, i), mask=mask)
            carry += N * d
        for t in range(chunk, tl.minimum(chunk + K, last)):
            x_t = x_next.to(tl.float32)
            bc = bc_next.to(tl.float32)
            raw = bias_c
            if DIRECT:
                raw += raw_next.to(tl.float32)
            for i in tl.static_range(R):
                raw += w[i] * low_next[i].to(tl.float32)
            here = pixel
            pixel = next_pixel
            next_pixel = tl.load(order + tl.minimum(t + 2, L - 1))
            x_next = tl.load(x + pixel * xs + c, mask=mask, other=0.0)
            bc_next = tl.load(proj + pixel * ps + feature, mask=bc_mask, other=0.0)
            if DIRECT:
                raw_next = tl.load(delta + pixel * ys + c, mask=mask, other=0.0)
            low_next = ()
            for i in tl.static_range(R):
                low_next += (tl.load(proj + pixel * ps + i),)
            B_t, C_t = tl.split(tl.trans(tl.reshape(bc, [2, NP])))
            step = raw
            if SOFTPLUS:
                step = softplus(raw)
            h = tl.exp2(a2 * step[None, :]) * h + B_t[:, None] * (step * x_t)[None, :]
            if END:
                total += step
            else:
                out = tl.sum(h * C_t[:, None], axis=0)
                if HAS_D:
                    out += skip * x_t
                tl.store(y + here * ys + c, out.to(y.dtype.element_ty), mask=mask)
    if END:
        for i in tl.static_range(N):
            tl.store(end_state + ((s * nseg + seg) * N + i) * d + c, row(h, state, i), mask=mask)
        tl.store(end_step + (s * nseg + seg) * d + c, total, mask=mask)


@triton.jit
def walk_adjoint(
    grad_y, delta, proj, weight, bias, A, end_state, end_step, order,
    L, span, nseg, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps,
    R: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CB: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Walk a segment backwards from a zero adjoint; write what it passes on to the segment before, and its steps."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    seg = tl.program_id(1)
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
    bias_c = tl.zeros([CB], tl.float32)
    if HAS_BIAS:
        bias_c = tl.load(bias + direction * d + c, mask=mask, other=0.0)
    passed = tl.zeros([NP, CB], tl.float32)
    total = tl.zeros([CB], tl.float32)
    first = seg * span
    last = tl.minimum(first + span, L)
    for j in range(first, last):
        t = last - 1 - (j - first)
        pixel = tl.load(order + t)
        raw = bias_c
        if DIRECT:
            raw += tl.load(delta + pixel * ys + c, mask=mask, other=0.0).to(tl.float32)
        for i in tl.static_range(R):
            w_i = tl.load(weight + (direction * d + c) * R + i, mask=mask, other=0.0)
            raw += w_i * tl.load(proj + pixel * ps + i).to(tl.float32)
        C_t = tl.load(proj + pixel * ps + R + N + state, mask=state < N, other=0.0).to(tl.float32)
        g_t = tl.load(grad_y + pixel * xs + c, mask=mask, other=0.0).to(tl.float32)
        step = raw
        if SOFTPLUS:
            step = softplus(raw)
        passed = tl.exp2(a2 * step[None, :]) * (C_t[:, None] * g_t[None, :] + passed)
        total += step
    for i in tl.static_range(N):
        tl.store(end_state + ((s * nseg + seg) * N + i) * d + c, row(passed, state, i), mask=mask)
    tl.store(end_step + (s * nseg + seg) * d + c, total, mask=mask)


@triton.jit
def join_segments(
    A, end_state, end_step, start_state, nseg, k, d,
    N: tl.constexpr, CB: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Turn what segments add into what they start from: start' = exp(A * sum of steps) * start + end."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    n = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    mask = c < d
    a2 = tl.load(A + ((s % k) * d + c) * N + n, mask=mask, other=0.0) * LOG2E
    h = tl.zeros([CB], tl.float32)
    for j in range(nseg):
        seg = j
        if REVERSE:
            seg = nseg - 1 - j
        at = ((s * nseg + seg) * N + n) * d + c
        tl.store(start_state + at, h, mask=mask)
        steps = tl.load(end_step + (s * nseg + seg) * d + c, mask=mask, other=0.0)
        h = tl.exp2(a2 * steps) * h + tl.load(end_state + at, mask=mask, other=0.0)


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
def raw_steps(
    delta, proj, w, bias_c, c, pixel, both, live, ys, ps,
    R: tl.constexpr, DIRECT: tl.constexpr, T: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Step sizes before softplus at T pixels, [CB, T]."""
    raw = tl.broadcast_to(bias_c[:, None], [CB, T])
    if DIRECT:
        raw += tl.load(delta + pixel[None, :] * ys + c[:, None], mask=both, other=0.0).to(tl.float32)
    for j in tl.static_range(R):
        low = tl.load(proj + pixel * ps + j, mask=live, other=0.0).to(tl.float32)
        raw += w[j][:, None] * low[None, :]
    return raw


@triton.jit
def scan_backward(
    grad_y, x, delta, proj, weight, bias, A, D, carry, adjoint, fine, grad_x, grad_raw, grad_a, grad_bc, order,
    L, chunks, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, batch_k,
    R: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `chunks` chunks of K positions, last first, T positions of one state at a time.

    adjoint (s, seg, N, d): on entry exp(s_{t+1} A) q_{t+1} behind the segment; rewritten as the walk goes back.
    fine (s, seg, K/T - 1, N, d): room for the states between the chunk's tiles. grad_raw: gradient of the step size
    before softplus. grad_a (s, seg, N, d): zero on entry. grad_bc (blocks, s, 2N, L): sums over a block's channels.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    seg = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    tt = tl.arange(0, T)
    pair = tl.arange(0, 2 * T)  # B of T positions, then C of the same
    pair_t = tl.where(pair < T, pair, pair - T)
    pair_n = tl.where(pair < T, 0, N)
    x += image * xb + direction * xk
    grad_y += image * xb + direction * xk
    proj += image * pb + direction * pk
    delta += image * yb + direction * yk
    grad_x += image * yb + direction * yk
    grad_raw += image * yb + direction * yk
    order += direction * L
    A += direction * d * N + c * N
    grad_bc += (tl.program_id(0).to(tl.int64) * batch_k + s) * 2 * N * L + pair_n * L
    adjoint += (s * nseg + seg) * N * d + c
    grad_a += (s * nseg + seg) * N * d + c
    fine += (s * nseg + seg) * (K // T - 1) * N * d + c
    carry += s * nchunk * N * d + c
    bias_c = tl.zeros([CB], tl.float32)
    if HAS_BIAS:
        bias_c = tl.load(bias + direction * d + c, mask=mask, other=0.0)
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)
    w = ()
    for i in tl.static_range(R):
        w += (tl.load(weight + (direction * d + c) * R + i, mask=mask, other=0.0),)

    first_chunk = seg * chunks
    last_chunk = tl.minimum(first_chunk + chunks, nchunk)
    for back in range(first_chunk, last_chunk):
        chunk = last_chunk - 1 - (back - first_chunk)
        tiles = tl.cdiv(tl.minimum(K, L - chunk * K), T)
        for tile in range(tiles - 1):  # the states between the tiles of this chunk, again
            t0 = chunk * K + tile * T
            live = t0 + tt < L
            both = mask[:, None] & live[None, :]
            pixel = tl.load(order + t0 + tt, mask=live, other=0)
            step = raw_steps(delta, proj, w, bias_c, c, pixel, both, live, ys, ps, R, DIRECT, T, CB)
            if SOFTPLUS:
                step = softplus(step)
            u = tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0).to(tl.float32)
            steps = spread(step, T, CB)
            inputs = spread(step * u, T, CB)
            before = carry + chunk * N * d
            if tile > 0:
                before = fine + (tile - 1) * N * d
            row_at = proj + tl.load(order + t0 + pair_t) * ps + R
            row = tl.load(row_at).to(tl.float32)
            a_n = tl.load(A, mask=mask, other=0.0)
            h_n = tl.load(before, mask=mask, other=0.0)
            for n in range(N):
                B_t = spread(tl.broadcast_to(row[None, :], [CB, 2 * T]), 2 * T, CB)
                a2 = a_n * LOG2E
                h = h_n
                following = tl.minimum(n + 1, N - 1)
                row = tl.load(row_at + following).to(tl.float32)
                a_n = tl.load(A + following, mask=mask, other=0.0)
                h_n = tl.load(before + following * d, mask=mask, other=0.0)
                for i in tl.static_range(T):
                    h = tl.exp2(steps[i] * a2) * h + inputs[i] * B_t[i]
                tl.store(fine + (tile * N + n) * d, h, mask=mask)
        for tile_back in range(tiles):
            tile = tiles - 1 - tile_back
            t0 = chunk * K + tile * T
            live = t0 + tt < L
            both = mask[:, None] & live[None, :]
            pixel = tl.load(order + t0 + tt, mask=live, other=0)
            step = raw_steps(delta, proj, w, bias_c, c, pixel, both, live, ys, ps, R, DIRECT, T, CB)
            if SOFTPLUS:
                step = softplus(step)
            step = tl.where(both, step, 0.0)  # positions behind the end leave states and adjoints alone
            u = tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0).to(tl.float32)
            gy = tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=both, other=0.0).to(tl.float32)
            steps = spread(step, T, CB)
            inputs = spread(step * u, T, CB)
            gys = spread(gy, T, CB)
            through_input = ()
            through_decay = ()
            for _ in tl.static_range(T):
                through_input += (tl.zeros([CB], tl.float32),)
                through_decay += (tl.zeros([CB], tl.float32),)
            before = carry + chunk * N * d
            if tile > 0:
                before = fine + (tile - 1) * N * d
            pair_live = t0 + pair_t < L
            row_at = proj + tl.load(order + t0 + pair_t, mask=pair_live, other=0) * ps + R + pair_n
            to_bc = grad_bc + t0 + pair_t
            # What a state needs is loaded while the one before it is computed.
            row = tl.load(row_at, mask=pair_live, other=0.0).to(tl.float32)
            a_n = tl.load(A, mask=mask, other=0.0)
            h_n = tl.load(before, mask=mask, other=0.0)
            passed_n = tl.load(adjoint, mask=mask, other=0.0)
            grad_a_n = tl.load(grad_a, mask=mask, other=0.0)
            for n in range(N):
                bc = spread(tl.broadcast_to(row[None, :], [CB, 2 * T]), 2 * T, CB)
                a_here = a_n
                a2 = a_n * LOG2E
                h = h_n
                passed = passed_n
                grad_a_here = grad_a_n
                following = tl.minimum(n + 1, N - 1)
                row = tl.load(row_at + following, mask=pair_live, other=0.0).to(tl.float32)
                a_n = tl.load(A + following, mask=mask, other=0.0)
                h_n = tl.load(before + following * d, mask=mask, other=0.0)
                passed_n = tl.load(adjoint + following * d, mask=mask, other=0.0)
                grad_a_n = tl.load(grad_a + following * d, mask=mask, other=0.0)
                decays = ()
                decayed = ()
                grads_c = ()
                for i in tl.static_range(T):
                    decays += (tl.exp2(steps[i] * a2),)
                    decayed += (decays[i] * h,)
                    h = decayed[i] + inputs[i] * bc[i]
                    grads_c += (h * gys[i],)
                grads_b = ()
                ti = ()
                td = ()
                for j in tl.static_range(T):
                    q = gys[T - 1 - j] * bc[2 * T - 1 - j] + passed
                    passed = decays[T - 1 - j] * q
                    product = q * decayed[T - 1 - j]
                    grad_a_here += product * steps[T - 1 - j]
                    td = (through_decay[T - 1 - j] + product * a_here,) + td
                    ti = (through_input[T - 1 - j] + q * bc[T - 1 - j],) + ti
                    grads_b = (q * inputs[T - 1 - j],) + grads_b
                through_decay = td
                through_input = ti
                tl.store(adjoint + n * d, passed, mask=mask)
                tl.store(grad_a + n * d, grad_a_here, mask=mask)
                sums = sum_last(tl.trans(stack(grads_b + grads_c, 2 * T, CB)), 2 * T, CB)
                tl.store(to_bc + n * L, sums, mask=pair_live)
            # Read again what would have held registers all along.
            raw = raw_steps(delta, proj, w, bias_c, c, pixel, both, live, ys, ps, R, DIRECT, T, CB)
            u = tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0).to(tl.float32)
            q_b = stack(through_input, T, CB)
            g_raw = stack(through_decay, T, CB) + q_b * u
            g_x = q_b * stack(steps, T, CB)
            if SOFTPLUS:
                g_raw *= sigmoid(raw)
            if HAS_D:
                gy = tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=both, other=0.0).to(tl.float32)
                g_x += skip[:, None] * gy
            at = pixel[None, :] * ys + c[:, None]
            tl.store(grad_raw + at, g_raw.to(grad_raw.dtype.element_ty), mask=both)
            tl.store(grad_x + at, g_x.to(grad_x.dtype.element_ty), mask=both)


@triton.jit
def merge(parts, other, skip, out, rows, d, K: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr):
    """Out = sum of K partial results (K, rows, d) in a fixed order, plus skip (d,) times other (rows, d)."""
    r = (tl.program_id(0) * RB + tl.arange(0, RB)).to(tl.int64)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    mask = (r < rows)[:, None] & (c < d)[None, :]
    at = r[:, None] * d + c[None, :]
    weight = tl.load(skip + c, mask=c < d, other=0.0)
    total = tl.load(other + at, mask=mask, other=0.0).to(tl.float32) * weight[None, :]
    for i in tl.static_range(K):
        total += tl.load(parts + i * rows.to(tl.int64) * d + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
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
        total += tl.load(grad_bc + at, mask=mask, other=0.0)
    pixel = tl.load(order + (s % k) * L + t, mask=t < L, other=0)
    to = (s // k) * pb + (s % k) * pk + pixel[None, :] * ps + R + f[:, None]
    tl.store(grad_proj + to, total.to(grad_proj.dtype.element_ty), mask=mask)

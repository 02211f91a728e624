"""The Triton kernel of the gradients: T positions of one state at a time, so that their states fit in registers.

Addresses are those of `walks.py`. A thread is a channel; the states of T positions are computed forward from the one
that was kept before them, and the adjoint then walks back over them, for one of the n states after the other. Sums over
channels (the gradients of B and C) are completed within the warp; nothing is added atomically.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# The body of a kernel is Triton's language, not Python: types are the compiler's, and it knows no (*a, b).

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.lanes import add_groups, add_quads
from bench.ops.backends.triton.tiles import (
    LOG2E,
    NARROW,
    SIZES,
    decay,
    load_weights,
    softplus,
    softplus_slope,
    spread,
    stack,
    sum_last,
)


@triton.jit(do_not_specialize=SIZES)
def scan_backward(
    grad_y, x, delta, proj, bc, weight, bias, A, D, carry, adjoint, grad_x, grad_raw, grad_a, grad_bc, grad_rest, order,
    L, chunks, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, batch_k,
    R: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, T: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `chunks` chunks of T positions, last first, one state at a time.

    adjoint (s, seg, N, d): on entry exp(s_{t+1} A) q_{t+1} behind the segment; rewritten as the walk goes back.
    bc (s, 2N, L): B and C as sequences, float32. carry (s, chunk, N, d): the state before each chunk. grad_raw: the
    gradient of the step size before softplus. grad_a (s, seg, N, d): zero on entry. grad_bc (blocks, s, 2N, L): sums
    over a block's channels, on tensor cores if bfloat16. grad_rest (s, seg, 2, d): sums over
    positions, of grad_y times x and of grad_raw before it is rounded, this only if bfloat16.
    """
    CORES: tl.constexpr = grad_bc.dtype.element_ty == NARROW
    lane = tl.arange(0, CB)
    c = tl.program_id(0) * CB + lane
    seg = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    tt = tl.arange(0, T)
    pair = tl.arange(0, 2 * T)  # B of T positions, then C of the same
    pair_t = pair % T
    x += image * xb + direction * xk
    grad_y += image * xb + direction * xk
    proj += image * pb + direction * pk
    delta += image * yb + direction * yk
    grad_x += image * yb + direction * yk
    grad_raw += image * yb + direction * yk
    order += direction * L
    A += direction * d * N + c
    bc += s * 2 * N * L + pair // T * N * L
    grad_bc += (tl.program_id(0).to(tl.int64) * batch_k + s) * 2 * N * L
    if CORES:
        sum_t = lane // 4 * 2 + lane % 2  # the sum that a lane gets
        grad_bc += lane % 4 // 2 * N * L
    else:
        sum_t = pair_t
        grad_bc += pair // T * N * L
    adjoint += (s * nseg + seg) * N * d + c
    grad_a += (s * nseg + seg) * N * d + c
    carry += s * nchunk * N * d + c
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)
    to_skip = tl.zeros([CB], tl.float32)
    to_bias = tl.zeros([CB], tl.float32)

    first_chunk = seg * chunks
    last_chunk = tl.minimum(first_chunk + chunks, nchunk)
    for back in range(first_chunk, last_chunk):
        chunk = last_chunk - 1 - (back - first_chunk)
        t0 = chunk * T
        live = t0 + tt < L
        both = mask[:, None] & live[None, :]
        pair_live = t0 + pair_t < L
        pixel = tl.load(order + t0 + tt, mask=live, other=0)
        narrow_us = spread(tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        narrow_gys = spread(tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        features = ()
        if DIRECT:
            features = spread(tl.load(delta + pixel[None, :] * ys + c[:, None], mask=both, other=0.0), T, CB)
        pixels = tl.load(order + t0 + pair_t, mask=pair_live, other=0)
        for r in tl.static_range(0, R, 2):  # two at a time: a warp shares a load of 32 words, not one of 16
            f = tl.load(proj + pixels * ps + tl.minimum(r + pair // T, R - 1)).to(tl.float32)
            features += spread(tl.broadcast_to(f[None, :], [CB, 2 * T]), 2 * T, CB)
        weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
        steps = ()
        inputs = ()
        gys = ()
        products = tl.zeros([CB], tl.float32)
        through_input = ()
        through_decay = ()
        for i in tl.static_range(T):
            step = weights[R]
            if DIRECT:
                step += features[i].to(tl.float32)
            for r in tl.static_range(R):
                step += weights[r] * features[r * T + i]
            if SOFTPLUS:
                step = softplus(step, CORES)
            steps += (tl.where(mask & (t0 + i < L), step, 0.0),)  # behind the end it leaves states and adjoints alone
            inputs += (steps[i] * narrow_us[i].to(tl.float32),)
            gys += (narrow_gys[i].to(tl.float32),)
            products += gys[i] * narrow_us[i].to(tl.float32)
            through_input += (tl.zeros([CB], tl.float32),)
            through_decay += (tl.zeros([CB], tl.float32),)
        to_skip += products
        before = carry + chunk * N * d
        row_at = bc + t0 + pair_t
        to_bc = grad_bc + t0 + sum_t
        sum_live = t0 + sum_t < L
        # What a state needs is loaded while the one before it is computed.
        row = tl.load(row_at, mask=pair_live, other=0.0)
        a_n = tl.load(A, mask=mask, other=0.0)
        h_n = tl.load(before, mask=mask, other=0.0)
        passed_n = tl.load(adjoint, mask=mask, other=0.0)
        grad_a_n = tl.load(grad_a, mask=mask, other=0.0)
        for n in range(N):
            bc_t = spread(tl.broadcast_to(row[None, :], [CB, 2 * T]), 2 * T, CB)
            a_here = a_n
            a2 = a_n * LOG2E
            h = h_n.to(tl.float32)
            passed = passed_n
            grad_a_here = grad_a_n
            following = tl.minimum(n + 1, N - 1)
            row = tl.load(row_at + following * L, mask=pair_live, other=0.0)
            a_n = tl.load(A + following * d, mask=mask, other=0.0)
            h_n = tl.load(before + following * d, mask=mask, other=0.0)
            passed_n = tl.load(adjoint + following * d, mask=mask, other=0.0)
            grad_a_n = tl.load(grad_a + following * d, mask=mask, other=0.0)
            zero = tl.zeros([CB], tl.float32)
            sums_b = (zero, zero, zero, zero)
            sums_c = (zero, zero, zero, zero)
            decays = ()
            decayed = ()
            grads_c = ()
            for i in tl.static_range(T):
                decays += (decay(a2, steps[i]),)
                decayed += (decays[i] * h,)
                h = decayed[i] + inputs[i] * bc_t[i]
                grads_c += (h * gys[i],)
                if CORES and i % 4 == 3:
                    sums_c = add_quads(sums_c, grads_c[i - 3], grads_c[i - 2], grads_c[i - 1], grads_c[i], lane, i // 4)
            grads_b = ()
            ti = ()
            td = ()
            for j in tl.static_range(T):
                q = gys[T - 1 - j] * bc_t[2 * T - 1 - j] + passed
                passed = decays[T - 1 - j] * q
                product = q * decayed[T - 1 - j]
                grad_a_here += product * steps[T - 1 - j]
                td = (through_decay[T - 1 - j] + product * a_here,) + td
                ti = (through_input[T - 1 - j] + q * bc_t[T - 1 - j],) + ti
                grads_b = (q * inputs[T - 1 - j],) + grads_b
                if CORES and j % 4 == 3:
                    sums_b = add_quads(sums_b, grads_b[0], grads_b[1], grads_b[2], grads_b[3], lane, (T - 1 - j) // 4)
            through_decay = td
            through_input = ti
            tl.store(adjoint + n * d, passed, mask=mask)
            tl.store(grad_a + n * d, grad_a_here, mask=mask)
            if CORES:
                sums = add_groups(sums_b, sums_c, lane)
            else:
                sums = sum_last(tl.trans(stack(grads_b + grads_c, 2 * T, CB)), 2 * T, CB)
            tl.store(to_bc + n * L, sums.to(grad_bc.dtype.element_ty), mask=sum_live)
        # Read again what would have held registers all along.
        pixel = tl.load(order + t0 + tt, mask=live, other=0)
        narrow_us = spread(tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        if HAS_D:
            narrow_gys = spread(tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        grads_raw = ()
        grads_x = ()
        for i in tl.static_range(T):
            g_raw = through_decay[i] + through_input[i] * narrow_us[i].to(tl.float32)
            g_x = through_input[i] * steps[i]
            if SOFTPLUS:
                g_raw *= softplus_slope(steps[i], CORES)
            if HAS_D:
                g_x += skip * narrow_gys[i].to(tl.float32)
            if grad_raw.dtype.element_ty == tl.bfloat16:
                to_bias += tl.where(t0 + i < L, g_raw, 0.0)
            grads_raw += (g_raw.to(grad_raw.dtype.element_ty),)
            grads_x += (g_x.to(grad_x.dtype.element_ty),)
        at = pixel[None, :] * ys + c[:, None]
        tl.store(grad_raw + at, stack(grads_raw, T, CB), mask=both)
        tl.store(grad_x + at, stack(grads_x, T, CB), mask=both)
    grad_rest += (s * nseg + seg) * 2 * d + c
    tl.store(grad_rest, to_skip, mask=mask)
    tl.store(grad_rest + d, to_bias, mask=mask)

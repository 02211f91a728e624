"""Triton kernels of the gradients: T positions of one state at a time, so that their states fit in registers.

Addresses are those of `triton_walks.py`. A thread is a channel; the states of T positions are computed forward and the
adjoint then walks back over them, for one of the n states after the other. Sums over channels (the gradients of B and
C) are completed within the warp; nothing is added atomically.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# The body of a kernel is Triton's language, not Python: types are the compiler's, and it knows no (*a, b).

from __future__ import annotations

import triton
import triton.language as tl

from bench.ops.backends.triton.tiles import (
    LOG2E,
    SIZES,
    decay,
    load_steps,
    load_weights,
    raw_steps,
    sigmoid,
    softplus,
    spread,
    stack,
    sum_last,
)


@triton.jit(do_not_specialize=SIZES)
def refine_states(
    x, delta, proj, bc, weight, bias, A, carry, fine, order,
    L, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps,
    R: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """From the state before a chunk of K positions to those before its second, third... tile of T positions.

    bc (s, 2N, L): B and C as sequences; carry (s, chunk, N, d); fine (s, chunk, K/T - 1, N, d). Chunks are independent.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    chunk = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    image = s // k
    direction = s % k
    mask = c < d
    tt = tl.arange(0, T)
    # Each value twice: Triton lets a warp share a load of 32 words, and repeats a smaller one in every thread.
    twice = tl.arange(0, 2 * T) % T
    x += image * xb + direction * xk
    proj += image * pb + direction * pk
    delta += image * yb + direction * yk
    order += direction * L
    A += direction * d * N + c
    bc += s * 2 * N * L
    fine += (s * nchunk + chunk) * (K // T - 1) * N * d + c
    before = carry + (s * nchunk + chunk) * N * d + c
    weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
    tiles = tl.cdiv(tl.minimum(K, L - chunk * K), T)
    for tile in range(tiles - 1):
        t0 = chunk * K + tile * T
        pixel = tl.load(order + t0 + tt)
        parts = load_steps(delta, proj, c, pixel, mask[:, None], ys, ps, R, DIRECT)
        u = tl.load(x + pixel[None, :] * xs + c[:, None], mask=mask[:, None], other=0.0).to(tl.float32)
        step = raw_steps(parts, weights, R, DIRECT, T, CB)
        if SOFTPLUS:
            step = softplus(step)
        steps = spread(step, T, CB)
        inputs = spread(step * u, T, CB)
        row = tl.load(bc + t0 + twice)
        a_n = tl.load(A, mask=mask, other=0.0)
        h_n = tl.load(before, mask=mask, other=0.0)
        for n in range(N):
            B_t = spread(tl.broadcast_to(row.to(tl.float32)[None, :], [CB, 2 * T]), 2 * T, CB)
            a2 = a_n * LOG2E
            h = h_n.to(tl.float32)
            following = tl.minimum(n + 1, N - 1)
            row = tl.load(bc + following * L + t0 + twice)
            a_n = tl.load(A + following * d, mask=mask, other=0.0)
            h_n = tl.load(before + following * d, mask=mask, other=0.0)
            for i in tl.static_range(T):
                h = decay(a2, steps[i]) * h + inputs[i] * B_t[i]
            tl.store(fine + n * d, h.to(fine.dtype.element_ty), mask=mask)
        before = fine
        fine += N * d


@triton.jit(do_not_specialize=SIZES)
def scan_backward(
    grad_y, x, delta, proj, bc, weight, bias, A, D, carry, adjoint, fine, grad_x, grad_raw, grad_a, grad_bc, order,
    L, chunks, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, batch_k,
    R: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `chunks` chunks of K positions, last first, T positions of one state at a time.

    adjoint (s, seg, N, d): on entry exp(s_{t+1} A) q_{t+1} behind the segment; rewritten as the walk goes back.
    bc (s, 2N, L): B and C as sequences. fine (s, chunk, K/T - 1, N, d): the states between the chunk's tiles.
    grad_raw: gradient of the step size before softplus. grad_a (s, seg, N, d): zero on entry. grad_bc
    (blocks, s, 2N, L): sums over a block's channels.
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
    A += direction * d * N + c
    bc += s * 2 * N * L + pair_n * L
    grad_bc += (tl.program_id(0).to(tl.int64) * batch_k + s) * 2 * N * L + pair_n * L
    adjoint += (s * nseg + seg) * N * d + c
    grad_a += (s * nseg + seg) * N * d + c
    fine += s * nchunk * (K // T - 1) * N * d + c
    carry += s * nchunk * N * d + c
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)

    first_chunk = seg * chunks
    last_chunk = tl.minimum(first_chunk + chunks, nchunk)
    for back in range(first_chunk, last_chunk):
        chunk = last_chunk - 1 - (back - first_chunk)
        tiles = tl.cdiv(tl.minimum(K, L - chunk * K), T)
        for tile_back in range(tiles):
            tile = tiles - 1 - tile_back
            t0 = chunk * K + tile * T
            live = t0 + tt < L
            both = mask[:, None] & live[None, :]
            pixel = tl.load(order + t0 + tt, mask=live, other=0)
            weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
            step = raw_steps(load_steps(delta, proj, c, pixel, both, ys, ps, R, DIRECT), weights, R, DIRECT, T, CB)
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
                before = fine + (chunk * (K // T - 1) + tile - 1) * N * d
            pair_live = t0 + pair_t < L
            row_at = bc + t0 + pair_t
            to_bc = grad_bc + t0 + pair_t
            # What a state needs is loaded while the one before it is computed.
            row = tl.load(row_at, mask=pair_live, other=0.0)
            a_n = tl.load(A, mask=mask, other=0.0)
            h_n = tl.load(before, mask=mask, other=0.0)
            passed_n = tl.load(adjoint, mask=mask, other=0.0)
            grad_a_n = tl.load(grad_a, mask=mask, other=0.0)
            for n in range(N):
                bc_t = spread(tl.broadcast_to(row.to(tl.float32)[None, :], [CB, 2 * T]), 2 * T, CB)
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
                decays = ()
                decayed = ()
                grads_c = ()
                for i in tl.static_range(T):
                    decays += (decay(a2, steps[i]),)
                    decayed += (decays[i] * h,)
                    h = decayed[i] + inputs[i] * bc_t[i]
                    grads_c += (h * gys[i],)
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
                through_decay = td
                through_input = ti
                tl.store(adjoint + n * d, passed, mask=mask)
                tl.store(grad_a + n * d, grad_a_here, mask=mask)
                sums = sum_last(tl.trans(stack(grads_b + grads_c, 2 * T, CB)), 2 * T, CB)
                tl.store(to_bc + n * L, sums.to(grad_bc.dtype.element_ty), mask=pair_live)
            # Read again what would have held registers all along.
            pixel = tl.load(order + t0 + tt, mask=live, other=0)
            weights = load_weights(weight, bias, direction * d + c, mask, R, HAS_BIAS, CB)
            raw = raw_steps(load_steps(delta, proj, c, pixel, both, ys, ps, R, DIRECT), weights, R, DIRECT, T, CB)
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

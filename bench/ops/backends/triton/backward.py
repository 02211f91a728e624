"""The Triton kernel of the gradients: T positions of a state after the other, so that their states fit in registers.

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
    grad_y, x, delta, proj, bc, weight, bias, A, D, carry, state, grad_x, grad_raw, grad_bc, grad_rest, order,
    L, chunks, nseg, nchunk, k, d, xb, xk, xs, yb, yk, ys, pb, pk, ps, batch_k,
    R: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
    DIRECT: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `chunks` chunks of T positions, last first, one state at a time.

    Groups of states are as `walks.py` says. A (k, block, group, CB, G). state (s, seg, block, N, CB, 2): on entry
    exp(s_{t+1} A) q_{t+1} behind the segment, rewritten as the walk goes back, and zero, to which the gradient of A is
    added. bc (s, chunk, group, 2T, G): B and C, float32. carry: the state before each chunk. grad_raw: the gradient
    of the step size before softplus. grad_bc (block, s, chunk, group, 2T, G): sums over a block's channels, on tensor
    cores if bfloat16. grad_rest (s, seg, 2, d): zero on entry; sums over positions, of grad_y times x and of grad_raw
    before it is rounded.
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
    blocks = tl.num_programs(0)
    group = tl.arange(0, G)[None, :]
    in_group = lane[:, None] * G + group
    x += image * xb + direction * xk
    grad_y += image * xb + direction * xk
    proj += image * pb + direction * pk
    delta += image * yb + direction * yk
    grad_x += image * yb + direction * yk
    grad_raw += image * yb + direction * yk
    order += direction * L
    A += (direction * blocks + tl.program_id(0)) * N * CB
    bc += s * nchunk * N * 2 * T
    grad_bc += (tl.program_id(0).to(tl.int64) * batch_k + s) * nchunk * N * 2 * T
    if CORES:
        sum_at = lane % 4 // 2 * T + lane // 4 * 2 + lane % 2  # the sum that a lane gets
    else:
        sum_at = pair
    state += ((s * nseg + seg) * blocks + tl.program_id(0)) * N * 2 * CB
    carry += (s * nchunk * blocks + tl.program_id(0)) * N * CB
    skip = tl.zeros([CB], tl.float32)
    if HAS_D:
        skip = tl.load(D + direction * d + c, mask=mask, other=0.0)

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
        at = grad_rest + (s * nseg + seg) * 2 * d + c
        products += tl.load(at, mask=mask, other=0.0)
        tl.store(at, products, mask=mask)
        # B, C and the kept states of a group are loaded while the group before it is computed.
        before = carry + chunk * blocks * N * CB
        row_at = bc + chunk * N * 2 * T
        to_bc = grad_bc + chunk * N * 2 * T
        rows_n = tl.load(row_at + pair[:, None] * G + group)
        h_n = tl.load(before + in_group)
        for g in range(0, N, G):
            rows = spread(rows_n, G, 2 * T)
            starts = spread(h_n, G, CB)
            if N > G:
                following = tl.minimum(g + G, N - G)
                rows_n = tl.load(row_at + following * (2 * T) + pair[:, None] * G + group)
                h_n = tl.load(before + following * CB + in_group)
            decay_rates = spread(tl.load(A + g * CB + in_group), G, CB)
            sums_g = ()
            for m in tl.static_range(G):
                bc_t = spread(tl.broadcast_to(rows[m][None, :], [CB, 2 * T]), 2 * T, CB)
                a2 = decay_rates[m] * LOG2E
                h = starts[m].to(tl.float32)
                at_state = state + (g + m) * (2 * CB) + lane[:, None] * 2 + tl.arange(0, 2)[None, :]
                passed, grad_a = spread(tl.load(at_state), 2, CB)
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
                        sums_c = add_quads(
                            sums_c, grads_c[i - 3], grads_c[i - 2], grads_c[i - 1], grads_c[i], lane, i // 4
                        )
                grads_b = ()
                ti = ()
                td = ()
                for j in tl.static_range(T - 1, -1, -1):
                    q = gys[j] * bc_t[T + j] + passed
                    passed = decays[j] * q
                    product = q * decayed[j]
                    grad_a += product * steps[j]
                    td = (through_decay[j] + product * decay_rates[m],) + td
                    ti = (through_input[j] + q * bc_t[j],) + ti
                    grads_b = (q * inputs[j],) + grads_b
                    if CORES and j % 4 == 0:
                        sums_b = add_quads(sums_b, grads_b[0], grads_b[1], grads_b[2], grads_b[3], lane, j // 4)
                through_decay = td
                through_input = ti
                tl.store(at_state, stack((passed, grad_a), 2, CB))
                if CORES:
                    sums = add_groups(sums_b, sums_c, lane)
                else:
                    sums = sum_last(tl.trans(stack(grads_b + grads_c, 2 * T, CB)), 2 * T, CB)
                sums_g += (sums.to(grad_bc.dtype.element_ty),)
            tl.store(to_bc + g * (2 * T) + sum_at[:, None] * G + group, stack(sums_g, G, 2 * T))
        # Read again what would have held registers all along.
        pixel = tl.load(order + t0 + tt, mask=live, other=0)
        narrow_us = spread(tl.load(x + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        if HAS_D:
            narrow_gys = spread(tl.load(grad_y + pixel[None, :] * xs + c[:, None], mask=both, other=0.0), T, CB)
        to_bias = tl.zeros([CB], tl.float32)
        grads_raw = ()
        grads_x = ()
        for i in tl.static_range(T):
            g_raw = through_decay[i] + through_input[i] * narrow_us[i].to(tl.float32)
            g_x = through_input[i] * steps[i]
            if SOFTPLUS:
                g_raw *= softplus_slope(steps[i], CORES)
            if SOFTPLUS:  # then it is zero behind the end
                to_bias += g_raw
            else:
                to_bias += tl.where(t0 + i < L, g_raw, 0.0)
            if HAS_D:
                g_x += skip * narrow_gys[i].to(tl.float32)
            grads_raw += (g_raw.to(grad_raw.dtype.element_ty),)
            grads_x += (g_x.to(grad_x.dtype.element_ty),)
        at = pixel[None, :] * ys + c[:, None]
        tl.store(grad_raw + at, stack(grads_raw, T, CB), mask=both)
        tl.store(grad_x + at, stack(grads_x, T, CB), mask=both)
        at = grad_rest + ((s * nseg + seg) * 2 + 1) * d + c
        to_bias += tl.load(at, mask=mask, other=0.0)
        tl.store(at, to_bias, mask=mask)

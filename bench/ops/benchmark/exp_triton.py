"""A Triton kernel that does nothing but exponentials: the ceiling of the GPU's special function units."""

from __future__ import annotations

import triton
import triton.language as tl

LANES = 128
CHAINS = 4  # independent chains a thread: one would wait for itself


@triton.jit
def exp_loop(out, rounds):  # type: ignore[no-untyped-def]
    """Each thread evaluates rounds x 4 times 2^-x, whose fixed point 0.641 keeps every value ordinary."""
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    a = at * 1e-9
    b = a + 0.25
    c = a + 0.5
    d = a + 0.75
    for _ in range(rounds):
        a = tl.exp2(-a)
        b = tl.exp2(-b)
        c = tl.exp2(-c)
        d = tl.exp2(-d)
    tl.store(out + at, a + b + c + d)

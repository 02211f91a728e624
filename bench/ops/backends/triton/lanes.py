"""Moves and sums between the lanes of a warp by its own instructions: shuffles, and products on tensor cores.

For vectors [32] of a program of one warp, an element a lane; lanes 4g to 4g + 3 are quad g. Triton's own reductions and
changes of layout go through shared memory. Tensor cores multiply in TF32: operands lose their low 13 bits, which takes
3.5e-4 of a value on average. So this is for what is rounded to bfloat16. Triton's interpreter has no such instructions;
there, and for float32, other code runs.
"""

# mypy: ignore-errors
# The body of a kernel is Triton's language, not Python: types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

CUT_OFF = tl.constexpr(3.5e-4)  # of a value, on average, where an operand is made TF32
FROM_LANE = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 31, 0xffffffff;")
LOG2 = tl.constexpr("lg2.approx.ftz.f32 $0, $1;")
# The product is D = A B + C of sizes 16 x 8, 8 x 8, 16 x 8. A lane of quad g, the t-th in it, holds A[g, t], A[g+8, t],
# A[g, t+4], A[g+8, t+4]; B[t, g], B[t+4, g]; C and D [g, 2t], [g, 2t+1], [g+8, 2t], [g+8, 2t+1].
# Here A are 4 values of a lane, and B has ones in columns $13 (rows 0 to 3) and $14 (rows 4 to 7): sums over quads.
ADD_QUADS = tl.constexpr("""{ .reg .b32 e, f; .reg .f32 p, q;
    set.eq.f32.f32 p, $12, $13; mov.b32 e, p;
    set.eq.f32.f32 q, $12, $14; mov.b32 f, q;
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {e, f}, {$8, $9, $10, $11};
}""")
# x and y: the accumulators transposed, [2i and 2i+1 as i and i+8, g]. Then sums over their columns: of x to columns
# 0 to 3, of y to columns 4 to 7; of operand rows 0 to 3, the values 2i, to even columns, of the others to odd ones.
ADD_GROUPS = tl.constexpr("""{ .reg .b32 o, e, f, g, h, a<4>, b<4>; .reg .f32 z, p, q, r, s, x<4>, y<4>;
    mov.b32 o, 0; mov.f32 z, 0f00000000;
    set.eq.f32.f32 p, $10, 0f00000000; mov.b32 e, p;
    set.eq.f32.f32 q, $10, 0f3F800000; mov.b32 f, q;
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {x0, x1, x2, x3}, {e, o, f, o}, {$2, $3}, {z, z, z, z};
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {y0, y1, y2, y3}, {e, o, f, o}, {$6, $7}, {z, z, z, z};
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {x0, x1, x2, x3}, {o, e, o, f}, {$4, $5}, {x0, x1, x2, x3};
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {y0, y1, y2, y3}, {o, e, o, f}, {$8, $9}, {y0, y1, y2, y3};
    set.eq.f32.f32 p, $11, 0f00000000; mov.b32 e, p;
    set.eq.f32.f32 q, $11, 0f3F800000; mov.b32 f, q;
    set.eq.f32.f32 r, $11, 0f40000000; mov.b32 g, r;
    set.eq.f32.f32 s, $11, 0f40400000; mov.b32 h, s;
    mov.b32 a0, x0; mov.b32 a1, x1; mov.b32 a2, x2; mov.b32 a3, x3;
    mov.b32 b0, y0; mov.b32 b1, y1; mov.b32 b2, y2; mov.b32 b3, y3;
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {x0, x1, x2, x3}, {a0, a1, a2, a3}, {e, f}, {z, z, z, z};
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {x0, x1, x2, x3}, {b0, b1, b2, b3}, {g, h}, {x0, x1, x2, x3};
    add.f32 $0, x0, x2;
    add.f32 $1, x1, x3;
}""")


@triton.jit
def bits(v):
    """The 32 bits of a float, as instructions want operands."""
    return v.to(tl.int32, bitcast=True)


@triton.jit
def from_lane(v, lane):
    """The 32 bits that a lane holds in v."""
    return tl.inline_asm_elementwise(FROM_LANE, "=r,r,r", [v, lane], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def log2(v):
    """The base-2 logarithm to an absolute 2e-7 near 1: one instruction."""
    return tl.inline_asm_elementwise(LOG2, "=f,f", [v], dtype=tl.float32, is_pure=False, pack=1)


@triton.jit
def add_quads(total, v0, v1, v2, v3, lane, i):
    """Add sums over quads of 4 vectors, the values 4i to 4i + 3, to the accumulator of 16."""
    return tl.inline_asm_elementwise(
        ADD_QUADS, "=f,=f,=f,=f,r,r,r,r,f,f,f,f,f,f,f",
        [bits(v0), bits(v1), bits(v2), bits(v3), total[0], total[1], total[2], total[3], (lane // 4).to(tl.float32),
         2.0 * i, 2.0 * i + 1.0],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def add_groups(b, c, lane):
    """Sums over all quads of two accumulators: lane 4g + t gets value 2g + t % 2, of b if t < 2, else of c."""
    transposed = (lane // 4 - lane % 4 * 2).to(tl.float32)
    column = (lane // 16 * 2 + lane // 4 % 2).to(tl.float32)
    even, odd = tl.inline_asm_elementwise(
        ADD_GROUPS, "=f,=f,r,r,r,r,r,r,r,r,f,f",
        [bits(b[0]), bits(b[1]), bits(b[2]), bits(b[3]), bits(c[0]), bits(c[1]), bits(c[2]), bits(c[3]), transposed,
         column],
        dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip
    return tl.where(lane % 2 == 0, even, odd) * (1.0 + 2 * CUT_OFF)  # values and accumulators lost it

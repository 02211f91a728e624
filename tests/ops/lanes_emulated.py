"""The instructions of `bench/ops/backends/triton/lanes.py` for Triton's interpreter, which has none of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from bench.ops.backends.triton import backward, lanes, scan, walks

LANE = np.arange(32)
QUAD, PLACE = LANE // 4, LANE % 4
Array = Any


def _cut(v: Array) -> Array:
    """What tensor cores take of a float32: all but its low 13 bits."""
    return (v.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _multiply_add(a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    left[QUAD, PLACE], left[QUAD + 8, PLACE], left[QUAD, PLACE + 4], left[QUAD + 8, PLACE + 4] = map(_cut, a)
    right[PLACE, QUAD], right[PLACE + 4, QUAD] = map(_cut, b)
    product = left @ right
    parts = product[QUAD, 2 * PLACE], product[QUAD, 2 * PLACE + 1], product[QUAD + 8, 2 * PLACE]
    parts += (product[QUAD + 8, 2 * PLACE + 1],)
    return [(p + t).astype(np.float32) for p, t in zip(parts, c, strict=True)]


def _is(v: Array, number: Array) -> Array:
    return (v == number).astype(np.float32)


def _add_groups(b: list[Array], c: list[Array], transposed: Array, column: Array) -> list[Array]:
    zero = np.zeros(32, np.float32)
    e, f, zeros = _is(transposed, 0), _is(transposed, 1), [zero] * 4

    def transpose(v: list[Array]) -> list[Array]:
        return _multiply_add([zero, e, zero, f], v[2:], _multiply_add([e, zero, f, zero], v[:2], zeros))

    total = _multiply_add(transpose(b), [_is(column, 0), _is(column, 1)], zeros)
    total = _multiply_add(transpose(c), [_is(column, 2), _is(column, 3)], total)
    return [total[0] + total[2], total[1] + total[3]]


class _Results:
    def __init__(self, values: list[Array], dtype: Any) -> None:
        self.values = [interpreter.TensorHandle(v, dtype) for v in values]

    def get_result(self, i: int) -> Any:
        return self.values[i]


def _rounded(before: Any) -> Any:
    """Triton's conversion of floats, which cuts off where a GPU rounds to bfloat16 to the nearest, ties to even."""

    def convert(v: Array, source: Any, target: Any, mode: Any) -> Array:
        if (source, target) != (tl.float32, tl.bfloat16):
            return before(v, source, target, mode)
        bits = np.asarray(v).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    return convert


def _inline_asm(self: Any, text: str, constraints: str, operands: list[Any], *rest: Any) -> _Results:
    if text == lanes.FROM_LANE.value:
        return _Results([operands[0].data[operands[1].data]], tl.int32)
    v = [o.data if o.data.dtype == np.float32 else o.data.view(np.float32) for o in operands]
    if text == lanes.LOG2.value:
        found = [np.log2(v[0])]
    elif text == lanes.ADD_QUADS.value:
        found = _multiply_add(v[:4], [_is(v[8], v[9]), _is(v[8], v[10])], v[4:8])
    else:
        assert text == lanes.ADD_GROUPS.value
        found = _add_groups(v[:4], v[4:8], v[8], v[9])
    return _Results([f.astype(np.float32) for f in found], tl.float32)


@contextmanager
def emulated() -> Iterator[None]:
    """What runs for bfloat16 alone on a GPU is interpreted: the scan's backward, softplus, walks of one state."""
    builder, narrow = interpreter.InterpreterBuilder, backward.NARROW
    before, builder.create_inline_asm = builder.create_inline_asm, _inline_asm
    backward.NARROW = walks.NARROW = tl.constexpr(tl.bfloat16)
    scan.INTERPRETED = False
    try:
        yield
    finally:
        builder.create_inline_asm = before
        backward.NARROW = walks.NARROW = narrow
        scan.INTERPRETED = True


@contextmanager
def rounding() -> Iterator[None]:
    """Round to bfloat16 as a GPU does."""
    before = interpreter._convert_float
    interpreter._convert_float = _rounded(before)
    try:
        yield
    finally:
        interpreter._convert_float = before

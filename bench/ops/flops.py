"""Exact operation counts of the scans, from shapes alone.

A MAC is one multiply-add. Convention (that of `analytic` in tests/fixtures/flops.json): a scan costs two MACs a state
and step (h = a h + b and y += C h) and one a channel and step for the D skip; the cross scan adds the step-size
projection, one MAC a rank, channel, direction and step. What is elementwise (exponentials, softplus, the products
s A, s u and (s u) B) is counted apart by `elementwise_counts` and enters no MAC figure.

Backward: one MAC for the recomputed state, then seven: the two terms of the adjoint, and the sums for B, C, s u, s and
A; two a channel and step for D; the step-size projection once again and its two gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

FORWARD_MACS_PER_STATE = 2
BACKWARD_MACS_PER_STATE = 8
Shape = Sequence[int]


def selective_scan_macs(b: int, d: int, length: int, n: int, with_d: bool = True) -> int:
    """Multiply-adds of one forward scan over b x d x length with n states."""
    return FORWARD_MACS_PER_STATE * b * d * length * n + b * d * length * with_d


def selective_scan_backward_macs(b: int, d: int, length: int, n: int, with_d: bool = True) -> int:
    """Multiply-adds of the backward of one scan, the recomputation of its states included."""
    return BACKWARD_MACS_PER_STATE * b * d * length * n + 2 * b * d * length * with_d


def cross_scan_macs(b: int, length: int, d: int, n: int, r: int, k: int) -> int:
    """Multiply-adds of the fused core: k scans over length pixels and their step-size projections of rank r."""
    return k * selective_scan_macs(b, d, length, n) + b * length * k * d * r


def cross_scan_backward_macs(b: int, length: int, d: int, n: int, r: int, k: int) -> int:
    """Multiply-adds of the backward of the fused core, recomputations included."""
    return k * selective_scan_backward_macs(b, d, length, n) + 3 * b * length * k * d * r


def elementwise_counts(b: int, d: int, length: int, n: int, k: int = 1) -> dict[str, int]:
    """Elementwise work of k forward scans that no MAC figure includes."""
    steps = k * b * d * length
    return {"exp": steps * n, "softplus": steps, "mul": 2 * steps * n + steps}


# ---- what the counters call ----------------------------------------------------------------------------------------
# Shapes in the order of the operators' arguments (library.py); torch's counter wants 2 per MAC, fvcore 1.


def _selective_sizes(u: Shape, a: Shape) -> tuple[int, int, int, int]:
    return u[0], u[1], u[2], a[1]


def _cross_sizes(x: Shape, dt_weight: Shape, a: Shape) -> tuple[int, int, int, int, int, int]:
    return x[0], x[1] * x[2], x[3], a[-1], dt_weight[-1], dt_weight[0]


def _count_selective(u: Shape, delta: Shape, a: Shape, b: Shape, c: Shape, d: Shape | None) -> int:
    return selective_scan_macs(*_selective_sizes(u, a), with_d=d is not None)


def _count_selective_backward(go: Shape, u: Shape, delta: Shape, a: Shape, b: Shape, c: Shape, d: Shape | None) -> int:
    return selective_scan_backward_macs(*_selective_sizes(u, a), with_d=d is not None)


def _count_cross(x: Shape, proj: Shape, dt_weight: Shape, dt_bias: Shape, a: Shape) -> int:
    return cross_scan_macs(*_cross_sizes(x, dt_weight, a))


def _count_cross_backward(gy: Shape, x: Shape, proj: Shape, dt_weight: Shape, dt_bias: Shape, a: Shape) -> int:
    return cross_scan_backward_macs(*_cross_sizes(x, dt_weight, a))


_COUNTS: dict[str, tuple[Callable[..., int], int]] = {  # operator: (MACs from shapes, leading arguments it reads)
    "selective_scan": (_count_selective, 6),
    "selective_scan_backward": (_count_selective_backward, 7),
    "cross_scan": (_count_cross, 5),
    "cross_scan_backward": (_count_cross_backward, 6),
}


def register_torch_formulas() -> None:
    """Teach torch's FlopCounterMode the four operators, 2 FLOPs a MAC."""
    import torch
    from torch.utils.flop_counter import register_flop_formula

    def formula(count: Callable[..., int], arguments: int) -> Callable[..., int]:
        def flops(*shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
            return 2 * count(*shapes[:arguments])

        return flops

    for name, (count, arguments) in _COUNTS.items():
        register_flop_formula(getattr(torch.ops.medbench, name))(formula(count, arguments))


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Handles for fvcore's FlopCountAnalysis.set_op_handle, one count a MAC (as fvcore counts convolutions)."""

    def shape_of(value: Any) -> list[int] | None:
        sizes = value.type().sizes() if value.isCompleteTensor() else None
        return None if sizes is None or prod(sizes) == 0 else list(sizes)

    def handle(count: Callable[..., int], arguments: int) -> Callable[[list[Any], list[Any]], int]:
        return lambda inputs, outputs: count(*map(shape_of, inputs[:arguments]))

    return {f"medbench::{name}": handle(count, arguments) for name, (count, arguments) in _COUNTS.items()}

"""The CUDA kernel of the mamba-ssm package, for comparison and cross-check; it never runs unless asked for.

The path that public vision models take: the image is written out as one sequence a direction, the step sizes are
written out, the kernel scans (b, k*d, l), and the outputs are turned back and added. The kernel adds some gradients
with atomics, so they differ in the last bits from run to run. Here a backward writes the sequences out again;
`tools.gpu_check` also times the composition that keeps them, as public models do.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.ops.backends.reference import to_images, to_sequences
from bench.ops.problems import ImageScan, SequenceScan

NAME = "mamba-ssm"
KERNEL_CHUNK = 2048  # positions between the states that the kernel keeps


@cache
def _kernel() -> Any:
    return import_module("selective_scan_cuda")


def unavailable(device_type: str) -> str | None:
    """Say why the backend cannot run on a device, or None where it can."""
    if device_type != "cuda":
        return f"its kernel is for CUDA, not for {device_type}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        _kernel()
    except ImportError as error:
        return f"its CUDA kernel cannot be imported ({error}); install the extra medbench[mamba] to compare with it"
    return None


def selective_scan_carry_shape(b: int, d: int, length: int, n: int, g: int) -> tuple[int, ...]:
    """Shape of what the kernel keeps: for each chunk the products of decays and the states."""
    return (b, d, (length + KERNEL_CHUNK - 1) // KERNEL_CHUNK, 2 * n)


def selective_scan_forward(scan: SequenceScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan sequences (b,d,l); see `bench.ops.selective_scan`. Returns the output and what the kernel keeps."""
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    out, kept, *_ = _kernel().fwd(u, delta, A.contiguous(), B, C, D, None, delta_bias, delta_softplus)
    return out, kept if save else kept.new_empty(0)


def selective_scan_backward(
    grad_out: Tensor, scan: SequenceScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to u, delta, A, B, C, D, delta_bias, in this order."""
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    gu, gdelta, ga, gb, gc, gd, gbias, *_ = _kernel().bwd(
        u, delta, A.contiguous(), B, C, D, None, delta_bias, grad_out, carry, None, None, delta_softplus, False
    )
    return gu, gdelta, ga, gb, gc, gd if D is not None else None, gbias if delta_bias is not None else None


# ---- the four-direction form ---------------------------------------------------------------------------------------


def cross_scan_carry_shape(b: int, h: int, w: int, d: int, n: int, r: int, k: int) -> tuple[int, ...]:
    """Shape of what the kernel keeps for k directions."""
    return selective_scan_carry_shape(b, k * d, h * w, n, k)


def _sequences(
    x: Tensor, proj: Tensor, dt_weight: Tensor, directions: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The image as sequences: u, delta (b,k*d,l), B, C (b,k,n,l) and the step-size features (b,k,r,l)."""
    r = dt_weight.shape[-1]
    n = (proj.shape[-1] - r) // 2
    low_rank, B, C = to_sequences(proj, directions).split([r, n, n], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low_rank, dt_weight.to(low_rank.dtype))
    u = to_sequences(x, directions)
    return u.flatten(1, 2), delta.flatten(1, 2).contiguous(), B.contiguous(), C.contiguous(), low_rank


def cross_scan_forward(scan: ImageScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan an image (b,h,w,d) in every direction and add the results; see `bench.ops.cross_selective_scan`."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, d = x.shape
    u, delta, B, C, _ = _sequences(x, proj, dt_weight, directions)
    out, kept = selective_scan_forward(
        SequenceScan(u, delta, A.flatten(0, 1), B, C, D.flatten(), dt_bias.flatten(), True), save
    )
    return to_images(out.unflatten(1, (-1, d)), directions, h, w).sum(3), kept


def cross_scan_backward(
    grad_y: Tensor, scan: ImageScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, proj, dt_weight, dt_bias, A, D, in this order."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, d = x.shape
    u, delta, B, C, low_rank = _sequences(x, proj, dt_weight, directions)
    grad = to_sequences(grad_y, directions).flatten(1, 2)
    gu, gdelta, ga, gb, gc, gd, gbias = selective_scan_backward(
        grad, SequenceScan(u, delta, A.flatten(0, 1), B, C, D.flatten(), dt_bias.flatten(), True), carry
    )
    assert gd is not None and gbias is not None
    gdelta = gdelta.unflatten(1, (-1, d))
    grad_low_rank = torch.einsum("bkdl,kdr->bkrl", gdelta, dt_weight.to(gdelta.dtype))
    grad_proj = to_images(torch.cat([grad_low_rank, gb, gc], 2), directions, h, w).to(proj.dtype)
    grad_weight = torch.einsum("bkdl,bkrl->kdr", gdelta, low_rank).to(dt_weight.dtype)
    grad_x = to_images(gu.unflatten(1, (-1, d)), directions, h, w).sum(3)
    return (
        grad_x.contiguous(), grad_proj.contiguous(), grad_weight, gbias.view(dt_bias.shape), ga.view(A.shape),
        gd.view(D.shape),
    )  # fmt: skip

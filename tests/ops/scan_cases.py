"""Truths for the scans that owe nothing to bench.ops: the stored fixtures and a naive float64 composition."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent.parent / "fixtures"
SCANS = FIXTURES / "selective_scan.safetensors"
INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def case_names() -> list[str]:
    with SCANS.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return list(json.loads(json.loads(file.read(size))["__metadata__"]["cases"]))


def load_case(name: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: t for key, t in load_file(SCANS).items() if key.split("/")[0] == name}


def rel_to_max(actual: Tensor, truth: Tensor) -> float:
    """max|difference| / max|truth|; the plain difference where the truth is zero."""
    difference = (actual.double() - truth.double()).abs().max().item()
    return difference / (truth.double().abs().max().item() or 1.0)


def naive_scan(u: Tensor, s: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One direction, step by step: u, s (b,d,l), A (d,n), B, C (b,n,l), D (d)."""
    h = u.new_zeros(u.shape[0], *A.shape)
    ys = []
    for t in range(u.shape[-1]):
        h = torch.exp(s[:, :, t, None] * A) * h + (s[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(ys, -1)


def naive_cross(x: Tensor, wx: Tensor, wdt: Tensor, bias: Tensor, A: Tensor, D: Tensor, directions: tuple) -> Tensor:
    """Directions one at a time, each by listing its pixels in order of travel."""
    b, h, w, d = x.shape
    pixels = torch.arange(h * w).view(h, w)
    orders = {0: pixels.flatten(), 1: pixels.T.flatten()}
    orders |= {2: orders[0].flip(0), 3: orders[1].flip(0)}
    r, n = wdt.shape[-1], A.shape[-1]
    y = torch.zeros_like(x).view(b, h * w, d)
    for k, direction in enumerate(directions):
        sequence = x.reshape(b, h * w, d)[:, orders[direction]]
        low, B, C = (sequence @ wx[k].T).split([r, n, n], -1)
        s = torch.nn.functional.softplus(low @ wdt[k].T + bias[k])
        out = naive_scan(sequence.mT, s.mT, A[k], B.mT, C.mT, D[k])
        y = y.index_add(1, orders[direction], out.mT)
    return y.view(b, h, w, d)


CROSS_NAMES = ("x", "x_proj_weight", "dt_proj_weight", "dt_bias", "A", "D")


def cross_inputs(b: int, h: int, w: int, d: int, n: int, r: int, k: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Float32 inputs of ordinary size, as in a trained block (steps 0.001 to 1, A from -1 to -n)."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "x": randn(b, h, w, d),
        "x_proj_weight": randn(k, r + 2 * n, d) / d**0.5,
        "dt_proj_weight": randn(k, d, r) * r**-0.5,
        "dt_bias": torch.log(torch.expm1(torch.exp(torch.rand(k, d, generator=g) * 4.6 - 6.9))),
        "A": -(torch.arange(1, n + 1) * torch.exp(0.2 * randn(k, d, n))),
        "D": 1 + 0.1 * randn(k, d),
    }

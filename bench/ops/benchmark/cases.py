"""The shapes, inputs and floors by which the selective scan is judged (`bench ops`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Row = dict[str, Any]  # plain data, ready for JSON
DIRECTIONS = [0, 1, 2, 3]
DIMS = (96, 192, 384, 768)  # channels of the four stages of MedMamba-T and of VMamba-T


@dataclass(frozen=True)
class ScanCase:
    """The core of one block: k = 4 scans over an image of height x width pixels."""

    model: str
    stage: int
    size: int  # side of the network's input, pixels
    batch: int
    height: int
    width: int
    channels: int
    states: int
    rank: int  # of the step-size projection

    @property
    def updates(self) -> int:
        """State updates of one forward: batch x directions x pixels x channels x states."""
        return self.steps * self.states

    @property
    def steps(self) -> int:
        """Steps of all channels and directions: as many softplus."""
        return self.batch * len(DIRECTIONS) * self.height * self.width * self.channels

    def _pixels_bytes(self, per_pixel: int, itemsize: int) -> int:
        return self.batch * self.height * self.width * per_pixel * itemsize

    def floor_bytes(self, backward: bool, itemsize: int) -> int:
        """Bytes that must move: every input read once, every output written once (saved states not counted).

        Forward: x, proj in, y out. Backward: x, proj and the gradient of y in, the gradients of x and proj out.
        """
        proj = len(DIRECTIONS) * (self.rank + 2 * self.states)
        forward = 2 * self.channels + proj
        return self._pixels_bytes(forward + (3 * self.channels + 2 * proj if backward else 0), itemsize)

    def floor_exps(self, backward: bool) -> int:
        """Exponentials that must be evaluated: one a state update and two (exp and log) a softplus, again backwards."""
        return (self.updates + 2 * self.steps) * (2 if backward else 1)

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{self.model} stage {self.stage} at {self.size} px, batch {self.batch}"


def model_cases(models: Sequence[str], sizes: Sequence[int], batches: Sequence[int]) -> list[ScanCase]:
    """The cores of MedMamba-T (16 states) and VMamba-T s1l8 (1 state), stage by stage.

    Grids: the patch embedding divides a side by 4; each merging by 2, MedMamba rounding down, VMamba up.
    """
    cases = []
    for model in models:
        states, rank_divisor = {"medmamba": (16, 32), "vmamba": (1, 16)}[model]
        for size in sizes:
            side = size // 4
            for stage, channels in enumerate(DIMS, start=1):
                rank = -(-channels // rank_divisor)
                cases += [ScanCase(model, stage, size, b, side, side, channels, states, rank) for b in batches]
                side = side // 2 if model == "medmamba" else -(-side // 2)
    return cases


def cross_inputs(case: ScanCase, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Random arguments of the operator: x, proj, dt_weight, dt_bias, A, D, of the size a fresh block sees."""
    g = torch.Generator().manual_seed(seed)
    k, d, n, r = len(DIRECTIONS), case.channels, case.states, case.rank

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    image = (case.batch, case.height, case.width)
    steps = torch.exp(torch.rand(k, d, generator=g) * 4.6 - 6.9)  # 0.001 to 0.1, as Mamba initialises them
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    data = [randn(*image, d), randn(*image, k, r + 2 * n)]
    parameters = [randn(k, d, r) * r**-0.5, torch.log(torch.expm1(steps)),
                  -torch.arange(1.0, n + 1).repeat(k, d, 1), 1 + 0.1 * randn(k, d)]  # fmt: skip
    return [t.to(device, dtype) for t in data] + [t.to(device, wide) for t in parameters]


# ---- the check against float64 -------------------------------------------------------------------------------------

CROSS_CHECKS = (  # batch, height, width, channels, states, rank: one pixel, primes, tails of a vector, a line
    (1, 1, 1, 5, 1, 1),
    (2, 5, 7, 12, 3, 2),
    (1, 13, 11, 20, 16, 3),
    (1, 1, 131, 16, 16, 1),
    (2, 8, 9, 33, 1, 6),
    (1, 16, 16, 96, 16, 3),
    (2, 7, 7, 48, 1, 12),
)
SEQUENCE_CHECKS = (  # batch, groups, channels, states, length, mean and spread of the raw step
    (2, 2, 8, 16, 49, -3.0, 2.0),
    (3, 1, 5, 7, 1, -3.0, 2.0),
    (1, 2, 4, 16, 1031, -3.0, 2.0),
    (1, 4, 12, 1, 196, -3.0, 2.0),
    (2, 2, 6, 4, 37, 0.0, 40.0),  # raw steps from far below to far above softplus's threshold
    (1, 1, 4, 16, 64, -11.0, 5.0),  # tiny steps
)
SEQUENCE_NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
CROSS_NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")


def check_case(sizes: tuple[int, ...]) -> ScanCase:
    """A shape of CROSS_CHECKS as a case."""
    b, h, w, d, n, r = sizes
    return ScanCase("check", 0, 0, b, h, w, d, n, r)


def sequence_inputs(sizes: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random arguments of `selective_scan` in the order of SEQUENCE_NAMES."""
    b, groups, d, n, length = (int(v) for v in sizes[:5])
    mean, spread = sizes[5:]
    g = torch.Generator().manual_seed(length)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    delta = mean + spread * (2 * torch.rand(b, d, length, generator=g) - 1)
    data = [randn(b, d, length), delta, -F.softplus(randn(d, n)) * n, randn(b, groups, n, length),
            randn(b, groups, n, length), randn(d), 0.5 * randn(d)]  # fmt: skip
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = {2, 5, 6}
    return [t.to(device, wide if i in parameters else dtype) for i, t in enumerate(data)]


def rel_to_max(actual: Tensor, truth: Tensor) -> float:
    """max|difference| / max|truth|, or the difference itself where the truth is zero."""
    difference = (actual.double() - truth.double()).abs().max().item()
    return difference / (truth.double().abs().max().item() or 1.0)

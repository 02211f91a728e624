"""The 2-D selective scan layer (SS2D) of MedMamba and VMamba, and what an ablation puts in the scan's place.

Papers: Mamba, arXiv:2312.00752; VMamba, arXiv:2401.10166, section 4.2 and figure 3. Written from the papers and from
the numbers in tests/fixtures; licence Apache-2.0. What differs from the public code: features stay channels last from
end to end, the four directions are read in place by ``bench.ops.cross_selective_scan`` instead of being copied into
four sequences, and parameters are stored per direction, (k,d,n) instead of (k*d,n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ops import ConvAct, NormGate, cross_selective_scan
from bench.ops.training import scan_branch, trains

__all__ = ["DIRECTIONS", "SS2D", "CrossScan", "GlobalAttention", "Mixing"]

# Directions: 0 rows, 1 columns, 2 and 3 the same two from the end. One is a causal raster scan, two make it
# bidirectional (Vim's choice), four are VMamba's cross scan.
DIRECTIONS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}

# Initial steps softplus(dt_proj_bias) are log-uniform in this range (Mamba, section 3.6): a state remembers
# between 1/0.1 = 10 and 1/0.001 = 1,000 tokens when A = -1.
DT_MIN, DT_MAX = 0.001, 0.1
# Attention's heads in the ablation are as wide as Swin's.
HEAD_DIM = 32


@dataclass(frozen=True)
class Mixing:
    """What mixes the tokens of an SS2D layer.

    Attributes:
        d_state: States per channel of the scan.
        directions: 4 scan directions, 2 (rows both ways) or 1.
        mixer: ``scan``; or in its place ``attention`` over all tokens, or ``none``.
    """

    d_state: int
    directions: int = 4
    mixer: str = "scan"

    def build(self, dim: int, dt_rank: int) -> nn.Module:
        """Build the layer that maps (b,h,w,dim) to (b,h,w,dim)."""
        if self.directions not in DIRECTIONS:
            raise ValueError(f"directions={self.directions} is none of {', '.join(map(str, DIRECTIONS))}")
        if self.d_state < 1:
            raise ValueError(f"d_state={self.d_state}: a scan needs at least one state per channel")
        if self.mixer == "scan":
            return CrossScan(dim, self.d_state, dt_rank, self.directions)
        if self.mixer == "attention":
            return GlobalAttention(dim)
        if self.mixer == "none":
            return nn.Identity()
        raise ValueError(f"mixer={self.mixer!r} is none of scan, attention, none")


class CrossScan(nn.Module):
    """Selective scans of one feature map in ``k`` directions, summed at the pixel they come from.

    Per direction, with s = softplus(W_dt W_r x + b): h_t = exp(s_t A) h_{t-1} + s_t B_t x_t, y_t = <C_t, h_t> + D x_t.
    """

    def __init__(self, dim: int, d_state: int, dt_rank: int, directions: int = 4) -> None:
        super().__init__()
        self.directions = DIRECTIONS[directions]
        k = directions
        self.x_proj_weight = nn.Parameter(torch.empty(k, dt_rank + 2 * d_state, dim))
        self.dt_proj_weight = nn.Parameter(torch.empty(k, dim, dt_rank))
        self.dt_proj_bias = nn.Parameter(torch.empty(k, dim))
        self.A_log = nn.Parameter(torch.empty(k, dim, d_state))
        self.D = nn.Parameter(torch.empty(k, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Mamba does: A = -(1..n) (S4D-real), D = 1, steps log-uniform in [DT_MIN, DT_MAX]."""
        _, dim, dt_rank = self.dt_proj_weight.shape
        nn.init.uniform_(self.x_proj_weight, -(dim**-0.5), dim**-0.5)
        nn.init.uniform_(self.dt_proj_weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            dt = torch.empty_like(self.dt_proj_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp()
            self.dt_proj_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            self.A_log.copy_(torch.arange(1, self.A_log.shape[-1] + 1).log().expand_as(self.A_log))
            self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,d) to (b,h,w,d)."""
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()  # also in a half-precision model
        return cross_selective_scan(
            x, self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, A, self.D, directions=self.directions
        )


class GlobalAttention(nn.Module):
    """Ablation: multi-head attention over all tokens of the map, without windows, as wide as the scan it replaces.

    No position embedding is added: like the scan, it reads features of a 3x3 convolution. The layer's own
    projections stay outside, so that only the mixing differs. Time grows with the square of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if dim % n == 0)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,d) to (b,h,w,d)."""
        b, h, w, d = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, d)


class SS2D(nn.Module):
    """Projection, depthwise 3x3 convolution, SiLU, mixing of tokens, norm, (gate,) projection.

    Args:
        dim: Channels in and out.
        inner_dim: Channels of the convolution and of what mixes.
        mixing: The scan, or what an ablation puts in its place.
        gate: Multiply the normed output by SiLU of a second projection (MedMamba), or not (VMamba's "noz").
        conv_bias: Whether the depthwise convolution has a bias.
    """

    def __init__(self, dim: int, inner_dim: int, mixing: Mixing, gate: bool, conv_bias: bool) -> None:
        super().__init__()
        self.gate = gate
        self.in_proj = nn.Linear(dim, inner_dim * (2 if gate else 1), bias=False)
        self.conv = ConvAct(inner_dim, inner_dim, 3, silu=True, padding=1, groups=inner_dim, bias=conv_bias)
        self.mixer = mixing.build(inner_dim, dt_rank=math.ceil(dim / 16))
        self.out_norm = NormGate(inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim, bias=False)

    def beside(self, x: Tensor, norm: NormGate) -> tuple[Tensor, Tensor]:
        """Return x itself, and this layer's output of norm(x); what is made of that x adds its gradient in passing.

        In training on CUDA one function that keeps little for its backward.
        """
        if isinstance(self.mixer, CrossScan) and trains(self, x):
            return scan_branch(x, norm, self.in_proj, self.conv, self.mixer, self.out_norm, self.out_proj)
        return x, self(norm(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h,w,c)."""
        z = None
        if self.gate:
            # Two products with halves of one weight: both results are dense, as one product and a split would not be.
            weight_x, weight_z = self.in_proj.weight.chunk(2)
            x, z = F.linear(x, weight_x), F.linear(x, weight_z)
        else:
            x = self.in_proj(x)
        return self.out_proj(self.out_norm(self.mixer(self.conv(x)), z))  # type: ignore[no-any-return]

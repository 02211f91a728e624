"""A frozen network and its head as one module: what is exported."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class FrozenNetwork(nn.Module):
    """Images (N, C, R, R) to logits float32 (N, K): the features of ``backbone`` through one linear layer.

    The layer computes in float64, as it was fitted, under autocast too: that leaves float64 alone.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.weight = nn.Parameter(torch.zeros(classes, features, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(classes, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return F.linear(self.backbone(images).double(), self.weight, self.bias).float()

"""The memory layout of a model: one rule for training and for every figure of speed, so that they tell of one thing."""

from __future__ import annotations

import torch
from torch import nn


def prefers_channels_last(model: nn.Module) -> bool:
    """Say whether most of a model's weights are in dense 2-D convolutions.

    A rule, not a probe: a choice made by timing would let two runs of one Cell differ in their bits.
    """
    dense = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    return 2 * dense > sum(p.numel() for p in model.parameters())


def layout_of(model: nn.Module) -> torch.memory_format:
    """The layout that ``model`` and its images take."""
    return torch.channels_last if prefers_channels_last(model) else torch.contiguous_format

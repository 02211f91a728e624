"""What a forward pass keeps for its backward: networks whose answer can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.machine.memory import MIB
from bench.measure.activations import saved_for_backward


def test_saved_activations_of_a_known_network() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 4), nn.ReLU())
    images = torch.randn(32, 8)
    found = saved_for_backward(net, images)
    # Linear keeps its input (the first one is the given batch), sigmoid and ReLU their outputs; the sigmoid's output
    # and the second linear's input are one storage.
    assert found["saved_activations_mib"] * MIB == 4 * 32 * (16 + 4)
    assert found["saved_activations_mib_per_image"] * MIB == 4 * (16 + 4)


@pytest.mark.parametrize("hidden", [16, 1600])
def test_the_short_copies_of_weights_are_no_activations(hidden: int) -> None:
    net = nn.Sequential(nn.Linear(8, hidden), nn.Sigmoid(), nn.Linear(hidden, 4), nn.ReLU())
    images = torch.randn(32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = saved_for_backward(net, images)
    # The first linear keeps the batch cast to bfloat16, which is a copy; then as in float32, two bytes each.
    assert found["saved_activations_mib"] * MIB == 2 * 32 * (8 + hidden + 4)


def test_what_a_weight_is_made_into_is_kept_in_float32_too() -> None:
    """As a scan keeps exp(A_log): counted before, counted still, under autocast as well."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.log_scale.exp()

    images = torch.randn(4, 64)
    assert saved_for_backward(Scaled(), images)["saved_activations_mib"] * MIB == 4 * 64
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_for_backward(Scaled(), images)["saved_activations_mib"] * MIB == 4 * 64


def test_gradient_checkpointing_saves_less() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    images = torch.randn(16, 8)
    full = saved_for_backward(net, images)["saved_activations_mib"]
    assert saved_for_backward(Checkpointed(net), images)["saved_activations_mib"] < full / 2

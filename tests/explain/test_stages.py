"""Stages of every family, as grids."""

import pytest
import torch
from torch import nn

from bench.explain.stages import StageOutput, find_stages, outputs_of, stage_to_explain
from bench.registry import RegistryError, model_info

IMAGES = torch.zeros(2, 3, 64, 64)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return model_info(name).build(2, 3, 64).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "modules", "sides"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], [16, 8, 4, 2]),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.8", "blocks.11"], [4, 4, 4, 4]),
        ("swin_tiny_patch4_window7_224", [f"layers.{i}" for i in range(4)], [16, 8, 4, 2]),
        ("medmamba_tiny", [f"stages.{i}" for i in range(4)], [16, 8, 4, 2]),
        ("vmamba_tiny", [f"stages.{i}" for i in range(4)], [16, 8, 4, 2]),
    ],
)
def test_stages_of_a_family_and_what_they_give(name: str, modules: list[str], sides: list[int]) -> None:
    model = build(name)
    stages = find_stages(model, IMAGES)
    assert [stage.name for stage in stages] == modules
    assert [stage.grid for stage in stages] == [(side, side) for side in sides]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with outputs_of(model, set(modules)) as outputs, torch.no_grad():
        model(images)
        # timm's and our own forward_intermediates give (b,c,h,w) by another way.
        given = model.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
    for stage in stages:
        grid = stage.as_grid(outputs[stage.name])
        assert any(grid.shape == other.shape and torch.equal(grid, other) for other in given)


def test_activations_are_read_where_the_grid_is_fine_enough() -> None:
    model = build("resnet18")
    stages = find_stages(model, IMAGES)
    assert stage_to_explain(model, stages, IMAGES, 4).name == "layer3"
    assert stage_to_explain(model, stages, IMAGES, 100).name == "layer1"
    vit = build("vit_tiny_patch16_224")
    # The last block's own patches do not reach the class token any more.
    assert stage_to_explain(vit, find_stages(vit, IMAGES), IMAGES, 4) == StageOutput(
        "blocks.10", (4, 4), tokens=True, prefix=1
    )


def test_a_network_that_lists_no_stages_is_watched() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert find_stages(model, IMAGES) == [StageOutput("0.1", (64, 64)), StageOutput("0", (32, 32))]


def test_what_has_no_grid_is_told() -> None:
    with pytest.raises(RegistryError, match=r"Sequential: no layer outputs a grid \(b,c,h,w\)"):
        find_stages(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), IMAGES)


class Tokens(nn.Module):
    feature_info = ({"module": "embed", "num_chs": 3, "reduction": 1},)

    def __init__(self, count: int) -> None:
        super().__init__()
        self.embed = nn.Identity()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x.flatten(2).transpose(1, 2)[:, : self.count]).mean(1)


def test_tokens_that_fill_no_square_are_told() -> None:
    assert find_stages(Tokens(9), IMAGES) == [StageOutput("embed", (3, 3), tokens=True)]
    with pytest.raises(RegistryError, match="10 tokens of embed do not form a square grid; use square images"):
        find_stages(Tokens(10), IMAGES)

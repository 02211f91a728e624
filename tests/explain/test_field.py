"""Effective receptive fields against closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.explain import field
from bench.explain.field import Map, radii_px, receptive_fields
from bench.explain.stages import StageOutput, find_stages
from bench.models.medmamba import MedMamba
from bench.registry import RegistryError, model_info


def ones_conv(**options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 3, **{"padding": 1, "bias": False, **options})
    nn.init.ones_(layer.weight)
    return layer


def field_of(model: nn.Module, side: int = 33, count: int = 2, channels: int = 1) -> Map:
    images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))
    return receptive_fields(model, images, find_stages(model, images)[-1:])[0]


def extent(mass: Map) -> tuple[int, int]:
    """Rows and columns from the first to the last with any influence."""
    places = [np.flatnonzero(mass.any(axis)) for axis in (1, 0)]
    return int(np.ptp(places[0])) + 1, int(np.ptp(places[1])) + 1


def sd_px(mass: Map) -> float:
    rows, columns = (np.indices(mass.shape) - (np.array(mass.shape)[:, None, None] - 1) / 2) ** 2
    return float(np.sqrt((mass * (rows + columns)).sum() / 2))


def medmamba(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return MedMamba(depths=(1, 1), dims=(16, 32), num_classes=2, **options)


def test_one_convolution_sees_its_kernel() -> None:
    mass = field_of(nn.Sequential(ones_conv()))
    expected = np.zeros((33, 33))
    expected[15:18, 15:18] = 1 / 9
    np.testing.assert_allclose(mass, expected, atol=1e-12)
    # The centre holds 1/9, with its four neighbours 5/9, with the corners at sqrt(2) all.
    assert radii_px(mass) == pytest.approx((1.0, np.sqrt(2)))


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_a_stack_grows_linearly_in_extent_and_as_a_root_in_spread(depth: int) -> None:
    mass = field_of(nn.Sequential(*(ones_conv() for _ in range(depth))))
    assert extent(mass) == (2 * depth + 1, 2 * depth + 1)
    assert sd_px(mass) == pytest.approx(np.sqrt(depth * 2 / 3), rel=1e-6)
    line = np.ones(1)
    for _ in range(depth):
        line = np.convolve(line, np.ones(3) / 3)
    middle = slice(16 - depth, 17 + depth)
    np.testing.assert_allclose(mass[middle, middle], np.outer(line, line), rtol=1e-6)


def test_strides_and_dilation_widen_it() -> None:
    # 3 px, then 3 cells of stride 2 more: 3 + 2 * 2; dilation 4: 9.
    assert extent(field_of(nn.Sequential(ones_conv(stride=2), ones_conv()))) == (7, 7)
    assert extent(field_of(nn.Sequential(ones_conv(dilation=4, padding=4)))) == (9, 9)


def test_radii_of_a_gaussian_and_of_an_even_map() -> None:
    rows, columns = np.indices((301, 301)) - 150.0
    measured = radii_px(np.exp(-(rows**2 + columns**2) / (2 * 20.0**2)))
    # The radius of a two-dimensional Gaussian is Rayleigh distributed.
    assert measured == pytest.approx([20 * np.sqrt(2 * np.log(n)) for n in (2, 20)], rel=0.02)
    even = radii_px(np.ones((200, 200)))
    assert even and even[0] == pytest.approx(200 * np.sqrt(0.5 / np.pi), rel=0.01)


def test_a_map_off_the_centre_is_measured_about_its_own() -> None:
    mass = np.zeros((9, 9))
    mass[2, 5] = 3.0
    assert radii_px(mass) == (0.0, 0.0)


def test_no_influence_is_no_measure() -> None:
    dead = nn.Sequential(ones_conv(), nn.ReLU())
    nn.init.constant_(dead[0].weight, 0.0)  # type: ignore[arg-type]
    images = torch.ones(1, 1, 8, 8)
    (mass,) = receptive_fields(dead, images, [StageOutput("1", (8, 8))])
    assert not mass.any()
    assert radii_px(mass) is None


def test_broken_weights_are_told() -> None:
    model = nn.Sequential(ones_conv())
    nn.init.constant_(model[0].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match="gradients of 0 are not finite: the weights, or the images, are broken"):
        receptive_fields(model, torch.ones(1, 1, 8, 8), [StageOutput("0", (8, 8))])


def test_the_result_does_not_depend_on_how_many_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model.train()  # batch statistics would let every image see every other
    at_once = field_of(model, 16, 6)
    again = field_of(model, 16, 6)
    assert (at_once == again).all()
    monkeypatch.setattr(field, "CHUNK", 1)
    one_by_one = field_of(model, 16, 6)
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-5, atol=1e-12)


def test_a_layer_norm_behind_the_stage_does_not_hide_it() -> None:
    """The plain sum of channels behind a layer norm is constant: its gradient is rounding."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.output_fmt = nn.Conv2d(1, 6, 3, padding=1), nn.LayerNorm(6), "NHWC"
            self.feature_info = [{"module": "norm", "num_chs": 6, "reduction": 1}]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))

    torch.manual_seed(0)
    mass = field_of(Normed(), 9)
    assert extent(mass) == (3, 3)
    assert np.count_nonzero(mass) == 9


def test_resnet_at_initialisation_sees_its_stem_only() -> None:
    """timm starts the last norm of each block at zero: 7x7 of stride 2, then 3x3 pooling of stride 2, is 11 px."""
    torch.manual_seed(0)
    model = model_info("resnet18").build(2, 3, 64)
    images = torch.randn(2, 3, 64, 64)
    for mass in receptive_fields(model, images, find_stages(model.eval(), images)):
        assert extent(mass) == (11, 11)


def test_attention_reaches_everywhere_from_the_first_block() -> None:
    torch.manual_seed(0)
    model = model_info("timm:test_vit").build(2, 3, 64)
    images = torch.randn(1, 3, 64, 64)
    fields = receptive_fields(model, images, find_stages(model.eval(), images))
    assert all((mass > 0).all() for mass in fields)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"branch": "conv"}, 5), ({"branch": "ssm", "mixer": "none"}, 3), ({"branch": "ssm"}, 16), ({}, 16)],
    ids=str,
)
def test_medmambas_branches_reach_as_claimed(options: dict[str, Any], tokens: int) -> None:
    """Two 3x3 convolutions see 5 tokens; without the scan its depthwise 3x3 sees 3; the scan sees all 16."""
    model = medmamba(**options).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mass = receptive_fields(model, images, find_stages(model, images)[:1])[0]
    assert extent(mass) == (4 * tokens, 4 * tokens)
    assert np.count_nonzero(mass) == (4 * tokens) ** 2


def test_a_causal_scan_sees_nothing_behind_its_token() -> None:
    """One direction, rows from the top: the depthwise 3x3 before the scan looks one row ahead and no further."""
    model = medmamba(branch="ssm", directions=1).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mass = receptive_fields(model, images, find_stages(model, images)[:1])[0]
    centre = 8 * 4  # the central of 16 tokens of 4 px
    assert (mass[: centre + 4] > 0).all()
    assert not mass[centre + 8 :].any()

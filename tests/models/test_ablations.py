"""Each ablation switches off what it says, nothing else, and is a valid model with its own count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from bench.models import medmamba, vmamba
from bench.models._ssm import SS2D, CrossScan, GlobalAttention, Mixing
from bench.ops import use_backend
from bench.registry import RegistryError, expand_models, models, parse_model

ABLATIONS = [str(spec) for spec in expand_models(["ablations"])]
DEPTHS, DIMS = (2, 2, 4, 2), (96, 192, 384, 768)


def build(name, num_classes=1000, img_size=32, device="meta"):
    spec = expand_models([name])[0]
    with torch.device(device):
        return models[spec.name].build(num_classes=num_classes, in_chans=3, img_size=img_size, **dict(spec.options))


def count(module):
    return sum(p.numel() for p in module.parameters())


def total(model, part):
    """Parameters of all submodules whose name ends in ``part``."""
    return sum(count(m) for name, m in model.named_modules() if name.endswith(part))


BASE = build("medmamba_tiny")


def test_the_list_covers_every_switch():
    text = " ".join(ABLATIONS)
    for switch in (
        "branch=conv",
        "branch=ssm",
        "shuffle=false",
        "directions=1",
        "directions=2",
        "d_state=",
        "mixer=none",
    ):
        assert switch in text
    assert {"medmamba_tiny", "medmamba_tiny[mixer=attention]", "medmamba_tiny_conv_twin"} <= set(ABLATIONS)
    assert not set(ABLATIONS[1:]) & {str(s) for s in expand_models(["all"])}


@pytest.mark.parametrize("name", ABLATIONS)
def test_trains_and_every_parameter_has_a_gradient(name):
    model = build(name, num_classes=3, device="cpu").train()
    loss = F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 2]))
    loss.backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
    dead = [k for k, p in model.named_parameters() if not p.grad.any() and not k.endswith(("conv1.bias", "conv2.bias"))]
    assert dead == []  # at 64 px; a last grid of one token would leave A, and biases before batch norm, without


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*ABLATIONS, "medmamba_base_d16", "vmamba_tiny", "vmamba_small"])
def test_gradients_of_the_fused_blocks_are_as_exact_as_those_of_pytorch(name, exact_convolutions):
    def gradients(backend, half, dtype=torch.float32):
        torch.manual_seed(0)
        model = build(name, num_classes=3, img_size=64, device="cpu").to("cuda", dtype).train()
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0  # its draws in float64 are others
        x, y = torch.randn(8, 3, 64, 64).to("cuda", dtype), torch.arange(8, device="cuda") % 3
        with use_backend(backend), torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        # Biases before a batch norm have a gradient of exactly zero when fused, and of rounding errors in PyTorch.
        kept = (p.grad for n, p in model.named_parameters() if not n.endswith(("conv1.bias", "conv2.bias")))
        return torch.cat([g.flatten().double() for g in kept])

    exact = gradients("reference", False, torch.float64)
    for half in (False, True):
        fused, plain = (float((gradients(b, half) - exact).norm() / exact.norm()) for b in ("triton", "reference"))
        assert fused < 3 * plain + 1e-5, (half, fused, plain)  # as `bench ops` allows a gradient


def test_branches_add_up():
    conv, ssm = build("medmamba_tiny[branch=conv]"), build("medmamba_tiny[branch=ssm]")
    shared = count(BASE.patch_embed) + count(BASE.head) + total(BASE, "downsample")
    assert count(conv) + count(ssm) == count(BASE) + shared
    assert count(conv) == shared + total(BASE, ".conv") - total(BASE, ".ssm.conv")
    assert not any("ssm" in k for k, _ in conv.named_parameters())
    assert not any(".conv1" in k for k, _ in ssm.named_parameters())


@pytest.mark.parametrize("branch", ["conv", "ssm"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_removed_branch_lets_its_half_pass(branch, shuffle):
    both = medmamba.Block(16, Mixing(4), shuffle).eval()
    one = medmamba.OneBranchBlock(16, Mixing(4), branch, shuffle).eval()
    one.load_state_dict({k: v for k, v in both.state_dict().items() if k in one.state_dict()}, strict=True)
    x = torch.randn(2, 5, 6, 16)
    kept = slice(0, None, 2) if branch == "conv" else slice(1, None, 2)  # shuffled: channels alternate
    passed = slice(1, None, 2) if branch == "conv" else slice(0, None, 2)
    if not shuffle:
        first, second = slice(0, 8), slice(8, 16)
        kept, passed = (first, second) if branch == "conv" else (second, first)
    with torch.no_grad():
        assert torch.equal(one(x)[..., passed], x[..., passed])
        torch.testing.assert_close(one(x)[..., kept], both(x)[..., kept])


def test_shuffle_moves_channels_and_nothing_else():
    shuffled, plain = (medmamba.Block(8, Mixing(4), s).eval() for s in (True, False))
    plain.load_state_dict(shuffled.state_dict())
    x = torch.randn(1, 4, 4, 8)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    with torch.no_grad():
        torch.testing.assert_close(shuffled(x) - x, (plain(x) - x)[..., order])
    assert count(build("medmamba_tiny[shuffle=false]")) == count(BASE)


@pytest.mark.parametrize("directions", [1, 2])
def test_directions_scale_the_scans_parameters(directions):
    fewer = build(f"medmamba_tiny[directions={directions}]")
    assert total(fewer, ".mixer") * 4 == total(BASE, ".mixer") * directions
    assert count(fewer) - total(fewer, ".mixer") == count(BASE) - total(BASE, ".mixer")


@pytest.mark.parametrize("d_state", [1, 4, 64])
def test_d_state_costs_what_the_formula_says(d_state):
    # B and C take one row each of x_proj, A one number, per state, channel and direction: 3 * 4 * d_inner.
    per_state = 12 * sum(depth * dim for depth, dim in zip(DEPTHS, DIMS, strict=True))
    assert count(build(f"medmamba_tiny[d_state={d_state}]")) == count(BASE) + (d_state - 16) * per_state


def test_mixers_cost_what_they_are():
    none, attention = build("medmamba_tiny[mixer=none]"), build("medmamba_tiny[mixer=attention]")
    assert count(none) == count(BASE) - total(BASE, ".mixer")
    squares = sum(depth * dim**2 for depth, dim in zip(DEPTHS, DIMS, strict=True))
    assert count(attention) == count(none) + 3 * squares


def influence(layer, size=5, dim=8):
    """Which output pixels (rows) an input pixel (columns) reaches, as a boolean (size^2, size^2)."""
    x = torch.randn(1, size, size, dim, requires_grad=True)
    y = layer(x).sum(-1).flatten()
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0].abs().sum(-1).flatten() for value in y]
    return torch.stack(rows) > 0


def test_one_direction_is_causal_and_two_or_four_are_not():
    pixels = 25
    causal = torch.ones(pixels, pixels, dtype=torch.bool).tril()
    assert torch.equal(influence(CrossScan(8, 2, 1, directions=1)), causal)
    assert influence(CrossScan(8, 2, 1, directions=2)).all()
    assert influence(CrossScan(8, 2, 1, directions=4)).all()


@pytest.mark.parametrize(("mixer", "everywhere"), [("scan", True), ("attention", True), ("none", False)])
def test_mixers_see_everything_or_their_neighbours(mixer, everywhere):
    layer = SS2D(8, 16, Mixing(4, mixer=mixer), gate=True, conv_bias=True)
    seen = influence(layer)
    rows, columns = torch.arange(25) // 5, torch.arange(25) % 5
    near = ((rows[:, None] - rows).abs() <= 1) & ((columns[:, None] - columns).abs() <= 1)
    assert torch.equal(seen, torch.ones_like(seen) if everywhere else near)


def test_attention_is_softmax_attention():
    layer = GlobalAttention(64)
    assert layer.heads == 2
    x = torch.randn(1, 3, 2, 64)
    q, k, v = layer.qkv(x.view(1, 6, 64)).chunk(3, -1)
    heads = []
    for part in (slice(0, 32), slice(32, 64)):
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(32)).softmax(-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(layer(x), torch.cat(heads, -1).view(1, 3, 2, 64))
    assert GlobalAttention(100).heads == 2  # 3 would not divide 100
    assert GlobalAttention(16).heads == 1


@pytest.mark.parametrize("name", ["medmamba_tiny_conv_twin", "medmamba_tiny_ssm_twin"])
def test_parameter_matched_ablations_match_in_parameters_and_use_every_channel(name):
    matched = build(name)
    assert abs(count(matched) / count(BASE) - 1) <= 0.002
    assert matched.feature_info == BASE.feature_info
    x = torch.randn(1, 4, 4, 96, requires_grad=True)
    block = build(name, device="cpu").stages[0].blocks[0].eval()
    (block(x) - x).abs().sum().backward()
    assert (x.grad.abs().sum((0, 1, 2)) > 0).all()


def test_patch_size_two_runs_natively_at_28_px():
    model = build("medmamba_tiny[patch_size=2]", num_classes=2, img_size=28, device="cpu").eval()
    maps = model.forward_intermediates(torch.randn(1, 3, 28, 28), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(14, 14), (7, 7), (3, 3), (1, 1)]
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    "name",
    [
        "vmamba_tiny[mixer=attention]",
        "vmamba_tiny[mixer=none]",
        "vmamba_tiny[directions=1]",
        "vmamba_small[d_state=16]",
    ],
)
def test_vmamba_has_the_scans_switches_too(name):
    model = build(name, num_classes=2)
    assert isinstance(model, vmamba.VMamba)
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 2)
    assert count(model) != count(build(name.partition("[")[0], num_classes=2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("medmamba_tiny[branch=cnn]", "branch=cnn is none of both, conv, ssm"),
        ("medmamba_tiny[brunch=conv]", "did you mean 'branch'"),
        ("medmamba_tiny[d_state=many]", "should be of type int"),
        ("vmamba_tiny[branch=conv]", "has no option 'branch'"),
        ("medmamba_tiny_conv_twin[mixer=none]", "has no option 'mixer'"),
    ],
)
def test_wrong_variants_are_refused_in_the_plan(name, message):
    with pytest.raises(RegistryError, match=message):
        parse_model(name)


def test_no_mixing_layer_is_left_of_the_removed_branch():
    assert not any(isinstance(m, CrossScan) for m in build("medmamba_tiny[mixer=none]").modules())
    assert not any(isinstance(m, SS2D) for m in build("medmamba_tiny[branch=conv]").modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in build("medmamba_tiny[branch=ssm]").modules())

"""timm's model interface, in full, on the smallest of each family."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from bench.models import medmamba, vmamba
from bench.models._ssm import Mixing

NAMES = ["medmamba_tiny", "vmamba_tiny"]
SMALL = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "num_classes": 5}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return timm.create_model(name, **SMALL).eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 48)


def test_registered_with_timm(name):
    family = name.split("_")[0]
    assert {f"{family}_{size}" for size in ("tiny", "small", "base")} <= set(timm.list_models(f"{family}_*"))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5, in_chans=1)
    assert model(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 5)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.get_submodule(model.default_cfg["first_conv"]) is not None
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


def test_import_alone_registers_and_does_no_work():
    code = (
        "import sys, json, timm, torch; rng = torch.get_rng_state(); import bench.models.medmamba, bench.models.vmamba;"
        "print(json.dumps([timm.is_model('medmamba_base_d16'), timm.is_model('vmamba_base'),"
        "bool(torch.equal(rng, torch.get_rng_state()))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True]
    assert "medmamba" not in done.stderr  # timm itself may warn


def test_features_and_head(model, image):
    with torch.no_grad():
        features = model.forward_features(image)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape == (2, 2, *((1,) if isinstance(model, medmamba.MedMamba) else (2,)), 128)
        assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        torch.testing.assert_close(pooled, features.mean((1, 2)))
        torch.testing.assert_close(model.forward_head(features), model(image))
        torch.testing.assert_close(model.get_classifier()(pooled), model(image))


def test_reset_classifier(model, image):
    model.reset_classifier(7)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.num_classes == 7
    assert model(image).shape == (2, 7)
    model.reset_classifier(0)
    assert model(image).shape == (2, 128)
    model.reset_classifier(3, global_pool="catavgmax")
    assert model(image).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(image).shape[-1] == 128
    assert model(image).dim() == 4


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (0,)])
def test_features_only(name, out_indices):
    image = torch.randn(1, 3, 64, 64)
    net = timm.create_model(name, features_only=True, out_indices=out_indices, **SMALL).eval()
    with torch.no_grad():
        maps = net(image)
    channels = [(16, 32, 64, 128)[i] for i in out_indices]
    strides = [(4, 8, 16, 32)[i] for i in out_indices]
    assert net.feature_info.channels() == channels
    assert net.feature_info.reduction() == strides
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    assert not any("head" in key for key in net.state_dict())


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook"])
def test_other_feature_extractors(name, feature_cls):
    net = timm.create_model(name, features_only=True, feature_cls=feature_cls, out_indices=(1, 3), **SMALL).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 64, 64))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 32), (1, 2, 2, 128)]


def test_forward_intermediates(model, image):
    with torch.no_grad():
        final, maps = model.forward_intermediates(image, norm=True)
        torch.testing.assert_close(final, model.forward_features(image))
        torch.testing.assert_close(maps[-1], final.permute(0, 3, 1, 2))
        last_two = model.forward_intermediates(image, indices=2, norm=True, intermediates_only=True)
        assert len(maps) == 4
        assert torch.equal(last_two[0], maps[2])
        early = model.forward_intermediates(image, indices=[0], stop_early=True, output_fmt="NHWC")
        assert torch.equal(early[1][0], maps[0].permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(image, output_fmt="NLC")


def test_layer_wise_learning_rate_decay(model):
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    depth = {name: scale[id(p)] for name, p in model.named_parameters()}
    order = ["patch_embed", *(f"stages.{i}.blocks.{j}" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))), "head"]
    scales = [{value for name, value in depth.items() if name.startswith(part)} for part in order]
    assert all(len(s) == 1 for s in scales)
    flat = [s.pop() for s in scales]
    assert flat == sorted(flat)
    assert len(set(flat)) == len(flat)
    assert flat[-1] == 1.0
    assert depth["stages.1.downsample." + ("norm.weight")] == flat[2]  # with the first block it opens for


def test_no_weight_decay(model):
    named = dict(model.named_parameters())
    kept = model.no_weight_decay()
    assert kept <= named.keys()
    assert len(kept) == 3 * 5  # A_log, D and dt_proj_bias of five blocks
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=kept)
    decayed = next(g for g in groups if g["weight_decay"])
    ids = {id(p) for p in decayed["params"]}
    assert not any(id(named[n]) in ids for n in kept)
    assert id(named["stages.0.blocks.0.ssm.mixer.x_proj_weight"]) in ids
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()


def test_gradient_checkpointing_is_equal(name, image):
    torch.manual_seed(3)
    plain = timm.create_model(name, drop_path_rate=0.3, **SMALL).train()
    saving = timm.create_model(name, drop_path_rate=0.3, **SMALL).train()
    saving.load_state_dict(plain.state_dict())
    saving.set_grad_checkpointing()
    outputs = []
    for net in (plain, saving):
        torch.manual_seed(4)  # the same paths are dropped
        out = net(image)
        out.square().sum().backward()
        outputs.append(out.detach())
    assert torch.equal(*outputs)
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    for (key, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(p, q), key  # the recomputed forward did not count the batch again
    saving.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saving.stages)


def test_drop_path_acts_in_training_only(name, image):
    model = timm.create_model(name, drop_path_rate=0.9, **SMALL)
    model.train()
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.9)
    assert rates[0] == pytest.approx(0.9 / 4)  # linear from 0 over five blocks; the first has none


def test_drop_path_of_medmamba_spares_the_convolutions():
    block = medmamba.Block(16, Mixing(4), shuffle=False, drop_path=0.999999).train()
    x = torch.randn(4, 8, 8, 16)
    change = block(x) - x
    assert (change[..., :8] != 0).any()
    assert (change[..., 8:] == 0).all()


def test_channel_shuffle_alternates():
    left, right = torch.arange(3.0).expand(1, 1, 1, 3), 10 + torch.arange(3.0).expand(1, 1, 1, 3)
    nothing, all_stays = torch.zeros(1, 1, 1, 6), nn.Identity()
    assert medmamba.add_halves(nothing, left, right, True, all_stays).flatten().tolist() == [0, 10, 1, 11, 2, 12]
    assert medmamba.add_halves(nothing, left, right, False, all_stays).flatten().tolist() == [0, 1, 2, 10, 11, 12]


def test_merging_order():
    merging = medmamba.PatchMerging(1, 4).requires_grad_(False)
    merging.reduction.weight.copy_(torch.eye(4))
    merging.norm = nn.Identity()
    x = torch.arange(6.0).view(1, 2, 3, 1)  # rows 0 1 2 / 3 4 5; the last column is dropped
    assert merging(x).flatten().tolist() == [0, 3, 1, 4]  # (0,0) (1,0) (0,1) (1,1)


@pytest.mark.parametrize("network", [medmamba.MedMamba, vmamba.VMamba])
def test_unknown_and_meaningless_arguments_are_errors(network):
    with pytest.raises(TypeError, match="dim_decoder"):
        network(dim_decoder=4)
    with pytest.raises(ValueError, match="directions=3"):
        network(directions=3)
    with pytest.raises(ValueError, match="mixer='mamba'"):
        network(mixer="mamba")
    with pytest.raises(ValueError, match="d_state=0"):
        network(d_state=0)
    with pytest.raises(ValueError, match=r"images must be \(batch, 3"):
        network(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16))(torch.randn(1, 1, 64, 64))


def test_medmamba_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="branch='ssd'"):
        medmamba.MedMamba(branch="ssd")
    with pytest.raises(ValueError, match="must be even"):
        medmamba.MedMamba(dims=(15, 30, 60, 120))
    with pytest.raises(ValueError, match="branch_dims needs"):
        medmamba.MedMamba(branch_dims=(16, 16, 16, 16))
    with pytest.raises(ValueError, match="at least 32 x 32 px, not 28 x 28"):
        timm.create_model("medmamba_tiny", img_size=28)
    with pytest.raises(ValueError, match="not 224 x 16"):
        timm.create_model("medmamba_tiny", img_size=(224, 16))

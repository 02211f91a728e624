"""timm's families are timm's networks, and ``timm:<name>`` reaches any other."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from bench.registry import RegistryError, expand_models, model_info, models

FAMILIES = ["resnet18", "resnet50", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_timms_network(name):
    torch.manual_seed(5)
    ours = models[name].build(num_classes=1000, in_chans=3, img_size=224).eval()
    theirs = timm.create_model(name).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("resolution", [28, 64, 112, 224, 256, 384])
def test_swin_keeps_its_windows(resolution):
    with torch.device("meta"):
        model = models["swin_tiny_patch4_window7_224"].build(num_classes=2, in_chans=3, img_size=resolution)
    grid = resolution // 4
    for i, stage in enumerate(model.layers):
        side = -(-grid // 2**i)
        for block in stage.blocks:
            assert block.window_size == (min(7, side),) * 2
    same = sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in models["swin_tiny_patch4_window7_224"].build(2, 3, 224).parameters()
    )
    assert same == (resolution >= 224 - 4)  # below, the last grid is smaller than a window


def test_resnet_keeps_its_stem():
    model = models["resnet18"].build(num_classes=2, in_chans=1, img_size=28)
    assert (model.conv1.kernel_size, model.conv1.stride) == ((7, 7), (2, 2))


def test_any_timm_model_by_name():
    spec = expand_models(["timm:convnext_atto"])[0]
    assert str(spec) == "timm:convnext_atto"
    facts = model_info(spec.name)
    model = facts.build(num_classes=3, in_chans=1, img_size=64).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    assert facts.group == "extra"
    assert facts.licence
    assert not any(str(s).startswith("timm:") for s in expand_models(["all"]))


def test_options_are_passed_on():
    spec = expand_models(["timm:vit_tiny_patch16_224[depth=2,class_token=false,global_pool=avg]"])[0]
    model = model_info(spec.name).build(num_classes=3, in_chans=3, img_size=32, **dict(spec.options))
    assert len(model.blocks) == 2
    with pytest.raises(RegistryError, match="depht"):
        model_info("timm:vit_tiny_patch16_224").build(num_classes=3, in_chans=3, img_size=32, depht=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", "did you mean 'resnet18'"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("timm:hf-hub:someone", "write timm:hf-hub:OWNER/NAME"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(RegistryError, match=message):
        model_info(name)


def test_what_cannot_run_is_known_before_it_runs():
    facts = model_info("timm:convnext_atto")
    assert "does not run at 28 px" in facts.unsupported(28, {})
    assert facts.unsupported(64, {}) is None
    assert "multiple of the patch (16 px)" in model_info("timm:mixer_s16_224").unsupported(28, {})
    assert model_info("timm:resnet18").unsupported(28, {}) is None


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_local_checkpoint_loads_safely(name, tmp_path):
    source = models[name].build(num_classes=4, in_chans=3, img_size=64).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    same = models[name].build(num_classes=4, in_chans=3, img_size=64, pretrained=path).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(same(image.expand(-1, 3, -1, -1)), source(image.expand(-1, 3, -1, -1)))
        grey = models[name].build(num_classes=4, in_chans=1, img_size=64, pretrained=path).eval()
        torch.testing.assert_close(grey(image), source(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    other = models[name].build(num_classes=9, in_chans=3, img_size=96, pretrained=path)  # positions are resized
    assert other.get_classifier().out_features == 9
    torch.save({"odd": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        models[name].build(num_classes=4, in_chans=3, img_size=64, pretrained=str(tmp_path / "odd.pth"))

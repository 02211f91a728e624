"""Public checkpoints load strictly; anything odd is refused by name; no pickle is run."""

from __future__ import annotations

import argparse
import importlib
import pickle
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from bench.models import medmamba, timm_models, vmamba
from bench.models._checkpoint import read_checkpoint

VARIANTS = [f"{family}_{size}" for family in ("medmamba", "vmamba") for size in ("tiny", "small", "base")]


def on_meta(name, **options):
    module = importlib.import_module(f"bench.models.{name.split('_')[0]}")
    with torch.device("meta"):
        return module, getattr(module, name)(**options)


@pytest.mark.parametrize("name", VARIANTS)
def test_public_key_files_load_strictly(name, parity):
    public = parity.load_keys(name)
    module, model = on_meta(name, num_classes=public["num_classes"])
    state = {e["key"]: torch.empty(e["shape"], dtype=getattr(torch, e["dtype"]), device="meta") for e in public["keys"]}
    model.load_state_dict(module.checkpoint_filter_fn(state, model), strict=True)
    assert sum(p.numel() for p in model.parameters()) == public["n_parameters"]
    assert sum(b.numel() for b in model.buffers()) == public["n_buffers"]
    assert len(model.state_dict()) == public["n_keys"]
    rates = [getattr(m, "drop_prob", 0.0) for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(public["config"]["drop_path_rate"])


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("medmamba_tiny", 6, 14_457_222),
        ("medmamba_small", 6, 18_625_158),
        ("medmamba_base", 6, 39_864_838),
        ("medmamba_small_d12", 1000, 23_557_480),
        ("medmamba_base_d16", 1000, 48_144_872),
    ],
)
def test_parameter_counts_to_the_digit(name, classes, parameters):
    _, model = on_meta(name, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.fixture
def public(parity):
    case = parity.load_case("medmamba")
    state = {k.removeprefix("state_dict/"): v for k, v in case.tensors.items() if k.startswith("state_dict/")}
    return case, state


def test_missing_key_is_named(public):
    case, state = public
    del state["layers.1.blocks.0.self_attention.Ds"]
    with pytest.raises(ValueError, match=re.escape("missing keys: stages.1.blocks.0.ssm.mixer.D")):
        medmamba.checkpoint_filter_fn(state, case.model)


def test_odd_key_is_named(public):
    case, state = public
    state["layers_up.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"keys that MedMamba does not have: layers_up\.0\.weight"):
        medmamba.checkpoint_filter_fn(state, case.model)


def test_wrong_shape_is_named(public):
    case, state = public
    state["layers.0.downsample.norm.weight"] = torch.zeros(63)
    with pytest.raises(ValueError, match=re.escape("layers.0.downsample.norm.weight is (63,), the model's (64,)")):
        medmamba.checkpoint_filter_fn(state, case.model)


def test_another_depth_does_not_load(public):
    _, state = public
    deeper = medmamba.MedMamba(depths=(1, 1, 3, 1), dims=(16, 32, 64, 128), num_classes=5)
    with pytest.raises(ValueError, match=r"missing keys: stages\.2\.blocks\.2"):
        medmamba.checkpoint_filter_fn(state, deeper)


def test_families_do_not_take_each_other(public):
    _, state = public
    other = vmamba.VMamba(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=5)
    with pytest.raises(ValueError, match="does not have"):
        vmamba.checkpoint_filter_fn(state, other)


def test_own_keys_and_data_parallel_prefix_load_too(public):
    case, state = public
    ours = case.model.state_dict()
    assert medmamba.checkpoint_filter_fn(ours, case.model).keys() == ours.keys()
    prefixed = {f"module.{key}": value for key, value in state.items()}
    assert medmamba.checkpoint_filter_fn(prefixed, case.model).keys() == ours.keys()


SMALL = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "drop_path_rate": 0.0}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "wrapped.pth"])
def test_pretrained_path_gives_the_public_logits(public, tmp_path, suffix):
    case, state = public
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if "wrapped" in suffix else state, path)
    model = medmamba.medmamba_tiny(pretrained=str(path), num_classes=5, **SMALL).eval()
    with torch.no_grad():
        logits = model(case.tensors["input/64x64"])
    assert (logits - case.tensors["logits64/64x64"]).abs().max() <= 1e-5


def test_other_classes_keep_a_fresh_head(public, tmp_path):
    _, state = public
    save_file(state, tmp_path / "w.safetensors")
    model = medmamba.medmamba_tiny(pretrained=tmp_path / "w.safetensors", num_classes=9, **SMALL)
    assert model.head.fc.weight.shape == (9, 128)
    assert torch.equal(model.patch_embed.proj.weight, state["patch_embed.proj.weight"])
    # DataParallel's prefix hides neither end: the head stays fresh and the stem is folded under it too.
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "p.safetensors")
    prefixed = medmamba.medmamba_tiny(pretrained=tmp_path / "p.safetensors", num_classes=9, in_chans=1, **SMALL)
    assert prefixed.head.fc.weight.shape == (9, 128)
    stem = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(prefixed.patch_embed.proj.weight.detach(), stem)
    headless = medmamba.medmamba_tiny(pretrained=tmp_path / "w.safetensors", num_classes=0, **SMALL)
    assert torch.equal(headless.patch_embed.proj.weight, state["patch_embed.proj.weight"])


@pytest.mark.parametrize("family", ["medmamba", "vmamba"])
def test_grey_images_give_what_their_three_equal_channels_give(parity, tmp_path, family):
    case = parity.load_case(family)
    save_file({k[11:]: v for k, v in case.tensors.items() if k.startswith("state_dict/")}, tmp_path / "w.safetensors")
    create = getattr(case.module, f"{family}_tiny")
    grey = create(pretrained=tmp_path / "w.safetensors", num_classes=5, in_chans=1, **SMALL).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(image), case.model(image.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)


class Payload:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("protocol", ["torch", "raw"])
def test_a_pickle_that_needs_more_is_refused(tmp_path, capsys, protocol):
    path = tmp_path / "evil.pth"
    if protocol == "torch":
        torch.save({"model": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth is refused"):
        medmamba.medmamba_tiny(pretrained=path, **SMALL)
    assert "a pickle ran" not in capsys.readouterr().out


def test_missing_file_and_empty_content(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "empty.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"1234567")
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        read_checkpoint(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("name", ["medmamba_tiny", "vmamba_tiny"])
def test_there_is_nothing_to_download(name):
    with pytest.raises(ValueError, match="path of a checkpoint"):
        on_meta(name, pretrained=True)


# --- checkpoints as training scripts leave them ----------------------------------------------------------------


def _wrapped(state: dict[str, torch.Tensor]) -> dict[str, object]:
    counted = {**state, "total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)}
    return {
        "module": {f"module.{key}": value for key, value in state.items()},
        "compiled": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "lightning": {
            "epoch": 3,
            "state_dict": {**{f"model.{key}": value for key, value in state.items()}, "loss.weight": torch.ones(2)},
        },
        "net": {"net": state},
        "model_state_dict": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.1},
        "nested": {"model": {"state_dict": state}},
        "args": {"state_dict": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9)},
        "counted": counted,
        "half": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        "no head": {key: value for key, value in state.items() if not key.startswith("fc.")},
        "two classes": {**state, "fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)},
    }


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=1000).state_dict()


KINDS = ("module", "compiled", "lightning", "net", "model_state_dict", "nested", "args", "counted", "half", "no head",
         "two classes")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_checkpoints(kind, resnet, tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save(_wrapped(resnet)[kind], path)
    model = timm_models.build("resnet18", 2, 3, 64, pretrained=path)
    for key, value in model.state_dict().items():
        if not key.startswith("fc."):
            torch.testing.assert_close(value, resnet[key], rtol=1e-3 if kind == "half" else 0, atol=1e-4)
    said = capsys.readouterr().out
    assert "it has no classifier of 2 classes; the model's starts fresh" in said
    assert ("are no part of the model" in said) == (kind in ("lightning", "counted"))


def test_what_cannot_be_unwrapped_is_one_sentence(resnet, tmp_path):
    torch.save(timm.create_model("resnet18"), tmp_path / "whole.pth")
    with pytest.raises(
        ValueError, match=r"objects of code \(timm.*save the weights alone: torch\.save\(model\.state_dict"
    ):
        timm_models.build("resnet18", 2, 3, 64, pretrained=tmp_path / "whole.pth")
    torch.save(resnet, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"does not fit the model; missing keys: .* and \d+ more; shapes: ") as error:
        timm_models.build("resnet50", 2, 3, 64, pretrained=tmp_path / "w.pth")
    assert len(str(error.value)) < 900 and "\n" not in str(error.value)
    odd = {f"layer{i}.odd": value for i, value in enumerate(resnet.values())}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="keys that ResNet does not have"):
        timm_models.build("resnet18", 2, 3, 64, pretrained=tmp_path / "odd.pth")

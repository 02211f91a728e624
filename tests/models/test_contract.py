"""One contract for every registered model, ours and timm's: what a sweep relies on without looking."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from bench.registry import expand_models, model_info, models

NAMES = list(models)
SMALLEST = ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "medmamba_tiny", "vmamba_tiny"]
RESOLUTIONS = (28, 32, 64, 96, 112, 128, 224, 384, 512, 1024)
UNSUPPORTED_28 = {n for n in NAMES if n.startswith(("vit", "medmamba"))}


@functools.lru_cache(maxsize=1)  # tests of one model follow each other (by scope): it is built once, never two are held
def built(name):
    torch.manual_seed(0)
    return models[name].build(num_classes=5, in_chans=3, img_size=32)


@contextlib.contextmanager
def silence():
    """Nothing may be printed, and nothing warned about."""
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("always")
        yield
    assert (out.getvalue(), err.getvalue(), [str(w.message) for w in caught]) == ("", "", [])


@pytest.mark.parametrize("name", NAMES, scope="class")
class TestEveryModel:
    def test_forward_backward_and_head(self, name):
        model = built(name)
        images = torch.randn(2, 3, 32, 32)
        with silence():
            model.train()
            F.cross_entropy(model(images), torch.tensor([0, 4])).backward()
        for key, p in model.named_parameters():
            assert p.grad is not None, key
            assert torch.isfinite(p.grad).all(), key
        model.zero_grad()
        model.eval()
        with silence(), torch.no_grad():
            first, again = model(images), model(images)
            alone = model(images[:1])
        assert first.shape == (2, 5)
        assert first.dtype == torch.float32
        assert torch.equal(first, again)
        torch.testing.assert_close(alone, first[:1], rtol=1e-4, atol=1e-4)

    def test_bfloat16_autocast(self, name):
        model = built(name).train()
        with silence(), torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.randn(2, 3, 32, 32))
            loss = F.cross_entropy(logits.float(), torch.tensor([0, 4]))
        loss.backward()
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        model.zero_grad()

    def test_reset_classifier_and_round_trip(self, name, tmp_path):
        model = built(name).eval()
        images = torch.randn(1, 3, 32, 32)
        state = model.state_dict()
        if name in SMALLEST:  # also through a file
            save_file(state, tmp_path / "model.safetensors")
            state = load_file(tmp_path / "model.safetensors")
        # Swin's index tables are not in its state, so it is built with real ones; the others need no initialisation.
        with torch.device("cpu" if name.startswith("swin") else "meta"):
            other = models[name].build(num_classes=5, in_chans=3, img_size=32).eval()
        other.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
        with torch.no_grad():
            assert torch.equal(model(images), other(images))
        other.reset_classifier(7)
        assert other(images).shape == (1, 7)
        other.reset_classifier(0)
        assert other(images).shape[0] == 1

    def test_parameters_are_the_registered_figure(self, name):
        with torch.device("meta"):
            model = models[name].build(num_classes=1000, in_chans=3, img_size=224)
        assert sum(p.numel() for p in model.parameters()) == models[name].params


@functools.lru_cache(maxsize=1)
def on_meta(name, resolution):
    with torch.device("meta"):
        return models[name].build(num_classes=3, in_chans=1, img_size=resolution).eval()


def runs_on_meta(name, resolution):
    depends = name.startswith(("vit", "swin"))  # position embeddings, tables: built for their resolution
    model = on_meta(name, resolution if depends else 224)
    with torch.no_grad():
        return tuple(model(torch.empty(2, 1, resolution, resolution, device="meta")).shape) == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_resolution_claims(name):
    # What a sweep asks for; meta tensors carry shapes through the whole network, of the smallest of each family.
    for resolution in RESOLUTIONS:
        reason = models[name].unsupported(resolution, {})
        assert (reason is not None) == (resolution == 28 and name in UNSUPPORTED_28), (resolution, reason)
        if reason is None and name in SMALLEST:
            assert runs_on_meta(name, resolution), resolution


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("medmamba")])
def test_what_is_unsupported_really_fails(name):
    model = on_meta(name, 224)
    with pytest.raises(ValueError, match="at least 32 x 32"):
        model(torch.empty(1, 1, 28, 28, device="meta"))
    assert "patch_size=2" in models[name].unsupported(28, {})
    assert models[name].unsupported(28, {"patch_size": 2}) is None
    assert "16 (8 patches of 2 px" in models[name].unsupported(15, {"patch_size": 2})
    with pytest.raises(ValueError, match="at least 32 x 32"):
        models[name].build(num_classes=2, in_chans=3, img_size=28)


def test_reasons_name_what_would_run():
    assert models["vit_tiny_patch16_224"].unsupported(28, {}).endswith("for example to 16 or 32")
    assert models["vit_tiny_patch16_224"].unsupported(9, {}).endswith("for example to 16")
    assert "30 px is not a multiple of the patch (4 px)" in models["swin_tiny_patch4_window7_224"].unsupported(30, {})
    assert models["vmamba_tiny"].unsupported(1, {}) is None


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        *((name, 112) for name in SMALLEST),
        *((name, 28) for name in SMALLEST if name not in UNSUPPORTED_28),
        ("medmamba_tiny[patch_size=2]", 28),
        ("medmamba_tiny[patch_size=1]", 28),
    ],
)
def test_real_images(name, resolution):
    in_chans = 1  # test_forward_backward_and_head has three
    spec = expand_models([name])[0]
    model = models[spec.name].build(num_classes=4, in_chans=in_chans, img_size=resolution, **dict(spec.options)).eval()
    with silence(), torch.no_grad():
        logits = model(torch.randn(1, in_chans, resolution, resolution))
    assert logits.shape == (1, 4)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["medmamba_tiny", "vmamba_tiny", "resnet18"])
@pytest.mark.parametrize("shape", [(96, 64), (33, 130), (47, 224)])
def test_not_square(name, shape):
    with torch.no_grad():
        assert built(name).eval()(torch.randn(1, 3, *shape)).shape == (1, 5)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_option_of_the_registry_is_the_builders(name):
    facts = models[name]
    for key, option in facts.options.items():
        values = option.choices or (option.default,)
        for value in values:
            with torch.device("meta"):
                model = facts.build(num_classes=2, in_chans=3, img_size=64, **{key: value})
            assert isinstance(model, torch.nn.Module)
    with torch.device("meta"), pytest.raises((TypeError, ValueError), match="no_such_option"):
        facts.build(num_classes=2, in_chans=3, img_size=64, no_such_option=1)


@pytest.mark.parametrize("name", SMALLEST)
def test_registered_defaults_are_the_builders(name):
    # A variant equal to its default is dropped from a Cell's name, so both must say the same.
    facts = models[name]
    with torch.device("meta"):
        plain = facts.build(num_classes=2, in_chans=3, img_size=64)
        spelled = facts.build(
            num_classes=2, in_chans=3, img_size=64, **{k: o.default for k, o in facts.options.items()}
        )
    assert str(plain) == str(spelled)
    assert models["medmamba_tiny"].options["branch"].default == "both"


def test_facts_are_complete():
    own = [facts for facts in models.values() if not facts.plugin_file]  # other tests may have brought theirs
    for facts in own:
        assert facts.summary, facts.name
        assert facts.paper, facts.name
        assert facts.licence, facts.name
        assert facts.published_note, facts.name
        assert facts.macs_g_224 or facts.group == "ablation", facts.name
    assert [str(s) for s in expand_models(["all"])] == [f.name for f in own if f.group == "main"]
    assert {f.group for f in own} == {"main", "extra", "ablation"}
    assert model_info("medmamba_small_d12").group == "extra"

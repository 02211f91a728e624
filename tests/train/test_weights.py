"""Weights that are kept, weights that are gone on from, and batches that do not fit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bench import registry
from bench.data.cache import open_entry
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import LATER_SETTINGS, AccuracyCell, Context, Result, cell_key
from bench.record.paths import weights_path
from bench.registry import parse_model
from bench.registry.normalisation import normalisation
from bench.runner.executors.base import Finished
from bench.runner.jobs import write_finished
from bench.sweep import config
from bench.sweep.recipes import FIELDS, resolve
from bench.train import weights
from bench.train.accuracy import build_model, run_accuracy
from bench.train.loop import Trainer, scores_of
from bench.train.pipeline import Pipeline

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = {"n_train": 64, "n_val": 32, "n_test": 48}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A phantom of few images, under its own name."""
    info = replace(registry.datasets["phantom_local"], name="phantom_local-few", groups=(), **SMALL)
    monkeypatch.setitem(registry.datasets._info, info.name, info)
    monkeypatch.setattr("bench.datasets.phantoms.Phantom.__init__", _named_otherwise)
    yield
    torch.use_deterministic_algorithms(False)


def _named_otherwise(self: Any, info: Any) -> None:
    self.info, self.kind = info, "phantom_local"


def cell(**changes: Any) -> AccuracyCell:
    recipe = resolve("quick", epochs=2, batch_size=16, **changes.pop("recipe", {}))
    given: dict[str, Any] = {
        "model": "timm:test_resnet", "dataset": "phantom_local-few", "size": 32, "resolution": 32, "resize": "native",
        "seed": 0, "precision": "fp32",
        "data_fingerprint": registry.datasets["phantom_local-few"].open().fingerprint(32, None),
    }  # fmt: skip
    return AccuracyCell(recipe=recipe, **{**given, **changes})


def context(out: Path, keep: bool) -> Context:
    return Context("cpu", torch.get_num_threads(), None, out, out, lambda event: None, keep_weights=keep)


# --- kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9}])
def test_kept_weights_are_those_that_made_the_scores(tmp_path: Path, extra: dict[str, Any]) -> None:
    what = cell(recipe=extra)
    result = run_accuracy(what, context(tmp_path, keep=True))
    path = weights_path(tmp_path, cell_key(what))
    info = registry.datasets["phantom_local-few"]
    model, _ = build_model(replace(what, seed=7), info, torch.device("cpu"))
    model.load_state_dict(load_file(path))
    split = open_entry(info, 32, None, tmp_path).splits["test"]
    reader = Pipeline(
        split.images, split.labels, what.recipe, resolution=32, resize="native", device=torch.device("cpu"),
        channels_last=result.metrics["channels_last"],
    )  # fmt: skip
    assert np.array_equal(scores_of(model, reader, info.task, "fp32"), result.arrays["test_scores"])
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["medbench"])
    assert facts["key"] == cell_key(what) and facts["model"] == what.model and facts["mean"] == [0.5] * 3
    assert facts["classes"] == list(info.classes) and facts["epoch"] == result.metrics["best_epoch"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    run_accuracy(cell(), context(tmp_path, keep=False))
    assert not (tmp_path / "weights").exists()


def test_a_result_outlives_a_failed_second_training_for_its_weights(tmp_path: Path) -> None:
    what = cell()
    key = cell_key(what)
    first = write_finished(tmp_path, key, what, Finished(Result({"test_auc": 0.75}), {}, 1.0))
    again = write_finished(tmp_path, key, what, Finished(Result({}, "timeout", "took longer"), {}, 1.0))
    assert again == first == store.read_record(tmp_path / "cells" / f"{key}.json")
    write_finished(tmp_path, key, what, Finished(Result({"test_auc": 0.8}), {}, 1.0))
    assert store.read_record(tmp_path / "cells" / f"{key}.json")["metrics"]["test_auc"] == 0.8


def test_a_diverged_training_leaves_no_weights(tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "optimizer": "sgd", "gradient_clip": 0.0, "warmup_epochs": 0.0}
    assert run_accuracy(cell(recipe=wild), context(tmp_path, keep=True)).status == "diverged"
    assert not (tmp_path / "weights").exists()


# --- gone on from ----------------------------------------------------------------------------------------------


def test_normalisation_follows_pretrained_weights(tmp_path: Path) -> None:
    assert normalisation(parse_model("resnet18")) is None
    own = tmp_path / "own.safetensors"
    save_file({"x": torch.zeros(1)}, own, {"medbench": '{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}'})
    assert normalisation(parse_model(f"resnet18[pretrained={own}]")) == ((0.5,) * 3, (0.25,) * 3)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    assert normalisation(parse_model(f"resnet18[pretrained={foreign}]")) == IMAGENET
    assert normalisation(parse_model(f"vmamba_tiny[pretrained={foreign}]")) == IMAGENET
    assert normalisation(parse_model(f"medmamba_tiny[pretrained={foreign}]")) == ((0.5,) * 3, (0.5,) * 3)
    inception = timm.get_pretrained_cfg("vit_base_patch16_224")
    assert normalisation(parse_model(f"timm:vit_base_patch16_224[pretrained={foreign}]")) == (
        inception.mean,
        inception.std,
    )


def test_a_header_that_is_none_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"nope"):
        path.write_bytes(content)
        assert normalisation(parse_model(f"resnet18[pretrained={path}]")) == IMAGENET


def test_a_plan_of_pretrained_cells_says_how_they_are_fed(tmp_path: Path) -> None:
    source = cell()
    run_accuracy(source, context(tmp_path, keep=True))
    path = weights_path(tmp_path, cell_key(source))

    def planned(**flags: Any) -> AccuracyCell:
        given = {
            "sweep.models": [f"timm:test_resnet[pretrained={path}]"], "sweep.datasets": ["phantom_local"],
            "sweep.resolutions": [32], "sweep.kinds": ["accuracy"], "run.device": "cpu",
        }  # fmt: skip
        (tmp_path / "bench.toml").write_text("")
        (found,) = make_plan(config.load(tmp_path / "bench.toml", None, {**given, **flags})).cells.values()
        assert isinstance(found, AccuracyCell)
        return found

    assert planned().normalisation == ((0.5,) * 3, (0.5,) * 3)
    insisting = planned(**{"recipe.normalisation": "recipe"})
    assert insisting.normalisation is None and "normalisation" not in insisting.spec()
    scratch = planned(**{"sweep.models": ["timm:test_resnet"]})
    assert scratch.normalisation is None and "normalisation" not in scratch.spec()


def test_each_channel_is_normalised_as_the_weights_say() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    read = Pipeline(
        pixels, np.arange(3), resolve("medmnist"), resolution=16, resize="native", device=torch.device("cpu"),
        normalisation=IMAGENET,
    )  # fmt: skip
    (found,) = read.eval_batches()
    for channel, (mean, std) in enumerate(zip(*IMAGENET, strict=True)):
        assert np.allclose(found[:, channel], (pixels[..., 0] / 255 - mean) / std, atol=1e-6)
    gray = Pipeline(
        pixels, np.arange(3), resolve("medmnist", as_rgb=False), resolution=16, resize="native",
        device=torch.device("cpu"), normalisation=IMAGENET,
    )  # fmt: skip
    assert gray.normalisation == (pytest.approx((0.449,)), pytest.approx((0.226,)))


# --- memory ----------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_accumulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = Trainer.forward, []

    def forward(trainer: Trainer, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(images))
        return original(trainer, model, images)

    monkeypatch.setattr(Trainer, "forward", forward)
    result = run_accuracy(cell(), context(tmp_path, keep=False))
    assert result.status == "ok" and result.metrics["micro_batch_size"] == 4 and max(seen) == 4
    monkeypatch.setattr(Trainer, "forward", original)
    stated = run_accuracy(cell(recipe={"micro_batch_size": 4, "eval_batch_size": 4}), context(tmp_path, keep=False))
    assert "micro_batch_size" not in stated.metrics
    assert np.array_equal(
        stated.arrays["test_scores"], result.arrays["test_scores"]
    )  # begun again from the same weights


def test_what_does_not_fit_at_all_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(trainer: Trainer, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        run_accuracy(cell(), context(tmp_path, keep=False))


# --- keys ------------------------------------------------------------------------------------------------------


def test_keys_are_those_of_the_first_version() -> None:
    """Written down from the version before weights, layer decay and compiled steps existed."""
    given: dict[str, Any] = {
        "model": "resnet18", "dataset": "breastmnist", "size": 28, "resolution": 224, "resize": "nearest", "seed": 0,
        "precision": "fp32", "data_fingerprint": "x",
    }  # fmt: skip
    assert cell_key(AccuracyCell(recipe=resolve("medmnist"), **given)) == "260d88802b20e87598b3"
    assert cell_key(AccuracyCell(recipe=resolve("standard"), **given)) == "2e0433e2dcd8fe06f11b"
    assert {key: FIELDS[key].default for key in LATER_SETTINGS} == dict(LATER_SETTINGS)
    other = AccuracyCell(recipe=resolve("standard", layer_decay=0.75), **given)
    assert other.spec()["recipe_settings"]["layer_decay"] == 0.75 and cell_key(other) != "2e0433e2dcd8fe06f11b"


def test_a_file_of_weights_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: Any, path: Path, facts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", broken)
    what, info = cell(), registry.datasets["phantom_local-few"]
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path, what, info, {"x": torch.zeros(1)}, ((0.5,), (0.5,)), 1)
    assert not list((tmp_path / "weights").iterdir())


def test_who_may_read_a_run_may_read_its_weights(tmp_path: Path) -> None:
    """The library of the format makes files that their owner alone can read."""
    plain = tmp_path / "plain"
    plain.touch()
    state = {"a": torch.zeros(3)}
    cell = make_plan(config.load(None, None, {"sweep.models": "resnet18", "sweep.datasets": "phantom_local"})).cells
    first = next(one for one in cell.values() if isinstance(one, AccuracyCell))
    path = weights.save(tmp_path, first, registry.datasets["phantom_local"], state, IMAGENET, 1)
    assert path.stat().st_mode == plain.stat().st_mode


def test_shifted_phantoms_show_the_same_scenes_otherwise() -> None:
    from bench.datasets import phantoms

    for name in ("noise", "contrast", "scale"):
        (low, high), (other_low, other_high) = (getattr(a, name) for a in (phantoms.STANDARD, phantoms.SHIFTED))
        assert other_low > high or other_high < low
    for kind in phantoms.KINDS:
        usual, shifted = (phantoms.generate(kind, "test", 6, 32, a) for a in (phantoms.STANDARD, phantoms.SHIFTED))
        assert (usual.labels == shifted.labels).all() and (usual.images != shifted.images).any()
        info = registry.datasets[f"{kind}_shifted"]
        assert info.classes == registry.datasets[kind].classes and kind not in registry.expand_datasets(
            ["phantoms_shifted"]
        )
    assert registry.expand_datasets(["phantoms"]) == list(phantoms.KINDS)  # the word means what it meant

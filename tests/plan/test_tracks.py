"""Tracks: what a sweep with pretrained weights trains, under which names, and where its weights come from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from bench import registry
from bench.data import weights
from bench.data.weights import leak_of_weights, locate
from bench.plan import class_maps
from bench.plan.plan import make_plan
from bench.record.cells import AccuracyCell, cell_key, features_key, track_of
from bench.registry import ModelSpec, hub, parse_model
from bench.registry.build import build
from bench.registry.weights import names_weights, with_weights, without_weights
from bench.sweep import config
from bench.sweep.config import ConfigError

REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ResNet."""
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Caches that are empty, and a hub that nobody reaches."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", _offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _offline)
    real = hub.cached
    monkeypatch.setattr(hub, "cached", lambda repository, names=hub.WEIGHTS: _cached(cache, repository, names))
    assert real
    return cache


def _offline(*_: Any, **__: Any) -> Any:
    raise OSError("Name or service not known")


def _cached(cache: Path, repository: str, names: tuple[str, ...]) -> Path | None:
    import huggingface_hub

    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=cache)
        if isinstance(found, str):
            return Path(found)
    return None


def put_on_hub(cache: Path, repository: str, **files: bytes) -> None:
    """A repository in the hub's cache, laid out as its client does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    for name, data in files.items():
        (folder / "snapshots" / "abc" / name.replace("_", ".")).write_bytes(data)


def cells(models: str, **changes: Any) -> list[AccuracyCell]:
    flags = {"sweep.models": models, "sweep.datasets": "phantom_local[train=60]", "sweep.resolutions": [32]}
    flags |= {"sweep.kinds": "accuracy", "sweep.recipe": "quick"} | {f"sweep.{k}": v for k, v in changes.items()}
    plan = make_plan(config.load(None, None, flags))
    return [cell for cell in plan.cells.values() if isinstance(cell, AccuracyCell)]


def test_every_track_of_one_network(checkpoint: Path) -> None:
    named = f"timm:test_resnet[pretrained={checkpoint}]"
    found = cells(f"{named},resnet18", track="frozen,finetune,scratch", heads="knn11,linear")
    assert Counter((c.track, c.model, c.head) for c in found) == Counter(
        [("frozen", model, head) for model in (named, "timm:test_resnet") for head in ("knn11", "linear")]
        + [("finetune", named, None), ("scratch", "timm:test_resnet", None), ("scratch", "resnet18", None)]
    )
    frozen = [cell for cell in found if cell.track == "frozen"]
    assert len({cell.normalisation for cell in frozen}) == 1  # the random network is fed as the pretrained one
    assert frozen[0].normalisation
    assert {cell.recipe["name"] for cell in found if cell.track == "finetune"} == {"finetune"}
    assert {cell.recipe["name"] for cell in found if cell.track == "scratch"} == {"quick"}


def test_one_spelling_of_a_training_is_as_good_as_another(checkpoint: Path) -> None:
    named = f"timm:test_resnet[pretrained={checkpoint}]"
    plain, tracked = cells(named)[0], cells(named, track="finetune")[0]
    assert cell_key(plain) == cell_key(tracked)
    assert "track" not in plain.spec()
    assert track_of(plain.spec()) == "finetune"
    assert cell_key(cells("resnet18")[0]) == cell_key(cells("resnet18", track="scratch")[0])
    assert "track" in cells(named, track="frozen")[0].spec()


def test_frozen_cells_share_features_but_random_networks_do_not(checkpoint: Path) -> None:
    named = f"timm:test_resnet[pretrained={checkpoint}]"
    found = cells(named, track="frozen", seeds="0,1,2", shots="5", draws=4)
    assert len(found) == 2 * 3 * 3 * 5
    shared = {features_key(cell) for cell in found if cell.weights_sha256}
    assert len(shared) == 1
    assert len({features_key(cell) for cell in found if not cell.weights_sha256}) == 3


def test_few_labels_are_drawn_as_often_as_asked() -> None:
    found = cells("resnet18", shots="1,5", label_fraction=".1,1", draws=2)
    assert Counter((c.shots, c.label_fraction) for c in found) == {
        (1, 1.0): 2, (5, 1.0): 2, (None, 0.1): 2, (None, 1.0): 1,
    }  # fmt: skip
    assert "5 shots, draw 1" in " ".join(map(str, [*map(_label, found)]))


def _label(cell: AccuracyCell) -> str:
    from bench.record.cells import cell_label

    return cell_label(cell)


def test_the_finetune_recipe_is_the_sweeps_only_if_nothing_else_is_trained(checkpoint: Path) -> None:
    named = f"timm:test_resnet[pretrained={checkpoint}]"
    assert cells(named, track="finetune")[0].recipe["name"] == "quick"
    both = cells(named, track="finetune,scratch", finetune_recipe="medmnistplus")
    assert {cell.recipe["name"] for cell in both} == {"medmnistplus", "quick"}


@pytest.mark.parametrize(
    ("models", "changes", "said"),
    [
        ("resnet18", {"track": "frozen"}, "no model names any; write resnet18"),
        ("resnet18", {"track": "freezed"}, "freezed"),
        ("resnet18", {"shots": "0"}, "shots"),
        ("resnet18", {"label_fraction": "1.5"}, "label_fraction"),
        ("medmamba_tiny[pretrained=true]", {"track": "frozen"}, "no weights of medmamba_tiny are published"),
        ("timm:test_resnet[pretrained=nowhere.pt]", {}, "there is no weights file nowhere.pt"),
        ("timm:test_resnet[pretrained=true]", {}, "test_resnet.r160_in1k is not in the hub's cache"),
        (
            "timm:test_resnet.r160_in1k",
            {"track": "finetune"},
            r"hf download timm/test_resnet.r160_in1k.*pretrained=FILE",
        ),
        ("timm:tf_efficientnet_lite0[pretrained=true]", {}, "bench fetch --weights tf_efficientnet_lite0"),
        ("timm:hf-hub:someone/model", {"track": "frozen"}, "config.json of someone/model is not in the hub's cache"),
    ],
)
def test_what_is_refused_and_what_to_do(models: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cells(models, **changes)


def test_weights_in_the_hubs_cache_are_hashed_and_described(no_hub: Path, checkpoint: Path) -> None:
    card = b"Fine-tuned on MedMNIST, all sets."
    put_on_hub(no_hub, REPOSITORY, model_safetensors=checkpoint.read_bytes(), README_md=card)
    found = cells("timm:test_resnet.r160_in1k", track="frozen", heads="linear")
    assert [cell.model for cell in found] == ["timm:test_resnet.r160_in1k[pretrained=true]", "timm:test_resnet"]
    assert found[0].weights_sha256 == weights.file_sha256(str(checkpoint))
    given = locate(parse_model(found[0].model))
    assert (given.source, given.licence, given.trained_on) == (f"hub {REPOSITORY}", "apache-2.0", "ImageNet-1k")
    leak = leak_of_weights("breastmnist", given)
    assert leak and "names medmnist" in leak.text
    assert leak_of_weights("phantom_local", given) is None


def test_a_model_of_the_hub_is_built_from_its_own_config(no_hub: Path, checkpoint: Path) -> None:
    stated = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "license": "mit"}}
    stated["pretrained_cfg"] |= {"input_size": [3, 64, 64], "first_conv": "conv1", "classifier": "fc"}  # type: ignore
    put_on_hub(no_hub, "me/mine", model_safetensors=checkpoint.read_bytes(), config_json=json.dumps(stated).encode())
    found = cells("timm:hf-hub:me/mine", track="frozen", heads="linear")
    assert [cell.model for cell in found] == [
        "timm:hf-hub:me/mine[pretrained=true]", "timm:hf-hub:me/mine[pretrained=false]",
    ]  # fmt: skip
    assert found[1].normalisation == ((0.1,) * 3, (0.2,) * 3)
    assert found[1].weights_sha256 is None
    network = registry.model_info("timm:hf-hub:me/mine").build(0, 3, 32, pretrained=True)
    assert (
        network.conv1[0].weight == timm.create_model("test_resnet", checkpoint_path=checkpoint).conv1[0].weight
    ).all()


def test_a_folder_and_a_cell_of_a_run_are_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "folder", tmp_path / "run"
    for path in (folder / "model.safetensors", run / "weights" / "0123456789abcdef0123.safetensors"):
        path.parent.mkdir(parents=True)
        path.write_bytes(checkpoint.read_bytes())
    (run / "cells").mkdir()
    (run / "cells" / "ffff.json").write_text("{}")
    for place in (folder, run / "0123"):
        assert cells(f"timm:test_resnet[pretrained={place}]")[0].weights_sha256 == weights.file_sha256(str(checkpoint))
    for place, said in ((run / "ffff", "--keep-weights"), (run / "eeee", "no such cell"), (tmp_path, "has no model")):
        with pytest.raises(ConfigError, match=said):
            cells(f"timm:test_resnet[pretrained={place}]")


@pytest.mark.parametrize(
    ("text", "full", "bare"),
    [
        ("resnet18", None, "resnet18"),
        ("resnet18[pretrained=true]", "resnet18[pretrained=true]", "resnet18"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k[pretrained=true]", "timm:resnet18"),
        ("timm:hf-hub:a/b", "timm:hf-hub:a/b[pretrained=true]", "timm:hf-hub:a/b[pretrained=false]"),
    ],
)
def test_names_with_and_without_their_weights(text: str, full: str | None, bare: str) -> None:
    name, bracket, _ = text.partition("[")
    spec = ModelSpec(name, (("pretrained", True),) if bracket else ())
    assert names_weights(spec) == (full is not None)
    assert str(with_weights(spec)) == (full or text)
    assert str(without_weights(spec)) == bare
    assert not names_weights(without_weights(spec))


def test_neighbours_keep_no_weights_and_no_head_is_transferred(checkpoint: Path) -> None:
    named = f"timm:test_resnet[pretrained={checkpoint}]"
    found = {cell_key(cell): cell for cell in cells(named, track="frozen,finetune", heads="linear,knn11")}
    kept = class_maps.kept_weights(found, (), keep_all=True)
    assert {(found[key].track, found[key].head) for key in kept} == {("finetune", None), ("frozen", "linear")}
    with pytest.raises(ConfigError, match="add finetune or scratch to --track"):
        cells(named, track="frozen", transfer=["phantom_local[train=60]:phantom_local"])


def test_words_of_the_registry_name_models_that_timm_has_weights_of() -> None:
    tagged = set(timm.list_pretrained())
    for word in ("modern", "medmnistplus"):
        specs = registry.expand_models([word])
        assert len(specs) >= 9
        assert {spec.name.removeprefix("timm:") for spec in specs} <= tagged
        assert all(names_weights(spec) for spec in specs)


def test_a_speed_needs_no_weights() -> None:
    network = build("timm:test_resnet[pretrained=true]", 32, num_classes=2, weights=False)  # the hub cannot be reached
    assert sum(p.numel() for p in network.parameters())

"""What a plan says about data: resize rules, fingerprints taken once, sources that are not there."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.cli.main import main
from bench.plan import accuracy, plan
from bench.registry import DatasetInfo
from bench.runner.jobs import run_info
from bench.sweep import config, recipes


def planned(**keys) -> plan.Plan:
    flags = {"sweep.models": "resnet18", "sweep.kinds": "accuracy", "sweep.resolutions": "32,64", **keys}
    return plan.make_plan(config.load(None, None, flags))


class Anywhere:
    asked = 0

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        type(self).asked += 1
        if self.info.name.endswith("none"):
            raise ValueError("there is no archive data.zip; ask its authors for it")
        return f"{size}"


@pytest.fixture
def source(monkeypatch):
    """``made:PLACE`` names a dataset of images of any size."""

    def facts(name: str) -> DatasetInfo:
        counts = {"n_train": 9, "n_val": 9, "n_test": 9}
        return DatasetInfo(
            name, "multi-class", ("a", "b"), 3, Anywhere, varied=True, traps=("it is made up",), **counts
        )

    monkeypatch.setitem(registry.SCHEMES, "made", facts)
    monkeypatch.setattr(Anywhere, "asked", 0)


def rules(made: plan.Plan) -> dict[tuple[str, int], str]:
    return {(cell.dataset, cell.resolution): cell.resize for cell in made.cells.values()}


def test_auto_is_the_official_rule_for_one_size_and_antialiased_for_any(source):
    made = planned(**{"sweep.datasets": "phantom_local,made:x y/ü"})
    assert rules(made) == {
        ("phantom_local", 32): "native", ("phantom_local", 64): "native",
        ("made:x y/ü", 32): "bilinear", ("made:x y/ü", 64): "bilinear",
    }  # fmt: skip
    assert {cell.size for cell in made.cells.values() if cell.dataset.startswith("made")} == {32, 64}


def test_other_rules_are_other_cells(source):
    keys: set[str] = set()
    for rule in ("native", "nearest", "bilinear", "bicubic", "pad"):
        made = planned(**{"sweep.datasets": "made:x", "sweep.resize": rule})
        assert set(rules(made).values()) == {rule}
        keys |= set(made.cells)
    assert len(keys) == 10


def test_a_fingerprint_is_taken_once_for_all_cells(source):
    made = planned(**{"sweep.datasets": "made:x", "sweep.models": "resnet,vit", "sweep.seeds": "0,1,2"})
    assert len(made.cells) > 20 and Anywhere.asked == 2


def test_a_source_that_is_not_there(source, tmp_path, capsys):
    flags = {"sweep.datasets": "made:none,phantom_local"}
    with pytest.raises(config.ConfigError, match=r"made:none: there is no archive data\.zip; ask its authors"):
        planned(**flags)
    made = planned(**flags, **{"run.skip_missing": True})
    assert {cell.dataset for cell in made.cells.values()} == {"phantom_local"} and made.runnable
    assert len(made.skipped) == 2 and "ask its authors" in made.skipped[0]
    assert main(["plan", "--models", "resnet18", "--datasets", f"folder:{tmp_path}/none", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}/none" in capsys.readouterr().err


def test_run_json_says_what_is_known_of_each_dataset(source, tmp_path: Path):
    flags = {"sweep.models": "resnet18", "sweep.kinds": "accuracy", "sweep.resolutions": "32"}
    loaded = config.load(None, None, {**flags, "sweep.datasets": "made:x"})
    first = run_info(loaded, plan.make_plan(loaded), "bench run x", {})
    loaded = config.load(None, None, {**flags, "sweep.datasets": "phantom_local"})
    both = json.loads(json.dumps(run_info(loaded, plan.make_plan(loaded), "bench run y", first)))
    assert list(both["datasets"]) == ["made:x", "phantom_local"]
    assert both["datasets"]["made:x"]["traps"] == ["it is made up"]
    assert both["datasets"]["phantom_local"]["classes"] == ["granular", "reticular"]
    assert "Apache" in both["datasets"]["phantom_local"]["licence"]
    assert {command: len(keys) for command, keys in both["planned"].items()} == {"bench run x": 1, "bench run y": 1}


def test_native_cannot_change_a_size(monkeypatch):
    monkeypatch.setattr(accuracy, "preflight", lambda wanted, root: [])
    with pytest.raises(config.ConfigError, match="native feeds images as they are, but those of breastmnist have 28"):
        planned(**{"sweep.datasets": "breastmnist", "sweep.resize": "native"})


def test_pad_cannot_shrink(monkeypatch):
    monkeypatch.setattr(accuracy, "preflight", lambda wanted, root: [])
    flags = {"sweep.datasets": "breastmnist", "sweep.sizes": "64", "sweep.resize": "pad", "sweep.recipe": "quick"}
    made = planned(**flags, **{"sweep.resolutions": "32,96"})
    assert {(c.resolution, made.unsupported.get(k)) for k, c in made.cells.items()} == {
        (32, "zero padding cannot shrink 64 pixels to 32"), (96, None),
    }  # fmt: skip
    with pytest.raises(config.ConfigError, match=r"--resize: zero padding cannot shrink 64 pixels to 32 \(breastmnist"):
        planned(**flags, **{"sweep.resolutions": "32"})


def test_phantoms_have_a_least_size():
    from bench.datasets.phantoms import SMALLEST

    needs = "phantom_local cannot be made at 16 pixels: its texture needs 28 or more"
    assert {registry.dataset_info(n).least_size for n in registry.expand_datasets(["phantoms"])} == {SMALLEST}
    made = planned(**{"sweep.datasets": "phantom_local", "sweep.resolutions": "16,32"})
    assert {(c.resolution, made.unsupported.get(k)) for k, c in made.cells.items()} == {(16, needs), (32, None)}
    with pytest.raises(config.ConfigError, match=f"--resolutions: {needs}"):
        planned(**{"sweep.datasets": "phantom_local", "sweep.resolutions": "16"})


def test_a_plan_of_nothing_exits_as_a_run_of_it(tmp_path: Path, capsys):
    flags = ["--models", "resnet18", "--kinds", "accuracy", "--datasets", "retinamnist", "--data-root", str(tmp_path)]
    command = ["plan", *flags, "--skip-missing", "--out", str(tmp_path / "out")]
    for more in ([], ["--json"]):
        assert main([*command, *more]) == 2
        assert "bench: nothing is left to run" in capsys.readouterr().err


def test_two_spellings_of_a_folder_are_one_dataset(tmp_path: Path, capsys):
    folder = tmp_path / "a b ü"
    for split in ("train", "val", "test"):
        for label in ("ill", "well"):
            (folder / split / label).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((8, 8), 10 * index, np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    names = registry.expand_datasets(
        [f"folder:{folder}", f"folder:{tmp_path}/x/../a b ü/", f" folder:{folder}".strip()]
    )
    assert len(names) == 1
    info = registry.dataset_info(names[0])
    assert info.varied and info.classes == ("ill", "well") and info.n_train == 4
    assert registry.dataset_info(names[0]) is info
    stem = registry.file_stem(names[0])
    assert stem.isascii() and " " not in stem and "/" not in stem and registry.file_stem("breastmnist") == "breastmnist"


@pytest.mark.parametrize(
    ("flags", "sets", "said"),
    [
        ({}, ["recipe.lerning_rate=0.1"], "--set recipe.lerning_rate=0.1: override of recipe 'medmnist': unknown key"),
        ({"sweep.recipe": "quick"}, ["recipe.flip=0.1", "recipe.std=7e-9"], "--set recipe.std=7e-9: override"),
        ({"sweep.recipe": "qick"}, ["recipe.flip=0.1"], "--recipe, --set recipe.flip=0.1: unknown recipe 'qick'"),
        ({}, ["recipe.milestones=[9, 5]"], "--set recipe.milestones=[9, 5]: recipe 'medmnist': milestones should rise"),
    ],
)
def test_a_wrong_recipe_is_placed_where_it_was_written(flags, sets, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no bench.toml
    with pytest.raises(config.ConfigError) as caught:
        plan.make_plan(config.load(None, None, {"sweep.kinds": "accuracy", "sweep.models": "resnet18", **flags}, sets))
    assert str(caught.value).startswith(said)


def test_the_help_names_every_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert f"{','.join(recipes.names())},oraTOMLfile" in text


def test_native_looks_at_an_image_of_a_folder(tmp_path: Path):
    for split, label in itertools.product(("train", "val", "test"), ("ill", "well")):
        (tmp_path / "set" / split / label).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "set" / split / label / "0.png")
    flags = {"sweep.datasets": f"folder:{tmp_path / 'set'}", "sweep.resize": "native"}
    made = planned(**flags)
    assert {(c.resolution, k in made.unsupported) for k, c in made.cells.items()} == {(32, False), (64, True)}
    assert "has 32 x 32 pixels, not 64" in next(iter(made.unsupported.values()))
    with pytest.raises(config.ConfigError, match="--resize: native feeds images as they are, but an image of folder:"):
        planned(**flags, **{"sweep.resolutions": "64,96"})


def test_several_recipes_are_each_trained() -> None:
    one = planned(**{"sweep.datasets": "phantom_local", "sweep.recipe": "quick"}).cells
    both = planned(**{"sweep.datasets": "phantom_local", "sweep.recipe": "quick,standard"}).cells
    assert one.keys() < both.keys() and len(both) == 2 * len(one)
    assert {cell.recipe["name"] for cell in both.values()} == {"quick", "standard"}
    with pytest.raises(config.ConfigError, match="quik"):
        planned(**{"sweep.datasets": "phantom_local", "sweep.recipe": "standard,quik"})

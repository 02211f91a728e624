"""Recipes: the published settings, scaling with epochs, and what wrong input gets."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.sweep.recipes import FIELDS, RecipeError, estimate_steps, names, resolve, summary


def test_medmnist_is_the_official_script() -> None:
    recipe = resolve("medmnist")
    official = {
        "optimizer": "adam", "learning_rate": 1e-3, "epochs": 100, "batch_size": 128, "schedule": "step",
        "milestones": [50, 75], "gamma": 0.1, "select": "val_auc", "mean": 0.5, "std": 0.5, "weight_decay": 0.0,
        "flip": 0.0, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "label_smoothing": 0.0, "warmup_epochs": 0.0,
        "early_stopping_patience": 0, "ema_decay": 0.0, "gradient_clip": 0.0, "as_rgb": True,
    }  # fmt: skip
    assert {key: recipe[key] for key in official} == official


def test_medmamba_as_its_paper_and_its_code_state() -> None:
    paper, other, repo = (resolve(name) for name in ("medmamba-paper", "medmamba-paper-other", "medmamba-repo"))
    assert (paper["optimizer"], paper["learning_rate"], paper["batch_size"]) == ("adamw", 1e-3, 128)
    assert (paper["epochs"], paper["schedule"], paper["milestones"], paper["gamma"]) == (100, "step", [50, 75], 0.1)
    assert (other["optimizer"], other["learning_rate"], other["weight_decay"]) == ("adamw", 1e-4, 1e-4)
    assert (other["batch_size"], other["epochs"], other["betas"]) == (64, 150, [0.9, 0.999])
    assert other["early_stopping_patience"] > 0
    assert (repo["optimizer"], repo["learning_rate"], repo["batch_size"]) == ("adam", 1e-4, 32)
    assert (repo["schedule"], repo["epochs"], repo["early_stopping_patience"]) == ("constant", 100, 0)
    assert (repo["flip"], repo["crop_scale"], repo["select"]) == (0.5, [0.08, 1.0], "val_acc")
    assert repo["crop_ratio"] == pytest.approx([3 / 4, 4 / 3])
    for recipe in (paper, other):
        assert (recipe["flip"], recipe["crop_scale"]) == (0.0, [1.0, 1.0])  # no augmentation
    for recipe in (paper, other, repo):
        assert (recipe["mean"], recipe["std"], recipe["label_smoothing"]) == (0.5, 0.5, 0.0)


def test_every_recipe_resolves_to_every_field_and_has_a_summary() -> None:
    assert {"medmnist", "medmamba-paper", "medmamba-repo", "standard", "quick"} <= set(names())
    for name in names():
        recipe = resolve(name)
        assert list(recipe) == ["name", *FIELDS] and recipe["name"] == name and recipe["version"] >= 1
        assert summary(name)


def test_milestones_and_warm_up_scale_with_the_epochs() -> None:
    assert resolve("medmnist", epochs=10)["milestones"] == [5, 8]  # 7.5 rounds up
    assert resolve("medmnist", epochs=200)["milestones"] == [100, 150]
    assert resolve("medmnist", epochs=1)["milestones"] == [1, 1]
    assert resolve("standard", epochs=20)["warmup_epochs"] == resolve("standard")["warmup_epochs"] / 5
    assert resolve("medmnist", epochs=10, overrides={"milestones": [3]})["milestones"] == [3]
    assert resolve("medmnist", epochs=100) == resolve("medmnist")


def test_overrides_are_converted_and_change_nothing_else() -> None:
    plain, changed = resolve("standard"), resolve("standard", overrides={"learning_rate": 1, "flip": 0})
    assert changed["learning_rate"] == 1.0 and isinstance(changed["learning_rate"], float)
    assert {k for k in plain if plain[k] != changed[k]} == {"learning_rate", "flip"}
    assert resolve("quick", batch_size=16)["batch_size"] == 16


def test_a_file_with_a_base(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "standard"\nsummary = "mine"\nepochs = 3\nlearning_rate = 0.002\n')
    (tmp_path / "child.toml").write_text('base = "mine.toml"\nflip = 0.0\n')
    recipe = resolve(str(tmp_path / "child.toml"))
    assert (recipe["name"], recipe["epochs"], recipe["learning_rate"], recipe["flip"]) == ("child", 3, 0.002, 0.0)
    assert recipe["label_smoothing"] == resolve("standard")["label_smoothing"]
    assert recipe["warmup_epochs"] == resolve("standard", epochs=3)["warmup_epochs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "medmist"}, r"unknown recipe 'medmist' \(did you mean 'medmnist'\?\)"),
        ({"name": "../recipes/medmnist"}, "unknown recipe"),
        ({"name": "gone.toml"}, "there is no file gone.toml"),
        ({"name": "quick", "learnin_rate": 1.0}, r"unknown key 'learnin_rate' \(did you mean 'learning_rate'\?\)"),
        (
            {"name": "quick", "optimizer": "adamv"},
            r"should be 'adam', 'adamw' or 'sgd' \(did you mean 'adam'",
        ),
        ({"name": "quick", "epochs": 0}, "epochs = 0: should be at least 1"),
        ({"name": "quick", "epochs": 2.5}, "epochs = 2.5: should be a whole number"),
        ({"name": "quick", "batch_size": 1}, "batch_size = 1: should be at least 2"),
        ({"name": "quick", "micro_batch_size": 1}, "micro_batch_size should not be 1"),
        ({"name": "quick", "learning_rate": float("nan")}, "learning_rate = nan: should be a finite number"),
        ({"name": "quick", "learning_rate": "fast"}, "learning_rate = 'fast': should be a number"),
        ({"name": "quick", "epochs": True}, "epochs = True: should be a whole number"),
        ({"name": "quick", "as_rgb": 1}, "as_rgb = 1: should be true or false"),
        ({"name": "quick", "flip": 1.5}, "flip = 1.5: should be at most 1"),
        ({"name": "quick", "betas": 0.9}, "betas = 0.9: should be a list"),
        ({"name": "quick", "betas": [0.9]}, "betas should be two numbers"),
        ({"name": "quick", "crop_scale": [1.0, 0.5]}, r"\[low, high\]"),
        ({"name": "quick", "milestones": [2]}, "milestones need schedule = 'step'"),
        ({"name": "quick", "schedule": "step"}, "schedule = 'step' needs milestones"),
        ({"name": "medmnist", "milestones": [75, 50]}, "milestones should rise"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(**arguments)


def test_files_that_are_wrong_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    (tmp_path / "broken.toml").write_text("epochs = \n")
    (tmp_path / "typo.toml").write_text("epoch = 3\n")
    with pytest.raises(RecipeError, match="each other's base"):
        resolve(str(tmp_path / "a.toml"))
    with pytest.raises(RecipeError, match=r"broken\.toml: "):
        resolve(str(tmp_path / "broken.toml"))
    with pytest.raises(RecipeError, match=r"typo\.toml: unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        resolve(str(tmp_path / "typo.toml"))


def test_images_of_a_training() -> None:
    assert estimate_steps(546, resolve("medmnist")) == (54_600, 0)
    assert estimate_steps(546, resolve("medmnist", epochs=2), n_val=78, n_test=156) == (1092, 2 * 78 + 156)


def test_resolving_imports_no_torch() -> None:
    code = "import sys; from bench.sweep.recipes import resolve; resolve('quick'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

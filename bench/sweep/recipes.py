"""Recipes: how a model is trained, as named and versioned data. Torch-free.

A recipe is a TOML file: the built-in ones lie in ``recipes/`` beside this module, any other is named by its path. It
sets fields of :data:`FIELDS`; what it leaves out takes the neutral value there, and ``base`` starts from another
recipe instead. :func:`resolve` returns every field, so that the Cell's key holds all that decides the training.

When the number of epochs is overridden (or set over a ``base``), milestones and warm-up scale with it
(``milestone * new / old``, rounded, at least one epoch; two that meet stay two, so the last learning rate is the
recipe's), unless they are overridden too. Early-stopping patience does not scale. A changed built-in recipe raises its
``version``.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.registry import nearest

FOLDER = Path(__file__).with_name("recipes")


class RecipeError(ValueError):
    """A recipe or one of its values is wrong; the message names the key and the nearest right name.

    ``key`` is that of an override, where one of them is wrong by itself.
    """

    key = ""


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of a recipe: its neutral value, what it may be, and what it means."""

    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf


FIELDS: dict[str, Field] = {
    "version": Field(1, "raised when the recipe changes", low=1),
    "epochs": Field(100, "passes over the training split", low=1),
    "batch_size": Field(128, "images per optimizer step; the last may be smaller, never one image", low=2),
    "micro_batch_size": Field(
        0, "images per forward pass, gradients accumulated up to batch_size; 0: batch_size", low=0
    ),
    "eval_batch_size": Field(256, "images per forward pass of validation and test", low=1),
    "optimizer": Field(
        "adamw", "the optimizer, with torch's defaults where a field is silent", ("adam", "adamw", "sgd")
    ),
    "learning_rate": Field(1e-3, "the peak learning rate", low=0),
    "betas": Field([0.9, 0.999], "of adam and adamw", low=0, high=1),
    "momentum": Field(0.9, "of sgd", low=0, high=1),
    "weight_decay": Field(0.0, "coupled for adam and sgd, decoupled for adamw", low=0),
    "decay_norm_and_bias": Field(True, "whether weight decay also acts on norms, biases and what a model exempts"),
    "schedule": Field("constant", "of the learning rate after warm-up", ("constant", "step", "cosine")),
    "milestones": Field([], "epochs after which `step` multiplies the learning rate by gamma", low=1),
    "gamma": Field(0.1, "of the step schedule", low=0, high=1),
    "warmup_epochs": Field(0.0, "epochs of linear warm-up, step by step", low=0),
    "final_lr_ratio": Field(0.0, "where the cosine ends, as a fraction of the peak", low=0, high=1),
    "layer_decay": Field(
        1.0,
        "factor on the learning rate from block to block, head to stem, for fine-tuning; 1: one rate",
        low=0.01,
        high=1,
    ),
    "gradient_clip": Field(0.0, "largest norm of the gradient; 0: no clipping", low=0),
    "label_smoothing": Field(0.0, "of the cross-entropy (single-label tasks)", low=0, high=0.999),
    "class_weights": Field("none", "balanced: losses weighted by N / (C * images of the class)", ("none", "balanced")),
    "ema_decay": Field(0.0, "moving average of the weights, evaluated in their place; 0: none", low=0, high=0.999999),
    "select": Field(
        "val_auc", "how the epoch is chosen; the earliest of equals", ("val_auc", "val_acc", "val_loss", "last")
    ),
    "early_stopping_patience": Field(0, "epochs without a better `select` before training stops; 0: never", low=0),
    "compile": Field(
        "none",
        "of the training step: none, torch.compile, or with CUDA graphs besides",
        ("none", "default", "cuda-graphs"),
    ),
    "as_rgb": Field(True, "gray images as three equal channels; else the model gets the dataset's channels"),
    "normalisation": Field(
        "weights",
        "weights: pretrained weights are fed as they were trained; recipe: always mean and std",
        ("weights", "recipe"),
    ),
    "mean": Field(0.5, "subtracted from pixels scaled to 0..1", low=0, high=1),
    "std": Field(0.5, "pixels are divided by it after that", low=1e-6),
    "flip": Field(
        0.0, "chance of a left-right flip, only where the dataset says that it keeps every label", low=0, high=1
    ),
    "crop_scale": Field(
        [1.0, 1.0], "areas of the random crop resized back, as fractions of the image", low=0.01, high=1
    ),
    "crop_ratio": Field([1.0, 1.0], "aspect ratios of the random crop, log-uniform", low=0.1, high=10),
}

_RANGES = ("crop_scale", "crop_ratio")


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def summary(name: str) -> str:
    """One line about a recipe, from its file."""
    return str(_read(name)[0].get("summary", ""))


def resolve(
    name: str, epochs: int | None = None, overrides: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return a recipe with all its fields, in the order of :data:`FIELDS`, ``name`` first.

    Args:
        name: a built-in recipe, or the path of a TOML file.
        epochs: replaces the recipe's number; the schedule scales with it (see the module).
        overrides: single fields replaced, such as those of ``[recipe]`` in bench.toml.
        **more: single fields replaced, as keywords.

    Raises:
        RecipeError: unknown recipe, field or value, naming the nearest right one.
    """
    given = {**(overrides or {}), **more, **({} if epochs is None else {"epochs": epochs})}
    settings = _settings(name, ())
    for key, value in given.items():
        try:
            given[key] = _checked(key, value, f"override of recipe {name!r}")
        except RecipeError as error:
            error.key = key
            raise
    if "epochs" in given:
        settings = _scaled(settings, given["epochs"])
    settings = {"name": Path(name).stem if name.endswith(".toml") else name, **settings, **given}
    _check_together(settings, name)
    return settings


def _settings(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    table, where = _read(name)
    if name in seen:
        raise RecipeError(f"{where}: recipes are each other's base: {' -> '.join((*seen, name))}")
    base = table.pop("base", None)
    table.pop("summary", None)
    if base is not None and isinstance(base, str) and base.endswith(".toml") and name.endswith(".toml"):
        base = str(Path(name).parent / base)
    settings = (
        {key: field.default for key, field in FIELDS.items()} if base is None else _settings(str(base), (*seen, name))
    )
    own = {key: _checked(key, value, where) for key, value in table.items()}
    if base is not None and "epochs" in own:
        settings = _scaled(settings, own["epochs"])
    return {**settings, **own}


def _read(name: str) -> tuple[dict[str, Any], str]:
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or (not name.endswith(".toml") and name not in names()):
        hint = (
            f"there is no file {path}" if name.endswith(".toml") else f"recipes: {', '.join(names())}, or a TOML file"
        )
        raise RecipeError(f"unknown recipe {name!r}{nearest(name, names())}; {hint}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def _checked(key: str, value: Any, where: str) -> Any:
    if key not in FIELDS:
        raise RecipeError(f"{where}: unknown key {key!r}{nearest(key, FIELDS)}; keys: {', '.join(FIELDS)}")
    field = FIELDS[key]
    if isinstance(field.default, list):
        if not isinstance(value, (list, tuple)):
            raise RecipeError(
                f"{where}: {key} should be a list of numbers, such as {field.default or [50, 75]}, not {value!r}"
            )
        kind: type[Any] = int if key == "milestones" else float
        return [_number(key, item, kind, field, where) for item in value]
    if field.choices:
        if value not in field.choices:
            hint = nearest(str(value), field.choices)
            raise RecipeError(f"{where}: {key} = {value!r} is none of {', '.join(field.choices)}{hint}")
        return value
    if isinstance(field.default, bool):
        if not isinstance(value, bool):
            raise RecipeError(f"{where}: {key} should be true or false, not {value!r}")
        return value
    return _number(key, value, type(field.default), field, where)


def _number(key: str, value: Any, kind: type[Any], field: Field, where: str) -> Any:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (kind is int and value != int(value)):
        wanted = "a whole number" if kind is int else "a number"
        raise RecipeError(f"{where}: {key} should be {wanted}, not {value!r}")
    if not field.low <= value <= field.high:
        span = f"at least {field.low:g}" if field.high == math.inf else f"between {field.low:g} and {field.high:g}"
        raise RecipeError(f"{where}: {key} = {value!r} should be {span}")
    return kind(value)


def _scaled(settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    factor = epochs / settings["epochs"]
    milestones = [max(1, math.floor(milestone * factor + 0.5)) for milestone in settings["milestones"]]
    return {**settings, "milestones": milestones, "warmup_epochs": settings["warmup_epochs"] * factor}


def _check_together(settings: dict[str, Any], name: str) -> None:
    rules: tuple[tuple[Callable[[dict[str, Any]], bool], str], ...] = (
        (lambda s: s["schedule"] == "step" or not s["milestones"], "milestones need schedule = 'step'"),
        (lambda s: s["schedule"] != "step" or bool(s["milestones"]), "schedule = 'step' needs milestones"),
        (lambda s: s["milestones"] == sorted(s["milestones"]), "milestones should rise"),
        (lambda s: s["warmup_epochs"] <= s["epochs"], "warmup_epochs should not exceed epochs"),
        (lambda s: len(s["betas"]) == 2, "betas should be two numbers"),
        (lambda s: all(len(s[k]) == 2 and s[k][0] <= s[k][1] for k in _RANGES), "crop ranges should be [low, high]"),
        (lambda s: s["micro_batch_size"] != 1, "micro_batch_size should not be 1 (batch statistics of one image)"),
    )
    for holds, message in rules:
        if not holds(settings):
            raise RecipeError(f"recipe {name!r}: {message}")


def estimate_steps(n_train: int, recipe: Mapping[str, Any], n_val: int = 0, n_test: int = 0) -> tuple[int, int]:
    """Count images trained on (forward and backward) and images only evaluated, for an estimate of time."""
    return n_train * recipe["epochs"], n_val * recipe["epochs"] + n_test

"""Recipes: how a model is trained, as named and versioned data. Torch-free.

A recipe is a TOML file: the built-in ones lie in ``recipes/`` beside this module, any other is named by its path. It
sets fields of :class:`Recipe`; what it leaves out takes the neutral value there, and ``base`` starts from another
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
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from bench.registry import nearest

FOLDER = Path(__file__).with_name("recipes")


class RecipeError(ValueError):
    """A recipe or one of its values is wrong; the message names the key and the nearest right name.

    ``key`` is that of an override, where one of them is wrong by itself.
    """

    key = ""


Settings = dict[str, Any]  # a recipe's fields by name, or some of them: numbers, words, lists
Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """Every setting of a recipe: what it may be, its neutral value, and what it means."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    version: int = Field(1, ge=1, description="raised when the recipe changes")
    epochs: int = Field(100, ge=1, description="passes over the training split")
    batch_size: int = Field(
        128, ge=2, description="images per optimizer step; the last may be smaller, never one image"
    )
    micro_batch_size: int = Field(
        0, ge=0, description="images per forward pass, gradients accumulated up to batch_size; 0: batch_size"
    )
    eval_batch_size: int = Field(256, ge=1, description="images per forward pass of validation and test")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adamw", description="the optimizer, with torch's defaults where a field is silent"
    )
    learning_rate: float = Field(1e-3, ge=0, description="the peak learning rate")
    betas: list[Share] = Field([0.9, 0.999], description="of adam and adamw")
    momentum: Share = Field(0.9, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="coupled for adam and sgd, decoupled for adamw")
    decay_norm_and_bias: bool = Field(
        True, description="whether weight decay also acts on norms, biases and what a model exempts"
    )
    schedule: Literal["constant", "step", "cosine"] = Field(
        "constant", description="of the learning rate after warm-up"
    )
    milestones: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="epochs after which `step` multiplies the learning rate by gamma"
    )
    gamma: Share = Field(0.1, description="of the step schedule")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up, step by step")
    final_lr_ratio: Share = Field(0.0, description="where the cosine ends, as a fraction of the peak")
    layer_decay: float = Field(
        1.0,
        ge=0.01,
        le=1,
        description="factor on the learning rate from block to block, head to stem, for fine-tuning; 1: one rate",
    )
    head_rate: float = Field(
        1.0, ge=0, le=1000, description="factor on the learning rate of the classifier, for fine-tuning"
    )
    zero_head: bool = Field(False, description="whether the classifier starts at zero, for fine-tuning")
    frozen_layers: float = Field(
        0.0, ge=0, lt=1, description="part of the layers, from the stem, that stay as they are, for fine-tuning"
    )
    gradient_clip: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    label_smoothing: float = Field(0.0, ge=0, le=0.999, description="of the cross-entropy (single-label tasks)")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: losses weighted by N / (C * images of the class)"
    )
    ema_decay: float = Field(
        0.0, ge=0, le=0.999999, description="moving average of the weights, evaluated in their place; 0: none"
    )
    select: Literal["val_auc", "val_acc", "val_loss", "last"] = Field(
        "val_auc", description="how the epoch is chosen; the earliest of equals"
    )
    early_stopping_patience: int = Field(
        0, ge=0, description="epochs without a better `select` before training stops; 0: never"
    )
    compile: Literal["none", "default", "cuda-graphs"] = Field(
        "none", description="of the training step: none, torch.compile, or with CUDA graphs besides"
    )
    as_rgb: bool = Field(
        True, description="gray images as three equal channels; else the model gets the dataset's channels"
    )
    normalisation: Literal["weights", "recipe"] = Field(
        "weights", description="weights: pretrained weights are fed as they were trained; recipe: always mean and std"
    )
    mean: Share = Field(0.5, description="subtracted from pixels scaled to 0..1")
    std: float = Field(0.5, ge=1e-6, description="pixels are divided by it after that")
    flip: Share = Field(
        0.0, description="chance of a left-right flip, only where the dataset says that it keeps every label"
    )
    crop_scale: list[Annotated[float, Field(ge=0.01, le=1)]] = Field(
        [1.0, 1.0], description="areas of the random crop resized back, as fractions of the image"
    )
    crop_ratio: list[Annotated[float, Field(ge=0.1, le=10)]] = Field(
        [1.0, 1.0], description="aspect ratios of the random crop, log-uniform"
    )


FIELDS = Recipe.model_fields
# Numbers that are no choice of training: `select` chooses the epoch on validation already, and the others say how
# images are fed or fit into memory.
NOT_TUNED = ("version", "epochs", "micro_batch_size", "eval_batch_size", "mean", "std")
TUNABLE = [k for k, f in FIELDS.items() if f.annotation in (int, float) and k not in NOT_TUNED]
MOST_TUNED = 2


def _assignments(value: object) -> object:
    """``learning_rate=1e-4,3e-4,weight_decay=0,0.05`` as a table; anything else as it is."""
    if not isinstance(value, str):
        return value
    found: dict[str, list[float]] = {}
    values: list[float] | None = None
    for part in value.split(","):
        key, equals, text = part.rpartition("=")
        if equals:
            values = found.setdefault(key.strip(), [])
        if values is None:
            raise ValueError("write KEY=VALUE,VALUE, such as learning_rate=1e-4,3e-4,1e-3")
        try:
            values.append(int(text) if text.strip().lstrip("-").isdecimal() else float(text))
        except ValueError:
            raise ValueError(f"{text.strip()!r} is not a number") from None
    return found


def _tunable(given: dict[str, list[float]]) -> dict[str, list[float]]:
    """Check the keys and every value; values are sorted, so that two spellings of one search are one."""
    if len(given) > MOST_TUNED:
        raise ValueError(f"{len(given)} keys are too many for a small search; tune one or two")
    found = {}
    for key, values in given.items():
        if key not in TUNABLE:
            why = "is not tuned" if key in FIELDS else "is not a key of a recipe"
            raise ValueError(f"{key!r} {why}{nearest(key, TUNABLE)}; keys: {', '.join(TUNABLE)}")
        try:
            found[key] = sorted({_checked({key: value}, "tune")[key] for value in values})
        except RecipeError as error:
            raise ValueError(str(error).removeprefix("tune: ")) from None
        if len(found[key]) < 2:
            raise ValueError(f"{key} needs two values or more to choose from")
    return found


Tuned = Annotated[dict[str, list[int | float]], BeforeValidator(_assignments), AfterValidator(_tunable)]
_RANGES = ("crop_scale", "crop_ratio")
_WORDS = {  # pydantic's words -> common ones
    "Input should be": "should be",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid string": "text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def summary(name: str) -> str:
    """One line about a recipe, from its file."""
    return str(_read(name)[0].get("summary", ""))


def resolve(
    name: str, epochs: int | None = None, overrides: Mapping[str, object] | None = None, **more: object
) -> Settings:
    """Return a recipe with all its fields, in the order of :class:`Recipe`, ``name`` first.

    Args:
        name: a built-in recipe, or the path of a TOML file.
        epochs: replaces the recipe's number; the schedule scales with it (see the module).
        overrides: single fields replaced, such as those of ``[recipe]`` in bench.toml.
        **more: single fields replaced, as keywords.

    Raises:
        RecipeError: unknown recipe, field or value, naming the nearest right one.
    """
    given = {**(overrides or {}), **more, **({} if epochs is None else {"epochs": epochs})}
    settings, own = _settings(name, ()), _checked(given, f"override of recipe {name!r}")
    if "epochs" in own:
        settings = _scaled(settings, own["epochs"])
    settings = {"name": Path(name).stem if name.endswith(".toml") else name, **settings, **own}
    check_together(settings, name)
    return settings


def _settings(name: str, seen: tuple[str, ...]) -> Settings:
    table, where = _read(name)
    if name in seen:
        raise RecipeError(f"{where}: recipes are each other's base: {' -> '.join((*seen, name))}")
    base = table.pop("base", None)
    table.pop("summary", None)
    if base is not None and isinstance(base, str) and base.endswith(".toml") and name.endswith(".toml"):
        base = str(Path(name).parent / base)
    settings = Recipe.model_validate({}).model_dump() if base is None else _settings(str(base), (*seen, name))
    own = _checked(table, where)
    if base is not None and "epochs" in own:
        settings = _scaled(settings, own["epochs"])
    return {**settings, **own}


def _read(name: str) -> tuple[Settings, str]:
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


def _checked(values: Mapping[str, object], where: str) -> Settings:
    """Return single settings as the types they should have. Raises RecipeError on all that are wrong."""
    try:
        return Recipe.model_validate(dict(values)).model_dump(include=set(values))
    except ValidationError as error:
        said = RecipeError("; ".join(f"{where}: {_explained(item)}" for item in error.errors()))
        said.key = str(error.errors()[0]["loc"][0])
        raise said from None


def _explained(item: ErrorDetails) -> str:
    key, value = str(item["loc"][0]), item["input"]
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(key, FIELDS)}; keys: {', '.join(FIELDS)}"
    hint = nearest(str(value), get_args(FIELDS[key].annotation)) if item["type"] == "literal_error" else ""
    return f"{key} = {value!r}: {plain_words(item)}{hint}"


def plain_words(item: ErrorDetails) -> str:
    """What pydantic says of a value, in common words: ``should be a whole number``."""
    said = item["msg"].removeprefix("Value error, ").partition(", unable to parse")[0].partition(", got a number")[0]
    for theirs, ours in _WORDS.items():
        said = said.replace(theirs, ours)
    return said


def _scaled(settings: Settings, epochs: int) -> Settings:
    factor = epochs / settings["epochs"]
    milestones = [max(1, math.floor(milestone * factor + 0.5)) for milestone in settings["milestones"]]
    return {**settings, "milestones": milestones, "warmup_epochs": settings["warmup_epochs"] * factor}


def check_together(settings: Settings, name: str) -> None:
    """Raise RecipeError where settings that are each fine do not fit together."""
    rules: tuple[tuple[Callable[[Settings], bool], str], ...] = (
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


def estimate_steps(n_train: int, recipe: Settings, n_val: int = 0, n_test: int = 0) -> tuple[int, int]:
    """Count images trained on (forward and backward) and images only evaluated, for an estimate of time."""
    return n_train * recipe["epochs"], n_val * recipe["epochs"] + n_test

"""The accuracy Cells of a sweep: models x datasets x sizes x resolutions x seeds, with the resolved recipe."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from bench import registry
from bench.data.files import preflight
from bench.plan import tracks
from bench.plan.base import Plan, resolved
from bench.plan.fingerprints import fingerprint, plugin_sha256
from bench.plan.inputs import refuse_unfeedable, resize_rule, unfeedable
from bench.record.cells import AccuracyCell, trials_of
from bench.registry import DatasetInfo, ModelSpec
from bench.sweep import recipes
from bench.sweep.config import ConfigError, Loaded
from bench.sweep.recipes import Settings


def add_accuracy(plan: Plan, loaded: Loaded, specs: list[ModelSpec], sources: list[str]) -> None:
    """Add the accuracy Cells of ``specs`` on the sweep's datasets and on ``sources``, from which a transfer starts."""
    section = loaded.sweep.sweep
    names = resolved(loaded, "sweep.datasets", registry.expand_datasets, section.datasets)
    names = list(dict.fromkeys([*names, *sources]))  # what a transfer evaluates is trained first
    infos = [registry.dataset_info(name) for name in names]
    ways: list[tracks.Training] = []
    for name in registry.split_names(section.recipe):
        recipe = resolve_recipe(loaded, name)
        found = tracks.trainings(loaded, specs, recipe, _finetune_recipe(loaded, name, recipe))
        found = [_tuned(loaded, way) for way in found]
        ways += [way for way in found if way not in ways]  # heads and fine-tuning may not depend on it
    amounts = tracks.labels_asked(loaded)
    wanted = [(info, size) for info in infos for size in _sizes(loaded, info)]
    problems = preflight(wanted, plan.data_root)
    damaged = {(problem.dataset, problem.size) for problem in problems}
    plan.problems = problems
    if loaded.sweep.run.skip_missing:
        plan.skipped = [str(problem) for problem in problems]
        wanted = [pair for pair in wanted if (pair[0].name, pair[1]) not in damaged]
        wanted = _without_unusable(plan, loaded, wanted)
    precision = section.precision
    if precision == "auto":
        precision = "bf16" if plan.device.startswith("cuda") else "fp32"
    folds = section.folds
    every = itertools.product(wanted, section.resolutions, amounts, section.seeds, ways, range(folds or 1))
    for (info, size), resolution, labels, seed, way, fold in every:
        if not info.sizes and size != resolution:
            continue  # made at the resolution that is fed: the size axis is the resolution axis
        spec = way.spec
        network = registry.model_info(spec.name)
        cell = AccuracyCell(
            model=str(spec),
            dataset=info.name,
            size=size,
            resolution=resolution,
            resize=resize_rule(loaded, info, size, resolution),
            recipe=way.recipe,
            seed=seed,
            precision=precision,
            data_fingerprint=fingerprint(plan, loaded, info, size, (info.name, size) in damaged),
            weights_sha256=way.weights_sha256,
            model_plugin_sha256=plugin_sha256(network),
            data_plugin_sha256=plugin_sha256(info),
            normalisation=way.normalisation,
            leaks=section.leaks if section.leaks == "drop" else "warn",
            track=way.track,
            head=way.head,
            shots=labels.shots,
            label_fraction=labels.fraction,
            draw=labels.draw,
            fold=fold if folds else None,
            folds=folds,
        )
        reason = unfeedable(info, size, resolution, cell.resize, plan.data_root, cell.data_fingerprint)
        for one in (*trials_of(cell), cell):
            plan.add(one, reason or network.unsupported(resolution, dict(spec.options)))
    refuse_unfeedable(plan.cells.values(), loaded, plan.data_root)


def _tuned(loaded: Loaded, way: tracks.Training) -> tracks.Training:
    """A training whose settings of ``--tune`` are chosen by trials with the first seed.

    Raises:
        ConfigError: a setting is also fixed, or some values do not fit together.
    """
    section = loaded.sweep.sweep
    if not section.tune or way.head is not None:  # heads choose what they choose on validation by themselves
        return way
    where = loaded.origin("sweep.tune")
    if fixed := sorted(section.tune.keys() & loaded.sweep.recipe.keys()):
        raise ConfigError(f"{where}: {fixed[0]} is also fixed ({loaded.origin(f'recipe.{fixed[0]}')}); remove one")
    for values in itertools.product(*section.tune.values()):
        try:
            recipes.check_together({**way.recipe, **dict(zip(section.tune, values, strict=True))}, way.recipe["name"])
        except recipes.RecipeError as error:
            raise ConfigError(f"{where}: {error}") from None
    over = {key: {"tuned_over": values, "seed": section.seeds[0]} for key, values in section.tune.items()}
    return dataclasses.replace(way, recipe={**way.recipe, **over})


def _sizes(loaded: Loaded, info: DatasetInfo) -> list[int]:
    section = loaded.sweep.sweep
    if not info.sizes:
        return list(section.resolutions)
    if len(info.sizes) == 1:
        return list(info.sizes)
    for size in section.sizes:
        if size not in info.sizes:
            have = ", ".join(map(str, info.sizes))
            raise ConfigError(
                f"{loaded.origin('sweep.sizes')}: {info.name} has no size {size}; it exists in {have} pixels"
            )
    return list(section.sizes)


def _finetune_recipe(loaded: Loaded, own: str, recipe: Settings) -> Settings:
    """The recipe of the track finetune; without one of its own, the sweep's if it is named and trains nothing else."""
    section = loaded.sweep.sweep
    if "finetune" not in section.track:
        return recipe
    only = "scratch" not in section.track and "sweep.recipe" in loaded.origins
    name = section.finetune_recipe or (own if only else tracks.FINETUNE)
    return resolve_recipe(loaded, name)


def resolve_recipe(loaded: Loaded, name: str) -> Settings:
    """Return a recipe with the sweep's overrides applied."""
    section = loaded.sweep.sweep
    if name.endswith(".toml") and not Path(name).is_absolute():
        name = str(loaded.base / name)
    try:
        return recipes.resolve(name, epochs=section.epochs, overrides=dict(loaded.sweep.recipe))
    except recipes.RecipeError as error:
        raise ConfigError(f"{_recipe_origin(loaded, error.key)}: {error}") from None


def _recipe_origin(loaded: Loaded, key: str) -> str:
    """Say where what is wrong with a recipe was written: its one key, or all that was set of it."""
    if key:
        return loaded.origin("sweep.epochs" if key == "epochs" and loaded.sweep.sweep.epochs else f"recipe.{key}")
    keys = ["sweep.recipe", *(f"recipe.{name}" for name in loaded.sweep.recipe)]
    said = [loaded.origins[name] for name in keys if name in loaded.origins]
    return ", ".join(dict.fromkeys(said)) or "default"


def _without_unusable(
    plan: Plan, loaded: Loaded, wanted: list[tuple[DatasetInfo, int]]
) -> list[tuple[DatasetInfo, int]]:
    """Leave out, and remember, the datasets whose source cannot be used."""
    kept = []
    for info, size in wanted:
        try:
            fingerprint(plan, loaded, info, size, False)
            kept.append((info, size))
        except ConfigError as error:
            plan.skipped.append(str(error))
    return kept

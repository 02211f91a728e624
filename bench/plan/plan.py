"""Sweep -> Plan: which Cells a sweep means, which of them cannot run and why, what data is missing.

Torch-free: a plan is made, shown (``bench plan``) and compared with what is on disk in well under a second.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bench import registry
from bench.data.files import Problem, default_root, preflight
from bench.machine.compiler import why_not_compiled
from bench.machine.hardware import machine_facts
from bench.plan.inputs import refuse_unfeedable, resize_rule, unfeedable
from bench.record.cells import AccuracyCell, Cell, Context, EfficiencyCell, Result, TransferCell, cell_key, cell_label
from bench.registry import DatasetInfo, ModelFacts, ModelSpec, RegistryError
from bench.registry.normalisation import normalisation
from bench.sweep import recipes
from bench.sweep.config import ConfigError, Loaded

__all__ = [
    "AccuracyCell", "Cell", "Context", "EfficiencyCell", "Plan", "Result", "cell_key", "cell_label", "make_plan",
]  # fmt: skip

VERSIONED = ("torch", "timm", "triton", "mamba-ssm", "fvcore", "medbench")


@dataclass(slots=True)
class Plan:
    """What a sweep means.

    Attributes:
        cells: key -> Cell, in the order they run.
        unsupported: key -> reason, for those of ``cells`` that cannot run.
        problems: files that are missing or damaged, each needed by some Cell.
        skipped: one line for each dataset left out by ``--skip-missing``; with it, no Cell needs a missing file.
        fingerprints: of (dataset, size), taken once: a source may list 100,000 files for it.
        remarks: on weights files: what of them is left out, which head starts fresh.
    """

    device: str
    threads: int
    data_root: Path | None
    cells: dict[str, Cell] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fingerprints: dict[tuple[str, int], str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def runnable(self) -> bool:
        """Whether every Cell has its files."""
        return {str(problem) for problem in self.problems} <= set(self.skipped)

    def add(self, cell: Cell, reason: str | None) -> None:
        """Add a Cell once; remember why it cannot run."""
        key = cell_key(cell)
        self.cells[key] = cell
        if reason:
            self.unsupported[key] = reason


def make_plan(loaded: Loaded) -> Plan:
    """Resolve names, expand the grid, decide what is unsupported and verify the data files.

    Raises:
        ConfigError: an unknown name or an impossible value, with its origin and the nearest right one.
    """
    sweep = loaded.sweep
    try:
        registry.load_plugins(sweep.plugins, loaded.base)
    except RegistryError as error:
        raise ConfigError(f"{loaded.origin('plugins')}: {error}") from error
    specs = resolved(loaded, "sweep.models", registry.expand_models, sweep.sweep.models)
    weights = [line for spec in specs for line in try_weights(loaded, spec)]
    device = resolve_device(sweep.run.device)
    root = sweep.run.data_root
    plan = Plan(device, sweep.run.threads or available_threads(), Path(root).expanduser() if root else None)
    plan.remarks = weights
    if "accuracy" in sweep.sweep.kinds:
        from bench.plan import transfer

        _plan_accuracy(plan, loaded, specs, transfer.sources(loaded))
        transfer.add_transfers(plan, loaded)
    elif sweep.sweep.transfer:
        raise ConfigError(
            f"{loaded.origin('sweep.transfer')}: a transfer evaluates what was trained; add accuracy to --kinds"
        )
    if "efficiency" in sweep.sweep.kinds:
        _plan_efficiency(plan, loaded, specs)
    return plan


def resolved(loaded: Loaded, key: str, expand: Any, names: list[str]) -> list[Any]:
    """Expand names. Raises ConfigError naming where they were written."""
    try:
        return list(expand(names))
    except RegistryError as error:
        raise ConfigError(f"{loaded.origin(key)}: {error}") from None


def _plan_accuracy(plan: Plan, loaded: Loaded, specs: list[ModelSpec], sources: list[str]) -> None:
    section = loaded.sweep.sweep
    names = resolved(loaded, "sweep.datasets", registry.expand_datasets, section.datasets)
    names = list(dict.fromkeys([*names, *sources]))  # what a transfer evaluates is trained first
    infos = [registry.dataset_facts(name) for name in names]
    recipe = resolve_recipe(loaded)
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
    for (info, size), resolution, seed, spec in itertools.product(wanted, section.resolutions, section.seeds, specs):
        if not info.sizes and size != resolution:
            continue  # made at the resolution that is fed: the size axis is the resolution axis
        facts = registry.model_facts(spec.name)
        cell = AccuracyCell(
            model=str(spec),
            dataset=info.name,
            size=size,
            resolution=resolution,
            resize=resize_rule(loaded, info, size, resolution),
            recipe=recipe,
            seed=seed,
            precision=precision,
            data_fingerprint=fingerprint(plan, loaded, info, size, (info.name, size) in damaged),
            weights_sha256=_weights_sha256(spec),
            model_plugin_sha256=plugin_sha256(facts),
            data_plugin_sha256=plugin_sha256(info),
            normalisation=normalisation(spec) if recipe["normalisation"] == "weights" else None,
            leaks=section.leaks if section.leaks == "drop" else "warn",
        )
        reason = unfeedable(info, size, resolution, cell.resize, plan.data_root, cell.data_fingerprint)
        plan.add(cell, reason or facts.unsupported(resolution, dict(spec.options)))
    refuse_unfeedable(plan.cells.values(), loaded, plan.data_root)


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


def resolve_recipe(loaded: Loaded) -> dict[str, Any]:
    """Return the sweep's recipe with its overrides applied."""
    section = loaded.sweep.sweep
    name = section.recipe
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


def fingerprint(plan: Plan, loaded: Loaded, info: DatasetInfo, size: int, damaged: bool) -> str:
    """Fingerprint of a dataset's data. Raises ConfigError where its source is not there or not what it should be."""
    if damaged:
        return "missing"
    if (info.name, size) not in plan.fingerprints:
        try:
            plan.fingerprints[info.name, size] = info.open().fingerprint(size, plan.data_root or default_root())
        except (ValueError, OSError) as error:
            said = str(error) if info.name in str(error) else f"{info.name}: {error}"
            raise ConfigError(f"{loaded.origin('sweep.datasets')}: {said}") from error
    return plan.fingerprints[info.name, size]


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


_tried: dict[tuple[str, str], list[str]] = {}  # model and its weights' digest -> what loading them said


def try_weights(loaded: Loaded, spec: ModelSpec) -> list[str]:
    """Load a model's weights file, if it names one, so that what does not fit is said before anything runs.

    Only then is torch imported for a plan.

    Raises:
        ConfigError: the file is missing or does not fit, with what to do.
    """
    weights = dict(spec.options).get("pretrained")
    facts = registry.model_facts(spec.name)
    resolution = loaded.sweep.sweep.resolutions[0]
    options = dict(spec.options)
    if not isinstance(weights, str) or not weights or facts.unsupported(resolution, options):
        return []
    key = str(spec), str(_weights_sha256(spec))
    if key not in _tried:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                facts.build(2, 3, resolution, **options)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"{loaded.origin('sweep.models')}: model {spec}: {error}") from None
        _tried[key] = [f"{spec.name}: {line}" for line in said.getvalue().splitlines()]
    return _tried[key]


def _weights_sha256(spec: ModelSpec) -> str | None:
    weights = dict(spec.options).get("pretrained")
    if not isinstance(weights, str) or not weights:
        return "hub" if weights else None
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"model {spec}: there is no weights file {path}")
    return file_sha256(str(path.resolve()))


def plugin_sha256(facts: ModelFacts | DatasetInfo) -> str | None:
    """SHA-256 of the plug-in file that registered something; None for what is built in."""
    if facts.plugin_file is None:
        return None
    source = facts.builder if isinstance(facts, ModelFacts) else facts.adapter
    if getattr(source, "__module__", "") == "__main__" or not os.path.isfile(facts.plugin_file):
        raise ConfigError(
            f"{facts.name} was registered in a script or notebook, where workers cannot find it; "
            "put it in a file and name that under [plugins]"
        )
    return file_sha256(facts.plugin_file)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, read once as long as its size and time stay the same."""
    status = os.stat(path)
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_since(cell: Cell) -> str | None:
    """Name a plug-in or weights file that is no longer what the Cell's key says, or return None."""
    spec = registry.parse_model(cell.model)
    if isinstance(cell, TransferCell):
        if plugin_sha256(registry.dataset_facts(cell.dataset)) != cell.data_plugin_sha256:
            return f"the plug-in of {cell.dataset}"
        return changed_since(cell.source)
    if isinstance(cell, AccuracyCell):
        if _weights_sha256(spec) != cell.weights_sha256:
            return f"the weights of {cell.model}"
        if plugin_sha256(registry.dataset_facts(cell.dataset)) != cell.data_plugin_sha256:
            return f"the plug-in of {cell.dataset}"
    same = plugin_sha256(registry.model_facts(spec.name)) == cell.model_plugin_sha256
    return None if same else f"the plug-in of {cell.model}"


def _plan_efficiency(plan: Plan, loaded: Loaded, specs: list[ModelSpec]) -> None:
    section = loaded.sweep.efficiency
    facts = machine_facts()
    hardware = hardware_name(plan.device, facts)
    versions = library_versions()
    no_compiler = why_not_compiled(plan.device) if True in section.compile else None
    resolutions = section.resolutions or loaded.sweep.sweep.resolutions
    grid = itertools.product(resolutions, section.batches, section.precisions, section.compile, section.modes, specs)
    for resolution, batch, precision, compiled, mode, spec in grid:
        model = registry.model_facts(spec.name)
        _weights_sha256(spec)  # speed does not depend on the weights, but their file must be there to build with
        cell = EfficiencyCell(
            model=str(spec),
            resolution=resolution,
            batch=batch,
            precision=precision,
            compile=compiled,
            mode=mode,
            device=plan.device,
            hardware=hardware,
            threads=plan.threads,
            backend=scan_backend(plan.device),
            versions=versions,
            budget_s=section.budget_s,
            rounds=section.rounds,
            omp_wait_policy=omp_wait_policy(),
            model_plugin_sha256=plugin_sha256(model),
        )
        reason = model.unsupported(resolution, dict(spec.options))
        if precision == "tf32" and plan.device == "cpu":
            reason = reason or "tf32 is a mode of CUDA devices"
        if compiled:
            reason = reason or no_compiler
        plan.add(cell, reason)


# --- the machine, without torch --------------------------------------------------------------------------------


def available_threads() -> int:
    """Return the number of cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def resolve_device(wanted: str) -> str:
    """Turn ``auto`` and ``cuda`` into ``cpu`` or ``cuda:N``. Raises ConfigError where there is no such GPU."""
    count = len(machine_facts().get("gpus", ()))
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if wanted == "cpu":
        return "cpu"
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(
            f"--device {wanted}: this machine has {count} CUDA device{'s' * (count != 1)}; try --device cpu"
        )
    return f"cuda:{index}"


def hardware_name(device: str, facts: Mapping[str, Any]) -> str:
    """Name what a Cell runs on: the GPU, or the CPU and its core count."""
    if device == "cpu":
        return f"{facts['cpu_model']} ({facts['cpu_cores']} cores)"
    return str(facts["gpus"][int(device.partition(":")[2])]["name"])


def scan_backend(device: str) -> str:
    """Name the selective-scan backend that workers will use on this machine (``bench doctor`` says why).

    Decided without torch from what the dispatcher looks for; the environment of each Record has the one that ran.
    """
    if forced := os.environ.get("MEDBENCH_SCAN_BACKEND"):
        return forced
    if device != "cpu":
        return "triton" if util.find_spec("triton") else "reference"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return "cpu" if any(name and shutil.which(name) for name in compilers) else "reference"


def omp_wait_policy() -> str:
    """Name how workers' OpenMP threads wait, as ``VARIABLE=value``; the user's own environment wins.

    By default GNU OpenMP's threads spin so long that, where anything else runs, they keep the cores from the thread
    they wait for; put to sleep at once, they wake too late for small networks. A short spin is within a tenth of the
    best of both. Measured on 2 cores, Swin-T at 64 pixels, batch 8, a forward in ms, idle and beside other work:
    default 49 and 222 to 3,664; asleep 70 and 152; 10,000 turns 54 and 219.
    """
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        if value := os.environ.get(variable):
            return f"{variable}={value}"
    return "GOMP_SPINCOUNT=10000"


def set_omp_wait_policy() -> None:
    """Set it for this process and its children; libraries read it when they are loaded."""
    variable, _, value = omp_wait_policy().partition("=")
    os.environ[variable] = value


@functools.cache
def library_versions(names: Iterable[str] = VERSIONED) -> dict[str, str]:
    """Return the installed versions of the libraries that decide speed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

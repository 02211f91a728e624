"""Sweep -> Plan: which Cells a sweep means, which of them cannot run and why, what data is missing.

Torch-free: a plan is made, shown (``bench plan``) and compared with what is on disk in well under a second.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from bench import registry
from bench.data.weights import locate
from bench.machine.hardware import machine_info
from bench.machine.threads import available_threads
from bench.plan import tracks, transfer
from bench.plan.accuracy import add_accuracy
from bench.plan.base import Plan, resolved
from bench.plan.efficiency import add_efficiency
from bench.plan.fingerprints import weights_sha256
from bench.registry import ModelSpec, RegistryError
from bench.registry.weights import weights_file
from bench.sweep.config import ConfigError, Loaded

__all__ = ["Plan", "make_plan"]


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
    specs = tracks.specs_asked(loaded, specs)
    remarks = tracks.remarks(loaded, specs) + [line for spec in specs for line in try_weights(loaded, spec)]
    device = resolve_device(sweep.run.device)
    root = sweep.run.data_root
    plan = Plan(device, sweep.run.threads or available_threads(), Path(root).expanduser() if root else None)
    plan.remarks = remarks
    if "accuracy" in sweep.sweep.kinds:
        add_accuracy(plan, loaded, specs, transfer.sources(loaded))
        transfer.add_transfers(plan, loaded)
    elif sweep.sweep.transfer:
        raise ConfigError(
            f"{loaded.origin('sweep.transfer')}: a transfer evaluates what was trained; add accuracy to --kinds"
        )
    if "efficiency" in sweep.sweep.kinds:
        add_efficiency(plan, loaded, specs)
    return plan


def resolve_device(wanted: str) -> str:
    """Turn ``auto`` and ``cuda`` into ``cpu`` or ``cuda:N``. Raises ConfigError where there is no such GPU."""
    count = len(machine_info().get("gpus", ()))
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


_tried: dict[tuple[str, str], list[str]] = {}  # model and its weights' digest -> what loading them said


def try_weights(loaded: Loaded, spec: ModelSpec) -> list[str]:
    """Load a model's weights file, if it names one, so that what does not fit is said before anything runs.

    Only then is torch imported for a plan. Published weights are only looked for.

    Raises:
        ConfigError: the weights are nowhere or do not fit, with what to do.
    """
    weights = dict(spec.options).get("pretrained")
    if weights is True:
        try:
            locate(spec)
        except ConfigError as error:
            raise ConfigError(f"{loaded.origin('sweep.models')}: model {spec}: {error}") from None
    info = registry.model_info(spec.name)
    resolution = loaded.sweep.sweep.resolutions[0]
    options = dict(spec.options)
    if not isinstance(weights, str) or not weights or info.unsupported(resolution, options):
        return []
    key = str(spec), str(weights_sha256(spec))
    if key not in _tried:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                info.build(2, 3, resolution, **{**options, "pretrained": weights_file(weights)})
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"{loaded.origin('sweep.models')}: model {spec}: {error}") from None
        _tried[key] = [f"{spec.name}: {line}" for line in said.getvalue().splitlines()]
    return _tried[key]

"""Fingerprints of what a Cell is made from: data, weights, plug-ins; and whether they still hold."""

from __future__ import annotations

import os

from bench import registry
from bench.data.files import default_root
from bench.data.weights import file_sha256, locate
from bench.plan.base import Plan
from bench.record.cells import AccuracyCell, Cell, TransferCell
from bench.registry import DatasetInfo, ModelInfo, ModelSpec
from bench.registry.weights import weights_file
from bench.sweep.config import ConfigError, Loaded


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


def weights_sha256(spec: ModelSpec) -> str | None:
    """SHA-256 of the weights file that a model starts from; ``hub`` for published weights, None for none."""
    weights = dict(spec.options).get("pretrained")
    if not isinstance(weights, str) or not weights:
        return "hub" if weights else None
    try:
        return file_sha256(str(weights_file(weights).resolve()))
    except ConfigError as error:
        raise ConfigError(f"model {spec}: {error}") from None


def plugin_sha256(info: ModelInfo | DatasetInfo) -> str | None:
    """SHA-256 of the plug-in file that registered something; None for what is built in."""
    if info.plugin_file is None:
        return None
    source = info.builder if isinstance(info, ModelInfo) else info.adapter
    if getattr(source, "__module__", "") == "__main__" or not os.path.isfile(info.plugin_file):
        raise ConfigError(
            f"{info.name} was registered in a script or notebook, where workers cannot find it; "
            "put it in a file and name that under [plugins]"
        )
    return file_sha256(info.plugin_file)


def changed_since(cell: Cell) -> str | None:
    """Name a plug-in or weights file that is no longer what the Cell's key says, or return None."""
    spec = registry.parse_model(cell.model)
    if isinstance(cell, TransferCell):
        if plugin_sha256(registry.dataset_info(cell.dataset)) != cell.data_plugin_sha256:
            return f"the plug-in of {cell.dataset}"
        return changed_since(cell.source)
    if isinstance(cell, AccuracyCell):
        if cell.weights_sha256 not in (None, "hub") and locate(spec).sha256 != cell.weights_sha256:
            return f"the weights of {cell.model}"
        if plugin_sha256(registry.dataset_info(cell.dataset)) != cell.data_plugin_sha256:
            return f"the plug-in of {cell.dataset}"
    same = plugin_sha256(registry.model_info(spec.name)) == cell.model_plugin_sha256
    return None if same else f"the plug-in of {cell.model}"

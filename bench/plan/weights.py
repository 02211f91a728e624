"""Weights files that models name are tried while planning."""

from __future__ import annotations

import contextlib
import io

from bench import registry
from bench.data.weights import locate
from bench.plan.fingerprints import weights_sha256
from bench.registry import ModelSpec
from bench.registry.weights import weights_file
from bench.sweep.config import ConfigError, Loaded

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

"""How models name pretrained weights, and what a file of weights says of itself. Torch-free.

Weights are named by ``[pretrained=...]``: ``true`` (published ones), a file, a folder with ``model.safetensors``, or
``RUN/CELL`` (what a run kept with ``--keep-weights``; the beginning of the Cell's key is enough). The names
``timm:NAME.TAG`` and ``timm:hf-hub:OWNER/NAME`` mean published weights by themselves, in the tracks that use weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.errors import ConfigError
from bench.registry.names import ModelSpec

HUB = "timm:hf-hub:"
IN_FOLDER = "model.safetensors"
_HEADER_LIMIT = 100 << 20  # as safetensors itself allows


def names_weights(spec: ModelSpec) -> bool:
    """Whether a model's name says with which weights it starts, in ``[pretrained=...]`` or by itself."""
    weights = dict(spec.options).get("pretrained")
    return bool(weights) if weights is not None else _by_itself(spec)


def with_weights(spec: ModelSpec) -> ModelSpec:
    """The same with ``pretrained`` spelt out; for a model that names no weights, itself."""
    return _with(spec, True) if _by_itself(spec) and "pretrained" not in dict(spec.options) else spec


def with_published(spec: ModelSpec) -> ModelSpec:
    """The same with published weights, unless it names others."""
    return spec if names_weights(spec) and not _by_itself(spec) else _with(spec, True)


def without_weights(spec: ModelSpec) -> ModelSpec:
    """The same network with random weights: what its pretrained rows are compared with."""
    if spec.name.startswith(HUB):
        return _with(spec, False)
    bare = _with(spec, None)
    return ModelSpec(bare.name.partition(".")[0], bare.options) if _by_itself(spec) else bare


def _by_itself(spec: ModelSpec) -> bool:
    return spec.name.startswith(HUB) or (spec.name.startswith("timm:") and "." in spec.name)


def _with(spec: ModelSpec, value: bool | None) -> ModelSpec:
    options = {key: old for key, old in spec.options if key != "pretrained"}
    given = options if value is None else {**options, "pretrained": value}
    return ModelSpec(spec.name, tuple(sorted(given.items())))


def weights_file(text: str) -> Path:
    """The file that ``pretrained=TEXT`` means: a file, a folder with model.safetensors, or RUN/CELL.

    Raises:
        ConfigError: there is none, several Cells of the run begin so, or it holds no network.
    """
    found = _named_file(text)
    if head := info_of(found).get("head"):
        raise ConfigError(
            f"pretrained={text}: {found} holds only the head {head!r} of a frozen network; name the weights that the "
            "network itself started from"
        )
    return found


def _named_file(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / IN_FOLDER).is_file():
            return path / IN_FOLDER
        raise ConfigError(f"pretrained={text}: the folder has no {IN_FOLDER}; name the file of weights itself")
    run = path.parent
    if (run / "cells").is_dir():
        found = sorted((run / "weights").glob(f"{path.name}*.safetensors"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"pretrained={text}: {len(found)} cells of {run} begin with {path.name}; write more of it"
            )
        known = any((run / "cells").glob(f"{path.name}*.json"))
        hint = "that cell kept no weights; run it again with --keep-weights" if known else "the run has no such cell"
        raise ConfigError(f"pretrained={text}: {hint}")
    raise ConfigError(f"pretrained={text}: there is no weights file {path}, and no run directory {run}")


def info_of(path: Path) -> dict[str, Any]:
    """What a file of weights that this program wrote says of itself; empty for any other file."""
    try:
        found = json.loads(metadata_of(path)["medbench"])
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; empty for any other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                return {}
            found = json.loads(file.read(length))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}

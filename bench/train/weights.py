"""Trained weights on disk, ``RUN/weights/<key>.safetensors``: of the chosen epoch, with what is needed to use them.

The file's metadata, one JSON object under ``medbench``, say whose they are: the Cell's ``key``, ``model``, ``dataset``,
``classes``, ``resolution``, ``mean`` and ``std`` (one number a channel), ``epoch``. Equal trainings give equal bytes. A
model named ``resnet18[pretrained=RUN/weights/<key>.safetensors]`` goes on from them, and their normalisation follows.
Of a frozen network only the ``head`` is kept, ``weight`` and ``bias``: nothing that a training could go on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bench.record.cells import AccuracyCell, cell_key
from bench.record.files import replacing
from bench.record.paths import weights_path
from bench.registry import DatasetInfo
from bench.registry.normalisation import Normalisation
from bench.registry.weights import info_of


def save(
    out: Path,
    cell: AccuracyCell,
    info: DatasetInfo,
    state: Mapping[str, torch.Tensor],
    normalisation: Normalisation,
    epoch: int,
) -> Path:
    """Write the weights of a trained Cell, so that a reader sees all of them or nothing."""
    key = cell_key(cell)
    mean, std = normalisation
    facts = {
        "key": key,
        "model": cell.model,
        "dataset": cell.dataset,
        "classes": list(info.classes),
        "resolution": cell.resolution,
        "mean": list(mean),
        "std": list(std),
        "epoch": epoch,
        **({"head": cell.head} if cell.head else {}),
    }
    metadata = {"medbench": json.dumps(facts, sort_keys=True)}  # one entry: the library writes several in any order
    path = weights_path(out, key)
    with replacing(path) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, part, metadata)
    return path


def load(out: Path, key: str) -> dict[str, torch.Tensor]:
    """Read the weights of a Cell.

    Raises:
        FileNotFoundError: they were not kept.
        ValueError: the file is damaged or another Cell's.
    """
    path = weights_path(out, key)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the weights of {key} were not kept; run again with --keep-weights")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run again to train it anew") from error
    if (owner := info_of(path).get("key")) != key:
        raise ValueError(f"{path} holds the weights of {owner or 'no cell'}, not of {key}; remove it")
    return state

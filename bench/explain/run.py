"""Trained Cells of a run into pictures and numbers.

``RUN/explain/<key>/``:

- ``looks_<class>.png``: test images, right and wrong, and what spoke for the answer;
- ``receptive_field.png``: of each stage, at initialisation and trained;
- ``explain.json``: the numbers of both; ``fields.npz``: the maps, float32 of sum 1.

``RUN/explain/receptive_fields.png`` shows side by side all that was explained in this run so far.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench import registry
from bench.data.cache import decode_bar, open_entry
from bench.explain.cam import Array, Choice, choose, class_maps
from bench.explain.field import Map, radii_px, receptive_fields
from bench.explain.pictures import FieldRow, fields, overlays
from bench.explain.stages import StageOutput, find_stages, stage_to_explain
from bench.explain.which import cell_of
from bench.record import store
from bench.record.cells import AccuracyCell, Context
from bench.record.files import atomic_write
from bench.record.paths import predictions_path, record_path
from bench.record.store import Record, StoreError
from bench.record.types import Fields
from bench.registry import DatasetInfo, RegistryError
from bench.train import accuracy, weights
from bench.train.pipeline import Pipeline

FINEST = 4  # cells a side that a stage should have for its activations to say where


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is looked at.

    Attributes:
        per_class: overlays of right, and of wrong, test images of each class.
        images: over which receptive fields are averaged.
        device: cpu or cuda:N.
        data_root: folder of the dataset files.
    """

    per_class: int = 2
    images: int = 16
    device: str = "cpu"
    data_root: Path | None = None


def explain_cell(out: Path, record: Record, settings: Settings) -> Path:
    """Write everything about one Cell; return its folder.

    Raises:
        StoreError: its weights or scores are missing or damaged.
        DataError: a file of its dataset is missing or damaged.
        RegistryError: its model or dataset is unknown, or the library of the overlays is not installed.
    """
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise RegistryError(f"--device {settings.device}: torch finds no CUDA device; use --device cpu")
    cell, key = cell_of(record), str(record["key"])
    context = Context(settings.device, torch.get_num_threads(), settings.data_root, None, out, lambda event: None)
    device = accuracy.set_up(context)
    torch.use_deterministic_algorithms(True, warn_only=True)  # a map bears the noise of what has no deterministic form
    info = registry.dataset_info(cell.dataset)
    try:
        state = weights.load(out, key)
        model, channels_last = accuracy.build_model(cell, info, device)  # as it was before the training
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"{cell.model}: {error}") from error
    with decode_bar() as told:
        entry = open_entry(
            info, cell.size, settings.data_root, None,
            resize=cell.resize, progress=told, fingerprint=cell.data_fingerprint,
        )  # fmt: skip
    split = entry.splits["test"]
    reader = accuracy.pipeline(split, cell, info, cell.resize, device, channels_last, cell.recipe)
    images = _take(reader, np.linspace(0, len(reader) - 1, min(settings.images, len(reader))).astype(int).tolist())
    stages = find_stages(model.eval(), images)
    before = receptive_fields(model, images, stages)
    model.load_state_dict(state)
    maps = {"at initialisation": before, "trained": receptive_fields(model, images, stages)}

    folder = out / "explain" / key
    for old in [*folder.glob("looks_*.png"), *folder.glob("receptive_field.png")]:
        old.unlink()
    choices = choose(*_scores(out, key), info.task, settings.per_class)
    facts = {
        "key": key, "model": cell.model, "dataset": cell.dataset, "resolution": cell.resolution, "seed": cell.seed,
        "images": len(images), **_overlays(folder, cell, info, choices, model, reader, stages),
    }  # fmt: skip
    _write_fields(folder, facts, stages, maps)
    return folder


def _take(reader: Pipeline, places: Sequence[int]) -> torch.Tensor:
    return reader.preprocess(reader.images[torch.as_tensor(places)].to(reader.device), None)


def _scores(out: Path, key: str) -> tuple[Array, Array]:
    path = predictions_path(out, key)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["test_scores"], stored["test_labels"]
    except Exception as error:  # numpy raises whatever its parts raise
        record = record_path(out, key)
        raise StoreError(f"cannot read the scores in {path} ({error}); delete {record} and run again") from error


def _overlays(
    folder: Path, cell: AccuracyCell, info: DatasetInfo, choices: Sequence[Choice], model: nn.Module, reader: Pipeline,
    stages: Sequence[StageOutput],
) -> Fields:  # fmt: skip
    """Draw a picture per class; return which images were looked at, and where the map was read."""
    images = _take(reader, [choice.image for choice in choices])
    stage = stage_to_explain(model, stages, images, FINEST)
    step = int(cell.recipe["eval_batch_size"])
    parts = [slice(start, start + step) for start in range(0, len(choices), step)]
    classes = [choice.predicted for choice in choices]
    maps = np.concatenate([class_maps(model, images[part], classes[part], stage) for part in parts])
    shown = _shown(reader, images)
    asked = "label:" if info.task == "multi-label" else "true class:"
    dataset = registry.display_name(cell.dataset)
    for group in sorted({choice.group for choice in choices}):
        here = [i for i, choice in enumerate(choices) if choice.group == group]
        title = f"{cell.model} on {dataset}; {asked} {info.classes[group]} (map of {stage.name})"
        captions = [(_caption(choices[i], info), choices[i].right) for i in here]
        name = re.sub(r"[^a-z0-9]+", "-", info.classes[group].lower()).strip("-")[:40]
        data = overlays(title, shown[here], maps[here], captions)
        atomic_write(folder / f"looks_{group:02d}_{name or 'class'}.png", data)
    looks = [choice._asdict() for choice in choices]
    return {"looks": looks, "read_at": stage.name, "grid": list(stage.grid), "classes": list(info.classes)}


def _caption(choice: Choice, info: DatasetInfo) -> str:
    if info.task == "multi-label":
        return f"#{choice.image}, {'present' if choice.present else 'absent'}\nscore {choice.score:.2f}"
    answer = f"predicted {info.classes[choice.predicted][:18]} {choice.score:.2f}"
    return f"#{choice.image}, {'right' if choice.right else 'wrong'}\n{answer}"


def _shown(reader: Pipeline, images: torch.Tensor) -> npt.NDArray[np.float32]:
    """The network's own input, normalisation undone, as (n,h,w,3) from 0 to 1."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in reader.normalisation)
    pixels = np.clip(images.detach().cpu().permute(0, 2, 3, 1).numpy() * std + mean, 0, 1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


def _write_fields(folder: Path, facts: Fields, stages: Sequence[StageOutput], maps: dict[str, list[Map]]) -> None:
    facts["stages"] = [{"name": stage.name, "grid": list(stage.grid)} for stage in stages]
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for state, found in maps.items():
        for entry, mass in zip(facts["stages"], found, strict=True):
            radii = radii_px(mass)
            entry[state] = {"radius_50_px": radii[0], "radius_95_px": radii[1]} if radii else None
            arrays[f"{state}/{entry['name']}"] = mass.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / "fields.npz", buffer.getvalue())
    store.write_json(folder / "explain.json", facts)
    where = f"{facts['model']} on {registry.display_name(facts['dataset'])} at {facts['resolution']} px"
    rows = [row._replace(label="") for row in _rows(folder)]
    atomic_write(folder / "receptive_field.png", fields(f"{where}: effective receptive field", rows))


def side_by_side(run: Path) -> Path:
    """Draw the trained receptive fields of all that was explained in a run in one picture; return its path."""
    folders = sorted(path.parent for path in (run / "explain").glob("*/explain.json"))
    rows = [row for folder in folders for row in _rows(folder) if row.state == "trained"]
    path = run / "explain" / "receptive_fields.png"
    atomic_write(path, fields("Effective receptive fields", sorted(rows, key=lambda row: row[:3])))
    return path


def _rows(folder: Path) -> list[FieldRow]:
    """What was written of one Cell: a row at initialisation and one trained."""
    try:
        facts = json.loads((folder / "explain.json").read_bytes())
        with np.load(folder / "fields.npz", allow_pickle=False) as stored:
            maps = {name: stored[name].astype(float) for name in stored.files}
    except Exception as error:  # numpy raises whatever its parts raise
        raise StoreError(f"cannot read {folder} ({error}); delete it and run bench explain again") from error
    label = f"{facts['model']} on {registry.display_name(facts['dataset'])}, seed {facts['seed']}"
    return [
        FieldRow(label, state, facts["resolution"], {s["name"]: maps[f"{state}/{s['name']}"] for s in facts["stages"]})
        for state in dict.fromkeys(name.partition("/")[0] for name in maps)
    ]

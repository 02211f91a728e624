"""One Cell of a run, or one network without a run, into pictures and numbers.

``<folder>/`` is ``RUN/explain/<key>/``:

- ``looks_<class>.png``: test images, right and wrong, and what spoke for the answer;
- ``receptive_field.png``: of each stage, at initialisation and trained;
- ``explain.json``: the numbers of both; ``fields.npz``: the maps, float32 of sum 1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import registry
from bench.explain.which import cell_of
from bench.record import store
from bench.record.cells import AccuracyCell, Context
from bench.record.files import atomic_write
from bench.record.paths import record_path
from bench.record.store import Record, StoreError
from bench.registry import RegistryError

if TYPE_CHECKING:
    import torch

    from bench.explain.field import Map
    from bench.explain.stages import StageOutput
    from bench.registry import DatasetInfo
    from bench.train.pipeline import Pipeline

FINEST = 4  # cells a side that a stage should have for its activations to say where
NOISE_SEED = 0


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


# --- one Cell ----------------------------------------------------------------------------------------------------


def explain_cell(out: Path, record: Record, settings: Settings) -> Path:
    """Write everything about one Cell; return its folder.

    Raises:
        StoreError: its weights or scores are missing or damaged.
        DataError: a file of its dataset is missing or damaged.
        RegistryError: its model or dataset is unknown, or the library of the overlays is not installed.
    """
    import torch

    from bench.explain.field import receptive_fields
    from bench.explain.pictures import INITIAL
    from bench.explain.stages import find_stages
    from bench.train import accuracy, weights

    cell, key = cell_of(record), str(record["key"])
    context = Context(settings.device, torch.get_num_threads(), settings.data_root, None, out, lambda event: None)
    device = _set_up(context)
    info = registry.dataset_info(cell.dataset)
    try:
        state = weights.load(out, key)
        model, channels_last = accuracy.build_model(cell, info, device)  # as it was before the training
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"{cell.model}: {error}") from error
    reader = _reader(cell, info, settings, device, channels_last)
    images = _take(reader, np.linspace(0, len(reader) - 1, min(settings.images, len(reader))).astype(int))
    stages = find_stages(model.eval(), images)
    before = receptive_fields(model, images, stages)
    model.load_state_dict(state)
    trained = receptive_fields(model, images, stages)

    folder = out / "explain" / key
    for old in [*folder.glob("looks_*.png"), *folder.glob("receptive_field.png")]:
        old.unlink()
    looked = _overlays(folder, cell, info, _scores(out, key), model, reader, stages, settings)
    facts = {
        "key": key, "model": cell.model, "dataset": cell.dataset, "resolution": cell.resolution, "seed": cell.seed,
        "images": len(images), **looked,
    }  # fmt: skip
    _write_fields(folder, facts, stages, {INITIAL: before, "trained": trained})
    return folder


def _set_up(context: Context) -> torch.device:
    """As for a training, but an operation without a deterministic form is only warned of: a map bears its noise."""
    import torch

    from bench.train.accuracy import set_up

    if context.device != "cpu" and not torch.cuda.is_available():
        raise RegistryError(f"--device {context.device}: torch finds no CUDA device; use --device cpu")
    device = set_up(context)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _reader(
    cell: AccuracyCell, info: DatasetInfo, settings: Settings, device: torch.device, channels_last: bool
) -> Pipeline:
    from bench.data.cache import decode_bar, open_entry
    from bench.train import accuracy

    with decode_bar() as told:
        entry = open_entry(
            info, cell.size, settings.data_root, None,
            resize=cell.resize, progress=told, fingerprint=cell.data_fingerprint,
        )  # fmt: skip
    return accuracy.pipeline(entry.splits["test"], cell, info, cell.resize, device, channels_last, cell.recipe)


def _take(reader: Pipeline, places: Any) -> torch.Tensor:
    import torch

    return reader.preprocess(reader.images[torch.as_tensor(places)].to(reader.device), None)


def _scores(out: Path, key: str) -> tuple[Any, Any]:
    path = out / "predictions" / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["test_scores"], stored["test_labels"]
    except Exception as error:  # numpy raises whatever its parts raise
        record = record_path(out, key)
        raise StoreError(f"cannot read the scores in {path} ({error}); delete {record} and run again") from error


def _overlays(
    folder: Path,
    cell: AccuracyCell,
    info: DatasetInfo,
    evidence: tuple[Any, Any],
    model: torch.nn.Module,
    reader: Pipeline,
    stages: Sequence[StageOutput],
    settings: Settings,
) -> dict[str, Any]:
    """Draw a picture a class; return which images were looked at, and where the map was read."""
    from bench.explain.cam import choose, class_maps
    from bench.explain.pictures import overlays
    from bench.explain.stages import stage_to_explain

    choices = choose(*evidence, info.task, settings.per_class)
    images = _take(reader, [choice.image for choice in choices])
    stage = stage_to_explain(model, stages, images, FINEST)
    step = int(cell.recipe["eval_batch_size"])
    parts = [slice(start, start + step) for start in range(0, len(choices), step)]
    classes = [choice.predicted for choice in choices]
    maps = np.concatenate([class_maps(model, images[part], classes[part], stage) for part in parts])
    shown = _shown(reader, images)
    asked = "label:" if info.task == "multi-label" else "true class:"
    for group in sorted({choice.group for choice in choices}):
        here = [i for i, choice in enumerate(choices) if choice.group == group]
        title = f"{cell.model} on {cell.dataset}; {asked} {info.classes[group]} (read at {stage.name})"
        told = [(choices[i], _caption(choices[i], info)) for i in here]
        name = re.sub(r"[^a-z0-9]+", "-", info.classes[group].lower()).strip("-")[:40]
        data = overlays(title, shown[here], maps[here], told)
        atomic_write(folder / f"looks_{group:02d}_{name or 'class'}.png", data)
    told_of = [{**choice._asdict(), "centre": _centre(maps[i])} for i, choice in enumerate(choices)]
    return {"looks": told_of, "read_at": stage.name, "grid": list(stage.grid), "classes": list(info.classes)}


def _caption(choice: Any, info: DatasetInfo) -> str:
    if info.task == "multi-label":
        truth = "present" if choice.present else "absent"
        return f"#{choice.image}, {truth}\nscore {choice.score:.2f}"
    answer = f"said {info.classes[choice.predicted][:18]} {choice.score:.2f}"
    return f"#{choice.image}, {'right' if choice.right else 'wrong'}\n{answer}"


def _shown(reader: Pipeline, images: torch.Tensor) -> Any:
    """The network's own input, normalisation undone, as (n,h,w,3) from 0 to 1."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in reader.normalisation)
    pixels = np.clip(images.detach().cpu().permute(0, 2, 3, 1).numpy() * std + mean, 0, 1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


def _centre(one: Any) -> list[float] | None:
    """(row, column) of a map's centre of mass, pixels."""
    total = float(one.sum())
    if total <= 0:
        return None
    rows, columns = np.indices(one.shape)
    return [round(float((one * places).sum()) / total, 2) for places in (rows, columns)]


# --- receptive fields --------------------------------------------------------------------------------------------


def explain_network(name: str, resolution: int, out: Path, settings: Settings) -> Path:
    """Write the receptive fields of a network without a run, on noise of unit variance.

    Returns:
        A folder under ``out``, named by network and resolution.

    Raises:
        RegistryError: the name is unknown, or it does not take the resolution.
    """
    import torch

    from bench.explain.field import receptive_fields
    from bench.explain.pictures import INITIAL
    from bench.explain.stages import find_stages
    from bench.registry.build import build

    spec = registry.parse_model(name)
    options = dict(spec.options)
    if reason := registry.model_info(spec.name).unsupported(resolution, options):
        raise RegistryError(f"{name}: {reason}")
    device = _set_up(Context(settings.device, torch.get_num_threads(), None, None, out, lambda event: None))
    torch.manual_seed(NOISE_SEED)
    model = build(str(spec), resolution).to(device).eval()
    draw = torch.Generator().manual_seed(NOISE_SEED)
    images = torch.randn(settings.images, 3, resolution, resolution, generator=draw).to(device)
    stages = find_stages(model, images)
    state = "pretrained" if options.get("pretrained") else INITIAL
    folder = out / str(registry.file_stem(f"{spec}-{resolution}px"))
    facts = {"model": str(spec), "resolution": resolution, "images": len(images), "dataset": None}
    _write_fields(folder, facts, stages, {state: receptive_fields(model, images, stages)})
    return folder


def _write_fields(
    folder: Path, facts: dict[str, Any], stages: Sequence[StageOutput], maps: dict[str, list[Map]]
) -> None:
    from bench.explain.field import spread
    from bench.explain.pictures import FieldRow, fields

    measured = {state: [spread(one) for one in found] for state, found in maps.items()}
    rows: list[FieldRow] = []
    arrays: dict[str, Any] = {}
    for state, found in maps.items():
        lines = [(stage.name, one, m) for stage, one, m in zip(stages, found, measured[state], strict=True)]
        rows.append(FieldRow("", state, facts["resolution"], lines))
        arrays |= {f"{state}/{stage.name}": one.astype(np.float32) for stage, one in zip(stages, found, strict=True)}
    facts["stages"] = [
        {
            "name": stage.name, "grid": list(stage.grid),
            **{state: asdict(one) if (one := m[i]) else None for state, m in measured.items()},
        }
        for i, stage in enumerate(stages)
    ]  # fmt: skip
    where = f" on {registry.display_name(facts['dataset'])}" if facts["dataset"] else ""
    title = f"{facts['model']}{where} at {facts['resolution']} px: effective receptive field"
    atomic_write(folder / "receptive_field.png", fields(title, rows))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(folder / "fields.npz", buffer.getvalue())
    store.write_json(folder / "explain.json", facts)

"""From a run to a folder that anybody can use: weights, ``model.json``, ``README.md``, ONNX; everything checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bench import registry
from bench.data.cache import open_entry
from bench.data.cache_entry import Entry
from bench.deploy.bundle import FILE, Bundle, DeployError, Look, Member, Scores
from bench.deploy.card import card
from bench.deploy.inputs import looked_at
from bench.deploy.loaded import build, load_model
from bench.deploy.onnx_file import OnnxError, write_onnx
from bench.deploy.which import keys
from bench.explain.which import cell_of
from bench.metrics.calibration import temperature, youden
from bench.metrics.one_vs_rest import one_vs_rest
from bench.record.cells import AccuracyCell
from bench.record.files import atomic_write
from bench.record.paths import predictions_path, weights_path
from bench.record.store import Record
from bench.registry import DatasetInfo, LazySplit, parse_source
from bench.registry.names import is_source
from bench.train.preprocess import Preprocess

CHECKED = 64  # test images on which ONNX and PyTorch are compared
LOOKED_AT = 2000  # training images whose gray values are looked at
SIZED = 200  # those whose own sizes are read
TOLERANCE = 1e-4  # of a probability

Arrays = Mapping[str, np.ndarray[Any, Any]]


def export_model(
    out: Path,
    records: Sequence[Record],
    folder: Path,
    root: Path | None,
    onnx: bool | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Write trained networks that belong together as one folder.

    Args:
        out: the run.
        records: of the Cells, as :func:`bench.deploy.which.members_of` gives them.
        folder: where; must be new or an earlier export.
        root: folder of the dataset files.
        onnx: write ONNX too; None: where the libraries are there.
        tell: given a line for people.

    Returns:
        What was written as ``model.json``.

    Raises:
        DeployError: the folder holds something else, the Cells cannot be exported, or a check fails.
        OnnxError: ``onnx`` was asked for and cannot be had.
        DataError: a file of the dataset is missing or damaged.
    """  # fmt: skip
    if folder.exists() and any(folder.iterdir()) and not (folder / FILE).is_file():
        raise DeployError(f"{folder} is not empty and no exported model; name another --out")
    cell = cell_of(records[0])
    if cell.track == "frozen":
        raise DeployError(f"{records[0]['key'][:8]} is a head on frozen features, which keeps no weights to export")
    info = registry.dataset_info(cell.dataset)
    entry = open_entry(info, cell.size, root, resize=cell.resize, fingerprint=cell.data_fingerprint)
    arrays = [_predictions(out, record) for record in records]
    folder.mkdir(parents=True, exist_ok=True)
    bundle = _bundle(cell, info, records, arrays, _look(info, entry, cell, root))
    for member in bundle.members:
        shutil.copyfile(weights_path(out, member.key), folder / member.weights)
    _write(folder, bundle)
    images = entry.splits["test"].images[: min(bundle.batch_size, len(entry.splits["test"].images))]
    bundle = _checked_by_torch(folder, bundle, records, arrays, np.asarray(images), tell)
    if onnx or (onnx is None and find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")):
        bundle = _with_onnx(folder, bundle, np.asarray(images[:CHECKED]), tell, strict=bool(onnx))
    elif onnx is None:
        tell("no ONNX file: pip install 'medbench[onnx]'")
    _write(folder, bundle)
    atomic_write(folder / "README.md", card(bundle, info, records, arrays).encode())
    return bundle


def _write(folder: Path, bundle: Bundle) -> None:
    atomic_write(folder / FILE, bundle.text().encode())


def _predictions(out: Path, record: Record) -> Arrays:
    path = predictions_path(out, record["key"])
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise DeployError(f"{path}: no scores of cell {keys([record])} ({error})") from error


def _bundle(
    cell: AccuracyCell, info: DatasetInfo, records: Sequence[Record], arrays: Sequence[Arrays], look: Look
) -> Bundle:
    said = records[0]["metrics"]
    positive = str(said.get("positive_class") or "")
    thresholds, scale = operating_point(arrays, info.classes, positive)
    single = len(records) == 1
    feed = Preprocess(
        (cell.size, cell.size, info.channels), cell.recipe, cell.resolution, cell.resize, torch.device("cpu"), False,
        cell.normalisation,
    )  # fmt: skip
    members = []
    for record in records:
        fold = record["spec"].get("fold")
        end = "" if single else f"-fold{fold}" if fold is not None else f"-seed{record['spec']['seed']}"
        members.append(Member(record["key"], record["spec"]["seed"], fold, f"model{end}.safetensors", ""))
    options = dict(parse_source(cell.dataset).options) if is_source(cell.dataset) else {}
    decoding = {"mix": "channels" in options, "window": options.get("window", "file")}
    model = registry.model_info(registry.parse_model(cell.model).name)
    return Bundle(
        model=cell.model, dataset=registry.display_name(cell.dataset), task=info.task, classes=tuple(info.classes),
        positive_class=positive, positive_class_guessed=bool(said.get("positive_class_guessed")), size=cell.size,
        resolution=cell.resolution, resize=cell.resize, any_size=info.varied, channels=info.channels,
        in_chans=feed.in_chans, mean=tuple(map(float, feed.mean)), std=tuple(map(float, feed.std)),
        decoding={**decoding, "frames": options.get("frames", "")}, precision=cell.precision,
        batch_size=_batch(cell, records[0]), threads=int(records[0]["environment"].get("threads") or 1),
        thresholds=thresholds, temperature=scale, members=tuple(members), training_images=look,
        licences={"model": model.licence, "dataset": info.licence},
        plugins=tuple(os.path.basename(file) for file in (model.plugin_file, info.plugin_file) if file),
        medbench=_version(),
    )  # fmt: skip


def _batch(cell: AccuracyCell, record: Record) -> int:
    """As many images as were scored at once; fewer where memory was short in training."""
    size = int(cell.recipe["eval_batch_size"])
    held = record["metrics"].get("micro_batch_size")
    return min(size, int(held)) if held else size


def _version() -> str:
    try:
        return version("medbench")
    except PackageNotFoundError:
        return ""


def operating_point(arrays: Sequence[Arrays], classes: Sequence[str], positive: str) -> tuple[tuple[float, ...], float]:
    """Thresholds (Youden) and temperature, chosen on the validation scores of all members together.

    Of one network these are those of its Record. A label that validation lacks is decided at 0.5.
    """
    scores = np.concatenate([found["val_scores"] for found in arrays])
    labels = np.concatenate([found["val_labels"] for found in arrays])
    scale = temperature(scores, labels)
    several = len(np.shape(labels)) > 1 and np.shape(labels)[1] > 1
    if len(classes) > 2 and not several:
        return (), scale
    columns, targets = one_vs_rest(scores, labels, classes.index(positive) if positive else 1)
    found = [youden(columns[:, k], targets[:, k]) for k in range(columns.shape[1])]
    return tuple(0.5 if np.isnan(value) else value for value in found), scale


def _look(info: DatasetInfo, entry: Entry, cell: AccuracyCell, root: Path | None) -> Look:
    images = entry.splits["train"].images
    rows = np.unique(np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int))
    some = np.asarray(images[rows])
    found = looked_at(some)
    low, high = found.min(axis=0), found.max(axis=0)
    gray = float((some == some[..., :1]).all(axis=(1, 2, 3)).mean())
    size = (cell.size, cell.size)
    return Look(
        _sizes(info, cell, root) or (size, size), gray, (float(low[0]), float(high[0])),
        (float(low[1]), float(high[1])), len(rows),
    )  # fmt: skip


def _sizes(info: DatasetInfo, cell: AccuracyCell, root: Path | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Smallest and largest height and width of training images that have sizes of their own."""
    if not info.varied:
        return None
    from bench.data.files import default_root

    split = info.open().load(cell.size, root or default_root())["train"]
    if not isinstance(split, LazySplit):
        return None
    rows = np.unique(np.linspace(0, len(split.labels) - 1, min(SIZED, len(split.labels))).astype(int))
    shapes = np.array([split.read(int(row)).shape[:2] for row in rows])
    (low_h, low_w), (high_h, high_w) = shapes.min(axis=0), shapes.max(axis=0)
    return (int(low_h), int(low_w)), (int(high_h), int(high_w))


# --- checks ------------------------------------------------------------------------------------------------------


def _checked_by_torch(
    folder: Path, bundle: Bundle, records: Sequence[Record], arrays: Sequence[Arrays],
    images: np.ndarray[Any, Any], tell: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """Hash the weights, load them from the folder, and compare their scores with the Record's."""
    members = []
    for member in bundle.members:
        digest = hashlib.sha256((folder / member.weights).read_bytes()).hexdigest()
        members.append(replace(member, weights_sha256=digest))
    bundle = replace(bundle, members=tuple(members))
    _write(folder, bundle)
    if len(members) > 1:  # of folds, each has test images of its own
        load_model(folder, engine="torch")
        return bundle
    torch.set_num_threads(bundle.threads)  # sums of several threads have other last bits
    found = load_model(folder, engine="torch").scores(images)
    worst = _largest(found, arrays[0]["test_scores"][: len(images)])
    tell(f"PyTorch here against the record's test scores, {len(images)} images: largest difference {worst:.1e}")
    where = records[0]["environment"].get("device", "cpu")
    if worst > 0.05:
        raise DeployError(f"the weights give other scores than their record, by up to {worst:.3f} (trained on {where})")
    return replace(bundle, checks={**bundle.checks, "pytorch_against_record": worst})


def _with_onnx(
    folder: Path, bundle: Bundle, images: np.ndarray[Any, Any], tell: Callable[[str], None], strict: bool
) -> Bundle:
    members, nodes = [], 0
    try:
        for member in bundle.members:
            name = member.weights.replace(".safetensors", ".onnx")
            model, _ = build(bundle, torch.device("cpu"))
            model.load_state_dict(load_file(folder / member.weights))
            model = model.to(memory_format=torch.contiguous_format).eval()
            nodes = write_onnx(model, (bundle.in_chans, bundle.resolution, bundle.resolution), folder / name)
            members.append(replace(member, onnx=name))
    except OnnxError as error:
        if strict:
            raise
        tell(f"no ONNX file: {error}")
        return bundle
    bundle = replace(bundle, members=tuple(members))
    _write(folder, replace(bundle, precision="fp32"))
    exact = load_model(folder, engine="torch").scores(images)
    worst = _largest(load_model(folder, engine="onnx").scores(images), exact)
    size = (folder / members[0].onnx).stat().st_size / 2**20
    against = f"against PyTorch, {len(images)} test images: largest difference {worst:.1e}"
    tell(f"ONNX, {nodes} nodes, {size:.0f} MiB, {against}")
    if worst > TOLERANCE:
        raise DeployError(f"ONNX gives other scores than PyTorch, by up to {worst:.1e} (allowed: {TOLERANCE:g})")
    return replace(bundle, checks={**bundle.checks, "onnx_against_pytorch": worst})


def _largest(a: Scores, b: Scores) -> float:
    return float(np.abs(a - b).max()) if len(a) else 0.0

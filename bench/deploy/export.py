"""From a run to a folder that anybody can use: weights, ``model.json``, ``README.md``, ONNX; everything checked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save

from bench import registry
from bench.data.cache import open_entry
from bench.data.cache_entry import Entry
from bench.data.files import default_root
from bench.deploy.bundle import FILE, Bundle, DeployError, Look, Member, Scores
from bench.deploy.card import Arrays, card
from bench.deploy.inputs import looked_at
from bench.deploy.loaded import Images, build, load_bundle
from bench.deploy.onnx_file import OnnxError, write_onnx
from bench.deploy.which import keys
from bench.explain.which import cell_of
from bench.machine.versions import VERSION
from bench.metrics.calibration import temperature, youden
from bench.metrics.one_vs_rest import one_vs_rest
from bench.record.cells import AccuracyCell
from bench.record.files import atomic_write
from bench.record.paths import predictions_path, weights_path
from bench.record.store import Record
from bench.registry import DatasetInfo, LazySplit, parse_source
from bench.registry.names import is_source
from bench.train import weights
from bench.train.accuracy import build_model
from bench.train.frozen.network import FrozenNetwork
from bench.train.preprocess import Preprocess

CHECKED = 64  # test images on which ONNX and PyTorch are compared
LOOKED_AT = 2000  # training images whose gray values are looked at
SIZED = 200  # those whose own sizes are read
TOLERANCE = 1e-4  # of a probability
_NETWORK = re.compile(r"model(-(fold|seed)\d+)?\.(safetensors|onnx)")  # files of networks in an exported folder


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
        folder: where; must be new or an earlier export, whose networks are removed.
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
    info = registry.dataset_info(cell.dataset)
    entry = open_entry(info, cell.size, root, resize=cell.resize, fingerprint=cell.data_fingerprint)
    arrays = [_predictions(out, record) for record in records]
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FILE).is_file():
        tell(f"the earlier export in {folder} is replaced")
        for path in folder.iterdir():
            if _NETWORK.fullmatch(path.name):  # also an ONNX file or folds that the new export has not
                path.unlink()
    members = tuple(_copied(out, record, info, folder, alone=len(records) == 1) for record in records)
    bundle = _bundle(cell, info, records, arrays, members, _look(info, entry, cell, root))
    atomic_write(folder / FILE, bundle.text().encode())
    images = np.asarray(entry.splits["test"].images[: bundle.batch_size])
    bundle = _checked_by_torch(folder, bundle, records[0], arrays[0], images, tell)
    if onnx or (onnx is None and find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")):
        bundle = _with_onnx(folder, bundle, images[:CHECKED], tell, strict=bool(onnx))
    elif onnx is None:
        tell("no ONNX file: pip install 'medbench[onnx]'")
    atomic_write(folder / FILE, bundle.text().encode())
    atomic_write(folder / "README.md", card(bundle, info, records, arrays).encode())
    return bundle


def _copied(out: Path, record: Record, info: DatasetInfo, folder: Path, alone: bool) -> Member:
    """Put the weights of a Cell into the folder; their name says which of several they are."""
    seed, fold = record["spec"]["seed"], record["spec"].get("fold")
    name = f"model{'' if alone else f'-fold{fold}' if fold is not None else f'-seed{seed}'}.safetensors"
    if record["spec"].get("head"):
        atomic_write(folder / name, save(_frozen_with_head(out, record, info)))
    else:
        shutil.copyfile(weights_path(out, record["key"]), folder / name)
    return Member(record["key"], seed, fold, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())


def _frozen_with_head(out: Path, record: Record, info: DatasetInfo) -> dict[str, torch.Tensor]:
    """The weights of a frozen network as they were found, and of the head that was fitted on it."""
    try:
        backbone, _ = build_model(cell_of(record), info, torch.device("cpu"), head=False)
        head = weights.load(out, record["key"])
    except (RuntimeError, ValueError) as error:  # other weights than then; a damaged file
        raise DeployError(f"cell {record['key'][:8]}: {error}") from error
    state = FrozenNetwork(backbone, *head["weight"].shape[::-1]).state_dict() | head
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _predictions(out: Path, record: Record) -> Arrays:
    path = predictions_path(out, record["key"])
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise DeployError(f"{path}: no scores of cell {keys([record])} ({error})") from error


def _bundle(
    cell: AccuracyCell, info: DatasetInfo, records: Sequence[Record], arrays: Sequence[Arrays],
    members: tuple[Member, ...], look: Look,
) -> Bundle:  # fmt: skip
    said, place = records[0]["metrics"], records[0]["environment"]
    positive = str(said.get("positive_class") or "")
    thresholds, scale = operating_point(arrays, info.classes, positive)
    shape = (cell.size, cell.size, info.channels)
    cpu = torch.device("cpu")
    feed = Preprocess(shape, cell.recipe, cell.resolution, cell.resize, cpu, False, cell.normalisation)
    options = dict(parse_source(cell.dataset).options) if is_source(cell.dataset) else {}
    decoding: dict[str, str | bool] = {"mix": "channels" in options, "window": options.get("window", "file")}
    model = registry.model_info(registry.parse_model(cell.model).name)
    batch = int(cell.recipe["eval_batch_size"])  # as many as were scored at once; fewer where memory was short
    return Bundle(
        model=cell.model, dataset=registry.display_name(cell.dataset), task=info.task, classes=tuple(info.classes),
        positive_class=positive, positive_class_guessed=bool(said.get("positive_class_guessed")), size=cell.size,
        resolution=cell.resolution, resize=cell.resize, any_size=info.varied, channels=info.channels,
        features=_features(records[0]), in_chans=feed.in_chans, mean=tuple(map(float, feed.mean)),
        std=tuple(map(float, feed.std)),
        decoding=decoding | {"frames": options.get("frames", "")}, precision=cell.precision,
        batch_size=min(batch, int(said.get("micro_batch_size") or batch)), threads=int(place.get("threads") or 1),
        thresholds=thresholds, temperature=scale, members=members, training_images=look,
        licences={"model": model.licence, "dataset": info.licence},
        plugins=tuple(os.path.basename(file) for file in (model.plugin_file, info.plugin_file) if file),
        medbench=VERSION,
    )  # fmt: skip


def _features(record: Record) -> int:
    """How many numbers the head of a frozen network reads; 0 for a network with a classifier of its own."""
    return int(record["metrics"]["features"]) if record["spec"].get("head") else 0


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
    some = np.asarray(images[_spread(len(images), LOOKED_AT)])
    low, high = (found.tolist() for found in (looked_at(some).min(axis=0), looked_at(some).max(axis=0)))
    gray = float((some == some[..., :1]).all(axis=(1, 2, 3)).mean())
    sizes = np.array([(cell.size, cell.size)])
    split = info.open().load(cell.size, root or default_root())["train"] if info.varied else None
    if isinstance(split, LazySplit):  # images with sizes of their own
        sizes = np.array([split.read(int(row)).shape[:2] for row in _spread(len(split.labels), SIZED)])
    smallest, largest = ((int(side[0]), int(side[1])) for side in (sizes.min(axis=0), sizes.max(axis=0)))
    return Look((smallest, largest), gray, (low[0], high[0]), (low[1], high[1]), len(some))


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Rows of at most so many images, evenly spread over all."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


# --- checks ------------------------------------------------------------------------------------------------------


def _checked_by_torch(
    folder: Path, bundle: Bundle, record: Record, arrays: Arrays, images: Images, tell: Callable[[str], None]
) -> Bundle:
    """Load the weights from the folder, and compare the scores of a single network with its Record's."""
    torch.set_num_threads(bundle.threads)  # sums of several threads have other last bits
    model = load_bundle(bundle, folder, engine="torch")
    if len(bundle.members) > 1:  # of folds, each has test images of its own
        return bundle
    worst = _largest(model.scores(images), arrays["test_scores"][: len(images)])
    tell(f"PyTorch here against the record's test scores, {len(images)} images: largest difference {worst:.1e}")
    if worst > 0.05:
        where = record["environment"].get("device", "cpu")
        raise DeployError(f"the weights give other scores than their record, by up to {worst:.3f} (trained on {where})")
    return replace(bundle, checks={"pytorch_against_record": worst})


def _with_onnx(folder: Path, bundle: Bundle, images: Images, tell: Callable[[str], None], strict: bool) -> Bundle:
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
    exact = load_bundle(replace(bundle, precision="fp32"), folder, engine="torch").scores(images)
    worst = _largest(load_bundle(bundle, folder, engine="onnx").scores(images), exact)
    size = (folder / members[0].onnx).stat().st_size / 2**20
    against = f"against PyTorch, {len(images)} test images: largest difference {worst:.1e}"
    tell(f"ONNX, {nodes} nodes, {size:.0f} MiB, {against}")
    if worst > TOLERANCE:
        raise DeployError(f"ONNX gives other scores than PyTorch, by up to {worst:.1e} (allowed: {TOLERANCE:g})")
    return replace(bundle, checks={**bundle.checks, "onnx_against_pytorch": worst})


def _largest(a: Scores, b: Scores) -> float:
    return float(np.abs(a - b).max()) if len(a) else 0.0

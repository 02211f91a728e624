"""Execute an accuracy Cell: open the data, build the model, train it, report the test split once."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from bench import registry
from bench.data.cache import open_entry, write_split_file
from bench.data.cache_entry import Entry, Members, members, not_repeated, without_repeats
from bench.data.folds import fold_of_all
from bench.data.look import all_findings
from bench.data.weights import leak_of_weights, locate
from bench.errors import ConfigError
from bench.machine.memory import is_out_of_memory
from bench.metrics.calibration import clinical, recorded
from bench.metrics.classification import classification_metrics
from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import definitions
from bench.record.cells import AccuracyCell, Context, MustRunAlone, Result, cell_key
from bench.record.paths import checkpoint_path, splits_folder
from bench.record.types import Fields, Recipe
from bench.registry import DatasetInfo, Finding, Positive, Split
from bench.registry.layout import prefers_channels_last
from bench.train import augment, rng, weights
from bench.train.checkpoint import Checkpoint
from bench.train.draws import drawn
from bench.train.loop import Outcome, Splits, Trainer
from bench.train.optim import freeze, zero_head
from bench.train.pipeline import Pipeline
from bench.train.replay import Replayed
from bench.train.turns import joined, launch, turn

# What trainings that share this process have tried: the next seed of a network need not wait its turn for that again.
_deterministic: set[tuple[object, ...]] = set()
SOFTMAX_TOLERANCE = 1e-4

__all__ = ["run_accuracy"]


def run_accuracy(cell: AccuracyCell, ctx: Context, recipe: Recipe | None = None) -> Result:
    """Train and score one Cell.

    Args:
        cell: what to train.
        ctx: where and with what.
        recipe: of a tuned Cell, the settings that were chosen; by default the Cell's.

    Returns:
        Metrics of the test split (``test_acc``, ``test_auc``, ...) and of validation at the chosen epoch, the scores of
        both as arrays (probabilities, float64 (N, C)), and the history of epochs. Status ``diverged`` if the loss
        stopped being a number, ``unsupported`` if the model cannot take the resolution. Nothing is saved here.

    Raises:
        DataError: a file is missing or damaged.
        RegistryError: an unknown model or dataset.
        torch.cuda.OutOfMemoryError: not even three images fit at once.
    """
    spec = registry.parse_model(cell.model)
    if reason := registry.model_info(spec.name).unsupported(cell.resolution, dict(spec.options)):
        return Result({}, status="unsupported", reason=reason)
    set_up(ctx)
    timings: dict[str, float] = {}

    ctx.progress({"phase": "load"})
    started = time.perf_counter()
    info, entry, data = opened(cell, ctx)
    who = whose(cell, entry)
    rows = label_rows(cell, data, who)
    data, who = with_labels(data, who, rows)
    timings["load_s"] = time.perf_counter() - started

    outcome, metrics = _trained(cell, dict(recipe or cell.recipe), info, data, ctx, timings)
    metrics |= about(cell, info, entry, rows)
    return result_of(cell, info, data, who, outcome, metrics, {**timings, **outcome.timings})


def opened(cell: AccuracyCell, ctx: Context) -> tuple[DatasetInfo, Entry, dict[str, Split]]:
    """The dataset of a Cell: its info, the decoded entry, and the splits as ``--leaks`` says.

    Raises:
        DataError: a file is missing or damaged.
    """
    info = registry.dataset_info(cell.dataset)
    entry = open_entry(
        info, cell.size, ctx.data_root, ctx.cache_dir,
        resize=cell.resize, progress=ctx.progress, fingerprint=cell.data_fingerprint,
    )  # fmt: skip
    write_split_file(info, entry, splits_folder(ctx.out))
    return info, entry, _arranged(cell, entry, info.classes)[0]


def _arranged(
    cell: AccuracyCell, entry: Entry, classes: tuple[str, ...] = ()
) -> tuple[dict[str, Split], dict[str, Members | None]]:
    """The splits that a Cell trains, chooses and is tested on, and whose images they are."""
    drop, found = cell.leaks == "drop", members(entry.folder)
    data = without_repeats(entry) if drop else entry.splits
    who = {n: m.at(not_repeated(entry, n)) if (m := found.get(n)) and drop else m for n in entry.splits}
    if cell.fold is None or cell.folds is None:
        return data, who
    return fold_of_all(data, who, cell.fold, cell.folds, classes)


def label_rows(cell: AccuracyCell, data: Mapping[str, Split], who: Mapping[str, Members | None]) -> dict[str, Array]:
    """Rows of each split whose labels a Cell uses (:mod:`bench.train.draws`); of test all."""
    found = {}
    for name, split in data.items():
        said = who[name]
        found[name] = np.arange(len(split.labels)) if name == "test" else drawn(
            np.asarray(split.labels[:]), split=name, draw=cell.draw, shots=cell.shots, fraction=cell.label_fraction,
            names=said.names if said else (), patients=said.groups if said else (),
        )  # fmt: skip
    return found


def with_labels(
    data: Mapping[str, Split], who: Mapping[str, Members | None], rows: Mapping[str, Array]
) -> tuple[dict[str, Split], dict[str, Members | None]]:
    """The rows of each split, and whose images they are; splits that are used whole stay as they are."""
    few = {name for name, split in data.items() if len(rows[name]) < len(split.labels)}
    splits = {n: Split(s.images[rows[n]], s.labels[rows[n]]) if n in few else s for n, s in data.items()}
    return splits, {n: said.at(rows[n]) if said and n in few else said for n, said in who.items()}


def about(cell: AccuracyCell, info: DatasetInfo, entry: Entry, rows: Mapping[str, Sized]) -> Fields:
    """What a Record says of its data and weights, beside the scores."""
    found: Fields = {"data": {"findings": [asdict(finding) for finding in _findings(cell, info, entry)]}}
    found |= {"labelled_train": len(rows["train"]), "labelled_val": len(rows["val"])}
    if cell.weights_sha256:
        given = asdict(locate(registry.parse_model(cell.model)))
        found["weights"] = {key: str(given[key]) for key in ("source", "sha256", "licence", "trained_on")}
    return found


def whose(cell: AccuracyCell, entry: Entry) -> dict[str, Members | None]:
    """Names, patients and columns of the images of each split; None where the source names none."""
    return _arranged(cell, entry)[1]


def _findings(cell: AccuracyCell, info: DatasetInfo, entry: Entry) -> list[Finding]:
    """What a reader of the score should know of the data: from names and headers, and from the pixels."""
    found = all_findings(info, entry.looked)
    if cell.folds:
        by = "by patient" if any(said.groups for said in members(entry.folder).values()) else "image by image"
        text = f"cross-validation: all images in {cell.folds} folds, {by}; the set's own split is not used"
        found.append(Finding(text, severity="note" if by == "by patient" else "warning"))
    if cell.weights_sha256 and (leak := leak_of_weights(cell.dataset, locate(registry.parse_model(cell.model)))):
        found.append(leak)
    if cell.leaks == "drop" and any(entry.looked.repeated.values()):
        counts = " and ".join(f"{len(rows):,} of {name}" for name, rows in entry.looked.repeated.items() if rows)
        found.append(Finding(f"images that a later split has too were dropped: {counts} (--leaks drop)"))
    return found


def _trained(
    cell: AccuracyCell,
    recipe: Fields,
    info: DatasetInfo,
    data: Mapping[str, Split],
    ctx: Context,
    timings: dict[str, float],
) -> tuple[Outcome, Fields]:
    """Train; where a batch does not fit into memory, begin again with gradients accumulated over halves of it.

    Only batch statistics (batch norm) and rounding depend on it; the metrics then say ``micro_batch_size``.
    """
    identity = cell_key(replace(cell, recipe=dict(recipe)))  # another choice of a tuned setting is another training
    while True:
        try:
            outcome, metrics = _fit(cell, recipe, identity, info, data, ctx, timings)
            break
        except (RuntimeError, MemoryError) as error:
            held = recipe["micro_batch_size"] or recipe["batch_size"]
            if not is_out_of_memory(error) or held < 4 or joined():  # alone there may be room
                raise
            recipe |= {"micro_batch_size": held // 2, "eval_batch_size": min(recipe["eval_batch_size"], held // 2)}
            print(f"out of memory with {held} images at once; gradients are accumulated over {held // 2}", flush=True)
        gc.collect()  # what the failed attempt held, its traceback included, is free only now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if recipe["micro_batch_size"] != cell.recipe["micro_batch_size"]:
        metrics["micro_batch_size"] = recipe["micro_batch_size"]
    return outcome, metrics


def _fit(
    cell: AccuracyCell,
    recipe: Recipe,
    identity: str,
    info: DatasetInfo,
    data: Mapping[str, Split],
    ctx: Context,
    timings: dict[str, float],
) -> tuple[Outcome, Fields]:
    ctx.progress({"phase": "build"})
    started = time.perf_counter()
    device = torch.device(ctx.device)
    with turn():
        model, channels_last = build_model(cell, info, device)
    if recipe["zero_head"]:
        zero_head(model)
    frozen = freeze(model, recipe["frozen_layers"]) if recipe["frozen_layers"] else 0
    splits = Splits(
        *(pipeline(data[name], cell, info, cell.resize, device, channels_last, recipe) for name in Splits._fields)
    )
    timings["build_s"] = time.perf_counter() - started
    trainer = Trainer(
        model,
        splits,
        recipe,
        task=info.task,
        n_classes=len(info.classes),
        seed=cell.seed,
        precision=cell.precision,
        progress=ctx.progress,
        checkpoint=Checkpoint(checkpoint_path(ctx.out, cell_key(cell)), identity),
        stop=ctx.stop,
    )
    # On a GPU of the size of a batch: what the device's libraries prepare for it serves the first step too.
    count = min(recipe["micro_batch_size"] or recipe["batch_size"], len(splits.train)) if device.type == "cuda" else 2
    blank = torch.zeros(count, splits.train.in_chans, cell.resolution, cell.resolution, device=device)
    tried = cell.model, frozen, blank.shape, len(info.classes), cell.precision, recipe["compile"]
    deterministic = tried in _deterministic or launch(
        _runs_deterministically, trainer, blank, cell.model, len(info.classes)
    )
    if deterministic and joined():
        _deterministic.add(tried)
    outcome = trainer.fit()
    if ctx.keep_weights and outcome.status == "ok":
        weights.save(ctx.out, cell, info, trainer.best, splits.train.normalisation, outcome.best_epoch)
    return outcome, {
        "params": sum(p.numel() for p in model.parameters()),
        **({"params_frozen": frozen} if frozen else {}),
        "flipped": augment.flips_allowed(recipe, info.mirror_safe),
        "channels_last": channels_last,
        "deterministic": deterministic,
        "resident": splits.train.resident,
        **_replayed(trainer.step, device),
    }


def _replayed(step: Replayed, device: torch.device) -> Fields:
    """Whether the training ran as CUDA graphs, and if a step could not be recorded, why."""
    if device.type != "cuda":
        return {}
    return {"cuda_graph": step.replays, **({"cuda_graph_error": step.reason} if step.reason else {})}


def build_model(
    cell: AccuracyCell, info: DatasetInfo, device: torch.device, pretrained: bool = True, head: bool = True
) -> tuple[nn.Module, bool]:
    """Build a Cell's model for the classes of ``info``, initialised by the Cell's seed, on its device.

    Args:
        cell: names model, resolution and seed.
        info: the dataset that decides classes and channels.
        device: where the model is put.
        pretrained: whether to read the pretrained weights that the model's options name.
        head: False for the features before its classifier.

    Returns:
        The model, and whether it is laid out channels_last.
    """
    spec, options = registry.parse_model(cell.model), model_options(cell, pretrained)
    torch.manual_seed(rng.torch_seed(cell.seed, rng.WEIGHTS))
    channels = 3 if info.channels == 1 and cell.recipe["as_rgb"] else info.channels
    classes = len(info.classes) if head else 0
    model: nn.Module = registry.model_info(spec.name).build(classes, channels, cell.resolution, **options)
    channels_last = prefers_channels_last(model)
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, channels_last


def model_options(cell: AccuracyCell, pretrained: bool = True) -> Fields:
    """The options of a Cell's model, with the file that its weights lie in; fetched where only the hub has them.

    Raises:
        ConfigError: the weights are nowhere.
        RuntimeError: they are not those that were planned.
    """
    spec = registry.parse_model(cell.model)
    options = dict(spec.options)
    named = options.pop("pretrained", None)
    if not pretrained or not named or not cell.weights_sha256:
        return options
    found = locate(spec, fetch=True)
    if cell.weights_sha256 not in ("hub", found.sha256):
        raise RuntimeError(f"{found.path} is not what was planned (SHA-256 {cell.weights_sha256}); run again")
    if isinstance(named, str):
        return {**options, "pretrained": found.path}
    return {**options, "pretrained": True, "weights_file": found.path}


def pipeline(
    split: Split,
    cell: AccuracyCell,
    info: DatasetInfo,
    resize: str,
    device: torch.device,
    channels_last: bool,
    recipe: Recipe,
) -> Pipeline:
    """Read a split of ``info`` as ``cell`` reads its own."""
    return Pipeline(
        split.images,
        split.labels,
        recipe,
        resolution=cell.resolution,
        resize=resize,
        device=device,
        mirror_safe=info.mirror_safe,
        channels_last=channels_last,
        normalisation=cell.normalisation,
    )


def set_up(ctx: Context) -> torch.device:
    """Bring the process into the state in which every Cell runs; return its device."""
    device = torch.device(ctx.device)
    _make_deterministic(device)
    _keep_freed_memory()
    torch.set_num_threads(ctx.threads)
    return device


def _make_deterministic(device: torch.device) -> None:
    """Ask for the same bits every time, and for true float32: no TF32, no algorithm chosen by timing."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _runs_deterministically(trainer: Trainer, images: torch.Tensor, name: str, classes: int) -> bool:
    """Try one forward and backward pass; where an operation has no deterministic form, allow the other ones.

    Merely warning from the start would not do: attention then takes its non-deterministic backward although it has
    another. The model is left as it was.
    """
    model = trainer.model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        logits = trainer.forward(model, images)
        _check_logits(logits, name, (len(images), classes))
        logits.float().sum().backward()
        return True
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        if joined():  # what follows would hold for the neighbours as well
            raise MustRunAlone(f"not deterministic: {error}") from None
        print(f"not deterministic: {error}")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def _check_logits(logits: object, name: str, expected: tuple[int, int]) -> None:
    """Refuse a network of a plug-in with other outputs than a logit per class: it would be trained and scored."""
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"model {name!r} should give logits of shape {expected} (images, num_classes), found {found}")
    if logits.min() >= 0 and (logits.float().sum(1) - 1).abs().max() < SOFTMAX_TOLERANCE:
        raise ConfigError(f"model {name!r} gives probabilities (each row adds up to 1); return logits, without softmax")


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving each back and faulting its pages in again.

    Measured on 2 cores: the data path at 28 -> 224 runs 3 times as fast, a training step of resnet18 at 64 pixels takes
    a fifth less. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def result_of(
    cell: AccuracyCell,
    info: DatasetInfo,
    data: Mapping[str, Split],
    who: Mapping[str, Members | None],
    outcome: Outcome,
    metrics: Fields,
    timings: dict[str, float],
) -> Result:
    """Put an outcome into the form of the store; an undefined number becomes None."""
    arrays: dict[str, Array] = {}
    positive = info.positive_class
    metrics["epochs"] = len(outcome.history)
    if rates := [row["images_per_s"] for row in outcome.history if "images_per_s" in row]:
        metrics["train_images_per_s"] = float(np.median(rates))
    for name, scores in (("val", outcome.val_scores), ("test", outcome.test_scores)):
        if scores is None or outcome.status != "ok":
            continue
        arrays |= {f"{name}_scores": scores, f"{name}_labels": data[name].labels[:], **_named(name, who[name])}
        found = classification_metrics(data[name].labels, scores, info.task, positive.number if positive else 1)
        found["loss"] = found.pop("nll")
        wanted = found if name == "test" else {key: found[key] for key in ("acc", "auc", "loss")}
        metrics |= {f"{name}_{key}": storable(value) for key, value in wanted.items()}
    if outcome.status == "ok":
        metrics |= definitions()  # of the metrics that plug-ins registered
        metrics["best_epoch"] = outcome.best_epoch
        metrics["classes"] = list(info.classes)  # what the columns of the scores and of the confusion stand for
        metrics |= clinical_metrics(arrays, positive)
        if info.subgroups:
            metrics["subgroups"] = list(info.subgroups)
    return Result(metrics, outcome.status, outcome.reason, arrays, timings, outcome.history)


def clinical_metrics(arrays: Mapping[str, Array], positive: Positive | None) -> Fields:
    """The positive class, the operating point that validation chooses, and calibration, as a Record holds them."""
    said = {"positive_class": positive.name, "positive_class_guessed": positive.guessed} if positive else {}
    names = ("val_scores", "val_labels", "test_scores", "test_labels")
    if not all(name in arrays and len(arrays[name]) for name in names):
        return said
    val_scores, val_labels, scores, labels = (arrays[name] for name in names)
    found = recorded(clinical(val_scores, val_labels, scores, labels, positive.number if positive else 1))
    return {**said, **{name: storable(value) for name, value in found.items()}}


def _named(split: str, who: Members | None) -> dict[str, Array]:
    """Names and patients of the images of a split, and of test what the source's table says, as arrays of text."""
    if who is None:
        return {}
    texts = {f"{split}_names": who.names, f"{split}_patients": who.groups}
    if split == "test":
        texts |= {f"test_group_{column}": values for column, values in who.columns.items()}
    return {name: _text(values) for name, values in texts.items() if any(values)}


def _text(values: Sequence[str]) -> Array:
    """Unicode (N,); bytes of a file name that are no text are written as escapes."""
    return np.array([value.encode("utf-8", "backslashreplace").decode() for value in values])


def storable(value: object) -> object:
    """A metric as JSON can hold it: an undefined number becomes None."""
    return None if isinstance(value, float) and not np.isfinite(value) else value

"""Execute an accuracy Cell: open the data, build the model, train it, report the test split once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import registry
from bench.cells import AccuracyCell, Context, Result, cell_key
from bench.measure.classification import classification_metrics
from bench.measure.layout import prefers_channels_last
from bench.registry import DatasetInfo, Split
from bench.training import augment, streams
from bench.training.cache import open_dataset
from bench.training.checkpoint import Checkpoint
from bench.training.data import Pipeline
from bench.training.loop import Outcome, Splits, Trainer

__all__ = ["run_accuracy"]


def run_accuracy(cell: AccuracyCell, ctx: Context) -> Result:
    """Train and score one Cell.

    Returns:
        Metrics of the test split (``test_acc``, ``test_auc``, ...) and of validation at the chosen epoch, the scores of
        both as arrays (probabilities, float64 (N, C)), and the history of epochs. Status ``diverged`` if the loss
        stopped being a number, ``unsupported`` if the model cannot take the resolution. Nothing is saved here.

    Raises:
        DataError: a file is missing or damaged.
        RegistryError: an unknown model or dataset.
        torch.cuda.OutOfMemoryError: the batch does not fit (the recipe's ``micro_batch_size`` splits it).
    """
    spec = registry.parse_model(cell.model)
    facts = registry.model_facts(spec.name)
    if reason := facts.unsupported(cell.resolution, dict(spec.options)):
        return Result({}, status="unsupported", reason=reason)
    device = torch.device(ctx.device)
    _make_deterministic(device)
    _keep_freed_memory()
    torch.set_num_threads(ctx.threads)
    timings: dict[str, float] = {}

    ctx.progress({"phase": "load"})
    started = time.perf_counter()
    info = registry.dataset_facts(cell.dataset)
    data = open_dataset(info, cell.size, ctx.data_root, ctx.cache_dir)
    timings["load_s"] = time.perf_counter() - started

    ctx.progress({"phase": "build"})
    started = time.perf_counter()
    torch.manual_seed(streams.torch_seed(cell.seed, streams.WEIGHTS))
    channels = 3 if info.channels == 1 and cell.recipe["as_rgb"] else info.channels
    n_classes = len(info.classes)
    model: nn.Module = facts.build(n_classes, channels, cell.resolution, **dict(spec.options))
    channels_last = prefers_channels_last(model)
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    splits = Splits(*(_pipeline(data[name], cell, info, device, channels_last) for name in Splits._fields))
    timings["build_s"] = time.perf_counter() - started

    trainer = Trainer(
        model,
        splits,
        cell.recipe,
        task=info.task,
        n_classes=n_classes,
        seed=cell.seed,
        precision=cell.precision,
        progress=ctx.progress,
        checkpoint=Checkpoint(ctx.out / "checkpoints" / f"{cell_key(cell)}.pt", cell_key(cell)),
    )
    blank = torch.zeros(2, channels, cell.resolution, cell.resolution, device=device)
    deterministic = _runs_deterministically(trainer, blank)
    outcome = trainer.fit()
    metrics: dict[str, Any] = {
        "params": sum(p.numel() for p in model.parameters()),
        "flipped": augment.flips_allowed(cell.recipe, info.mirror_safe),
        "channels_last": channels_last,
        "deterministic": deterministic,
        "resident": splits.train.resident,
    }
    return _result(cell, info, data, outcome, metrics, {**timings, **outcome.timings})


def _pipeline(
    split: Split, cell: AccuracyCell, info: DatasetInfo, device: torch.device, channels_last: bool
) -> Pipeline:
    return Pipeline(
        split.images,
        split.labels,
        cell.recipe,
        resolution=cell.resolution,
        resize=cell.resize,
        device=device,
        mirror_safe=info.mirror_safe,
        channels_last=channels_last,
    )


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


def _runs_deterministically(trainer: Trainer, images: torch.Tensor) -> bool:
    """Try one forward and backward pass; where an operation has no deterministic form, allow the other ones.

    Merely warning from the start would not do: attention then takes its non-deterministic backward although it has
    another. The model is left as it was.
    """
    model = trainer.model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        trainer.forward(model, images).float().sum().backward()
        return True
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        print(f"not deterministic: {error}")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving each back and faulting its pages in again.

    Measured on 2 cores: the data path at 28 -> 224 runs 3 times as fast, a training step of resnet18 at 64 pixels takes
    a fifth less. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _result(
    cell: AccuracyCell,
    info: DatasetInfo,
    data: dict[str, Split],
    outcome: Outcome,
    metrics: dict[str, Any],
    timings: dict[str, float],
) -> Result:
    """Put an outcome into the form of the store; an undefined number becomes None."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    metrics["epochs"] = len(outcome.history)
    if rates := [row["images_per_s"] for row in outcome.history]:
        metrics["train_images_per_s"] = float(np.median(rates))
    for name, scores in (("val", outcome.val_scores), ("test", outcome.test_scores)):
        if scores is None or outcome.status != "ok":
            continue
        arrays |= {f"{name}_scores": scores, f"{name}_labels": data[name].labels[:]}
        found = classification_metrics(data[name].labels, scores, info.task)
        found["loss"] = found.pop("nll")
        wanted = found if name == "test" else {key: found[key] for key in ("acc", "auc", "loss")}
        metrics |= {f"{name}_{key}": _storable(value) for key, value in wanted.items()}
    if outcome.status == "ok":
        metrics["best_epoch"] = outcome.best_epoch
    return Result(metrics, outcome.status, outcome.reason, arrays, timings, outcome.history)


def _storable(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value

"""Execute Cells on frozen features: one network, many heads, seeds and draws of labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bench import registry
from bench.record.cells import AccuracyCell, Context, Result, Stopped, cell_key
from bench.registry import Split
from bench.registry.layout import prefers_channels_last
from bench.sweep.heads import EXACT
from bench.train import heads, rng
from bench.train.accuracy import about, label_rows, model_options, opened, result_of, set_up
from bench.train.features import features
from bench.train.loop import Outcome


def run_frozen(cells: Sequence[AccuracyCell], ctx: Context) -> Iterator[tuple[str, Result]]:
    """Score Cells that share their features, one after the other.

    Args:
        cells: of one :func:`bench.record.cells.features_key`.
        ctx: where and with what.

    Yields:
        Key and Result of each Cell; metrics as of :func:`bench.train.accuracy.run_accuracy`, and ``chosen`` what
        the head settled on. The first has the time that the features took.

    Raises:
        DataError: a file of the dataset is missing or damaged.
        ConfigError: the weights are nowhere.
        ValueError: the network gives no features.
        Stopped: it was asked to, between two Cells.
    """
    first = cells[0]
    device = set_up(ctx)
    started = time.perf_counter()
    timings: dict[str, float] = {}
    ctx.progress({"phase": "load"})
    info, entry, data = opened(first, ctx)
    timings["load_s"] = time.perf_counter() - started

    def build() -> tuple[torch.nn.Module, bool]:
        spec = registry.parse_model(first.model)
        torch.manual_seed(rng.torch_seed(first.seed, rng.WEIGHTS))
        channels = 3 if info.channels == 1 and first.recipe["as_rgb"] else info.channels
        model: torch.nn.Module = registry.model_info(spec.name).build(
            0, channels, first.resolution, **model_options(first)
        )
        channels_last = prefers_channels_last(model)
        model = model.to(device).eval()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model, channels_last

    found = features(first, info, data, ctx, build, timings)
    labels = {name: np.asarray(split.labels[:]) for name, split in data.items()}
    done: dict[str, heads.Fitted] = {}
    for number, cell in enumerate(cells):
        if ctx.stop():
            raise Stopped(f"after {number} of {len(cells)} heads")
        ctx.progress({"phase": f"head {number + 1} of {len(cells)}"})
        began = time.perf_counter()
        rows = label_rows(cell, entry, data)
        used = {name: Split(data[name].images, labels[name][rows[name]]) for name in rows} | {"test": data["test"]}
        same = repr((cell.head, cell.shots, cell.label_fraction, cell.draw, None if cell.head in EXACT else cell.seed))
        if same not in done:
            known = {name: heads.Labelled(found[name][rows[name]], used[name].labels) for name in rows}
            done[same] = heads.fit(
                cell.recipe, known["train"], known["val"], found["test"],
                task=info.task, n_classes=len(info.classes), seed=cell.seed, shots=cell.shots, device=device,
            )  # fmt: skip
        fitted = done[same]
        outcome = Outcome(
            history=fitted.history, best_epoch=fitted.best_epoch,
            val_scores=fitted.val_scores, test_scores=fitted.test_scores,
        )  # fmt: skip
        metrics = {"chosen": fitted.chosen, "features": int(found["test"].shape[1]), **about(cell, info, entry, used)}
        spent = {**timings, "head_s": time.perf_counter() - began}
        yield cell_key(cell), result_of(cell, info, used, outcome, metrics, spent)
        timings = {}

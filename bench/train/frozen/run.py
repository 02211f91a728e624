"""Execute Cells on frozen features: one network, many heads, seeds and draws of labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from bench import registry
from bench.data.cache_entry import Members
from bench.record.cells import AccuracyCell, Context, Result, Stopped, cell_key
from bench.record.types import Fields
from bench.registry import DatasetInfo, Split
from bench.registry.layout import prefers_channels_last
from bench.sweep.heads import EXACT
from bench.train import rng
from bench.train.accuracy import about, label_rows, model_options, opened, result_of, set_up, whose
from bench.train.frozen import heads
from bench.train.frozen.features import features
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

    found = features(first, info, data, ctx, lambda: _network(first, info, device), timings)
    who = whose(first, entry)
    done: dict[str, Result] = {}
    for number, cell in enumerate(cells):
        if ctx.stop():
            raise Stopped(f"after {number} of {len(cells)} heads")
        ctx.progress({"phase": f"head {number + 1} of {len(cells)}"})
        began = time.perf_counter()
        same = repr((cell.head, cell.shots, cell.label_fraction, cell.draw, None if cell.head in EXACT else cell.seed))
        if same not in done:  # what no seed changes is fitted and scored once
            rows = label_rows(cell, data, who)
            used = {n: heads.Labelled(found[n][rows[n]], np.asarray(data[n].labels[:])[rows[n]]) for n in data}
            fitted = heads.fit(
                cell.recipe, used["train"], used["val"], used["test"].features,
                task=info.task, n_classes=len(info.classes), seed=cell.seed, shots=cell.shots, device=device,
            )  # fmt: skip
            metrics = {"chosen": fitted.chosen, "features": found["test"].shape[1], **about(cell, info, entry, rows)}
            persons = {name: said.at(rows[name]) if said else None for name, said in who.items()}
            done[same] = _result(cell, info, used, persons, fitted, metrics)
        spent = {**timings, "head_s": time.perf_counter() - began}
        yield cell_key(cell), dataclasses.replace(done[same], metrics=dict(done[same].metrics), timings=spent)
        timings = {}


def _network(cell: AccuracyCell, info: DatasetInfo, device: torch.device) -> tuple[torch.nn.Module, bool]:
    """The network without a classifier, in evaluation; and whether it is laid out channels_last."""
    spec = registry.parse_model(cell.model)
    torch.manual_seed(rng.torch_seed(cell.seed, rng.WEIGHTS))
    channels = 3 if info.channels == 1 and cell.recipe["as_rgb"] else info.channels
    model: torch.nn.Module = registry.model_info(spec.name).build(0, channels, cell.resolution, **model_options(cell))
    channels_last = prefers_channels_last(model)
    model = model.to(device).eval()
    return (model.to(memory_format=torch.channels_last) if channels_last else model), channels_last


def _result(
    cell: AccuracyCell,
    info: DatasetInfo,
    used: Mapping[str, heads.Labelled],
    who: Mapping[str, Members | None],
    fitted: heads.Fitted,
    metrics: Fields,
) -> Result:
    outcome = Outcome(
        history=fitted.history, best_epoch=fitted.best_epoch,
        val_scores=fitted.val_scores, test_scores=fitted.test_scores,
    )  # fmt: skip
    labelled = {name: Split(part.features, part.labels) for name, part in used.items()}
    return result_of(cell, info, labelled, who, outcome, metrics, {})

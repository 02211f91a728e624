"""Execute Cells on frozen features: one network, many heads, seeds and draws of labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench.record.cells import AccuracyCell, Context, Result, Stopped, cell_key
from bench.registry import Split
from bench.sweep.heads import EXACT
from bench.train import weights
from bench.train.accuracy import about, build_model, label_rows, opened, result_of, set_up, whose
from bench.train.frozen import heads
from bench.train.frozen.features import features


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

    found = features(first, info, data, ctx, lambda: build_model(first, info, device, head=False), timings)
    who = whose(first, entry)
    done: dict[str, tuple[Result, heads.Fitted]] = {}
    for number, cell in enumerate(cells):
        if ctx.stop():
            raise Stopped(f"after {number} of {len(cells)} heads")
        ctx.progress({"phase": f"head {number + 1} of {len(cells)}"})
        began = time.perf_counter()
        same = repr((cell.head, cell.shots, cell.label_fraction, cell.draw, None if cell.head in EXACT else cell.seed))
        if same not in done:  # what no seed changes is fitted and scored once
            rows = label_rows(cell, data, who)
            used = {n: Split(found[n][rows[n]], np.asarray(data[n].labels[:])[rows[n]]) for n in data}
            problem = heads.Problem(used["train"], used["val"], used["test"], info.task, len(info.classes), device)
            fitted = heads.fit(cell.recipe, problem, cell.seed, cell.shots)
            metrics = {"chosen": fitted.chosen, "features": found["test"].shape[1], **about(cell, info, entry, rows)}
            persons = {name: said.at(rows[name]) if said else None for name, said in who.items()}
            done[same] = result_of(cell, info, used, persons, fitted, metrics, {}), fitted
        result, fitted = done[same]
        if ctx.keep_weights and fitted.layer:
            weights.save(ctx.out, cell, info, fitted.layer, cell.normalisation or ((), ()), fitted.best_epoch)
        spent = {**timings, "head_s": time.perf_counter() - began}
        yield cell_key(cell), dataclasses.replace(result, metrics=dict(result.metrics), timings=spent)
        timings = {}

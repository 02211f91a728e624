"""Execute a tuned Cell: its trials have run; the one that validation likes best says how it is trained.

Every trial is a training of its own (:class:`bench.record.cells.TrialCell`), with a Record that also has test scores,
which nothing here looks at.
"""

from __future__ import annotations

import csv
import zipfile

import numpy as np

from bench import registry
from bench.record.cells import AccuracyCell, Context, Result, cell_key, trials_of
from bench.record.paths import history_path, predictions_path, weights_path
from bench.record.trials import Trial, choose, measure_of, read_trials
from bench.record.types import Fields
from bench.registry.weights import info_of
from bench.train import weights
from bench.train.accuracy import run_accuracy


def run_tuned(cell: AccuracyCell, ctx: Context) -> Result:
    """Choose among the trials of a Cell and train it that way; with the trials' own seed, take over the best of them.

    Returns:
        As :func:`bench.train.accuracy.run_accuracy`, and ``tuned`` among the metrics: what was chosen, by which score,
        every trial with its score, status and seconds. Without a trial that ended well, their status and reasons.
    """
    trials = read_trials(ctx.out, trials_of(cell))
    measure = measure_of(trials)
    best = choose(trials, measure)
    tuned = {"by": measure, "seed": trials[0].cell.seed, "seconds": round(sum(t.seconds for t in trials), 3)}
    tuned |= {"chosen": best.values if best else None, "tried": [trial.line(measure) for trial in trials]}
    if best is None:
        diverged = all(trial.status == "diverged" for trial in trials)
        reason = f"no trial ended well: {'; '.join(map(str, trials))}"
        return Result({"tuned": tuned}, "diverged" if diverged else "failed", reason)
    result = taken_over(cell, best, ctx) if best.cell.seed == cell.seed else None
    result = result or run_accuracy(cell, ctx, best.cell.recipe)
    result.metrics["tuned"] = tuned
    return result


def taken_over(cell: AccuracyCell, trial: Trial, ctx: Context) -> Result | None:
    """The training of a trial as that of its Cell, to the bit; None where a file of it is gone: it is trained again."""
    key, record = cell_key(trial.cell), trial.record
    assert record is not None
    path = weights_path(ctx.out, key)
    if ctx.keep_weights and not path.is_file():
        return None
    try:
        with np.load(predictions_path(ctx.out, key), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        with history_path(ctx.out, key).open(newline="", encoding="utf-8") as file:
            history: list[Fields] = list(csv.DictReader(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if ctx.keep_weights:
        about = info_of(path)
        info = registry.dataset_info(cell.dataset)
        weights.save(ctx.out, cell, info, weights.load(ctx.out, key), (about["mean"], about["std"]), about["epoch"])
    metrics = {**record["metrics"], **({"data": record["data"]} if "data" in record else {})}
    timings = {name: value for name, value in record["timings"].items() if name != "wall_s"}
    return Result(metrics, arrays=arrays, timings=timings, history=history)

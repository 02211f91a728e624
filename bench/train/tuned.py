"""Execute a tuned Cell: its trials have run; the one that validation likes best says how it is trained.

Every trial is a training of its own (:class:`bench.record.cells.TrialCell`), with a Record that also has test scores,
which nothing here looks at.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import registry
from bench.record.cells import AccuracyCell, Context, Result, TrialCell, cell_key, trials_of
from bench.record.paths import history_path, predictions_path, record_path, weights_path
from bench.record.store import Record, StoreError, read_record
from bench.record.types import Fields
from bench.registry.weights import info_of
from bench.train import weights
from bench.train.accuracy import run_accuracy

FALLBACK = "val_loss"  # where a trial has no AUC: validation holds one class only


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial and its Record; None where there is none."""

    cell: TrialCell
    record: Record | None

    @property
    def values(self) -> dict[str, float]:
        """What was tried."""
        return {key: self.cell.recipe[key] for key in self.cell.tried}

    @property
    def status(self) -> str:
        """Of the Record, or ``missing``."""
        return str(self.record["status"]) if self.record else "missing"

    def score(self, measure: str) -> float | None:
        """On validation; None without a result."""
        if self.record is None or self.status != "ok":
            return None
        value = self.record["metrics"].get(measure)
        return None if value is None else float(value)

    @property
    def seconds(self) -> float:
        """That it took."""
        return float(self.record["timings"].get("wall_s") or 0.0) if self.record else 0.0


def run_tuned(cell: AccuracyCell, ctx: Context) -> Result:
    """Choose among the trials of a Cell and train it that way; with the trials' own seed, take over the best of them.

    Returns:
        As :func:`bench.train.accuracy.run_accuracy`, and ``tuned`` among the metrics: what was chosen, by which score,
        every trial with its score, status and seconds. Without a trial that ended well, their status and reasons.
    """
    trials = [Trial(trial, _read(ctx.out, trial)) for trial in trials_of(cell)]
    measure = measure_of(trials)
    best = choose(trials, measure)
    tuned = {"by": measure, "seed": trials[0].cell.seed, "seconds": round(sum(t.seconds for t in trials), 3)}
    tuned |= {"chosen": best.values if best else None, "tried": [_line(trial, measure) for trial in trials]}
    if best is None:
        return Result({"tuned": tuned}, _status(trials), f"no trial ended well: {_reasons(trials)}")
    result = None
    if best.cell.seed == cell.seed:
        result = taken_over(cell, best, ctx)
    result = result or run_accuracy(cell, ctx, best.cell.recipe)
    result.metrics["tuned"] = tuned
    return result


def measure_of(trials: list[Trial]) -> str:
    """The validation score that chooses the epoch chooses the trial as well: ``val_auc``, ``val_acc``, ``val_loss``."""
    select = str(trials[0].cell.recipe["select"])
    measure = "val_auc" if select == "last" else select
    finished = [trial for trial in trials if trial.status == "ok"]
    return measure if all(trial.score(measure) is not None for trial in finished) else FALLBACK


def choose(trials: list[Trial], measure: str) -> Trial | None:
    """The trial with the best validation score, of equals the first; None where none ended well."""
    sign = -1.0 if measure == "val_loss" else 1.0
    scored = [(sign * score, trial) for trial in trials if (score := trial.score(measure)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _read(out: Path, trial: TrialCell) -> Record | None:
    try:
        return read_record(record_path(out, cell_key(trial)))
    except StoreError:
        return None


def _line(trial: Trial, measure: str) -> Fields:
    score = {measure: trial.score(measure), "status": trial.status, "seconds": round(trial.seconds, 3)}
    return {**trial.values, **score, "key": cell_key(trial.cell)}


def _status(trials: list[Trial]) -> str:
    found = {trial.status for trial in trials}
    return "diverged" if found == {"diverged"} else "failed"


def _reasons(trials: list[Trial]) -> str:
    return "; ".join(
        f"{', '.join(f'{key}={value:g}' for key, value in trial.values.items())} {trial.status}"
        + (f" ({trial.record['reason'][:80]})" if trial.record else "")
        for trial in trials
    )


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
    except (OSError, ValueError):
        return None
    if ctx.keep_weights:
        about = info_of(path)
        info = registry.dataset_info(cell.dataset)
        weights.save(ctx.out, cell, info, weights.load(ctx.out, key), (about["mean"], about["std"]), about["epoch"])
    metrics = {**record["metrics"], **({"data": record["data"]} if "data" in record else {})}
    timings = {name: value for name, value in record["timings"].items() if name != "wall_s"}
    return Result(metrics, arrays=arrays, timings=timings, history=history)

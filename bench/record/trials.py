"""Trials: trainings that decide about a setting, read from their Records and judged on validation. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record.cells import TrialCell, cell_key
from bench.record.paths import record_path
from bench.record.store import Record, StoreError, read_record
from bench.record.types import Fields

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

    @property
    def seconds(self) -> float:
        """That it took."""
        return float(self.record["timings"].get("wall_s") or 0.0) if self.record else 0.0

    def score(self, measure: str) -> float | None:
        """On validation; None without a result."""
        if self.record is None or self.status != "ok":
            return None
        value = self.record["metrics"].get(measure)
        return None if value is None else float(value)

    def line(self, measure: str) -> Fields:
        """What the Record of the Cell that it decides about says of it."""
        score = {measure: self.score(measure), "status": self.status, "seconds": round(self.seconds, 3)}
        return {**self.values, **score, "key": cell_key(self.cell)}

    def __str__(self) -> str:
        """``learning_rate=0.001 diverged (loss is not finite)``."""
        values = ", ".join(f"{key}={value:g}" for key, value in self.values.items())
        reason = str(self.record["reason"])[:80] if self.record else ""
        return f"{values} {self.status}{f' ({reason})' if reason else ''}"


def read_trials(out: Path, cells: Iterable[TrialCell]) -> list[Trial]:
    """The trials with what is on disk of them."""
    return [Trial(cell, _read(out, cell)) for cell in cells]


def _read(out: Path, cell: TrialCell) -> Record | None:
    try:
        return read_record(record_path(out, cell_key(cell)))
    except StoreError:
        return None


def measure_of(trials: Sequence[Trial]) -> str:
    """The validation score that chooses the epoch chooses the trial as well: ``val_auc``, ``val_acc``, ``val_loss``."""
    select = str(trials[0].cell.recipe["select"])
    measure = "val_auc" if select == "last" else select
    finished = [trial for trial in trials if trial.status == "ok"]
    return measure if all(trial.score(measure) is not None for trial in finished) else FALLBACK


def better(measure: str) -> float:
    """1 where more of a score is better, else -1."""
    return -1.0 if measure == "val_loss" else 1.0


def choose(trials: Iterable[Trial], measure: str) -> Trial | None:
    """The trial with the best validation score, of equals the first; None where none ended well."""
    scored = [(better(measure) * score, trial) for trial in trials if (score := trial.score(measure)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None

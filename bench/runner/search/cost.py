"""What is left of a search will take: estimates of the plan times the pace that trials have shown so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.plan.estimate import OVERHEAD_S, estimate_s
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, TrialCell
from bench.record.paths import record_path
from bench.record.types import Fields
from bench.sweep.config import Loaded, changed


def rung_values(loaded: Loaded, epochs: int, names: Sequence[str]) -> Fields:
    """What the sweep of a rung has in place of the values of the whole one."""
    first = loaded.sweep.sweep.seeds[:1]
    short = {"sweep.epochs": epochs, "sweep.seeds": first, "sweep.kinds": ["accuracy"], "run.keep_weights": False}
    return {"sweep.models": list(names), **short}


class Pace(NamedTuple):
    """Seconds of a training beside its epochs, and of its epochs over those that were estimated."""

    rest_s: float = OVERHEAD_S
    factor: float = 1.0

    def of(self, estimate_s: float) -> float:
        """Seconds that a training will take."""
        return self.rest_s + self.factor * max(0.0, estimate_s - OVERHEAD_S)


class _Expected(NamedTuple):
    """A Cell of a rung: its key and network, whether it trains, and the seconds that the plan estimates."""

    key: str
    model: str
    trains: bool
    estimate_s: float


class Predictor:
    """Seconds of networks in the rungs of a search.

    Args:
        loaded: the sweep that would train all fully.
        out: the run directory.
        rungs: epochs of each rung before the last.
        names: every network that may be asked about.
    """

    def __init__(self, loaded: Loaded, out: Path, rungs: Sequence[int], names: Sequence[str]) -> None:
        self.out = out
        pack = loaded.sweep.run.pack
        self._parallel = pack if isinstance(pack, int) else 1
        short = [_expected(changed(loaded, rung_values(loaded, epochs, names)), trials=True) for epochs in rungs]
        self._columns = [*short, _expected(changed(loaded, {"sweep.models": list(names)}))]

    def _paces(self) -> dict[str, Pace]:
        """What the trainings so far have shown of each network; "" of all together."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
        for cell in (cell for column in self._columns for cell in column if cell.trains):
            if not record_path(self.out, cell.key).is_file():
                continue
            took = store.read_record(record_path(self.out, cell.key))["timings"]
            if (trained := took.get("train_s")) and cell.estimate_s > OVERHEAD_S:  # not one that took over its trial
                for name in (cell.model, ""):
                    added = (1, took["wall_s"] - trained, trained, cell.estimate_s - OVERHEAD_S)
                    sums[name] = [old + new for old, new in zip(sums[name], added, strict=True)]
        return {name: Pace(rest / n, trained / estimated) for name, (n, rest, trained, estimated) in sums.items()}

    def costs(self, names: Sequence[str], again: bool = False) -> list[list[float]]:
        """Seconds of each network in every rung, the full trainings last; what is done costs nothing, but ``again``."""
        paces = self._paces()
        found = []
        for name in names:
            pace = paces.get(name, paces.get("", Pace()))
            row = []
            for column in self._columns:
                left = [c for c in column if c.model == name and (again or not record_path(self.out, c.key).is_file())]
                row.append(sum(pace.of(c.estimate_s) / self._parallel if c.trains else c.estimate_s for c in left))
            found.append(row)
        return found


def _expected(loaded: Loaded, trials: bool = False) -> list[_Expected]:
    """What a sweep will run; of a rung only ``trials``, which decide."""
    plan = make_plan(loaded)
    return [
        _Expected(key, cell.model, isinstance(cell, AccuracyCell), estimate_s(cell, plan.threads, plan.device))
        for key, cell in plan.cells.items()
        if key not in plan.unsupported and (isinstance(cell, TrialCell) or not trials)
    ]

"""What is left of a search will take: estimates of the plan times the pace that trials have shown so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.plan.base import Plan
from bench.plan.estimate import OVERHEAD_S, estimate_s
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, TrialCell, cell_key
from bench.record.paths import record_path
from bench.sweep.config import Loaded, changed


def rung_values(loaded: Loaded, epochs: int, names: Sequence[str]) -> dict[str, Any]:
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


class Predictor:
    """Seconds of networks in the rungs of a search.

    Args:
        loaded: the sweep that would train all fully.
        out: the run directory.
        rungs: epochs of each rung before the last.
    """

    def __init__(self, loaded: Loaded, out: Path, rungs: Sequence[int]) -> None:
        self.loaded, self.out, self.rungs = loaded, out, rungs
        self._estimates: dict[str, tuple[str, float]] = {}  # key of a trial -> model, estimated seconds

    def remember(self, plan: Plan) -> None:
        """Take in which trials ran, to measure the pace by them."""
        for key, cell in plan.cells.items():
            if isinstance(cell, TrialCell):
                self._estimates[key] = cell.model, estimate_s(cell, plan.threads, plan.device)

    def _paces(self) -> dict[str, Pace]:
        """What the trials so far have shown of each network; "" of all together."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
        for key, (model, estimate) in self._estimates.items():
            if not record_path(self.out, key).is_file():
                continue
            took = store.read_record(record_path(self.out, key))["timings"]
            if trained := took.get("train_s"):
                for name in (model, ""):
                    added = (1, took["wall_s"] - trained, trained, max(0.1, estimate - OVERHEAD_S))
                    sums[name] = [old + new for old, new in zip(sums[name], added, strict=True)]
        return {name: Pace(rest / n, trained / estimated) for name, (n, rest, trained, estimated) in sums.items()}

    def costs(self, names: Sequence[str], again: bool = False) -> list[list[float]]:
        """Seconds of each network in every rung, the full trainings last; what is done costs nothing, but ``again``."""
        paces = self._paces()
        pack = self.loaded.sweep.run.pack
        parallel = pack if isinstance(pack, int) else 1
        ways = [rung_values(self.loaded, epochs, names) for epochs in self.rungs]
        columns: list[dict[str, float]] = []
        for values in [*ways, {"sweep.models": list(names)}]:
            plan = make_plan(changed(self.loaded, values))
            column: dict[str, float] = defaultdict(float)
            for cell in plan.cells.values():
                if values in ways and not isinstance(cell, TrialCell):
                    continue  # a rung decides, and trains nothing else
                about = estimate_s(cell, plan.threads, plan.device)
                if isinstance(cell, AccuracyCell):
                    about = paces.get(cell.model, paces.get("", Pace())).of(about) / parallel
                if again or not record_path(self.out, cell_key(cell)).is_file():
                    column[cell.model] += about
            columns.append(column)
        return [[column[name] for column in columns] for name in names]

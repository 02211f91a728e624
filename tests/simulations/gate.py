"""How often the gate cries wolf, and what it finds: simulated sweeps with known truth, through the gate's own code.

    python -m tests.simulations.gate --sweeps 1000

An A/A sweep trains and measures the same thing twice: whatever the gate calls a regression there is false. Scores
have normal noise, of which every model shares a part with the others (difficult images) and every training draws the
rest; a training also moves the model's strength itself. Rounds of speed share a slow drift of the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.report.compare.gate import CheckOutcome, CheckResult, Options, check
from bench.report.compare.scores import pack_scores
from bench.report.compare.snapshot import Snapshot, SnapshotCell

MACHINE = ("cpu", "simulated", 2)
KINDS = ("AUC", "ACC", "speed", "memory")
SHARED = 0.7  # share of the scores' noise variance that comes from the images and not from the training


@dataclass(frozen=True, slots=True)
class Design:
    """A sweep to simulate.

    Attributes:
        models: how many.
        datasets: (classes, test images) of each.
        seeds: trainings of each model on each dataset.
        rounds: of each efficiency Cell; one Cell a model.
        training: how much a training moves a model's strength (standard deviation; 0.1 is about 0.02 AUC), by turns.
        round_noise: relative standard deviation of a round's speed.
        run_noise: the same of what a whole run shifts one Cell's speed by, which its rounds cannot show.
        memory_noise: the same of a run's peak memory.
        seed_noise: what the gate assumes of ``training`` where there is one seed (``--seed-noise``).
    """

    models: int = 13
    datasets: tuple[tuple[int, int], ...] = ((2, 156), (5, 400))
    seeds: int = 3
    rounds: int = 8
    training: tuple[float, ...] = (0.0,)
    round_noise: float = 0.015
    run_noise: float = 0.0
    memory_noise: float = 0.03
    seed_noise: float = 0.02


@dataclass(frozen=True, slots=True)
class Planted:
    """What is really worse in the current run, by the number of the model: falls of AUC (first dataset) and shares."""

    auc: Mapping[int, float] = field(default_factory=dict)
    speed: Mapping[int, float] = field(default_factory=dict)
    memory: Mapping[int, float] = field(default_factory=dict)


def strength(auc: float) -> float:
    """What a model of two classes needs for this AUC: the difference of its two scores has mean ± s, variance 2."""
    return NormalDist().inv_cdf(auc)


def sweep(design: Design, generator: np.random.Generator, planted: Planted | None = None) -> CheckResult:
    """Simulate a baseline and a current run, and check one against the other."""
    planted = planted or Planted()
    before, now = Snapshot([]), Snapshot([])
    for number, (classes, images) in enumerate(design.datasets):
        labels = _labels(classes, images)
        difficult = generator.normal(size=(images, classes))
        for model in range(design.models):
            auc = 0.75 + 0.2 * model / design.models
            fall = planted.auc.get(model, 0.0) if number == 0 else 0.0
            own = generator.normal(size=(images, classes))
            shared = (difficult + own) / np.sqrt(2)
            for snapshot, level in ((before, auc), (now, auc - fall)):
                moved = design.training[model % len(design.training)]
                for seed in range(design.seeds):
                    power = strength(level) + moved * generator.normal()
                    entry = _accuracy(model, number, seed, power, shared, labels, generator)
                    snapshot.entries.append(entry)
    for snapshot, worse in ((before, Planted()), (now, planted)):
        snapshot.entries += _efficiency(design, worse, generator)
    return check(before, now, Options(seed_noise=design.seed_noise))


@lru_cache
def _labels(classes: int, images: int) -> Array:
    """Unequal classes, the first the smallest."""
    share = np.arange(1, classes + 1) ** 1.4
    edges = np.round(np.concatenate([[0], share.cumsum()]) * images / share.sum()).astype(int)
    return np.repeat(np.arange(classes), np.diff(edges))


def _accuracy(
    model: int, dataset: int, seed: int, power: float, shared: Array, labels: Array, generator: np.random.Generator
) -> SnapshotCell:
    noise = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * generator.normal(size=shared.shape)
    logits = power * np.eye(shared.shape[1])[labels] + noise
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    identity = {"model": f"m{model:02}", "dataset": f"d{dataset}", "seed": seed}
    packed = pack_scores(f"d{dataset}", scores, labels)
    return SnapshotCell("accuracy", identity, MACHINE, "ok", exact={"params": 1}, scores=packed)


def _efficiency(design: Design, planted: Planted, generator: np.random.Generator) -> list[SnapshotCell]:
    drift = np.zeros(design.rounds)
    for i in range(1, design.rounds):
        drift[i] = 0.6 * drift[i - 1] + 0.004 * generator.normal()
    entries = []
    for model in range(design.models):
        rounds = drift + design.round_noise * generator.normal(size=design.rounds)
        speed = 100 * (1 - planted.speed.get(model, 0.0)) * np.exp(rounds + design.run_noise * generator.normal())
        memory = 100 * (1 + planted.memory.get(model, 0.0)) * np.exp(design.memory_noise * generator.normal())
        identity = {"model": f"m{model:02}", "resolution": 64, "batch": 8, "precision": "fp32", "mode": "infer"}
        entry = SnapshotCell("efficiency", identity, MACHINE, "ok", exact={"params": 1})
        entry.speed, entry.memory = speed.tolist(), [float(memory)]
        entries.append(entry)
    return entries


@dataclass(slots=True)
class Errors:
    """How many of the simulated sweeps had a false regression, in all and by kind of check."""

    sweeps: int = 0
    wrong: int = 0
    by_kind: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    tests: int = 0

    def bounds(self) -> tuple[float, float]:
        """One-sided 95 % bounds of the true rate, below and above (Clopper and Pearson, 1934)."""
        from scipy.stats import beta

        low = float(beta.ppf(0.05, self.wrong, self.sweeps - self.wrong + 1)) if self.wrong else 0.0
        high = float(beta.ppf(0.95, self.wrong + 1, self.sweeps - self.wrong)) if self.wrong < self.sweeps else 1.0
        return low, high


def false_positives(design: Design, sweeps: int, seed: int = 0) -> Errors:
    """Check so many A/A sweeps."""
    errors = Errors()
    for number in range(sweeps):
        verdict = sweep(design, np.random.default_rng([seed, number]))
        kinds = {f.check for f in verdict.findings if f.outcome == CheckOutcome.REGRESSION}
        errors.sweeps += 1
        errors.wrong += bool(kinds)
        errors.tests = verdict.tests
        for kind in kinds:
            errors.by_kind[kind] += 1
    return errors


def power(design: Design, planted: Planted, sweeps: int, seed: int = 1) -> dict[str, float]:
    """How often each planted regression is found, by kind of check: a mean over sweeps and planted models."""
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    wanted = {"AUC": planted.auc, "ACC": planted.auc, "speed": planted.speed, "memory": planted.memory}
    for number in range(sweeps):
        verdict = sweep(design, np.random.default_rng([seed, number]), planted)
        for finding in verdict.findings:
            model = int(finding.cell[1:3])
            if model in wanted.get(finding.check, ()) and "on d1" not in finding.cell:
                found[finding.check].append(finding.outcome == CheckOutcome.REGRESSION)
    return {kind: float(np.mean(values)) for kind, values in found.items() if values}


SCENARIOS: Mapping[str, Design] = {
    "one seed, trainings alike": Design(seeds=1),
    "3 seeds, trainings differ": Design(training=(0.1,)),
    "3 seeds, some models' trainings differ more": Design(training=(0.03, 0.03, 0.1, 0.3)),
    "one seed, trainings differ": Design(seeds=1, training=(0.08,)),
    "speed shifts between runs by 1.5 %": Design(seeds=1, run_noise=0.015),
}


def power_rows(sweeps: int) -> list[dict[str, Any]]:
    """Power at stated effects, each planted in 3 of 13 models among all other tests of the sweep."""
    rows = []
    for images in (156, 624, 2000):
        for seeds, training, assumed in ((1, 0.0, 0.0), (1, 0.0, 0.02), (3, 0.05, 0.02)):
            design = Design(datasets=((2, images),), seeds=seeds, training=(training,), seed_noise=assumed)
            for fall in (0.02, 0.05, 0.1):
                found = power(design, Planted(auc=dict.fromkeys((4, 6, 8), fall)), sweeps)
                given = f"{images} images, {seeds} seeds" + (f", seed noise {assumed:g}" if seeds == 1 else "")
                rows.append({"effect": f"AUC -{fall:g}", "given": given, **found})
    base = Design(datasets=((2, 156),), seeds=1)
    for rounds in (6, 8, 12):
        for noise in (0.01, 0.03):
            for share in (0.07, 0.1, 0.2):
                design = replace(base, rounds=rounds, round_noise=noise)
                found = power(design, Planted(speed=dict.fromkeys((4, 6, 8), share)), sweeps)
                rows.append({"effect": f"speed -{share:.0%}", "given": f"{rounds} rounds, noise {noise:.0%}", **found})
    for noise in (0.005, 0.03):
        for share in (0.1, 0.2, 0.3):
            design = replace(base, memory_noise=noise)
            found = power(design, Planted(memory=dict.fromkeys((4, 6, 8), share)), sweeps)
            rows.append({"effect": f"memory +{share:.0%}", "given": f"noise {noise:.1%}", **found})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and print both tables as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulations.gate", description=__doc__)
    parser.add_argument("--sweeps", type=int, default=1000, help="A/A sweeps a scenario")
    parser.add_argument("--power", type=int, default=100, help="sweeps for each planted effect; 0 leaves power out")
    options = parser.parse_args(arguments)
    for name, design in SCENARIOS.items():
        errors = false_positives(design, options.sweeps)
        low, high = errors.bounds()
        rate = errors.wrong / max(errors.sweeps, 1)
        line = {"scenario": name, "tests": errors.tests, "sweeps": errors.sweeps, "wrong": errors.wrong, "rate": rate}
        print(json.dumps({**line, "low_95": round(low, 4), "high_95": round(high, 4), **errors.by_kind}), flush=True)
    for row in power_rows(options.power) if options.power else ():
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

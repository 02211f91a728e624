"""Does the leaderboard keep its word? Sweeps with known truth through the code that decides what is significant.

    python -m tests.simulations.simulate [--sweeps 1000] [--models 8]

An A/A sweep has models that are equal in truth; every difference found in it is a false one. Each model's score of an
image is what the image is worth, plus what all models see in this image alike, plus the model's own noise, plus what
its training happened to make of it; so scores are correlated over models and over seeds as real ones are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics.calibration import wilson
from bench.metrics.one_vs_rest import Array, strata
from bench.metrics.registry import ACC, AUC
from bench.stats.leader import against_leader
from bench.stats.ranking import MIN_DATASETS, friedman
from bench.stats.separation import (
    Contrast,
    all_pairs,
    contrast,
    mcnemar_values,
    mean_contrast,
    sample,
)

# Test images of each class: BreastMNIST's, RetinaMNIST's, PneumoniaMNIST's, and one of the middle.
TEST_SETS: tuple[tuple[int, ...], ...] = ((42, 114), (174, 46, 92, 68, 20), (234, 390), (300, 300, 300), (120, 80))


@dataclass(frozen=True, slots=True)
class Setting:
    """One kind of sweep.

    Attributes:
        datasets: how many, taken in order (and again from the first) from :data:`TEST_SETS`.
        signal: distance of the classes in standard deviations of the noise; 1.5 is a two-class AUC of about 0.86.
        shared: share of the noise's variance that an image gives to all models alike.
        retraining: standard deviation over trainings of a model's signal, as a share of it.
        uneven: the last model's is so many times that of the others.
        gain: what the first model has more of the signal, as a share of it; 0 is an A/A sweep.
    """

    datasets: int = 2
    models: int = 8
    seeds: int = 1
    signal: float = 1.5
    shared: float = 0.6
    retraining: float = 0.0
    gain: float = 0.0
    uneven: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one sweep: how many false differences, and of how many others the better model was found better.

    Attributes:
        false: name of a rule -> whether any difference that it found is none in truth.
        found: name of a rule -> share of the others that the first model was found better than.
        gap: the first model's AUC less the mean of the others', over all datasets.
    """

    false: dict[str, bool]
    found: dict[str, float]
    gap: float


def sweep(setting: Setting, generator: np.random.Generator) -> Outcome:
    """Make one sweep's scores and judge them as a leaderboard does."""
    names = [f"m{i}" for i in range(setting.models)]
    areas: dict[str, tuple[Sequence[str], Contrast, Array]] = {}
    rights: dict[str, tuple[Sequence[str], Contrast, Array]] = {}
    means = []
    for d in range(setting.datasets):
        counts = TEST_SETS[d % len(TEST_SETS)]
        labels = np.repeat(np.arange(len(counts)), counts)
        scores = _scores(setting, labels, generator)
        by_auc, by_acc = ([sample(of, own, labels) for own in scores] for of in (AUC.images, ACC.images) if of)
        pairs = contrast(by_auc, strata(labels))
        areas[f"d{d}"] = (names, pairs, pairs.p_values())
        pairs = contrast(by_acc, np.zeros(len(labels)))
        rights[f"d{d}"] = (names, pairs, mcnemar_values(by_acc, pairs.p_values()))
        means.append([s.mean for s in by_auc])
    if setting.datasets > 1:
        pairs = mean_contrast([c for _, c, _ in areas.values()])
        areas[""] = (names, pairs, pairs.p_values())
    return _judged(setting, areas, rights, np.array(means))


def _scores(setting: Setting, labels: Array, generator: np.random.Generator) -> list[list[Array]]:
    """[model][seed] -> (N, K) probabilities, (N,) for two classes."""
    n, classes = len(labels), int(labels.max()) + 1
    columns = 1 if classes == 2 else classes
    target = labels[:, None] - 0.5 if classes == 2 else np.eye(classes)[labels]
    alike = np.sqrt(setting.shared) * generator.standard_normal((n, columns))
    found = []
    for model in range(setting.models):
        own = np.sqrt((1 - setting.shared) / 2) * generator.standard_normal((n, columns))
        strength = setting.signal * (1 + (setting.gain if model == 0 else 0.0))
        spread = setting.retraining * (setting.uneven if model == setting.models - 1 else 1.0)
        seeds = []
        for _ in range(setting.seeds):
            noise = np.sqrt((1 - setting.shared) / 2) * generator.standard_normal((n, columns))
            signal = strength + setting.signal * spread * generator.standard_normal()
            logits = signal * target + alike + own + noise
            seeds.append(_probabilities(logits))
        found.append(seeds)
    return found


def _probabilities(logits: Array) -> Array:
    if logits.shape[1] == 1:
        found: Array = 1 / (1 + np.exp(-logits[:, 0]))
        return found
    powers = np.exp(logits)
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def _judged(
    setting: Setting,
    areas: dict[str, tuple[Sequence[str], Contrast, Array]],
    rights: dict[str, tuple[Sequence[str], Contrast, Array]],
    means: Array,
) -> Outcome:
    first = 0 if setting.gain else None
    mean, of_acc = all_pairs(*areas.get("", areas["d0"])), all_pairs(*rights["d0"])
    leader = against_leader(*areas.get("", areas["d0"]))
    by_dataset = [against_leader(*rights[d], tables=setting.datasets) for d in rights]
    right = first is not None and leader.leader == f"m{first}"
    false = {
        "worse than the leader": bool(leader.worse) and not right,
        "worse in ACC on a dataset": any(t.worse and (first is None or t.leader != f"m{first}") for t in by_dataset),
        "all pairs": _false(mean.better, mean.models, first),
        "all pairs, ACC": _false(of_acc.better, of_acc.models, first),
    }
    others = setting.models - 1
    found = {
        "leader": len(leader.worse) / others if right else 0.0,
        "pairs": float(mean.better[mean.models.index("m0")].sum()) / others,
    }
    if setting.datasets >= MIN_DATASETS:
        apart = friedman(means).better
        false["ranks"] = _false(apart, [f"m{i}" for i in range(setting.models)], first)
        found["ranks"] = float(apart[0].sum()) / others
    return Outcome(false, found, float(means[:, 0].mean() - means[:, 1:].mean()))


def _false(apart: Array, models: Sequence[str], first: int | None) -> bool:
    """Whether any two differ that are equal (all, or all but the first), or another is above the first."""
    best = np.array([first is not None and model == f"m{first}" for model in models])
    return bool(apart[~best].any())


# --- tables ----------------------------------------------------------------------------------------------------


def repeat(setting: Setting, sweeps: int, seed: int = 0) -> list[Outcome]:
    """Independent sweeps of one setting; the same ones for the same seed."""
    return [sweep(setting, generator) for generator in np.random.default_rng(seed).spawn(sweeps)]


AA = (
    ("1 seed", Setting(datasets=2)),
    ("1 seed, AUC 0.98", Setting(datasets=2, signal=2.9)),
    ("1 seed, 12 datasets", Setting(datasets=12)),
    ("3 seeds", Setting(datasets=2, seeds=3, retraining=0.15)),
    ("3 seeds, one model unsteady", Setting(datasets=2, seeds=3, retraining=0.05, uneven=5.0)),
    ("3 seeds, steady trainings", Setting(datasets=2, seeds=3, retraining=0.02)),
    ("5 seeds, 6 datasets", Setting(datasets=6, seeds=5, retraining=0.15)),
)
POWER = tuple(
    (
        f"{seeds} seed{'s' * (seeds > 1)}, {datasets} datasets",
        Setting(datasets=datasets, seeds=seeds, retraining=spread),
    )
    for seeds, datasets, spread in ((1, 2, 0.0), (3, 2, 0.05), (5, 12, 0.05))
)
# A claim on single trainings is not one on architectures: what happens to those who read it so.
ONE_TRAINING = (("1 seed, trainings differ", Setting(datasets=2, retraining=0.15)),)
GAINS = (0.1, 0.2, 0.4, 0.8)


def false_positives(
    settings: Iterable[tuple[str, Setting]], sweeps: int
) -> Iterator[tuple[str, str, int, float, float]]:
    """(setting, table, sweeps with a false difference, rate, lower 95 % bound of the rate) of A/A sweeps."""
    for title, setting in settings:
        outcomes = repeat(setting, sweeps)
        for table in outcomes[0].false:
            wrong = sum(outcome.false[table] for outcome in outcomes)
            rate = wrong / sweeps
            yield title, table, wrong, rate, max(0.0, wilson(rate, sweeps)[0])


def power(
    settings: Iterable[tuple[str, Setting]], gains: Iterable[float], sweeps: int
) -> Iterator[tuple[str, float, dict[str, float], float]]:
    """(setting, true gap in AUC, share of the equal others that the better model is found better than, false)."""
    gains = tuple(gains)
    for title, setting in settings:
        for gain in gains:
            outcomes = repeat(replace(setting, gain=gain), sweeps)
            found = {key: float(np.mean([o.found[key] for o in outcomes])) for key in outcomes[0].found}
            gap = float(np.mean([o.gap for o in outcomes]))
            yield title, gap, found, float(np.mean([o.false["worse than the leader"] for o in outcomes]))


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Print both tables as Markdown; 1 where a lower bound exceeds 5 %."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulations.simulate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--sweeps", type=int, default=1_000, help="A/A sweeps of each setting (default: 1000)")
    parser.add_argument("--models", type=int, default=8, help="models of a sweep (default: 8)")
    options = parser.parse_args(arguments)
    if options.sweeps < 1 or options.models < 3:
        parser.error("--sweeps must be at least 1 and --models at least 3")
    aa = [(title, replace(s, models=options.models)) for title, s in AA]
    show(f"False differences in {options.sweeps:,} A/A sweeps of {options.models} equal models:\n")
    show("| setting | table | sweeps with a false difference | rate | lower 95 % bound |\n|:---|:---|---:|---:|---:|")
    worst = 0.0
    for title, table, wrong, rate, low in false_positives(aa, options.sweeps):
        worst = max(worst, low)
        show(f"| {title} | {table} | {wrong} | {100 * rate:.1f} % | {100 * low:.1f} % |")
    show("\nRead as a claim on architectures, though each was trained once (the page says that it is none):\n")
    show("| setting | table | sweeps with a false difference | rate |\n|:---|:---|---:|---:|")
    once = [(title, replace(s, models=options.models)) for title, s in ONE_TRAINING]
    for title, table, wrong, rate, _ in false_positives(once, max(1, options.sweeps // 5)):
        show(f"| {title} | {table} | {wrong} | {100 * rate:.1f} % |")
    sweeps = max(1, options.sweeps // 5)
    show(f"\nPower in {sweeps:,} sweeps: one model is better, the share of the others that it is found better than:\n")
    show("| setting | true AUC gap | worse than the leader | all pairs | ranks | a false one |")
    show("|:---|---:|---:|---:|---:|---:|")
    better = [(title, replace(s, models=options.models)) for title, s in POWER]
    for title, gap, found, false in power(better, GAINS, sweeps):
        ranks = f"{100 * found['ranks']:.0f} %" if "ranks" in found else "–"
        lead, pairs = f"{100 * found['leader']:.0f} %", f"{100 * found['pairs']:.0f} %"
        show(f"| {title} | {gap:+.3f} | {lead} | {pairs} | {ranks} | {100 * false:.1f} % |")
    return int(worst > 0.05)


if __name__ == "__main__":
    raise SystemExit(main())

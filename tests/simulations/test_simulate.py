"""The leaderboard keeps its word: few false differences in sweeps of equal models, and real ones are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from bench.metrics.calibration import wilson
from bench.metrics.registry import AUC
from bench.stats.separation import contrast, estimates, sample
from tests.simulations import simulate
from tests.simulations.simulate import AA, GAINS, POWER, Setting, false_positives, power


def test_few_false_differences_in_a_reduced_simulation():
    settings = [(title, replace(s, models=4)) for title, s in AA if s.datasets == 2]
    for title, table, _, rate, low in false_positives(settings, 15):
        assert low <= 0.05, (title, table, rate)


def test_a_large_difference_is_found_and_none_among_the_equal():
    ((_, gap, found, false),) = power([("", Setting(models=4, seeds=3, retraining=0.05))], [0.8], 10)
    assert 0.05 < gap < 0.2
    assert found["pairs"] > 0.8 and found["leader"] >= found["pairs"]
    assert false <= 0.2


def test_five_datasets_are_ranked_and_two_are_not():
    generator = np.random.default_rng(0)
    assert "ranks" not in simulate.sweep(Setting(datasets=2, models=3), generator).false
    found = simulate.sweep(Setting(datasets=5, models=3, gain=1.0), generator)
    assert found.found["ranks"] > 0


def test_the_command_prints_both_tables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulate, "AA", AA[:1])
    monkeypatch.setattr(simulate, "POWER", POWER[:1])
    monkeypatch.setattr(simulate, "GAINS", GAINS[-1:])
    lines: list[str] = []
    assert simulate.main(["--sweeps", "5", "--models", "3"], lines.append) == 0
    assert any("False differences in 5 A/A sweeps of 3 equal models" in line for line in lines)
    assert sum(line.startswith("| 1 seed") for line in lines) == 9
    with pytest.raises(SystemExit) as stopped:
        simulate.main(["--models", "2"])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_family_wise_error_over_a_thousand_sweeps():
    """The lower 95 % bound of the observed rate is at most 5 % for every kind of table."""
    for title, table, wrong, rate, low in false_positives(AA, 1_000):
        assert low <= 0.05, (title, table, wrong, rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [Setting(), Setting(seeds=2, retraining=0.15), Setting(seeds=3, retraining=0.15),
     Setting(seeds=3, retraining=0.05, uneven=5.0)],
)  # fmt: skip
def test_a_pair_alone_keeps_its_level(setting: Setting):
    """As in the table of ablations: one comparison of two equal models on BreastMNIST's test split."""
    labels, wrong = np.repeat([0, 1], [42, 114]), 0
    for generator in np.random.default_rng(1).spawn(1_500):
        scores = simulate._scores(replace(setting, models=2), labels, generator)
        samples = [sample(AUC.images, own, labels) for own in scores]
        wrong += contrast(samples, labels).p_values()[0, 1] < 0.05
    assert wilson(wrong / 1_500, 1_500)[0] <= 0.05


@pytest.mark.slow
def test_power_grows_with_the_difference():
    for setting in POWER:
        shares = [(found["pairs"], found["leader"]) for _, _, found, _ in power([setting], GAINS, 100)]
        assert shares == sorted(shares)
        assert min(shares[-1]) > 0.95
        assert all(leader >= pairs - 0.05 for pairs, leader in shares)


def covered(setting: Setting, repeats: int) -> tuple[float, float]:
    """How often the interval of a model's figure holds its true AUC, and the same without the variance of training.

    Images and trainings are both new in each repeat; the true AUC is the mean over trainings (closed form: the score of
    a class is normal, and so is the strength that a training happens to have).
    """
    labels, hits = np.repeat([0, 1], [42, 114]), np.zeros(2)
    spread = setting.signal * setting.retraining
    truth = float(norm.cdf(setting.signal / np.sqrt(2 + spread**2)))
    for generator in np.random.default_rng(3).spawn(repeats):
        (scores,) = simulate._scores(replace(setting, models=1), labels, generator)
        (found,) = estimates([sample(AUC.images, scores, labels)], labels)
        low, high = found.interval()
        images = norm.ppf(0.975) * found.over_images**0.5
        hits += [low <= truth <= high, abs(found.value - truth) <= images]
    return tuple(hits / repeats)


@pytest.mark.parametrize(
    ("setting", "least_without"), [(Setting(), 0.9), (Setting(seeds=3, retraining=0.3), 0.0)], ids=["1 seed", "3 seeds"]
)
def test_the_interval_covers_new_images_and_new_trainings(setting: Setting, least_without: float):
    both, images = covered(setting, 300)
    assert 0.91 <= both <= 0.99
    assert images >= least_without and (setting.seeds == 1 or images < 0.85)  # images alone are not enough

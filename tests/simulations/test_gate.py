"""The gate's statistics: closed forms, scipy, and simulated A/A sweeps (reduced here, in full by `make soak`)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm, t, ttest_rel

from bench.metrics.registry import ACC, AUC, TESTED
from bench.report.compare.gate_stats import (
    Parts,
    accuracy_evidence,
    between_runs,
    can_fire,
    least_p,
    memory_evidence,
    parts,
    rounds_needed,
    speed_evidence,
)
from bench.report.compare.scores import pack_scores
from tests.simulations.gate import SCENARIOS, Design, Errors, Planted, false_positives, power, strength, sweep


def test_mann_whitney_is_scipys_and_its_least_p_a_closed_form():
    generator = np.random.default_rng(0)
    before, now = generator.normal(100, 2, 7).tolist(), generator.normal(97, 2, 8).tolist()
    found = speed_evidence(before, now, 0.05)
    assert found.p == pytest.approx(mannwhitneyu(now, before, alternative="less").pvalue)
    assert found.effect == pytest.approx(1 - np.median(now) / np.median(before))
    apart = speed_evidence([10.0, 11, 12, 13, 14, 15], [4.0, 5, 6, 7, 8, 9], 0.05)
    assert apart.p == pytest.approx(1 / math.comb(12, 6))
    assert apart.least_p == least_p(6, 6) == pytest.approx(1 / 924)
    assert speed_evidence([1.0], [1.0, 2.0], 0.05) is None


def test_the_rounds_that_are_needed():
    assert rounds_needed(1, 0.05) == 6  # never fewer
    assert rounds_needed(46, 0.05) == 6  # 46/924 <= 0.05 < 47/924
    assert rounds_needed(47, 0.05) == 7
    assert least_p(5, 9) == 1.0


def test_what_can_be_tested():
    """Tarone (1990): 47 tests of least p 1/924 cannot be asked at 5 %, 46 can; others need not pay for them."""
    assert can_fire([1 / 924] * 46, 0.05).all()
    assert not can_fire([1 / 924] * 47, 0.05).any()
    mixed = can_fire([1 / 924] * 47 + [0.0] * 20, 0.05)
    assert (mixed.sum(), mixed[47:].all()) == (20, True)
    assert len(can_fire([], 0.05)) == 0


def test_memory_against_its_noise():
    found = memory_evidence([100.0], [115.0], 0.05, 0.03)
    z = math.log(1.15) / (0.03 * math.sqrt(2))
    assert found.p == pytest.approx(norm.sf(z))
    assert found.effect == pytest.approx(0.15)
    assert found.limit == pytest.approx(math.exp(1.959964 * 0.03 * math.sqrt(2)) - 1)
    assert memory_evidence([], [1.0], 0.05, 0.01) is None


def test_accuracy_over_seeds_by_hand():
    """Images that all answer alike: only the seeds' paired t-test is left."""
    seeds = (-0.04, -0.06, -0.05, -0.03)
    row = Parts(seeds, 0.0, math.inf)
    expected = ttest_rel(seeds, np.zeros(4), alternative="less")
    assert accuracy_evidence([row], 0.01)[0].p == pytest.approx(expected.pvalue)
    pooled = (3 * np.var(seeds, ddof=1) + 0.005) / 4
    wider, own = accuracy_evidence([row, Parts((0.0, 0.1), 0.0, math.inf)], 0.01)
    assert wider.p == pytest.approx(t.sf(0.045 / math.sqrt(pooled / 4), 4))
    assert own.freedom == 1  # its spread is larger than that of all, so it counts as it is
    (one,) = accuracy_evidence([Parts((-0.05,), 0.0004, math.inf)], 0.01, assumed=0.02)
    assert one.p == pytest.approx(norm.sf(0.05 / math.sqrt(0.0004 + 2 * 0.02**2)))


def test_equal_scores_are_no_evidence():
    generator = np.random.default_rng(2)
    labels = generator.integers(2, size=100)
    same = pack_scores("d", generator.random(100), labels)
    for metric in TESTED:
        (found,) = accuracy_evidence([parts([(same, same)] * 2, metric)], 0.01)
        assert (found.effect, found.p) == (0, 1)


def test_several_labels_an_image():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(4)
    labels = (generator.random((300, 3)) < 0.3).astype(int)
    a, b = (1 / (1 + np.exp(-generator.normal(size=(300, 3)) - d * labels)) for d in (1.5, 0.5))
    pairs = [(pack_scores("d", b, labels), pack_scores("d", a, labels))]
    areas = [roc_auc_score(labels, s, average="macro") for s in (a, b)]
    shares = [((s > 0.5) == labels).mean() for s in (a, b)]
    for metric, values in ((AUC, areas), (ACC, shares)):
        (found,) = accuracy_evidence([parts(pairs, metric)], 0.01)
        assert found.effect == pytest.approx(values[0] - values[1], abs=1e-4)
        assert found.p < 0.001 or metric == ACC


def test_what_lies_between_two_runs():
    generator = np.random.default_rng(3)
    effects = 1 - np.exp(0.02 * generator.normal(size=4000))
    assert between_runs(list(effects), 0.05) == pytest.approx(1 - math.exp(norm.ppf(0.05 / 4000) * 0.02), rel=0.1)
    # a change of all cells does not hide itself, nor does one of a third of them
    assert between_runs([0.3 + e for e in effects[:100] * 0], 0.05) == pytest.approx(0)
    assert between_runs([0.5] * 3 + [0.0] * 6, 0.05) == 0
    assert between_runs([0.1] * 7, 0.05) == 0  # too few cells to tell


def test_simulated_scores_have_the_auc_they_are_planted_with():
    """AUC of two classes whose scores are normal, 2 s apart with variance 2: Phi(s)."""
    assert norm.cdf(strength(0.85)) == pytest.approx(0.85)
    verdict = sweep(Design(models=4, datasets=((2, 20_000),), seeds=1), np.random.default_rng(0), Planted({1: 0.1}))
    fall = {f.cell: f.evidence.effect for f in verdict.findings if f.check == "AUC"}
    assert list(fall.values()) == pytest.approx([0, 0.1, 0, 0], abs=0.025)  # 2,000 images are kept


def test_bounds_of_a_rate_are_clopper_and_pearsons():
    from scipy.stats import binomtest

    low, high = Errors(sweeps=1000, wrong=40).bounds()
    expected = binomtest(40, 1000).proportion_ci(0.90, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert Errors(sweeps=20).bounds()[0] == 0


SMALL = Design(models=6, datasets=((2, 156),), seeds=2, rounds=7, training=(0.05,))


def test_equal_sweeps_are_rarely_called_worse_and_planted_falls_are_found():
    assert false_positives(SMALL, 30).bounds()[0] <= 0.05
    found = power(SMALL, Planted({3: 0.35}, {4: 0.3}, {5: 0.5}), 8)
    assert min(found["speed"], found["memory"]) == 1.0
    assert found["AUC"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_family_wise_error_in_full(name: str):
    errors = false_positives(SCENARIOS[name], 1000)
    assert errors.bounds()[0] <= 0.05, errors

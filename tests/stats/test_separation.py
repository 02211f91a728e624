"""Pairs of models against DeLong's, Welch's, McNemar's and Holm's tests as others compute them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from bench.metrics.one_vs_rest import correct, strata
from bench.metrics.registry import ACC, AUC
from bench.stats.bootstrap import interval, t_interval
from bench.stats.cluster import resamples
from bench.stats.separation import (
    Sample,
    all_pairs,
    contrast,
    estimates,
    groups_of,
    mcnemar_values,
    mean_contrast,
)
from bench.stats.separation import sample as sample_of

LABELS = (np.arange(156) < 114).astype(int)


def scores_of(distance: float, seed: int, labels: np.ndarray = LABELS) -> np.ndarray:
    shared = np.random.default_rng(99).normal(size=len(labels))
    return 1 / (1 + np.exp(-(distance * labels + shared + np.random.default_rng(seed).normal(size=len(labels)))))


def sample(scores: np.ndarray, labels: np.ndarray = LABELS) -> Sample:
    return sample_of(AUC.images, [scores], labels)


def delong_of_two(a: np.ndarray, b: np.ndarray) -> float:
    """Variance of the difference, from all pairs (DeLong, DeLong and Clarke-Pearson 1988)."""
    wins = [
        (s[LABELS == 1][:, None] > s[LABELS == 0]) + 0.5 * (s[LABELS == 1][:, None] == s[LABELS == 0]) for s in (a, b)
    ]
    gap = wins[0] - wins[1]
    return float(gap.mean(1).var(ddof=1) / gap.shape[0] + gap.mean(0).var(ddof=1) / gap.shape[1])


def test_two_classes_and_one_seed_are_delongs_test():
    a, b, c = scores_of(1.6, 1), scores_of(1.0, 2), scores_of(1.0, 3).round(1)
    found = contrast([sample(s) for s in (a, b, c)], strata(LABELS))
    assert not found.retrained
    for i, j, x, y in ((0, 1, a, b), (0, 2, a, c), (1, 2, b, c)):
        assert found.difference[i, j] == pytest.approx(roc_auc_score(LABELS, x) - roc_auc_score(LABELS, y), abs=1e-12)
        assert found.variance[i, j] == pytest.approx(delong_of_two(x, y), rel=1e-9)
        assert found.difference[j, i] == -found.difference[i, j]
        # Student's instead of the normal distribution: a little more careful, never less
        deviation = delong_of_two(x, y) ** 0.5
        normal = 2 * stats.norm.sf(abs(found.difference[i, j]) / deviation)
        assert normal < found.p_values()[i, j] < 1.3 * normal + 0.02


def test_without_images_it_is_students_test_of_two_samples():
    """Models whose figures do not hang on single images, equally steady, differ by their seeds alone."""
    values = ((0.90, 0.92, 0.94), (0.86, 0.88, 0.90))
    found = contrast([Sample(v, np.zeros(10)) for v in values], np.zeros(10))
    expected = stats.ttest_ind(*values)
    assert found.retrained
    assert found.p_values()[0, 1] == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval()
    assert found.half_width()[0, 1] == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_a_spread_over_seeds_counts_as_no_less_than_that_of_all_models():
    steady, unsteady = (0.900, 0.901, 0.902), (0.80, 0.85, 0.90)
    found = contrast([Sample(v, np.zeros(10)) for v in (steady, steady, unsteady)], np.zeros(10))
    together, own = np.mean([1e-6, 1e-6, 25e-4]), 25e-4
    assert found.variance[0, 1] == pytest.approx(2 * together / 3)
    assert found.variance[0, 2] == pytest.approx((together + own) / 3)
    assert found.moments[0, 1] == pytest.approx((2 * together / 3) ** 2 / 6)
    assert found.moments[0, 2] == pytest.approx((together / 3) ** 2 / 6 + (own / 3) ** 2 / 2)
    assert (np.diag(found.variance) == 0).all()


def test_one_seed_beside_several_is_no_claim_on_training_again():
    found = contrast([Sample((0.9, 0.8), np.zeros(5)), Sample((0.7,), np.zeros(5))], np.zeros(5))
    assert not found.retrained
    assert found.variance[0, 1] == pytest.approx(0.005 / 2 + 0.005)


def test_a_model_and_itself_do_not_differ():
    scores = scores_of(1.0, 5)
    found = contrast([sample(scores), sample(scores)], strata(LABELS))
    assert found.p_values().tolist() == [[1, 1], [1, 1]]
    verdict = all_pairs(("a", "b"), found)
    assert verdict.letters() == {"a": "a", "b": "a"}


def test_a_class_of_one_image_counts_with_its_own_square():
    rows = np.array([[0.3, 0.1], [0.2, 0.0], [0.1, 0.2], [0.4, 0.0]])
    found = contrast([Sample((0.0,), rows[:, 0]), Sample((0.1,), rows[:, 1])], np.array([0, 0, 0, 1]))
    gap = rows[:, 0] - rows[:, 1]
    assert found.variance[0, 1] == pytest.approx(3 * gap[:3].var(ddof=1) + gap[3] ** 2)


def test_the_mean_over_datasets_adds_variances():
    first = contrast([sample(scores_of(1.6, 1)), sample(scores_of(1.0, 2))], strata(LABELS))
    second = contrast([sample(scores_of(1.2, 3)), sample(scores_of(1.1, 4))], strata(LABELS))
    both = mean_contrast([first, second])
    assert both.difference[0, 1] == pytest.approx((first.difference[0, 1] + second.difference[0, 1]) / 2)
    assert both.variance[0, 1] == pytest.approx((first.variance[0, 1] + second.variance[0, 1]) / 4)
    degrees = both.variance[0, 1] ** 2 / both.moments[0, 1]
    assert 80 < degrees < 310  # Satterthwaite: between the images of one dataset and those of both
    t = abs(both.difference[0, 1]) / np.sqrt(both.variance[0, 1])
    assert both.p_values()[0, 1] == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9)


def test_acc_of_one_seed_is_statsmodels_exact_mcnemar():
    scores = [scores_of(d, seed) for d, seed in ((2.0, 1), (0.5, 2), (1.0, 3))]
    right = [correct(s, LABELS) for s in scores]
    samples = [sample_of(ACC.images, [s], LABELS) for s in scores]
    pairs = contrast(samples, np.zeros(156))
    p = mcnemar_values(samples, pairs.p_values())
    for i in range(3):
        for j in range(i):
            table = [[int(((right[i] == a) & (right[j] == b)).sum()) for b in (1, 0)] for a in (1, 0)]
            assert p[i, j] == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert pairs.difference[0, 1] == pytest.approx(right[0].mean() - right[1].mean())


def test_acc_over_images_is_the_paired_t_test():
    scores = [scores_of(2.0, 1), scores_of(0.5, 2)]
    right = [correct(s, LABELS) for s in scores]
    samples = [sample_of(ACC.images, [s], LABELS) for s in scores]
    found = contrast(samples, groups_of(ACC.images, LABELS))
    assert found.p_values()[0, 1] == pytest.approx(stats.ttest_rel(*right).pvalue, rel=1e-9)


@pytest.mark.parametrize("metric", [AUC, ACC], ids=lambda m: m.name)
def test_intervals_of_differences_agree_with_the_bootstrap(metric):
    """Four classes: no closed form, so the same difference on resampled images is the reference."""
    generator = np.random.default_rng(5)
    labels = generator.integers(4, size=500)
    logits = generator.normal(size=(2, 500, 4)) + np.array([0.9, 0.6])[:, None, None] * np.eye(4)[labels]
    both = list(np.exp(logits) / np.exp(logits).sum(2, keepdims=True))
    samples = [sample_of(metric.images, [s], labels) for s in both]
    half = contrast(samples, groups_of(metric.images, labels)).half_width()[0, 1]
    weights = resamples(labels, None, 0, 2000)
    a, b = (metric.images.resampled(s, labels, weights) for s in both)
    low, high = interval(a - b)
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_all_pairs_are_corrected_as_one_family_and_listed_best_first():
    scores = {
        "poor": scores_of(0.2, 1),
        "good": scores_of(4.0, 2),
        "fair": scores_of(0.4, 3),
        "same": scores_of(0.4, 9),
    }
    pairs = contrast([sample(s) for s in scores.values()], strata(LABELS))
    upper = np.triu_indices(4, 1)
    verdict = all_pairs(tuple(scores), pairs)
    expected = multipletests(pairs.p_values()[upper], method="holm")[1]
    np.testing.assert_allclose(np.sort(verdict.p[upper]), np.sort(expected))
    np.testing.assert_array_equal(verdict.p, verdict.p.T)
    assert (np.diag(verdict.p) == 1).all()
    assert verdict.models[0] == "good"
    assert (verdict.significant, verdict.pairs) == (3, 6)
    others = verdict.models[1:]
    assert verdict.ranks() == {"good": (1, 1), **dict.fromkeys(others, (2, 4))}
    assert verdict.letters() == {"good": "a", **dict.fromkeys(others, "b")}


def test_students_interval_of_seeds():
    values = [0.8, 0.84, 0.91]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == (pytest.approx(low), pytest.approx(high))
    assert all(np.isnan(t_interval([0.8])))


def test_folds_are_compared_by_nadeau_and_bengios_corrected_t_test() -> None:
    """Their statistic by hand, and scipy's t: m / sqrt((1 / k + n2 / n1) s2) with k - 1 degrees of freedom."""
    from scipy.stats import t

    a, b = np.array([0.81, 0.85, 0.79, 0.9, 0.84]), np.array([0.78, 0.84, 0.8, 0.83, 0.8])
    samples = [Sample(tuple(v), np.zeros(10), overlap=0.25) for v in (a, b)]
    found = contrast(samples, np.zeros(10))
    statistic = (a - b).mean() / np.sqrt((1 / 5 + 0.25) * (a - b).var(ddof=1))
    assert found.p_values()[0, 1] == pytest.approx(2 * t.sf(abs(statistic), 4))
    assert found.retrained
    (alone,) = estimates([samples[0]], np.zeros(10))
    assert alone.variance == pytest.approx(0.45 * a.var(ddof=1)) and alone.value == pytest.approx(a.mean())


@pytest.mark.slow
def test_false_alarms_over_folds_stay_at_5_percent() -> None:
    """Two learners that are equally good: nearest means on two halves of equally useful features."""
    generator, wrong, plain, runs = np.random.default_rng(1), 0, 0, 1_000
    for _ in range(runs):
        labels = generator.integers(0, 2, 100)
        features = generator.normal(0.35 * labels[:, None], 1, (100, 12))
        fold = generator.permutation(100) % 5
        values = np.zeros((2, 5))
        for f in range(5):
            train, test = fold != f, fold == f
            for m, part in enumerate((features[:, :6], features[:, 6:])):
                axis = part[train & (labels == 1)].mean(0) - part[train & (labels == 0)].mean(0)
                values[m, f] = AUC.images.value(1 / (1 + np.exp(-part[test] @ axis)), labels[test])
        for overlap in (0.25, 0.0):
            samples = [Sample(tuple(v), np.zeros(1), overlap=overlap) for v in values]
            p = contrast(samples, np.zeros(1)).p_values()[0, 1]
            wrong, plain = (wrong + (p < 0.05), plain) if overlap else (wrong, plain + (p < 0.05))
    assert wrong <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5
    assert plain > wrong

"""AUC, ACC and their resamples against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench.metrics.one_vs_rest import auc, correct, majority_acc, one_vs_rest, rank, weighted_auc
from bench.metrics.registry import ACC, AUC
from bench.stats.bootstrap import interval, seed_of_test_set
from bench.stats.cluster import resamples


def multi_class(n: int, classes: int, seed: int, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    logits = generator.normal(size=(n, classes)) + strength * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_ranks_are_scipys():
    from scipy.stats import rankdata

    values = np.array([3.0, 1.0, 3.0, 2.0, -1.0, 3.0])
    np.testing.assert_array_equal(rank(values), rankdata(values))


@pytest.mark.parametrize("decimals", [1, 12])  # 1: many equal scores
def test_auc_is_scikit_learns(decimals: int):
    scores, labels = multi_class(300, 4, 0)
    scores = scores.round(decimals)
    expected = np.mean([roc_auc_score(labels == k, scores[:, k]) for k in range(4)])
    assert auc(scores, labels) == pytest.approx(expected, abs=1e-12)
    several = (np.random.default_rng(1).random((300, 4)) < 0.3).astype(int)
    expected = np.mean([roc_auc_score(several[:, k], scores[:, k]) for k in range(4)])
    assert auc(scores, several) == pytest.approx(expected, abs=1e-12)


def test_two_classes_have_one_curve_however_the_scores_are_stored():
    scores, labels = multi_class(200, 2, 3)
    expected = roc_auc_score(labels, scores[:, 1])
    for form in (scores, scores[:, 1], scores[:, 1:]):
        assert auc(form, labels) == pytest.approx(expected, abs=1e-12)
        assert auc(form, labels[:, None]) == pytest.approx(expected, abs=1e-12)
        np.testing.assert_array_equal(correct(form, labels), (scores[:, 1] > 0.5) == labels)


def test_correct_and_majority_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    np.testing.assert_array_equal(correct(scores, np.array([0, 2, 2])), [1, 1, 0])
    assert majority_acc(np.array([0, 2, 2])) == pytest.approx(2 / 3)
    several = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(correct(scores, several), [2 / 3, 1, 2 / 3])  # 0.5 is not above 0.5
    assert majority_acc(several) == pytest.approx(np.mean([2 / 3, 1, 2 / 3]))


def test_a_class_without_images_is_left_out_of_the_mean():
    scores, labels = multi_class(100, 3, 4)
    labels = np.where(labels == 2, 1, labels)
    expected = np.mean([roc_auc_score(labels == k, scores[:, k]) for k in (0, 1)])
    assert auc(scores, labels) == pytest.approx(expected)
    assert np.isnan(auc(scores, np.zeros(100)))


@pytest.mark.parametrize(
    ("scores", "labels"),
    [(np.zeros((3, 2)), np.zeros(4)), (np.zeros((3, 4)), np.zeros((3, 2))), (np.zeros((0, 2)), np.zeros(0))],
)
def test_shapes_that_do_not_fit_are_errors(scores: np.ndarray, labels: np.ndarray):
    with pytest.raises(ValueError, match="scores"):
        one_vs_rest(scores, labels)


@pytest.mark.parametrize("decimals", [1, 12])
def test_each_resample_is_scikit_learns_weighted_auc(decimals: int):
    generator = np.random.default_rng(5)
    column, target = generator.random(80).round(decimals), generator.random(80) < 0.3
    weights = generator.integers(0, 4, size=(80, 7)).astype(np.float32)
    samples = weighted_auc(column, target, weights)
    expected = [roc_auc_score(target, column, sample_weight=weights[:, i]) for i in range(7)]
    np.testing.assert_allclose(samples, expected, atol=1e-6)


def test_spread_of_acc_is_the_closed_form():
    scores, labels = multi_class(400, 5, 6)
    right = correct(scores, labels)
    variance = sum((labels == k).sum() * right[labels == k].var() for k in range(5)) / 400**2
    samples = ACC.images.resampled(scores, labels, resamples(labels, None, 0, 20_000))
    assert samples.std() == pytest.approx(np.sqrt(variance), rel=0.03)


def test_interval_of_auc_has_delongs_width_and_covers():
    """Binormal scores: the spread agrees with DeLong's variance, and 95 % intervals hold the truth about as often."""
    from scipy.stats import norm

    truth, covered, ratios = norm.cdf(1 / np.sqrt(2)), 0, []
    labels = (np.arange(156) < 114).astype(int)  # as BreastMNIST's test split
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(labels, 1.0)
        samples = AUC.images.resampled(scores, labels, resamples(labels, None, seed))
        low, high = interval(samples)
        covered += low <= truth <= high
        ratios.append(samples.std() / np.sqrt(delong_variance(scores, labels)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert 0.90 <= covered / 200 <= 0.985


def delong_variance(scores: np.ndarray, labels: np.ndarray) -> float:
    """DeLong, DeLong and Clarke-Pearson 1988, from all pairs."""
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (
        scores[labels == 1][:, None] == scores[labels == 0]
    )
    return wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1]


def test_models_are_seen_on_the_same_resampled_images_of_a_test_set():
    labels = multi_class(300, 3, 10)[1]
    first, again, elsewhere = (seed_of_test_set(name, labels) for name in ("x", "x", "y"))
    assert first == again != elsewhere != seed_of_test_set("x", labels[::-1])
    assert np.array_equal(resamples(labels, None, first), resamples(labels, None, again))


def test_nothing_known_gives_no_interval():
    assert all(np.isnan(interval(np.array([np.nan, np.nan]))))
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)

"""Paired comparisons against statsmodels, scikit-learn, a slow DeLong from the paper's sums, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from bench.report.stats.paired import (
    EXACT_PAIRS,
    acc_components,
    auc_components,
    delong,
    holm,
    mcnemar,
    mcnemar_worse,
    paired_bootstrap,
)


def two_models(n: int = 120, seed: int = 0, decimals: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two models that share half of what they see; two classes."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(np.int64)
    shared = labels + generator.normal(size=n)
    logits = [shared + generator.normal(size=n), 0.4 * shared + generator.normal(size=n)]
    a, b = (np.round(1 / (1 + np.exp(-x)), decimals) for x in logits)
    return a, b, labels


def slow_delong(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Difference and its variance by the double sums of DeLong, DeLong and Clarke-Pearson (1988), O(n^2)."""
    areas, of_positive, of_negative = [], [], []
    for scores in (a, b):
        positive, negative = scores[labels == 1], scores[labels == 0]
        psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative] for x in positive])
        areas.append(psi.mean())
        of_positive.append(psi.mean(1))
        of_negative.append(psi.mean(0))
    s10, s01 = np.cov(of_positive), np.cov(of_negative)
    s = s10 / len(of_positive[0]) + s01 / len(of_negative[0])
    return areas[0] - areas[1], s[0, 0] + s[1, 1] - 2 * s[0, 1]


@pytest.mark.parametrize("decimals", [1, 12])  # 1: many equal scores
def test_delong_is_the_papers_double_sum(decimals: int):
    a, b, labels = two_models(decimals=decimals)
    difference, variance = slow_delong(a, b, labels)
    found = delong(a, b, labels)
    assert found.difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b), abs=1e-12)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference) / variance**0.5), rel=1e-9)
    assert (found.low, found.high) == pytest.approx(norm.interval(0.95, difference, variance**0.5), abs=1e-9)


def test_delong_turns_round_and_does_not_see_monotone_transforms():
    a, b, labels = two_models()
    there, back = delong(a, b, labels), delong(np.log(b), a**3, labels)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)
    assert delong(a, a, labels) == delong(b, b, labels)
    assert delong(a, a, labels).p == 1.0


def test_delong_over_seeds_compares_their_means():
    a, b, labels = two_models(seed=1)
    c, d, _ = two_models(seed=2)
    found = delong([a, c], [b, d], labels)
    expected = np.mean([roc_auc_score(labels, x) for x in (a, c)]) - np.mean([roc_auc_score(labels, x) for x in (b, d)])
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert delong([a, a], [b, b], labels) == delong(a, b, labels)


def test_several_classes_as_the_bootstrap_sees_them():
    generator = np.random.default_rng(5)
    labels = generator.integers(4, size=500)
    logits = generator.normal(size=(2, 500, 4)) + np.array([0.9, 0.6])[:, None, None] * np.eye(4)[labels]
    a, b = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    found, resampled = delong(a, b, labels), paired_bootstrap(a, b, labels, n=2000)
    areas = [np.mean([roc_auc_score(labels == k, s[:, k]) for k in range(4)]) for s in (a, b)]
    assert found.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert found.high - found.low == pytest.approx(resampled.high - resampled.low, rel=0.1)
    assert found.p == pytest.approx(resampled.p, abs=0.02)


def test_welchs_degrees_of_freedom_by_hand():
    a, b, labels = two_models(60)
    components = auc_components(a, b, labels)
    variance, freedom = components.variance()
    parts = [np.var(components.of_image[labels == k], ddof=1) * (labels == k).sum() for k in (0, 1)]
    assert variance == pytest.approx(sum(parts))
    assert freedom == pytest.approx(
        sum(parts) ** 2 / sum(p**2 / ((labels == k).sum() - 1) for k, p in enumerate(parts))
    )


def test_delong_says_what_does_not_fit():
    a, b, labels = two_models()
    with pytest.raises(ValueError, match="120 rows of scores for 119 labels"):
        delong(a, b, labels[1:])
    with pytest.raises(ValueError, match="no class has both images of its own and others"):
        delong(a, b, np.zeros_like(labels))
    with pytest.raises(ValueError, match="no scores"):
        delong([], [b], labels)


@pytest.mark.parametrize(("only_a", "only_b", "both"), [(3, 11, 80), (0, 6, 30), (7, 7, 5), (40, 80, 100)])
def test_mcnemar_is_statsmodels_exact_test(only_a: int, only_b: int, both: int):
    from statsmodels.stats.contingency_tables import mcnemar as reference

    a = np.array([1] * only_a + [0] * only_b + [1] * both)
    b = np.array([0] * only_a + [1] * only_b + [1] * both)
    found = mcnemar(a, b)
    assert found.p == pytest.approx(reference([[both, only_a], [only_b, 0]], exact=True).pvalue, rel=1e-9)
    assert found.difference == pytest.approx((only_a - only_b) / len(a))
    assert found.low < found.difference < found.high


def test_mcnemar_of_many_pairs_is_statsmodels_corrected_chi_square():
    from statsmodels.stats.contingency_tables import mcnemar as reference

    only_a, only_b = EXACT_PAIRS // 2 - 40, EXACT_PAIRS // 2 + 41
    a, b = np.repeat([1, 0], [only_a, only_b]), np.repeat([0, 1], [only_a, only_b])
    expected = reference([[0, only_a], [only_b, 0]], exact=False, correction=True).pvalue
    assert mcnemar(a, b).p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(np.ones(5), np.ones(5)).p == 1.0
    assert mcnemar(np.zeros(6), np.ones(6)).p == pytest.approx(2 / 2**6)
    assert mcnemar_worse(0, 6) == pytest.approx(1 / 2**6)
    assert mcnemar_worse(0, 0) == 1.0
    # Agresti and Min (2005): 0.5 added to each cell of n = 10, of which 1 and 4 are discordant
    found = mcnemar(np.repeat([1, 0, 1], [1, 4, 5]), np.repeat([0, 1, 1], [1, 4, 5]))
    half = norm.ppf(0.975) * np.sqrt(6 - 9 / 12) / 12
    assert (found.low, found.high) == pytest.approx((-0.25 - half, -0.25 + half))


def test_mcnemar_says_what_does_not_fit():
    with pytest.raises(ValueError, match="2 answers against 1"):
        mcnemar(np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="right or wrong"):
        mcnemar(np.array([0.5, 1]), np.ones(2))


def test_accuracy_components_are_the_paired_t_test():
    from scipy.stats import ttest_rel

    a, b, labels = two_models(200)
    right = [((s > 0.5) == labels).astype(float) for s in (a, b)]
    components = acc_components(a, b, labels)
    variance, freedom = components.variance()
    expected = ttest_rel(*right)
    assert components.difference / variance**0.5 == pytest.approx(expected.statistic)
    assert freedom == pytest.approx(expected.df)


def test_bootstrap_agrees_with_delong_and_mcnemar():
    a, b, labels = two_models(400, seed=3)
    area, share = paired_bootstrap(a, b, labels, n=2000), paired_bootstrap(a, b, labels, "acc", n=2000)
    exact = delong(a, b, labels)
    assert area.difference == pytest.approx(exact.difference)
    assert (area.low, area.high) == pytest.approx((exact.low, exact.high), abs=0.015)
    right = [(s > 0.5) == labels for s in (a, b)]
    assert share.difference == pytest.approx(mcnemar(*right).difference)
    assert share.p == pytest.approx(mcnemar(*right).p, abs=0.1)  # McNemar's is the conservative one
    same = paired_bootstrap(a, a, labels)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1.0)
    with pytest.raises(ValueError, match="metric 'f1'"):
        paired_bootstrap(a, b, labels, "f1")


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(40) ** 4
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])  # by hand
    np.testing.assert_array_equal(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert len(holm([])) == 0

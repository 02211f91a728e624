"""Operating points, net benefit and resampled figures against scikit-learn, definitions and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, confusion_matrix, log_loss, roc_curve

from bench.metrics import resampled
from bench.metrics.operating import Rule, expected_cost, net_benefit, threshold, treat_all


def binary(seed: int, n: int = 200, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(int)
    return np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(decimals), labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 1.0])
def test_fixed_sensitivity_and_specificity_are_points_of_scikit_learns_curve(seed: int, level: float) -> None:
    scores, labels = binary(seed)
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    found = threshold(scores, labels == 1, Rule(sensitivity=level))
    assert found == thresholds[true >= level - 1e-12].max()
    found = threshold(scores, labels == 1, Rule(specificity=level))
    assert found == thresholds[1 - false >= level - 1e-12].min()


@pytest.mark.parametrize("cost", [0.2, 1.0, 10.0])
def test_the_least_cost_is_the_least_of_all_thresholds(cost: float) -> None:
    scores, labels = binary(5)
    found = threshold(scores, labels == 1, Rule(cost=cost))

    def paid(at: float) -> float:
        (_, fp), (fn, _) = confusion_matrix(labels, scores >= at)
        return float(cost * fn + fp)

    assert paid(found) == min(paid(at) for at in [*np.unique(scores), np.inf])
    share = labels.mean()
    (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= found)
    assert expected_cost(tp / (tp + fn), tn / (tn + fp), share, cost) * len(labels) == pytest.approx(paid(found))
    always = threshold(scores, labels == 1, Rule(cost=1e6, prevalence=0.3))
    assert (scores[labels == 1] >= always).all()
    assert threshold(scores, labels == 1, Rule(cost=1e-6)) > scores.max() or not (scores[labels == 0] >= found).all()


def test_validation_of_one_class_has_no_operating_point() -> None:
    assert np.isnan(threshold(np.array([0.2, 0.4]), np.array([True, True]), Rule(sensitivity=0.9)))


def test_net_benefit_is_vickers_and_elkins() -> None:
    scores, labels = binary(6)
    chances = np.array([0.0, 0.1, 0.3, 0.5, 0.9])
    n = len(labels)
    expected = []
    for chance in chances:
        (_, fp), (_, tp) = confusion_matrix(labels, scores >= chance)
        expected.append(tp / n - fp / n * chance / (1 - chance))
    np.testing.assert_allclose(net_benefit(scores, labels == 1, chances), expected)
    np.testing.assert_allclose(net_benefit(np.ones(n), labels == 1, chances), treat_all(labels.mean(), chances))
    np.testing.assert_allclose(net_benefit(np.zeros(n), labels == 1, chances[1:]), 0)
    rare = net_benefit(scores, labels == 1, chances, 0.01)
    yes = scores[:, None] >= chances
    by_hand = 0.01 * yes[labels == 1].mean(0) - 0.99 * yes[labels == 0].mean(0) * chances / (1 - chances)
    np.testing.assert_allclose(rare, by_hand)


def drawn(n: int, seed: int) -> np.ndarray:
    """Three resamples of n images: all of them once, and two draws."""
    generator = np.random.default_rng(seed)
    draws = [np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(2)]
    return np.stack([np.ones(n), *draws], axis=1).astype(np.float32)


@pytest.mark.parametrize("many", [0, resampled.MANY])  # resamples from which images are walked one by one
@pytest.mark.parametrize("positive", [0, 1])
def test_average_precision_of_resamples_is_scikit_learns(
    positive: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampled, "MANY", many)
    scores, labels = binary(7, decimals=1)
    weights = drawn(len(labels), 1)
    found = resampled.average_precision(scores, labels, weights, positive)
    column = scores if positive else 1 - scores
    for value, weight in zip(found, weights.T, strict=True):
        expected = average_precision_score(labels == positive, column.round(9), sample_weight=weight)
        assert value == pytest.approx(expected, abs=1e-12)
    several = np.stack([scores, 1 - scores], 1), np.stack([labels, 1 - labels], 1)
    both = average_precision_score(several[1], several[0], average="macro", sample_weight=weights[:, 1])
    assert resampled.average_precision(*several, weights)[1] == pytest.approx(both, abs=1e-12)
    absent = resampled.average_precision(scores, np.zeros_like(labels), weights)
    assert np.isnan(absent).all(), "without an image of the class"


def test_log_loss_and_quadratic_kappa_of_resamples_are_scikit_learns() -> None:
    generator = np.random.default_rng(8)
    scores = generator.dirichlet(np.ones(4), 120)
    labels = np.clip(scores.argmax(1) + generator.integers(-1, 2, 120), 0, 3)
    weights = drawn(120, 2)
    kappa, loss = resampled.quadratic_kappa(scores, labels, weights), resampled.log_loss(scores, labels, weights)
    for at, weight in enumerate(weights.T):
        expected = cohen_kappa_score(labels, scores.argmax(1), weights="quadratic", sample_weight=weight)
        assert kappa[at] == pytest.approx(expected, abs=1e-12)
        assert loss[at] == pytest.approx(log_loss(labels, scores, sample_weight=weight, labels=range(4)), rel=1e-6)
    assert np.isnan(resampled.quadratic_kappa(np.eye(3)[[1, 1]], np.array([1, 1]), np.ones((2, 1)))[0])
    two, targets = binary(9)
    assert resampled.log_loss(two.clip(0.01, 0.99), targets, np.ones((200, 1)))[0] == pytest.approx(
        log_loss(targets, two.clip(0.01, 0.99))
    )

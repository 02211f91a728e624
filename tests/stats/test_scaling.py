"""Exponents against SciPy's regression and exact power laws; crossovers against the intersection of two of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.stats.scaling import crossovers, fit_common_exponent, fit_exponent


def test_an_exact_power_law_is_found():
    pixels = np.array([64, 128, 224, 512]) ** 2
    fit = fit_exponent(pixels, 3e-7 * pixels**1.5)
    assert fit is not None
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((1.5, 1.5, 1.5))
    assert fit.n == 4


def test_interval_is_students():
    from scipy import stats

    pixels = np.array([64, 96, 128, 192, 256]) ** 2.0
    cost = pixels**1.2 * np.exp(np.random.default_rng(0).normal(0, 0.1, 5))
    fit = fit_exponent(pixels, cost)
    expected = stats.linregress(np.log(pixels), np.log(cost))
    half = stats.t.ppf(0.975, 3) * expected.stderr
    assert fit is not None
    assert fit.exponent == pytest.approx(expected.slope)
    assert (fit.low, fit.high) == pytest.approx((expected.slope - half, expected.slope + half))


def test_too_little_to_fit():
    assert fit_exponent([1, 4], [1, 2]) is None
    assert fit_exponent([1, 4, 4], [1, 2, 3]) is None
    assert fit_exponent([1, 4, 9], [1, 2, float("nan")]) is None
    assert fit_exponent([1, 4, 9], [1, 2, 0]) is None
    flat = fit_exponent([1, 4, 9], [2, 2, 2])
    assert flat is not None
    assert flat.exponent == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 image sizes for 2 costs"):
        fit_exponent([1, 4, 9], [1, 2])


def test_crossover_of_two_power_laws_is_their_intersection():
    sides = (64, 128, 256, 512)
    linear = {r: 1e-3 * (r / 200) ** 2 for r in sides}
    quadratic = {r: 1e-3 * (r / 200) ** 4 for r in sides}
    (found,) = crossovers(("linear", "quadratic"), {"linear": linear, "quadratic": quadratic})
    assert (found.below, found.above, found.between) == ("quadratic", "linear", (128, 256))
    assert found.resolution == pytest.approx(200)
    assert found.costs == pytest.approx(((200 / 128) ** 2, (200 / 256) ** 2))


def test_a_difference_within_the_noise_is_no_crossover():
    a = {64: 1.00, 128: 2.00, 256: 4.00}
    assert crossovers(("a", "b"), {"a": a, "b": {64: 1.04, 128: 1.97, 256: 3.9}}, margin=0.05) == []
    (found,) = crossovers(("a", "b"), {"a": a, "b": {64: 1.2, 128: 1.99, 256: 3.5}}, margin=0.05)
    assert found.between == (64, 256)  # 128 is a tie and decides nothing
    assert crossovers(("a", "b"), {"a": a, "b": {512: 1.0}}) == []


def test_a_pair_is_judged_by_the_noise_of_its_own_cells():
    a, b = {64: 1.0, 128: 2.0, 256: 4.0}, {64: 1.2, 128: 1.8, 256: 3.5}
    (found,) = crossovers(("a", "b"), {"a": a, "b": b}, noise={"a": {64: 0.18}, "b": {128: 0.08}})
    assert found.between == (64, 128)
    (found,) = crossovers(("a", "b"), {"a": a, "b": b}, noise={"a": {64: 0.18}, "b": {128: 0.12}})
    assert found.between == (64, 256)  # at 128 they are 11 % apart, and 12 % may be noise
    assert crossovers(("a", "b"), {"a": a, "b": b}, noise={"a": {64: 0.22}}) == []


def test_a_familys_exponent_is_the_covariance_fit():
    """One slope, a factor for each model: the same as least squares with a dummy column per model."""
    rng = np.random.default_rng(3)
    pixels = np.array([64.0, 128, 224, 384, 512]) ** 2
    curves = [
        (pixels[:k], f * pixels[:k] ** 1.3 * np.exp(rng.normal(0, 0.05, k))) for f, k in ((1, 5), (7, 4), (0.2, 3))
    ]
    design = np.zeros((12, 4))
    at = 0
    for i, (x, _) in enumerate(curves):
        design[at : at + len(x), 0], design[at : at + len(x), i + 1] = np.log(x), 1
        at += len(x)
    y = np.log(np.concatenate([c for _, c in curves]))
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    fit = fit_common_exponent([*curves, (pixels[:2], pixels[:2])])  # two sizes say nothing about growth
    assert fit is not None and fit.n == 12
    assert fit.exponent == pytest.approx(solution[0])
    error = np.sqrt(residual[0] / 8 * np.linalg.inv(design.T @ design)[0, 0])
    assert fit.high - fit.exponent == pytest.approx(stats.t.ppf(0.975, 8) * error)
    assert fit_common_exponent([]) is None

"""Variances by patient against Obuchowski's formulas as she writes them, statsmodels, the jackknife and chance."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.metrics import confusion_matrix, roc_auc_score

from bench.metrics.calibration import wilson
from bench.metrics.registry import ACC, AUC
from bench.stats.cluster import (
    codes_of,
    over_patients,
    ratios,
    resamples,
    resolvable,
    share,
    two_rates,
)
from bench.stats.separation import contrast, estimates, groups_of, sample


def clustered(
    patients: int, seed: int, alike: float = 0.7, models: int = 1, shift: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (models, N), labels and patients: images of a patient share much of their score, some have both labels."""
    generator = np.random.default_rng(seed)
    number = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
    ill = generator.random(patients) < 0.5
    labels = np.where(generator.random(len(number)) < 0.85, ill[number], ~ill[number]).astype(int)
    shared = generator.normal(size=(models, patients))[:, number]
    noise = generator.normal(size=(models, len(number)))
    scores = alike**0.5 * shared + (1 - alike) ** 0.5 * noise + shift * labels
    return 1 / (1 + np.exp(-scores)), labels, number


def obuchowski(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The covariance of AUCs (K, N scores) as in Biometrics 53:567: S10, S01 and S11 from sums of components."""
    k = len(scores)
    m, n = (labels == 1).sum(), (labels == 0).sum()
    wins = (scores[:, labels == 1][:, :, None] > scores[:, labels == 0][:, None, :]).astype(float)
    wins += 0.5 * (scores[:, labels == 1][:, :, None] == scores[:, labels == 0][:, None, :])
    theta, v10, v01 = wins.mean((1, 2)), wins.mean(2), wins.mean(1)
    everyone = np.unique(patients)
    a, b = np.zeros((k, len(everyone))), np.zeros((k, len(everyone)))
    with_ill = with_well = 0
    for i, who in enumerate(everyone):
        ill, well = patients[labels == 1] == who, patients[labels == 0] == who
        with_ill, with_well = with_ill + ill.any(), with_well + well.any()
        a[:, i] = v10[:, ill].sum(1) - ill.sum() * theta
        b[:, i] = v01[:, well].sum(1) - well.sum() * theta
    s10 = with_ill / ((with_ill - 1) * m) * a @ a.T
    s01 = with_well / ((with_well - 1) * n) * b @ b.T
    s11 = len(everyone) / (len(everyone) - 1) * a @ b.T
    return s10 / m + s01 / n + (s11 + s11.T) / (m * n)


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_clustered_aucs_and_of_their_difference_is_obuchowskis(seed: int) -> None:
    scores, labels, patients = clustered(30, seed, models=3)
    expected = obuchowski(scores, labels, patients)
    influence = np.stack([AUC.images.influence(s, labels) for s in scores], axis=1)  # type: ignore[union-attr]
    np.testing.assert_allclose(over_patients(influence, labels, patients)[0], expected, rtol=1e-9)
    samples = [sample(AUC.images, [s], labels, patients) for s in scores]
    found = contrast(samples, labels)
    difference = np.diag(expected)[:, None] + np.diag(expected) - 2 * expected
    np.testing.assert_allclose(found.variance, difference, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose([e.variance for e in estimates(samples, labels)], np.diag(expected), rtol=1e-9)


def test_it_agrees_with_leaving_patients_out_one_by_one() -> None:
    (scores,), labels, patients = clustered(400, 5)
    influence = AUC.images.influence(scores, labels)[:, None]  # type: ignore[union-attr]
    found = over_patients(influence, labels, patients)[0][0, 0]
    left = np.array([roc_auc_score(labels[patients != p], scores[patients != p]) for p in range(400)])
    jackknife = 399 / 400 * ((left - left.mean()) ** 2).sum()
    assert found == pytest.approx(jackknife, rel=0.02)


def test_patients_of_one_image_each_are_delong() -> None:
    (scores,), labels, _ = clustered(60, 6)
    influence = AUC.images.influence(scores, labels)[:, None]  # type: ignore[union-attr]
    alone = over_patients(influence, labels, np.arange(len(labels)))[0][0, 0]
    expected = sum(influence[labels == k].var(ddof=1) * (labels == k).sum() for k in (0, 1))
    assert alone == pytest.approx(expected)


def test_the_difference_of_clustered_accuracies_is_statsmodels_regression_by_cluster() -> None:
    scores, labels, patients = clustered(40, 7, models=2)
    right = [((s > 0.5) == labels).astype(float) for s in scores]
    fit = sm.OLS(right[0] - right[1], np.ones(len(labels))).fit(cov_type="cluster", cov_kwds={"groups": patients})
    samples = [sample(ACC.images, [s], labels, patients) for s in scores]
    found = contrast(samples, groups_of(ACC.images, labels))  # type: ignore[arg-type]
    assert samples[0].right is None  # McNemar's exact test would count images as independent
    assert found.variance[0, 1] == pytest.approx(float(fit.bse[0]) ** 2, rel=1e-9)
    assert found.difference[0, 1] == pytest.approx(float(fit.params[0]))


def test_patients_are_numbered_and_those_without_a_name_stand_alone() -> None:
    found = codes_of(np.array(["b", "a", "", "b", ""]))
    assert found is not None and found[0] == found[3]
    assert len(set(found.tolist())) == 4
    assert codes_of(np.array(["a", "b", ""])) is None and codes_of(None) is None and codes_of([]) is None


def test_a_share_without_patients_is_wilsons_and_with_them_is_wider() -> None:
    right = np.repeat([1.0, 0.0, 1.0, 1.0], 10)
    plain, wide = share(right), share(right, np.repeat(np.arange(4), 10))
    assert (plain.low, plain.high) == wilson(0.75, 40)
    assert (wide.low, wide.high) == pytest.approx(wilson(0.75, 3), abs=0.02)  # 4 patients are all that is there
    sure = share(np.ones(40), np.repeat(np.arange(4), 10))
    assert (sure.low, sure.high) == wilson(1.0, 4)
    assert np.isnan(share(np.zeros(0)).value)


def test_likelihood_ratios_and_predictive_values_are_the_textbooks() -> None:
    """Simel et al. (1991), and Bayes' rule on counts at the prevalence of the table."""
    table = np.array([[90, 10], [20, 180]])  # with the finding: called, not called; without it likewise
    target = np.repeat([True, True, False, False], table.reshape(-1))
    yes = np.repeat([1.0, 0.0, 1.0, 0.0], table.reshape(-1))
    rates = two_rates(yes, target)
    (tn, fp), (fn, tp) = confusion_matrix(target, yes)
    assert (rates.sensitivity.value, rates.specificity.value) == (tp / (tp + fn), tn / (tn + fp))
    found = ratios(rates, 100 / 300)
    assert found.lr_positive.value == pytest.approx(9.0) and found.lr_negative.value == pytest.approx(0.1 / 0.9)
    half = 1.96 * np.sqrt(1 / 90 - 1 / 100 + 1 / 20 - 1 / 200)
    assert found.lr_positive.low == pytest.approx(9 * np.exp(-half), rel=0.01)  # n, not n - 1
    assert found.ppv.value == pytest.approx(90 / 110) and found.npv.value == pytest.approx(180 / 190)
    assert found.ppv.low < 90 / 110 < found.ppv.high and found.npv.low < 180 / 190 < found.npv.high
    rare = ratios(rates, 0.01)
    assert rare.ppv.value == pytest.approx(0.9 * 0.01 / (0.9 * 0.01 + 0.1 * 0.99))
    never = ratios(two_rates(target.astype(float), target), 0.5)
    assert never.lr_positive.value == float("inf") and never.ppv.value == 1.0 and np.isnan(never.ppv.low)


def test_resamples_draw_whole_patients_and_keep_classes_without_them() -> None:
    _, labels, patients = clustered(30, 8)
    drawn = resamples(labels, patients, 1, 50)
    for who in range(30):
        assert (drawn[patients == who] == drawn[patients == who][0]).all()
    first = [drawn[patients == who][0] for who in range(30)]
    np.testing.assert_array_equal(np.sum(first, axis=0), 30)
    by_class = resamples(labels, None, 1, 50)
    for kind in (0, 1):
        np.testing.assert_array_equal(by_class[labels == kind].sum(0), (labels == kind).sum())


def test_what_a_test_set_resolves_is_statsmodels_power_of_a_z_test() -> None:
    from statsmodels.stats.power import NormalIndPower

    effect = resolvable(0.05)
    assert effect == pytest.approx(0.05 * (1.959964 + 0.841621), rel=1e-6)
    power = NormalIndPower().power(effect / (0.05 * 10), 100, 0.05, ratio=0)  # one sample of 100, sd 0.05 * sqrt(100)
    assert power == pytest.approx(0.8, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [AUC, ACC], ids=["auc", "acc"])
def test_false_alarms_of_clustered_comparisons_stay_at_5_percent(metric) -> None:  # type: ignore[no-untyped-def]
    """Two equal models on 1,000 sets of 40 patients; counting images as independent is wrong more often."""
    of, runs = metric.images, 1_000
    wrong = {"patients": 0, "images": 0}
    for seed in range(runs):
        scores, labels, patients = clustered(40, seed, models=2)
        for name, who in (("patients", patients), ("images", None)):
            samples = [sample(of, [s], labels, who) for s in scores]
            wrong[name] += contrast(samples, groups_of(of, labels)).p_values()[0, 1] < 0.05
    assert wrong["patients"] <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5
    assert wrong["images"] > 0.08 * runs

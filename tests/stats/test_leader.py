"""Comparisons with the leader against Student's test, hand-made corrections, and DeLong's variance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from bench.metrics.one_vs_rest import strata
from bench.metrics.registry import AUC
from bench.stats.leader import against_leader, selected_leader
from bench.stats.separation import Sample, contrast, estimates, mean_contrast, mean_estimate
from bench.stats.separation import sample as sample_of

STEADY = np.zeros(10)


def of_seeds(*values: tuple[float, ...]):
    return contrast([Sample(v, STEADY) for v in values], STEADY)


def test_two_models_are_students_test():
    values = ((0.86, 0.88, 0.90), (0.93, 0.95, 0.97))
    expected = stats.ttest_ind(values[0], values[1])
    found = against_leader(("a", "b"), of_seeds(*values))
    assert found.leader == "b" and found.comparisons == 1 and found.retrained
    only = found.of("a")
    assert only is not None and found.of("b") is None and found.worse == ("a",)
    assert only.difference == pytest.approx(-0.07)
    assert only.p == only.p_corrected == pytest.approx(expected.pvalue, rel=1e-9)
    bounds = expected.confidence_interval()
    assert (only.low, only.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    assert only.training == pytest.approx(1.0)
    assert only.reason == ""


def test_the_smallest_p_counts_once_for_each_pair_of_models_still_in_question():
    p = np.array([0.2, 0.001, 0.04, 0.9])
    assert selected_leader(p) == pytest.approx([0.6, 0.01, 0.24, 0.9])  # x 3, 10, 6, 1
    assert selected_leader(p, tables=3) == pytest.approx([1.0, 0.03, 0.72, 1.0])
    assert selected_leader(np.array([0.03])) == pytest.approx([0.03])  # of two models nothing else could have led
    assert len(selected_leader(np.array([]))) == 0


@pytest.mark.parametrize("models", [2, 3, 8, 15])
def test_equal_models_of_a_large_test_set_are_rarely_called_worse(models):
    """The largest of all differences is a range: its closed form says how often the correction errs."""

    def errs(factor: float) -> float:
        return float(stats.studentized_range.sf(stats.norm.isf(0.05 / factor / 2) * 2**0.5, models, np.inf))

    assert selected_leader(np.full(models - 1, 1e-9))[0] == pytest.approx(1e-9 * models * (models - 1) / 2)
    assert 0.03 < errs(models * (models - 1) / 2) < 0.0501
    if models == 8:
        assert errs(models - 1) > 0.12  # Holm's own factor, for a leader that was known beforehand


def test_reasons_say_what_stands_against_a_claim():
    pairs = of_seeds((0.95, 0.96, 0.97), (0.90, 0.96, 0.98), (0.93, 0.94, 0.95), (0.5, 0.51, 0.52))
    found = against_leader(tuple("abcd"), pairs)
    assert found.worse == ("d",)
    for model in "bc":
        one = found.of(model)
        assert one is not None and not one.worse and one.low < 0 < one.high
        assert "the 95 % interval of the difference" in one.reason and "contains 0" in one.reason
        assert one.reason.endswith("trainings are 100 % of its variance: more seeds would help most")
    level = against_leader(("a", "b"), of_seeds((0.8, 0.9), (0.8, 0.9)))
    assert level.leader == "a" and level.others[0].reason == "its figure equals the leader's"
    p = np.array([[1.0, 0.02, 0.04], [0.02, 1.0, 1.0], [0.04, 1.0, 1.0]])
    corrected = against_leader(tuple("abc"), of_seeds((0.9, 0.92), (0.8, 0.82), (0.7, 0.72)), p)
    assert [o.p_corrected for o in corrected.others] == pytest.approx([0.06, 0.06])
    assert corrected.others[0].reason.startswith("p = 0.02 by itself, 0.06 corrected for 2 comparisons; ")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 models, but pairs of shape"):
        against_leader(tuple("abc"), of_seeds((0.9, 0.92), (0.8, 0.82)))


def test_one_model_has_nothing_to_be_compared_with():
    assert against_leader(("a",), of_seeds((0.9, 0.92))).others == ()


# --- one interval with both variances ------------------------------------------------------------------------------

LABELS = (np.arange(156) < 114).astype(int)


def scores_of(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=len(LABELS))
    return 1 / (1 + np.exp(-(1.5 * LABELS + noise)))


def test_of_one_training_it_is_delongs_variance_on_the_scale_of_log_odds():
    scores = scores_of(0)
    wins = (scores[LABELS == 1][:, None] > scores[LABELS == 0]).astype(float)
    variance = wins.mean(1).var(ddof=1) / 114 + wins.mean(0).var(ddof=1) / 42
    (found,) = estimates([sample_of(AUC.images, [scores], LABELS)], strata(LABELS))
    assert found.variance == pytest.approx(variance, rel=1e-9)
    low, high = found.interval()
    area = wins.mean()
    half = 1.96 * variance**0.5 / (area * (1 - area))
    assert (low, high) == pytest.approx(
        (special.expit(special.logit(area) - half), special.expit(special.logit(area) + half)), abs=0.002
    )


def test_trainings_widen_it_and_without_images_it_is_students():
    values = (0.80, 0.84, 0.88)
    (found,) = estimates([Sample(values, STEADY)], STEADY)
    assert found.variance == pytest.approx(np.var(values, ddof=1) / 3)
    half = stats.t(2).ppf(0.975) * found.variance**0.5 / (0.84 * 0.16)
    assert found.interval()[1] == pytest.approx(special.expit(special.logit(0.84) + half))
    once = [sample_of(AUC.images, [scores_of(s)], LABELS) for s in (0, 1)]
    both = sample_of(AUC.images, [scores_of(0), scores_of(1)], LABELS)
    (alone,) = estimates([once[0]], strata(LABELS))
    beside = estimates([once[0], both], strata(LABELS))[0]
    assert beside.variance == pytest.approx(alone.variance + np.var(both.values, ddof=1))


def test_values_at_the_edge_and_beyond_it():
    (perfect,) = estimates([Sample((1.0,), STEADY)], STEADY)
    assert perfect.interval() == (1.0, 1.0)
    (error,) = estimates([Sample((-2.0, -2.4), STEADY)], STEADY)
    assert error.interval() == pytest.approx(stats.t.interval(0.95, 1, -2.2, 0.2), rel=1e-9)


def test_means_over_datasets_add_their_variances():
    one, two = (estimates([Sample(v, STEADY)], STEADY)[0] for v in ((0.8, 0.9), (0.6, 0.64)))
    found = mean_estimate([one, two])
    assert found.value == pytest.approx(0.735)
    assert found.variance == pytest.approx((one.variance + two.variance) / 4)
    pairs = mean_contrast([of_seeds((0.8, 0.9), (0.7, 0.9)), of_seeds((0.6, 0.64), (0.5, 0.6))])
    assert pairs.training == pytest.approx(pairs.variance)

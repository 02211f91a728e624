"""McNemar's and Holm's tests against statsmodels and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from bench.stats.paired import EXACT_PAIRS, holm, mcnemar, mcnemar_worse


@pytest.mark.parametrize(("only_a", "only_b", "both"), [(3, 11, 80), (0, 6, 30), (7, 7, 5), (40, 80, 100)])
def test_mcnemar_is_statsmodels_exact_test(only_a: int, only_b: int, both: int):
    from statsmodels.stats.contingency_tables import mcnemar as reference

    a = np.array([1] * only_a + [0] * only_b + [1] * both)
    b = np.array([0] * only_a + [1] * only_b + [1] * both)
    assert mcnemar(a, b) == pytest.approx(reference([[both, only_a], [only_b, 0]], exact=True).pvalue, rel=1e-9)


def test_mcnemar_of_many_pairs_is_statsmodels_corrected_chi_square():
    from statsmodels.stats.contingency_tables import mcnemar as reference

    only_a, only_b = EXACT_PAIRS // 2 - 40, EXACT_PAIRS // 2 + 41
    a, b = np.repeat([1, 0], [only_a, only_b]), np.repeat([0, 1], [only_a, only_b])
    expected = reference([[0, only_a], [only_b, 0]], exact=False, correction=True).pvalue
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(np.ones(5), np.ones(5)) == 1.0
    assert mcnemar(np.zeros(6), np.ones(6)) == pytest.approx(2 / 2**6)
    assert mcnemar_worse(0, 6) == pytest.approx(1 / 2**6)
    assert mcnemar_worse(0, 0) == 1.0


def test_mcnemar_says_what_does_not_fit():
    with pytest.raises(ValueError, match="2 answers against 1"):
        mcnemar(np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="right or wrong"):
        mcnemar(np.array([0.5, 1]), np.ones(2))


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(40) ** 4
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])  # by hand
    np.testing.assert_array_equal(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert len(holm([])) == 0

"""Friedman, Nemenyi, tie groups and rank intervals against scipy, scikit-posthocs, networkx and Demsar's tables."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scikit_posthocs
from scipy import stats

from bench.stats import ranking
from bench.stats.ranking import friedman, letters, rank_intervals, tie_groups


def scores_of(datasets: int, models: int, seed: int, decimals: int = 8) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(datasets, models)) + np.linspace(0, 1.5, models)).round(decimals)


@pytest.mark.parametrize(("datasets", "models", "decimals"), [(5, 3, 8), (12, 13, 8), (8, 5, 0), (30, 4, 1)])
def test_friedman_is_scipys_and_nemenyi_scikit_posthocs(datasets: int, models: int, decimals: int):
    scores = scores_of(datasets, models, datasets, decimals)
    found = friedman(scores)
    expected = stats.friedmanchisquare(*scores.T)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    np.testing.assert_allclose(found.mean_ranks, stats.rankdata(-scores, axis=1).mean(0))
    np.testing.assert_allclose(found.pairs, scikit_posthocs.posthoc_nemenyi_friedman(scores).to_numpy(), atol=2e-4)


@pytest.mark.parametrize(("models", "q"), [(3, 2.343), (5, 2.728), (8, 3.031), (10, 3.164)])
def test_critical_values_are_demsars(models: int, q: float):
    """Demsar 2006, table 5 (a): the critical difference of mean ranks (the table cuts its last digit)."""
    found = friedman(scores_of(14, models, 0)).critical_difference
    assert found == pytest.approx(q * np.sqrt(models * (models + 1) / (6 * 14)), rel=1e-3)


def test_critical_difference_of_demsars_example():
    """Four classifiers on 14 datasets: CD 1.25 at 5 % (Demsar 2006, section 3.2.4)."""
    assert friedman(scores_of(14, 4, 0)).critical_difference == pytest.approx(1.25, abs=0.005)


def test_nothing_differs_where_all_are_equal():
    found = friedman(np.ones((6, 4)))
    assert (found.statistic, found.p) == (0.0, 1.0)
    assert not found.better.any()
    assert set(found.mean_ranks) == {2.5}


@pytest.mark.parametrize("scores", [np.ones((1, 4)), np.ones((5, 2)), np.full((5, 4), np.nan)])
def test_what_cannot_be_ranked_is_an_error(scores: np.ndarray):
    with pytest.raises(ValueError, match="Friedman's test needs"):
        friedman(scores)


def test_a_clear_order_over_many_datasets_is_significant():
    found = friedman(np.arange(40.0)[:, None] + np.array([3.0, 2.0, 1.0]))
    assert found.better.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    # Two datasets prove nothing of three models, however clear: the largest chi-square, 4, has p = 0.135.
    assert not friedman(np.array([[3.0, 2.0, 1.0]] * 2)).better.any()


@pytest.mark.parametrize("density", [0.1, 0.4, 0.8])
def test_tie_groups_are_networkxs_maximal_cliques(density: float):
    for seed in range(10):
        generator = np.random.default_rng(seed)
        apart = np.triu(generator.random((9, 9)) < density, 1)
        alike = networkx.from_numpy_array(~(apart | apart.T) & ~np.eye(9, dtype=bool))
        expected = sorted(tuple(sorted(clique)) for clique in networkx.find_cliques(alike))
        found = tie_groups(apart)
        assert found is not None
        assert list(found) == expected
        names = letters(found, 9)
        for i in range(9):  # a shared letter says exactly that two are not told apart
            for j in range(i):
                assert bool(set(names[i]) & set(names[j])) == (not (apart | apart.T)[i, j])


def test_a_model_can_be_in_two_groups():
    apart = np.zeros((3, 3), dtype=bool)
    apart[0, 2] = True
    assert tie_groups(apart) == ((0, 1), (1, 2))
    assert letters(((0, 1), (1, 2)), 3) == ["a", "ab", "b"]
    assert rank_intervals(apart) == [(1, 2), (1, 3), (2, 3)]


def test_a_tangle_has_no_groups_and_many_groups_have_numbers():
    apart = np.zeros((60, 60), dtype=bool)
    apart[np.arange(0, 60, 2), np.arange(1, 60, 2)] = True  # 30 pairs apart: 2**30 groups
    assert tie_groups(apart) is None
    assert letters([(i,) for i in range(27)], 27)[26] == "27"
    assert tie_groups(np.zeros((1, 1), dtype=bool)) == ((0,),)
    assert ranking.MAX_GROUPS >= 26

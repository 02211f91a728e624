"""`bench.stats` as others use it: equal to scikit-learn, statsmodels, scipy and published figures; its page runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, friedmanchisquare
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as others_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from bench import stats

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stats.md"

# 43 patients of DeLong, DeLong and Clarke-Pearson (1988), as SAS/STAT's example "Comparing Receiver Operating
# Characteristic Curves" has them: albumin, total protein, K-G score (low is good), whether surgery helped.
OVARIAN = np.array(
    """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
    3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
    4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
    4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
    2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""".split(),  # noqa: SIM905
    dtype=float,
).reshape(-1, 4)


@pytest.mark.parametrize(
    ("column", "area", "error", "difference", "of_difference", "chi_square", "p"),
    [(0, 0.7366, 0.0927, 0.0108, 0.0953, 0.0127, 0.9102), (1, 0.6478, 0.1000, -0.0780, 0.1046, 0.5554, 0.4561)],
)
def test_delong_gives_the_published_figures(column, area, error, difference, of_difference, chi_square, p):
    found = stats.delong(OVARIAN[:, 3].astype(int), OVARIAN[:, column], -OVARIAN[:, 2])
    assert (round(found.auc_b, 4), round(found.variance_b**0.5, 4)) == (0.7258, 0.1028)  # K-G score
    assert (round(found.auc_a, 4), round(found.variance_a**0.5, 4)) == (area, error)
    spread = (found.variance_a + found.variance_b - 2 * found.covariance) ** 0.5
    assert (round(found.auc_a - found.auc_b, 4), round(spread, 4)) == (difference, of_difference)
    assert (round(found.z**2, 4), round(found.p, 4)) == (chi_square, p)


def data(n=120, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = rng.normal(0, 1, (3, n, classes))
    logits[:, np.arange(n), labels] += np.array([1.5, 1.0, 0.2])[:, None]
    powers = np.exp(logits)
    return labels, powers / powers.sum(2, keepdims=True)


def test_figures_are_scikit_learns():
    labels, scores = data()
    found = stats.compare(labels, dict(zip("abc", scores, strict=True)))
    for name, s in zip("abc", scores, strict=True):
        assert found.models[name].value == pytest.approx(roc_auc_score(labels, s[:, 1]), abs=1e-12)
        assert stats.brier(s, labels) == pytest.approx(brier_score_loss(labels, s[:, 1]))
    labels, scores = data(classes=4)
    found = stats.compare(labels, dict(zip("abc", scores, strict=True)))
    assert found.models["a"].value == pytest.approx(roc_auc_score(labels, scores[0], multi_class="ovr"), abs=1e-12)


def test_accuracies_are_mcnemars_and_holms():
    labels, scores = data()
    right = [s.argmax(1) == labels for s in scores]
    found = stats.compare(labels, dict(zip("abc", scores, strict=True)), metric="acc")
    p = []
    for pair, (i, j) in zip(found.pairs, ((0, 1), (0, 2), (1, 2)), strict=True):
        table = [[(right[i] & right[j]).sum(), (right[i] & ~right[j]).sum()],
                 [(~right[i] & right[j]).sum(), (~right[i] & ~right[j]).sum()]]  # fmt: skip
        p.append(others_mcnemar(table, exact=True).pvalue)
        assert pair.p == pytest.approx(p[-1]) == stats.mcnemar(right[i], right[j])
        assert pair.p == pytest.approx(binomtest(int(table[0][1]), int(table[0][1] + table[1][0])).pvalue)
        assert pair.difference == pytest.approx(right[i].mean() - right[j].mean())
    assert [pair.p_corrected for pair in found.pairs] == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_shares_ranks_and_bootstrap_are_others():
    assert stats.wilson(17 / 40, 40) == pytest.approx(proportion_confint(17, 40, method="wilson"))
    table = np.random.default_rng(1).random((8, 4))
    assert stats.friedman(table).p == pytest.approx(friedmanchisquare(*table.T).pvalue)
    labels, scores = data(n=400)
    drawn, exact = stats.bootstrap_interval(labels, scores[0], n=4000), stats.delong(labels, scores[0], scores[1])
    assert drawn.standard_error == pytest.approx(exact.variance_a**0.5, rel=0.05)
    assert drawn.low < exact.auc_a < drawn.high and drawn.value == pytest.approx(exact.auc_a)


def test_trainings_widen_the_interval():
    labels, scores = data()
    once = stats.compare(labels, {"a": scores[0], "b": scores[2]})
    again = stats.compare(labels, {"a": [scores[0], scores[1]], "b": [scores[2], scores[1]]})
    assert again.retrained and not once.retrained
    assert again.models["a"].standard_error > once.models["a"].standard_error


def test_images_of_one_patient_count_together():
    """Every image twice: n images tell as much as they did, and the plain test is fooled."""
    labels, scores = data()
    twice = [np.repeat(s, 2, axis=0) for s in scores]
    doubled, patients = np.repeat(labels, 2), np.repeat(np.arange(len(labels)), 2)
    right = stats.delong(labels, scores[0], scores[2])
    fooled = stats.delong(doubled, twice[0], twice[2])
    found = stats.delong(doubled, twice[0], twice[2], patients)
    assert found.variance_a == pytest.approx(right.variance_a, rel=0.02) and fooled.variance_a < 0.6 * right.variance_a
    assert found.p == pytest.approx(right.p, rel=0.1) and fooled.p < right.p
    clustered = stats.bootstrap_interval(doubled, twice[0], n=2000, patients=patients)
    plain = stats.bootstrap_interval(labels, scores[0], n=2000)
    assert clustered.standard_error == pytest.approx(plain.standard_error, rel=0.1)
    wide = stats.compare(doubled, {"a": twice[0], "c": twice[2]}, patients=patients)
    assert wide.models["a"].standard_error == pytest.approx(right.variance_a**0.5, rel=0.02)
    answers = scores[0].argmax(1) == labels
    assert stats.share(np.repeat(answers, 2).astype(float), patients).low == pytest.approx(
        stats.wilson(answers.mean(), len(answers))[0], abs=0.003
    )


def test_net_benefit_is_vickers_and_elkins():
    """Treating all whose chance is at least 20 %: true positives less a quarter of the false ones, a patient."""
    labels, scores = data()
    p, yes = scores[0][:, 1], scores[0][:, 1] >= 0.2
    by_hand = (yes & (labels == 1)).mean() - (yes & (labels == 0)).mean() * 0.2 / 0.8
    assert stats.net_benefit(p, labels == 1, np.array([0.2])) == pytest.approx(by_hand)
    assert stats.treat_all(0.5, np.array([0.2])) == pytest.approx(0.5 - 0.5 * 0.25)


def test_what_does_not_fit_is_refused():
    labels, scores = data()
    with pytest.raises(ValueError, match="labels are 0 and 1, and both must occur"):
        stats.delong(labels * 0, scores[0], scores[1])
    with pytest.raises(ValueError, match=r"scores of two classes, \(N,\) or \(N, 2\); compare\(\) takes more"):
        stats.delong(labels, np.ones((120, 3)), scores[1])
    with pytest.raises(ValueError, match="119 rows of scores for 120 labels"):
        stats.delong(labels, scores[0][1:], scores[1])
    with pytest.raises(ValueError, match="two models or more"):
        stats.compare(labels, {"a": scores[0]})
    with pytest.raises(ValueError, match="metric 'f1': over images are tested auc, acc"):
        stats.compare(labels, {"a": scores[0], "b": scores[1]}, metric="f1")


def test_every_public_name_is_documented_and_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    for name in stats.__all__:
        assert (getattr(stats, name).__doc__ or "").strip(), name
        if name[0].islower():
            assert f"`{name}" in page, name


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["found"].leader.worse == ("fair",)
    assert round(names["found"].models["good"].value, 3) == 0.938  # as it says

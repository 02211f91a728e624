"""`bench claims`: closed forms, published figures, simulation of the formula, tables as people write them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, norm

from bench.claims.command import run_claims
from bench.claims.figures import read_figures
from bench.claims.judge import judge, measure
from bench.claims.probability import auc_variance, false_acc, false_auc, largest_phi, measured_phi
from bench.cli.main import main
from bench.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_a_false_claim_is_the_posterior_of_mcnemars_table():
    # 0.93 against 0.87 on 100 images, of which both are right on 85 and both wrong on 5: 8 wins to 2.
    a, b, both = 0.93, 0.87, 0.85
    phi = (both - a * b) / np.sqrt(a * (1 - a) * b * (1 - b))
    assert false_acc(a, b, 100, phi) == pytest.approx(beta.cdf(0.5, 8.5, 2.5))
    assert false_acc(0.9, 0.9, 100, 0.4) == pytest.approx(0.5)
    # Many images: a paired z test.
    n, a, b, phi = 100_000, 0.91, 0.907, 0.5
    spread = np.sqrt(a * (1 - a) + b * (1 - b) - 2 * phi * np.sqrt(a * (1 - a) * b * (1 - b)) - (a - b) ** 2) / n**0.5
    assert false_acc(a, b, n, phi) == pytest.approx(norm.sf((a - b) / np.sqrt(spread**2)), rel=0.02)
    # Training noise only adds doubt, and swamps the images in the end.
    assert false_acc(a, b, n, phi, 1e-5) == pytest.approx(norm.sf(0.003 / np.sqrt(spread**2 + 1e-5)), rel=0.02)
    assert false_acc(a, b, n, phi) < false_acc(a, b, n, phi, 1e-5) < 0.5


def test_correlation_has_a_largest_value():
    """All images that the better model misses are missed by the other too."""
    a, b = np.arange(1000) < 900, np.arange(1000) < 800
    assert largest_phi(0.9, 0.8) == pytest.approx(np.corrcoef(a, b)[0, 1]) == pytest.approx(measured_phi(a, b))
    assert false_acc(0.9, 0.8, 1000, 0.99) == false_acc(0.9, 0.8, 1000, largest_phi(0.9, 0.8))
    assert np.isnan(measured_phi(a, np.ones(1000)))


def test_auc_variance_is_hanley_and_mcneils():
    """Their own example (Radiology 143:29, 1982): 51 abnormal and 58 normal, area 0.893, standard error 0.032."""
    assert auc_variance(0.893, 51, 58) ** 0.5 == pytest.approx(0.032, abs=7e-4)
    assert false_auc(0.9, 0.9, 50, 50, 0.5) == pytest.approx(0.5)
    assert false_auc(0.9, 0.85, 50, 50, 0.8) < false_auc(0.9, 0.85, 50, 50, 0.2) < 0.5


def tables(rng, a, b, phi, n):
    """Counts (right both, only first, only second, neither) of n images for arrays of accuracies."""
    shared = np.minimum(phi * np.sqrt(a * (1 - a) * b * (1 - b)), np.minimum(a, b) - a * b)
    both = a * b + shared
    return rng.multinomial(n, np.stack([both, a - both, b - both, 1 - a - b + both], axis=-1).clip(0))


@pytest.mark.parametrize(("n", "phi"), [(156, 0.4), (600, 0.6)])
def test_simulated_claims_are_false_as_often_as_said(n, phi):
    """Pairs of models that differ or not, by a prior; of published claims with P(false) near p, a share p is false."""
    rng = np.random.default_rng(0)
    k = 30_000
    b = rng.uniform(0.75, 0.9, k)
    a = b + rng.uniform(-0.1, 0.1, k)  # flat where the test set can see
    counts = tables(rng, a, b, phi, n)
    first, second = (counts[:, 0] + counts[:, 1]) / n, (counts[:, 0] + counts[:, 2]) / n
    claimed = np.flatnonzero(first > second)
    said = np.array([false_acc(first[i], second[i], n, phi) for i in claimed])
    false = a[claimed] <= b[claimed]
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.51)):
        at = (said >= low) & (said < high)
        assert at.sum() > 300
        assert false[at].mean() == pytest.approx(said[at].mean(), abs=0.045), (low, high)


def test_simulated_papers_without_any_improvement_seldom_have_a_supported_claim(tmp_path):
    """Ten datasets, four equal baselines each: with the true correlation at most 5 % of papers; more below it."""
    rng, n, phi, found = np.random.default_rng(1), 500, 0.5, 0
    papers = 150
    for _ in range(papers):
        lines = ["dataset,model,acc,n_test,proposed"]
        for d in range(10):
            counts = tables(rng, np.full(4, 0.85), np.full(4, 0.85), phi, n)
            own = (counts[0, 0] + counts[0, 1]) / n
            lines.append(f"d{d},new,{own},{n},yes")
            lines += [f"d{d},old{i},{own + (counts[i, 2] - counts[i, 1]) / n},{n}," for i in range(4)]
        (tmp_path / "p.csv").write_text("\n".join(lines))
        claims = run_claims(tmp_path / "p.csv", phi=(phi, phi))
        found += any(claim.outcome == "supported" for claim in claims)
    assert found / papers <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / papers)


def test_medmamba_over_the_baselines_of_medmnist(tmp_path, capsys):
    assert main(["claims", "--json", str(tmp_path / "c.json"), "--out", str(tmp_path / "c.md")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    accs = [c for c in found["claims"] if c["metric"] == "acc"]
    assert len(accs) == 70  # ten sets, seven baselines; five of them have no better ACC
    claimed = [c for c in accs if c["outcome"] in ("supported", "unsupported")]
    supported = [sum(c["p_false_corrected"][end] < 0.05 for c in claimed) for end in (0, 1)]
    assert (len(claimed), supported) == (65, [42, 50])
    assert not [c for c in claimed if c["dataset"] == "breastmnist" and c["outcome"] == "supported"]
    assert all(c["protocol_differs"] for c in accs)
    assert "ACC: 42 to 50 of 65 supported" in capsys.readouterr().out
    page = (tmp_path / "c.md").read_text()
    assert "Claims of MedMamba" in page and "| not comparable" not in page
    assert "56 comparisons not in the table: AUC needs the number of positive images" in page
    assert "42 to 50 of 65" in (ROOT / "docs/claims.md").read_text(encoding="utf-8")


def test_correlation_is_measured_where_both_are_trained(tmp_path):
    runs = [ROOT / "results/breast-retina"]
    found = measure(runs)
    low, high = found["breastmnist", frozenset({"medmamba_tiny", "resnet18"})]
    assert 0 < low < high < 0.8
    claims = run_claims(None, measured=runs)
    own = [c for c in claims if c.measured]
    assert {(c.proposed.dataset, c.other.ours) for c in own} >= {
        ("breastmnist", "resnet18"),
        ("retinamnist", "resnet18"),
    }
    assert all(c.phi == found[c.proposed.dataset, frozenset({c.proposed.ours, c.other.ours})] for c in own)


TABLE = """Dataset,Method,Accuracy,AUROC,N,Positives,acc_std,runs,split,proposed
breast,New,93.0%,0.95,156,114,1.0,3,official,yes
breast,Old,87.0,0.90,156,114,2.0,3,official,
breast,Odd,80.0,,100,,,,own,
other,New,91.0,,,,,,official,yes
other,Old,90.0,,,,,,official,
third,New,90.0,,5000,,,,official,yes
third,Old,95.0,,5000,,,,official,
"""


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    claims = {(c.proposed.dataset, c.other.model, c.metric): c for c in run_claims(tmp_path / "t.csv")}
    first = claims["breast", "Old", "acc"]
    assert first.proposed.acc == pytest.approx(0.93) and first.proposed.acc_spread == pytest.approx(0.01)
    training = (0.01**2 + 0.02**2) / 3
    assert first.p[0] == pytest.approx(false_acc(0.93, 0.87, 156, 0.2, training))
    assert claims["breast", "Odd", "acc"].reason == "different test sets: 156 and 100 images"
    assert claims["breast", "Odd", "auc"].reason == "Odd has no AUC"
    assert claims["other", "Old", "acc"].reason.startswith("the number of test images is not known")
    assert claims["third", "Old", "acc"].outcome == "opposite"
    assert claims["breast", "Odd", "acc"].differs == ("split official against own",)
    assert run_claims(tmp_path / "t.csv", model="Old", over="New")[-1].outcome == "supported"


def test_what_cannot_be_judged_says_why(tmp_path, capsys):
    def refused(text: str, message: str, *more: str) -> None:
        (tmp_path / "t.csv").write_text(text)
        assert main(["claims", str(tmp_path / "t.csv"), *more]) == 2
        assert message in capsys.readouterr().err

    refused("", "no column dataset, model")
    refused("dataset,model,f1\n", "no column acc or auc; it has dataset, model, f1")
    refused("dataset,model,acc\n", "no rows below the header")
    refused("dataset,model,acc\nd,m,high\n", "t.csv, line 2: acc 'high' is not a number")
    refused("dataset,model,acc\nd,m,930\n", "line 2: acc 930 is neither a share (0 to 1) nor a percentage (to 100)")
    refused("dataset,model,acc,n_test\nd,m,0.9,1.5\n", "line 2: n_test 1.5 must be a whole number, 1 or more")
    refused(
        "dataset,model,acc\nd,m,0.9\n",
        "no row says which model is claimed better; add --model NAME, or a column `proposed`",
    )
    refused(TABLE, "no model 'Ne' (did you mean 'New'?)", "--model", "Ne")
    refused(TABLE, "no other model 'x' to compare with", "--over", "x")
    refused("dataset,model,acc,proposed\na,m,0.9,yes\nb,n,0.9,\n", "the models have no dataset in common")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_figures(tmp_path / "b.csv")
    with pytest.raises(SystemExit):
        main(["claims", "--phi", "0.8,0.2"])
    assert "from low to high" in capsys.readouterr().err
    assert judge([], []) == []

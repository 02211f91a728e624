"""``bench compare``: two runs and two models, against figures computed outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t
from sklearn.metrics import roc_auc_score

from bench.cli.main import main
from bench.report.build import read_report
from bench.report.sections.comparisons import ablations


def scores_of(distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = (np.arange(300) < 120).astype(np.int64)
    z = np.random.default_rng(9).normal(size=300) + np.random.default_rng(seed).normal(size=300)
    return 1 / (1 + np.exp(-z - distance * (labels - 0.5))), labels


def delong(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    """Two-sided p by the double sums of DeLong, DeLong and Clarke-Pearson (1988)."""
    gaps = [(s[labels == 1][:, None] > s[labels == 0]).astype(float) for s in (a, b)]
    gap = gaps[0] - gaps[1]
    variance = gap.mean(1).var(ddof=1) / gap.shape[0] + gap.mean(0).var(ddof=1) / gap.shape[1]
    return float(2 * norm.sf(abs(gap.mean()) / variance**0.5))


def binomial(a: np.ndarray, b: np.ndarray) -> float:
    """McNemar's exact test by scipy."""
    return float(binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue)


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")

    def run(*sides: str) -> tuple[str, dict[str, Any]]:
        assert main(["compare", *sides, "--json", str(tmp_path / "out.json")]) == 0
        return " ".join(capsys.readouterr().out.split()), json.loads((tmp_path / "out.json").read_text())

    return run


def test_two_models_of_one_run(run: Any, compare: Any, tmp_path: Path):
    (a, labels), (b, _) = scores_of(2.5, 1), scores_of(1.2, 2)
    run.accuracy("resnet18", "breastmnist", scores=a, labels=labels)
    run.accuracy("vit", "breastmnist", scores=b, labels=labels)
    run.accuracy("vit", "retinamnist", 0.9, acc=0.9)
    for model, params, speed in (("resnet18", 11_000_000, 200.0), ("vit", 5_500_000, 100.0)):
        run.efficiency(
            model, 64, speed=speed, memory=100.0, params=params, macs_g=0.5, latency_ms_p50=1e3 / speed,
            throughput_images_per_s_rounds=list(speed * np.array([0.99, 1.0, 1.01, 0.995, 1.005, 1.002, 0.998])),
        )  # fmt: skip
    out = run.write(tmp_path / "run")
    text, found = compare(f"{out}:resnet18", f"{out}:vit")
    area, share = found["accuracy"]
    assert area["difference"] == pytest.approx(roc_auc_score(labels, b) - roc_auc_score(labels, a), abs=1e-4)
    # Student's t instead of the normal, and float16: of so small a p, the exponent is compared
    assert np.log(area["p"]) == pytest.approx(np.log(delong(b, a, labels)), rel=0.1)
    assert share["p"] == pytest.approx(binomial((a > 0.5) == labels, (b > 0.5) == labels))
    assert found["efficiency"][0]["throughput_ratio"] == pytest.approx(0.5)
    assert found["efficiency"][0]["latency_ratio"] == pytest.approx(2.0)
    assert "Counts: parameters 11,000,000 → 5,500,000." in text
    assert "only in vit: vit on retinamnist" in text
    assert "lower" in text and "slower" in text


def test_two_runs_seeds_and_repeatability(run: Any, compare: Any, tmp_path: Path):
    labels = scores_of(1, 0)[1]
    runs = [run, type(run)()]
    for which, one in enumerate(runs):
        for seed in range(3):
            one.accuracy(
                "resnet18", "breastmnist", seed=seed, scores=scores_of(1.5, 10 * which + seed)[0], labels=labels
            )
        for i, ratio in enumerate((1.01, 0.98, 1.10)):
            speed = 100.0 * (ratio if which else 1.0)
            one.efficiency(
                "resnet18", 64 * (i + 1), speed=speed, memory=100.0, params=1, macs_g=0.5, noisy=i == 2,
                throughput_images_per_s_rounds=[speed * 0.97, speed, speed * 1.03],
            )  # fmt: skip
    a, b = (one.write(tmp_path / name) for one, name in zip(runs, "ab", strict=True))
    text, found = compare(str(a), str(b))
    # ratios 1.01, 0.98, 1.10: two of three within 3 %, both that are not noisy
    assert "median ratio 1.010, 2 of 3 cells (67%) within 3%" in text
    assert "without the 1 flagged noisy 100%" in text
    assert "Parameters and MACs are equal in all 3 cells." in text
    means = [[np.mean([roc_auc_score(labels, scores_of(1.5, 10 * w + s)[0]) for s in range(3)])] for w in (0, 1)]
    assert found["accuracy"][0]["difference"] == pytest.approx(means[1][0] - means[0][0], abs=1e-4)
    assert found["accuracy"][0]["seeds"] == 3
    assert found["accuracy"][0]["half_width_95"] > 0
    assert "not significant" in text
    same, _ = compare(str(a), str(a))
    assert "median ratio 1.000, 3 of 3 cells (100%) within 3%" in same


def test_accuracy_of_seeds_adds_the_variance_of_training(run: Any, compare: Any, tmp_path: Path):
    """ACC over three seeds: variance over images plus that over seeds, degrees of freedom after Satterthwaite."""
    other, labels = type(run)(), np.repeat([0, 1], 50)
    right = np.ones((2, 3, 100))
    for side, (one, counts) in enumerate(((run, [90, 92, 91]), (other, [84, 88, 83]))):
        for seed, n in enumerate(counts):
            right[side, seed, np.random.default_rng(seed).permutation(100)[n:]] = 0
            scores = np.where(right[side, seed] == 0, 1 - labels, labels) * 0.8 + 0.1
            one.accuracy("resnet18", "breastmnist", seed=seed, scores=scores, labels=labels)
    _, found = compare(str(run.write(tmp_path / "a")), str(other.write(tmp_path / "b")))
    apart = right[1] - right[0]
    of_images, of_seeds = np.var(apart.mean(0), ddof=1) / 100, np.var(apart.mean(1), ddof=1) / 3
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / 99 + of_seeds**2 / 2)
    share = found["accuracy"][1]
    assert share["difference"] == pytest.approx(-18 / 300)
    assert share["p"] == pytest.approx(2 * t.sf(0.06 / np.sqrt(of_images + of_seeds), freedom))
    half = t.ppf(0.975, freedom) * np.sqrt(of_images + of_seeds)
    assert share["half_width_95"] == pytest.approx(half)


def test_other_settings_are_named(run: Any, compare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b, both = type(run)(), type(run)(), tmp_path / "both"
    recipe = {"name": "quick", "epochs": 3, "learning_rate": 0.5, "batch_size": 64}
    for seed in (0, 1):
        a.accuracy("resnet18", "breastmnist", 0.8, acc=0.7, seed=seed)
        b.accuracy("resnet18", "breastmnist", 0.8, acc=0.7, seed=seed, recipe=recipe)
    sides = [str(a.write(tmp_path / "a")), str(b.write(tmp_path / "b"))]
    assert main(["compare", *sides]) == 2
    said = capsys.readouterr().err
    assert f"have no cell in common; {sides[1]} has resnet18 on breastmnist (28→64 px, seed 0) and more with" in said
    assert "with recipe_settings.learning_rate 0.5 instead of 0.001" in said
    for side in (a, b):
        side.efficiency("resnet18", 64, speed=9.0, memory=9.0)
    sides = [str(a.write(tmp_path / "a")), str(b.write(tmp_path / "b"))]
    assert "and more with recipe_settings.learning_rate 0.5 instead of 0.001" in compare(*sides)[0]
    run.accuracy("resnet18", "breastmnist", 0.8, acc=0.7)
    run.accuracy("vit", "breastmnist", 0.8, acc=0.7, resolution=96)
    run.write(both)
    assert main(["compare", f"{both}:resnet18", f"{both}:vit"]) == 2
    assert "with resolution 96 instead of 64" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run.efficiency("resnet18", 64, speed=1.0, memory=1.0)
    out = str(run.write(tmp_path / "run"))
    for sides, message in (
        ((out, f"{out}:resnet18"), "name a model on both sides"),
        ((f"{out}:vit", f"{out}:resnet18"), "has no model 'vit'; it has resnet18"),
        ((out, str(tmp_path / "none")), "is not a run directory"),
    ):
        assert main(["compare", *sides]) == 2
        assert message in capsys.readouterr().err
    other = type(run)()
    other.efficiency("resnet18", 128, speed=1.0, memory=1.0)
    assert main(["compare", out, str(other.write(tmp_path / "other"))]) == 2
    assert "have no cell in common" in capsys.readouterr().err


def test_two_models_are_judged_as_on_their_leaderboard(run: Any, compare: Any, tmp_path: Path):
    """The main column of the board and `compare` never contradict each other, whatever the pair."""
    models = {"lead": 2.6, "near": 2.5, "far": 1.2, "last": 0.4}
    for dataset in ("breastmnist", "retinamnist"):
        for i, (model, distance) in enumerate(models.items()):
            for seed in range(3):
                scores, labels = scores_of(distance, 100 * (dataset == "retinamnist") + 10 * i + seed)
                run.accuracy(model, dataset, seed=seed, scores=scores, labels=labels)
    out = run.write(tmp_path / "run")
    (board,) = read_report(out)[0].boards
    test = board.significance.leader
    assert test is not None and test.leader == "lead" and test.worse == ("far", "last")
    for other in test.others:
        text, found = compare(f"{out}:lead", f"{out}:{other.model}")
        mean = found["accuracy"][0]
        assert mean["where"]["datasets"].startswith("mean over 2 datasets")
        assert (mean["p"], mean["p_corrected"]) == (pytest.approx(other.p), pytest.approx(other.p_corrected))
        assert mean["difference"] == pytest.approx(other.difference)
        assert mean["corrected_for"] == "3 comparisons with the leader"
        assert (other.worse, not other.worse) == (
            "significantly lower" in text,
            f"not significant, {other.reason}" in text,
        )
    (near,) = [other for other in test.others if other.model == "near"]
    for sides, low, high in ((("lead", "near"), near.low, near.high), (("near", "lead"), -near.high, -near.low)):
        text, _ = compare(*(f"{out}:{model}" for model in sides))
        assert f"the 95 % interval of the difference, {low:+.3f} to {high:+.3f}, contains 0" in text
    assert compare(f"{out}:near", f"{out}:far")[1]["accuracy"][0]["corrected_for"] == "6 pairs"
    mean, *rest = compare(f"{out}:far", f"{out}:near")[1]["accuracy"]
    assert mean["difference"] > 0 and {row["metric"] for row in rest} == {"auc", "acc"} and len(rest) == 4


def test_an_ablation_and_its_parent_are_judged_as_in_the_boards_table(run: Any, compare: Any, tmp_path: Path):
    for i, (model, distance) in enumerate((("lead", 3.0), ("net", 2.0), ("net[branch=ssm]", 1.0))):
        for seed in range(2):
            scores, labels = scores_of(distance, 10 * i + seed)
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels)
    out = run.write(tmp_path / "run")
    (one,) = ablations(read_report(out)[0].boards[0])
    found = compare(f"{out}:net", f"{out}:net[branch=ssm]")[1]["accuracy"][0]
    assert (found["difference"], found["p"], found["p_corrected"]) == pytest.approx((one.gap.value, one.gap.p, one.p))
    other = compare(f"{out}:net[branch=ssm]", f"{out}:net")[1]["accuracy"][0]
    assert (other["difference"], other["corrected_for"]) == (pytest.approx(-one.gap.value), "the ablations")

"""Whole boards: what is significant is said, what is not is not, and each further section appears where it should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from bench.report.build import Report, write_boards
from bench.report.sections.accuracy import front
from bench.report.sections.comparisons import parent_of
from tests.report.pages import lines_of, page, section

LABELS = (np.arange(200) < 80).astype(int)


def scores_of(distance: float, *seeds: int) -> np.ndarray:
    shared = np.random.default_rng(1_000 + seeds[0]).normal(size=len(LABELS))
    own = np.random.default_rng([seed + 1 for seed in seeds]).normal(size=len(LABELS))
    return expit(distance * (LABELS - 0.5) + 0.8 * shared + 0.6 * own)


def fill(run: Any, models: dict[str, float], datasets: int, seeds: int = 1, **changes: Any) -> None:
    for d in range(datasets):
        for m, (model, distance) in enumerate(models.items()):
            for seed in range(seeds):
                scores = scores_of(distance, d, m, seed)
                made = run.accuracy(model, f"set{d}", seed=seed, scores=scores, labels=LABELS, **changes)
                run.arrays[made["key"]] |= {"val_scores": scores_of(distance, d, m, seed + 50), "val_labels": LABELS}


def test_groups_ranks_and_datasets_of_a_full_board(run: Any, tmp_path: Path):
    fill(run, {"strong": 4.0, "middle": 1.0, "alike": 1.0, "weak": 0.2}, datasets=5, seeds=3)
    text = page(run, tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    judgement = report.boards[0].significance
    assert judgement.pairs is not None and judgement.pairs.contrast.retrained
    assert judgement.pairs.letters()["strong"] == "a"
    assert judgement.pairs.letters()["middle"] == judgement.pairs.letters()["alike"] == "b"
    assert judgement.pairs.ranks() == {"strong": (1, 1), "middle": (2, 3), "alike": (2, 3), "weak": (4, 4)}
    assert judgement.leader is not None and judgement.leader.comparisons == 3  # the mean alone, with the leader alone
    assert judgement.datasets["auc"]["set0"].comparisons == 3 * 5  # each dataset has a leader, all share the level
    areas = np.array([[row.mean("test_auc") for row in report.rows if row.dataset == f"set{d}"] for d in range(5)])
    assert judgement.friedman is not None
    assert judgement.friedman.statistic == pytest.approx(stats.friedmanchisquare(*areas.T).statistic)
    assert "`strong` ranks first, significantly better than all others: mean AUC over 5 datasets" in text
    assert "on other test images of these classes and after training again (paired by test image" in text
    assert "Would the order hold on other datasets like these 5? Friedman's chi-square is" in text
    board = section(text, "## By dataset")
    assert "sd images" in board and "sd seeds" in board and "seeds 95 %" not in board


def test_one_training_is_no_claim_on_training_again(run: Any, tmp_path: Path):
    fill(run, {"a": 3.0, "b": 0.5}, datasets=2)
    text = page(run, tmp_path)
    assert "single seed: of these trained networks only, as training again was not measured" in text
    assert "AUC 95 % covers test images only (single seed)." in text
    assert "Significantly worse: than `a`, on other test images of these classes;" in text
    assert "Friedman's test needs 5 datasets and 3 models; this table has 2 datasets and 2 models." in text


def test_one_training_beside_several_is_said(run: Any, tmp_path: Path):
    fill(run, {"a": 3.0, "b": 0.5, "c": 0.4}, datasets=2, seeds=2)
    run.records = [r for r in run.records if r["spec"]["model"] != "b" or r["spec"]["seed"] == 0]
    text = page(run, tmp_path)
    assert "single seed, so training again may change the order" in text.split("\n## ")[0]
    assert "for these trained networks only" not in text
    assert "of these trained networks only" not in text
    assert text.count("models trained once are given the spread of the others, which is no measurement") == 3
    assert "By ACC `a` is first and significantly better than `b` and `c` (McNemar, exact, for two of one tr" in text


def test_too_few_test_images_are_not_judged(run: Any, tmp_path: Path):
    labels = np.array([1] * 4 + [0] * 60)
    for seed, model in enumerate(("a", "b")):
        scores = np.random.default_rng(seed).random(64)
        run.accuracy(model, "tiny", scores=scores, labels=labels)
    text = page(run, tmp_path)
    assert "`tiny` is not judged: its rarest class has 4 test images, and 5 are the least." in text
    assert "| significantly worse |" not in text
    assert "`b` ranks first, not tested for significance" in text.split("\n## ")[0]


def test_the_page_is_short_at_the_top_and_well_formed(run: Any, tmp_path: Path):
    fill(run, {"a": 3.0, "b": 0.5, "c": 0.6}, datasets=3)
    fill(run, {"a": 3.0, "b": 0.5}, datasets=1, resolution=128)
    run.accuracy("a", "set0", status="failed", reason="it fell over", seed=9)
    text = page(run, tmp_path)
    top = text.split("\n## ")[0]
    assert 3 <= sum(line.startswith("- ") for line in top.splitlines()) <= 6
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>") > 3
    for after in re.findall(r"</summary>\n(.*)", text):
        assert after == "", "GitHub reads Markdown within <details> only after an empty line"
    inner = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert len(inner.splitlines()) < 80
    open_table = section(text, "## Accuracy: ").split("<details>")[0].splitlines()
    widths = {line.count("|") - line.count("\\|") for line in open_table if line[:1] == "|"}
    assert len(widths) == 1


def test_clinical_columns_state_their_operating_point(run: Any, tmp_path: Path):
    fill(run, {"a": 2.0, "b": 1.0}, datasets=1)
    report = Report(run.write(tmp_path) and run.records, {}, tmp_path / "predictions")
    text = page(run, tmp_path)
    assert "At Youden: the score with the highest sensitivity + specificity on validation" in text
    row = next(r for r in report.rows if r.model == "a")
    (found,) = row.clinical
    scores, val = scores_of(2.0, 0, 0, 0), scores_of(2.0, 0, 0, 50)
    assert found.sensitivity[0] == (scores[LABELS == 1] >= found.thresholds[0]).mean()
    assert found.thresholds[0] in val
    shown = next(line for line in lines_of(section(text, "## By dataset")) if line[0] == "a")
    assert shown[1:3] == [f"{found.thresholds[0]:.3f}", f"{found.sensitivity[0]:.3f}"]


def test_operating_points_of_several_trainings_are_means(run: Any, tmp_path: Path):
    fill(run, {"a": 2.0, "b": 1.0}, datasets=1, seeds=2)
    said = "Over several trainings all are means."
    assert said in page(run, tmp_path)
    run.records = [r for r in run.records if r["spec"]["seed"] == 0]
    assert said not in page(run, tmp_path)


def test_an_interval_of_no_width_is_no_certainty(run: Any, tmp_path: Path):
    fill(run, {"a": 0.5, "b": 0.5}, datasets=1)
    said = "An interval of no width says only that these images never contradict the model"
    assert said not in page(run, tmp_path)
    run.accuracy("perfect", "set0", scores=0.2 + 0.6 * LABELS, labels=LABELS)
    assert said in page(run, tmp_path)


def test_several_classes_have_a_table_of_each(run: Any, tmp_path: Path):
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 50, 20])
    for model in ("a", "b"):
        logits = generator.normal(size=(100, 3)) + np.eye(3)[labels]
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        made = run.accuracy(model, "three", scores=scores, labels=labels)
        run.arrays[made["key"]] |= {"val_scores": scores, "val_labels": labels}
    text = page(run, tmp_path)
    assert "Sensitivity / specificity of each class against the rest" in text
    assert "| model | macro | 0 (n=30) | 1 (n=50) | 2 (n=20) |" in text


# --- Pareto ----------------------------------------------------------------------------------------------------


def test_front_by_hand():
    points = {"best": (0.9, 10.0), "cheap": (0.7, 1.0), "middle": (0.8, 5.0), "beaten": (0.75, 6.0), "twin": (0.8, 5.0)}
    assert front(points) == ["best", "middle", "twin", "cheap"]
    assert front({name: (a, -c) for name, (a, c) in points.items()}, more_is_better=True) == front(points)
    assert front({}) == []


def test_the_front_is_between_accuracy_and_each_cost(run: Any, tmp_path: Path):
    for model, auc, speed, macs in (("a", 0.9, 10, 5.0), ("b", 0.8, 100, 9.0), ("c", 0.7, 50, 6.0)):
        run.accuracy(model, "one", auc)
        run.efficiency(model, 64, speed=speed, macs_g=macs)
    text = page(run, tmp_path)
    assert "at less cost (Pareto front): `a` (images/s, GMACs) and `b` (images/s)." in text


# --- ablations, resolutions, transfer --------------------------------------------------------------------------


def test_parents():
    present = ["net", "net[a=1]", "net[a=1,b=2]", "net_ssm_twin", "other[a=1]"]
    assert parent_of("net[a=1]", present) == "net"
    assert parent_of("net[a=1,b=2]", present) == "net[a=1]"
    assert parent_of("net_ssm_twin", present) == "net"
    assert parent_of("net", present) is None
    assert parent_of("other[a=1]", present) is None


def test_ablations_are_paired_with_their_parent(run: Any, tmp_path: Path):
    fill(run, {"net": 3.0, "net[branch=conv]": 0.5, "net_ssm_twin": 3.0}, datasets=2)
    run.efficiency("net", 64, speed=100.0, params=1_000_000)
    run.efficiency("net[branch=conv]", 64, speed=200.0, params=500_000)
    head, *rows = lines_of(section(page(run, tmp_path), "## Ablations: "))
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    report = Report(run.records, {}, tmp_path / "predictions")
    mean = {s.model: s.score for s in report.boards[0].standings}
    conv = found["net[branch=conv]"]
    assert conv["parent"] == "net"
    assert float(conv["AUC difference"]) == pytest.approx(mean["net[branch=conv]"] - mean["net"], abs=6e-4)
    assert (conv["significantly"], conv["params ×"], conv["images/s ×"]) == ("worse", "0.500", "2.00")
    low, high = (float(n) for n in conv["95 %"].split(" to "))
    assert low < float(conv["AUC difference"]) < high < 0
    assert found["net_ssm_twin"]["significantly"] == "no"


def test_resolutions_stand_side_by_side(run: Any, tmp_path: Path):
    for resolution, distance in ((64, 0.6), (224, 3.0)):
        fill(run, {"a": distance, "b": 0.6}, datasets=1, resolution=resolution)
    run.accuracy("c", "set0", 0.7, resolution=64)
    text = section(page(run, tmp_path), "## Accuracy by resolution")
    head, *rows = lines_of(text)
    assert head == ["model", "28→64 px (nearest)", "28→224 px (nearest)", "change", "95 %"]
    assert [row[0] for row in rows] == ["a", "b"]
    assert float(rows[0][3]) == pytest.approx(float(rows[0][2]) - float(rows[0][1]), abs=2e-3)
    assert float(rows[0][4].split("–")[0]) > 0
    assert (
        "not tested for significance (no saved scores)" in (tmp_path / "LEADERBOARD.md").read_text().split("\n## ")[0]
    )


def test_transfer_shows_the_drop(run: Any, tmp_path: Path):
    for seed, away in enumerate((0.70, 0.74)):
        made = run.accuracy("net", "target", away, acc=0.6, seed=seed, source_test_auc=0.9, source_test_acc=0.8)
        made["kind"] = "transfer"
        made["spec"] |= {"source": "home", "shares_patients": True}
    made = run.accuracy("net", "target", status="failed", reason="no such classes", seed=2)
    made["kind"] = "transfer"
    made["spec"] |= {"source": "home"}
    text = write_boards(tmp_path, run.records)[0].read_text()
    head, row = lines_of(section(text, "## Transfer"))
    found = dict(zip(head, row, strict=True))
    assert (found["trained → tested on"], found["AUC in-domain"], found["AUC out-of-domain"]) == (
        "home → target",
        "0.900",
        "0.720",
    )
    assert (found["change"], found["seeds"], found["sd seeds"]) == ("-0.180", "2", "0.028")
    assert "The two share patients, so out-of-domain is not new to the model: `home` and `target`." in text
    assert "on target from home (28→64 px, seed 2)" in text
    assert "3 records (0 accuracy, 0 efficiency, 3 transfer)" in text
    assert "sd seeds is the spread of the change over trainings" in text
    assert "how far other test images would move it is not in the table" in text
    assert "## Transfer" not in write_boards(tmp_path, [])[0].read_text()

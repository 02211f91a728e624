"""Which network is recommended, under which limits, and what speaks against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import bench
from bench.cli.main import main
from bench.report.build import Report, read_report
from bench.report.recommend import Limits, RecommendError, contrast_of, recommend
from bench.report.sections.summary import headline
from tests.report.conftest import Run, binary_scores

KEYS = ["model", "why", "runner_up", "not_significantly_worse", "resolve", "warnings"]


def of(run: Run, out: Path, info: dict[str, Any] | None = None, **limits: Any) -> Any:
    run.write(out)
    return recommend(Report(run.records, info or {}, out / "predictions"), Limits(**limits))


def test_the_cheapest_that_is_not_significantly_worse(four: Run, tmp_path: Path):
    found = of(four, tmp_path)
    assert (found.model, found.runner_up) == ("small", "middle")
    assert set(found.not_significantly_worse) == {"large", "middle", "small"} and found.misses == ()
    assert found.not_significantly_worse[0] == "large", "best first"
    assert (
        "latency 10.0 ms (cpu); cheapest of 3 models within 0.02 of the best and not significantly worse" in found.why
    )
    assert found.resolve["against"] == "large" and found.resolve["difference"] < 0
    assert found.warnings == ()


def test_a_large_loss_that_is_not_significant_is_not_recommended(run: Run, tmp_path: Path):
    for place, (model, distance) in enumerate((("dear", 2.2), ("cheap", 1.3))):
        for seed in range(2):
            labels = np.arange(24) % 2
            logits = np.random.default_rng(10 * place + seed).normal(size=24) + distance * labels
            run.accuracy(model, "breastmnist", seed=seed, scores=1 / (1 + np.exp(-logits)), labels=labels)
        run.efficiency(model, 64, speed=100, memory=10, batch=16, latency_ms_p50=1 + 9 * (model == "dear"),
                       macs_g=1, params=1, latency_noise_rel=0.01)  # fmt: skip
    found = of(run, tmp_path)
    assert set(found.not_significantly_worse) == {"dear", "cheap"} and found.resolve["difference"] > 0.05
    assert (found.model, found.runner_up) == ("dear", "cheap")
    assert "best, no other is within 0.02 of it" in found.why


@pytest.mark.parametrize(
    ("limits", "model", "said"),
    [
        ({"max_latency_ms": 5}, "bad", "the only model within the limits"),
        ({"max_latency_ms": 20}, "small", "cheapest of 2 models"),
        ({"min_images_per_s": 60}, "small", "significantly better than all others within the limits"),
        ({"max_memory_mib": 100, "max_params": 2e7}, "small", "within the limits"),
        ({"max_params": 1e6}, "bad", "the only model within the limits"),
        ({"device": "cpu"}, "small", "cheapest of 3 models"),
    ],
)
def test_limits(four: Run, tmp_path: Path, limits: dict[str, Any], model: str, said: str):
    found = of(four, tmp_path, **limits)
    assert found.model == model and said in found.why


def test_what_the_limits_cost_is_said(four: Run, tmp_path: Path):
    (warning,) = of(four, tmp_path, max_latency_ms=5).warnings
    assert warning.startswith("significantly worse by 0.3") and "than `large`, which the limits rule out" in warning


def test_nothing_fits_names_the_nearest(four: Run, tmp_path: Path):
    found = of(four, tmp_path, max_latency_ms=0.5, max_memory_mib=8)
    assert found.model is None and found.why == "none of 4 models has latency <= 0.500 ms and peak memory <= 8.00 MiB"
    assert found.misses[0] == "`bad`, latency 1.00 ms and peak memory 10.0 MiB (2.00 times the limit)"
    assert [miss.split("`")[1] for miss in found.misses] == ["bad", "small", "middle"]


def test_a_model_without_the_figure_is_out_and_named(four: Run, tmp_path: Path):
    (small,) = [r for r in four.records if r["kind"] == "efficiency" and r["spec"]["model"] == "small"]
    small["metrics"]["latency_noise_rel"] = 2.0  # two runs would differ by 400 %
    found = of(four, tmp_path / "a", max_latency_ms=20)
    assert found.model == "middle" and "out, as no usable latency was measured: `small`" in found.warnings
    found = of(four, tmp_path / "b")
    assert found.model == "small" and "multiply-adds 0.100 GMACs" in found.why
    assert found.warnings == ("no usable latency of `small`, so cheap means few multiply-adds",)


def test_latencies_within_the_noise_are_equal(four: Run, tmp_path: Path):
    for record in four.records:
        if record["kind"] == "efficiency" and record["spec"]["model"] in ("small", "middle"):
            record["metrics"]["latency_ms_p50"] = {"small": 10.0, "middle": 10.1}[record["spec"]["model"]]
    assert of(four, tmp_path).model == "middle", "the more accurate of the two"


def test_seeds_and_images_that_would_do_have_the_power(four: Run, tmp_path: Path):
    """With the numbers told a z test has 80 % power, with one less it has not (the textbook's formula of power)."""
    four.write(tmp_path)
    report = Report(four.records, {}, tmp_path / "predictions")
    (board,) = report.boards
    found = recommend(report, Limits(max_latency_ms=25))
    pairs = contrast_of(board, ["middle", "small"])
    assert pairs and found.resolve["against"] == "middle"
    difference, training = pairs.difference[0, 1], pairs.training[0, 1]
    images = pairs.variance[0, 1] - training
    level = 0.05 / (3 * 2 / 2)  # bad is within the limits too

    def power(seeds: float, n: float) -> float:
        sd = (training * 3 / seeds + images * 600 / n) ** 0.5
        return float(norm.sf(norm.isf(level / 2) - difference / sd))

    checked = 0
    if seeds := found.resolve["seeds"]:
        assert power(seeds, 600) >= 0.8 > power(seeds - 1, 600)
        checked += 1
    if n := found.resolve["test_images"]:
        assert power(3, n) >= 0.8 > power(3, n - 1)
        checked += 1
    times = found.resolve["both_times"]
    assert times and power(3 * times * 1.1, 600 * times * 1.1) > 0.8 > power(3 * times * 0.9, 600 * times * 0.9)
    assert not checked and times * 600 > 20_000, "so near are these two"
    nothing = "no realistic number of seeds or test images (now 3 seeds, 600 images) would show its difference"
    assert found.resolve["text"] == f"{nothing} from `middle`, below 0.001"


def test_what_speaks_against_it(run: Run, tmp_path: Path):
    for model in ("a", "b"):
        scores, labels = binary_scores(40, 0.0, ord(model), positives=0.8)
        made = run.accuracy(model, "breastmnist", scores=scores, labels=labels, test_confusion=[[0, 8], [0, 32]])
        made["data"] = {"findings": [
            {"text": "3 test images are also in train", "count": 3, "examples": [], "severity": "leak"},
            {"text": "sizes differ", "count": 1, "examples": [], "severity": "warning"},
        ]}  # fmt: skip
    run.accuracy("c", "breastmnist", status="failed", reason="no")
    command = "bench run --models a,b,c,d --datasets breastmnist"
    info = {"command": command, "planned": {command: [r["key"] for r in run.records] + ["f" * 20]}}
    warnings = of(run, tmp_path, info).warnings
    for at, begin in enumerate((
        "data of `breastmnist`: leak, 3 test images are also in train", "on `breastmnist` it always gives the same",
        "it is not significantly better than chance (AUC 0.5)", "incomplete run: 3 of 4 cells", "single seed",
        "few test images, 8 of the rarest class of `breastmnist`", "not considered, as a result is missing: `c`",
        "no speed was measured",
    )):  # fmt: skip
        assert warnings[at].startswith(begin)
    assert len(warnings) == 8


def test_without_saved_scores_the_highest_is_taken_and_said_to_be_untested(run: Run, tmp_path: Path):
    for i, model in enumerate(("a", "b")):
        run.accuracy(model, "breastmnist", 0.8 + i / 10, acc=0.6)
    found = of(run, tmp_path)
    assert found.model == "b" and found.runner_up is None and found.not_significantly_worse == ()
    assert found.resolve == {} and "not tested for significance" in found.why
    assert any(text.startswith("which differences are significant is unknown") for text in found.warnings)


def test_two_lines_on_board_and_screen(four: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report, _ = read_report(four.write(tmp_path))
    report.write(tmp_path)
    first, second = report.recommendation.lines() if report.recommendation else ("", "")
    board = (tmp_path / "LEADERBOARD.md").read_text()
    assert board.startswith(f"# Leaderboard\n\n- {first}\n- {second}\n") and first.startswith(
        "Recommended: `small`. AUC"
    )
    assert main(["leaderboard", str(tmp_path)]) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{first} {second}".replace("`", ""))


def test_the_command(four: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    four.write(tmp_path / "run")
    assert main(["recommend", str(tmp_path / "run"), "--max-params", "25M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS and found["model"] == "small" and found["resolve"]["against"] == "middle"
    assert found["warnings"] == [] or "`" not in found["warnings"][0]
    assert main(["recommend", str(tmp_path / "run"), "--max-params", "500k", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS and found["model"] is None
    assert found["warnings"][0] == "nearest: bad, parameters 1.00 M (2.00 times the limit)"
    assert main(["recommend", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("Recommended: small\nWhy: AUC on breastmnist 0.9")
    assert main(["recommend", str(tmp_path / "run"), "--max-latency-ms", "0.1"]) == 1
    assert "Nearest: bad, latency 1.00 ms (10.0 times the limit)" in capsys.readouterr().out
    assert main(["recommend", str(tmp_path / "run"), "--device", "cuda"]) == 2
    assert "device 'cuda': nothing was timed on it, only on cpu; `bench run" in capsys.readouterr().err
    assert main(["recommend", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", str(tmp_path / "run"), "--max-latency-ms", "-3"])
    assert "'-3' is not a number above 0" in capsys.readouterr().err


def test_from_python(four: Run, tmp_path: Path):
    out = four.write(tmp_path)
    assert bench.recommend(out, max_latency_ms=5).model == "bad" and bench.recommend(out).model == "small"


def test_efficiency_alone_recommends_nothing(run: Run, tmp_path: Path):
    run.efficiency("a", 64, speed=1.0)
    with pytest.raises(RecommendError, match="no model has a test result to choose by"):
        of(run, tmp_path)
    assert Report(run.records, {}).recommendation is None


def test_patients_are_counted_where_they_have_several_images(four: Run, tmp_path: Path):
    for arrays in four.arrays.values():
        arrays["test_patients"] = np.array([f"p{i // 2 // 10}-{i % 2}" for i in range(600)])  # of one class each
    found = of(four, tmp_path)
    assert any(text.startswith("few test patients, 30 of the rarest class of `breastmnist`") for text in found.warnings)
    assert "(now 3 seeds, 600 images, 60 patients)" in found.resolve["text"] or found.resolve["patients"] is not None
    if images := found.resolve["test_images"]:
        assert found.resolve["patients"] == pytest.approx(images / 10, abs=1)


def test_a_better_model_of_another_protocol_is_named(four: Run, tmp_path: Path):
    four.accuracy("huge", "breastmnist", 0.99, acc=0.9, resolution=224)
    assert any(
        text
        == "`huge` has AUC 0.990 under another protocol (28→224 px (nearest), quick, 3 epochs, fp32), which was not "
        "compared"
        for text in of(four, tmp_path).warnings
    )


def test_a_shortcut_speaks_against_it(four: Run, tmp_path: Path):
    label = np.arange(600) % 2 == 1
    old = label ^ (np.arange(600) % 97 == 0)
    for arrays in four.arrays.values():
        arrays["test_group_machine"] = np.where(old, "old", "new")
    said = f"`machine` alone tells the label (AUC {roc_auc_score(label, old):.3f}) as well as its score does"
    assert of(four, tmp_path).warnings[0] == f"shortcut on `breastmnist`: {said}"


def test_cost_at_another_resolution_is_said(run: Run, tmp_path: Path):
    scores, labels = binary_scores(200, 2.0, 1)
    run.accuracy("a", "breastmnist", scores=scores, labels=labels, resolution=32)
    run.efficiency("a", 64, speed=10.0, latency_ms_p50=3.0)
    assert "cost was measured at 64 px, not at 32 px" in of(run, tmp_path).warnings


def test_a_random_network_is_shown_and_never_recommended(frozen: Run, tmp_path: Path):
    report = Report(frozen.write(tmp_path) and frozen.records, {}, tmp_path / "predictions")
    (board,) = report.boards
    assert board.ranked[0].model == "net (random weights)", "best and cheapest"
    limits = ({}, {"max_latency_ms": 10}, {"min_images_per_s": 100}, {"max_latency_ms": 0.5}, {"max_memory_mib": 150})
    for given in limits:
        found = recommend(report, Limits(**given))
        told = json.dumps({**found.as_json(), "warnings": []})
        assert "random" not in told and 'net"' not in told.replace("net[pretrained=true]", ""), given
    found = recommend(report)
    assert (found.model, found.runner_up) == ("other[pretrained=true]", "net[pretrained=true]")
    assert "cheapest of 2 models" in found.why and found.resolve["against"] == "net[pretrained=true]"
    assert not any("random" in text for text in found.warnings), "significantly better than its own random network"
    assert recommend(report, Limits(max_latency_ms=0.5)).why.startswith("none of 2 models")
    net = recommend(report, Limits(max_latency_ms=20, min_images_per_s=50, max_params=2e7))
    assert net.model == "other[pretrained=true]" and "within the limits" not in net.why
    text = (report.write(tmp_path) and tmp_path / "LEADERBOARD.md").read_text()
    assert "| 1 | `net (random weights)` |" in text and "Recommended: `other[pretrained=true]`." in text
    assert "Pareto" not in text, "two candidates make no front"


def test_weights_that_may_be_worth_nothing_speak_against_it(frozen: Run, tmp_path: Path):
    frozen.records = [r for r in frozen.records if "other" not in r["spec"]["model"]]
    found = of(frozen, tmp_path)
    assert found.model == "net[pretrained=true]" and "the only model" in found.why and found.runner_up is None
    (said,) = [text for text in found.warnings if "random" in text]
    assert said.startswith("it is not significantly better than `net (random weights)`, AUC 0.9")
    frozen.arrays.clear()
    assert any(text.startswith("it is not better than `net (random") for text in of(frozen, tmp_path / "b").warnings)


def test_random_networks_alone_are_no_answer(frozen: Run, tmp_path: Path):
    frozen.records = [r for r in frozen.records if "pretrained" not in r["spec"]["model"]]
    found = of(frozen, tmp_path)
    assert found.model is None and "random weights" in found.lines()[0]


def test_of_equal_tables_the_one_is_taken_whose_network_can_be_exported(frozen: Run, tmp_path: Path):
    for record in list(frozen.records):
        if record["kind"] == "accuracy":
            spec, arrays = record["spec"], frozen.arrays[record["key"]]
            frozen.accuracy(
                spec["model"], "breastmnist", seed=spec["seed"], recipe={"name": "knn11", "neighbours": 11},
                scores=arrays["test_scores"], labels=arrays["test_labels"],
                of={"track": "frozen", "head": "knn11", "weights_sha256": spec["weights_sha256"]},
            )  # fmt: skip
    report = Report(frozen.write(tmp_path) and frozen.records, {}, tmp_path / "predictions")
    assert [board.protocol.recipe for board in report.boards] == ["frozen features, knn11", "frozen features, linear"]
    board = headline(report.boards)
    assert board and board.protocol.recipe == "frozen features, linear"

"""The gate on planted regressions of every kind: exit code, message, and all its outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.cli.main import main
from bench.record.cells import ONE_THREAD

MODELS = ("resnet18", "vit_tiny_patch16_224", "medmamba_tiny")
ROUNDS = 6
Change = Callable[[dict[str, Any]], None]


def sweep(
    run: Any,
    models: tuple[str, ...] = MODELS,
    rounds: int = ROUNDS,
    noise: float = 0.01,
    at: int = 0,
    distance: dict[str, float] | None = None,
    change: Change | None = None,
    dtype: Any = np.float64,
) -> Any:
    """Records of a small sweep: each model on one test set with two seeds, and its efficiency in so many rounds.

    Args:
        run: conftest's collector, empty.
        noise: relative spread of the rounds.
        at: another draw of the rounds.
        distance: of the two classes' scores, where it is not 1.5.
        change: applied to each Record.
        dtype: of the saved scores.
    """
    labels = (np.arange(156) < 114).astype(np.int64)
    for i, model in enumerate(models):
        for seed in (0, 1):
            z = np.random.default_rng([i, seed]).normal(size=156) + (distance or {}).get(model, 1.5) * (labels - 0.5)
            scores = (1 / (1 + np.exp(-z))).astype(dtype)
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels, params=11_000_000 + i)
        spread = 1 + noise * np.random.default_rng([i, rounds, at]).normal(size=rounds)
        speeds = list(100.0 * (i + 1) * spread)
        run.efficiency(
            model, 64, speed=float(np.median(speeds)), memory=100.0 + i, params=11_000_000 + i, macs_g=0.5 + i / 3,
            throughput_images_per_s_rounds=speeds,
        )  # fmt: skip
    for record in run.records:
        if change:
            change(record)
    return run


@pytest.fixture
def gate(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Write a baseline of a sweep; then check a changed sweep: exit code and what was printed."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert main(["baseline", str(sweep(run).write(tmp_path / "before")), "--out", str(tmp_path / "base.json")]) == 0
    capsys.readouterr()

    def check(*flags: str, **changes: Any) -> tuple[int, str]:
        shutil.rmtree(tmp_path / "now", ignore_errors=True)
        current = sweep(type(run)(), **changes).write(tmp_path / "now")
        code = main(["check", str(current), "--baseline", str(tmp_path / "base.json"), *flags])
        return code, " ".join(capsys.readouterr().out.split())

    return check


def of(kind: str, model: str, change: Change) -> Change:
    """Change the metrics (or status) of one model's Records of a kind."""

    def apply(record: dict[str, Any]) -> None:
        if record["kind"] == kind and record["spec"]["model"] == model:
            change(record)

    return apply


def metric(name: str, factor: float) -> Change:
    def change(record: dict[str, Any]) -> None:
        value = record["metrics"][name]
        record["metrics"][name] = [v * factor for v in value] if isinstance(value, list) else value * factor

    return change


def status(value: str, reason: str) -> Change:
    return lambda record: record.update(status=value, reason=reason, metrics={})


SPEED, MEMORY = "throughput_images_per_s_rounds", "peak_memory_mib"


def test_an_equal_run_is_fine(gate):
    code, text = gate()
    assert code == 0
    assert "nothing got worse (exit code 0)" in text
    # by hand: 3 models x 2 seeds x (parameters, predictions), 3 rows x (AUC, ACC), 3 efficiency cells x 4
    assert f"{12 + 6 + 12} checks: 30 fine." in text
    assert "12 tests at a family-wise level of 5% (Holm)" in text


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (of("efficiency", MODELS[0], metric("params", 2)), 1, "parameters changed from 11,000,000 to"),
        (of("efficiency", MODELS[0], metric("macs_g", 1.01)), 1, "GMACs changed from 0.5 to 0.505 (+1.000%)"),
        (of("efficiency", MODELS[0], metric("params", 0.5)), 0, "parameters changed from 11,000,000 to 5.5e+06"),
        (of("efficiency", MODELS[0], metric("macs_g", 0.5)), 0, "GMACs changed from 0.5 to 0.25 (-50.000%)"),
        (of("efficiency", MODELS[1], metric(SPEED, 0.8)), 1, "speed relative to resnet18 fell by 20.0%"),
        (of("efficiency", MODELS[0], metric(SPEED, 0.8)), 1, "speed fell by 20.0%"),
        (of("efficiency", MODELS[1], metric(MEMORY, 1.3)), 1, "memory rose by 30.0%"),
        (of("efficiency", MODELS[2], status("failed", "RuntimeError: boom")), 4, "failed: RuntimeError: boom"),
        (of("accuracy", MODELS[2], status("diverged", "the loss was NaN")), 4, "diverged: the loss was NaN"),
        (of("efficiency", MODELS[2], status("oom", "5 GiB did not fit")), 4, "oom: 5 GiB did not fit"),
    ],
)
def test_planted(gate, change: Change, code: int, message: str):
    found, text = gate(change=change)
    assert (found, message in text) == (code, True), text


def test_a_change_that_is_no_loss_is_reported_and_passes(gate):
    """A model was halved on purpose: fewer parameters are a change, not a regression."""
    code, text = gate(change=of("efficiency", MODELS[0], metric("params", 0.5)))
    assert code == 0 and "1 change" in text and "regression," not in text
    assert "| changed |" in text


def test_planted_accuracy(gate):
    code, text = gate(distance={MODELS[0]: 0.2})
    assert code == 1
    assert "AUC fell by 0." in text
    assert "after Holm over 12 tests" in text
    assert MODELS[1] not in text  # what did not change is not listed


def test_missing_cells(gate):
    code, text = gate(models=MODELS[:2])
    assert code == 4
    assert "the current run has no such cell" in text
    code, text = gate("--allow-missing", models=MODELS[:2])
    assert code == 0
    assert "20 fine and 3 allowed" in text


def test_another_seed_of_the_baseline_is_no_substitute(gate):
    def fails(record: dict[str, Any]) -> None:
        if record["kind"] == "accuracy" and record["spec"]["seed"] == 0:
            record["spec"] |= {"model": record["spec"]["model"] + "_new", "seed": 9}

    code, text = gate(change=fails)
    assert code == 4
    assert "the current run has no such cell" in text
    assert "seed 1 instead of 0" not in text


def test_another_recipe_is_absent_and_says_in_what(gate):
    def slower(record: dict[str, Any]) -> None:
        if record["kind"] == "accuracy":
            record["spec"]["recipe_settings"] = {**record["spec"]["recipe_settings"], "learning_rate": 0.5}

    code, text = gate(change=slower)
    assert code == 4
    assert "recipe_settings.learning_rate 0.5 instead of 0.001" in text


def test_another_machine_compares_counts_only(gate):
    def elsewhere(record: dict[str, Any]) -> None:
        record["spec"]["hardware"] = "Other CPU"
        record["metrics"][SPEED] = [v / 3 for v in record["metrics"][SPEED]]

    code, text = gate(change=lambda r: elsewhere(r) if r["kind"] == "efficiency" else None)
    assert code == 0
    assert "measured on another machine: cpu (Some CPU, 2 threads), now cpu (Other CPU, 2 threads)" in text
    code, text = gate(
        change=lambda r: (elsewhere(r), metric("macs_g", 2)(r)) if r["kind"] == "efficiency" else None,
    )
    assert code == 1


def test_too_few_rounds_is_said(gate):
    code, text = gate(rounds=3)
    assert code == 0
    assert "speed of" in text
    assert "not enough samples: 12 tests need 6 rounds a side" in text
    code, text = gate(rounds=1)
    assert "not enough samples: 6 and 1 rounds, so the noise is unknown" in text


def test_a_fall_within_the_noise_does_not_count(gate):
    # 7 % slower, with rounds 10 % apart: more than the minimum of 5 %, less than the noise
    code, _ = gate(change=of("efficiency", MODELS[1], metric(SPEED, 0.93)), noise=0.1)
    assert code == 0


def drifted(factor: float) -> Change:
    """The whole machine is slower, round for round the same for all models."""
    each = np.linspace(factor, 1, ROUNDS)

    def change(record: dict[str, Any]) -> None:
        if record["kind"] == "efficiency":
            record["metrics"][SPEED] = list(np.asarray(record["metrics"][SPEED]) * each)

    return change


def test_a_slower_machine_is_no_loss_of_models_beside_the_reference(gate):
    code, text = gate(change=drifted(0.5))
    assert code == 0, text
    # the ratio knows a loss of a tenth all the same
    code, text = gate(change=lambda r: (drifted(0.5)(r), of("efficiency", MODELS[1], metric(SPEED, 0.9))(r)))
    assert code == 1
    assert "speed relative to resnet18 fell by 10" in text


def test_a_faster_reference_is_said(gate):
    code, text = gate(change=of("efficiency", MODELS[0], metric(SPEED, 1.3)))
    assert code == 1
    assert "the reference resnet18 at 64 px, batch 8, fp32, infer did 99.8 images/s and does 130 now" in text


def test_without_a_reference_images_per_s_are_judged(gate, tmp_path: Path):
    """An old baseline knows none, and a run may have measured another one beside."""
    base = tmp_path / "base.json"
    content = json.loads(base.read_text())
    for cell in content["cells"]:
        cell.pop("reference", None)
        cell.pop("relative", None)
    base.write_text(json.dumps(content))
    code, text = gate(change=of("efficiency", MODELS[1], metric(SPEED, 0.8)))
    assert code == 1
    assert "speed fell by 20.0%" in text


def busy(*flags: str, factor: float = 0.46) -> Change:
    """A slow-down, and what the instrument says of the machine at that time."""

    def change(record: dict[str, Any]) -> None:
        metric(SPEED, factor)(record)
        evidence = ["rounds of 9, 12, 30 ms a step", *(f"round 2: {flag} took 40% of the CPU" for flag in flags)]
        record["metrics"] |= {"flags": ["noisy", *flags], "noisy": True, "noisy_evidence": evidence}

    return change


@pytest.mark.parametrize("flag", ["other processes", "not warm", "steal", "shared GPU"])
def test_a_busy_machine_is_no_regression(gate, flag: str):
    code, text = gate(change=of("efficiency", MODELS[1], busy(flag)))
    assert code == 0, text
    assert "1 not compared" in text
    assert f"speed of {MODELS[1]} at 64 px, batch 8, fp32, infer: the machine was busy now ({flag}" in text
    assert f"round 2: {flag} took 40% of the CPU" in text


def test_processor_time_is_compared_on_a_busy_machine_too(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "140")

    def timed(slower: float) -> Change:
        def change(record: dict[str, Any]) -> None:
            busy("other processes")(record)
            ratios = [0.5 * slower * (1 + i / 1000) for i in range(ROUNDS)]
            record["metrics"] |= {"relative_to": MODELS[0], "relative_in": ONE_THREAD, "relative_speed_rounds": ratios}

        return of("efficiency", MODELS[1], change)

    base = str(tmp_path / "base.json")
    assert main(["baseline", str(sweep(run, change=timed(1)).write(tmp_path / "before")), "--out", base]) == 0
    assert "busy" not in capsys.readouterr().out
    for name, slower, code in (("same", 1.0, 0), ("slower", 0.9, 1)):
        again = sweep(type(run)(), change=timed(slower)).write(tmp_path / name)
        assert main(["check", str(again), "--baseline", base]) == code
        text = " ".join(capsys.readouterr().out.split())
        assert ("speed relative to resnet18 fell by 10" in text) is bool(code)


@pytest.mark.parametrize("flags", [(), ("throttled",)])
def test_noise_alone_and_throttling_excuse_nothing(gate, flags: tuple[str, ...]):
    code, text = gate(change=of("efficiency", MODELS[1], busy(*flags)))
    assert code == 1
    assert "speed relative to resnet18 fell by 54.0%" in text


def test_a_busy_machine_hides_no_other_loss(gate):
    def change(record: dict[str, Any]) -> None:
        busy("other processes")(record)
        record["metrics"] |= {"peak_memory_mib": 400.0} if record["spec"]["model"] == MODELS[0] else {}

    code, text = gate(change=lambda r: change(r) if r["kind"] == "efficiency" else None)
    assert code == 1
    assert "memory rose by 300.0%" in text
    assert "and 2 more cells: the machine was busy now (other processes" in text  # one line, not one a cell


def test_a_baseline_of_a_busy_machine_keeps_that(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "140")
    slow = of("efficiency", MODELS[1], busy("not warm", factor=2.0))
    base = str(tmp_path / "base.json")
    assert main(["baseline", str(sweep(run, change=slow).write(tmp_path / "before")), "--out", base]) == 0
    assert "1 cell measured while the machine was busy: its speed will not be compared" in capsys.readouterr().out
    assert main(["check", str(sweep(type(run)()).write(tmp_path / "now")), "--baseline", base]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the machine was busy in the baseline (not warm" in text


def test_no_baseline_of_an_interrupted_run(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = sweep(run).write(tmp_path / "run")
    keys = [record["key"] for record in run.records]
    planned = {"bench run a": [*keys, "0" * 20], "bench run b": ["1" * 20, *keys[:2]]}
    (out / "run.json").write_text(json.dumps({"command": "bench run a", "planned": planned}))
    command = ["baseline", str(out), "--out", str(tmp_path / "base.json")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "no baseline: 2 cells of the sweep have no record" in said and "--allow-incomplete" in said
    assert not (tmp_path / "base.json").exists()
    assert main([*command, "--allow-incomplete"]) == 0
    assert "2 cells of the sweep without a record: no check will miss them" in capsys.readouterr().out
    (out / "run.json").write_text(json.dumps({"planned": {"bench run a": keys}}))
    assert main(command) == 0


def test_nothing_comparable(gate):
    code, text = gate("--allow-missing", models=("another_model",))
    assert code == 3
    assert "nothing could be compared (exit code 3)" in text


def test_precedence(gate, tmp_path: Path):
    def change(record: dict[str, Any]) -> None:
        of("efficiency", MODELS[0], metric("macs_g", 2))(record)
        of("efficiency", MODELS[1], status("failed", "x"))(record)

    code, text = gate(change=change)
    assert code == 1  # before 4
    assert "failed: x" in text
    cells = tmp_path / "now" / "cells"
    next(iter(cells.glob("*.json"))).write_text("{")
    found = main(["check", str(tmp_path / "now"), "--baseline", str(tmp_path / "base.json")])
    assert found == 2  # before 1


def test_broken_inputs_exit_2_and_name_the_file(gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    gate()
    now, base = tmp_path / "now", tmp_path / "base.json"
    victim = next(iter((now / "predictions").glob("*.npz")))
    whole = victim.read_bytes()
    for damage, message in ((whole[:50], victim.name), (None, "its predictions are missing")):
        victim.unlink()
        if damage:
            victim.write_bytes(damage)
        assert main(["check", str(now), "--baseline", str(base)]) == 2
        assert message in " ".join(capsys.readouterr().out.split())
        victim.write_bytes(b"")
    for text, message in (
        ("[]", "this is not a baseline file"),
        ('{"medbench_baseline": 9}', "its schema is 9, ours 1"),
    ):
        base.write_text(text)
        assert main(["check", str(now), "--baseline", str(base)]) == 2
        assert message in capsys.readouterr().err
    assert main(["check", str(now), "--baseline", str(tmp_path / "no.json")]) == 2
    assert "there is no such baseline; make it with `bench baseline RUN --out" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere"), "--baseline", str(base)]) == 2
    with pytest.raises(SystemExit) as usage:
        main(["check", str(now), "--baseline", str(base), "--alpha", "5"])
    assert usage.value.code == 2


def test_schema_of_predictions_is_exact(gate):
    code, text = gate(dtype=np.float32)
    assert code == 1
    assert "test_scores is float32 156 instead of float64 156" in text


def test_json_junit_and_step_summary(gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from junitparser import Error, Failure, JUnitXml

    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))

    def change(record: dict[str, Any]) -> None:
        of("efficiency", MODELS[0], metric(SPEED, 0.5))(record)
        of("efficiency", MODELS[1], status("failed", "bad\x00byte <tag>"))(record)

    code, _ = gate("--json", str(tmp_path / "x.json"), "--junit", str(tmp_path / "x.xml"), change=change)
    assert code == 1
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["exit_code"] == 1
    assert content["counts"]["regression"] == 1
    worst = next(f for f in content["findings"] if f["outcome"] == "regression")
    assert worst["evidence"]["effect"] == pytest.approx(0.5, abs=0.02)
    ElementTree.parse(tmp_path / "x.xml")  # well-formed, whatever a reason holds
    results = [
        type(result) for suite in JUnitXml.fromfile(str(tmp_path / "x.xml")) for case in suite for result in case.result
    ]
    assert (results.count(Failure), results.count(Error)) == (1, 1)
    suites = JUnitXml.fromfile(str(tmp_path / "x.xml"))
    assert suites.tests == len(content["findings"])
    text = summary.read_text()
    assert text.startswith("## Regression check: regression (exit code 1)")
    assert "| regression |" in text

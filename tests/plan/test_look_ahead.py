"""`bench run` looks before it trains: what it prints, what it refuses, and what is another Cell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.cli.main import main
from bench.report.sections.about_data import data_warnings


@pytest.fixture
def leaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of which two images of train are in test."""
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    images = {
        split: rng.integers(0, 256, (n, 28, 28), np.uint8) for split, n in (("train", 20), ("val", 8), ("test", 8))
    }
    images["test"][:2] = images["train"][[2, 3]]
    arrays = {f"{split}_images": part for split, part in images.items()}
    labels = {f"{split}_labels": np.arange(len(part)) % 2 for split, part in images.items()}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    return tmp_path / "x.npz"


def command(verb: str, file: Path, *more: str) -> list[str]:
    return [
        verb, "--models", "resnet18", "--datasets", f"npz:{file}", "--kinds", "accuracy", "--resolutions", "28",
        "--recipe", "quick", "--epochs", "1", "--device", "cpu", "--out", str(file.parent / "out"), *more,
    ]  # fmt: skip


SAID = "leak: 2 images of train are in test too, with equal pixels (train 2 = test 0; train 3 = test 1)"


def test_refused_before_anything_is_trained(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("plan", leaking)) == 0
    assert "leak:" not in capsys.readouterr().out, "nothing has been decoded yet"
    assert main(command("run", leaking, "--leaks", "refuse")) == 2
    printed = capsys.readouterr()
    assert SAID in printed.out
    assert f"--leaks: refused, since npz:{leaking}: 2 images of train are in test too" in printed.err
    assert not list((leaking.parent / "out").glob("cells/*.json"))
    assert main(command("plan", leaking)) == 0
    assert SAID in capsys.readouterr().out, "the cache remembers"


def test_dropping_trains_on_the_rest_and_is_another_cell(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {}
    for how in ("warn", "refuse", "drop"):
        assert main(command("plan", leaking, "--leaks", how, "--json")) == 0
        keys[how] = json.loads(capsys.readouterr().out)["cells"][0]["key"]
    assert keys["warn"] == keys["refuse"] != keys["drop"]
    assert main(command("run", leaking, "--leaks", "drop")) == 0
    [path] = (leaking.parent / "out" / "cells").glob("*.json")
    record = json.loads(path.read_text())
    texts = [finding["text"] for finding in record["data"]["findings"]]
    assert record["key"] == keys["drop"] and record["spec"]["leaks"] == "drop"
    assert "images that a later split has too were dropped: 2 of train (--leaks drop)" in texts
    board = (leaking.parent / "out" / "LEADERBOARD.md").read_text()
    assert "LEAK, 2 images of train are in test too, with equal pixels" in board.split("## ")[0]
    assert "repeated images dropped" in board


def test_old_records_say_nothing() -> None:
    assert data_warnings([{"spec": {"dataset": "d"}, "kind": "accuracy"}]) == []

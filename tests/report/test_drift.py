"""Speeds against the other models of a round: a drift that all share falls out, a change of one model stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.cli.main import main
from bench.report.compare.drift import changes

SPEEDS = np.array([100.0, 40.0, 250.0, 7.0])
CALM, SLOWED = np.ones(5), np.array([0.7, 0.7, 0.72, 1.0, 1.0])  # a neighbour took a part of three rounds


def rounds(speeds: np.ndarray, drift: np.ndarray) -> list[list[float]]:
    return (speeds[:, None] * drift).tolist()


def test_what_slows_all_models_of_a_round_changes_no_ratio() -> None:
    assert np.allclose(changes(["a"] * 4, rounds(SPEEDS, SLOWED), rounds(SPEEDS, CALM)), 1, atol=1e-12)


def test_a_model_that_became_slower_is_seen_through_the_drift() -> None:
    now = SPEEDS * np.array([1, 1, 0.9, 1])
    found = changes(["a"] * 4, rounds(SPEEDS, CALM), rounds(now, SLOWED))
    # The median of four is the mean of the two in the middle, none of which changed.
    assert np.allclose(found, [1, 1, 0.9, 1], atol=1e-12)


def test_groups_are_apart_and_small_or_uneven_ones_are_left_out() -> None:
    first, second = rounds(SPEEDS, CALM), rounds(SPEEDS, SLOWED)
    assert len(changes(["a", "a", "b", "b"], first, second)) == 0
    assert len(changes(["a", "a", "a", "b"], first, second)) == 3
    assert len(changes(["a"] * 4, [*first[:3], first[3][:2]], second)) == 0
    assert len(changes([], [], [])) == 0


def test_compare_says_how_well_ratios_repeat(
    run: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    sides = []
    for name, drift in (("a", SLOWED), ("b", CALM)):
        one = type(run)()
        for model, speeds in zip(("m1", "m2", "m3", "m4"), rounds(SPEEDS, drift), strict=True):
            one.efficiency(model, 64, speed=float(np.median(speeds)), throughput_images_per_s_rounds=speeds)
        sides.append(str(one.write(tmp_path / name)))
    assert main(["compare", *sides]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 of 4 cells (0%) within 3%" in text
    assert "without the drift that all share: 4 of 4 cells (100%) within 3%, 95 % of them within 0.0%." in text

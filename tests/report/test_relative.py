"""Relative speeds: drift that slows a whole round falls out, and what has no reference has no ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.report.speeds import with_relative_speeds


def row(label: str, rounds: list[float] | None, status: str = "ok", px: int = 64, **more: Any) -> dict[str, Any]:
    metrics = {} if rounds is None else {"throughput_images_per_s_rounds": rounds}
    spec = {"resolution": px, "batch": 4}
    return {"key": f"{label}{px}", "label": label, "status": status, "spec": spec, "metrics": metrics | more}


def test_drift_of_whole_rounds_falls_out() -> None:
    drift = np.array([1.0, 0.5, 0.8, 1.2])
    own = np.array([100.0, 102.0, 98.0, 101.0])
    rows, reference = with_relative_speeds([row("slow", list(own * drift)), row("resnet18", list(200 * drift))])
    assert reference == "resnet18"
    found = rows[0]["metrics"]
    logs = np.log(own / 200)
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert found["relative_speed"] == pytest.approx(np.exp(np.median(logs)))
    assert (found["relative_speed_ci_low"], found["relative_speed_ci_high"]) == pytest.approx(np.exp([low, high]))
    assert rows[1]["metrics"]["relative_speed_ci_high"] == 1


def test_rows_without_a_partner_have_none() -> None:
    rows, reference = with_relative_speeds([
        row("a", [1.0, 2.0]), row("b", [1.0, 2.0, 3.0]), row("c", None, status="oom"), row("a", [3.0, 3.0], px=96),
        row("d", [5.0, 5.0], px=96, unusable={"images/s": 0.9}),
    ])  # fmt: skip
    assert reference == "a"
    assert [r["key"] for r in rows if "relative_speed" in r["metrics"]] == ["a64", "a96"]
    assert with_relative_speeds([row("a", [1.0, 2.0])]) == ([row("a", [1.0, 2.0])], "")


def test_a_row_that_was_measured_again_later_has_none() -> None:
    stamps = [["2026-11-28T10:00:00+00:00", "2026-11-28T10:05:00+00:00"]]
    stamps += [["2026-11-28T10:00:09+00:00", "2026-11-28T10:04:50+00:00"]]
    later = ["2026-11-28T11:00:00+00:00", "2026-11-28T11:00:20+00:00"]
    rows, _ = with_relative_speeds([
        row(model, [1.0, 2.0], rounds_begun=begun)
        for model, begun in (("resnet18", stamps[0]), ("beside", stamps[1]), ("later", later))
    ])  # fmt: skip
    assert ["relative_speed" in r["metrics"] for r in rows] == [True, True, False]


def test_the_device_counts_where_both_have_it() -> None:
    rows, _ = with_relative_speeds([
        row("a", [1.0, 1.0], device_images_per_s_rounds=[30.0, 30.0]),
        row("resnet18", [1.0, 1.0], device_images_per_s_rounds=[10.0, 10.0]),
    ])  # fmt: skip
    assert rows[0]["metrics"]["relative_speed"] == pytest.approx(3)


def test_rounds_side_by_side_come_before_pairs_of_rounds() -> None:
    """The reference was timed in turn with the row: no row of its own is needed, and images/s do not matter."""
    rows, reference = with_relative_speeds([
        row("a", [1.0, 9.0], relative_to="resnet18", relative_speed_rounds=[0.5, 0.5]), row("resnet18", [4.0, 4.0]),
        row("b", [2.0, 2.0]), row("a", [1.0, 9.0], px=96, relative_to="resnet18", relative_speed_rounds=[0.25]),
    ])  # fmt: skip
    assert reference == "resnet18"
    assert [r["metrics"]["relative_speed"] for r in rows] == pytest.approx([0.5, 1, 0.5, 0.25])

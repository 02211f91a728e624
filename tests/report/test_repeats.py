"""The rule for a changed speed, on simulated runs: how often it cries wolf, and how often it sees a fifth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.measure.combine import combine
from bench.report.repeats import noise, speed_change


def measured(rng: np.random.Generator, rounds: int, seconds: float, spread: float) -> dict[str, Any]:
    """A run whose rounds differ by ``spread`` (one standard deviation)."""
    levels = seconds * np.exp(spread * rng.standard_normal(rounds))
    raw = [{"round": n, "batch": 8, "block_s": [s] * 3, "latency_s": [s / 8] * 5} for n, s in enumerate(levels)]
    return combine(raw)


@pytest.mark.parametrize("rounds", [3, 4, 6])
def test_false_alarms_are_rare_and_a_fifth_is_seen(rounds: int):
    """A/A pairs: 5 % at most; 20 % slower with 2 % between rounds, the noisiest a quiet machine is: nearly always."""
    rng = np.random.default_rng(rounds)
    pairs = [(measured(rng, rounds, 0.02, 0.02), measured(rng, rounds, 0.02, 0.02)) for _ in range(400)]
    assert np.mean([speed_change(a, b).differs for a, b in pairs]) <= 0.05
    slower = [measured(rng, rounds, 0.024, 0.02) for _ in range(200)]
    found = [speed_change(a, b).verdict for (a, _), b in zip(pairs, slower, strict=False)]
    assert np.mean([verdict == "lower" for verdict in found]) >= {3: 0.75, 4: 0.95, 6: 0.99}[rounds]
    assert "higher" not in found


def test_without_rounds_nothing_is_said():
    once = measured(np.random.default_rng(0), 1, 0.02, 0.0)
    later = measured(np.random.default_rng(0), 1, 0.04, 0.0)
    found = speed_change(once, later)
    assert (found.verdict, found.differs, found.ratio) == ("unknown", False, pytest.approx(0.5))
    assert speed_change({}, later) is None
    assert speed_change(once, {"throughput_images_per_s_p50": float("nan")}) is None


def test_a_change_of_less_than_a_hundredth_is_no_change():
    rng = np.random.default_rng(0)
    a, b = measured(rng, 6, 0.02, 1e-5), measured(rng, 6, 0.0201, 1e-5)
    assert speed_change(a, b).apart and speed_change(a, b).verdict == "same"


def test_the_latency_of_older_records_has_the_noise_of_its_interval():
    """Both intervals are Student's over the same rounds, so their widths are in proportion to the noise."""
    rng = np.random.default_rng(1)
    found = measured(rng, 4, 0.02, 0.02) | {}
    own = noise(found, "latency_ms")
    assert own == pytest.approx(found["latency_noise_rel"])
    older = {k: v for k, v in found.items() if k != "latency_noise_rel"}
    assert noise(older, "latency_ms") == pytest.approx(own, rel=0.05)
    assert noise({}, "latency_ms") is None

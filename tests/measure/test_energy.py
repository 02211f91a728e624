"""Energy from a counter with known power."""

from __future__ import annotations

import pytest

from bench.machine.clock import Clock
from bench.measure import energy


class Board(Clock):
    """80 W at rest, 300 W at work; a step takes 10 ms."""

    def __init__(self, counts: bool = True) -> None:
        self.time = 0.0
        self.energy = 1e6
        self.counts = counts

    def spend(self, seconds: float, watts: float) -> None:
        self.time += seconds
        self.energy += seconds * watts * self.counts

    def now(self) -> float:
        return self.time

    mark = now

    def measure(self, window_s: float) -> dict:
        return energy.measure(
            lambda n: self.spend(0.01, 300.0), 32, self, lambda: self.energy, window_s, lambda s: self.spend(s, 80.0)
        )


def test_energy_an_image_with_idle_beside_it() -> None:
    found = Board().measure(5.0)
    assert found["energy_j_per_image"] == pytest.approx(300 * 0.01 / 32)
    assert found["energy_above_idle_j_per_image"] == pytest.approx(220 * 0.01 / 32)
    assert found["power_w"] == pytest.approx(300)
    assert found["power_idle_w"] == pytest.approx(80)
    assert found["energy_window_s"] >= 5
    assert "estimate" in found["energy_source"]


def test_a_counter_that_does_not_move_gives_no_figure() -> None:
    found = Board(counts=False).measure(1.0)
    assert found["energy_j_per_image"] is None
    assert found["power_w"] is None


def test_no_counter_on_a_cpu() -> None:
    assert energy.counter_for("cpu") is None

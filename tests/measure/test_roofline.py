"""The roofline, on machines that are made up and operators whose traffic is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.machine import ceilings
from bench.machine.ceilings import best_seconds
from bench.machine.clock import Clock
from bench.measure import roofline
from bench.measure.op_recorder import OperatorRecorder
from bench.measure.roofline import Ceilings, kept_ceilings, place

MACHINE = Ceilings("cpu", 1, 100.0, {"fp32": 1000.0})


@pytest.mark.parametrize(
    ("flops", "traffic", "bound", "attainable"),
    [(1e9, 1e9, "memory", 100.0), (1e9, 1e8, "compute", 1000.0), (1e9, 1e7, "compute", 1000.0)],
)
def test_place_under_the_roof(flops: float, traffic: float, bound: str, attainable: float) -> None:
    found = place(flops, traffic, 0.02, MACHINE, "fp32")
    figures = {"achieved_gflops_per_s": 50, "attainable_gflops_per_s": attainable, "mfu": 0.05}
    figures |= {"intensity_flop_per_byte": flops / traffic, "roofline_fraction": 50 / attainable}
    assert {name: found[name] for name in figures} == pytest.approx(figures)
    assert found["bound"] == bound


def traffic_of(work) -> int:
    recorder = OperatorRecorder()
    with recorder, torch.no_grad():
        work()
    return recorder.total_traffic()


def test_traffic_of_known_operators() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert traffic_of(lambda: a @ b) == 4 * (8 * 16 + 16 * 32 + 8 * 32)
    assert traffic_of(lambda: a + a) == 4 * 3 * 8 * 16
    assert traffic_of(lambda: a.view(-1).unsqueeze(0).transpose(0, 1)[2:]) == 0
    assert traffic_of(lambda: torch.empty(100)) == 0
    row = torch.randn(1, 16).expand(8, 16)
    assert traffic_of(lambda: a * row) == 4 * (2 * 8 * 16 + 16)  # the row is read once
    assert traffic_of(lambda: nn.functional.dropout(a, 0.5, training=False)) == 0


def test_a_ceiling_is_the_best_block() -> None:
    class Still(Clock):
        time = 0.0

        def now(self) -> float:
            return self.time

        mark = now

    clock = Still()

    def step(number: int) -> None:
        clock.time += 0.001 if number % 100 < 60 else 0.005

    assert best_seconds(step, clock, 0.3) == pytest.approx(0.001)


def test_ceilings_are_measured_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def measured(*args) -> Ceilings:
        calls.append(args)
        return MACHINE

    monkeypatch.setattr(roofline, "measure_ceilings", measured)

    def kept(hardware: str) -> Ceilings:
        return kept_ceilings("cuda:0", 4, "fp32", tmp_path / "ceilings", hardware)

    assert kept("Board A") == kept("Board A") == MACHINE
    assert len(calls) == 1
    (path,) = (tmp_path / "ceilings").iterdir()
    path.write_text("{")
    assert kept("Board A") == MACHINE
    assert len(calls) == 2
    kept("Board/B (8 cores)")  # another machine, on the same file system
    assert len(calls) == 3
    assert len(list((tmp_path / "ceilings").iterdir())) == 2


def test_measured_ceilings_are_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.COPY_BYTES, "cpu", 2**22)
    monkeypatch.setitem(ceilings.MATMUL_SIDE, "cpu", 256)
    found = roofline.measure_ceilings("cpu", torch.get_num_threads(), "fp32", seconds=0.02)
    assert found.copy_gb_per_s > 0.01
    assert found.gflops_per_s["fp32"] > 0.01

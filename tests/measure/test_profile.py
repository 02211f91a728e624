"""``bench profile`` on a network whose operators, modules and MACs are known."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from bench.cli import profile
from bench.cli.profile import main
from bench.machine.clock import Clock
from bench.measure.flops import count
from bench.measure.profile.passes import Call, operator_seconds, record_calls, timed, undisturbed
from bench.measure.profile.profile import Profile, profile_model, stage_of, why_busy
from bench.measure.roofline import Ceilings
from bench.measure.workload import set_precision
from bench.registry import RegistryError
from bench.registry.build import build


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(x).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stages = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def forward_calls(net: nn.Module, images: torch.Tensor) -> tuple[Call, ...]:
    with torch.no_grad():
        return record_calls(net, [("forward", lambda: net(images))])


def test_calls_know_their_module_macs_and_traffic() -> None:
    calls = forward_calls(Net().eval(), torch.randn(2, 3, 8, 8))
    convolutions = [(c.path, c.macs, c.traffic) for c in calls if c.operator == "aten::convolution"]
    image, maps = 4 * 2 * 3 * 64, 4 * 2 * 4 * 64
    assert convolutions == [
        ("stem", 2 * 64 * 12, image + maps + 4 * (12 + 4)),
        ("stages.0.mix", 2 * 64 * 4 * 36, 2 * maps + 4 * (144 + 4)),
        ("stages.1.mix", 2 * 64 * 4 * 36, 2 * maps + 4 * (144 + 4)),
    ]
    assert [c.path for c in calls if c.operator == "aten::relu"] == ["stages.0", "stages.1"]
    assert sum(c.macs for c in calls if c.path == "head") == 2 * 4 * 7


def test_macs_equal_the_flop_counters() -> None:
    net = build("vit_tiny_patch16_224", 64)
    calls = forward_calls(net.eval(), torch.randn(1, 3, 64, 64))
    assert sum(c.macs for c in calls) == round(count(net, (1, 3, 64, 64))["macs_g"] * 1e9)


CALLS = (
    Call("stem", "aten::convolution", 100, 10, 1.0),
    Call("stages.0.mix", "aten::convolution", 300, 30, 2.0),
    Call("stages.0", "aten::relu", 0, 20, 0.5),
    Call("stages.1.ssm", "medbench::cross_scan", 50, 5, 4.0),
    Call("", "aten::mean", 0, 5, 0.5),
    Call("head", "aten::addmm", 70, 7, 2.0),
)
KNOWN = Profile("net", 8, 2, "cpu", 1, 12.5, 0.2, CALLS)


def test_rows_add_up() -> None:
    stages = KNOWN.by_stage()
    assert [row.name for row in stages] == ["stem", "stages.0", "stages.1", "(model)", "head"]
    assert [row.share for row in stages] == [0.1, 0.25, 0.4, 0.05, 0.2]
    assert stages[1].macs == 300
    assert stages[1].traffic == 50
    assert [row.name for row in KNOWN.by_operator()][:2] == ["medbench::cross_scan", "aten::convolution"]
    for rows in (stages, KNOWN.by_operator()):
        assert sum(row.seconds for row in rows) == KNOWN.operators_s == 10
        assert sum(row.macs for row in rows) == 520
    assert [call.category for call in CALLS] == [
        "convolution", "convolution", "elementwise", "scan", "elementwise", "matrix product"
    ]  # fmt: skip


def test_the_backward_pass_belongs_to_the_modules_whose_gradients_it_computes() -> None:
    """Each convolution's MACs come twice (three times where its input has a gradient too), under its own name."""
    net, images = Net(), torch.randn(2, 3, 8, 8)
    loss: list[torch.Tensor] = []
    phases = [
        ("forward", lambda: loss.append(net(images).square().mean())),
        ("backward", lambda: loss.pop().backward()),
    ]
    calls = record_calls(net, phases)
    macs: dict[tuple[str, str], int] = {}
    for call in calls:
        macs[call.phase, call.path] = macs.get((call.phase, call.path), 0) + call.macs
    stem, block, head = 2 * 64 * 12, 2 * 64 * 4 * 36, 2 * 4 * 7
    forward = {"stem": stem, "stages.0.mix": block, "stages.1.mix": block, "head": head}
    assert {path: n for (phase, path), n in macs.items() if phase == "forward" and n} == forward
    backward = {"stem": stem, "stages.0.mix": 2 * block, "stages.1.mix": 2 * block, "head": 2 * head}
    assert {path: n for (phase, path), n in macs.items() if phase == "backward" and n} == backward
    relu = [call.path for call in calls if call.operator == "aten::threshold_backward"]
    assert relu == ["stages.1", "stages.0"]
    order = [stage_of(call.path) for call in calls if call.phase == "backward"]  # storing a gradient interrupts nobody
    assert [name for name, _ in itertools.groupby(order)] == [
        "(model)",
        "head",
        "(model)",
        "stages.1",
        "stages.0",
        "stem",
    ]


def test_a_share_of_the_roof_is_the_least_time_over_the_time_taken() -> None:
    """100 GFLOP/s and 10 GB/s: 5 G MACs need 0.1 s, 2 GB need 0.2 s."""
    calls = (
        Call("a", "aten::convolution", 5 * 10**9, 10**8, 0.5),
        Call("a", "aten::relu", 0, 2 * 10**9, 0.5),
        Call("b", "aten::mm", 0, 0, 0.0),
    )
    roof = Ceilings("cpu", 1, 10.0, {"fp32": 100.0})
    found = Profile("net", 8, 2, "cpu", 1, 2.0, 0.2, calls, ceilings=roof)
    assert [row.of_roof for row in found.by_stage()] == [pytest.approx(0.3), None]
    assert found.mfu == pytest.approx(0.05)
    assert Profile("net", 8, 2, "cpu", 1, 2.0, 0.2, calls).by_stage()[0].of_roof is None


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_fit_the_terminal_and_say_what_they_leave_out(width: int) -> None:
    out = io.StringIO()
    roof = Ceilings("cpu", 1, 10.0, {"fp32": 100.0})
    wide = replace(KNOWN, ceilings=roof, calls=tuple(replace(c, path=f"{c.path}_with_a_long_name") for c in CALLS))
    profile.print_tables(wide, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    table = out.getvalue().split("by stage", 1)[1]
    assert "of roof" in table and "ms" in table and "share" in table
    assert ("no room for: calls" in table) is (width < 140)
    assert "…" not in table


def test_a_training_step_has_three_phases_and_adds_up() -> None:
    net = Net()
    net.head = nn.Linear(4, 1000)  # the classes that training steps have labels of
    found = profile_model("net", 16, 4, model=net, train=True, precision="bf16")
    assert found.mode == "train"
    assert {call.phase for call in found.calls} == {"forward", "backward", "optimizer"}
    names = [row.name for row in found.by_stage()]
    assert names.index("stages.1") < names.index("stages.1 backward") < names.index("stages.0 backward")
    assert names[-1] == "(optimizer)"
    assert sum(row.seconds for row in found.by_stage()) == pytest.approx(found.operators_s)
    assert [box.name for box in profile.boxes(found).inside][-2:] == ["backward", "optimizer"]
    assert any(call.operator == "aten::_to_copy" for call in found.calls)  # autocast's


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"precision": "tf32"},
            "bench: --precision tf32: tf32 is a mode of CUDA devices; fp32 and bf16 run on the CPU",
        ),
        (
            {"train": True},
            "bench: --train --batch 1: batch norm cannot be trained on one image; take --batch 2 or more",
        ),
        ({"compile": True}, "bench: --compile: torch.compile needs a C++ compiler, and there is no g++"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_one_line(
    changed: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(options(**changed)) == 2
    assert capsys.readouterr().err.startswith(words)


class FakeMachine(Clock):
    """A CPU on simulated time: a step computes for 17 ms and waits for others in between."""

    def __init__(self, waits_s: float) -> None:
        self.waits_s, self.wall, self.cpu = waits_s, 0.0, 0.0

    def step(self, number: int) -> None:
        self.wall += 0.017 + self.waits_s
        self.cpu += 0.017

    def now(self) -> float:
        return self.wall

    mark = now


@pytest.mark.parametrize(("waits_s", "busy"), [(0.0, False), (0.002, False), (0.8649, True)])
def test_a_busy_machine_is_said_to_be_busy(waits_s: float, busy: bool) -> None:
    """Seen: 881.9 ms a step, whose stages added up to 17."""
    machine = FakeMachine(waits_s)
    alone = undisturbed(machine.step, machine, lambda: machine.cpu)
    assert alone.step_s == pytest.approx(0.017 + waits_s)
    calls = [Call("a", "aten::mm", 0, 0, 0.017)]
    assert (why_busy(alone.step_s, alone.cpu_share, calls) is not None) is busy
    # With cores spinning for each other, or on a GPU, the processor's time says nothing: the sum of the stages does.
    assert why_busy(alone.step_s, None, calls) == (
        "a step took 881.9 ms, but its operators add up to 17 ms" if busy else None
    )


def test_many_small_launches_are_no_busy_machine() -> None:
    assert why_busy(0.004, 1.0, [Call("a", "aten::add", 0, 0, 1e-6)] * 400) is None


def test_command_warns_of_a_busy_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "profile_model", lambda *a, **k: replace(KNOWN, busy="other processes had the rest"))
    assert main(options()) == 0
    shown = capsys.readouterr()
    assert "unreliable profile, the machine was busy: other processes had the rest" in shown.err
    assert json.loads(shown.out)["busy"] == "other processes had the rest"


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("layers.2.blocks.0.op", "layers.2"),
        ("head", "head"),
        ("", "(model)"),
        ("norm.weight_fn", "norm"),
        ("blocks.7", "blocks.7"),
    ],
)
def test_stage_of_a_path(path: str, stage: str) -> None:
    assert stage_of(path) == stage


def test_times_are_matched_by_name_and_order_and_outliers_dropped() -> None:
    calls = [Call("a", "x", 0, 0), Call("b", "y", 0, 0), Call("c", "x", 0, 0)]
    times = {"x": [1.0, 3.0, 1.0, 3.0, 99.0, 3.0], "y": [2.0, 2.0, 2.0]}
    assert [c.seconds for c in timed(calls, times, 3)] == [1.0, 2.0, 3.0]
    unequal = {"x": [1.0, 3.0, 2.0, 3.0, 3.0], "y": []}
    assert [c.seconds for c in timed(calls, unequal, 3)] == [2.0, 0.0, 2.0]


def test_profile_of_a_real_model_explains_its_time(tmp_path: Path) -> None:
    trace = tmp_path / "new" / "trace.json"
    found = profile_model("net", 32, 4, trace=trace, model=Net())
    assert all(call.seconds > 0 for call in found.calls if call.macs)
    assert 0 < found.outside < 1
    assert {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]} >= {"aten::convolution"}
    assert found.operators_s < found.step_s * 20  # what an operator calls itself is not counted again


def test_float32_is_not_tf32() -> None:
    set_precision("tf32")  # as an earlier user of the process may have left it
    seen: list[tuple[str, bool]] = []

    class Looking(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(x)

    try:
        profile_model("net", 8, 1, model=Looking())
    finally:
        set_precision("fp32")
    assert set(seen) == {("highest", False)}


def test_what_a_model_cannot_do_is_refused_before_it_is_built() -> None:
    with pytest.raises(RegistryError, match=r"model vit_tiny_patch16_224 at 33 pixels: .*16"):
        profile_model("vit_tiny_patch16_224", 33)


def test_what_an_operator_calls_itself_is_part_of_it() -> None:
    """A convolution reserves memory by ``aten::empty``, which the network also calls on its own."""

    class Reserving(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.empty(x.shape).copy_(x))

    times, wall_s = operator_seconds(
        lambda n: Reserving(3, 8, 3).requires_grad_(False)(torch.zeros(1, 3, 8, 8)), 3, "cpu", None,
        {"aten::empty", "aten::convolution"},
    )  # fmt: skip
    assert len(times["aten::convolution"]) == 3
    alone = operator_seconds(lambda n: torch.empty(3), 3, "cpu", None, {"aten::empty"})[0]
    assert len(alone["aten::empty"]) == 3
    assert sum(map(sum, times.values())) <= wall_s


def test_tables_and_picture(tmp_path: Path) -> None:
    out = io.StringIO()
    profile.print_tables(KNOWN, Console(file=out, width=100), operators=2)
    text = out.getvalue()
    words = " ".join(text.split())
    # The two figures are of different steps: the profiled ones carry the profiler's own work.
    assert "1.25e+04 ms a step; under the profiler" in words
    assert "20% of the time was outside operators" in words
    assert "stages.1" in text
    assert "3 more" in text
    picture = tmp_path / "deep" / "net.png"
    profile.draw(KNOWN, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_boxes_nest_modules_in_order() -> None:
    root = profile.boxes(KNOWN)
    assert root.seconds == 10
    assert [(box.name, box.start, box.seconds) for box in root.inside] == [
        ("stem", 0.0, 1.0),
        ("stages.0", 1.0, 2.5),
        ("stages.1", 3.5, 4.0),
        ("mean", 7.5, 0.5),
        ("head", 8.0, 2.0),
    ]
    assert [box.name for box in root.inside[1].inside] == ["mix", "relu"]


def options(**changed: Any) -> argparse.Namespace:
    usual = {"model": "resnet18", "resolution": 32, "batch": 1, "device": "cpu", "trace": None, "picture": None}
    flags = {"json": True, "precision": "fp32", "train": False, "compile": False, "threads": 1}
    return argparse.Namespace(**usual | flags | changed)


def test_command_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    assert main(options(picture=picture)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "resnet18"
    assert sum(row["macs"] for row in found["stages"]) == sum(row["macs"] for row in found["operators"]) > 1e6
    assert picture.is_file()
    assert 0 < found["mfu"] < 1.5 and found["ceilings"]["gflops_per_s"]["fp32"] > 0
    assert all(row["of_roof"] > 0 for row in found["stages"] if row["macs"])

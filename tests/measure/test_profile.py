"""``bench profile`` on a network whose operators, modules and MACs are known."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from bench.measure import profile_view
from bench.measure.build import build
from bench.measure.flops import count
from bench.measure.profile import Call, Profile, _operator_seconds, _timed, main, profile_model, record_calls, stage_of
from bench.measure.workload import set_precision
from bench.registry import RegistryError


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


def test_calls_know_their_module_macs_and_traffic() -> None:
    with torch.no_grad():
        calls = record_calls(Net().eval(), torch.randn(2, 3, 8, 8))
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
    with torch.no_grad():
        calls = record_calls(net.eval(), torch.randn(1, 3, 64, 64))
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
    assert [c.seconds for c in _timed(calls, times, 3)] == [1.0, 2.0, 3.0]
    unequal = {"x": [1.0, 3.0, 2.0, 3.0, 3.0], "y": []}
    assert [c.seconds for c in _timed(calls, unequal, 3)] == [2.0, 0.0, 2.0]


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

    times, wall_s = _operator_seconds(
        lambda n: Reserving(3, 8, 3).requires_grad_(False)(torch.zeros(1, 3, 8, 8)), 3, "cpu", None,
        {"aten::empty", "aten::convolution"},
    )  # fmt: skip
    assert len(times["aten::convolution"]) == 3
    alone = _operator_seconds(lambda n: torch.empty(3), 3, "cpu", None, {"aten::empty"})[0]
    assert len(alone["aten::empty"]) == 3
    assert sum(map(sum, times.values())) <= wall_s


def test_tables_and_picture(tmp_path: Path) -> None:
    out = io.StringIO()
    profile_view.print_tables(KNOWN, Console(file=out, width=100), operators=2)
    text = out.getvalue()
    words = " ".join(text.split())
    # The two figures are of different steps: the profiled ones carry the profiler's own work.
    assert "1.25e+04 ms a step; under the profiler" in words
    assert "20% of the time was outside operators" in words
    assert "stages.1" in text
    assert "3 more" in text
    picture = tmp_path / "deep" / "net.png"
    profile_view.draw(KNOWN, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_boxes_nest_modules_in_order() -> None:
    root = profile_view.boxes(KNOWN)
    assert root.seconds == 10
    assert [(box.name, box.start, box.seconds) for box in root.inside] == [
        ("stem", 0.0, 1.0),
        ("stages.0", 1.0, 2.5),
        ("stages.1", 3.5, 4.0),
        ("mean", 7.5, 0.5),
        ("head", 8.0, 2.0),
    ]
    assert [box.name for box in root.inside[1].inside] == ["mix", "relu"]


def test_command_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    options = argparse.Namespace(
        model="resnet18", resolution=32, batch=1, device="cpu", trace=None, picture=picture, json=True
    )
    assert main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "resnet18"
    assert sum(row["macs"] for row in found["stages"]) == sum(row["macs"] for row in found["operators"]) > 1e6
    assert picture.is_file()

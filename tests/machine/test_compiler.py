"""What a machine lacks to compile is said in the plan, with its remedy."""

from __future__ import annotations

import io
import shutil
import sysconfig
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli.listing import print_plan
from bench.machine import compiler
from bench.plan.plan import make_plan
from bench.sweep.config import load


@pytest.fixture(autouse=True)
def _usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("g++", "gcc") else None)
    monkeypatch.setattr(compiler.sys, "platform", "linux")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_with_everything_there_is_nothing_to_say(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.util, "find_spec", lambda name: object())
    assert compiler.why_not_compiled(device) is None


@pytest.mark.parametrize(
    ("device", "variables", "words"),
    [
        ("cpu", {}, "needs a C++ compiler, and there is no g++: install one or set CXX"),
        ("cpu", {"CXX": "icpx"}, "needs a C++ compiler, and CXX = icpx is no program"),
        ("cuda:0", {}, "needs a C compiler, and there is no gcc or clang: install one or set CC"),
    ],
)
def test_a_compiler_that_is_not_there_is_named(
    device: str, variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert words in str(compiler.why_not_compiled(device))


def test_headers_and_triton_are_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.util, "find_spec", lambda name: None)
    assert "needs Triton on a GPU" in str(compiler.why_not_compiled("cuda:0"))
    (tmp_path / "Python.h").unlink()
    assert compiler.why_not_compiled("cpu") == (
        f"torch.compile needs Python's headers, and there is no {tmp_path}/Python.h: install python3-dev"
    )


def test_a_plan_has_compiled_cells_as_unsupported_and_the_eager_ones_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    asked = {"sweep.models": "resnet18", "sweep.kinds": "efficiency", "run.device": "cpu"}
    plan = make_plan(load(None, None, asked, ["efficiency.compile=[false, true]"]))
    reasons = {cell.compile: plan.unsupported.get(key) for key, cell in plan.cells.items()}
    assert reasons == {False: None, True: compiler.why_not_compiled("cpu")}


def test_the_paper_preset_says_on_a_cpu_what_it_cannot_do_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"sweep.models": "resnet18", "sweep.kinds": "efficiency", "run.device": "cpu"}
    plan = make_plan(load(None, "paper", asked))
    cells = plan.cells
    assert {cell.batch for cell in cells.values()} >= {0, 1}
    assert {cell.compile for cell in cells.values()} == {False, True}
    assert {cells[key].precision for key in plan.unsupported} == {"tf32"}
    assert {key for key, cell in cells.items() if cell.precision == "tf32"} == set(plan.unsupported)
    assert set(plan.unsupported.values()) == {"tf32 is a mode of CUDA devices"}
    out = io.StringIO()
    print_plan(plan, tmp_path, Console(file=out, width=200))
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("unsupported"))
    assert line == "unsupported: resnet18 at 64 to 1024 px: tf32 is a mode of CUDA devices (112 cells)"

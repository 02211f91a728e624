"""The instrument behind `bench ops`: its shapes and floors, that it catches a wrong backend, and its output."""

from __future__ import annotations

import json
import types

import pytest
import torch
from rich.console import Console
from torch import Tensor

from bench.ops import dispatch
from bench.ops.backends import reference
from bench.ops.benchmark import cases, run
from bench.ops.benchmark.tables import tables

TINY = {"resolutions": (32,), "models": ("vmamba",), "backends": ["reference"], "seconds_per_case": 0.01}


def test_updates_and_exponentials_are_those_of_the_roofline() -> None:
    """shared/reference/gpu_roofline.md: stage 1 of MedMamba-T at 224, batch 64 evaluates 1.233 G exponentials."""
    case = cases.model_cases(("medmamba",), (224,), (64,))[0]
    assert (case.height, case.channels, case.states, case.rank) == (56, 96, 16, 3)
    assert case.updates == 1_233_125_376
    # 0.295 ms of exponentials at 4.18 T/s, 0.332 ms with exp and log of softplus
    assert round(case.updates / 4.18e12 * 1e3, 3) == 0.295
    assert round(case.floor_exps(backward=False) / 4.18e12 * 1e3, 3) == 0.332
    # Per pixel: 96 in, 96 out, 4 x 35 projected.
    assert case.floor_bytes(False, 4) == 64 * 3136 * 4 * (96 + 96 + 140)
    assert case.floor_bytes(True, 2) == 64 * 3136 * 2 * (332 + 3 * 96 + 2 * 140)


def test_grids_round_as_the_networks_do() -> None:
    """tests/fixtures README: MedMamba 100 -> 25, 12, 6, 3; VMamba 100 -> 25, 13, 7, 4."""
    grids = {model: [c.height for c in cases.model_cases((model,), (100,), (1,))]
             for model in ("medmamba", "vmamba")}  # fmt: skip
    assert grids == {"medmamba": [25, 12, 6, 3], "vmamba": [25, 13, 7, 4]}


@pytest.fixture
def wrong_backend(monkeypatch: pytest.MonkeyPatch):
    """A backend that is right up to a relative error in the output or in one gradient."""

    def install(forward: float, backward: float) -> None:
        module = types.ModuleType("wrong")
        vars(module).update({k: v for k, v in vars(reference).items() if not k.startswith("__")})

        def cross_scan_forward(*a, **k):
            y, carry = reference.cross_scan_forward(*a, **k)
            return y * (1 + forward), carry

        def cross_scan_backward(*a, **k):
            *first, last = reference.cross_scan_backward(*a, **k)
            return *first, last * (1 + backward)

        module.cross_scan_forward, module.cross_scan_backward = cross_scan_forward, cross_scan_backward
        monkeypatch.setitem(dispatch.MODULES, "wrong", "wrong")
        monkeypatch.setattr(dispatch, "import_module", lambda name: module if name == "wrong" else reference)
        dispatch.why_unavailable.cache_clear()

    yield install
    monkeypatch.undo()
    dispatch.why_unavailable.cache_clear()


@pytest.mark.parametrize(
    ("forward", "backward", "blamed"), [(1e-5, 0.0, "output"), (0.0, 1e-5, "D"), (float("nan"), 0.0, "output")]
)
def test_a_wrong_backend_fails_the_check(forward: float, backward: float, blamed: str, wrong_backend) -> None:
    wrong_backend(forward, backward)
    rows = run.check_backends(["wrong"], torch.device("cpu"), torch.float32)
    cross = [row for row in rows if row["case"].startswith("cross")]
    assert cross and not any(row["ok"] for row in cross)
    assert all(row["failures"][0].startswith(blamed) for row in cross)
    assert all(row["ok"] for row in rows if row not in cross)


def test_a_right_backend_passes_in_every_type(wrong_backend) -> None:
    wrong_backend(0.0, 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        assert all(row["ok"] for row in run.check_backends(["wrong"], torch.device("cpu"), dtype))


def test_rows_and_tables() -> None:
    rows = run.run("cpu", **TINY, check=False)
    assert json.loads(json.dumps(rows)) == rows
    ceilings, *times = rows
    assert [row["stage"] for row in times] == [1, 1, 2, 2, 3, 3, 4, 4]
    times = times[:2]
    assert ceilings["kind"] == "ceilings" and ceilings["copy_bytes_per_s"] > 1e8 and ceilings["exp_per_s"] > 1e7
    assert [row["pass"] for row in times] == ["forward", "forward+backward"]
    for row in times:
        assert row["updates_per_s"] == pytest.approx(row["updates"] / row["ms"] * 1e3)
        assert row["floor_ms"] == pytest.approx(row["fraction_of_floor"] * row["ms"])
        assert row["ms_min"] <= row["ms"] and row["rounds"] >= run.MIN_ROUNDS
    assert times[0]["saved_bytes"] == 0
    case = cases.model_cases(("vmamba",), (32,), (1,))[0]
    inputs: list[Tensor] = cases.cross_inputs(case, torch.float32, torch.device("cpu"))
    carry = 4 * 96 * 4  # one chunk's state: directions x channels x 1 state, float32
    assert times[1]["saved_bytes"] == sum(t.numel() * 4 for t in inputs) + carry
    console = Console(width=200, record=True)
    console.print(tables(rows))
    assert "vmamba s1 32 px b1" in console.export_text()


def test_a_backend_that_would_take_too_long_is_skipped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CALL_LIMIT_S", 0.0)
    rows = run.run("cpu", **TINY, check=False)
    assert [row.get("status") for row in rows[1:]] == ["ok", "ok", *["skipped"] * 6]
    assert "a call would take about" in rows[3]["reason"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown scan backend 'fast'; the backends are"):
        run.run("cpu", backends=["fast"])
    with pytest.raises(ValueError, match="'mamba-ssm' cannot run on cpu: "):
        run.run("cpu", backends=["mamba-ssm"])
    with pytest.raises(ValueError, match="unknown dtype 'float8'"):
        run.run("cpu", dtype="float8")


def test_command_line_writes_json_and_fails_with_the_check(tmp_path, wrong_backend) -> None:
    wrong_backend(1e-4, 0.0)
    options = [
        "--device",
        "cpu",
        "--resolutions",
        "32",
        "--models",
        "vmamba",
        "--seconds-per-case",
        "0.01",
    ]
    target = tmp_path / "ops.json"
    assert run.main([*options, "--backends", "wrong", "--json", str(target)]) == 1
    assert {row["kind"] for row in json.loads(target.read_text())} == {"ceilings", "check", "time"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--resolutions 64,16", "--resolutions 16: the last stage has no pixel below 32"),
        ("--resolutions 64 224", "unrecognized arguments: 224; lists are separated by commas, as 64,224"),
        ("--resolutions 64,x", "64,x: write whole numbers, as 64,224"),
        ("--models medmamba,resnet18", "'resnet18' is none of medmamba, vmamba"),
    ],
)
def test_flags_that_cannot_be_are_answered_with_what_to_write(
    flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(["--device", "cpu", *flags.split()])
    assert said in capsys.readouterr().err

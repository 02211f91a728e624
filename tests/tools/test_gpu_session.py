"""The GPU session in one command: its plan is accepted by the commands it calls, its time is kept, it goes on."""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from pathlib import Path

import pytest

from bench.registry import expand_models
from bench.sweep.config import load
from tools import gpu_session
from tools.gpu_session import FAMILIES, GRID, OUT_OF_TIME, Command, main, pack, run_session, run_step, steps, unpack


def test_the_whole_grid_of_the_issue_is_in_the_last_part() -> None:
    resolutions, batches, precisions, compiled, modes = (set(text.split(",")) for text in GRID["the rest"])
    assert resolutions == {"64", "128", "224", "384", "512", "768", "1024"}
    assert batches == {"1", "32", "128", "0"}
    assert (precisions, compiled, modes) == ({"fp32", "tf32", "bf16"}, {"false", "true"}, {"infer", "train"})


def test_every_sweep_of_the_plan_is_a_valid_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = steps(tmp_path, "cuda:0", tiny=False)
    assert [step.name for step in plan] == ["kernels", "training", *GRID]
    for step in plan[2:]:
        asked = [text for flag, text in zip(step.arguments, step.arguments[1:], strict=False) if flag == "--set"]
        grid = load(sets=asked).sweep.efficiency
        assert grid.rounds == 3 and grid.resolutions and set(grid.modes) <= {"infer", "train"}
    assert len(expand_models(FAMILIES.split(","))) == 7


def test_the_instruments_accept_their_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.ops.benchmark import run as ops_bench
    from tools import gpu_check

    plan = {step.name: step for step in steps(tmp_path, "cuda:0", tiny=False)}
    plan |= {"tiny": steps(tmp_path, "cpu", tiny=True)[0]}
    real = argparse.ArgumentParser.parse_known_args
    for name, module in (("kernels", ops_bench), ("tiny", ops_bench), ("training", gpu_check)):

        def accepted(self: argparse.ArgumentParser, arguments: list[str], *others: object) -> None:
            assert real(self, arguments)[1] == []
            raise KeyboardInterrupt

        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", accepted)
        with pytest.raises(KeyboardInterrupt):
            module.main(list(plan[name].arguments[2:]))


def test_time_is_kept_and_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    (tmp_path / "made").touch()
    asked: list[tuple[str, float]] = []

    def run(step: Command, seconds: float, log: Path) -> int:
        asked.append((step.name, seconds))
        now[0] += min(40.0, seconds)
        return 1 if step.name == "bad" else 0 if seconds > 40 else OUT_OF_TIME

    plan = [
        Command("before", (), tmp_path / "made"),
        Command("bad", ()),
        Command("good", ()),
        Command("long", ()),
        Command("never", ()),
    ]
    assert run_session(plan, 100.0, tmp_path / "log", run) == [
        ("before", "done before"), ("bad", "exit status 1"), ("good", "done"), ("long", "out of time"),
        ("never", "not begun"),
    ]  # fmt: skip
    assert asked == [("bad", 100.0), ("good", 60.0), ("long", 20.0)]


def test_a_step_is_interrupted_as_a_user_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polite = "import signal, sys, time\nprint('began', flush=True)\ntry:\n time.sleep(60)\n"
    polite += "except KeyboardInterrupt:\n print('ended cleanly')"
    assert run_step(Command("polite", ("-c", polite)), 1.0, tmp_path / "log") == OUT_OF_TIME
    assert "ended cleanly" in (tmp_path / "log").read_text()
    monkeypatch.setattr(gpu_session, "GRACE_S", 0.5)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    begin = time.monotonic()
    assert run_step(Command("deaf", ("-c", deaf)), 0.5, tmp_path / "log") == OUT_OF_TIME
    assert time.monotonic() - begin < 20
    assert run_step(Command("wrong", ("-c", "raise SystemExit(4)")), 30.0, tmp_path / "log") == 4


def test_an_archive_carries_a_session_to_the_next_machine(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "sweep" / "cells").mkdir(parents=True)
    (first / "sweep" / "cells" / "ab.json").write_text("{}")
    pack(first, tmp_path / "deep" / "gpu.tar.xz")
    unpack(tmp_path / "deep" / "gpu.tar.xz", second)
    assert (second / "sweep" / "cells" / "ab.json").read_text() == "{}"
    unpack(tmp_path / "none.tar.xz", second)  # a first session has nothing to go on from
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    with pytest.raises(tarfile.ReadError, match="outside"):
        unpack(tmp_path / "bad.tar.xz", second)
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_session_on_the_cpu_leaves_tables(tmp_path: Path) -> None:
    archive, out = tmp_path / "gpu.tar.xz", tmp_path / "gpu"
    arguments = ["--device", "cpu", "--tiny"]
    arguments += ["--out", str(out), "--archive", str(archive)]
    status = main(arguments)
    assert status == 0, (out / "session.log").read_text()
    board = (out / "sweep" / "LEADERBOARD.md").read_text()
    assert "tf32 is a mode of CUDA devices" in board
    assert "of the roof" in board
    assert archive.stat().st_size > 1000
    before = (out / "session.log").read_text()
    assert main(arguments) == 0
    again = (out / "session.log").read_text().removeprefix(before)  # the archive brought the first part back
    assert again.count("0 cells to run") == again.count("cells to run") == 2

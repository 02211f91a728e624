"""What a sweep costs: beside real timings, counted images, and the question before a long one."""

import io
import sys
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from bench.cli import run
from bench.cli.main import main
from bench.plan.estimate import LONG_S, Cost, cost_of, estimate_s, long_time
from bench.plan.memory import memory_bytes
from bench.plan.plan import make_plan
from bench.sweep.config import ConfigError, load

# Images a second that two quiet cores trained at 64 px with batches of 32 (issue 16, point 5).
MEASURED = {
    "resnet18": 260,
    "vit_tiny_patch16_224": 245,
    "medmamba_tiny": 102,
    "vmamba_tiny": 56,
    "swin_tiny_patch4_window7_224": 56,
}
MAIN_JOB = ["--models", "all", "--datasets", "medmnist", "--device", "cpu", "--threads", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))


def planned(**flags):
    base = {"run.device": "cpu", "run.threads": 2, "sweep.kinds": "accuracy"}
    return make_plan(load(flags={**base, **{key.replace("__", "."): value for key, value in flags.items()}}))


@pytest.mark.parametrize("model", MEASURED)
def test_the_estimate_is_within_a_factor_of_two_of_measured_speeds(model):
    plan = planned(sweep__models=model, sweep__datasets="phantom_local", sweep__resolutions="64", sweep__recipe="quick")
    (cell,) = plan.cells.values()
    recipe = {**cell.recipe, "epochs": 1000}  # so that building and scoring do not count
    seconds = estimate_s(replace(cell, recipe=recipe), 2, "cpu") - estimate_s(cell, 2, "cpu")
    speed = (1000 - cell.recipe["epochs"]) * (1200 + 300 / 3) / seconds
    assert MEASURED[model] / 2 < speed < MEASURED[model] * 2


def test_images_of_ones_own_are_counted(tmp_path):
    for split, count in (("train", 40), ("val", 8), ("test", 12)):
        for index in range(count):
            path = tmp_path / "own" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 40), index).save(path)
    plan = planned(sweep__models="resnet18", sweep__datasets=f"folder:{tmp_path / 'own'}", sweep__resolutions="32")
    cost = cost_of(plan, ())
    (key,) = plan.cells
    predictions = 20 * 8 * 3 + 20_000
    checkpoint = 16 * 11_689_512  # torchvision's ResNet-18
    assert (
        cost.disk == 60 * 32 * 32 + predictions + checkpoint
        and cost.memory[0] == memory_bytes(plan.cells[key]) > checkpoint
    )
    assert cost_of(plan, {key}) == Cost(0, 0, 0, (0, 0), (), {})  # what is done costs nothing


def test_the_main_job_is_years_here_and_the_flags_shorten_it():
    plan = planned(sweep__models="all", sweep__datasets="medmnist")
    cost = cost_of(plan, ())
    assert cost.seconds > 365 * 86_400 and len(plan.cells) == 13 * 12
    text = run.warning(plan, cost)
    for part in ("years", "--resolutions 64", "--epochs 10", "--models", "GPU", "--preset quick"):
        assert part in text
    fewer = planned(sweep__models="all", sweep__datasets="medmnist", sweep__resolutions="64")
    assert cost.cheaper["--resolutions 64"] == pytest.approx(cost_of(fewer, ()).seconds, rel=1e-6)
    shorter = planned(sweep__models="all", sweep__datasets="medmnist", sweep__epochs="10")
    assert cost.cheaper["--epochs 10"] == pytest.approx(cost_of(shorter, ()).seconds, rel=1e-6)


def test_without_a_terminal_a_long_sweep_is_refused_before_anything_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    monkeypatch.setattr("bench.runner.sweep.unresolved", lambda file: None)  # as where there is a network
    assert main(["run", *MAIN_JOB]) == 2
    said = capsys.readouterr()
    assert "years" in said.out and "--yes" in said.err and "missing" in said.err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


@pytest.mark.parametrize(("answer", "starts"), [("y", True), ("Yes", True), ("", False), ("n", False)])
def test_in_a_terminal_it_asks(answer, starts, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    plan = planned(sweep__models="resnet18", sweep__datasets="breastmnist", sweep__resolutions="32")
    monkeypatch.setattr(sys, "stdin", Terminal(answer + "\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    long = Cost(3, 2 * LONG_S, 0, (0, 0), (), {})
    console = Console(file=io.StringIO())
    if starts:
        run.agree(plan, long, console, yes=False)
    else:
        with pytest.raises(ConfigError, match="not started"):
            run.agree(plan, long, console, yes=False)
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked"))
    run.agree(plan, long, console, yes=True)
    run.agree(plan, replace(long, seconds=LONG_S / 2), console, yes=False)


def test_a_plan_ends_with_the_total_and_names_what_is_bundled(capsys):
    assert main(["plan"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[-1].startswith("total: roughly") and "disk" in lines[-1] and "memory" in lines[-1]
    assert any("breastmnist at 28 px: bundled" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(50, "50 s"), (600, "10 min"), (7200, "2 hours"), (864_000, "10 days"), (1e8, "3.2 years")]
)
def test_times_are_said_in_their_own_unit(seconds, text):
    assert long_time(seconds) == text


def test_the_gpu_estimate_has_a_least_time_a_step():
    plan = planned(sweep__models="resnet18", sweep__datasets="breastmnist", sweep__resolutions="32")
    (cell,) = plan.cells.values()
    assert estimate_s(cell, 2, "cuda:0") >= 100 * 546 / 128 * 0.01  # 10 ms: ResNet-18's step at 64 px on an H100

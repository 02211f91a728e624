"""A whole efficiency Cell on networks with planted behaviour."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from bench import registry
from bench.machine import hardware
from bench.machine.clock import Clock
from bench.measure import efficiency, flops, roofline, timing
from bench.measure.aggregate import combine
from bench.measure.efficiency import measure_round
from bench.measure.op_recorder import OperatorRecorder
from bench.measure.workload import Workload, touch_libraries
from bench.ops import chosen_backend
from bench.record.cells import Context, EfficiencyCell, Result
from bench.report.compare.gate_stats import speed_evidence

ROOT = Path(__file__).resolve().parents[2]


class Planted(nn.Module):
    """A small convolution that also sleeps, fails or keeps what it should not."""

    def __init__(self, num_classes: int, in_chans: int, img_size: int, **planted: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)
        self.planted = planted
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.planted.get("sleep_ms", 0) / 1e3)
        if len(x) > self.planted.get("fits", 1e9):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} MiB.")
        if self.planted.get("broken"):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        if mib := self.planted.get("leak_mib"):
            self.kept.append(torch.ones(mib * 2**18))
        if self.planted.get("waits"):
            float(x.sum())
        if self.planted.get("fourier"):
            x = torch.fft.fft2(x).real
        if self.planted.get("untraceable") and torch.jit.is_tracing():
            raise TypeError("this network asks for a plain number")
        if self.planted.get("untrainable") and x.device.type == "meta" and torch.is_grad_enabled() and self.training:
            raise KeyError("no such kernel")
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module", autouse=True)
def _register() -> Iterator[None]:
    registry.register_model("planted_net", family="planted")(lambda **kw: Planted(**kw))
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)


@pytest.fixture(autouse=True)
def _given_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(device: str, threads: int, precision: str) -> roofline.Ceilings:
        return roofline.Ceilings(device, threads, 10.0, {precision: 100.0})

    monkeypatch.setattr(roofline, "measure_ceilings", given)


def cell(model: str = "planted_net", **changes: Any) -> EfficiencyCell:
    facts: dict[str, Any] = {
        "model": model,
        "resolution": 16,
        "batch": 2,
        "precision": "fp32",
        "compile": False,
        "mode": "infer",
        "device": "cpu",
        "hardware": "test",
        "threads": 1,
        "backend": "reference",
        "versions": {},
        "budget_s": 0.05,
        "rounds": 2,
    }
    return EfficiencyCell(**facts | changes)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("cpu", 1, None, None, tmp_path, lambda event: None)


def run_efficiency(cell: EfficiencyCell, context: Context) -> Result:
    """All rounds of a Cell in this process, combined; or the first that did not go well."""
    rounds: list[dict[str, Any]] = []
    for number in range(cell.rounds):
        result = measure_round(cell, context, number)
        if result.status != "ok":
            return result
        rounds.append(result.metrics)
    return Result(combine(rounds))


IN_FRESH_PROCESS = """
import importlib.util, json, sys
from pathlib import Path
import torch
from bench import registry
from bench.record.cells import Context
from bench.measure.efficiency import measure_round
spec = importlib.util.spec_from_file_location("planted_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
torch.compile = tests.hoarding_compiler
registry.register_model("planted_net", family="planted")(lambda **kw: tests.Planted(**kw))
context = Context("cpu", 1, None, None, Path(sys.argv[2]), lambda event: None)
cells = [tests.cell(**changes) for changes in json.loads(sys.argv[3])]
print(json.dumps([measure_round(cell, context, 0).metrics["static"] for cell in cells]))
"""


def in_fresh_process(out: Path, *cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Static figures of Cells, one after the other in a new interpreter: this one's malloc was used and told things."""
    command = [sys.executable, "-c", IN_FRESH_PROCESS, __file__, str(out), json.dumps(cells)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=200).stdout
    return list(json.loads(said.splitlines()[-1]))


def hoarding_compiler(module: nn.Module, dynamic: bool) -> Any:
    """In place of torch.compile: keeps 150 MiB, as compilers keep graphs, caches and libraries."""
    hoard: list[torch.Tensor] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        if not hoard:
            hoard.append(torch.ones(150 * 2**18))
        return module(x)

    return run


def test_an_inference_cell_has_all_its_figures(context: Context) -> None:
    result = run_efficiency(cell(), context)
    assert result.status == "ok"
    found = result.metrics
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["params"] == 4 * 28 + 8 + 4 * 1000 + 1000
    assert found["macs_by_operator"] == {"conv": 14 * 14 * 4 * 27, "linear": 4000}
    assert found["rounds"] == 2
    for name in ("throughput_images_per_s_p50", "latency_ms_p50", "mfu", "traffic_mib_per_image"):
        assert found[name] > 0, name
    assert "forward_ms_p50" not in found


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Static figures of Cells by name, all from one new interpreter: importing torch takes longer than all of them.

    The one whose maps may come from malloc is first; what the others plant is too large for it.
    """
    cells: dict[str, dict[str, Any]] = {
        "large": {"resolution": 512, "batch": 8}, "plain": {}, "leaking": {"model": LEAKING},
        "compiled": {"compile": True}, "compiled, leaking": {"model": LEAKING, "compile": True},
    }  # fmt: skip
    return dict(zip(cells, in_fresh_process(tmp_path_factory.mktemp("fresh"), *cells.values()), strict=True))


def test_the_memory_of_a_fresh_process_holds_at_least_the_images_and_two_maps(fresh: dict[str, dict[str, Any]]) -> None:
    """While the norm runs, the images, its input and its output are there."""
    images, maps = 4 * 8 * 3 * 512**2, 4 * 8 * 4 * 510**2
    found = fresh["large"]
    assert images + 2 * maps <= found["peak_memory_mib"] * 2**20 < 3 * (images + 2 * maps)


def test_a_training_cell_has_its_split_and_what_backward_keeps(context: Context) -> None:
    found = run_efficiency(cell(mode="train"), context).metrics
    assert {"forward_ms_p50", "backward_ms_p50", "optimizer_ms_p50"} <= found.keys()
    assert found["saved_activations_mib"] > 0
    # Of three equal parts, forward and two gradients, the image's own gradient is not needed.
    assert found["train_macs_g"] * 1e9 == 2 * 14 * 14 * 4 * 27 + 3 * 4000
    assert "latency_ms_p50" not in found


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_disturbances_are_looked_for_around_the_timed_passes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Warm-up and compilation, also that of the latency pass's own batch, lie before the first look."""
    events: list[str] = []
    snapshot, warm_up, forward = hardware.snapshot, timing.warm_up, Planted.forward

    def looked(device: str) -> dict[str, Any]:
        events.append("look")
        return snapshot(device)

    def warmed(*args: Any) -> timing.WarmUp:
        found = warm_up(*args)
        events.append("warm")
        return found

    def watched(self: Planted, x: torch.Tensor) -> torch.Tensor:
        if "warm" in events and len(x) == 1:
            events.append("batch 1")
        return forward(self, x)

    monkeypatch.setattr(hardware, "snapshot", looked)
    monkeypatch.setattr(timing, "warm_up", warmed)
    monkeypatch.setattr(Planted, "forward", watched)
    context = Context("cpu", 1, None, None, tmp_path, lambda event: events.append(event["phase"]))
    measure_round(cell(mode=mode), context, 1)
    events = events[: events.index("reference")]  # the machine's load cancels there
    if mode == "infer":
        assert events[:6] == ["build", "warmup", "warm", "batch 1", "look", "throughput"]
        assert events.index("latency") < len(events) - 1
    else:
        assert events == ["build", "warmup", "warm", "look", "throughput", "split", "look"]
    assert events[-1] == "look"
    assert events.count("look") == 2


@pytest.mark.parametrize(("model", "last"), [("resnet18", True), ("vit_tiny_patch16_224", False)])
def test_layout_and_optimizer_are_those_of_training(model: str, last: bool) -> None:
    work = Workload(cell(model, mode="train", resolution=32))
    (images,) = work.inputs(2, 1)
    assert images.is_contiguous(memory_format=torch.channels_last) is last
    weights = [m.weight for m in work.module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) is last for w in weights)
    assert work._optimizer.defaults["fused"] is True
    assert work.facts() == {"channels_last": last, "optimizer": "AdamW (fused)"}
    assert Workload(cell(model, resolution=32)).facts() == {"channels_last": last}


def test_phases_are_told_and_later_rounds_repeat_only_the_timing(tmp_path: Path) -> None:
    phases: list[str] = []
    context = Context("cpu", 1, None, None, tmp_path, lambda event: phases.append(event["phase"]))
    first = measure_round(cell(), context, 0)
    assert phases == ["memory", "flops", "ceilings", "warmup", "throughput", "latency", "reference"]
    assert first.timings.keys() >= {"memory_s", "throughput_s"}
    phases.clear()
    second = measure_round(cell(), context, 1)
    assert phases == ["build", "warmup", "throughput", "latency", "reference"]
    assert "static" not in second.metrics


def test_out_of_memory_is_a_result_that_says_what_failed(context: Context) -> None:
    result = run_efficiency(cell("planted_net[fits=4]", batch=8), context)
    assert result.status == "oom"
    assert result.reason.startswith("out of memory in memory: batch 8, 16 px, fp32, infer; CUDA out of memory. Tried")
    assert result.metrics["oom_batch"] == 8
    assert result.metrics["params"] > 0


def test_batch_zero_is_the_largest_that_fits(context: Context) -> None:
    found = run_efficiency(cell("planted_net[fits=37]", batch=0), context).metrics
    assert (found["largest_batch"], found["smallest_failing_batch"]) == (36, 38)  # within a sixteenth
    assert len(list((context.out / "largest_batch").iterdir())) == 1
    nothing = run_efficiency(cell("planted_net[fits=0]", batch=0), context)
    assert nothing.status == "oom"
    assert "batch 1, 16 px" in nothing.reason
    assert (nothing.metrics["largest_batch"], nothing.metrics["smallest_failing_batch"]) == (0, 1)
    untrained = run_efficiency(cell("planted_net[fits=1]", batch=0, mode="train"), context)
    assert untrained.metrics["oom_batch"] == untrained.metrics["smallest_failing_batch"] == 2


def test_any_other_failure_is_raised(context: Context) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_efficiency(cell("planted_net[broken=true]"), context)


def test_a_model_that_cannot_be_counted_is_timed_and_says_why(context: Context) -> None:
    found = run_efficiency(cell("planted_net[fourier=true]"), context).metrics
    assert found["macs_g"] is None
    assert "aten::fft_fft2" in found["flops_error"]
    assert found["throughput_images_per_s_p50"] > 0
    assert "mfu" not in found


def test_whatever_stops_the_counters_is_named_and_the_model_timed(context: Context) -> None:
    found = run_efficiency(cell("planted_net[untraceable=true]"), context).metrics
    assert found["macs_g"] is None
    assert found["flops_error"] == "TypeError: this network asks for a plain number"
    assert found["throughput_images_per_s_p50"] > 0
    trained = run_efficiency(cell("planted_net[untrainable=true]", mode="train"), context).metrics
    assert trained["macs_g"] > 0  # the forward pass was counted
    assert "train_macs_g" not in trained
    assert trained["flops_error"] == "KeyError: 'no such kernel'"


def test_memory_that_runs_out_while_counting_is_no_counting_error(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(flops, "count", full)
    result = measure_round(cell(), context)
    assert result.status == "oom"
    assert result.metrics["oom_phase"] == "flops"


def test_activations_are_saved_in_the_precision_of_the_cell(context: Context) -> None:
    fp32, bf16 = (
        measure_round(cell(mode="train", batch=64, precision=name), context).metrics["static"]
        for name in ("fp32", "bf16")
    )
    assert bf16["saved_activations_mib"] < 0.8 * fp32["saved_activations_mib"]


def test_flops_are_counted_once_for_all_batches_precisions_and_modes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, trainings = [], []
    count, count_training = flops.count, flops.count_training
    monkeypatch.setattr(flops, "count", lambda *args: counts.append(1) or count(*args))
    monkeypatch.setattr(flops, "count_training", lambda *args: trainings.append(1) or count_training(*args))

    def static(**changes: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}  # all that a round has but its timings
        efficiency._static(cell(**changes), found, lambda name: None, context.out / "flops")  # type: ignore[arg-type]
        return found

    first = static()
    again = static(batch=4, precision="bf16")
    assert {k: v for k, v in again.items() if "macs" in k} == {k: v for k, v in first.items() if "macs" in k}
    assert static(mode="train")["train_macs_g"] == static(mode="train", batch=4)["train_macs_g"] > 0
    assert (len(counts), len(trainings)) == (1, 1)
    for changes in ({"resolution": 24}, {"versions": {"torch": "9"}}, {"model_plugin_sha256": "ab"}):
        before = len(counts)
        static(**changes)
        assert len(counts) == before + 1, changes
    monkeypatch.setattr(flops, "FORMULA_VERSION", 99)
    static()
    assert len(counts) == 5


LEAKING = "planted_net[leak_mib=40]"


def test_a_planted_leak_shows_in_the_memory_figure(fresh: dict[str, dict[str, Any]]) -> None:
    plain, leaking = (fresh[name]["peak_memory_mib"] for name in ("plain", "leaking"))
    assert leaking - plain > 100  # three steps of 40 MiB, that a correct model gives back


def test_what_the_compiler_keeps_is_not_the_models_memory(fresh: dict[str, dict[str, Any]]) -> None:
    _without_the_compilers(fresh["compiled"], fresh["compiled, leaking"])


@pytest.mark.slow
def test_nor_is_it_in_training(tmp_path: Path) -> None:
    compiled = {"compile": True, "mode": "train"}
    _without_the_compilers(*in_fresh_process(tmp_path, compiled, {"model": LEAKING, **compiled}))


def _without_the_compilers(plain: dict[str, Any], leaking: dict[str, Any]) -> None:
    assert plain["peak_memory_mib"] < 30
    assert leaking["peak_memory_mib"] > 70  # two steps of 40 MiB after the first


def test_what_a_model_holds_is_its_own_memory_when_compiled() -> None:
    work = Workload(cell("resnet18", mode="train", resolution=32))
    work.step(pool=1)(0)
    weights = sum(t.nbytes for t in (*work.module.parameters(), *work.module.buffers()))
    moments = 2 * sum(p.nbytes for p in work.module.parameters())
    assert work.held_bytes() == pytest.approx(weights + moments + 4 * 2 * 3 * 32 * 32, rel=1e-4)


def test_the_scan_library_is_not_charged_to_the_first_model_that_scans() -> None:
    recorder = OperatorRecorder()
    with recorder:
        touch_libraries("cpu")
    touched = {packet._qualified_op_name for packet in recorder.calls}
    assert any("scan" in name for name in touched) == (chosen_backend("cpu") == "cpu")


class PretendedTime(Clock):
    """The clock of a machine that does nothing but this work, with 2 % of jitter: load on the real one is not seen."""

    def __init__(self) -> None:
        self.seconds_passed = 0.0
        self.random = np.random.default_rng(0)

    def sleep(self, seconds: float) -> None:
        self.seconds_passed += seconds * (1 + 0.02 * self.random.standard_normal())

    def now(self) -> float:
        return self.seconds_passed

    mark = spent = now


def test_a_planted_slow_down_is_seen_and_an_aa_pair_is_not(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path of a Cell in interleaved rounds of A, A and a B that takes 20 % longer, to the check's rule."""
    clock = PretendedTime()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(efficiency, "clock_for", lambda device: clock)
    monkeypatch.setattr(efficiency, "SPEED_REFERENCE", "planted_net[sleep_ms=4]")
    plan = {"a": "planted_net[sleep_ms=5]", "again": "planted_net[sleep_ms=5]", "slower": "planted_net[sleep_ms=6]"}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for number in range(6):
        for name, model in plan.items():
            rounds[name].append(measure_round(cell(model, budget_s=0.3), context, number).metrics)
    found = {name: combine(raw) for name, raw in rounds.items()}
    for name, seconds in (("a", 5), ("again", 5), ("slower", 6)):
        assert found[name]["step_ms_p50"] == pytest.approx(seconds, rel=0.01)
        assert found[name]["latency_ms_p50"] == pytest.approx(seconds, rel=0.01)
        assert found[name]["relative_speed_rounds"] == pytest.approx([4 / seconds] * 6, rel=0.03)
        assert not found[name]["noisy"]

    seen, repeat = (
        speed_evidence(*(found[n]["throughput_images_per_s_rounds"] for n in ("a", name)), 0.05)
        for name in ("slower", "again")
    )
    assert seen is not None and seen.beyond and seen.two_sided < 0.05  # by the rule of `bench check`
    assert repeat is not None and not repeat.beyond


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "precision"), [("infer", "bf16"), ("train", "fp32")])
def test_compiled_cells(context: Context, mode: str, precision: str) -> None:
    found = run_efficiency(cell("resnet18", resolution=64, compile=True, mode=mode, precision=precision), context)
    assert found.status == "ok"
    assert found.metrics["throughput_images_per_s_p50"] > 0


def test_every_round_says_when_it_began(context: Context) -> None:
    (begun,) = combine([measure_round(cell(), context, 1).metrics])["rounds_begun"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(begun)).total_seconds()) < 600


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_that_waits_for_python_is_launch_bound(context: Context) -> None:
    found = run_efficiency(cell("planted_net[sleep_ms=5]", device="cuda:0", budget_s=0.2), context).metrics
    assert found["device_step_ms_p50"] < 2 < 5 <= found["step_ms_p50"]
    assert found["launch_bound"] and "launch-bound" in found["flags"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_that_waits_for_its_device_has_no_replay_and_says_why(context: Context) -> None:
    found = run_efficiency(cell("planted_net[waits=1]", device="cuda:0", rounds=1), context).metrics
    assert found["device_step_error"] and "device_step_ms_p50" not in found
    assert found["throughput_images_per_s_p50"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["resnet18", "medmamba_tiny"])
def test_a_replayed_training_step_is_the_step(name: str) -> None:
    asked = cell(name, device="cuda:0", mode="train", resolution=64, batch=8)
    torch.manual_seed(0)
    replayed = Workload(asked)
    for module in replayed.module.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    eager = Workload(asked, copy.deepcopy(replayed.module))
    before = [p.detach().clone() for p in eager.module.parameters()]
    replay, step = replayed.graph_step(), eager.step(pool=1)  # recording takes a step of its own
    for number in range(4):
        step(number)
    for number in range(3):
        replay(number)
    for start, mine, plain in zip(before, replayed.module.parameters(), eager.module.parameters(), strict=True):
        assert (mine - plain).norm() <= 0.02 * (plain - start).norm() + 1e-6

"""What is said about the machine, on counters and a GPU library that are made up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bench.machine import hardware

BEFORE = {"at_s": 100.0, "own_cpu_s": 10.0, "cores": 4, "busy_s": 500.0, "steal_s": 1.0}


def after(**changes: float) -> dict:
    """Ten seconds later, all four cores busy with our own work."""
    return BEFORE | {"at_s": 110.0, "own_cpu_s": 50.0, "busy_s": 540.0} | changes


def test_a_quiet_machine_has_no_flags() -> None:
    found = hardware.disturbances(BEFORE, after())
    assert found == {"flags": [], "evidence": [], "foreign_cpu_share": 0.0, "steal_share": 0.0}


@pytest.mark.parametrize(
    ("changes", "flag", "sentence"),
    [
        ({"own_cpu_s": 40.0}, "other processes", "other processes took 25% of the CPU"),
        ({"steal_s": 5.0}, "steal", "the host of this virtual machine took 10% of the CPU"),
        ({"cpu_throttle_count": 1}, "throttled", "the CPU throttled"),
    ],
)
def test_disturbances_are_named(changes: dict[str, float], flag: str, sentence: str) -> None:
    found = hardware.disturbances(BEFORE, after(**changes))
    assert found["flags"] == [flag]
    assert found["evidence"] == [sentence]


@pytest.mark.parametrize("ends", [True, False])
def test_the_work_of_children_is_our_own(ends: bool) -> None:
    """A compiler or its workers that this process started, finished or not."""
    before = hardware.snapshot("cpu")["own_cpu_s"]
    last = "" if ends else "; print('done', flush=True); time.sleep(60)"
    code = f"import time\nwhile time.process_time() < 0.4: pass\n{last.removeprefix('; ')}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        if ends:
            child.wait()
        else:
            assert child.stdout is not None
            child.stdout.readline()
        own = hardware.snapshot("cpu")["own_cpu_s"] - before
        child.kill()
    assert own > 0.35


class NotSupported(Exception):  # noqa: N818
    pass


def _not_supported(handle: int, sensor: int) -> int:
    raise NotSupported


def fake_library() -> SimpleNamespace:
    """NVML with two boards; the second is hot and shared, and neither tells its temperature."""
    return SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda board: f"GPU-{'ab'[board]}000",
        nvmlDeviceGetName=lambda board: b"Board %d" % board,
        nvmlDeviceGetMemoryInfo=lambda board: SimpleNamespace(total=(board + 1) * 2**30, used=board * 2**20),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda board: 0x24 if board else 0x1,  # 0x1: merely idle
        nvmlDeviceGetComputeRunningProcesses=lambda board: [SimpleNamespace(pid=os.getpid())] * (1 + board),
        nvmlDeviceGetPowerUsage=lambda board: 70_500,
        nvmlDeviceGetClockInfo=lambda board, kind: 1000 * kind,
        nvmlDeviceGetTemperature=_not_supported,
        NVML_PERF_POLICY_POWER=0,
        NVML_PERF_POLICY_THERMAL=1,
        nvmlDeviceGetViolationStatus=lambda board, policy: SimpleNamespace(violationTime=5_000_000_000 * (1 - policy)),
    )


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hardware.gpus.cache_clear()
    nvml = fake_library()
    monkeypatch.setattr(hardware, "_nvml", lambda: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    hardware.gpus.cache_clear()


@pytest.mark.usefixtures("fake_nvml")
def test_state_of_a_gpu() -> None:
    state = hardware.gpu_state("cuda:1")
    assert state["power_w"] == 70.5
    assert state["throttle"] == ["power cap", "thermal (software)"]
    assert state["temperature_c"] is None  # the board does not say
    assert state["processes"] == 2
    found = hardware.disturbances(BEFORE | {"gpu": state}, after(gpu=state))
    assert found["flags"] == ["throttled", "shared GPU"]
    assert found["evidence"][1] == "1 other process on the GPU"
    quiet = hardware.gpu_state("cuda:0")
    assert quiet["held_back_s"] == {"power cap": 5.0, "thermal": 0.0}
    assert hardware.disturbances(BEFORE | {"gpu": quiet}, after(gpu=quiet))["flags"] == []
    later = quiet | {"held_back_s": {"power cap": 8.0, "thermal": 0.0}}
    found = hardware.disturbances(BEFORE | {"gpu": quiet}, after(gpu=later))
    assert found["evidence"] == ["the GPU slowed itself: power cap for 3.0 s of 10.0 s"]


@pytest.mark.usefixtures("fake_nvml")
@pytest.mark.parametrize(
    ("visible", "boards"), [(None, "01"), ("1", "1"), ("1,0", "10"), ("GPU-b", "1"), ("", ""), ("0,9,1", "0")]
)
def test_gpus_are_numbered_as_cuda_numbers_them(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, boards: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu["name"] for gpu in hardware.gpus()] == [f"Board {n}" for n in boards]


def test_facts_of_this_machine_without_torch() -> None:
    code = (
        "import sys; from bench.machine.hardware import *; facts = machine_info(); "
        "a = snapshot('cpu'); disturbances(a, snapshot('cpu')); "
        "assert facts['cpu_cores'] >= 1 and facts['memory_gib'] >= 1 and facts['cpu_model'], facts; "
        "import bench.measure.aggregate; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

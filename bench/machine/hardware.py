"""Facts and state of the machine, without torch: what the figures ran on, and what disturbed them.

Two snapshots enclose every measured block. What happened between them (other processes busy, time stolen by the
host, clocks lowered, a stranger on the GPU) becomes flags beside the figures; nothing is hidden and nothing dropped.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import psutil

from bench.machine.threads import available_threads

FOREIGN_CPU_SHARE = 0.05  # of the machine, by other processes: above it the CPU figures are suspect
STEAL_SHARE = 0.02  # of the machine's time taken by the host of a virtual machine
HELD_BACK_SHARE = 0.02  # of the time, below the GPU's clocks for power or heat
_THROTTLE = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that slow a running kernel
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
State = dict[str, Any]  # what counters and boards say at one moment, as plain data; what they do not say is missing
Handle = object  # NVML's, of a board


class Gpu(TypedDict):
    """A GPU."""

    name: str
    memory_gib: int
    uuid: str


class MachineInfo(TypedDict):
    """What identifies a machine."""

    cpu_model: str
    cpu_cores: int
    memory_gib: int
    gpus: tuple[Gpu, ...]


@functools.cache
def machine_info() -> MachineInfo:
    """What identifies the machine: processor, cores this process may use, memory, GPUs visible to it.

    Reads /proc, the environment and NVML; imports no torch. Of these only the name of the device that a Cell runs on,
    and of a CPU the number of cores, enter the key of efficiency Cells.
    """
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return {"cpu_model": _cpu_model(), "cpu_cores": available_threads(), "memory_gib": memory_gib, "gpus": gpus()}


def hardware_name(device: str, info: MachineInfo) -> str:
    """Name what a Cell runs on: the GPU, or the CPU and its core count."""
    if device == "cpu":
        return f"{info['cpu_model']} ({info['cpu_cores']} cores)"
    return info["gpus"][int(device.partition(":")[2])]["name"]


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---- NVML -----------------------------------------------------------------------------------------------------------


@functools.cache
def _nvml() -> ModuleType | None:
    """The pynvml module, initialised; None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no permission, no library: all mean that NVML cannot be asked
        return None
    found: ModuleType = pynvml
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """GPUs as CUDA numbers them: name, memory, UUID. Obeys CUDA_VISIBLE_DEVICES (numbers or UUIDs)."""
    nvml = _nvml()
    if nvml is None:
        return ()
    return tuple(
        {
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "memory_gib": round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30),
            "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        }
        for handle in _visible_handles(nvml)
    )


def _visible_handles(nvml: ModuleType) -> list[Handle]:
    handles: list[Handle] = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    chosen = []
    for item in filter(None, (part.strip() for part in wanted.split(","))):
        if item.isdigit() and int(item) < len(handles):
            chosen.append(handles[int(item)])
            continue
        match = [h for h in handles if _text(nvml.nvmlDeviceGetUUID(h)).startswith(item)]
        if not match:
            break  # CUDA too ignores what follows the first invalid entry
        chosen.append(match[0])
    return chosen


def nvml_handle(device: str) -> tuple[ModuleType, Handle] | None:
    """Return (pynvml, handle) of ``cuda:N``, or None on a CPU or without NVML."""
    nvml = _nvml()
    if nvml is None or not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or 0)
    handles = _visible_handles(nvml)
    return (nvml, handles[index]) if index < len(handles) else None


def device_memory_used(device: str) -> int | None:
    """Bytes in use on the whole GPU, by everybody; None without NVML."""
    found = nvml_handle(device)
    return int(found[0].nvmlDeviceGetMemoryInfo(found[1]).used) if found else None


def free_memory_share(uuid: str | None) -> float:
    """The share of a GPU's memory that nobody uses; 1 without NVML or a GPU of that UUID."""
    nvml = _nvml()
    if nvml is None or uuid is None:
        return 1.0
    memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid))
    return float(memory.free / memory.total)


def mps_runs() -> bool:
    """Whether CUDA's Multi-Process Service answers here: processes then share a GPU's multiprocessors."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def gpu_state(device: str) -> State:
    """Clocks (MHz), temperature (C), power (W), throttle reasons and processes of one GPU; {} without NVML.

    ``held_back_s``: seconds below its clocks for power or heat, since some moment.
    """
    found = nvml_handle(device)
    if found is None:
        return {}
    nvml, handle = found

    def ask(function: Callable[..., Any], *args: object) -> Any:
        with suppress(Exception):  # NVMLError_NotSupported and its kin differ by board and driver
            return function(handle, *args)

    renamed = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = ask(renamed or nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    processes, power = ask(nvml.nvmlDeviceGetComputeRunningProcesses), ask(nvml.nvmlDeviceGetPowerUsage)
    return {
        "sm_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "memory_mhz": ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        "temperature_c": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if power is None else power / 1e3,
        "throttle": [name for bit, name in _THROTTLE.items() if reasons & bit],
        "held_back_s": {
            word: status.violationTime / 1e9
            for word, policy in (("power cap", nvml.NVML_PERF_POLICY_POWER), ("thermal", nvml.NVML_PERF_POLICY_THERMAL))
            if (status := ask(nvml.nvmlDeviceGetViolationStatus, policy)) is not None
        },
        # In a container the driver reports the host's process numbers, so only their count can be compared.
        "processes": None if processes is None else len(processes),
    }


# ---- snapshots -----------------------------------------------------------------------------------------------------


def snapshot(device: str) -> State:
    """State at one moment: time, CPU counters, and the GPU's state for a CUDA device."""
    state: State = {"at_s": time.monotonic(), "own_cpu_s": _own_cpu_s(), "cores": os.cpu_count() or 1}
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        hertz = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        state |= {"busy_s": (user + nice + system + irq + softirq) / hertz, "steal_s": steal / hertz}
    with suppress(OSError, ValueError):
        throttles = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
        state["cpu_throttle_count"] = int(throttles.read_text())
    return state | ({"gpu": gpu_state(device)} if device.startswith("cuda") else {})


def _own_cpu_s() -> float:
    """CPU seconds of this process and all that it started (compilers), finished or still running."""
    times = os.times()
    own = time.process_time() + times.children_user + times.children_system
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                spent = child.cpu_times()
                own += spent.user + spent.system + spent.children_user + spent.children_system
    return own


def disturbances(before: State, after: State) -> State:
    """What happened between two snapshots of one process.

    Returns:
        ``flags`` (short words for a table; empty when nothing disturbed the block) and ``evidence`` (a sentence for
        each), ``foreign_cpu_share`` and ``steal_share`` of the whole machine (0 to 1).
    """
    found: State = {}
    said: dict[str, str] = {}
    seconds = (after["at_s"] - before["at_s"]) * after["cores"]
    if seconds > 0 and "busy_s" in before and "busy_s" in after:
        own = after["own_cpu_s"] - before["own_cpu_s"]
        # /proc/stat counts in ticks of 10 ms: what is shorter cannot be seen.
        foreign = max(0.0, after["busy_s"] - before["busy_s"] - own - 0.02 * after["cores"]) / seconds
        steal = (after["steal_s"] - before["steal_s"]) / seconds
        found |= {"foreign_cpu_share": round(foreign, 4), "steal_share": round(steal, 4)}
        if foreign > FOREIGN_CPU_SHARE:
            said["other processes"] = f"other processes took {foreign:.0%} of the CPU"
        if steal > STEAL_SHARE:
            said["steal"] = f"the host of this virtual machine took {steal:.0%} of the CPU"
    if after.get("cpu_throttle_count", 0) > before.get("cpu_throttle_count", 0):
        said["throttled"] = "the CPU throttled"
    states = [state.get("gpu") or {} for state in (before, after)]
    reasons = {reason for state in states for reason in state.get("throttle", ())}
    passed = after["at_s"] - before["at_s"]
    start, end = (state.get("held_back_s", {}) for state in states)
    held = {word: end[word] - start[word] for word in start.keys() & end.keys()}
    reasons |= {f"{word} for {s:.1f} s of {passed:.1f} s" for word, s in held.items() if s > HELD_BACK_SHARE * passed}
    if reasons:
        said["throttled"] = f"the GPU slowed itself: {', '.join(sorted(reasons))}"
    # Our own process holds a context in both snapshots, so one process is expected.
    others = max(state.get("processes") or 0 for state in states) - 1
    if others > 0:
        said["shared GPU"] = f"{others} other process{'es' if others > 1 else ''} on the GPU"
    return {**found, "flags": list(said), "evidence": list(said.values())}

"""Facts and state of the machine, without torch: what the figures ran on, and what disturbed them.

Two snapshots enclose every measured block. What happened between them (other processes busy, time stolen by the
host, clocks lowered, a stranger on the GPU) becomes flags beside the figures; nothing is hidden and nothing dropped.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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


@functools.cache
def machine_info() -> dict[str, Any]:
    """What identifies the machine: processor, cores this process may use, memory, GPUs visible to it, system.

    Reads /proc, the environment and NVML; imports no torch. Of these only the name of the device that a Cell runs on,
    and of a CPU the number of cores, enter the key of efficiency Cells.
    """
    return {
        "cpu_model": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(_total_memory() / 2**30),
        "gpus": [{"name": g["name"], "memory_gib": g["memory_gib"]} for g in gpus()],
        "gpu_driver": _driver(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def hardware_name(device: str, info: Mapping[str, Any]) -> str:
    """Name what a Cell runs on: the GPU, or the CPU and its core count."""
    if device == "cpu":
        return f"{info['cpu_model']} ({info['cpu_cores']} cores)"
    return str(info["gpus"][int(device.partition(":")[2])]["name"])


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _total_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


# ---- NVML -----------------------------------------------------------------------------------------------------------


@functools.cache
def _nvml() -> Any | None:
    """The pynvml module, initialised; None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no permission, no library: all mean that NVML cannot be asked
        return None
    return pynvml


def _driver() -> str | None:
    nvml = _nvml()
    return _text(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@functools.cache
def gpus() -> tuple[dict[str, Any], ...]:
    """GPUs as CUDA numbers them: name, memory, UUID. Obeys CUDA_VISIBLE_DEVICES (numbers or UUIDs)."""
    nvml = _nvml()
    if nvml is None:
        return ()
    found = []
    for handle in _visible_handles(nvml):
        found.append(
            {
                "name": _text(nvml.nvmlDeviceGetName(handle)),
                "memory_gib": round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30),
                "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
            }
        )
    return tuple(found)


def _visible_handles(nvml: Any) -> list[Any]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
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


def nvml_handle(device: str) -> tuple[Any, Any] | None:
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


def _ask(function: Any, *args: Any) -> Any:
    """One NVML question; None where the board does not answer it."""
    try:
        return function(*args)
    except Exception:  # NVMLError_NotSupported and its kin differ by board and driver
        return None


def gpu_state(device: str) -> dict[str, Any]:
    """Clocks (MHz), temperature (C), power (W), throttle reasons and other processes of one GPU; {} without NVML."""
    found = nvml_handle(device)
    if found is None:
        return {}
    nvml, handle = found
    renamed = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = _ask(renamed or nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    processes = _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    power = _ask(nvml.nvmlDeviceGetPowerUsage, handle)
    return {
        "sm_mhz": _ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": _ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "sm_mhz_max": _ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        "temperature_c": _ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if power is None else power / 1e3,
        "throttle": [name for bit, name in _THROTTLE.items() if reasons & bit],
        "held_back_s": {
            word: _violation_s(nvml, handle, policy)
            for word, policy in (("power cap", "NVML_PERF_POLICY_POWER"), ("thermal", "NVML_PERF_POLICY_THERMAL"))
        },
        # In a container the driver reports the host's process numbers, so only their count can be compared.
        "processes": None if processes is None else len(processes),
        "own_process_seen": None if processes is None else os.getpid() in [p.pid for p in processes],
    }


def _violation_s(nvml: Any, handle: Any, policy: str) -> float | None:
    """Seconds that the board has run below its clocks for one reason, since some moment; None if it does not count."""
    status = _ask(nvml.nvmlDeviceGetViolationStatus, handle, getattr(nvml, policy))
    return None if status is None else float(status.violationTime) / 1e9


# ---- snapshots -----------------------------------------------------------------------------------------------------


def snapshot(device: str) -> dict[str, Any]:
    """State at one moment, as plain data: time, CPU counters, load, and the GPU's state for a CUDA device."""
    state: dict[str, Any] = {"at_s": time.monotonic(), "load_1min": os.getloadavg()[0], **_cpu_counters()}
    if device.startswith("cuda"):
        state["gpu"] = gpu_state(device)
    return state


def _cpu_counters() -> dict[str, Any]:
    counters: dict[str, Any] = {"own_cpu_s": _own_cpu_s(), "cores": os.cpu_count() or 1}
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        hertz = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        counters |= {"busy_s": (user + nice + system + irq + softirq) / hertz, "steal_s": steal / hertz}
    with suppress(OSError, ValueError):
        throttles = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
        counters["cpu_throttle_count"] = int(throttles.read_text())
    with suppress(OSError, ValueError):
        khz = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").read_text()
        counters["cpu_mhz"] = int(khz) / 1e3
    return counters


def _own_cpu_s() -> float:
    """CPU seconds of this process and all that it started (compilers), finished or still running."""
    import psutil

    times = os.times()
    own = time.process_time() + times.children_user + times.children_system
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                spent = child.cpu_times()
                own += spent.user + spent.system + spent.children_user + spent.children_system
    return own


def disturbances(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What happened between two snapshots of one process.

    Returns:
        ``flags`` (short words for a table; empty when nothing disturbed the block) and ``evidence`` (a sentence for
        each), ``foreign_cpu_share`` and ``steal_share`` of the whole machine (0 to 1), and ``gpu_before`` and
        ``gpu_after`` where there is a GPU.
    """
    found: dict[str, Any] = {"flags": [], "evidence": []}
    seconds = (after["at_s"] - before["at_s"]) * after["cores"]
    if seconds > 0 and "busy_s" in before and "busy_s" in after:
        own = after["own_cpu_s"] - before["own_cpu_s"]
        # /proc/stat counts in ticks of 10 ms: what is shorter cannot be seen.
        foreign = max(0.0, after["busy_s"] - before["busy_s"] - own - 0.02 * after["cores"]) / seconds
        steal = (after["steal_s"] - before["steal_s"]) / seconds
        found |= {"foreign_cpu_share": round(foreign, 4), "steal_share": round(steal, 4)}
        if foreign > FOREIGN_CPU_SHARE:
            _flag(found, "other processes", f"other processes took {foreign:.0%} of the CPU")
        if steal > STEAL_SHARE:
            _flag(found, "steal", f"the host of this virtual machine took {steal:.0%} of the CPU")
    if after.get("cpu_throttle_count", 0) > before.get("cpu_throttle_count", 0):
        _flag(found, "throttled", "the CPU throttled")
    if "gpu" in before or "gpu" in after:
        found |= {"gpu_before": before.get("gpu"), "gpu_after": after.get("gpu")}
        _judge_gpu(found, before.get("gpu") or {}, after.get("gpu") or {}, after["at_s"] - before["at_s"])
    return found


def _flag(found: dict[str, Any], word: str, sentence: str) -> None:
    found["flags"].append(word)
    found["evidence"].append(sentence)


def _judge_gpu(found: dict[str, Any], before: dict[str, Any], after: dict[str, Any], seconds: float) -> None:
    reasons = {*before.get("throttle", ()), *after.get("throttle", ())}
    for word, start in before.get("held_back_s", {}).items():
        end = after.get("held_back_s", {}).get(word)
        if start is not None and end is not None and end - start > HELD_BACK_SHARE * seconds:
            reasons.add(f"{word} for {end - start:.1f} s of {seconds:.1f} s")
    if reasons:
        _flag(found, "throttled", f"the GPU slowed itself: {', '.join(sorted(reasons))}")
    # Our own process holds a context in both snapshots, so one process is expected.
    others = max(before.get("processes") or 0, after.get("processes") or 0) - 1
    if others > 0:
        _flag(found, "shared GPU", f"{others} other process{'es' if others > 1 else ''} on the GPU")

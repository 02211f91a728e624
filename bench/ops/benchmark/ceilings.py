"""What the machine can do at most, measured: bytes copied a second and exponentials a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median time of a call after one warm-up call."""
    times: list[float] = []
    for i in range(repeats + 1):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            work()
            elapsed = time.perf_counter() - begin
        if i:
            times.append(elapsed)
    return median(times)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than the caches."""
    count = (256 if device.type == "cuda" else 32) * 2**20
    source, target = torch.zeros(count, device=device), torch.empty(count, device=device)
    target.copy_(source)
    return 2 * 4 * count / _seconds(lambda: target.copy_(source), device)


def exp_rate(device: torch.device) -> float:
    """Exponentials a second with nothing else to wait for.

    CPU: the kernel's own polynomial on data in the first-level cache, all threads (PyTorch's exp without a compiler).
    CUDA: a Triton kernel that evaluates ex2 again and again in registers.
    """
    if device.type == "cuda":
        return _cuda_exp_rate(device)
    from bench.ops.backends import cpu

    if cpu.unavailable("cpu") is None:
        return max(cpu.exp_rate() for _ in range(3))
    x = torch.linspace(-1, 0, 2**15)
    out = torch.empty_like(x)
    return x.numel() * 64 / _seconds(lambda: [torch.exp(x, out=out) for _ in range(64)], device)


def _cuda_exp_rate(device: torch.device) -> float:
    from bench.ops.benchmark.exp_triton import CHAINS, LANES, exp_loop

    programs = 32 * torch.cuda.get_device_properties(device).multi_processor_count
    rounds = 512
    out = torch.empty(programs * LANES, device=device)
    seconds = _seconds(lambda: exp_loop[(programs,)](out, rounds, num_warps=LANES // 32), device)
    return programs * LANES * CHAINS * rounds / seconds

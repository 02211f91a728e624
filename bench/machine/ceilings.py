"""What this machine can do at most, measured and not read off a data sheet: bytes copied, FLOPs a second.

On a CPU a dense convolution is tried beside the matrix product and the better one taken: the matrix products of some
libraries reach a third of what their convolutions do (MKL and oneDNN on an AMD processor). On a GPU a convolution might
save multiplications by Winograd's method, and be no ceiling.
"""

from __future__ import annotations

import torch

from bench.machine.clock import Clock, Step, clock_for

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}  # far above any cache
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
CONVOLUTION_FLOPS = 2 * 8 * 14 * 14 * 256 * 256 * 9  # 8 images of 14 x 14, 256 channels in and out, 3 x 3


def best_seconds(step: Step, clock: Clock, seconds: float) -> float:
    """Seconds of a step in the best of some ten blocks: a ceiling is what the machine can do, not what it usually does.

    Args:
        step: what is timed.
        clock: of its device.
        seconds: of all blocks together, after a warm-up of half of that.
    """
    step(0)
    clock.synchronize()
    begin, done = clock.now(), 0
    while clock.now() - begin < seconds / 2 or not done:
        step(done)
        clock.synchronize()
        done += 1
    block = max(1, round(seconds / 10 / max((clock.now() - begin) / done, 1e-9)))
    begin, done, best = clock.now(), 0, float("inf")
    while clock.now() - begin < seconds or not done:
        start = clock.mark()
        for _ in range(block):
            step(done)
            done += 1
        end = clock.mark()
        clock.wait(end)
        best = min(best, clock.seconds(start, end) / block)
    return best


def copied_bytes_per_s(device: str, seconds: float) -> float:
    """Bytes read and written in a second by a copy far larger than the caches."""
    size = COPY_BYTES[torch.device(device).type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda number: target.copy_(source), clock_for(device), seconds)


def flops_per_s(device: str, dtype: torch.dtype, seconds: float) -> float:
    """FLOPs a second, 2 a multiply-add, of a large matrix product, or on a CPU of a convolution if that is faster."""
    clock, kind = clock_for(device), torch.device(device).type
    side = MATMUL_SIDE[kind]
    a, b, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
    rate = 2 * side**3 / best_seconds(lambda number: torch.mm(a, b, out=out), clock, seconds)
    if kind == "cuda":
        return rate
    x, weight = torch.randn(8, 256, 14, 14, dtype=dtype), torch.randn(256, 256, 3, 3, dtype=dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        took = best_seconds(lambda number: torch.conv2d(x, weight, padding=1), clock, seconds)  # noqa: B023
        rate = max(rate, CONVOLUTION_FLOPS / took)
    return rate

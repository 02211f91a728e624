"""Roofline: how near a model comes to what this machine was measured to do (Williams et al., 2009).

The ceilings are measured, not read off a data sheet: the bandwidth of a large copy, and the best arithmetic rate in
each precision, that of a large matrix product. On a CPU a dense convolution is tried too and the better one taken: the
matrix products of some libraries reach a third of what their convolutions do (MKL and oneDNN on an AMD processor). A
model's place follows from its FLOPs, its traffic (every operator reads its inputs and writes its outputs once) and its
time. MFU is the rate of the model's own FLOPs over the arithmetic ceiling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure.timing import Budget, Clock, Step, clock_for, throughput_blocks, warm_up
from bench.record.files import replacing

if TYPE_CHECKING:
    import torch

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}  # far above any cache
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
CONVOLUTION_FLOPS = 2 * 8 * 14 * 14 * 256 * 256 * 9  # 8 images of 14 x 14, 256 channels in and out, 3 x 3


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine was measured to do.

    Attributes:
        copy_gb_per_s: 10^9 bytes read and written in a second by a copy.
        gflops_per_s: precision -> best arithmetic rate, 2 FLOPs a multiply-add.
    """

    device: str
    threads: int
    copy_gb_per_s: float
    gflops_per_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a workload lies under the roof.

    Attributes:
        intensity: FLOPs a byte.
        achieved: 10^9 FLOPs a second.
        attainable: what the roof allows at this intensity.
        mfu: achieved over the arithmetic ceiling (0 to 1); of all FLOPs given, recomputed ones too if they are.
        fraction: achieved over attainable.
        bound: ``memory`` left of the ridge, ``compute`` right of it.
    """

    intensity: float
    achieved: float
    attainable: float
    mfu: float
    fraction: float
    bound: str

    def metrics(self) -> dict[str, Any]:
        """Named as in records."""
        return {
            "intensity_flop_per_byte": self.intensity,
            "achieved_gflops_per_s": self.achieved,
            "attainable_gflops_per_s": self.attainable,
            "roofline_fraction": self.fraction,
            "mfu": self.mfu,
            "bound": self.bound,
        }


def place(flops: float, traffic_bytes: float, seconds: float, ceilings: Ceilings, precision: str) -> Place:
    """Place a workload of ``flops`` and ``traffic_bytes`` that took ``seconds`` under the roof of its precision."""
    peak = ceilings.gflops_per_s[precision]
    intensity = flops / traffic_bytes
    slope = intensity * ceilings.copy_gb_per_s
    achieved, attainable = flops / seconds / 1e9, min(peak, slope)
    bound = "memory" if slope < peak else "compute"
    return Place(intensity, achieved, attainable, achieved / peak, achieved / attainable, bound)


def measure_ceilings(device: str, threads: int, precision: str = "fp32", seconds: float = 0.3) -> Ceilings:
    """Measure the copy bandwidth and the arithmetic rate of one precision; about twice ``seconds`` for each kernel."""
    import torch

    from bench.measure.workload import set_precision

    kind = torch.device(device).type
    torch.set_num_threads(threads)
    set_precision(precision)
    clock = clock_for(device)
    copy_s = best_seconds(_copy(device, COPY_BYTES[kind]), clock, seconds)
    side = MATMUL_SIDE[kind]
    rates = [2 * side**3 / best_seconds(_product(device, side, precision), clock, seconds)]
    if kind == "cpu":  # on a GPU it might save multiplications by Winograd's method, and be no ceiling
        for layout in (torch.contiguous_format, torch.channels_last):
            rates.append(CONVOLUTION_FLOPS / best_seconds(_convolution(precision, layout), clock, seconds))
    return Ceilings(device, threads, 2 * COPY_BYTES[kind] / copy_s / 1e9, {precision: max(rates) / 1e9})


def _copy(device: str, size: int) -> Step:
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda number: target.copy_(source)


def _product(device: str, side: int, precision: str) -> Step:
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
    return lambda number: torch.mm(a, b, out=out)


def _convolution(precision: str, layout: torch.memory_format) -> Step:
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight = torch.randn(8, 256, 14, 14, dtype=dtype), torch.randn(256, 256, 3, 3, dtype=dtype)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    return lambda number: torch.conv2d(x, weight, padding=1)


def best_seconds(step: Step, clock: Clock, seconds: float) -> float:
    """Seconds of a step in its best block: a ceiling is what the machine can do, not what it usually does."""
    budget = Budget(throughput_s=seconds, warmup_s=seconds / 2, warmup_max_s=seconds, block_s=seconds / 10)
    warm = warm_up(step, clock, budget)
    blocks, _ = throughput_blocks(step, clock, budget, warm.step_s)
    return min(blocks)


def kept_ceilings(
    device: str, threads: int, precision: str, directory: Path, hardware: str, seconds: float = 0.3
) -> Ceilings:
    """Read the ceilings of this run from ``directory``, or measure and keep them there.

    One file for each ``hardware`` (its name), device, number of threads and precision: several machines may share the
    directory.
    """
    name = f"{hardware}_{device}_{threads}_{precision}"
    path = directory / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
    try:
        return Ceilings(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        pass
    found = measure_ceilings(device, threads, precision, seconds)
    with replacing(path) as part:
        part.write_text(json.dumps(asdict(found)))
    return found

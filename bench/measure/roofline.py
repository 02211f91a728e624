"""Roofline: how near a model comes to what this machine was measured to do (Williams et al., 2009).

The ceilings are measured (:mod:`bench.machine.ceilings`). A model's place follows from its FLOPs, its traffic (every
operator reads its inputs and writes its outputs once) and its time. MFU is the rate of the model's own FLOPs over the
arithmetic ceiling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from bench.measure.once import kept


class Place(TypedDict):
    """Where a workload lies under the roof, named as in Records; see :func:`place`."""

    intensity_flop_per_byte: float
    achieved_gflops_per_s: float
    attainable_gflops_per_s: float
    roofline_fraction: float
    mfu: float
    bound: str


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


def place(flops: float, traffic_bytes: float, seconds: float, ceilings: Ceilings, precision: str) -> Place:
    """Place a workload of ``flops`` and ``traffic_bytes`` that took ``seconds`` under the roof of its precision.

    Returns:
        FLOPs a byte; 10^9 FLOPs a second, achieved and what the roof allows at this intensity, and their ratio; ``mfu``
        is achieved over the arithmetic ceiling (0 to 1), of all FLOPs given, recomputed ones too if they are;
        ``bound`` is ``memory`` left of the ridge, ``compute`` right of it.
    """
    peak = ceilings.gflops_per_s[precision]
    slope = flops / traffic_bytes * ceilings.copy_gb_per_s
    achieved, attainable = flops / seconds / 1e9, min(peak, slope)
    return {
        "intensity_flop_per_byte": flops / traffic_bytes,
        "achieved_gflops_per_s": achieved,
        "attainable_gflops_per_s": attainable,
        "roofline_fraction": achieved / attainable,
        "mfu": achieved / peak,
        "bound": "memory" if slope < peak else "compute",
    }


def measure_ceilings(device: str, threads: int, precision: str = "fp32", seconds: float = 0.3) -> Ceilings:
    """Measure the copy bandwidth and the arithmetic rate of one precision; about twice ``seconds`` for each kernel."""
    import torch

    from bench.machine import ceilings
    from bench.measure.workload import set_precision

    torch.set_num_threads(threads)
    set_precision(precision)
    copied = ceilings.copied_bytes_per_s(device, seconds)
    rate = ceilings.flops_per_s(device, torch.bfloat16 if precision == "bf16" else torch.float32, seconds)
    return Ceilings(device, threads, copied / 1e9, {precision: rate / 1e9})


def kept_ceilings(device: str, threads: int, precision: str, directory: Path, hardware: str) -> Ceilings:
    """Read the ceilings of this run from ``directory``, or measure and keep them there.

    One file for each ``hardware`` (its name), device, number of threads and precision: several machines may share the
    directory.
    """
    name = f"{hardware}_{device}_{threads}_{precision}"
    path = directory / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
    return Ceilings(**kept(path, lambda: asdict(measure_ceilings(device, threads, precision))))

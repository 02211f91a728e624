"""Train one network on the fused scan and on the public path, side by side, on a GPU: images/s and saved memory.

`make gpu` runs this after `bench ops`. The ways to scan:

- ``triton``: the fused kernel.
- ``mamba-ssm``: the public kernel behind the same operator; it writes the four sequences out again in the backward.
- ``public``: the composition of public vision models: four sequences, their step sizes and B and C written out in
  float32 and kept for the backward, the public kernel, the merge; every step differentiated by autograd.

The last two need the extra ``medbench[mamba]``. Every way sees the same weights and the same random images. Rounds
take turns, so that drift hits all alike; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.machine.clock import clock_for
from bench.machine.memory import CudaMeter, peak_of
from bench.measure.activations import saved_for_backward
from bench.measure.workload import Workload
from bench.ops.backends.reference import to_images, to_sequences
from bench.ops.dispatch import use_backend, why_unavailable
from bench.record.cells import EfficiencyCell

WAYS = ("triton", "mamba-ssm", "public")
Row = dict[str, Any]


class _PublicScan(torch.autograd.Function):
    """The CUDA kernel of mamba-ssm with everything that its own autograd function keeps."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        out, kept, *_ = import_module("selective_scan_cuda").fwd(u, delta, A, B, C, D, None, delta_bias, True)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, kept)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, delta_bias, kept = ctx.saved_tensors
        grad = grads[0].contiguous()
        found = import_module("selective_scan_cuda").bwd(
            u, delta, A, B, C, D, None, delta_bias, grad, kept, None, None, True, False
        )
        return tuple(found[:7])


def public_cross_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    directions: Sequence[int] = (0, 1, 2, 3),
    backend: str | None = None,
) -> Tensor:
    """`bench.ops.cross_selective_scan` as public models compose it; projections in autocast's type, scan in float32."""
    _, h, w, d = x.shape
    r, n = dt_proj_weight.shape[-1], A.shape[-1]
    sequences = to_sequences(x, directions)
    features = torch.einsum("bkdl,kcd->bkcl", sequences, x_proj_weight)
    low_rank, B, C = features.split([r, n, n], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low_rank, dt_proj_weight)
    flat = [t.float().flatten(1, 2).contiguous() for t in (sequences, delta)]
    out = _PublicScan.apply(
        *flat, A.float().flatten(0, 1).contiguous(), B.float().contiguous(), C.float().contiguous(),
        D.float().flatten(), dt_bias.float().flatten(),
    )  # fmt: skip
    return to_images(out.unflatten(1, (-1, d)), directions, h, w).sum(3)


@contextmanager
def scanning(way: str) -> Iterator[None]:
    """Run the models' scans one way inside the block."""
    layers: Any = import_module("bench.models._ssm")
    if way != "public":
        with use_backend(way):
            yield
        return
    fused = layers.cross_selective_scan
    layers.cross_selective_scan = public_cross_scan
    try:
        yield
    finally:
        layers.cross_selective_scan = fused


def compare(model: str, batch: int, resolution: int, ways: Sequence[str], rounds: int = 5, steps: int = 4) -> list[Row]:
    """Train `steps` steps a round under bfloat16 autocast, every way in turn.

    Returns:
        A row a way: images/s, ms a step, MiB saved for the backward, MiB at the peak.

    Raises:
        RuntimeError: If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("comparing training on a GPU needs a CUDA device, and torch finds none")
    cell = EfficiencyCell(model, resolution, batch, "bf16", False, "train", "cuda:0", "", 1, "", {}, 1.0, 1)
    meter, clock, work = CudaMeter(cell.device), clock_for(cell.device), Workload(cell)
    step = work.step(pool=1)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, dict[str, Any]] = {}
    for way in ways:
        with scanning(way):
            step(0)
            memory[way] = peak_of(lambda: step(1), meter)
            with work.precision():
                memory[way] |= saved_for_backward(work.module, work.inputs(batch, 1)[0])
    for _ in range(rounds):
        for way in ways:
            with scanning(way):
                start = clock.mark()
                for number in range(steps):
                    step(number)
                end = clock.mark()
                clock.wait(end)
                seconds[way].append(clock.seconds(start, end) / steps)
    return [
        {
            "model": model, "batch": batch, "size": resolution, "dtype": "bfloat16", "way": way,
            "images_per_s": batch / median(seconds[way]), "step_ms_p50": 1e3 * median(seconds[way]),
            "step_ms_min": 1e3 * min(seconds[way]), "step_ms_max": 1e3 * max(seconds[way]),
            "saved_mib": memory[way]["saved_activations_mib"], "peak_mib": memory[way]["peak_memory_mib"],
        }
        for way in ways
    ]  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as text, with ratios to the last way."""
    lines = [f"{'way':<12}{'images/s':>10}{'ms/step':>10}{'saved MiB':>11}{'peak MiB':>10}{'speed':>8}{'saved':>8}"]
    last = rows[-1]
    for row in rows:
        speed, saved = row["images_per_s"] / last["images_per_s"], row["saved_mib"] / last["saved_mib"]
        lines.append(
            f"{row['way']:<12}{row['images_per_s']:>10.0f}{row['step_ms_p50']:>10.2f}{row['saved_mib']:>11.0f}"
            f"{row['peak_mib']:>10.0f}{speed:>7.2f}x{saved:>7.2f}x"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: compare, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="medmamba_tiny")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    options = parser.parse_args(arguments)
    reason = why_unavailable("mamba-ssm", "cuda")
    if reason is not None:
        print(f"no comparison: {reason}")
    rows = compare(options.model, 128, 224, WAYS if reason is None else WAYS[:1])
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{options.model}, 224 px, batch 128, bfloat16 autocast, training; {device}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

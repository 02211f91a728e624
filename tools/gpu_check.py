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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ops.backends.reference import to_images, to_sequences
from bench.ops.dispatch import use_backend, why_unavailable

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


class Trainer:
    """A network, its optimiser and one batch of random images."""

    def __init__(self, model: str, batch: int, size: int, seed: int = 0) -> None:
        import timm

        for family in ("medmamba", "vmamba"):
            import_module(f"bench.models.{family}")
        torch.manual_seed(seed)
        self.net: nn.Module = timm.create_model(model, num_classes=6).cuda()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), fused=True)
        self.images = torch.randn(batch, 3, size, size, device="cuda")
        self.labels = torch.randint(6, (batch,), device="cuda")

    def step(self) -> int:
        """One step under bfloat16 autocast; returns the bytes that the forward left allocated for the backward."""
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(self.net(self.images), self.labels)
        saved = torch.cuda.memory_allocated() - before
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return saved


def _milliseconds(call: Callable[[], Any], times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / times


def compare(model: str, batch: int, size: int, ways: Sequence[str], rounds: int = 5, steps: int = 4) -> list[Row]:
    """Train `steps` steps a round, every way in turn.

    Returns:
        A row a way: images/s, ms a step, MiB saved for the backward, MiB at the peak.

    Raises:
        RuntimeError: If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("comparing training on a GPU needs a CUDA device, and torch finds none")
    trainer = Trainer(model, batch, size)
    times: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, tuple[float, float]] = {}
    for way in ways:
        with scanning(way):
            trainer.step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            saved = trainer.step()
            memory[way] = (saved / 2**20, torch.cuda.max_memory_allocated() / 2**20)
    for _ in range(rounds):
        for way in ways:
            with scanning(way):
                times[way].append(_milliseconds(trainer.step, steps))
    return [
        {
            "model": model, "batch": batch, "size": size, "dtype": "bfloat16", "way": way,
            "images_per_s": batch / median(times[way]) * 1000, "step_ms_p50": median(times[way]),
            "step_ms_min": min(times[way]), "step_ms_max": max(times[way]),
            "saved_mib": memory[way][0], "peak_mib": memory[way][1],
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
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    options = parser.parse_args(arguments)
    reason = why_unavailable("mamba-ssm", "cuda")
    ways = WAYS if reason is None else WAYS[:1]
    if reason is not None:
        print(f"no comparison: {reason}")
    rows = compare(options.model, options.batch, options.size, ways, options.rounds)
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{options.model}, {options.size} px, batch {options.batch}, bfloat16 autocast, training; {device}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

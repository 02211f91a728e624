"""A training step of a network on a CUDA device: time as a replayed graph, peak memory, its kernels, what it keeps.

python -m tools.step_profile medmamba_tiny vmamba_tiny --resolution 224 --batch 128
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.registry.build import build
from bench.registry.layout import layout_of

REPLAYS = 24
MIB = 2**20


def make(name: str, resolution: int, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The network and its step: bf16 autocast, cross-entropy, fused AdamW, random images."""
    torch.manual_seed(0)
    model = build(name, resolution, weights=False)
    layout = layout_of(model)
    model = model.to("cuda").to(memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)
    images = torch.randn(batch, 3, resolution, resolution, device="cuda").contiguous(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,), device="cuda")

    def loss() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(model(images), labels)

    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    return model, step


def kept(model: nn.Module, step: Callable[[], Tensor]) -> Counter[tuple[str, str, tuple[int, ...]]]:
    """Bytes that a step keeps for its backward, by module (blocks of a stage together), type and shape."""
    path: list[str] = []
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive, found = [], Counter[tuple[str, str, tuple[int, ...]]]()

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if t.is_cuda and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(storage)  # a freed address could be given to another tensor
            module = re.sub(r"blocks\.\d+", "blocks.*", path[-1] if path else "")
            found[module, str(t.dtype).removeprefix("torch."), tuple(t.shape)] += storage.nbytes()
        return t

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, i, name=name: path.append(name)))  # type: ignore[misc]
        hooks.append(module.register_forward_hook(lambda m, i, o: (path.pop(), None)[1]))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    for hook in hooks:
        hook.remove()
    return found


def replayed(step: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[list[float], dict[str, list[float]]]:
    """Milliseconds of replays of the step's graph, and those of each kernel of one replay by name."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        graph.replay()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in run.events() or ():
        if event.device_type.name == "CUDA":
            name = re.sub(r"at::native::|\(anonymous namespace\)::|void |<unnamed>::", "", event.name)
            kernels[name].append(event.device_time_total / 1e3)
    return times[3:], kernels


def main() -> None:
    """Print the tables of each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rows", type=int, default=40, help="rows of each table")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    for name in given.models:
        model, step = make(name, given.resolution, given.batch)
        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / MIB
        largest = kept(model, step).most_common()
        times, kernels = replayed(step, stream)
        where = f"{name}, {given.resolution} px, batch {given.batch}, {torch.cuda.get_device_name()}"
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{where}: {statistics.median(times):.2f} ms ({spread}), peak {peak:.0f} MiB")
        print(f"  kept for the backward: {sum(size for _, size in largest) / MIB:.0f} MiB")
        for (module, dtype, shape), size in largest[: given.rows]:
            print(f"  {size / MIB:8.0f} MiB  {module or 'network'}: {dtype} {shape}")
        total = sum(map(sum, kernels.values()))
        print(f"  {sum(map(len, kernels.values()))} kernels, {total:.1f} ms:")
        for kernel, spent in sorted(kernels.items(), key=lambda item: -sum(item[1]))[: given.rows]:
            print(f"  {sum(spent):8.3f} ms {len(spent):4d}x  {kernel[:100]}")
        del model, step


if __name__ == "__main__":
    main()

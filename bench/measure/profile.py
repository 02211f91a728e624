"""``bench profile``: where a model's time goes, by stage and by operator, with its multiply-adds and bytes.

Two passes see the same operators in the same order. One, under a dispatch mode, notes for each call the module it
belongs to, its MACs and its traffic; the other, under torch.profiler, its time, undisturbed by the first. The calls are
matched by name and order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import flop_ops

if TYPE_CHECKING:
    import torch

STEPS = 10  # profiled steps; the median of each call is kept
MAX_SECONDS = 30.0  # fewer steps for what is slower


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call of one forward pass.

    Attributes:
        path: the module that made it, as ``layers.0.blocks.1.op``.
        operator: its name, as ``aten::addmm``.
        seconds: its own time with all it called, on the device.
        traffic: bytes that it reads and writes, each once.
    """

    path: str
    operator: str
    macs: int
    traffic: int
    seconds: float = 0.0

    @property
    def category(self) -> str:
        """One of a few kinds, for colours and sums."""
        return _category(self.operator, self.macs)


@dataclass(frozen=True, slots=True)
class Row:
    """Calls added up: by stage or by operator. ``share`` is of the time in all operators (0 to 1)."""

    name: str
    calls: int
    seconds: float
    share: float
    macs: int
    traffic: int

    @property
    def gmacs_per_s(self) -> float:
        """10^9 MACs a second."""
        return self.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes a second."""
        return self.traffic / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """One forward pass of a model, taken apart.

    Attributes:
        step_s: median seconds of an undisturbed step.
        outside: share of the profiled steps that was in no operator (0 to 1): Python, launches, waiting.
    """

    model: str
    resolution: int
    batch: int
    device: str
    threads: int
    step_s: float
    outside: float
    calls: tuple[Call, ...]
    channels_last: bool = False

    @property
    def operators_s(self) -> float:
        """Seconds in all operators."""
        return sum(call.seconds for call in self.calls)

    def by_stage(self) -> list[Row]:
        """Rows in the order of the forward pass; containers are taken apart one level."""
        return self._rows([stage_of(call.path) for call in self.calls])

    def by_operator(self) -> list[Row]:
        """Rows by operator, the longest first."""
        rows = self._rows([call.operator for call in self.calls])
        return sorted(rows, key=lambda row: -row.seconds)

    def _rows(self, keys: Sequence[str]) -> list[Row]:
        groups: dict[str, list[Call]] = defaultdict(list)
        for key, call in zip(keys, self.calls, strict=True):
            groups[key].append(call)
        total = self.operators_s or 1.0
        return [
            Row(
                name=key,
                calls=len(calls),
                seconds=(seconds := sum(c.seconds for c in calls)),
                share=seconds / total,
                macs=sum(c.macs for c in calls),
                traffic=sum(c.traffic for c in calls),
            )
            for key, calls in groups.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data: what was profiled, both tables, units in the names."""
        facts = {k: v for k, v in asdict(self).items() if k != "calls"}
        return facts | {
            "operators_s": self.operators_s,
            "stages": [asdict(row) for row in self.by_stage()],
            "operators": [asdict(row) for row in self.by_operator()],
        }


def stage_of(path: str) -> str:
    """The stage of a module path: its first part, with the number after it for what stands in a list."""
    parts = path.split(".")
    if len(parts) > 1 and parts[1].isdigit():
        return ".".join(parts[:2])
    return parts[0] or "(model)"


def _category(operator: str, macs: int) -> str:
    name = operator.partition("::")[2]
    if "scan" in name:
        return "scan"
    if "attention" in name:
        return "attention"
    if "conv" in name:
        return "convolution"
    if macs:
        return "matrix product"
    kind = flop_ops.category(operator)
    return {"normalisation": "norm", "movement": "data movement"}.get(kind or "", "elementwise")


def profile_model(
    name: str,
    resolution: int = 224,
    batch: int = 1,
    device: str = "cpu",
    trace: Path | None = None,
    model: torch.nn.Module | None = None,
) -> Profile:
    """Profile a forward pass in evaluation mode, float32 (no TF32), eager.

    Args:
        name: a registered model, with options in brackets; plug-ins are loaded already.
        resolution: side of the square images in pixels.
        batch: images a step.
        device: ``cpu`` or ``cuda:N``.
        trace: where to write the Chrome trace of the profiled steps, if wanted.
        model: the network itself, when it is built already.

    Raises:
        RegistryError: the model is unknown, or cannot run at this resolution.
    """
    if model is None:
        _refuse_unsupported(name, resolution)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: without a GPU its profiler complains of that

    import torch

    from bench.measure.build import IN_CHANS, build
    from bench.measure.layout import layout_of
    from bench.measure.workload import set_precision

    set_precision("fp32")
    net = (model or build(name, resolution)).to(device).eval()
    layout = layout_of(net)
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch, IN_CHANS, resolution, resolution, device=device).contiguous(memory_format=layout)

    def step(number: int) -> None:
        with torch.no_grad():
            net(images)

    step_s = _undisturbed_seconds(step, device)
    with torch.no_grad():
        calls = record_calls(net, images)
    steps = max(1, min(STEPS, int(MAX_SECONDS / step_s)))
    times, wall_s = _operator_seconds(step, steps, device, trace, {call.operator for call in calls})
    outside = max(0.0, 1 - sum(map(sum, times.values())) / wall_s)
    threads = torch.get_num_threads()
    timed, last = _timed(calls, times, steps), layout == torch.channels_last
    return Profile(name, resolution, batch, device, threads, step_s, outside, timed, last)


def _undisturbed_seconds(step: Any, device: str) -> float:
    """Median seconds of a warm step that nobody watches."""
    from bench.measure.timing import Budget, clock_for, throughput_blocks, warm_up

    clock = clock_for(device)
    budget = Budget(throughput_s=1.0, warmup_s=0.3, warmup_max_s=2.0)
    warm = warm_up(step, clock, budget)
    blocks, _ = throughput_blocks(step, clock, budget, warm.step_s)
    return sorted(blocks)[len(blocks) // 2]


def _refuse_unsupported(name: str, resolution: int) -> None:
    from bench.registry import RegistryError, model_facts, parse_model

    spec = parse_model(name)
    if reason := model_facts(spec.name).unsupported(resolution, dict(spec.options)):
        raise RegistryError(f"model {spec} at {resolution} pixels: {reason}")


def record_calls(net: torch.nn.Module, images: torch.Tensor) -> list[Call]:
    """Every operator call of one forward pass in order, with its module, MACs and traffic, no times yet."""
    from torch.utils.flop_counter import flop_registry

    import bench.ops  # registers the scan operators and their formulas  # noqa: F401
    from bench.measure.flops import lacking_formulas
    from bench.measure.recorder import OperatorRecorder

    formulas = {**flop_registry, **lacking_formulas()}
    calls: list[Call] = []
    path: list[str] = [""]

    class Recorder(OperatorRecorder):
        def note(self, packet: Any, args: Any, kwargs: Any, out: Any, traffic: int) -> None:
            macs = formulas[packet](*args, **kwargs, out_val=out) // 2 if packet in formulas else 0
            calls.append(Call(path[-1], packet._qualified_op_name, macs, traffic))

    with _paths(net, path), Recorder():
        net(images)
    return calls


@contextmanager
def _paths(net: torch.nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the name of the running module at the end of ``path``."""
    hooks = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, i, name=name: path.append(name)))  # type: ignore[misc]
        hooks.append(module.register_forward_hook(lambda m, i, o: path.pop() and None, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _operator_seconds(
    step: Any, steps: int, device: str, trace: Path | None, wanted: set[str]
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each call of the ``wanted`` operators, in order, over all profiled steps; and of the steps in all.

    What a wanted operator calls itself (a convolution that reserves memory and copies) is part of it, and no call of
    its own, as it is to the dispatch mode.
    """
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as run:
        begin = time.perf_counter()
        for number in range(steps):
            step(number)
        if cuda:
            torch.cuda.synchronize(device)
        wall_s = time.perf_counter() - begin
    if trace:
        trace.parent.mkdir(parents=True, exist_ok=True)
        run.export_chrome_trace(str(trace))
    found: dict[str, list[float]] = defaultdict(list)
    events = [event for event in run.events() or () if event.device_type == DeviceType.CPU and event.name in wanted]
    for event in sorted(events, key=lambda event: event.time_range.start):
        if not _within(event, wanted):
            found[event.name].append((event.device_time_total if cuda else event.cpu_time_total) / 1e6)
    return found, wall_s


def _within(event: Any, names: set[str]) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name in names:
            return True
        parent = parent.cpu_parent
    return False


def _timed(calls: Sequence[Call], times: dict[str, list[float]], steps: int) -> tuple[Call, ...]:
    """Give each call the median of its times; where the passes saw different numbers of calls, the mean of its name."""
    import numpy as np

    wanted = Counter(call.operator for call in calls)
    medians: dict[str, Iterator[float]] = {}
    for name, count in wanted.items():
        seen = np.asarray(times.get(name, []), dtype=float)
        if len(seen) == steps * count:
            medians[name] = iter(np.median(seen.reshape(steps, count), axis=0).tolist())
        else:
            medians[name] = iter([float(seen.sum()) / steps / count] * count)
    return tuple(replace(call, seconds=next(medians[call.operator])) for call in calls)


def main(options: argparse.Namespace) -> int:
    """Run ``bench profile`` with the parsed options of the command line; return its exit status."""
    from bench.measure import profile_view

    found = profile_model(options.model, options.resolution, options.batch, options.device, options.trace)
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        profile_view.print_tables(found)
    if options.picture:
        profile_view.draw(found, options.picture)
    for path in filter(None, (options.picture, options.trace)):
        print(f"written: {path}", file=sys.stderr)
    return 0

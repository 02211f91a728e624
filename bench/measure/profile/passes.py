"""The two passes of a profile over the same step: one notes what each operator call is, the other how long it takes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch._ops import OpOverloadPacket
from torch.autograd.graph import Node
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import bench.ops  # noqa: F401  (registers the scan operators and their formulas)
from bench.machine.clock import Clock, Step
from bench.measure import flop_ops
from bench.measure.flops import lacking_formulas
from bench.measure.op_recorder import OperatorRecorder
from bench.measure.timing import Budget, throughput_blocks, warm_up
from bench.record.types import Fields

Phase = tuple[str, Callable[[], object]]  # forward, backward or optimizer, and what does it


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call of one step.

    Attributes:
        path: the module that made it, as ``layers.0.blocks.1.op``; in the backward pass that whose gradient it is of.
        operator: its name, as ``aten::addmm``.
        seconds: its own time with all it called, on the device.
        traffic: bytes that it reads and writes, each once.
        phase: ``forward``, ``backward`` or ``optimizer``.
    """

    path: str
    operator: str
    macs: int
    traffic: int
    seconds: float = 0.0
    phase: str = "forward"

    @property
    def category(self) -> str:
        """One of a few kinds, for colours and sums."""
        name = self.operator.partition("::")[2]
        for word, kind in (
            ("scan", "scan"),
            ("attention", "attention"),
            ("conv", "convolution"),
            ("norm_gate", "norm"),
        ):
            if word in name:
                return kind
        if self.macs:
            return "matrix product"
        known = flop_ops.category(self.operator)
        return {"normalisation": "norm", "movement": "data movement"}.get(known or "", "elementwise")


def record_calls(net: torch.nn.Module, phases: Sequence[Phase]) -> tuple[Call, ...]:
    """Every operator call of one step in order, with its module, phase, MACs and traffic, no times yet."""
    formulas = {**flop_registry, **lacking_formulas()}
    calls: list[Call] = []
    modules = _Modules()
    now = "forward"

    class Recorder(OperatorRecorder):
        def note(
            self, packet: OpOverloadPacket, args: tuple[object, ...], kwargs: Fields, out: object, traffic: int
        ) -> None:
            macs = formulas[packet](*args, **kwargs, out_val=out) // 2 if packet in formulas else 0
            path = modules.of_gradient if now == "backward" else modules.path[-1]
            calls.append(Call(path, packet._qualified_op_name, macs, traffic, phase=now))

    with modules.watching(net), Recorder():
        for now, run in phases:  # noqa: B007  (the recorder reads it)
            run()
    return tuple(calls)


class _Modules:
    """The running module: by hooks in the forward pass; in the backward pass the one whose nodes autograd runs.

    Whenever a module begins or ends, the nodes that autograd has added belong to the one that ran until then.
    """

    def __init__(self) -> None:
        self.path = [""]
        self.of_gradient = ""
        self._known: set[Node] = set()

    def _claim(self, tensors: object) -> None:
        path = self.path[-1]

        def runs(gradients: object) -> None:
            self.of_gradient = path

        waiting = [t.grad_fn for t in tree_leaves(tensors) if isinstance(t, torch.Tensor)]
        while waiting:
            node = waiting.pop()
            # What only stores a gradient in a weight (it alone has a variable) belongs to whoever ran before.
            if node is None or node in self._known or hasattr(node, "variable"):
                continue
            self._known.add(node)
            node.register_prehook(runs)
            waiting += [before for before, _ in node.next_functions]

    @contextmanager
    def watching(self, net: torch.nn.Module) -> Iterator[None]:
        """Follow the modules of ``net``."""

        def enter(name: str, inputs: object) -> None:
            self._claim(inputs)
            self.path.append(name)

        def leave(outputs: object) -> None:
            self._claim(outputs)
            self.path.pop()

        hooks = []
        for name, module in net.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda m, i, name=name: enter(name, i)))  # type: ignore[misc]
            hooks.append(module.register_forward_hook(lambda m, i, o: leave(o), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._known.clear()  # they hold the hooks, which hold this


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A warm step that nobody watches: its median seconds, and the processor's seconds a second of all of them."""

    step_s: float
    cpu_share: float


def undisturbed(step: Step, clock: Clock, cpu_seconds: Callable[[], float] = time.process_time) -> Undisturbed:
    """Time a step without a profiler."""
    budget = Budget(throughput_s=1.0, warmup_s=0.3, warmup_max_s=2.0)
    warm = warm_up(step, clock, budget)
    begin, cpu = clock.now(), cpu_seconds()
    blocks, _ = throughput_blocks(step, clock, budget, warm.step_s)
    return Undisturbed(median(blocks), (cpu_seconds() - cpu) / (clock.now() - begin))


def operator_seconds(
    step: Step, steps: int, device: str, trace: Path | None, wanted: set[str]
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each call of the ``wanted`` operators, in order, over all profiled steps; and of the steps in all.

    What a wanted operator calls itself (a convolution that reserves memory and copies) is part of it, and no call of
    its own, as it is to the dispatch mode.
    """
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
    events = [event for event in run.events() or () if event.device_type.name == "CPU" and event.name in wanted]
    for event in sorted(events, key=lambda event: event.time_range.start):
        if not any(name in wanted for name in _callers(event)):
            found[event.name].append((event.device_time_total if cuda else event.cpu_time_total) / 1e6)
    return found, wall_s


def _callers(event: FunctionEvent) -> Iterator[str]:
    caller = event.cpu_parent
    while caller is not None:
        yield caller.name
        caller = caller.cpu_parent


def timed(calls: Sequence[Call], times: dict[str, list[float]], steps: int) -> tuple[Call, ...]:
    """Give each call the median of its times; where the passes saw different numbers of calls, the mean of its name."""
    wanted = Counter(call.operator for call in calls)
    medians: dict[str, Iterator[float]] = {}
    for name, count in wanted.items():
        seen = np.asarray(times.get(name, []), dtype=float)
        if len(seen) == steps * count:
            medians[name] = iter(np.median(seen.reshape(steps, count), axis=0).tolist())
        else:
            medians[name] = iter([float(seen.sum()) / steps / count] * count)
    return tuple(replace(call, seconds=next(medians[call.operator])) for call in calls)

"""``bench profile``: where a model's time goes, by stage and by operator, with its multiply-adds and bytes.

Two passes see the same operators in the same order. One, under a dispatch mode, notes for each call the module it
belongs to, its MACs and its traffic; the other, under torch.profiler, its time, undisturbed by the first. The calls are
matched by name and order. Beside each stage stands how near it comes to the ceilings that the machine was measured at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.machine.clock import clock_for
from bench.measure.profile.passes import Call, Phase, operator_seconds, record_calls, timed, undisturbed
from bench.measure.roofline import Ceilings, measure_ceilings
from bench.measure.workload import Workload
from bench.record.cells import EfficiencyCell
from bench.record.types import Fields
from bench.registry import RegistryError, model_info, parse_model

STEPS = 10  # profiled steps; the median of each call is kept
MAX_SECONDS = 30.0  # fewer steps for what is slower
CPU_SHARE = 0.7  # of one processor: a step on a CPU that gets less has been waiting for others
LAUNCH_S = 50e-6  # of Python around a call, at the most


def why_busy(step_s: float, cpu_share: float | None, calls: Sequence[Call]) -> str | None:
    """Say why the machine was too busy for a profile to be read; None where it was not.

    Args:
        step_s: seconds of an undisturbed step.
        cpu_share: processor seconds a second of this process meanwhile; None where the work is a GPU's.
        calls: with their times, each the median of several steps.
    """
    if cpu_share is not None and cpu_share < CPU_SHARE:
        return f"this process had {cpu_share:.0%} of a CPU core while it was timed; other processes took the rest"
    operators_s = sum(call.seconds for call in calls)
    if step_s > 3 * operators_s + LAUNCH_S * len(calls):
        return f"a step took {1e3 * step_s:.4g} ms, but its operators add up to {1e3 * operators_s:.4g} ms"
    return None


@dataclass(frozen=True, slots=True)
class CallGroup:
    """Calls added up: by stage or by operator. ``share`` is of the time in all operators (0 to 1).

    ``of_roof`` is the least time that the measured ceilings allow for these MACs and bytes, over the time taken;
    above 1 where caches served what memory could not. None without ceilings.
    """

    name: str
    calls: int
    seconds: float
    share: float
    macs: int
    traffic: int
    of_roof: float | None = None

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
    """One step of a model, taken apart.

    Attributes:
        step_s: median seconds of an undisturbed eager step.
        outside: share of the profiled steps that was in no operator (0 to 1): Python, launches, waiting.
        busy: why the machine was too busy for these times to be trusted; None where it was not.
        compiled_step_s: median seconds of a compiled step, if that was wanted.
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
    precision: str = "fp32"
    mode: str = "infer"
    compiled_step_s: float | None = None
    ceilings: Ceilings | None = None
    busy: str | None = None

    @property
    def operators_s(self) -> float:
        """Seconds in all operators."""
        return sum(call.seconds for call in self.calls)

    @property
    def mfu(self) -> float | None:
        """FLOPs of an undisturbed step over the arithmetic ceiling (0 to 1)."""
        if self.ceilings is None:
            return None
        rate = 2 * sum(call.macs for call in self.calls) / self.step_s / 1e9
        return rate / self.ceilings.gflops_per_s[self.precision]

    def by_stage(self) -> list[CallGroup]:
        """Rows in the order of the step; containers are taken apart one level."""
        return self._rows([_stage_label(call) for call in self.calls])

    def by_operator(self) -> list[CallGroup]:
        """Rows by operator, the longest first."""
        rows = self._rows([call.operator for call in self.calls])
        return sorted(rows, key=lambda row: -row.seconds)

    def _rows(self, keys: Sequence[str]) -> list[CallGroup]:
        groups: dict[str, list[Call]] = defaultdict(list)
        for key, call in zip(keys, self.calls, strict=True):
            groups[key].append(call)
        total = self.operators_s or 1.0
        return [
            CallGroup(
                name=key,
                calls=len(calls),
                seconds=(seconds := sum(c.seconds for c in calls)),
                share=seconds / total,
                macs=sum(c.macs for c in calls),
                traffic=sum(c.traffic for c in calls),
                of_roof=sum(map(self._least_seconds, calls)) / seconds if self.ceilings and seconds else None,
            )
            for key, calls in groups.items()
        ]

    def _least_seconds(self, call: Call) -> float:
        assert self.ceilings is not None
        arithmetic = 2 * call.macs / self.ceilings.gflops_per_s[self.precision]
        return max(arithmetic, call.traffic / self.ceilings.copy_gb_per_s) / 1e9

    def to_json(self) -> Fields:
        """Plain data: what was profiled, both tables, units in the names."""
        settings = {k: v for k, v in asdict(self).items() if k != "calls"}
        return settings | {
            "operators_s": self.operators_s,
            "mfu": self.mfu,
            "stages": [asdict(row) for row in self.by_stage()],
            "operators": [asdict(row) for row in self.by_operator()],
        }


def _stage_label(call: Call) -> str:
    if call.phase == "optimizer":
        return "(optimizer)"
    stage = stage_of(call.path)
    return stage if call.phase == "forward" else f"{stage} {call.phase}"


def stage_of(path: str) -> str:
    """The stage of a module path: its first part, with the number after it for what stands in a list."""
    parts = path.split(".")
    if len(parts) > 1 and parts[1].isdigit():
        return ".".join(parts[:2])
    return parts[0] or "(model)"


def profile_model(
    name: str,
    resolution: int = 224,
    batch: int = 1,
    device: str = "cpu",
    trace: Path | None = None,
    model: torch.nn.Module | None = None,
    *,
    precision: str = "fp32",
    train: bool = False,
    compiled: bool = False,
    threads: int = 0,
    ceilings: bool = False,
) -> Profile:
    """Profile the eager step of an efficiency Cell: a forward pass, or with ``train`` a whole training step.

    Args:
        name: a registered model, with options in brackets; plug-ins are loaded already.
        resolution: side of the square images in pixels.
        batch: images a step.
        device: ``cpu`` or ``cuda:N``.
        trace: where to write the Chrome trace of the profiled steps, if wanted.
        model: the network itself, when it is built already.
        precision: ``fp32`` (no TF32), ``tf32`` or ``bf16`` (autocast).
        train: forward, backward and optimizer instead of a forward pass in evaluation mode.
        compiled: time a compiled step as well; a compiler fuses across modules, so the parts are the eager step's.
        threads: CPU threads; 0 leaves them as they are.
        ceilings: measure the machine's ceilings too (some seconds), for the shares of the roof.

    Raises:
        RegistryError: the model is unknown, or cannot run at this resolution.
    """
    if model is None:
        _refuse_unsupported(name, resolution)
    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    mode = "train" if train else "infer"
    cell = EfficiencyCell(name, resolution, batch, precision, False, mode, device, "", threads, "", {}, 1.0, 1)
    work = Workload(cell, model)
    found = _take_apart(work, trace)
    if compiled:
        again = Workload(replace(cell, compile=True), work.module)
        found = replace(found, compiled_step_s=undisturbed(again.step(), clock_for(device)).step_s)
    return replace(found, ceilings=measure_ceilings(device, threads, precision)) if ceilings else found


def _take_apart(work: Workload, trace: Path | None) -> Profile:
    cell, phases = work.cell, _phases(work)

    def step(number: int) -> None:
        for _, run in phases:
            run()

    alone = undisturbed(step, clock_for(cell.device))
    calls = record_calls(work.module, phases)
    steps = max(1, min(STEPS, int(MAX_SECONDS / alone.step_s)))
    times, wall_s = operator_seconds(step, steps, cell.device, trace, {call.operator for call in calls})
    calls = timed(calls, times, steps)
    return Profile(
        cell.model, cell.resolution, cell.batch, cell.device, cell.threads, alone.step_s,
        outside=max(0.0, 1 - sum(map(sum, times.values())) / wall_s),
        calls=calls,
        channels_last=work.layout == torch.channels_last,
        precision=cell.precision,
        mode=cell.mode,
        busy=why_busy(alone.step_s, alone.cpu_share if cell.device == "cpu" else None, calls),
    )  # fmt: skip


def _phases(work: Workload) -> list[Phase]:
    """The parts of a step on one batch. Without gradients under ``no_grad``: inference mode keeps operators whole."""
    if work.cell.mode == "train":
        return [(name, lambda run=run: run(0)) for name, run in work.phases(pool=1)]  # type: ignore[misc]
    (images,) = work.inputs(work.cell.batch, 1)

    def forward() -> None:
        with torch.no_grad(), work.precision():
            work.module(images)

    return [("forward", forward)]


def _refuse_unsupported(name: str, resolution: int) -> None:
    spec = parse_model(name)
    if reason := model_info(spec.name).unsupported(resolution, dict(spec.options)):
        raise RegistryError(f"model {spec} at {resolution} pixels: {reason}")

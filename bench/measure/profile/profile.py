"""``bench profile``: where a model's time goes, by stage and by operator, with its multiply-adds and bytes.

Two passes see the same operators in the same order. One, under a dispatch mode, notes for each call the module it
belongs to, its MACs and its traffic; the other, under torch.profiler, its time, undisturbed by the first. The calls are
matched by name and order. Beside each stage stands how near it comes to the ceilings that the machine was measured at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.machine.compiler import why_not_compiled
from bench.record.cells import EfficiencyCell

if TYPE_CHECKING:
    import torch

    from bench.measure.profile.passes import Call
    from bench.measure.roofline import Ceilings
    from bench.measure.workload import Workload

STEPS = 10  # profiled steps; the median of each call is kept
MAX_SECONDS = 30.0  # fewer steps for what is slower


@dataclass(frozen=True, slots=True)
class Row:
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

    def by_stage(self) -> list[Row]:
        """Rows in the order of the step; containers are taken apart one level."""
        return self._rows([_stage_label(call) for call in self.calls])

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
                of_roof=sum(map(self._least_seconds, calls)) / seconds if self.ceilings and seconds else None,
            )
            for key, calls in groups.items()
        ]

    def _least_seconds(self, call: Call) -> float:
        assert self.ceilings is not None
        arithmetic = 2 * call.macs / self.ceilings.gflops_per_s[self.precision]
        return max(arithmetic, call.traffic / self.ceilings.copy_gb_per_s) / 1e9

    def to_json(self) -> dict[str, Any]:
        """Plain data: what was profiled, both tables, units in the names."""
        facts = {k: v for k, v in asdict(self).items() if k != "calls"}
        return facts | {
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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: without a GPU its profiler complains of that

    import torch

    from bench.measure import roofline
    from bench.measure.profile import passes
    from bench.measure.workload import Workload

    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    mode = "train" if train else "infer"
    cell = EfficiencyCell(name, resolution, batch, precision, False, mode, device, "", threads, "", {}, 1.0, 1)
    work = Workload(cell, model)
    phases = _phases(work)

    def step(number: int) -> None:
        for _, run in phases:
            run()

    step_s = passes.undisturbed_seconds(step, device)
    calls = passes.record_calls(work.module, phases)
    steps = max(1, min(STEPS, int(MAX_SECONDS / step_s)))
    operators = {call.operator for call in calls}
    times, wall_s = passes.operator_seconds(step, steps, device, trace, operators)
    found = Profile(
        name, resolution, batch, device, threads, step_s,
        outside=max(0.0, 1 - sum(map(sum, times.values())) / wall_s),
        calls=passes.timed(calls, times, steps),
        channels_last=work.layout == torch.channels_last,
        precision=precision,
        mode=mode,
    )  # fmt: skip
    if compiled:
        again = Workload(replace(cell, compile=True), work.module)
        found = replace(found, compiled_step_s=passes.undisturbed_seconds(again.step(), device))
    if ceilings:
        found = replace(found, ceilings=roofline.measure_ceilings(device, threads, precision))
    return found


def _phases(work: Workload) -> list[tuple[str, Callable[[], Any]]]:
    """The parts of a step on one batch. Without gradients under ``no_grad``: inference mode keeps operators whole."""
    import torch

    if work.cell.mode == "train":
        return [(name, lambda run=run: run(0)) for name, run in work.phases(pool=1)]  # type: ignore[misc]
    (images,) = work.inputs(work.cell.batch, 1)

    def forward() -> None:
        with torch.no_grad(), work.precision():
            work.module(images)

    return [("forward", forward)]


def _refuse_unsupported(name: str, resolution: int) -> None:
    from bench.registry import RegistryError, model_facts, parse_model

    spec = parse_model(name)
    if reason := model_facts(spec.name).unsupported(resolution, dict(spec.options)):
        raise RegistryError(f"model {spec} at {resolution} pixels: {reason}")


def refusal(options: argparse.Namespace) -> str | None:
    """Why these options of the command line cannot be; None where they can."""
    if options.precision == "tf32" and options.device == "cpu":
        return "--precision tf32: tf32 is a mode of CUDA devices; fp32 and bf16 run on the CPU"
    if options.train and options.batch == 1:
        return "--train --batch 1: batch norm cannot be trained on one image; take --batch 2 or more"
    if options.compile and (reason := why_not_compiled(options.device)):
        return f"--compile: {reason}"
    return None


def main(options: argparse.Namespace) -> int:
    """Run ``bench profile`` with the parsed options of the command line; return its exit status."""
    from bench.cli import profile

    if reason := refusal(options):
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    found = profile_model(
        options.model, options.resolution, options.batch or (8 if options.train else 1), options.device, options.trace,
        precision=options.precision, train=options.train, compiled=options.compile, threads=options.threads,
        ceilings=True,
    )  # fmt: skip
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        profile.print_tables(found)
    if options.picture:
        profile.draw(found, options.picture)
    for path in filter(None, (options.picture, options.trace)):
        print(f"written: {path}", file=sys.stderr)
    return 0

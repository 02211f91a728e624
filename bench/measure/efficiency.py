"""One efficiency Cell: what a worker measures in one round, in a fresh process.

Order, because each pass must not disturb the next: memory (the process is still clean), FLOPs, warm-up,
throughput, split or latency, energy, the reference model in turn with this one (CPU), the step as a CUDA graph. Energy
and what does not change with time come from round 0 alone. The runner calls :func:`measure_round` in rounds interleaved
over all models, and :func:`bench.measure.aggregate.combine` makes one set of metrics of them, the difference between
rounds as the noise.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import fvcore.nn  # noqa: F401  (imported here, so that the forkserver has it)
import torch

from bench.machine import hardware, memory
from bench.machine.clock import Clock, Step, clock_for
from bench.measure import energy, flops, timing
from bench.measure.activations import saved_for_backward
from bench.measure.largest_batch import largest_batch, least_batch
from bench.measure.once import kept
from bench.measure.roofline import kept_ceilings
from bench.measure.workload import Workload, touch_libraries, traffic
from bench.record.cells import ONE_THREAD, SPEED_REFERENCE, Context, EfficiencyCell, Result, cell_key
from bench.record.types import Fields
from bench.registry.build import IN_CHANS

LARGEST = 0  # as a Cell's batch: the largest that fits


def measure_round(cell: EfficiencyCell, ctx: Context, number: int = 0) -> Result:
    """Measure one round of a Cell.

    Args:
        cell: what to measure; ``budget_s`` is the time of the throughput pass of one round, and batch 0 stands for
            the largest that fits.
        ctx: where; ``progress`` hears the phases.
        number: the round; round 0 also takes memory and FLOPs.

    Returns:
        Raw samples in ``metrics``, plain JSON data for :func:`bench.measure.aggregate.combine`; or status ``oom`` with
        what failed.
    """
    phase = _Phase(ctx.progress)
    raw: Fields = {"round": number, "mode": cell.mode, "device": cell.device, "compile": cell.compile}
    raw["begun"] = datetime.now(UTC).isoformat(timespec="seconds")
    failure = ""
    if cell.batch == LARGEST:
        phase("largest batch")
        path = ctx.out / "largest_batch" / f"{cell_key(cell)}.json"  # searched in round 0 and read by the later ones
        found, failed = kept(path, lambda: largest_batch(cell))
        cell = replace(cell, batch=max(found, least_batch(cell.mode)))
        raw["largest"] = {"largest_batch": found, "smallest_failing_batch": failed}
    raw["batch"] = cell.batch
    try:
        _measure(cell, ctx, number, raw, phase)
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        failure = str(error).strip().splitlines()[0]
    # Outside the except clause: a caught exception holds its frames, and they hold the tensors.
    if not failure:
        raw["phases_s"] = phase.seconds()
        return Result(json.loads(json.dumps(raw)), timings=phase.seconds())
    if cell.device.startswith("cuda"):
        torch.cuda.empty_cache()
    reason = f"out of memory in {phase.name}: batch {cell.batch}, {cell.resolution} px, {cell.precision}, {cell.mode}"
    metrics = {
        **raw.get("static", {}),
        **raw.get("largest", {}),
        "oom_phase": phase.name,
        "oom_batch": cell.batch,
        "oom_resolution": cell.resolution,
    }
    return Result(metrics, "oom", f"{reason}; {failure}"[:400], timings=phase.seconds())


class _Phase:
    """Tells the driver which phase runs, and keeps how long each took."""

    def __init__(self, progress: Callable[[Fields], None]) -> None:
        self._progress = progress
        self._begun: list[tuple[str, float]] = []
        self.name = "start"

    def __call__(self, name: str) -> None:
        self.name = name
        self._begun.append((name, time.perf_counter()))
        self._progress({"phase": name})

    def seconds(self) -> dict[str, float]:
        ends = [start for _, start in self._begun[1:]] + [time.perf_counter()]
        return {f"{name}_s": round(end - start, 4) for (name, start), end in zip(self._begun, ends, strict=True)}


def _measure(cell: EfficiencyCell, ctx: Context, number: int, raw: Fields, phase: _Phase) -> None:
    cuda = cell.device.startswith("cuda")
    torch.set_num_threads(cell.threads)
    if not cuda:
        memory.cap_data()
    if number == 0:
        raw["static"] = {}
        workload = _static(cell, raw["static"], phase, ctx.out / "flops")
        phase("ceilings")
        raw["ceilings"] = asdict(
            kept_ceilings(cell.device, cell.threads, cell.precision, ctx.out / "ceilings", cell.hardware)
        )
    else:
        phase("build")
        workload = Workload(cell)
    budget = timing.Budget.from_seconds(cell.budget_s, cuda)
    clock = clock_for(cell.device)
    phase("warmup")
    step = workload.step()
    warm = timing.warm_up(step, clock, budget)
    raw["warmup"] = asdict(warm)
    single = None if cell.mode == "train" else workload.step(batch=1)
    if single:
        single(0)  # compiles for this batch
        clock.synchronize()
    before = hardware.snapshot(cell.device)
    phase("throughput")
    busy: Fields = {}  # clocks are only telling while the device works
    look = (lambda: busy.update(hardware.gpu_state(cell.device))) if cuda else None
    raw["block_s"], raw["steps_per_block"] = timing.throughput_blocks(step, clock, budget, warm.step_s, look)
    if busy:
        raw["gpu_busy"] = busy
    if single:
        phase("latency")
        raw["latency_s"] = timing.latency_samples(single, clock, budget)
    else:
        phase("split")
        raw["phase_s"] = timing.phase_seconds(workload.phases(), clock, budget)
    if number == 0 and budget.energy_s and (joules := energy.counter_for(cell.device)):
        phase("energy")
        raw["energy"] = energy.measure(step, cell.batch, clock, joules, budget.energy_s)
    after = hardware.snapshot(cell.device)
    after |= {"gpu": after["gpu"] | {"throttle": busy.get("throttle", [])}} if busy else {}
    raw["disturbances"] = hardware.disturbances(before, after)
    raw["measured_s"] = after["at_s"] - before["at_s"]
    if not cuda and not cell.compile and "largest" not in raw and cell.model != SPEED_REFERENCE:
        phase("reference")
        raw |= {"relative_to": SPEED_REFERENCE, "relative_in": ONE_THREAD}
        raw["relative_speeds"] = _beside_reference(cell, step, clock, budget)
    if cuda:
        phase("graph")
        raw |= _replayed(workload, clock, budget)  # last: a capture that fails may leave the process unfit for more


def _beside_reference(cell: EfficiencyCell, step: Step, clock: Clock, budget: timing.Budget) -> list[float]:
    """The speed relative to the reference model doing the same beside it; nothing where it cannot.

    On one thread: several wait for each other where others use the cores, and spend processor time on it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = Workload(replace(cell, model=SPEED_REFERENCE)).step()
        return timing.side_by_side(step, reference, clock, budget)
    except Exception as error:
        if not memory.is_out_of_memory(error) and not isinstance(error, ValueError):  # batch norm of a single value
            raise
        return []
    finally:
        torch.set_num_threads(threads)


def _replayed(workload: Workload, clock: Clock, budget: timing.Budget) -> Fields:
    """Time the step as one CUDA graph: what the device itself needs, whatever the host takes to launch its kernels."""
    try:
        step = workload.graph_step()
        brief = replace(budget, throughput_s=budget.throughput_s / 3, warmup_s=budget.warmup_s / 3)
        warm = timing.warm_up(step, clock, brief)
        return {"graph_block_s": timing.throughput_blocks(step, clock, brief, warm.step_s)[0]}
    except Exception as error:  # a model may do what no graph can hold: then there is no such figure, and a reason
        return {"graph_error": f"{type(error).__name__}: {error}"[:300]}


def _static(cell: EfficiencyCell, found: Fields, phase: _Phase, directory: Path) -> Workload:
    """Take what needs a clean process or no clock: memory, FLOPs, activations. Fills ``found`` as it goes."""
    phase("memory")
    if not cell.device.startswith("cuda"):
        touch_libraries(cell.device)
    meter = memory.meter_for(cell.device)
    workload = Workload(cell)
    found |= workload.facts()
    found["params"] = sum(p.numel() for p in workload.module.parameters())
    step = workload.step(pool=1)
    step(0)  # lazy state: algorithm search, optimizer moments, compilation
    if cell.compile and isinstance(meter, memory.RssMeter):
        meter.rebase(workload.held_bytes())
    found |= memory.peak_of(lambda: (step(1), step(2)), meter)
    if cell.mode == "train":
        with workload.precision():
            found |= saved_for_backward(workload.module, workload.inputs(cell.batch, 1)[0])
    phase("flops")
    found |= _flops(workload, directory)
    found["traffic_mib_per_image"] = traffic(workload) / cell.batch / memory.MIB
    return workload


def _flops(workload: Workload, directory: Path) -> Fields:
    """Count; a model that cannot be counted is still timed, and its record says why it has no FLOPs.

    Counts are kept in ``directory``: they are the same for every batch, precision and mode.
    """
    cell = workload.cell
    image = (IN_CHANS, cell.resolution, cell.resolution)
    found: Fields = {"macs_g": None, "flops_g": None}
    try:
        forward = directory / f"{_flops_key(cell)}.json"
        found |= kept(forward, lambda: flops.count(workload.module, (1, *image)))
        if cell.mode == "train":
            training = forward.with_stem(f"{forward.stem}_train")
            found["train_macs_g"] = kept(training, lambda: flops.count_training(workload.module, image) / 1e9)
    except Exception as error:  # tracing runs the model's own code: it may raise anything
        if memory.is_out_of_memory(error):
            raise
        name = "" if isinstance(error, flops.FlopsError) else f"{type(error).__name__}: "
        found["flops_error"] = f"{name}{error}"[:1000]
    return found


def _flops_key(cell: EfficiencyCell) -> str:
    """Twenty hex digits of everything that a count depends on."""
    facts = {
        "model": cell.model,
        "resolution": cell.resolution,
        "device": cell.device.partition(":")[0],
        "backend": cell.backend,
        "versions": {**cell.versions, "fvcore": metadata.version("fvcore")},
        "plugin": cell.model_plugin_sha256,
        "formulas": flops.FORMULA_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

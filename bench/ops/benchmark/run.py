"""`bench ops`: check every scan backend against float64, then time all of them side by side.

Every claim about the scan's speed is made with this instrument. Each case is the core of one block (the operator
``medbench::cross_scan``: step-size projection, four scans, merge; without the product that feeds it, which is the same
for all backends). Timed are the forward as in inference, and forward plus backward through autograd.

CPU: rounds in which every backend runs once, so that drift hits all alike; median of the rounds. CUDA: a captured
graph is replayed (the eager call's Python time is reported beside it), events around each replay.

*Fraction of the floor*: floor / measured. The floor is the larger of two: bytes that must move (every input read
once, every output written once) over the copy bandwidth measured in the same run, and exponentials that must be
evaluated over their rate (:func:`exponentials_per_s`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.machine.ceilings import best_seconds, copied_bytes_per_s
from bench.machine.clock import clock_for
from bench.machine.hardware import machine_info
from bench.machine.memory import RssMeter, peak_of
from bench.ops.backends import cpu
from bench.ops.benchmark import cases
from bench.ops.benchmark.arguments import parse
from bench.ops.benchmark.cases import Row, ScanCase
from bench.ops.benchmark.tables import tables
from bench.ops.dispatch import MODULES, backend_report, why_unavailable

PASSES = ("forward", "forward+backward")
FORWARD_LIMIT, BACKWARD_LIMIT = 2.0, 3.0  # error allowed, in errors of the PyTorch backend in the same type
LUCK = 2.0  # roundings of the type (of the output; of float32 for sums) below which an error is not compared
MIN_ROUNDS, MAX_ROUNDS = 3, 25
CALL_LIMIT_S = 2.5  # a backend whose single call is expected to take longer is skipped there, and says so
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(
    device: str | None = None,
    models: Sequence[str] = ("medmamba", "vmamba"),
    resolutions: Sequence[int] = (64, 224, 512),
    batches: Sequence[int] | None = None,
    backends: Sequence[str] | None = None,
    dtype: str = "float32",
    seconds_per_case: float = 1.0,
    check: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Check and time the scan backends; the arguments are the command's.

    Returns:
        Plain rows, ready for JSON, told apart by ``kind``: one "ceilings", then "check" rows, then "time" rows.

    Raises:
        ValueError: If a named backend cannot run on the device or a name is unknown.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    names = _backends(where, backends)
    progress("measuring the machine's ceilings")
    ceilings = {"copy_bytes_per_s": copied_bytes_per_s(str(where), 0.3), "exp_per_s": exponentials_per_s(where)}
    rows: list[Row] = [{"kind": "ceilings", **_environment(where), **ceilings, "dtype": dtype}]
    if check:
        rows += check_backends(names, where, DTYPES[dtype], progress)
    batches = batches or ((1, 64, 128) if where.type == "cuda" else (1,))
    pace: dict[tuple[str, str, int], float] = {}
    for case in cases.model_cases(models, resolutions, batches):
        for one in PASSES:
            progress(f"{case.name}, {one}")
            rows += _time_case(case, one, names, where, DTYPES[dtype], ceilings, seconds_per_case, pace)
    return rows


def _backends(device: torch.device, wanted: Sequence[str] | None) -> list[str]:
    unusable = {name: reason for name in MODULES if (reason := why_unavailable(name, device.type)) is not None}
    for name in wanted or ():
        if name not in MODULES:
            raise ValueError(f"unknown scan backend {name!r}; the backends are {', '.join(sorted(MODULES))}")
        if name in unusable:
            raise ValueError(f"scan backend {name!r} cannot run on {device.type}: {unusable[name]}")
    return list(wanted) if wanted else [name for name in MODULES if name not in unusable]


def exponentials_per_s(device: torch.device) -> float:
    """Exponentials a second with nothing else to wait for.

    CUDA: of the special function units, 16 a clock and multiprocessor from compute capability 7.0 to 9.0 (CUDA C++
    Programming Guide, table of throughputs). CPU: measured with the kernel's own polynomial on data in the first-level
    cache, all threads; with PyTorch's exp where there is no compiler.
    """
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return 16.0 * gpu.multi_processor_count * gpu.clock_rate * 1e3
    if cpu.unavailable("cpu") is None:
        return max(cpu.exp_rate() for _ in range(3))
    x = torch.linspace(-1, 0, 2**15)
    return x.numel() / best_seconds(lambda number: torch.exp(x), clock_for("cpu"), 0.1)


def _environment(device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine_info()["cpu_model"]
    chosen, _, why = backend_report(device)[0]
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "chosen_backend": chosen, "chosen_because": why}  # fmt: skip


# ---- check ---------------------------------------------------------------------------------------------------------


def check_backends(
    names: Sequence[str], device: torch.device, dtype: torch.dtype, progress: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Errors of backends against float64, beside those of PyTorch in the same type; a row a backend and shape."""
    rows: list[Row] = []
    for sizes in cases.CROSS_CHECKS:
        inputs = cases.cross_inputs(cases.check_case(sizes), dtype, device)
        label = "cross scan b,h,w,d,n,r = " + ",".join(map(str, sizes))
        progress(f"checking against float64: {label}")
        rows += _check(label, names, _run_cross, inputs, cases.CROSS_NAMES)
    for shape in cases.SEQUENCE_CHECKS:
        sequence = cases.sequence_inputs(shape, dtype, device)
        label = "sequence b,g,d,n,l = " + ",".join(map(str, shape[:5])) + (" wide steps" if shape[6] > 10 else "")
        progress(f"checking against float64: {label}")
        rows += _check(label, names, _run_sequence, sequence, cases.SEQUENCE_NAMES)
    return sorted(rows, key=lambda row: names.index(row["backend"]))


def _run_cross(tensors: list[Tensor], backend: str) -> Tensor:
    y: Tensor = torch.ops.medbench.cross_scan(*tensors, cases.DIRECTIONS, backend, True)[0]
    return y


def _run_sequence(tensors: list[Tensor], backend: str) -> Tensor:
    y: Tensor = torch.ops.medbench.selective_scan(*tensors, True, backend, True)[0]
    return y


def _results(
    call: Callable[[list[Tensor], str], Tensor], inputs: list[Tensor], names: Iterable[str], backend: str, wide: bool
) -> dict[str, Tensor]:
    tensors = [(t.double() if wide else t).detach().clone().requires_grad_() for t in inputs]
    y = call(tensors, backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(inputs[0].dtype)
    y.backward(weights.to(y))
    return {"output": y.detach()} | {n: t.grad for n, t in zip(names, tensors, strict=True) if t.grad is not None}


def _check(
    label: str,
    backends: Sequence[str],
    call: Callable[[list[Tensor], str], Tensor],
    inputs: list[Tensor],
    names: Sequence[str],
) -> list[Row]:
    truth = _results(call, inputs, names, "reference", wide=True)
    plain = _results(call, inputs, names, "reference", wide=False)
    rows: list[Row] = []
    for backend in backends:
        found = plain if backend == "reference" else _results(call, inputs, names, backend, wide=False)
        errors = {key: cases.rel_to_max(found[key], truth[key]) for key in truth}
        failures, ratios = [], {True: 0.0, False: 0.0}
        for key, error in errors.items():
            forward = key == "output"
            luck = LUCK * torch.finfo(found[key].dtype).eps
            ratio = error / max(cases.rel_to_max(plain[key], truth[key]), luck)
            ratios[forward] = max(ratios[forward], ratio)
            if not ratio <= (FORWARD_LIMIT if forward else BACKWARD_LIMIT):  # NaN fails
                failures.append(f"{key} {ratio:.1f}x")
        rows.append({
            "kind": "check",
            "backend": backend,
            "case": label,
            "error_forward": errors["output"],
            "error_gradients": max(e for k, e in errors.items() if k != "output"),
            "errors": errors,
            "ratio_forward": ratios[True],
            "ratio_gradients": ratios[False],
            "ok": not failures,
            "failures": failures,
        })  # fmt: skip
    return rows


# ---- time ----------------------------------------------------------------------------------------------------------


class _Contestant:
    """One backend on one case and pass: its call, and where the time is taken."""

    def __init__(self, backend: str, inputs: list[Tensor], backward: bool) -> None:
        self.backend, self.backward = backend, backward
        self.device = inputs[0].device
        self.clock = clock_for(str(self.device))
        self.inputs = [t.detach().requires_grad_(backward) for t in inputs]
        self.grad = torch.randn_like(inputs[0])
        self.graph: torch.cuda.CUDAGraph | None = None
        self.times: list[float] = []

    def call(self) -> object:
        """One eager pass."""
        if not self.backward:
            with torch.no_grad():
                return torch.ops.medbench.cross_scan(*self.inputs, cases.DIRECTIONS, self.backend, False)[0]
        y = torch.ops.medbench.cross_scan(*self.inputs, cases.DIRECTIONS, self.backend, True)[0]
        return torch.autograd.grad(y, self.inputs, self.grad)

    def eager_seconds(self) -> float:
        """Host time of one pass, its work on the device included."""
        begin = self.clock.now()
        self.call()
        self.clock.synchronize()
        return self.clock.now() - begin

    def capture(self) -> None:
        """Record the pass as a CUDA graph, which replays without Python; the plain backend has too many launches."""
        if self.device.type != "cuda" or self.backend == "reference":
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.call()
        except RuntimeError:  # a backend that synchronises cannot be captured: its eager time stands
            torch.cuda.synchronize(self.device)
            return
        self.graph = graph

    def seconds(self) -> float:
        """Time of one pass: device time of a replay, or the eager time."""
        if self.graph is None:
            return self.eager_seconds()
        start = self.clock.mark()
        self.graph.replay()
        end = self.clock.mark()
        self.clock.wait(end)
        return self.clock.seconds(start, end)

    def memory(self) -> Row:
        """Peak of one pass above its inputs, and what the forward keeps for the backward, in bytes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.call()
            peak = torch.cuda.max_memory_allocated(self.device) - before
        else:
            peak = int(peak_of(self.call, RssMeter())["peak_memory_mib"] * 2**20)
        return {"peak_bytes": peak, "saved_bytes": self._saved_bytes() if self.backward else 0}

    def _saved_bytes(self) -> int:
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            torch.ops.medbench.cross_scan(*self.inputs, cases.DIRECTIONS, self.backend, True)
        return sum(storages.values())


def _time_case(
    case: ScanCase,
    one: str,
    backends: list[str],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: dict[str, float],
    budget_s: float,
    pace: dict[tuple[str, str, int], float],
) -> list[Row]:
    """Rows of all backends on one case. pace: seconds an update of each backend so far, to foresee long calls."""
    backward = one != "forward"
    inputs = cases.cross_inputs(case, dtype, device)
    running: list[_Contestant] = []
    rows: list[Row] = []
    for backend in backends:
        row = {"kind": "time", "backend": backend, "pass": one, **asdict(case), "dtype": str(dtype).split(".")[1]}
        rows.append(row)
        expected = pace.get((backend, one, case.states), 0.0) * case.updates
        if expected > CALL_LIMIT_S:
            row |= {"status": "skipped", "reason": f"a call would take about {expected:.1f} s"}
            continue
        try:
            contestant = _Contestant(backend, inputs, backward)
            contestant.eager_seconds()  # compiles what is to be compiled
            row |= {"eager_ms": median(contestant.eager_seconds() for _ in range(3)) * 1e3, **contestant.memory()}
            contestant.capture()
        except torch.OutOfMemoryError as error:
            row |= {"status": "oom", "reason": str(error).splitlines()[0]}
            continue
        row |= {"status": "ok", "timer": "graph replay" if contestant.graph else "eager"}
        running.append(contestant)
    _rounds(running, budget_s)
    for contestant in running:
        row = next(r for r in rows if r["backend"] == contestant.backend)
        row |= _figures(case, contestant.times, backward, dtype.itemsize, ceilings)
        pace[contestant.backend, one, case.states] = row["ms_min"] / 1e3 / case.updates
    return rows


def _rounds(running: list[_Contestant], budget_s: float) -> None:
    """Let all run in turns until the time is spent."""
    begin = time.perf_counter()
    for number in range(MAX_ROUNDS):
        for contestant in running:
            contestant.times.append(contestant.seconds())
        if number + 1 >= MIN_ROUNDS and time.perf_counter() - begin > budget_s:
            break


def _figures(case: ScanCase, times: list[float], backward: bool, itemsize: int, ceilings: dict[str, float]) -> Row:
    seconds = median(times)
    floor_bytes, floor_exps = case.floor_bytes(backward, itemsize), case.floor_exps(backward)
    bytes_s, exp_s = floor_bytes / ceilings["copy_bytes_per_s"], floor_exps / ceilings["exp_per_s"]
    return {
        "ms": seconds * 1e3,
        "ms_min": min(times) * 1e3,
        "rounds": len(times),
        "updates": case.updates,
        "updates_per_s": case.updates / seconds,
        "floor_bytes": floor_bytes,
        "bytes_per_s": floor_bytes / seconds,
        "floor_ms": max(bytes_s, exp_s) * 1e3,
        "floor_by": "bytes" if bytes_s > exp_s else "exponentials",
        "fraction_of_floor": max(bytes_s, exp_s) / seconds,
    }


# ---- command ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the instrument; exit status 1 if a check fails."""
    from rich.console import Console

    options = parse(arguments, list(DTYPES))
    target: Path | None = options.pop("json")
    console = Console()
    with console.status("") as status:
        rows = run(**options, progress=status.update)
    console.print(tables(rows))
    if target:
        target.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows if row["kind"] == "check") else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Everything that is to be measured on a GPU in one command: ``make gpu``.

Kernels checked and timed, training beside the public kernel, then the efficiency grid in parts, the most telling part
first, and the tables. A session ends when its minutes are spent and goes on where it stopped when it is called again
with the same folder; on machines that start bare, ``--archive FILE`` brings that folder along and takes it back.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FAMILIES = "medmamba_tiny,vmamba_tiny,resnet18,resnet50,vit_tiny_patch16_224,vit_small_patch16_224,"
FAMILIES += "swin_tiny_patch4_window7_224"
RESERVE_S = 30.0  # kept for the tables and the archive
GRACE_S = 60.0  # for a step to end what it has begun
OUT_OF_TIME = -1


@dataclass(frozen=True, slots=True)
class Command:
    """A command of its own process.

    Attributes:
        result: a file that says it is done; None for what resumes by itself.
    """

    name: str
    arguments: tuple[str, ...]
    result: Path | None = None


# Parts of the grid (batch 0: the largest that fits). Rounds are interleaved over a part: one that time cuts off has no
# results before the next session. Only the last is large.
AXES = ("resolutions", "batches", "precisions", "compile", "modes")
GRID: dict[str, tuple[str, str, str, str, str]] = {
    "growth, bf16": ("64,128,224,384,512,768,1024", "64", "bf16", "false", "infer"),
    "precisions": ("224", "64", "fp32,tf32,bf16", "false", "infer,train"),
    "growth, training": ("64,128,224,384,512,768,1024", "64", "bf16", "false", "train"),
    "growth, fp32": ("64,128,224,384,512,768,1024", "64", "fp32", "false", "infer"),
    "compiled": ("224", "64", "fp32,bf16", "true", "infer,train"),
    "batches": ("224", "1,32,128", "fp32,bf16", "false", "infer,train"),
    "largest batch": ("224,512,1024", "0", "fp32,bf16", "false", "infer,train"),
    "the rest": ("64,128,224,384,512,768,1024", "1,32,128,0", "fp32,tf32,bf16", "false,true", "infer,train"),
}
TINY: dict[str, tuple[str, str, str, str, str]] = {
    "growth, inference": ("32,64", "2", "fp32,bf16", "false", "infer"),
    "precisions": ("32", "2", "fp32,tf32", "false", "infer,train"),
}


def steps(out: Path, device: str, tiny: bool) -> list[Command]:
    """What a session does, in order; ``tiny`` is a session of seconds that tests run on a CPU."""
    kernels, training = out / "gpu_ops.json", out / "gpu_train.json"
    scan = ["--models", "medmamba,vmamba", "--resolutions", "224", "--batches", "64"]
    if tiny:
        scan = ["--resolutions", "64", "--batches", "1", "--models", "vmamba", "--seconds-per-case", "0.1"]
    found = [Command("kernels", ("-m", "bench.ops.benchmark.run", "--device", device.partition(":")[0], *scan,
                              "--json", str(kernels)), kernels)]  # fmt: skip
    if device != "cpu":
        found.append(Command("training", ("-m", "tools.gpu_check", "--json", str(training)), training))
    models, timing = ("resnet18", ["rounds=2", "budget_s=0.1"]) if tiny else (FAMILIES, ["rounds=3", "budget_s=1.0"])
    for name, part in (TINY if tiny else GRID).items():
        axes = [f"{axis}={values}" for axis, values in zip(AXES, part, strict=True)]
        sets = [word for item in axes + timing for word in ("--set", f"efficiency.{item}")]
        sweep = ("--yes", "--kinds", "efficiency", "--models", models, "--device", device, "--out", str(out / "sweep"))
        found.append(Command(name, ("-m", "bench", "run", *sweep, *sets)))
    return found


def run_session(
    plan: Sequence[Command], seconds: float, log: Path, run: Callable[[Command, float, Path], int] | None = None
) -> list[tuple[str, str]]:
    """Run the steps until ``seconds`` have passed.

    Args:
        plan: as :func:`steps` gives them.
        seconds: of all steps together; what has begun then is told to end.
        log: where the steps' output goes.
        run: runs one step for at most the given seconds and returns its exit status, or OUT_OF_TIME.

    Returns:
        (step, outcome) of each: ``done``, ``done before``, ``exit status N``, ``out of time`` or ``not begun``.
    """
    run = run or run_step
    end = time.monotonic() + seconds
    outcomes = []
    for step in plan:
        left = end - time.monotonic()
        if step.result and step.result.is_file():
            outcome = "done before"
        elif left <= 0:
            outcome = "not begun"
        else:
            status = run(step, left, log)
            outcome = {0: "done", OUT_OF_TIME: "out of time"}.get(status, f"exit status {status}")
        outcomes.append((step.name, outcome))
        print(f"{step.name}: {outcome}", flush=True)
    return outcomes


def run_step(step: Command, seconds: float, log: Path) -> int:
    """Run one step; when its seconds are over, interrupt it as a user would and let it end what it has begun."""
    with log.open("a") as file:
        file.write(f"\n== {step.name}: {shlex.join(step.arguments)}\n")
        file.flush()
        process = subprocess.Popen([sys.executable, *step.arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return OUT_OF_TIME


def unpack(archive: Path, out: Path) -> None:
    """Put an earlier session's files into ``out``, where there are any. Paths that lead out of it are refused."""
    if archive.is_file():
        with tarfile.open(archive) as tar:
            members = tar.getmembers()  # `filter="data"` came with Python 3.11.4
            for member in members:
                inside = (out / member.name).resolve().is_relative_to(out.resolve())
                if not inside or not (member.isfile() or member.isdir()):
                    raise tarfile.ReadError(f"{archive}: {member.name} is no file or folder of the session")
            tar.extractall(out, members)


def pack(out: Path, archive: Path) -> None:
    """Write ``out`` into one compressed file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(f"{archive.name}.part")
    with tarfile.open(temporary, "w:xz") as tar:
        for path in sorted(out.iterdir()):
            tar.add(path, path.name)
    temporary.replace(archive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the session; exit status 1 if a step failed, 3 if time ran out before all was done."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_session", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after this time; 0 goes on to the end")
    parser.add_argument("--archive", type=Path, help="a .tar.xz to go on from, and to leave the results in")
    parser.add_argument("--tiny", action="store_true", help="a session of seconds, to try the command itself")
    options = parser.parse_args(arguments)
    out: Path = options.out
    plan = steps(out, options.device, options.tiny)
    out.mkdir(parents=True, exist_ok=True)
    if options.archive:
        unpack(options.archive, out)
    seconds = 60 * options.minutes - RESERVE_S if options.minutes else float("inf")
    outcomes = run_session(plan, seconds, out / "session.log")
    if (out / "sweep").is_dir():
        board = Command("tables", ("-m", "bench", "leaderboard", str(out / "sweep")))
        outcomes += run_session([board], GRACE_S, out / "session.log")
    if options.archive:
        pack(out, options.archive)
    print(f"written: {out}" + (f", {options.archive}" if options.archive else ""))
    if any(outcome.startswith("exit status") for _, outcome in outcomes):
        return 1
    return 3 if any(outcome in ("out of time", "not begun") for _, outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())

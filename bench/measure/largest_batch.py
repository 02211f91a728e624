"""The largest batch that fits, by doubling and bisection, each try in a process of its own.

Out of memory leaves a process fragmented, so no try may see what an earlier one left. The worker forks a child for
each, before it has touched the device itself: a few hundredths of a second, and plug-ins are there already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.machine import memory
from bench.machine.clock import clock_for
from bench.measure.workload import Workload
from bench.record.cells import EfficiencyCell

LIMIT = {"cpu": 512, "cuda": 8192}  # a CPU runs out of patience before it runs out of memory


def least_batch(mode: str) -> int:
    """The smallest batch that is tried: batch norm cannot be trained on a single value a channel."""
    return 2 if mode == "train" else 1


def largest_fitting(fits: Callable[[int], bool], limit: int, least: int = 1) -> tuple[int, int | None]:
    """Search the largest batch for which ``fits`` holds, assuming that whatever is larger than a failure fails.

    Args:
        fits: tries a batch; called once for each size.
        limit: no batch above this is tried.
        least: nor any below this.

    Returns:
        The largest batch that fits (0 if not even ``least`` does), and the smallest seen to fail (None up to
        ``limit``). The two are at most a sixteenth apart: finer is not worth a process each.
    """
    good, bad = 0, None
    batch = least
    while bad is None and good < limit:
        if fits(batch):
            good, batch = batch, min(2 * batch, limit)
        else:
            bad = batch
    while bad is not None and bad > least and bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good, bad


def largest_batch(cell: EfficiencyCell) -> tuple[int, int | None]:
    """Find the largest batch of ``cell`` (its own is ignored); returns as :func:`largest_fitting`.

    Raises:
        RuntimeError: a try failed for another reason than memory, or this process has used CUDA already.
    """
    limit = LIMIT[torch.device(cell.device).type]
    return largest_fitting(lambda batch: fits(replace(cell, batch=batch)), limit, least_batch(cell.mode))


def fits(cell: EfficiencyCell) -> bool:
    """Whether two steps of a Cell run, tried in a fork. Raises RuntimeError as :func:`largest_batch` does."""
    if torch.cuda.is_initialized():
        raise RuntimeError("batches must be tried before this process uses CUDA: a forked child could not")
    answer = _in_child(cell)
    if answer["outcome"] == "failed":
        raise RuntimeError(f"batch {cell.batch} failed, but not for want of memory: {answer['reason']}")
    return answer["outcome"] == "fits"


def _in_child(cell: EfficiencyCell) -> dict[str, str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = {"outcome": "failed", "reason": "the try was interrupted"}
        try:
            outcome = try_batch(cell)
        finally:
            os.write(write, json.dumps(outcome).encode())
            os._exit(0)  # no clean-up of what belongs to the parent
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return dict(json.loads(text))
    # Killed: by the kernel for want of memory, if by SIGKILL.
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
    return {"outcome": "oom"} if killed else {"outcome": "failed", "reason": f"the try ended with status {status}"}


def try_batch(cell: EfficiencyCell) -> dict[str, str]:
    """Run two steps of a Cell in this process and say ``fits``, ``oom`` or ``failed`` with the reason."""
    torch.set_num_threads(cell.threads)
    try:
        if not cell.device.startswith("cuda"):
            memory.cap_data()
        step = Workload(cell).step()  # with all the inputs that the throughput pass holds
        step(0)
        step(1)
        clock_for(cell.device).synchronize()
    except Exception as error:  # whatever it is, the caller is told
        if memory.is_out_of_memory(error):
            return {"outcome": "oom"}
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
    return {"outcome": "fits"}

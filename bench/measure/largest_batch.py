"""The largest batch that fits, by doubling and bisection, each try in a process of its own.

Out of memory leaves a process fragmented, so no try may see what an earlier one left. The worker forks a child for
each, before it has touched the device itself: a few hundredths of a second, and plug-ins are there already.
"""

from __future__ import annotations

import multiprocessing
import signal
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
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(try_batch(cell)))
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = ""
    child.join()
    if not answer:  # killed: by the kernel for want of memory, if by SIGKILL
        answer = "oom" if child.exitcode == -signal.SIGKILL else f"the try ended with status {child.exitcode}"
    if answer not in ("fits", "oom"):
        raise RuntimeError(f"batch {cell.batch} failed, but not for want of memory: {answer}")
    return bool(answer == "fits")


def try_batch(cell: EfficiencyCell) -> str:
    """Run two steps of a Cell in this process and say ``fits``, ``oom`` or what went wrong."""
    torch.set_num_threads(cell.threads)
    try:
        if not cell.device.startswith("cuda"):
            memory.cap_data()
        step = Workload(cell).step()  # with all the inputs that the throughput pass holds
        step(0)
        step(1)
        clock_for(cell.device).synchronize()
    except Exception as error:  # whatever it is, the caller is told
        return "oom" if memory.is_out_of_memory(error) else f"{type(error).__name__}: {error}"[:300]
    return "fits"

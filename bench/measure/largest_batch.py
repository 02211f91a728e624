"""The largest batch that fits, by doubling and bisection, each try in a process of its own.

Out of memory leaves a process fragmented, so no try may see what an earlier one left. A helper process imports
torch once and forks a child for each try (``python -m bench.measure.largest_batch``, one JSON line in, one out); it
never touches the device itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cells import EfficiencyCell

LIMIT = 4096


def largest_fitting(fits: Callable[[int], bool], limit: int = LIMIT) -> tuple[int, int | None]:
    """Search the largest batch for which ``fits`` holds, assuming that whatever is larger than a failure fails.

    Args:
        fits: tries a batch; called once for each size.
        limit: no batch above this is tried.

    Returns:
        The largest batch that fits (0 if not even 1 does), and the smallest seen to fail (None up to ``limit``).
    """
    good, bad = 0, None
    batch = 1
    while bad is None and good < limit:
        if fits(batch):
            good, batch = batch, min(2 * batch, limit)
        else:
            bad = batch
    while bad is not None and bad - good > max(1, good // 16):  # within about 6 %: finer is not worth a process each
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good, bad


class Prober(AbstractContextManager["Prober"]):
    """Tries batches of one Cell, each in a fresh process forked from a clean helper."""

    def __init__(self, cell: EfficiencyCell, plugins: Sequence[str] = (), plugin_base: Path | None = None) -> None:
        request = {"cell": asdict(cell), "plugins": list(plugins), "base": str(plugin_base or Path.cwd())}
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "bench.measure.largest_batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._send(request)

    def _send(self, message: Any) -> None:
        assert self._helper.stdin
        self._helper.stdin.write(json.dumps(message) + "\n")
        self._helper.stdin.flush()

    def __call__(self, batch: int) -> bool:
        """Whether the Cell's step runs with ``batch`` images. Raises RuntimeError if it fails for another reason."""
        assert self._helper.stdout
        self._send(batch)
        line = self._helper.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that tries batches ended (exit status {self._helper.wait()})")
        answer = json.loads(line)
        if answer["outcome"] == "failed":
            raise RuntimeError(f"batch {batch} failed, but not for want of memory: {answer['reason']}")
        return bool(answer["outcome"] == "fits")

    def __exit__(self, *exc: Any) -> None:
        assert self._helper.stdin
        self._helper.stdin.close()
        self._helper.wait()


def largest_batch(
    cell: EfficiencyCell, limit: int = LIMIT, plugins: Sequence[str] = (), plugin_base: Path | None = None
) -> tuple[int, int | None]:
    """Find the largest batch of ``cell`` (its own batch is ignored); returns as :func:`largest_fitting`."""
    with Prober(cell, plugins, plugin_base) as prober:
        return largest_fitting(prober, limit)


def _serve() -> None:
    import torch  # noqa: F401  (imported before the forks, so that no try pays for it)

    from bench import registry
    from bench.measure import efficiency  # noqa: F401

    request = json.loads(sys.stdin.readline())
    registry.load_plugins(request["plugins"], Path(request["base"]))
    for line in sys.stdin:
        print(json.dumps(_in_child(request["cell"] | {"batch": json.loads(line)})), flush=True)


def _in_child(cell: dict[str, Any]) -> dict[str, str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome: dict[str, str] = {"outcome": "failed", "reason": "the try was interrupted"}
        try:
            outcome = try_batch(EfficiencyCell(**cell))
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
    import torch

    from bench.measure import memory
    from bench.measure.timing import clock_for
    from bench.measure.workload import Workload

    torch.set_num_threads(cell.threads)
    try:
        if not cell.device.startswith("cuda"):
            memory.cap_data()
        step = Workload(cell).step(pool=1)
        step(0)
        step(1)
        clock_for(cell.device).synchronize()
    except Exception as error:  # whatever it is, the caller is told
        if memory.is_out_of_memory(error):
            return {"outcome": "oom"}
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
    return {"outcome": "fits"}


if __name__ == "__main__":
    _serve()

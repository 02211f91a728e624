"""A piece of work that is always the same, timed beside every round: how much of a difference is the machine's own.

Two rounds of a model that differ say nothing of why. If a fixed matrix product beside them differed as much, the
machine did (a neighbour on the same host, its clocks); the evidence of a noisy row then says so. On a GPU it is the
host that is looked at, by the time a kernel launch takes: a device that is kept busy hides it, one that waits shows
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from bench.machine.clock import Clock, Step

NAMES = {
    "matmul": "a fixed matrix product",
    "copy": "a fixed copy of memory",
    "launch": "launching a fixed number of kernels",
}
REPEATS = 5
SIDE, COPY_BYTES, LAUNCHES = 768, 2**25, 2000


def steps(device: str) -> dict[str, Step]:
    """What is timed on a device: name -> a call that does it once."""
    import torch

    if device.startswith("cuda"):
        one = torch.zeros(1, device=device)

        def launch(number: int) -> None:
            for _ in range(LAUNCHES):
                one.add_(0)

        return {"launch": launch}
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return {"matmul": lambda number: torch.mm(a, b, out=out), "copy": lambda number: target.copy_(source)}


def take(device: str, clock: Clock) -> dict[str, float]:
    """Median seconds of each piece of work, now; a tenth of a second in all."""
    found = {}
    for name, step in steps(device).items():
        step(0)
        clock.synchronize()
        seconds = []
        for number in range(REPEATS):
            start = clock.now()
            step(number)
            clock.synchronize()
            seconds.append(clock.now() - start)
        found[name] = median(seconds)
    return found


def spreads(rounds: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, float]]:
    """The least and the largest seconds of each piece of work over rounds, of the mean within a round.

    Args:
        rounds: for each round, name -> what was taken in it.

    Returns:
        name -> (least, largest); nothing for fewer than two rounds.
    """
    if len(rounds) < 2:
        return {}
    names = {name for found in rounds for name in found}
    means = {name: [sum(found[name]) / len(found[name]) for found in rounds if found.get(name)] for name in names}
    return {name: (min(values), max(values)) for name, values in sorted(means.items()) if min(values, default=0) > 0}

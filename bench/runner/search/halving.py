"""Successive halving: how many epochs a rung has, how many networks go on, and what fits into a budget. Pure.

A rung trains every network with every value of the tuned setting and one seed, for a part of the recipe's epochs; the
schedule of the learning rate is scaled to it. The best half by validation goes on, but never fewer than
:data:`FINALISTS`, so that the last rung (all epochs, all seeds) has something to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

PARTS = (9, 3)  # a rung's epochs: the recipe's divided by this
KEPT = 0.5
FINALISTS = 2

Costs = Sequence[float]  # of one network: seconds in each rung that is left, the full trainings last


def rungs(epochs: int) -> list[int]:
    """Epochs of each rung before the last one, which has all of them."""
    return sorted({max(1, round(epochs / part)) for part in PARTS} - {epochs})


def go_on(networks: int) -> int:
    """How many of so many networks go on to the next rung."""
    return min(networks, max(FINALISTS, ceil(networks * KEPT)))


def whole_way(costs: Sequence[Costs]) -> float:
    """Seconds to the end if in every rung it is the dearest networks that go on."""
    left, total = len(costs), 0.0
    if not left:
        return total
    *before, last = zip(*costs, strict=True)
    for rung in before:
        if left > FINALISTS:
            total += sum(sorted(rung, reverse=True)[:left])
            left = go_on(left)
    return total + float(sum(sorted(last, reverse=True)[:left]))


def fitting(costs: Sequence[Costs], seconds: float) -> list[int]:
    """Which networks can start: in their order, each whose whole way still fits beside those before it.

    Args:
        costs: of the networks, those first that should be preferred.
        seconds: what is left.
    """
    chosen: list[int] = []
    for number in range(len(costs)):
        if whole_way([costs[i] for i in (*chosen, number)]) <= seconds:
            chosen.append(number)
    return chosen

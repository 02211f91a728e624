"""Speeds against the other models of the same round: what is left of a difference when the machine's drift falls out.

Rounds are interleaved over all models, so a machine that slows down for some minutes slows all of one round. The ratio
of a model to the median of the models beside it does not see that, while its own images/s do. Two runs of one sweep
should repeat these ratios better than the speeds; where they do not, it is the model that varies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MIN_MODELS = 3  # of a round: the median of two is moved by either as much as by both
Rounds = Sequence[float]


def changes(groups: Sequence[str], first: Sequence[Rounds], second: Sequence[Rounds]) -> npt.NDArray[np.float64]:
    """How each row's speed changed from one run to another against the rows of its group in the same rounds.

    Args:
        groups: what a row was measured beside; rows of one group differ in the model alone.
        first: images/s of each row in each round of the first run.
        second: the same of the second run.

    Returns:
        For each row of a group with enough models and equally many rounds on each side: the ratio second / first of its
        relative speeds. Other rows are left out.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    found: list[float] = []
    for rows in members.values():
        sides = [_relative([run[i] for i in rows]) for run in (first, second)]
        if len(rows) >= MIN_MODELS and sides[0] is not None and sides[1] is not None:
            found += np.exp(sides[1] - sides[0]).tolist()
    return np.asarray(found)


def _relative(speeds: Sequence[Rounds]) -> npt.NDArray[np.float64] | None:
    """Median over rounds of each row's log speed less the median row's of that round; None without common rounds."""
    counts = {len(row) for row in speeds}
    if len(counts) != 1 or not min(counts) or not all(value > 0 for row in speeds for value in row):
        return None
    logs = np.log(np.asarray(speeds, dtype=float))
    relative: npt.NDArray[np.float64] = np.median(logs - np.median(logs, axis=0), axis=1)
    return relative

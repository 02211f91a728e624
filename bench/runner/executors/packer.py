"""How many trainings share a GPU where ``run.pack`` is ``auto``: one more as long as that pays. Pure.

Where n trainings run at r times their speeds once there is one more, the device does (n + 1) r / n times the work.
That is measured on the trainings themselves, so it holds for these networks on this device.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, median

MOST = 8  # trainings on a GPU
FIRST_EPOCH = 4  # whose speed counts: before it kernels are compiled and steps are recorded
WATCHED_S = 1.5  # that each training is watched for before speeds are compared
LEAST_GAIN = 1.05
LEAST_FREE_SHARE = 0.25  # of the device's memory: what one more training must find


class Packer:
    """Decides about places from the speeds (images/s) that trainings report, and tells a line for people.

    Attributes:
        places: trainings that may run at a time.
        said: what was measured at the last change, for people; empty before.
    """

    def __init__(self, most: int = MOST, tell: Callable[[str], None] = lambda line: None) -> None:
        self.most, self.places, self.said = most, 1, ""
        self._tell, self._told = tell, False
        self._settled = False
        self._since: dict[str, float] = {}
        self._speeds: dict[str, list[float]] = {}
        self._before: dict[str, float] = {}

    def heard(
        self, ticket: str, images_per_s: float, epoch: int, at_s: float, *, running: int, free_share: float
    ) -> None:
        """Take a training's speed at a time; ``running`` share the device, ``free_share`` of its memory is free."""
        if epoch < FIRST_EPOCH:
            return
        self._since.setdefault(ticket, at_s)
        self._speeds.setdefault(ticket, []).append(images_per_s)
        watched = sum(at_s - since >= WATCHED_S for since in self._since.values())
        if self._settled or running < self.places or watched < running:
            return
        now = {ticket: median(speeds) for ticket, speeds in self._speeds.items()}
        if same := self._before.keys() & now.keys():
            gain = running / (running - 1) * fmean(now[ticket] / self._before[ticket] for ticket in same)
            self.said = f"{running} trainings at a time do {gain:.2f} times the work of {running - 1}"
            if gain < LEAST_GAIN:
                self.places = running - 1
                self.settle()
                return
        if running >= self.most or free_share < LEAST_FREE_SHARE:
            self.settle()
            return
        self._before, self._speeds, self._since = now, {}, {}
        self.places = running + 1

    def settle(self) -> None:
        """Stay with the places there are, and tell once what was measured."""
        self._settled = True
        if self.said and not self._told:
            self._told = True
            self._tell(f"--pack auto: {self.said}; up to {self.places} share a GPU")

    def ended(self, ticket: str) -> None:
        """A training is over: what was heard of it says nothing of those that follow."""
        for kept in (self._since, self._speeds, self._before):
            kept.pop(ticket, None)

"""Trainings that share a process take turns at what there is one of: torch's generators, and the recording of graphs.

A training that has joined (:func:`join`) has generators of its own, which are torch's while it has the turn, so its
numbers are those it draws alone. Replaying a graph needs no turn: graphs keep the generator they were recorded with.
Where nobody joined, a turn is nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.RLock()
_here = threading.local()


class _Generators:
    """The states of one training's generators while another has the turn."""

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda: torch.Generator | None = None
        if device.type == "cuda":
            torch.cuda.init()
            self.cuda = torch.cuda.default_generators[torch.cuda.current_device()].clone_state()
        self.depth = 0

    def take(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:  # by reference: graphs recorded now go on drawing from this one
            torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(self.cuda)

    def leave(self) -> None:
        self.cpu = torch.get_rng_state()


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[None]:
    """Let this thread take part: it runs one training of several in this process."""
    with _lock:
        _here.generators = _Generators(device)
    try:
        yield
    finally:
        del _here.generators


def joined() -> bool:
    """Whether this thread's training shares its process with others."""
    return hasattr(_here, "generators")


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Do what draws from torch's generators, or records a graph, while no other training does."""
    mine: _Generators | None = getattr(_here, "generators", None)
    if mine is None:
        yield
        return
    with _lock:
        if not mine.depth:
            mine.take()
        mine.depth += 1
        try:
            yield
        finally:
            mine.depth -= 1
            if not mine.depth:
                mine.leave()

"""Trainings that share a process take turns at what there is one of: torch's generators, and the launch of kernels.

A training that has joined (:func:`join`) has generators of its own, which are torch's while it has the turn, so its
numbers are those it draws alone. Replaying a graph needs no turn: graphs keep the generator they were recorded with.
Where nobody joined, a turn is nothing.

All eager steps and recordings of the process run on one thread (:func:`launch`). cuDNN keeps its execution plans by
thread, and those of a network can take many seconds (depthwise convolutions most): its second training finds them.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.RLock()


class _Generators:
    """The states of one training's generators while another has the turn."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
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


_mine = contextvars.ContextVar[_Generators | None]("_mine", default=None)  # each thread has its own, until it lends it


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[None]:
    """Let this thread take part: it runs one training of several in this process."""
    with _lock:
        token = _mine.set(_Generators(device))
    try:
        yield
    finally:
        _mine.reset(token)


def joined() -> bool:
    """Whether this thread's training shares its process with others."""
    return _mine.get() is not None


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Do what draws from torch's generators, or records a graph, while no other training does."""
    mine = _mine.get()
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


def launch(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``call(...)``, made in this training's turn on the thread from which all of the process launch."""
    mine = _mine.get()
    if mine is None or mine.depth:
        return call(*args, **kwargs)
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    stream = torch.cuda.current_stream(mine.device) if mine.cuda is not None else None

    def there() -> T:
        with torch.cuda.stream(stream), torch.inference_mode(modes[0]), torch.set_grad_enabled(modes[1]), turn():
            return call(*args, **kwargs)

    return _launcher().submit(contextvars.copy_context().run, there).result()


@functools.cache
def _launcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "launch")


def seed(number: int) -> None:
    """Seed this training's generators; waits for no turn of another training, which may launch for seconds."""
    mine = _mine.get()
    if mine is None or mine.depth:
        torch.manual_seed(number)
        return
    mine.cpu = torch.Generator().manual_seed(number).get_state()
    if mine.cuda is not None:
        mine.cuda.manual_seed(number)

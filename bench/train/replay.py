"""Steps recorded as CUDA graphs and replayed: small networks otherwise wait for Python to launch each kernel.

A graph holds one shape of input. The first calls with a shape run eagerly: they are ordinary steps, so recording
repeats nothing and restores nothing. torch registers its generators with graphs, so dropout draws the same numbers
whether a step is replayed or launched kernel by kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from bench.train.turns import launch

Step = Callable[..., torch.Tensor]
WARM_CALLS = 2  # optimizer state, cuBLAS workspaces and compiled kernels exist after these
WARM_CALLS_MORE = 1  # with a further shape: only what is made for a shape is missing


class Replayed:
    """Call ``step`` on a CUDA device, replaying a recorded graph of it wherever that is possible.

    Args:
        step: takes tensors and returns a tensor; what else it reads and writes are tensors that stay where they are,
            and it never waits for the device.
        device: where the tensors are; anywhere but on CUDA each call is just ``step``.
        record: False for plain calls.

    ``reason`` says why a step could not be recorded; it then runs eagerly.
    """

    def __init__(self, step: Step, device: torch.device, *, record: bool = True) -> None:
        self.step, self.reason = step, ""
        self.recording = record and device.type == "cuda"
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    @property
    def replays(self) -> bool:
        """Whether any shape runs as a graph by now."""
        return bool(self._graphs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what ``step`` returns; the next call may overwrite it."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            warm = self._calls[shapes] > (WARM_CALLS_MORE if self._graphs else WARM_CALLS)
            if not (self.recording and warm and launch(self._record, shapes, inputs)):
                return launch(self.step, *inputs)
        return self._graphs[shapes].replay(inputs)

    def _record(self, shapes: tuple[torch.Size, ...], inputs: tuple[torch.Tensor, ...]) -> bool:
        try:
            self._graphs[shapes] = _Graph(self.step, inputs, next(iter(self._graphs.values()), None))
        except Exception as error:  # a model may do what no graph can hold, or there is no memory for a second copy
            self.reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            self.recording = False
            self._graphs.clear()
            torch.cuda.empty_cache()
        return self.recording


class _Graph:
    """One recorded call and the tensors it reads."""

    def __init__(self, step: Step, inputs: tuple[torch.Tensor, ...], first: _Graph | None) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        # On a training's own stream where it has one: graphs of one stream share cuBLAS's workspace, and two trainings
        # that replay at a time must not. Other threads go on launching meanwhile.
        here = torch.cuda.current_stream()
        stream = None if here == torch.cuda.default_stream() else here
        pool = first.graph.pool() if first else None  # graphs of one training share their memory
        recording = torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with warnings.catch_warnings(), recording:
            warnings.simplefilter("ignore")  # autograd remarks on the change of streams between warm calls and this one
            self.output = step(*self.inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output

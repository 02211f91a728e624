"""The work of an efficiency Cell: its model, inputs and step on its device, in its precision and mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from bench.machine.clock import Step
from bench.measure.op_recorder import OperatorRecorder
from bench.ops import chosen_backend, selective_scan
from bench.record.cells import EfficiencyCell
from bench.record.types import Fields
from bench.registry.build import IN_CHANS, NUM_CLASSES, build
from bench.registry.layout import layout_of

POOL = 4  # batches that take turns as input, so that no cache holds the one input of every step
POOL_BYTES = 256 * 2**20


def set_precision(precision: str) -> None:
    """Fix how float32 products are computed in this process: exactly (fp32, bf16) or in TF32."""
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


class Workload:
    """One model with its inputs and its step.

    Attributes:
        module: the eager model (FLOPs and saved activations are taken from it); compiled or not, ``step`` runs it.
        layout: of its weights and images, by the rule that training follows.
    """

    def __init__(self, cell: EfficiencyCell, module: nn.Module | None = None) -> None:
        self.cell = cell
        self.device = torch.device(cell.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # kernels launched by name go to the current device
        set_precision(cell.precision)
        self.module = (module or build(cell.model, cell.resolution, weights=False)).to(self.device)
        self.layout = layout_of(self.module)
        self.module = self.module.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.module.train(cell.mode == "train")
        self.model: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(self.module, dynamic=False) if cell.compile else self.module
        )
        self._inputs: dict[int, list[torch.Tensor]] = {}
        self._loss: torch.Tensor | None = None
        if cell.mode == "train":
            cuda = self.device.type == "cuda"  # capturable: its counters lie on the device, for the graph's sake
            self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True, capturable=cuda)
            generator = self._seeded(0)
            self._labels = torch.randint(NUM_CLASSES, (cell.batch,), generator=generator, device=self.device)

    def facts(self) -> Fields:
        """What a record says of how the work is done: ``channels_last`` and, in training, the ``optimizer``."""
        found: Fields = {"channels_last": self.layout == torch.channels_last}
        return found | ({"optimizer": "AdamW (fused)"} if self.cell.mode == "train" else {})

    def held_bytes(self) -> int:
        """Bytes of what stays from step to step: weights, buffers, the optimizer's state, labels, images."""
        tensors = [
            *self.module.parameters(),
            *self.module.buffers(),
            *(i for held in self._inputs.values() for i in held),
        ]
        if self.cell.mode == "train":
            states = (value for state in self._optimizer.state.values() for value in state.values())
            tensors += [self._labels, *(value for value in states if isinstance(value, torch.Tensor))]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def inputs(self, batch: int, pool: int = POOL) -> list[torch.Tensor]:
        """Random images (batch, 3, resolution, resolution), float32, standard normal; ``pool`` of them."""
        shape = (batch, IN_CHANS, self.cell.resolution, self.cell.resolution)
        size = 4 * batch * IN_CHANS * self.cell.resolution**2
        wanted = max(1, min(pool, POOL_BYTES // size))
        held = self._inputs.setdefault(batch, [])
        while len(held) < wanted:
            images = torch.randn(shape, generator=self._seeded(len(held)), device=self.device)
            held.append(images.contiguous(memory_format=self.layout))
        return held[:wanted]

    def precision(self) -> AbstractContextManager[object]:
        """Return the context in which the forward pass runs."""
        if self.cell.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _seeded(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def step(self, batch: int | None = None, pool: int = POOL) -> Step:
        """Return the step of this mode: a forward pass, or a whole training step."""
        if self.cell.mode == "train":
            phases = [phase for _, phase in self.phases(pool)]

            def train(number: int) -> None:
                for phase in phases:
                    phase(number)

            return train
        images = self.inputs(batch or self.cell.batch, pool)

        def infer(number: int) -> None:
            with torch.inference_mode(), self.precision():
                self.model(images[number % len(images)])

        return infer

    def graph_step(self) -> Step:
        """Return the step recorded as CUDA graphs, one an input: replayed, it launches nothing from Python.

        Training replays its first input only: a step's activations are too large to be held for several.

        Raises:
            RuntimeError: the model waits for the device within its step, which no graph can hold.
        """
        pool = 1 if self.cell.mode == "train" else POOL
        step = self.step(pool=pool)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            step(0)  # what a library sets up for a new stream must not be recorded
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.empty_cache()  # graphs have memory of their own: at the largest batch there is no room for both
        graphs: list[torch.cuda.CUDAGraph] = []
        for number in range(len(self.inputs(self.cell.batch, pool))):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None, stream=side):
                step(number)
            graphs.append(graph)

        def replay(number: int) -> None:
            graphs[number % len(graphs)].replay()

        return replay

    def phases(self, pool: int = POOL) -> list[tuple[str, Step]]:
        """Return the three parts of a training step, to be called in turn (AdamW, cross-entropy)."""
        images = self.inputs(self.cell.batch, pool)

        def forward(number: int) -> None:
            with self.precision():
                output = self.model(images[number % len(images)])
                self._loss = nn.functional.cross_entropy(output, self._labels)

        def backward(number: int) -> None:
            assert self._loss is not None
            self._loss.backward()  # type: ignore[no-untyped-call]
            self._loss = None

        def optimizer(number: int) -> None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

        return [("forward", forward), ("backward", backward), ("optimizer", optimizer)]


def traffic(workload: Workload) -> int:
    """Bytes that the operators of one eager step (forward, or with backward) read and write at the Cell's batch."""
    images = workload.inputs(workload.cell.batch, 1)[0]
    training = workload.cell.mode == "train"
    recorder = OperatorRecorder()
    with recorder, torch.set_grad_enabled(training), workload.precision():
        output = workload.module(images)
        if training:
            output.float().square().mean().backward()
    workload.module.zero_grad(set_to_none=True)
    return recorder.total_traffic()


def touch_libraries(device: str) -> None:
    """Run each kind of kernel once, so that pages of the libraries are not charged to the first model measured."""
    x = torch.randn(2, 16, 16, 16, device=device)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.GELU(), nn.Conv2d(32, 32, 3, groups=32)).to(device)
    y = net(x).flatten(2).transpose(1, 2)
    net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last)).mean().backward()
    y = nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0]
    y = nn.functional.layer_norm(nn.functional.linear(y, torch.randn(64, 32, device=device)), (64,)).softmax(-1)
    y.mean().backward()  # type: ignore[no-untyped-call]
    if chosen_backend(device) == "cpu":
        u = torch.randn(1, 4, 8, device=device, requires_grad=True)
        b = torch.randn(1, 1, 2, 8, device=device)
        selective_scan(u, u.sigmoid(), -torch.ones(4, 2, device=device), b, b).sum().backward()  # type: ignore[no-untyped-call]

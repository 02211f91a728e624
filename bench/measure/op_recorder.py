"""Watches every operator that reaches the dispatcher: calls, elements, bytes."""

from __future__ import annotations

from collections import Counter

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.record.types import Fields

# Views that their schema does not declare, and factories that only reserve memory.
_NO_TRAFFIC = {
    *("_unsafe_view", "_reshape_alias", "lift_fresh", "set_", "resize_", "sym_size"),
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
}


class OperatorRecorder(TorchDispatchMode):
    """Counts, by operator packet: ``calls``, elements ``read`` and ``written``, and the ``traffic`` in bytes.

    Traffic is what an operator must move if it reads each input and writes each output once: views and reservations
    move nothing, a broadcast input is read once, nothing is assumed to stay in a cache from one operator to the next.
    Enter it *outside* FlopCounterMode to see what that mode passes on, and not under ``inference_mode``, which keeps
    composite operators whole (a dropout that does nothing would then seem to copy).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[OpOverloadPacket]()
        self.read = Counter[OpOverloadPacket]()
        self.written = Counter[OpOverloadPacket]()
        self.traffic = Counter[OpOverloadPacket]()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: Fields | None = None
    ) -> object:
        """Run the operator and note what it touched."""
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        reads = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        writes = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.calls[packet] += 1
        self.read[packet] += max((t.numel() for t in reads), default=0)
        self.written[packet] += max((t.numel() for t in writes), default=0)
        moved = 0 if moves_nothing(func) else sum(map(tensor_bytes, reads)) + sum(map(tensor_bytes, writes))
        self.traffic[packet] += moved
        self.note(packet, args, kwargs or {}, out, moved)
        return out

    def note(
        self, packet: OpOverloadPacket, args: tuple[object, ...], kwargs: Fields, out: object, traffic: int
    ) -> None:
        """Hear of each call, in order; for those who want more than sums."""

    def total_traffic(self) -> int:
        """Bytes moved by all operators."""
        return sum(self.traffic.values())


def moves_nothing(func: OpOverload) -> bool:
    """Whether an operator only makes a view or reserves memory."""
    schema = func._schema
    if schema.name.partition("::")[2] in _NO_TRAFFIC:
        return True
    return any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes behind a tensor; a broadcast one counts what it holds, not what it looks like."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

"""Activations: what the backward pass makes a forward pass keep."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine.memory import MIB
from bench.record.types import Fields


def saved_for_backward(model: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Bytes that autograd keeps between a forward and its backward, parameters and the input left out.

    Storages are counted once, however many operators keep them. The copies of weights in a shorter type that autocast
    makes are no activations: they do not grow with the images.

    Returns:
        ``saved_activations_mib`` for this batch and ``saved_activations_mib_per_image``.
    """
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), images)}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # alive until the end, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known and storage._cdata not in sizes:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    casts = _CastsOf(weights, known) if torch.is_autocast_enabled(images.device.type) else nullcontext()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casts:
        model(images)
    total = sum(sizes.values()) / MIB
    return {"saved_activations_mib": total, "saved_activations_mib_per_image": total / images.shape[0]}


class _CastsOf(TorchDispatchMode):
    """Adds to ``known`` what is cast from one of ``weights`` to another type, and keeps it alive."""

    def __init__(self, weights: set[int], known: set[int]) -> None:
        super().__init__()
        self._weights, self._known = weights, known
        self._kept: list[torch.Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[torch.Tensor, ...] = (), kwargs: Fields | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights:
            self._known.add(out.untyped_storage()._cdata)
            self._kept.append(out)
        return out

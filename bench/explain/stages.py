"""The stages of a network of any family, and their outputs as grids (b,c,h,w).

Networks of timm's interface name their stages in ``feature_info``; what has none is watched once, and the last layer of
each grid size is a stage. Features may be (b,c,h,w), (b,h,w,c) or tokens (b,n,c) with class tokens first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.registry import RegistryError

STAGES = 4  # of networks with more (ViT: blocks), as many are shown


class StageOutput(NamedTuple):
    """A place in the network.

    Attributes:
        name: of the module whose output it is.
        grid: cells of its output, (rows, columns).
        channels_last: whether its output is (b,h,w,c).
        tokens: whether its output is (b,n,c).
        prefix: class tokens in front of the grid's.
    """

    name: str
    grid: tuple[int, int]
    channels_last: bool = False
    tokens: bool = False
    prefix: int = 0

    def as_grid(self, features: Tensor) -> Tensor:
        """Bring the module's output to (b,c,h,w)."""
        if self.tokens:
            grid: Tensor = features[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
            return grid
        if self.channels_last:
            return features.permute(0, 3, 1, 2)
        return features


def find_stages(model: nn.Module, images: Tensor) -> list[StageOutput]:
    """Find the stages of ``model``, at most :data:`STAGES`, in order.

    Args:
        model: any network that maps images to logits.
        images: (b,c,h,w), of which one is run through it.

    Raises:
        RegistryError: it has no layer with a grid, or tokens that fill no square.
    """
    listed = _listed(model)
    seen = _outputs(model, images[:1], set(listed) or {name for name, _ in model.named_modules() if name})
    found = [_stage(model, name, seen[name], channels) for name, channels in listed.items() if name in seen]
    if not found:
        layers = [(name, output) for name, output in seen.items() if output.ndim == 4]
        found = [_stage(model, name, output, output.shape[1]) for name, output in layers]
        found = [stage for stage in found if stage.grid != (1, 1)] or found
    if not found:
        raise RegistryError(f"{type(model).__name__}: no layer outputs a grid (b,c,h,w)")
    last = {stage.grid: stage for stage in found}  # of layers of one grid the last
    if len(last) == 1 and len(found) > 1:  # of one grid throughout: places evenly spread over its depth
        count = min(STAGES, len(found))
        return [found[(i + 1) * len(found) // count - 1] for i in range(count)]
    return list(last.values())[-STAGES:]


def stage_to_explain(model: nn.Module, stages: Sequence[StageOutput], images: Tensor, least: int) -> StageOutput:
    """Choose where class activations are read: the deepest stage of at least ``least`` cells a side.

    Where none is as fine, the finest is taken. Behind the last attention only the class token counts, so of a network
    of tokens it is what the last block reads, not what it gives.
    """
    last = stages[-1]
    if last.tokens and last.prefix:
        names = list(_listed(model))
        before = names[max(names.index(last.name) - 1, 0)]
        return _stage(model, before, _outputs(model, images[:1], {before})[before], 0)
    fine = [stage for stage in stages if min(stage.grid) >= least]
    return fine[-1] if fine else max(stages, key=lambda stage: min(stage.grid))


@contextmanager
def outputs_of(model: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the modules ``names`` give, in the order in which they end, while the context lasts."""
    found: dict[str, Tensor] = {}
    modules = {module: name for name, module in model.named_modules() if name in names}

    def note(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.pop(modules[module], None)
            found[modules[module]] = output

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(model: nn.Module, image: Tensor, names: set[str]) -> Mapping[str, Tensor]:
    with outputs_of(model, names) as found, torch.no_grad():
        model(image)
    return found


def _listed(model: nn.Module) -> dict[str, int]:
    """Names and channels of the stages that the network itself lists."""
    info = getattr(model, "feature_info", None) or ()
    entries = [entry for entry in getattr(info, "info", info) if isinstance(entry, Mapping)]
    modules = {name for name, _ in model.named_modules()}
    return {entry["module"]: int(entry["num_chs"]) for entry in entries if entry.get("module") in modules}


def _stage(model: nn.Module, name: str, output: Tensor, channels: int) -> StageOutput:
    if output.ndim == 3:
        prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
        side = math.isqrt(output.shape[1] - prefix)
        if side * side != output.shape[1] - prefix:
            raise RegistryError(
                f"{type(model).__name__}: {output.shape[1] - prefix} tokens of {name} do not form a square grid; use "
                "square images"
            )
        return StageOutput(name, (side, side), tokens=True, prefix=prefix)
    if output.ndim != 4:
        raise RegistryError(f"{type(model).__name__}: {name} gives {tuple(output.shape)}, neither a grid nor tokens")
    stated = getattr(model, "output_fmt", None)
    last = str(getattr(stated, "value", stated)) == "NHWC" or (output.shape[1] != channels == output.shape[3])
    return StageOutput(name, (output.shape[1], output.shape[2]) if last else (output.shape[2], output.shape[3]), last)

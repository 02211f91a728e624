"""What the two scan families share beside the scan: timm's model interface over a stem and stages of blocks.

A subclass builds ``patch_embed``, ``stages`` and ``norm``; features are channels last (b,h,w,c) throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Hierarchy", "Stage", "drop_path_rates", "init_linear"]


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth per stage and block: linear over all blocks, from 0 to ``last``."""
    blocks = sum(depths)
    rates = iter(last * i / max(blocks - 1, 1) for i in range(blocks))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_linear(module: nn.Module) -> None:
    """Dense layers start with a truncated normal of deviation 0.02 and zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def _running_statistics_held(block: nn.Module) -> Any:
    """Batch norms in here use the batch but do not update: a recomputed forward must not count a batch twice."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.num_batches_tracked is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.training:
                norm.num_batches_tracked.sub_(1)  # type: ignore[union-attr]


class Stage(nn.Module):
    """A downsampling layer (identity in the first stage) and blocks of one width."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to the stage's own grid and width."""
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = _checkpointed(block, x)
            else:
                x = block(x)
        return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), _running_statistics_held(block)

    if torch.compiler.is_compiling():  # the compiler replays the graph, not the module: nothing to hold
        return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]


class Hierarchy(nn.Module):
    """timm's interface for a network of stem, stages, norm and pooled linear head.

    Args:
        stem: Maps images (b,3,H,W) to tokens (b,h,w,c).
        stages: Stages in order; each halves the grid of the one before.
        dims: Channels of each stage.
        norm: Applied to the last stage's features (identity for MedMamba).
        stem_stride: Pixels per token side after the stem.
        num_classes: Classes; 0 removes the classifier.
        in_chans: Channels of the images.
        global_pool: timm's pooling ("avg", "max", "avgmax", "catavgmax", "" for none).
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        norm: nn.Module,
        stem_stride: int,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.global_pool, self.drop_rate = (
            num_classes,
            in_chans,
            global_pool,
            drop_rate,
        )
        self.output_fmt = "NHWC"
        self.patch_embed = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt=self.output_fmt)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if images (b,c,h,w) cannot be processed."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"images must be (batch, {self.in_chans}, height, width), not {tuple(x.shape)}")

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (b,c,H,W) to features (b,h,w,d) of the last stage."""
        self.check_input(x)
        return self.norm(self.stages(self.patch_embed(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features (b,h,w,d) to logits (b,classes), or to pooled features (b,d) with ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b,c,H,W) to logits (b,classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the features of the stages ``indices`` (an int: the last that many), as timm's models do."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} is none of NCHW, NHWC")
        self.check_input(x)
        take, last = feature_take_indices(len(self.stages), indices)
        found = []
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                taken = self.norm(x) if norm and i == len(self.stages) - 1 else x
                found.append(taken.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else taken)
        if intermediates_only:
            return found
        return self.norm(x) if not stop_early or last == len(self.stages) - 1 else x, found

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features ``indices`` do not need; return the indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return list(take)

    def get_classifier(self) -> nn.Module:
        """Return the linear classifier."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier for ``num_classes`` in place; 0 removes it."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.in_features = self.num_features
        self.head.reset(num_classes, pool_type=global_pool)
        self.head.to(next(self.parameters()).device)
        self.head.apply(init_linear)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay would harm: A_log, D and the step biases set time scales, not weights."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_proj_bias"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns that put parameters in order of depth (timm's layer-wise learning-rate decay)."""
        blocks: object = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^patch_embed", "blocks": blocks}

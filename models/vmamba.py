"""VMamba v2: a transformer-like block whose token mixing is a 2-D selective scan.

Paper: "VMamba: Visual State Space Model", Liu et al., arXiv:2401.10166. The public code (MzeroMiko/VMamba, commit
2ed52ea) is MIT; this file is written from the paper and from the numbers in tests/fixtures, which it reproduces, and
is Apache-2.0. The variants are the public ``vmamba_tiny`` s1l8, ``vmamba_small`` s2l15 and ``vmamba_base`` s2l15: one
state, no gate, convolutions without bias, an MLP of ratio 4, overlapping 3x3 stem and downsampling.

What differs from the public code: channels last from end to end (LayerNorm instead of a channel-first norm, linear
layers instead of 1x1 convolutions); downsampling belongs to the stage it opens, as in timm; runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from bench.models._checkpoint import Rules, StateDict, load_pretrained, translate
from bench.models._hierarchy import Hierarchy, Stage, drop_path_rates, init_linear
from bench.models._ssm import SS2D, Mixing
from bench.ops import NormGate
from bench.ops.training import add_dropped, mlp_branch, trains

__all__ = ["VMamba"]


class ConvNorm(nn.Module):
    """3x3 convolution of stride 2, which halves a side rounding up, and LayerNorm; channels last."""

    def __init__(self, dim: int, out_dim: int, wide: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = NormGate(out_dim, wide=wide)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,ceil(h/2),ceil(w/2),out)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stem(nn.Module):
    """Two overlapping convolutions of stride 2 with GELU between them."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, dim // 2, wide=False)
        self.conv2 = ConvNorm(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b,c,H,W) to tokens (b,h,w,d)."""
        if x.is_cuda:  # channels last from the first convolution on: what it gives needs no copy
            x = x.contiguous(memory_format=torch.channels_last)
        return self.conv2(F.gelu(self.conv1(x.permute(0, 2, 3, 1))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """VSS block: x + ssm(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, inner_dim: int, mlp_dim: int, mixing: Mixing, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = NormGate(dim)
        self.ssm = SS2D(dim, inner_dim, mixing, gate=False, conv_bias=False)
        self.norm2 = NormGate(dim)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h,w,c)."""
        x, y = self.ssm.beside(x, self.norm1)
        if not trains(self, x):
            x = x + self.drop_path(y)
            return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]
        x, y = mlp_branch(add_dropped(x, y, self.drop_path), self.norm2, self.mlp.fc1, self.mlp.fc2)
        return add_dropped(x, y, self.drop_path)


class VMamba(Hierarchy):
    """VMamba for images of any size: strided convolutions are padded, so a side shrinks to 1 and no further.

    Args:
        depths: Blocks per stage.
        dims: Channels per stage.
        num_classes: Classes; 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Accepted for a uniform interface; every size runs.
        ssm_ratio: Width of the scan over the width of the block.
        mlp_ratio: Hidden width of the MLP over the width of the block.
        d_state: States per channel of the scan (published: 1).
        directions: 4 scan directions, 2 (rows both ways) or 1 (ablation).
        mixer: ``scan``; ``attention`` over all tokens or ``none`` in its place (ablation).
        drop_path_rate: Stochastic depth of the last block, linear from 0.
        drop_rate: Dropout before the classifier.
        global_pool: timm's pooling before the classifier.

    Raises:
        ValueError: If an option has no meaning.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        d_state: int = 1,
        directions: int = 4,
        mixer: str = "scan",
        drop_path_rate: float = 0.2,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        mixing = Mixing(d_state, directions, mixer)
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [Block(dim, int(ssm_ratio * dim), int(mlp_ratio * dim), mixing, rate) for rate in rates]
            stages.append(Stage(ConvNorm(dims[i - 1], dim) if i else nn.Identity(), blocks))
        norm = NormGate(dims[-1], wide=True)
        super().__init__(Stem(in_chans, dims[0]), stages, dims, norm, 4, num_classes, in_chans, global_pool, drop_rate)
        self.apply(init_linear)


# Public names to ours, in order. Upstream numbers stem and downsampling with activations and permutations between.
_RULES: Rules = (
    (r"^layers\.(\d+)\.downsample\.1\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.3\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.norm."),
    (r"^layers\.", "stages."),
    (r"^patch_embed\.0\.", "patch_embed.conv1.conv."),
    (r"^patch_embed\.2\.", "patch_embed.conv1.norm."),
    (r"^patch_embed\.5\.", "patch_embed.conv2.conv."),
    (r"^patch_embed\.7\.", "patch_embed.conv2.norm."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.op\.", ".ssm."),
    (r"\.ssm\.conv2d\.", ".ssm.conv."),
    (r"\.ssm\.x_proj_weight$", ".ssm.mixer.x_proj_weight"),
    (r"\.ssm\.dt_projs_", ".ssm.mixer.dt_proj_"),
    (r"\.ssm\.A_logs$", ".ssm.mixer.A_log"),
    (r"\.ssm\.Ds$", ".ssm.mixer.D"),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Map a public VMamba state dict (or one of ours) onto ``model``; an odd or missing key is a ValueError."""
    return translate(state_dict, model, _RULES)


def _cfg() -> dict[str, object]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv1.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2401.10166",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in ("vmamba_tiny", "vmamba_small", "vmamba_base")})


def _create_vmamba(variant: str, pretrained: bool | str | Path | None = False, **kwargs: object) -> VMamba:
    if pretrained is True:
        raise ValueError(f"{variant}: nothing is downloaded; give pretrained= the path of a checkpoint of the authors")
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter", "flatten_sequential": True}
    model: VMamba = build_model_with_cfg(VMamba, variant, False, feature_cfg=feature_cfg, **kwargs)
    if pretrained:
        stems = ("patch_embed.0", "patch_embed.conv1.conv")
        load_pretrained(model, pretrained, checkpoint_filter_fn, ("classifier.head", "head.fc"), stems)
    return model


@register_model
def vmamba_tiny(pretrained: bool | str | Path | None = False, **kwargs: object) -> VMamba:
    """VMamba-T (s1l8): 30.2 M parameters, 4.9 G at 224 px as the authors count."""
    return _create_vmamba("vmamba_tiny", pretrained, **kwargs)


@register_model
def vmamba_small(pretrained: bool | str | Path | None = False, **kwargs: object) -> VMamba:
    """VMamba-S (s2l15): 50.1 M parameters, 8.7 G at 224 px as the authors count."""
    args = {"depths": (2, 2, 15, 2), "ssm_ratio": 2.0, "drop_path_rate": 0.3}
    return _create_vmamba("vmamba_small", pretrained, **{**args, **kwargs})


@register_model
def vmamba_base(pretrained: bool | str | Path | None = False, **kwargs: object) -> VMamba:
    """VMamba-B (s2l15): 88.6 M parameters, 15.4 G at 224 px as the authors count."""
    args = {"depths": (2, 2, 15, 2), "dims": (128, 256, 512, 1024), "ssm_ratio": 2.0, "drop_path_rate": 0.6}
    return _create_vmamba("vmamba_base", pretrained, **{**args, **kwargs})

"""MedMamba: half the channels to convolutions, half to a 2-D selective scan.

Paper: "MedMamba: Vision Mamba for Medical Image Classification", Yue and Li, arXiv:2403.03849. The public code
(YubiaoYue/MedMamba, commit 104beb3) has no licence; this file is written from the paper and from the numbers in
tests/fixtures, which it reproduces, and is Apache-2.0. Public checkpoints load through ``checkpoint_filter_fn``.

What differs from the public code: channels last from end to end; the crop of odd grids prints no warning; unknown
arguments are errors; downsampling belongs to the stage it opens, as in timm; no decoder, nothing at import.

Which network is "small" and "base": ``medmamba_small`` and ``medmamba_base`` have the stage-3 depths 8 and 12 of the
public code and of the paper's table 1. The paper's own counts (23.5 M and 3.5 G, 48.1 M and 7.4 G) fit depths of 12
and 16 instead (23,557,480 and 48,144,872 parameters; 3.46 and 7.42 G multiply-adds without the scan):
``medmamba_small_d12`` and ``medmamba_base_d16``. The tiny model agrees everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from bench.models._checkpoint import Rules, StateDict, load_pretrained, translate
from bench.models._hierarchy import Hierarchy, Stage, drop_path_rates, init_linear
from bench.models._ssm import SS2D, Mixing
from bench.ops import ConvAct, NormGate, add_shuffled
from bench.ops.training import conv_branch, halves, trains

__all__ = ["MedMamba"]

BRANCHES = ("both", "conv", "ssm")


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens; pixels that do not fill a patch are dropped."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = NormGate(dim, wide=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b,c,H,W) to tokens (b,h,w,d)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """2x2 tokens to one of twice the width; an odd last row or column is dropped."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = NormGate(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h//2,w//2,out)."""
        b, h, w, c = x.shape
        x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
        # Order of the four tokens as (row, column): (0,0), (1,0), (0,1), (1,1).
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # type: ignore[no-any-return]


class ConvBranch(nn.Module):
    """Batch norm, then 3x3, 3x3 and 1x1 convolutions, each ending in ReLU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, hidden_dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(hidden_dim)
        self.conv2 = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(hidden_dim)
        self.conv3 = ConvAct(hidden_dim, dim, 1, silu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h,w,c), not negative."""
        if trains(self, x):
            y = conv_branch(x, (self.norm1, self.norm2, self.norm3), (self.conv1, self.conv2, self.conv3))
            if y is not None:
                return y
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm2(self.conv1(self.norm1(x))))
        x = F.relu(self.norm3(self.conv2(x)))
        return self.conv3(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def add_halves(x: Tensor, left: Tensor, right: Tensor, shuffle: bool, drop_path: nn.Module) -> Tensor:
    """Add two halves (b,h,w,c/2) to x, their channels in turn or one half after the other; the right one dropped."""
    scale = None
    if isinstance(drop_path, DropPath) and drop_path.training:
        scale = drop_path(right.new_ones(len(right), 1, 1, 1))  # a factor an image is as random as the whole tensor
    if shuffle:
        return add_shuffled(x, left, right, scale)
    return x + torch.cat((left, right if scale is None else right * scale), dim=-1)


class Block(nn.Module):
    """SS-Conv-SSM: x + shuffle(conv(left half), drop_path(ssm(norm(right half))))."""

    def __init__(self, dim: int, mixing: Mixing, shuffle: bool = True, drop_path: float = 0.0) -> None:
        super().__init__()
        half = dim // 2
        self.shuffle = shuffle
        self.conv = ConvBranch(half, half)
        self.norm = NormGate(half)
        self.ssm = SS2D(half, 2 * half, mixing, gate=True, conv_bias=True)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h,w,c)."""
        x, left, right = halves(x) if trains(self, x) else (x, *x.chunk(2, dim=-1))
        return add_halves(x, self.conv(left), self.ssm.beside(right, self.norm)[1], self.shuffle, self.drop_path)


class OneBranchBlock(nn.Module):
    """Ablation: one branch alone. It keeps its half of the channels and the other half passes through.

    With ``branch_dim`` the branch has all channels and this inner width instead.
    """

    def __init__(
        self,
        dim: int,
        mixing: Mixing,
        branch: str,
        shuffle: bool = True,
        drop_path: float = 0.0,
        branch_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = dim if branch_dim else dim // 2
        self.branch, self.shuffle, self.all_channels = branch, shuffle, branch_dim is not None
        if branch == "conv":
            self.conv = ConvBranch(width, branch_dim or width)
        else:
            self.norm = NormGate(width)
            self.ssm = SS2D(width, branch_dim or 2 * width, mixing, gate=True, conv_bias=True)
            self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b,h,w,c) to (b,h,w,c)."""
        if self.all_channels:
            return x + self.change(x)
        left, right = x.chunk(2, dim=-1)
        if self.branch == "conv":
            return add_halves(x, self.change(left), torch.zeros_like(right), self.shuffle, nn.Identity())
        return add_halves(x, torch.zeros_like(left), self.change(right), self.shuffle, nn.Identity())

    def change(self, x: Tensor) -> Tensor:
        """Map the branch's channels to what it adds to them."""
        if self.branch == "conv":
            return self.conv(x)  # type: ignore[no-any-return]
        return self.drop_path(self.ssm.beside(x, self.norm)[1])  # type: ignore[no-any-return]


class MedMamba(Hierarchy):
    """MedMamba for images of any size from eight patches a side.

    Args:
        depths: Blocks per stage.
        dims: Channels per stage; even numbers.
        num_classes: Classes; 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Side or (height, width) to check in advance; any size that fits may be fed.
        patch_size: Side of a patch in pixels (published: 4).
        d_state: States per channel of the scan (published: 16).
        branch: ``both``, or only ``conv`` or ``ssm``: the other's half of the channels passes through (ablation).
        shuffle: Interleave the branches' channels (published: True).
        directions: 4 scan directions, 2 (rows both ways) or 1 (ablation).
        mixer: ``scan``; ``attention`` over all tokens or ``none`` in its place (ablation).
        branch_dims: With one branch: give it all channels and this inner width per stage (parameter-matched ablation).
        drop_path_rate: Stochastic depth of the last block's ssm branch, linear from 0 (published: 0.1).
        drop_rate: Dropout before the classifier.
        global_pool: timm's pooling before the classifier.

    Raises:
        ValueError: If an option has no meaning, or ``img_size`` is too small.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int = 4,
        d_state: int = 16,
        branch: str = "both",
        shuffle: bool = True,
        directions: int = 4,
        mixer: str = "scan",
        branch_dims: Sequence[int] | None = None,
        drop_path_rate: float = 0.1,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if branch not in BRANCHES:
            raise ValueError(f"branch={branch!r} is none of {', '.join(BRANCHES)}")
        if branch_dims is not None and branch == "both":
            raise ValueError("branch_dims needs branch=conv or branch=ssm: it is the width of the only branch")
        if any(dim % 2 for dim in dims):
            raise ValueError(f"dims={tuple(dims)}: each is split in two halves, so it must be even")
        mixing = Mixing(d_state, directions, mixer)
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks: list[nn.Module] = []
            for rate in rates:
                if branch == "both":
                    blocks.append(Block(dim, mixing, shuffle, rate))
                else:
                    branch_dim = branch_dims[i] if branch_dims else None
                    blocks.append(OneBranchBlock(dim, mixing, branch, shuffle, rate, branch_dim))
            stages.append(Stage(PatchMerging(dims[i - 1], dim) if i else nn.Identity(), blocks))
        stem = PatchEmbed(in_chans, dims[0], patch_size)
        super().__init__(stem, stages, dims, nn.Identity(), patch_size, num_classes, in_chans, global_pool, drop_rate)
        self.patch_size = patch_size
        self.apply(self._init)
        if img_size is not None:
            self._check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))

    @staticmethod
    def _init(module: nn.Module) -> None:
        # A depthwise convolution's fan_out is counted as dense (9C), as torch counts it: deviation sqrt(2/(9C)).
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        init_linear(module)

    @property
    def min_size(self) -> int:
        """Smallest side in pixels: each merging halves the grid of patches."""
        return self.patch_size << (len(self.stages) - 1)

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.min_size:
            raise ValueError(
                f"MedMamba with patches of {self.patch_size} px needs at least {self.min_size} x {self.min_size} px, "
                f"not {height} x {width}: its grid is halved {len(self.stages) - 1} times. Feed larger images or build "
                "it with a smaller patch_size"
            )

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if images (b,c,h,w) cannot be processed."""
        super().check_input(x)
        self._check_size(x.shape[2], x.shape[3])
        single = self.training and x.shape[0] == 1 and max(x.shape[2:]) < 2 * self.min_size
        if single and any(isinstance(m, nn.BatchNorm2d) for m in self.modules()):
            raise ValueError(
                f"one image of {x.shape[2]} x {x.shape[3]} px leaves a single token in the last stage, of which batch "
                "norm cannot take a variance in training: use a batch of two or more, or eval()"
            )


# Public names to ours, in order. Convolutions of the local branch are numbered with norms and ReLUs between them.
_LOCAL = {"0": "norm1", "1": "conv1", "2": "norm2", "4": "conv2", "5": "norm3", "7": "conv3"}
_RULES: Rules = (
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
    (r"\.conv33conv33conv11\.(\d)\.", lambda m: f".conv.{_LOCAL.get(m[1], m[1])}."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".ssm."),
    (r"\.ssm\.conv2d\.", ".ssm.conv."),
    (r"\.ssm\.x_proj_weight$", ".ssm.mixer.x_proj_weight"),
    (r"\.ssm\.dt_projs_", ".ssm.mixer.dt_proj_"),
    (r"\.ssm\.A_logs$", ".ssm.mixer.A_log"),
    (r"\.ssm\.Ds$", ".ssm.mixer.D"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Map a public MedMamba state dict (or one of ours) onto ``model``; an odd or missing key is a ValueError."""
    return translate(state_dict, model, _RULES)


def _cfg() -> dict[str, object]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, 32, 32),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2403.03849",
        "origin_url": "https://github.com/YubiaoYue/MedMamba",
    }


_NAMES = (
    *("medmamba_tiny", "medmamba_small", "medmamba_base", "medmamba_small_d12", "medmamba_base_d16"),
    *("medmamba_tiny_conv_twin", "medmamba_tiny_ssm_twin"),
)
default_cfgs = generate_default_cfgs({name: _cfg() for name in _NAMES})


def _create_medmamba(variant: str, pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    if pretrained is True:
        raise ValueError(f"{variant}: there are no weights to download; give pretrained= the path of a checkpoint")
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter", "flatten_sequential": True}
    model: MedMamba = build_model_with_cfg(MedMamba, variant, False, feature_cfg=feature_cfg, **kwargs)
    if pretrained:
        load_pretrained(model, pretrained, checkpoint_filter_fn, ("head", "head.fc"), ("patch_embed.proj",))
    return model


@register_model
def medmamba_tiny(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """MedMamba-T: 15.2 M parameters at 1,000 classes, 2.41 G multiply-adds at 224 px (2.0 G as published)."""
    return _create_medmamba("medmamba_tiny", pretrained, **kwargs)


@register_model
def medmamba_small(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """MedMamba-S of the public code: stage 3 has 8 blocks."""
    args = {"depths": (2, 2, 8, 2)}
    return _create_medmamba("medmamba_small", pretrained, **{**args, **kwargs})


@register_model
def medmamba_base(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """MedMamba-B of the public code: stage 3 has 12 blocks."""
    args = {"depths": (2, 2, 12, 2), "dims": (128, 256, 512, 1024)}
    return _create_medmamba("medmamba_base", pretrained, **{**args, **kwargs})


@register_model
def medmamba_small_d12(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """The network that the paper's counts for MedMamba-S describe: stage 3 has 12 blocks."""
    args = {"depths": (2, 2, 12, 2)}
    return _create_medmamba("medmamba_small_d12", pretrained, **{**args, **kwargs})


@register_model
def medmamba_base_d16(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """The network that the paper's counts for MedMamba-B describe: stage 3 has 16 blocks."""
    args = {"depths": (2, 2, 16, 2), "dims": (128, 256, 512, 1024)}
    return _create_medmamba("medmamba_base_d16", pretrained, **{**args, **kwargs})


@register_model
def medmamba_tiny_conv_twin(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """MedMamba-T with convolutions only, over all channels, as many parameters as both branches together."""
    args = {"branch": "conv", "branch_dims": (56, 104, 184, 368)}
    return _create_medmamba("medmamba_tiny_conv_twin", pretrained, **{**args, **kwargs})


@register_model
def medmamba_tiny_ssm_twin(pretrained: bool | str | Path | None = False, **kwargs: object) -> MedMamba:
    """MedMamba-T with scans only, over all channels, as many parameters as both branches together."""
    args = {"branch": "ssm", "branch_dims": (144, 320, 672, 1376)}
    return _create_medmamba("medmamba_tiny_ssm_twin", pretrained, **{**args, **kwargs})

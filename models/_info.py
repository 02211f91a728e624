"""Information on the built-in models, torch-free, so that listing and planning are instant.

``params`` is the exact count at 1,000 classes, 3 channels and 224 pixels (the contract test builds and compares).
``macs_g_224`` is what the paper or its repository publishes, in its own way of counting, which ``published_note``
names; what we count ourselves comes from ``bench.measure.flops`` and is never taken from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.registry import ModelInfo, Option, add_builtin, models

Unsupported = Callable[[int, Mapping[str, Any]], str | None]

# --- what cannot run, and why -----------------------------------------------------------------------------------


def multiple_of(patch: int, what: str) -> Unsupported:
    """Only multiples of ``patch``: timm would silently drop the pixels that do not fill a patch."""

    def unsupported(resolution: int, options: Mapping[str, Any]) -> str | None:
        if resolution >= patch and resolution % patch == 0:
            return None
        below, above = resolution // patch * patch, -(-resolution // patch) * patch
        nearest = f"{below} or {above}" if below else str(above)
        return f"{resolution} px is not a multiple of {what} ({patch} px); feed it resized, for example to {nearest}"

    return unsupported


def at_least_one_pixel(resolution: int, options: Mapping[str, Any]) -> str | None:
    """Padded convolutions shrink a side to 1 and no further, so that every size runs."""
    return None if resolution >= 1 else f"{resolution} px is no image"


def medmamba_unsupported(resolution: int, options: Mapping[str, Any]) -> str | None:
    """Three mergings halve the patch grid and crop, so a side needs eight patches."""
    patch = int(options.get("patch_size", 4))
    if resolution >= 8 * patch:
        return None
    finer = max((p for p in PATCH_SIZES if 8 * p <= resolution), default=None)
    native = f", or take the variant patch_size={finer}" if finer else ""
    return (
        f"{resolution} px is below {8 * patch} (8 patches of {patch} px, halved three times); feed it resized{native}"
    )


# --- options ----------------------------------------------------------------------------------------------------

PATCH_SIZES = (1, 2, 4, 8)

PRETRAINED = Option(None, help="path of a checkpoint (.safetensors, or .pth read with weights_only=True)")
_SCAN_OPTIONS = {
    "directions": Option(4, (1, 2, 4), "scan directions: 4 cross scan, 2 rows both ways, 1 rows"),
    "mixer": Option(
        "scan", ("scan", "attention", "none"), "what mixes tokens: the scan, attention over all tokens, nothing"
    ),
    "pretrained": PRETRAINED,
}
MEDMAMBA_OPTIONS = {
    "branch": Option("both", ("both", "conv", "ssm"), "which branch of the block is kept"),
    "shuffle": Option(True, (True, False), "interleave the channels of the two branches"),
    "d_state": Option(16, help="states per channel of the scan"),
    "patch_size": Option(4, PATCH_SIZES, "side of an embedded patch in pixels"),
    "drop_path_rate": Option(0.1, help="stochastic depth of the last block, linear from 0"),
    **_SCAN_OPTIONS,
}
MATCHED_OPTIONS = {key: MEDMAMBA_OPTIONS[key] for key in ("patch_size", "drop_path_rate", "pretrained")}


def _vmamba_options(drop_path_rate: float) -> dict[str, Option]:
    return {
        "d_state": Option(1, help="states per channel of the scan"),
        "drop_path_rate": Option(drop_path_rate, help="stochastic depth of the last block, linear from 0"),
        **_SCAN_OPTIONS,
    }


def _timm_options(drop_path_rate: float) -> dict[str, Option]:
    return {
        "drop_rate": Option(0.0, help="dropout before the classifier"),
        "drop_path_rate": Option(drop_path_rate, help="stochastic depth of the last block, linear from 0"),
        "pretrained": Option(None, help="path of a checkpoint, or true for timm's default weights (downloaded)"),
    }


def _timm(name: str, **kwargs: Any) -> Any:
    from bench.models.timm_models import build

    return build(name, **kwargs)


# Multiply-adds (10^9, one image at 224 px) as this tool counts them: `bench.measure.flops`, which a test asks again.
COUNTED_MACS_G_224 = {
    "resnet18": 1.814,
    "resnet50": 4.089,
    "vit_tiny_patch16_224": 1.254,
    "vit_small_patch16_224": 4.599,
    "vit_base_patch16_224": 17.564,
    "swin_tiny_patch4_window7_224": 4.491,
    "swin_small_patch4_window7_224": 8.741,
    "medmamba_tiny": 2.411,
    "medmamba_small": 3.244,
    "medmamba_base": 7.015,
    "medmamba_small_d12": 4.076,
    "medmamba_base_d16": 8.459,
    "medmamba_tiny_conv_twin": 2.358,
    "medmamba_tiny_ssm_twin": 2.456,
    "vmamba_tiny": 4.832,
    "vmamba_small": 8.550,
    "vmamba_base": 15.137,
}


# --- timm's reference families ----------------------------------------------------------------------------------

_TABLE = "parameters and GMAC as in timm's result tables"

for _name, _params, _macs, _summary in (
    ("resnet18", 11_689_512, 1.82, "ResNet-18, basic blocks"),
    (
        "resnet50",
        25_557_032,
        4.11,
        "ResNet-50, bottleneck blocks (stride in the 3x3: 4.11 G; the paper's v1 says 3.8 G)",
    ),
):
    add_builtin(
        ModelInfo(
            name=_name,
            counted_macs_g_224=COUNTED_MACS_G_224[_name],
            family="resnet",
            builder=partial(_timm, _name),
            summary=f"{_summary}; the ImageNet stem (7x7 stride 2, max-pool) at every size",
            paper="arXiv:1512.03385",
            licence="Apache-2.0 (timm)",
            params=_params,
            macs_g_224=_macs,
            published_note=_TABLE,
            options=_timm_options(0.0),
            unsupported=at_least_one_pixel,
        )
    )

for _size, _params, _macs, _note in (
    ("tiny", 5_717_416, 1.3, "DeiT-Ti, arXiv:2012.12877; GFLOPs as later papers quote it, one per multiply-add"),
    ("small", 22_050_664, 4.6, "DeiT-S, arXiv:2012.12877; GFLOPs as the Swin paper quotes it, one per multiply-add"),
    ("base", 86_567_656, 16.87, f"{_TABLE}: blind to the attention products; with them 17.56 G multiply-adds"),
):
    add_builtin(
        ModelInfo(
            name=f"vit_{_size}_patch16_224",
            counted_macs_g_224=COUNTED_MACS_G_224[f"vit_{_size}_patch16_224"],
            family="vit",
            builder=partial(_timm, f"vit_{_size}_patch16_224"),
            summary="ViT with 16-px patches and a class token; position embeddings sized for the resolution built for",
            paper="arXiv:2010.11929",
            licence="Apache-2.0 (timm)",
            params=_params,
            macs_g_224=_macs,
            published_note=_note,
            options=_timm_options(0.0),
            unsupported=multiple_of(16, "the patch"),
        )
    )

for _size, _params, _macs in (("tiny", 28_288_354, 4.5), ("small", 49_606_258, 8.7)):
    add_builtin(
        ModelInfo(
            name=f"swin_{_size}_patch4_window7_224",
            counted_macs_g_224=COUNTED_MACS_G_224[f"swin_{_size}_patch4_window7_224"],
            family="swin",
            builder=partial(_timm, f"swin_{_size}_patch4_window7_224"),
            summary=(
                "Swin with windows of 7 tokens at every resolution; a grid that is no multiple of 7 is padded, and one "
                "smaller than 7 is a single smaller window (below 224 px: other bias tables, fewer parameters)"
            ),
            paper="arXiv:2103.14030",
            licence="MIT (timm)",
            params=_params,
            macs_g_224=_macs,
            published_note="the paper's GFLOPs at 224 px, one per multiply-add",
            options=_timm_options(0.1),
            unsupported=multiple_of(4, "the patch"),
        )
    )

# --- MedMamba ---------------------------------------------------------------------------------------------------

_OWN = "Apache-2.0 (own implementation; the public code has no licence, its weights neither)"
_DEPTHS = (
    "the paper's 23.5 M / 3.5 G (S) and 48.1 M / 7.4 G (B) describe stage-3 depths of 12 and 16, not the 8 and 12 of "
    "its own table and of the public code"
)
_THOP = "the paper counts modules only, one per multiply-add: without x_proj, dt_proj and the scan"

for _name, _params, _macs, _group, _summary, _note in (
    ("medmamba_tiny", 15_221_608, 2.0, "main", "depths 2-2-4-2, widths 96-768", f"15.2 M; {_THOP}"),
    ("medmamba_small", 19_389_544, 3.5, "main", "depths 2-2-8-2, widths 96-768", f"{_DEPTHS}; {_THOP}"),
    ("medmamba_base", 40_883_688, 7.4, "main", "depths 2-2-12-2, widths 128-1024", f"{_DEPTHS}; {_THOP}"),
    ("medmamba_small_d12", 23_557_480, 3.5, "extra", "depths 2-2-12-2: what the paper's S figures count", _THOP),
    ("medmamba_base_d16", 48_144_872, 7.4, "extra", "depths 2-2-16-2: what the paper's B figures count", _THOP),
):
    add_builtin(
        ModelInfo(
            name=_name,
            counted_macs_g_224=COUNTED_MACS_G_224[_name],
            family="medmamba",
            builder=f"bench.models.medmamba:{_name}",
            summary=f"MedMamba, {_summary}; half the channels to convolutions, half to the cross scan",
            paper="arXiv:2403.03849",
            licence=_OWN,
            params=_params,
            macs_g_224=_macs,
            published_note=_note,
            group=_group,
            options=MEDMAMBA_OPTIONS,
            unsupported=medmamba_unsupported,
        )
    )

for _branch, _params, _widths in (
    ("conv", 15_242_440, "hidden widths 56-104-184-368"),
    ("ssm", 15_221_768, "scan widths 144-320-672-1376"),
):
    add_builtin(
        ModelInfo(
            name=f"medmamba_tiny_{_branch}_twin",
            counted_macs_g_224=COUNTED_MACS_G_224[f"medmamba_tiny_{_branch}_twin"],
            family="medmamba",
            builder=f"bench.models.medmamba:medmamba_tiny_{_branch}_twin",
            summary=f"MedMamba-T with only its {_branch} branch over all channels, as many parameters; {_widths}",
            paper="arXiv:2403.03849",
            licence=_OWN,
            params=_params,
            published_note="own ablation, not published; parameters within 0.2 % of medmamba_tiny",
            group="ablation",
            options=MATCHED_OPTIONS,
            unsupported=medmamba_unsupported,
        )
    )

# --- VMamba -----------------------------------------------------------------------------------------------------

for _size, _params, _macs, _drop_path, _summary in (
    ("tiny", 30_249_064, 4.9, 0.2, "s1l8, depths 2-2-8-2, widths 96-768, scan as wide as the block"),
    ("small", 50_147_752, 8.7, 0.3, "s2l15, depths 2-2-15-2, widths 96-768, scan twice as wide as the block"),
    ("base", 88_557_800, 15.4, 0.6, "s2l15, depths 2-2-15-2, widths 128-1024, scan twice as wide as the block"),
):
    add_builtin(
        ModelInfo(
            name=f"vmamba_{_size}",
            counted_macs_g_224=COUNTED_MACS_G_224[f"vmamba_{_size}"],
            family="vmamba",
            builder=f"bench.models.vmamba:vmamba_{_size}",
            summary=f"VMamba v2 {_summary}",
            paper="arXiv:2401.10166",
            licence="Apache-2.0 (own implementation; the public code is MIT)",
            params=_params,
            macs_g_224=_macs,
            published_note="the authors' GFLOPs: one per multiply-add of convolutions and products, 9BLDN for the scan",
            options=_vmamba_options(_drop_path),
            unsupported=at_least_one_pixel,
        )
    )

# --- aliases ------------------------------------------------------------------------------------------------------

models.alias("all", ("resnet", "vit", "swin", "medmamba", "vmamba"))
# What MedMNIST+ (Doerrich et al. 2024, arXiv:2404.15786) compares, with the weights it starts from; the tenth, AlexNet,
# is not in timm.
MEDMNISTPLUS = (
    "timm:vgg16.tv_in1k", "timm:resnet18.tv_in1k", "timm:densenet121.tv_in1k", "timm:efficientnet_b4.ra2_in1k",
    "timm:vit_base_patch16_224.augreg_in21k_ft_in1k", "timm:vit_base_patch16_clip_224.openai",
    "timm:eva02_base_patch16_clip_224.merged2b", "timm:vit_base_patch16_224.dino", "timm:samvit_base_patch16.sa1b",
)  # fmt: skip
# What a comparison of today is expected to hold, each with why; docs/pretrained.md repeats it.
MODERN = {
    "timm:convnextv2_tiny.fcmae_ft_in22k_in1k": "convolutions as strong as transformers (not for commercial use)",
    "timm:mambaout_tiny.in1k": "a Mamba block without its scan: what the scan models have to beat",
    "timm:maxvit_tiny_tf_224.in1k": "attention in windows and over a grid, with convolutions",
    "timm:eva02_base_patch14_224.mim_in22k": "masked image modelling against CLIP features",
    "timm:vit_base_patch14_reg4_dinov2.lvd142m": "the usual frozen features of 2023 to 2025",
    "timm:vit_base_patch16_dinov3.lvd1689m": "their successor (a licence of its own)",
    "timm:vit_base_patch16_224.dino": "best frozen features of MedMNIST+",
    "timm:tf_efficientnetv2_s.in21k_ft_in1k": "the strongest small convolutional network of its time",
    "timm:densenet121.ra_in1k": "what most chest X-ray papers fine-tune; second in MedMNIST+",
    "timm:vgg16.tv_in1k": "old, and the best fine-tuned network in MedMNIST+",
}
models.alias("modern", tuple(MODERN))
models.alias("medmnistplus", MEDMNISTPLUS)
models.alias("twins", ("medmamba_tiny_conv_twin", "medmamba_tiny_ssm_twin"))
models.alias(
    "ablations",
    (
        "medmamba_tiny",
        "medmamba_tiny[branch=conv]",
        "medmamba_tiny[branch=ssm]",
        "medmamba_tiny[shuffle=false]",
        "medmamba_tiny[directions=1]",
        "medmamba_tiny[directions=2]",
        "medmamba_tiny[d_state=1]",
        "medmamba_tiny[d_state=4]",
        "medmamba_tiny[d_state=64]",
        "medmamba_tiny[mixer=attention]",
        "medmamba_tiny[mixer=none]",
        "medmamba_tiny[patch_size=2]",
        "twins",
    ),
)

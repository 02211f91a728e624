"""Information on the built-in models, torch-free: ``models.toml`` beside this file, and what cannot run and why."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.registry import ModelInfo, Option, models

if TYPE_CHECKING:
    from torch import nn

FILE = Path(__file__).with_name("models.toml")
_TIMM = ("resnet", "vit", "swin")  # families that are timm's own


def _multiple_of(patch: int, resolution: int, options: Mapping[str, object]) -> str | None:
    """Only multiples of ``patch``: timm would silently drop the pixels that do not fill a patch."""
    if resolution >= patch and resolution % patch == 0:
        return None
    below, above = resolution // patch * patch, -(-resolution // patch) * patch
    nearest = f"{below} or {above}" if below else str(above)
    return f"{resolution} px is not a multiple of the patch ({patch} px); feed it resized, for example to {nearest}"


def _eight_patches(resolution: int, options: Mapping[str, object]) -> str | None:
    """MedMamba's three mergings halve the patch grid and crop, so a side needs eight patches."""
    patch = int(str(options.get("patch_size", 4)))
    if resolution >= 8 * patch:
        return None
    finer = max((p for p in (1, 2, 4) if 8 * p <= resolution), default=None)
    native = f", or take the variant patch_size={finer}" if finer else ""
    return (
        f"{resolution} px is below {8 * patch} (8 patches of {patch} px, halved three times); feed it resized{native}"
    )


def _timm(name: str, **kwargs: object) -> nn.Module:
    from bench.models.timm_models import build

    model: nn.Module = build(name, **kwargs)
    return model


def _register() -> None:
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    options, aliases = content.pop("options"), content.pop("aliases")
    known = {field.name for field in fields(ModelInfo)}
    for family, common in content.items():
        for name, own in common.pop("models").items():
            both = {**common, **own}
            told = {key: value for key, value in both.items() if key in known and key != "options"}
            if family == "medmamba":
                told["unsupported"] = _eight_patches
            elif "patch" in both:
                told["unsupported"] = partial(_multiple_of, both["patch"])
            builder = partial(_timm, name) if family in _TIMM else f"bench.models.{family}:{name}"
            taken = {}
            for key in both["options"]:
                default = both.get("defaults", {}).get(key, options[key].get("default"))
                taken[key] = Option(default, tuple(options[key].get("choices", ())), options[key]["help"])
            models.add(ModelInfo(name=name, family=family, builder=builder, options=taken, origin=str(FILE), **told))
    for word, patterns in aliases.items():
        models.alias(word, patterns)


_register()

"""The reference families ResNet, ViT and Swin, and any other model of timm: ``timm:NAME``, ``timm:hf-hub:OWNER/NAME``.

Every network is timm's own, unchanged, built for the resolution it is fed. What that means at other resolutions
than 224:

- ResNet has no size of its own. Its ImageNet stem (stride 4 in all) stays at small images too; MedMNIST's official
  28-px ResNets have another stem and are other networks.
- ViT gets position embeddings for its grid of 16-px patches. timm would silently drop pixels that do not fill a
  patch, so other sizes than multiples of 16 are unsupported.
- Swin keeps its windows of 7 tokens. timm pads a grid that is no multiple of 7 (as the paper's detection models do)
  and, where the grid itself is smaller, takes the grid as one window: a smaller table of relative positions, hence
  fewer parameters. Other windows would be other networks and are not offered. Multiples of 4, the patch, only.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_path
from torch import nn

from bench.models._checkpoint import StateDict, fit_ends, load_pretrained
from bench.registry import ModelInfo, RegistryError, hub, nearest

__all__ = ["build", "timm_info"]

HUB = "hf-hub:"


def build(
    name: str,
    num_classes: int,
    in_chans: int,
    img_size: int,
    pretrained: bool | str | Path | None = None,
    weights_file: str | Path | None = None,
    **options: object,
) -> nn.Module:
    """Build timm's model ``name``, for ``img_size`` where its shape depends on it.

    Args:
        name: timm's name, with or without the tag of its weights, or ``hf-hub:OWNER/NAME``.
        num_classes: Classes; 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels.
        pretrained: Path of a checkpoint; or True for timm's own weights.
        weights_file: Where those lie; without it timm downloads them.
        options: Other arguments of the model.

    Raises:
        RegistryError: If an option does not exist.
        FileNotFoundError, ValueError: If a checkpoint is missing or does not fit.
    """
    config = _config(name)
    if config is not None and config.fixed_input_size:
        options = {"img_size": img_size, **options}
    if pretrained is True and weights_file and not name.startswith(HUB):  # that of the hub lies beside its config
        options = {"pretrained_cfg_overlay": {"file": str(weights_file)}, **options}
    full = f"local-dir:{_on_hub(name).parent}" if name.startswith(HUB) else name
    try:
        model: nn.Module = timm.create_model(
            full, pretrained=pretrained is True, num_classes=num_classes, in_chans=in_chans, **options
        )
    except TypeError as error:
        raise RegistryError(f"model {name!r} cannot be built with {options}: {error}") from error
    if pretrained and pretrained is not True:
        _load(model, name, pretrained, in_chans)
    return model


def _on_hub(name: str) -> Path:
    """The ``config.json`` of a model of the hub, in the hub's cache."""
    return hub.fetched(name.removeprefix(HUB), ("config.json",))


def _config(name: str) -> Any:
    """Timm's entry on the weights of a model; None where it has none. Raises hub.UnreachableError."""
    if not name.startswith(HUB):
        return timm.get_pretrained_cfg(name)
    stated, architecture, _ = load_model_config_from_path(_on_hub(name).parent)
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    return PretrainedCfg(**{**{k: v for k, v in stated.items() if k in known}, "architecture": architecture})


def _load(model: nn.Module, name: str, path: str | Path, in_chans: int) -> None:
    model.in_chans = in_chans  # type: ignore[assignment]
    config: Mapping[str, object] = model.pretrained_cfg  # type: ignore[assignment]
    architecture = str(config["architecture"]) if name.startswith(HUB) else name
    family = importlib.import_module(timm.model_entrypoint(architecture).__module__)

    def filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
        # timm's own filter resizes position embeddings and renames original checkpoints' keys.
        filtered: StateDict = getattr(family, "checkpoint_filter_fn", lambda state, _: state)(state_dict, model)
        return fit_ends(filtered, model, (config["classifier"],), ())

    load_pretrained(model, path, filter_fn, (), (config["first_conv"],))


def timm_info(spec: str) -> ModelInfo:
    """Information on ``timm:<name>``; any keyword is passed on to timm.

    Raises:
        RegistryError: If timm has no such model; with the nearest name.
        hub.UnreachableError: If the hub has to be asked for a model and does not answer.
    """
    name = spec.removeprefix("timm:")
    if name.startswith(HUB):
        return _hub_info(name)
    if not timm.is_model(name):
        raise RegistryError(f"timm {timm.__version__} has no model {name!r}{nearest(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the architecture exists, the tag of its weights does not
        tags = [tagged for tagged in timm.list_pretrained(name.partition(".")[0])]
        raise RegistryError(f"timm model {name!r}: {error}{nearest(name, tags)}") from error
    return _info(name, f"timm's {name}", config)


@functools.cache
def _hub_info(name: str) -> ModelInfo:
    if not re.fullmatch(r"hf-hub:[\w.\-]+/[\w.\-]+", name):
        raise RegistryError(f"model 'timm:{name}': write timm:hf-hub:OWNER/NAME")
    try:
        config = _config(name)
    except (KeyError, ValueError, TypeError) as error:
        raise RegistryError(f"model 'timm:{name}': its config.json is not timm's ({error!r})") from error
    if not timm.is_model(config.architecture):
        raise RegistryError(f"model 'timm:{name}': timm {timm.__version__} has no {config.architecture}")
    return _info(name, f"{config.architecture} of the hub", config)


def _info(name: str, summary: str, config: Any) -> ModelInfo:
    return ModelInfo(
        name=f"timm:{name}",
        family="timm",
        builder=functools.partial(build, name),
        summary=summary,
        paper=_text(config, "paper_ids"),
        licence=_text(config, "license"),
        group="extra",
        options=None,
        unsupported=functools.partial(_unsupported, name),
        origin=f"timm {timm.__version__}",
        weights_config=config,
    )


def _text(config: object, key: str) -> str:
    value = getattr(config, key, None) or ""
    return value if isinstance(value, str) else ", ".join(value)


def _unsupported(name: str, resolution: int, options: Mapping[str, object]) -> str | None:
    """Try it without memory or arithmetic (meta tensors), against the size the model was made for."""
    options = {key: value for key, value in options.items() if key != "pretrained"}
    try:
        return _try(name, resolution, tuple(sorted(options.items())))
    except TypeError:  # an option that cannot be hashed
        return None


@functools.lru_cache(maxsize=512)
def _try(name: str, resolution: int, options: tuple[tuple[str, Any], ...]) -> str | None:
    config = _config(name)
    nominal = config.input_size[-1] if config is not None and config.input_size else 224
    if _failure(name, nominal, options) is not None:
        return None  # it cannot be tried this way: let the run say what happens
    if failure := _failure(name, resolution, options):
        return f"timm's {name} does not run at {resolution} px: {failure}"
    return None


def _failure(name: str, resolution: int, options: tuple[tuple[str, Any], ...]) -> str | None:
    try:
        with torch.device("meta"), torch.no_grad():
            model = build(name, 2, 3, resolution, **dict(options)).eval()
            model(torch.empty(2, 3, resolution, resolution))
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    for embed in model.modules():
        if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad and resolution % max(embed.patch_size):
            patch = max(embed.patch_size)
            return (
                f"it is not a multiple of the patch ({patch} px), and timm would drop the pixels that do not fill one"
            )
    return None

"""Build a registered model as every efficiency figure uses it: 3 channels, 1,000 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NUM_CLASSES, IN_CHANS = 1000, 3


def build(
    name: str, resolution: int, num_classes: int = NUM_CLASSES, in_chans: int = IN_CHANS, weights: bool = True
) -> torch.nn.Module:
    """Build ``name`` (a canonical model string, options in brackets) for square images of ``resolution`` pixels.

    Without ``weights`` those that it names are not read: no speed depends on them.

    Raises:
        RegistryError: the name or an option is unknown.
    """
    from bench.registry import model_info, parse_model

    spec = parse_model(name)
    options = {key: value for key, value in spec.options if weights or key != "pretrained"}
    model: torch.nn.Module = model_info(spec.name).build(num_classes, in_chans, resolution, **options)
    return model

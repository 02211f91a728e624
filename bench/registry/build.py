"""Build a registered model as every efficiency figure uses it: 3 channels, 1,000 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NUM_CLASSES, IN_CHANS = 1000, 3


def build(name: str, resolution: int, num_classes: int = NUM_CLASSES, in_chans: int = IN_CHANS) -> torch.nn.Module:
    """Build ``name`` (a canonical model string, options in brackets) for square images of ``resolution`` pixels.

    Raises:
        RegistryError: the name or an option is unknown.
    """
    from bench.registry import model_info, parse_model

    spec = parse_model(name)
    model: torch.nn.Module = model_info(spec.name).build(num_classes, in_chans, resolution, **dict(spec.options))
    return model

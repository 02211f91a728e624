"""The learning rate as a pure function of the step. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def learning_rate(recipe: Mapping[str, Any], step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0).

    Warm-up rises linearly and reaches the peak at its last step. ``step`` multiplies by gamma at each milestone passed,
    counted in whole epochs (as ``MultiStepLR`` stepped once an epoch); ``cosine`` falls step by step from the
    end of warm-up to ``final_lr_ratio`` of the peak after the last step (Loshchilov and Hutter 2017, equation 5).
    """
    peak = float(recipe["learning_rate"])
    warmup = round(float(recipe["warmup_epochs"]) * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if recipe["schedule"] == "step":
        passed = sum(step // steps_per_epoch >= milestone for milestone in recipe["milestones"])
        return peak * math.pow(recipe["gamma"], passed)
    if recipe["schedule"] == "cosine":
        total = int(recipe["epochs"]) * steps_per_epoch
        progress = (step - warmup) / max(1, total - warmup)
        floor = peak * float(recipe["final_lr_ratio"])
        return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak

"""What an optimizer step is made of: the loss of a task, the optimizer of a recipe, the learning rate of the step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from bench.record.types import Fields, Recipe


class Loss:
    """The loss of each image, (B,), in float32: cross-entropy, or for multi-label the mean binary cross-entropy.

    ``class_weights = "balanced"`` weights a class by N / (C x its images), and a label's positives by negatives /
    positives, from the training labels; a class without images gets weight 0.
    """

    def __init__(
        self,
        task: str,
        recipe: Recipe,
        labels: npt.NDArray[np.int64],
        n_classes: int,
        device: torch.device,
    ) -> None:
        self.multi_label = task == "multi-label"
        self.smoothing = float(recipe["label_smoothing"])
        self.weights: torch.Tensor | None = None
        if recipe["class_weights"] == "balanced":
            weights = _balanced(labels, n_classes, self.multi_label)
            self.weights = torch.tensor(weights, dtype=torch.float32, device=device)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return losses (B,) of logits (B, C) and labels (B,) or (B, L)."""
        logits = logits.float()
        if self.multi_label:
            targets = labels.float()
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="none").mean(
                1
            )
        return F.cross_entropy(logits, labels, weight=self.weights, label_smoothing=self.smoothing, reduction="none")


def _balanced(labels: npt.NDArray[np.int64], n_classes: int, multi_label: bool) -> npt.NDArray[np.float64]:
    n = len(labels)
    if multi_label:
        positives = labels.sum(0)
        return np.where(positives > 0, (n - positives) / np.maximum(positives, 1), 0.0)
    counts = np.bincount(labels, minlength=n_classes)
    return np.where(counts > 0, n / (n_classes * np.maximum(counts, 1)), 0.0)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer, fused; :class:`LearningRates` sets its rates at each step.

    ``capturable`` changes nothing in fused steps but lets a CUDA graph hold them.
    """
    groups = _head_apart(model, parameter_groups(model, recipe), recipe["head_rate"])
    rate, betas = recipe["learning_rate"], tuple(recipe["betas"])
    on_cuda = next(model.parameters()).device.type == "cuda"
    if recipe["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=recipe["momentum"], fused=True)
    kind = torch.optim.AdamW if recipe["optimizer"] == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=betas, fused=True, capturable=on_cuda)


def _head_apart(model: nn.Module, groups: list[Fields], factor: float) -> list[Fields]:
    """The same groups with the classifier's parameters in groups of their own, ``factor`` times as fast."""
    if factor == 1.0:
        return groups
    head = {id(p) for p in model.get_classifier().parameters()}  # type: ignore[operator]
    found = []
    for group in groups:
        for inside, scale in ((False, 1.0), (True, factor)):
            chosen = [p for p in group["params"] if (id(p) in head) is inside]
            if chosen:
                found.append({**group, "params": chosen, "lr_scale": group.get("lr_scale", 1.0) * scale})
    return found


@torch.no_grad()
def zero_head(model: nn.Module) -> None:
    """Let the classifier start at zero: equal probabilities, and no gradient that a random head sends into the weights.

    timm draws some new classifiers so wide that a short fine-tuning is spent on mending them.
    """
    for parameter in model.get_classifier().parameters():  # type: ignore[operator]
        parameter.zero_()


def freeze(model: nn.Module, part: float) -> int:
    """Keep the first layers as they are: no gradients, and norms and dropout as in evaluation.

    Args:
        model: with timm's ``group_matcher``, which numbers its layers from the stem to the classifier.
        part: of all layers; the last one never stays.

    Returns:
        How many parameters stay.
    """
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(model, model.group_matcher(), reverse=True)  # type: ignore[operator]
    limit = part * max(layers.values())
    kept = 0
    for name, parameter in model.named_parameters():
        if layers[name] < limit:
            parameter.requires_grad_(False)
            kept += parameter.numel()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()
            module.train = functools.partial(_unmoved, module)  # type: ignore[method-assign]
    return kept


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of ``train()``: a frozen part stays in evaluation."""
    return module


class LearningRates:
    """Set an optimizer's learning rates, each group's times its ``lr_scale``.

    On CUDA they are float32 tensors that stay where they are, since a recorded step reads them there.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.scales = [float(group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
        self._scales = torch.tensor(self.scales, device=device)
        self._rates = torch.zeros_like(self._scales)

    def set(self, rate: float) -> None:
        """Let the next step use ``rate``; nothing waits for the device."""
        if self.device.type != "cuda":
            for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
                group["lr"] = rate * scale
            return
        torch.mul(self._scales, rate, out=self._rates)
        for group, tensor in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = tensor  # at each step, since restoring an optimizer brings other tensors


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[Fields]:
    """Split trainable parameters into those with weight decay and those without, and by depth for layer decay.

    Spared, when the recipe says so: tensors of one dimension or none (norms, biases), what the model names in timm's
    ``no_weight_decay()`` and tensors marked ``_no_weight_decay`` (as Mamba marks its A and D).
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = recipe["weight_decay"]
    named: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = named() | {name for name, p in trainable if getattr(p, "_no_weight_decay", False)}
    if recipe["layer_decay"] != 1.0:
        return _by_depth(model, recipe, exempt)
    if recipe["decay_norm_and_bias"] or not decay:
        return [{"params": [p for _, p in trainable], "weight_decay": decay}]
    spared = [p.ndim <= 1 or name in exempt for name, p in trainable]
    groups = [
        {"params": [p for (_, p), spare in zip(trainable, spared, strict=True) if not spare], "weight_decay": decay},
        {"params": [p for (_, p), spare in zip(trainable, spared, strict=True) if spare], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _by_depth(model: nn.Module, recipe: Recipe, exempt: set[str]) -> list[Fields]:
    """Groups whose learning rate falls by ``layer_decay`` from block to block, from the head down to the stem.

    Bao et al., BEiT (2021), as timm does it by the model's own ``group_matcher``; the loop multiplies the schedule by
    each group's ``lr_scale``.
    """
    from timm.optim import param_groups_layer_decay

    everything = bool(recipe["decay_norm_and_bias"])
    groups: list[Fields] = param_groups_layer_decay(
        model,
        weight_decay=recipe["weight_decay"],
        no_weight_decay_list=() if everything else exempt,
        weight_decay_exclude_1d=not everything,
        layer_decay=recipe["layer_decay"],
    )
    return groups


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
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

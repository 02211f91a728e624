"""Differences between our small MedMamba and VMamba and the public code's numbers in tests/fixtures.

Used by the tests and by ``show_models.py``; every function returns numbers and judges none.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.models import medmamba, vmamba
from bench.models._checkpoint import rename

FIXTURES = Path(__file__).parent.parent / "fixtures"
FAMILIES: dict[str, tuple[ModuleType, type[nn.Module]]] = {
    "medmamba": (medmamba, medmamba.MedMamba),
    "vmamba": (vmamba, vmamba.VMamba),
}
SIZES = {
    "medmamba": ("64x64", "56x72", "100x100", "60x44", "32x32"),
    "vmamba": ("64x64", "56x72", "100x100", "37x50", "32x32", "28x28"),
}
# Public modules to ours, after the renaming of parameters; "{last}" is the last block of a stage.
_MODULES = {
    "medmamba": {"ln_1": "norm", "self_attention": "ssm", "conv33conv33conv11": "conv"},
    "vmamba": {"op": "ssm", "classifier.norm": "norm"},
}


class Case(NamedTuple):
    family: str
    module: ModuleType
    model: Any
    tensors: dict[str, Tensor]

    def load(self, *prefixes: str) -> None:
        """Load the public weights under these prefixes, later ones over earlier ones."""
        state = {k.removeprefix(p): v for p in prefixes for k, v in self.tensors.items() if k.startswith(p)}
        self.model.load_state_dict(self.module.checkpoint_filter_fn(state, self.model))


def load_case(family: str, **options: Any) -> Case:
    """The small network of the fixtures with the public weights, in evaluation mode."""
    module, network = FAMILIES[family]
    tensors = load_file(FIXTURES / f"{family}_small.safetensors")
    model = network(
        **{"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "num_classes": 5, "drop_path_rate": 0.0, **options}
    )
    case = Case(family, module, model.eval(), tensors)
    case.load("state_dict/")
    return case


def load_keys(model: str) -> dict[str, Any]:
    """One of the public key files, such as ``medmamba_tiny``."""
    return json.loads((FIXTURES / f"{model}_keys.json").read_text())


def relative(ours: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|."""
    return float((ours - reference).abs().max() / reference.abs().max())


@torch.no_grad()
def logits_error(case: Case, size: str) -> float:
    """Absolute, against the float64 run."""
    return float((case.model(case.tensors[f"input/{size}"]) - case.tensors[f"logits64/{size}"]).abs().max())


@torch.no_grad()
def eps_error(case: Case) -> float:
    """Absolute, with weights under which a wrong epsilon of a norm moves the logits by 0.03 to 0.8."""
    case.load("state_dict/", "eps_case/state_dict/")
    error = float((case.model(case.tensors["input/64x64"]) - case.tensors["eps_case/logits64"]).abs().max())
    case.load("state_dict/")
    return error


def _our_module(case: Case, public: str) -> tuple[str, bool]:
    """Name of our module whose output is the public ``public``'s, and whether the public one is channels first."""
    parts = public.split(".")
    nchw = case.family == "vmamba" or parts[-1] in ("conv2d", "conv33conv33conv11")
    if public in ("patch_embed", "pooled"):
        return ("head.global_pool", False) if public == "pooled" else (public, nchw)
    if parts[0] == "layers" and (len(parts) == 2 or parts[2] == "downsample"):  # ours opens the next stage with it
        stage = int(parts[1])
        return (f"stages.{stage}" if stage == 3 else f"stages.{stage + 1}.downsample"), nchw
    if parts[-1] == "blocks":
        return f"stages.{parts[1]}", nchw
    for theirs, ours in _MODULES[case.family].items():
        public = public.replace(theirs, ours)
    return public.replace("layers.", "stages.").replace("conv2d", "conv").replace("merged", "mixer"), nchw


@torch.no_grad()
def stage_errors(case: Case, size: str) -> dict[str, float]:
    """Relative to the maximum, for every stored intermediate of this input."""
    wanted = {k.removeprefix(f"stages/{size}/"): v for k, v in case.tensors.items() if k.startswith(f"stages/{size}/")}
    found: dict[str, Tensor] = {}
    modules = dict(case.model.named_modules())
    names = {public: _our_module(case, public) for public in wanted}
    hooks = [
        # A norm that is gated: the public output is the one without the gate.
        modules[ours].register_forward_hook(
            lambda m, i, output, ours=ours: found.update({ours: m.forward(i[0]) if len(i) > 1 else output})
        )
        for ours in {ours for ours, _ in names.values()}
    ]
    case.model(case.tensors[f"input/{size}"])
    for hook in hooks:
        hook.remove()
    errors = {}
    for public, (ours, nchw) in names.items():
        output = found[ours].permute(0, 3, 1, 2) if nchw else found[ours]
        truth = F.silu(wanted[public]) if ours.endswith("ssm.conv") else wanted[public]  # ours holds its activation
        assert output.shape == truth.shape, (public, output.shape, truth.shape)
        errors[public] = relative(output, truth)
    return errors


def public_gradients(case: Case) -> dict[str, Tensor]:
    """The stored gradients under our names and shapes."""
    shapes = {name: p.shape for name, p in case.model.named_parameters()}
    stored = {k.removeprefix("train/grad/"): v for k, v in case.tensors.items() if k.startswith("train/grad/")}
    renamed = {rename(key, case.module._RULES): value for key, value in stored.items()}
    assert renamed.keys() == shapes.keys()
    return {name: value.reshape(shapes[name]) for name, value in renamed.items()}


def is_dead(name: str) -> bool:
    """A bias before batch norm: its gradient is zero, and float32 noise is all there is to compare."""
    return name.endswith((".conv.conv1.bias", ".conv.conv2.bias"))


def train_step(case: Case) -> dict[str, Any]:
    """One forward and backward in training mode: loss (absolute), gradients and batch-norm buffers (relative)."""
    case.model.train()
    case.model.zero_grad()
    loss = F.cross_entropy(case.model(case.tensors["train/input"]), case.tensors["train/labels"])
    loss.backward()
    parameters = dict(case.model.named_parameters())
    gradients = public_gradients(case)
    dead = [float((parameters[name].grad - g).abs().max()) for name, g in gradients.items() if is_dead(name)]
    stored = {k.removeprefix("train/buffers_after/"): v for k, v in case.tensors.items() if "buffers_after/" in k}
    buffers = dict(case.model.named_buffers())
    after = {key: relative(buffers[rename(key, case.module._RULES)].double(), v.double()) for key, v in stored.items()}
    case.model.eval()
    case.load("state_dict/")
    return {
        "loss": float((loss.detach() - case.tensors["train/loss64"]).abs().max()),
        "gradients": {n: relative(parameters[n].grad, g) for n, g in gradients.items() if not is_dead(n)},
        "dead_gradient": max(dead, default=0.0),
        "buffers": after,
    }


def input_gradient_error(case: Case) -> float:
    """Relative error of the gradient of sum_c (c+1) logit_c with respect to the 56x72 image."""
    x = case.tensors["input/56x72"].clone().requires_grad_()
    (case.model(x) * torch.arange(1, 6)).sum().backward()
    assert x.grad is not None
    return relative(x.grad, case.tensors["eval_grad/56x72/input_grad"])

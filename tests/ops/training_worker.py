"""Runs blocks in training through `bench.ops.training` and prints errors as JSON; started by test_training.py.

A process of its own under TRITON_INTERPRET=1: the variable decides how Triton's functions are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

import bench.models._ssm as ssm
import bench.models.medmamba as medmamba
import bench.models.vmamba as vmamba
from bench.ops import use_backend

WITHOUT_EFFECT = ("conv.conv1.bias", "conv.conv2.bias")  # biases before a batch norm


def medmamba_block() -> nn.Module:
    return medmamba.Block(12, ssm.Mixing(3), drop_path=0.5)


def narrow_convolutions() -> nn.Module:
    """The block of the parameter-matched ablation: its convolutions are narrower than what they are added to."""
    return medmamba.OneBranchBlock(12, ssm.Mixing(3), "conv", branch_dim=8)


def vmamba_block() -> nn.Module:
    return vmamba.Block(6, 6, 12, ssm.Mixing(1), drop_path=0.5)


def step(make: Callable[[], nn.Module], dim: int, device: str, backend: str | None, half: bool) -> dict[str, Tensor]:
    """Output, gradients and running statistics of one step; in float64 without a backend."""
    dtype = torch.float32 if backend else torch.float64
    torch.manual_seed(1)
    block, x = make().train(), torch.randn(2, 3, 4, dim)
    for name, p in block.named_parameters():
        if p.ndim == 1 and "dt_proj" not in name:
            nn.init.normal_(p, 0.7, 0.5)
    block, x = block.to(device, dtype), x.to(device, dtype).requires_grad_()
    torch.manual_seed(3)  # of stochastic depth
    with use_backend(backend), torch.autocast(x.device.type, torch.bfloat16, enabled=half and backend is not None):
        y = block(x)
    y.backward(torch.sin(torch.arange(y.numel(), device=device).to(y.dtype)).view_as(y))
    found = {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in block.named_parameters()}}
    found |= dict(block.named_buffers())
    return {n: t for n, t in found.items() if t is not None and n not in WITHOUT_EFFECT}


def errors(device: str = "cpu") -> dict[str, dict[str, list[float]]]:
    """By block, precision and tensor: errors against float64, relative to the largest, fused and by PyTorch."""
    found = {}
    for make, dim in ((medmamba_block, 12), (narrow_convolutions, 12), (vmamba_block, 6)):
        truth = step(make, dim, device, None, False)
        for half in (False, True):
            fused, plain = (step(make, dim, device, backend, half) for backend in ("triton", "reference"))
            assert fused.keys() == plain.keys() == truth.keys()
            assert all(fused[n].dtype == plain[n].dtype for n in plain)
            found[f"{make.__name__} {'bf16' if half else 'fp32'}"] = {
                n: [float((t[n].double() - exact).abs().max() / exact.abs().max()) for t in (fused, plain)]
                for n, exact in truth.items()
            }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(errors()))

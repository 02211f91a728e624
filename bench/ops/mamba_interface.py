"""The scan under the signature of mamba_ssm, and a stand-in for that package's module, on any device.

Public vision models (MedMamba, VMamba, MambaVision) import one function of mamba_ssm, whose CUDA kernel has to be
compiled. Here is the same function on the backends of `bench.ops`.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.sequence import selective_scan

INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn`, on every device, with gradients.

    Args:
        u: Inputs, (b,d,l).
        delta: Step sizes, (b,d,l).
        A: Decays, (d,n), real.
        B: Input weights, (b,n,l) for all channels or (b,g,n,l) for g groups of channels.
        C: Output weights, shaped as B may be.
        D: Skip weights, (d,).
        z: Gate, (b,d,l): the output is multiplied by silu(z).
        delta_bias: Added to every step size, (d,).
        delta_softplus: Pass the step sizes through softplus.
        return_last_state: Return the state after the last step too, (b,d,n); no gradient flows through it.
        backend: As in `bench.ops.selective_scan`.

    Returns:
        (b,d,l) in the type of u; with `return_last_state` a pair of it and the state (float32, or float64 for float64).

    Raises:
        ValueError: If a tensor is complex, B or C has another number of dimensions, or shapes do not fit together.
    """
    for name, t in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C)):
        if t.is_complex():
            raise ValueError(f"selective_scan_fn: {name} is complex ({t.dtype}); only real scans are supported")
    B, C = _grouped("B", B), _grouped("C", C)
    if z is not None and z.shape != u.shape:
        raise ValueError(f"selective_scan_fn: z {tuple(z.shape)} must have u's shape {tuple(u.shape)}")
    groups = max(B.shape[1], C.shape[1])
    if B.shape[1] != C.shape[1] and 1 in (B.shape[1], C.shape[1]):  # one of them is shared by all channels
        B, C = (t.expand(-1, groups, -1, -1) for t in (B, C))
    out = selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, backend=backend)
    if z is not None:
        wide = torch.promote_types(u.dtype, torch.float32)
        out = (out.to(wide) * F.silu(z.to(wide))).to(u.dtype)
    if not return_last_state:
        return out
    return out, _last_state(u, delta, A, B, delta_bias, delta_softplus)


def selective_scan_ref(*arguments: Any, **named: Any) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` in plain PyTorch."""
    return selective_scan_fn(*arguments, **named, backend="reference")


def _grouped(name: str, t: Tensor) -> Tensor:
    if t.dim() not in (3, 4):
        raise ValueError(
            f"selective_scan_fn: {name} must be (b,n,l) or (b,g,n,l), not {tuple(t.shape)}; expand a constant {name} "
            "over batch and length"
        )
    return t.unsqueeze(1) if t.dim() == 3 else t


@torch.no_grad()
def _last_state(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> Tensor:
    """The state after the last step, in closed form: the sum over t of exp(A * steps after t) * s_t B_t u_t."""
    wide = torch.promote_types(u.dtype, torch.float32)
    step, A, B = delta.to(wide), A.to(wide), B.to(wide)
    if delta_bias is not None:
        step = step + delta_bias.to(wide).unsqueeze(-1)
    if delta_softplus:
        step = F.softplus(step)
    exact = step.double()
    after = (exact.flip(-1).cumsum(-1).flip(-1) - exact).to(wide)
    inputs = (step * u.to(wide)).unflatten(1, (B.shape[1], -1))  # (b,g,c,l)
    states = [
        ((after * a.unsqueeze(-1)).exp().view_as(inputs) * inputs * b.unsqueeze(2)).sum(-1).flatten(1)
        for a, b in zip(A.unbind(1), B.unbind(2), strict=True)
    ]
    return torch.stack(states, -1)


def install_as_mamba_ssm() -> None:
    """Let `from mamba_ssm.ops.selective_scan_interface import selective_scan_fn` find the function above.

    Call it before the model's file is imported. It serves this process only, and also hides an installed mamba_ssm.
    `selective_scan_ref` is there too; Mamba's own blocks and `mamba_inner_fn` are not.

    Raises:
        RuntimeError: If the real mamba_ssm has been imported already.
    """
    present = sys.modules.get("mamba_ssm")
    if present is not None and not hasattr(present, "__medbench__"):
        raise RuntimeError(
            f"mamba_ssm has been imported already, from {getattr(present, '__file__', None)}: call "
            "bench.ops.install_as_mamba_ssm() before anything imports mamba_ssm"
        )
    if present is not None:
        return
    parent: ModuleType | None = None
    for name in ("mamba_ssm", "mamba_ssm.ops", INTERFACE):
        module: Any = ModuleType(name, "A stand-in for mamba_ssm, by bench.ops.install_as_mamba_ssm.")
        module.__file__ = __file__  # an import of what is missing names this file
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=__file__, is_package=name != INTERFACE)
        module.__medbench__ = True
        if name == INTERFACE:
            module.selective_scan_fn, module.selective_scan_ref = selective_scan_fn, selective_scan_ref
        else:
            module.__path__ = []
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], module)
        sys.modules[name] = parent = module

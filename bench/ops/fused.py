"""What stands around a scan: layer norm with a gate, bias with activation, and the shuffled residual sum.

On CUDA each is one Triton kernel a direction, in float32 arithmetic and with outputs in autocast's type; under autocast
PyTorch takes four to six passes over memory, most of them casts. Everywhere else, and wherever a program is traced or
compiled (compilers fuse by themselves, counters count what is written here), they are the PyTorch expressions below.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ops.dispatch import overridden, resolve


def fusing(x: Tensor) -> bool:
    """Whether the kernels may take the place of PyTorch's for this tensor, here and now."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or x.dtype == torch.float64:
        return False
    return (x.is_cuda or overridden() == "triton") and resolve(x.device.type, False, overridden()) == "triton"


def narrow(x: Tensor) -> torch.dtype:
    """The type of products here: autocast's, or that of x."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


class NormGate(nn.LayerNorm):
    """Layer norm over the last axis, times silu(gate) where a gate is given.

    Inside autocast on CUDA the result has autocast's type, for what reads it is a matrix product; or float32, as
    PyTorch's layer norm, with `wide`, for a residual stream.
    """

    def __init__(self, dim: int, eps: float = 1e-5, wide: bool = False) -> None:
        super().__init__(dim, eps)
        self.wide = wide

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Map (...,d) to (...,d)."""
        if fusing(x):
            dtype = x.dtype
            if torch.is_autocast_enabled(x.device.type):
                dtype = torch.float32 if self.wide else torch.get_autocast_dtype(x.device.type)
            out: Tensor = norm_gate(x, self.weight, self.bias, gate, self.eps, dtype)
            return out
        y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return y if gate is None else y * F.silu(gate)


class ConvAct(nn.Conv2d):
    """A convolution and SiLU or ReLU, channels last: maps (b,h,w,c) to (b,h,w,out)."""

    def __init__(self, dim: int, out_dim: int, kernel_size: int, silu: bool, **named: Any) -> None:
        super().__init__(dim, out_dim, kernel_size, **named)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; on CUDA bias and activation are one pass over memory instead of two."""
        if self.bias is not None and fusing(x):
            y = self._conv_forward(x.permute(0, 3, 1, 2), self.weight, None).permute(0, 2, 3, 1)
            out: Tensor = bias_act(y, self.bias, self.silu)
            return out
        y = super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.silu(y) if self.silu else F.relu(y)


def add_shuffled(x: Tensor, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
    """Add (left_0, right_0, left_1, ...) to x along the last axis: ShuffleNet's shuffle with two groups.

    scale: a factor of right an image, (b,1,...), for stochastic depth.
    """
    if fusing(x) and left.dtype == right.dtype and torch.promote_types(x.dtype, left.dtype) == x.dtype:
        out: Tensor = add_shuffled_op(x, left, right, scale)
        return out
    right = right if scale is None else right * scale
    return x + torch.stack((left, right), dim=-1).flatten(-2)


def _triton() -> Any:
    from bench.ops.backends.triton import norm

    return norm


@torch.library.custom_op("medbench::norm_gate", mutates_args=())
def norm_gate(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """See `NormGate`."""
    out: Tensor = _triton().norm_gate(x, weight, bias, gate, eps, dtype)
    return out


@torch.library.custom_op("medbench::norm_gate_backward", mutates_args=())
def norm_gate_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, plus: Tensor | None, eps: float,
    again: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (with plus added), weight, bias and gate (empty without one); the output again, or empty."""
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    found = _triton().norm_gate_backward(grad, x, weight, bias, gate, plus, eps, again)
    return found


@torch.library.custom_op("medbench::bias_act", mutates_args=())
def bias_act(x: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """See `ConvAct`."""
    out: Tensor = _triton().bias_act(x, bias, silu)
    return out


@torch.library.custom_op("medbench::bias_act_backward", mutates_args=())
def bias_act_backward(grad: Tensor, x: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    grads: tuple[Tensor, Tensor] = _triton().bias_act_backward(grad, x, bias, silu)
    return grads


@torch.library.custom_op("medbench::add_shuffled", mutates_args=())
def add_shuffled_op(x: Tensor, left: Tensor, right: Tensor, scale: Tensor | None) -> Tensor:
    """See `add_shuffled`."""
    out: Tensor = _triton().add_shuffled(x, left, right, scale)
    return out


@torch.library.custom_op("medbench::add_shuffled_backward", mutates_args=())
def add_shuffled_backward(grad: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of left and right."""
    grads: tuple[Tensor, Tensor] = _triton().add_shuffled_backward(grad, scale, dtype)
    return grads


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def _norm_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *grads, grad_gate, _ = norm_gate_backward(grad, *ctx.saved_tensors, None, ctx.eps, False)
    return *grads, None if ctx.saved_tensors[3] is None else grad_gate, None, None


def _bias_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _shuffle_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[1].dtype
    ctx.save_for_backward(inputs[3])


def _shuffle_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, *add_shuffled_backward(grad, ctx.saved_tensors[0], ctx.dtype), None


norm_gate.register_autograd(_norm_autograd, setup_context=_norm_setup)
bias_act.register_autograd(
    lambda ctx, grad: (*bias_act_backward(grad, *ctx.saved_tensors, ctx.silu), None), setup_context=_bias_setup
)
add_shuffled_op.register_autograd(_shuffle_autograd, setup_context=_shuffle_setup)

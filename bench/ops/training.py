"""Parts of a block for training on CUDA that keep little for their backward: what is cheap is computed again.

Each is one autograd function over the operators of `fused.py` and `library.py` and PyTorch's products and convolutions;
its backward is written out. Kept are a part's input, what convolutions and the scan give, and the scan's carry. The
modules that hold the parameters do the same one after the other, with PyTorch's autograd, wherever these do not run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.ops import library
from bench.ops.fused import bias_act, bias_act_backward, fusing, narrow, norm_gate, norm_gate_backward

__all__ = ["add_dropped", "conv_branch", "halves", "mlp_branch", "scan_branch", "trains"]


def trains(module: nn.Module, x: Tensor) -> bool:
    """Whether a part in training may be run by a function of this file."""
    return module.training and torch.is_grad_enabled() and fusing(x) and x.dim() == 4 and x.numel() > 0


def _triton_batch() -> Any:
    from bench.ops.backends.triton import batch

    return batch


def _triton_norm() -> Any:
    from bench.ops.backends.triton import norm

    return norm


@torch.library.custom_op("medbench::batch_norm", mutates_args=("running_mean", "running_var"))
def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, left_out: Tensor | None,
    momentum: float, eps: float, relu: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Batch norm over all but the last axis, and ReLU; also mean and 1 / deviation, (2,d).

    left_out: a bias of the convolution before, which was not added: it changes only the running mean.
    """
    found: tuple[Tensor, Tensor] = _triton_batch().batch_norm(
        x, weight, bias, running_mean, running_var, left_out, momentum, eps, relu, dtype
    )
    return found


@torch.library.custom_op("medbench::batch_norm_backward", mutates_args=())
def batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, and the output again."""
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _triton_batch().batch_norm_backward(
        grad, x, weight, bias, stats, relu
    )
    return found


@torch.library.custom_op("medbench::add_halves", mutates_args=())
def add_halves(grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add (left, right), side by side along the last axis, to grad."""
    out: Tensor = _triton_norm().add_halves(grad, left, right)
    return out


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right = x.chunk(2, dim=-1)
        return x.view_as(x), left, right

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
        added: Tensor = add_halves(grad, left, right)
        return added


def halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and the two halves of its last axis, whose gradients are added in one pass."""
    found: tuple[Tensor, Tensor, Tensor] = _Halves.apply(x)
    return found


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _convolve(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    y: Tensor = F.conv2d(x.permute(0, 3, 1, 2), weight, None, padding=padding, groups=groups)
    return y.permute(0, 2, 3, 1)


def _convolve_back(grad: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int, mask: list[bool]) -> list[Any]:
    """Gradients of x and weight, of which mask says which are wanted."""
    grads = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight, None, [1, 1], [padding, padding], [1, 1], False,
        [0, 0], groups, [*mask, False],
    )  # fmt: skip
    return [grads[0].permute(0, 2, 3, 1) if mask[0] else None, grads[1]]


# ---- batch norms and convolutions ----------------------------------------------------------------------------------


class _ConvBranch(torch.autograd.Function):
    """x, three batch norms, and of each (weight, bias, the convolution's weight and bias)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norms: tuple[nn.BatchNorm2d, ...], *parameters: Tensor) -> Tensor:
        dtype = narrow(x)
        kept, weights = [x], []
        y, left_out = x, None
        for i, norm in enumerate(norms):
            weight, bias, kernel, conv_bias = parameters[4 * i : 4 * i + 4]
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            a, stats = batch_norm(
                y, weight, bias, norm.running_mean, norm.running_var, left_out, norm.momentum, norm.eps, i > 0, dtype
            )
            kernel = kernel.to(dtype)
            y = F.linear(a, kernel.flatten(1)) if i == 2 else _convolve(a, kernel, 1, 1)
            left_out = conv_bias
            kept += [stats, y]
            weights += [weight, bias, kernel]
        ctx.save_for_backward(*kept, *weights, parameters[-1])
        ctx.shapes = [(p.shape, p.dtype) for p in parameters]
        out: Tensor = bias_act(y, parameters[-1], False)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, stats, weights, last_bias = saved[0:7:2], saved[1:7:2], saved[7:-1], saved[-1]
        grad, grad_bias = bias_act_backward(grad, inputs[3], last_bias, False)
        found: list[Any] = []
        for i in (2, 1, 0):
            weight, bias, kernel = weights[3 * i : 3 * i + 3]
            if i == 2:
                back = F.linear(grad, kernel.flatten(1).t())
            else:
                like = torch.empty_like(inputs[i], dtype=grad.dtype)  # only its shape and layout are looked at
                back = _convolve_back(grad, like, kernel, 1, 1, [True, False])[0]
            before, grad_weight, grad_shift, a = batch_norm_backward(back, inputs[i], weight, bias, stats[i], i > 0)
            if i == 2:
                grad_kernel = (_flat(grad).t() @ _flat(a)).view(kernel.shape)
            else:
                grad_kernel = _convolve_back(grad, a, kernel, 1, 1, [False, True])[1]
            shape, dtype = ctx.shapes[4 * i + 3]
            # A bias before a batch norm changes nothing: its gradient is zero, where PyTorch finds rounding errors.
            conv_bias = grad_bias if i == 2 else grad_bias.new_zeros(shape, dtype=dtype)
            found = [grad_weight, grad_shift, grad_kernel.to(ctx.shapes[4 * i + 2][1]), conv_bias, *found]
            grad = before
        return grad, None, *found


def conv_branch(x: Tensor, norms: tuple[nn.BatchNorm2d, ...], convs: tuple[nn.Conv2d, ...]) -> Tensor | None:
    """Batch norm, 3x3, batch norm, ReLU, 3x3, batch norm, ReLU, 1x1, ReLU in training, of x (b,h,w,c).

    None where the norms are not those of a plain training.
    """
    plain = all(type(n) is nn.BatchNorm2d and n.training and n.affine and n.momentum is not None for n in norms)
    if not plain or any(n.running_mean is None for n in norms) or x.numel() == x.shape[-1]:
        return None
    parameters: list[Any] = []
    for norm, conv in zip(norms, convs, strict=True):
        parameters += [norm.weight, norm.bias, conv.weight, conv.bias]
    out: Tensor = _ConvBranch.apply(x, norms, *parameters)
    return out


# ---- norm, projection, depthwise convolution, scan, norm with gate, projection ---------------------------------------


class ScanBranch(NamedTuple):
    """What a branch with a scan is made of, besides its parameters."""

    eps: float  # of the norm before
    out_eps: float  # of the norm after the scan
    inner: int  # channels of convolution and scan
    directions: list[int]
    dtype: torch.dtype  # of products


class _ScanBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: ScanBranch, x: Tensor, norm_w: Tensor, norm_b: Tensor, in_w: Tensor, conv_w: Tensor,
        conv_b: Tensor, proj_w: Tensor, dt_w: Tensor, dt_b: Tensor, A_log: Tensor, D: Tensor, out_norm_w: Tensor,
        out_norm_b: Tensor, out_w: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        inner = how.inner
        ctx.set_materialize_grads(False)
        ctx.types = in_w.dtype, conv_w.dtype, proj_w.dtype, out_w.dtype, A_log.dtype
        in_w, conv_w, out_w = (w.to(how.dtype) for w in (in_w, conv_w, out_w))
        proj_w = proj_w.to(how.dtype)
        A = -A_log.float().exp()
        h = norm_gate(x, norm_w, norm_b, None, how.eps, how.dtype)
        c = _convolve(F.linear(h, in_w[:inner]), conv_w, 1, inner)
        u = bias_act(c, conv_b, True)
        proj = F.linear(u, proj_w.flatten(0, 1)).view(*x.shape[:3], *proj_w.shape[:2])
        y, carry = library.cross_scan(u, proj, dt_w, dt_b, A, D, how.directions, "triton", True)
        z = F.linear(h, in_w[inner:]) if len(in_w) > inner else None
        o = norm_gate(y, out_norm_w, out_norm_b, z, how.out_eps, how.dtype)
        ctx.how = how
        ctx.save_for_backward(
            x, c, proj, y, carry, norm_w, norm_b, in_w, conv_w, conv_b, proj_w, dt_w, dt_b, A, D, out_norm_w,
            out_norm_b, out_w,
        )  # fmt: skip
        return x.view_as(x), F.linear(o, out_w)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, plus: Tensor | None, grad: Tensor) -> tuple[Any, ...]:
        (x, c, proj, y, carry, norm_w, norm_b, in_w, conv_w, conv_b, proj_w, dt_w, dt_b, A, D, out_norm_w,
         out_norm_b, out_w) = ctx.saved_tensors  # fmt: skip
        how, inner, gated = ctx.how, ctx.how.inner, len(in_w) > ctx.how.inner
        in_type, conv_type, proj_type, out_type, a_type = ctx.types
        h = norm_gate(x, norm_w, norm_b, None, how.eps, how.dtype)
        z = F.linear(h, in_w[inner:]) if gated else None
        grad = grad.contiguous()
        gy, g_out_norm_w, g_out_norm_b, gz, o = norm_gate_backward(
            F.linear(grad, out_w.t()), y, out_norm_w, out_norm_b, z, None, how.out_eps, True
        )
        g_out_w = _flat(grad).t() @ _flat(o)
        del o, z
        u = bias_act(c, conv_b, True)
        gu, g_proj, g_dt_w, g_dt_b, g_a, g_d = library.cross_scan_backward(
            gy, u, proj, dt_w, dt_b, A, D, carry, how.directions, "triton"
        )
        rows = g_proj.view(-1, proj_w.shape[0] * proj_w.shape[1])
        _flat(gu).addmm_(rows, proj_w.flatten(0, 1))
        g_proj_w = (rows.t() @ _flat(u)).view(proj_w.shape)
        del gy, g_proj, rows, u
        gc, g_conv_b = bias_act_backward(gu, c, conv_b, True)
        del gu
        ga, g_conv_w = _convolve_back(gc, F.linear(h, in_w[:inner]), conv_w, 1, inner, [True, True])
        del gc
        ga = _flat(ga)
        gh = ga @ in_w[:inner]
        g_in_w = ga.t() @ _flat(h)
        if gated:
            gh.addmm_(_flat(gz), in_w[inner:])
            g_in_w = torch.cat((g_in_w, _flat(gz).t() @ _flat(h)))
        gx, g_norm_w, g_norm_b, _, _ = norm_gate_backward(
            gh.view(h.shape), x, norm_w, norm_b, None, plus, how.eps, False
        )
        return (
            None, gx, g_norm_w, g_norm_b, g_in_w.to(in_type), g_conv_w.to(conv_type), g_conv_b, g_proj_w.to(proj_type),
            g_dt_w, g_dt_b, (g_a * A).to(a_type), g_d, g_out_norm_w, g_out_norm_b, g_out_w.to(out_type),
        )  # fmt: skip


def scan_branch(
    x: Tensor, norm: nn.LayerNorm, in_proj: nn.Linear, conv: nn.Conv2d, scan: nn.Module, out_norm: nn.LayerNorm,
    out_proj: nn.Linear,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """norm, in_proj, conv with SiLU, scan, out_norm (with a gate where in_proj is that wide), out_proj of x (b,h,w,c).

    Also returns x, first: what is made of it there adds its gradient in the pass of the norm's.
    """
    inner = conv.weight.shape[0]
    how = ScanBranch(norm.eps, out_norm.eps, inner, list(scan.directions), narrow(x))  # type: ignore[arg-type]
    bias = conv.weight.new_zeros(inner) if conv.bias is None else conv.bias
    dt_w, dt_b, D = (t.float() for t in (scan.dt_proj_weight, scan.dt_proj_bias, scan.D))  # type: ignore[operator]
    found: tuple[Tensor, Tensor] = _ScanBranch.apply(
        how, x, norm.weight, norm.bias, in_proj.weight, conv.weight, bias, scan.x_proj_weight, dt_w, dt_b,
        scan.A_log, D, out_norm.weight, out_norm.bias, out_proj.weight,
    )  # fmt: skip
    return found


# ---- norm and MLP ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("medbench::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x through GELU, its sum over rows, and the GELU of x again."""
    found: tuple[Tensor, Tensor, Tensor] = _triton_norm().gelu_backward(grad, x)
    return found


class _MlpBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, eps: float, x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = narrow(x)
        ctx.eps, ctx.types = eps, [t.dtype for t in (w1, b1, w2, b2)]
        ctx.set_materialize_grads(False)
        w1, w2 = w1.to(dtype), w2.to(dtype)
        a = F.linear(norm_gate(x, norm_w, norm_b, None, eps, dtype), w1, b1.to(dtype))
        ctx.save_for_backward(x, a, norm_w, norm_b, w1, w2)
        return x.view_as(x), F.linear(F.gelu(a), w2, b2.to(dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, plus: Tensor | None, grad: Tensor) -> tuple[Any, ...]:
        x, a, norm_w, norm_b, w1, w2 = ctx.saved_tensors
        grad = grad.contiguous()
        rows = _flat(grad)
        ga, g_b1, again = gelu_backward(F.linear(grad, w2.t()), a)
        g_w2, g_b2 = rows.t() @ _flat(again), rows.sum(0, dtype=ctx.types[3])
        del again
        gx, g_norm_w, g_norm_b, _, h = norm_gate_backward(
            F.linear(ga, w1.t()), x, norm_w, norm_b, None, plus, ctx.eps, True
        )
        g_w1 = _flat(ga).t() @ _flat(h)
        t1, t2, t3, _ = ctx.types
        return None, gx, g_norm_w, g_norm_b, g_w1.to(t1), g_b1.to(t2), g_w2.to(t3), g_b2


def mlp_branch(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return x itself, and norm, fc1, GELU and fc2 of x; see `scan_branch`."""
    found: tuple[Tensor, Tensor] = _MlpBranch.apply(
        norm.eps, x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias
    )
    return found


@torch.library.custom_op("medbench::add_scaled", mutates_args=())
def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Add y, times a factor an image, to x."""
    out: Tensor = _triton_norm().add_scaled(x, y, scale)
    return out


@torch.library.custom_op("medbench::scaled", mutates_args=())
def scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale x, in dtype, with a factor an image."""
    out: Tensor = _triton_norm().scaled(x, scale, dtype)
    return out


def _scaled_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[1].dtype
    ctx.save_for_backward(inputs[2])


add_scaled.register_autograd(
    lambda ctx, grad: (grad, scaled(grad, ctx.saved_tensors[0], ctx.dtype), None), setup_context=_scaled_setup
)


def add_dropped(x: Tensor, y: Tensor, drop_path: nn.Module) -> Tensor:
    """Add drop_path(y), timm's, to x in one pass over memory."""
    if not drop_path.training or not getattr(drop_path, "drop_prob", 0.0):
        return x + drop_path(y)  # type: ignore[no-any-return]
    out: Tensor = add_scaled(x, y, drop_path(y.new_ones(len(y), *(1,) * (y.dim() - 1))))
    return out

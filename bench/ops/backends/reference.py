"""The selective scan in plain PyTorch: the readable specification and the fall-back on every device.

Recurrence (Mamba, arXiv 2312.00752, eq. 2 with zero-order hold for A and Euler for B; h_0 = 0):

    s_t = softplus(delta_t + bias)        or delta_t + bias without softplus
    h_t = exp(s_t A) h_{t-1} + s_t B_t u_t
    y_t = <C_t, h_t> + D u_t

The sequence is walked in chunks: exponentials, inputs and read-outs of a chunk are whole-tensor operations, and only
the update itself is a Python loop. Memory is linear in the length; the forward keeps one state a chunk, from which the
backward recomputes the others. States and sums are float32, or float64 for float64 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.problems import ImageScan, SequenceScan

NAME = "reference"
CHUNK = 64  # steps: the states of one chunk exist together, b * d * CHUNK * n numbers
SOFTPLUS_THRESHOLD = 20.0  # torch's softplus returns its argument unchanged above this


def unavailable(device_type: str) -> str | None:
    """Say why the backend cannot run on a device; PyTorch runs everywhere."""
    return None


# ---- one chunk -----------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """The inputs of T steps, time first. Shapes: u, raw, step (T,b,g,c); B, C (T,b,g,n); decay (T,b,g,c,n)."""

    u: Tensor
    raw: Tensor  # step size before softplus, bias added
    step: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor


class _Problem(NamedTuple):
    """A scan with its channels split into groups: u, delta (b,g,c,l); A (g,c,n); B, C (b,g,n,l); D, bias (g,c)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.u.dtype == torch.float64 else torch.float32

    @property
    def state_shape(self) -> tuple[int, ...]:
        b, g, c, _ = self.u.shape
        return (b, g, c, self.A.shape[-1])

    def chunk(self, start: int) -> _Chunk:
        """The steps start .. start + CHUNK, time first and in the accumulation type."""

        def time_first(t: Tensor) -> Tensor:
            return t[..., start : start + CHUNK].permute(3, 0, 1, 2).to(self.dtype)

        u, raw = time_first(self.u), time_first(self.delta)
        if self.bias is not None:
            raw = raw + self.bias
        step = F.softplus(raw, threshold=SOFTPLUS_THRESHOLD) if self.softplus else raw
        decay = torch.exp(step.unsqueeze(-1) * self.A)
        return _Chunk(u, raw, step, time_first(self.B), time_first(self.C), decay)


def _states(chunk: _Chunk, h: Tensor) -> Tensor:
    """All states of a chunk, (T+1,b,g,c,n); the first is the state before it."""
    states = h.new_empty((chunk.u.shape[0] + 1, *h.shape))
    states[0] = h
    inputs = (chunk.step * chunk.u).unsqueeze(-1) * chunk.B.unsqueeze(-2)
    for t, (decay, value) in enumerate(zip(chunk.decay, inputs, strict=True)):
        torch.addcmul(value, decay, states[t], out=states[t + 1])
    return states


def _forward(p: _Problem, save: bool) -> tuple[Tensor, Tensor]:
    """Run the scan. Returns the output (b,g,c,l), in the type of u, and the carries (chunks,b,g,c,n)."""
    length = p.u.shape[-1]
    h = p.u.new_zeros(p.state_shape, dtype=p.dtype)
    out = torch.empty(p.u.shape, dtype=p.u.dtype, device=p.u.device)
    carry = h.new_empty((-(-length // CHUNK) if save else 0, *h.shape))
    for i, start in enumerate(range(0, length, CHUNK)):
        if save:
            carry[i] = h
        chunk = p.chunk(start)
        states = _states(chunk, h)
        y = torch.einsum("tbgcn,tbgn->tbgc", states[1:], chunk.C)
        if p.D is not None:
            y = y + p.D * chunk.u
        out[..., start : start + CHUNK] = y.permute(1, 2, 3, 0)
        h = states[-1]
    return out, carry


class _Grads(NamedTuple):
    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


def _backward(p: _Problem, grad_out: Tensor, carry: Tensor) -> _Grads:
    """Gradients of sum(out * grad_out): u, delta, B, C in their own types, parameters in the accumulation type.

    With q_t the gradient with respect to h_t: q_t = C_t grad_t + exp(s_{t+1} A) q_{t+1}. Everything else is local:
    dB_t = sum_c q s u, dC_t = sum_c grad h, d(s A) = q h_{t-1} exp(s A).
    """
    grads = _Grads(
        u=torch.empty_like(p.u),
        delta=torch.empty_like(p.delta),
        A=torch.zeros_like(p.A),
        B=torch.empty_like(p.B),
        C=torch.empty_like(p.C),
        D=p.A.new_zeros(p.A.shape[:2]),
        bias=p.A.new_zeros(p.A.shape[:2]),
    )
    q = p.u.new_zeros(p.state_shape, dtype=p.dtype)  # exp(s_{t+1} A) q_{t+1} on entry to step t
    for i in range(carry.shape[0] - 1, -1, -1):
        at = slice(i * CHUNK, (i + 1) * CHUNK)
        chunk = p.chunk(at.start)
        states = _states(chunk, carry[i])
        grad = grad_out[..., at].permute(3, 0, 1, 2).to(p.dtype)
        adjoint = grad.unsqueeze(-1) * chunk.C.unsqueeze(-2)  # becomes q_t, (T,b,g,c,n)
        for t in range(adjoint.shape[0] - 1, -1, -1):
            adjoint[t] += q
            torch.mul(chunk.decay[t], adjoint[t], out=q)
        through_decay = adjoint * chunk.decay * states[:-1]  # gradient with respect to s_t A
        through_input = torch.einsum("tbgcn,tbgn->tbgc", adjoint, chunk.B)  # ... to s_t u_t
        grad_step = torch.einsum("tbgcn,gcn->tbgc", through_decay, p.A) + through_input * chunk.u
        if p.softplus:
            grad_step = torch.where(chunk.raw > SOFTPLUS_THRESHOLD, grad_step, grad_step * torch.sigmoid(chunk.raw))
        grad_u = through_input * chunk.step
        if p.D is not None:
            grad_u = grad_u + p.D * grad
        grads.u[..., at] = grad_u.permute(1, 2, 3, 0)
        grads.delta[..., at] = grad_step.permute(1, 2, 3, 0)
        grads.A.add_(torch.einsum("tbgcn,tbgc->gcn", through_decay, chunk.step))
        grads.B[..., at] = torch.einsum("tbgcn,tbgc->bgnt", adjoint, chunk.step * chunk.u)
        grads.C[..., at] = torch.einsum("tbgcn,tbgc->bgnt", states[1:], grad)
        grads.D.add_((grad * chunk.u).sum((0, 1)))
        grads.bias.add_(grad_step.sum((0, 1)))
    return grads


# ---- the (b,d,l) form ----------------------------------------------------------------------------------------------


def _grouped(scan: SequenceScan) -> _Problem:
    u, delta, A, B, C, D, bias, softplus = scan
    g = B.shape[1]

    def split(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.unflatten(0, (g, -1))

    return _Problem(u.unflatten(1, (g, -1)), delta.unflatten(1, (g, -1)), A.unflatten(0, (g, -1)), B, C, split(D),
                    split(bias), softplus)  # fmt: skip


def selective_scan_carry_shape(b: int, d: int, length: int, n: int, g: int) -> tuple[int, ...]:
    """Shape of the chunk-boundary states kept for the backward."""
    return ((length + CHUNK - 1) // CHUNK, b, g, d // g, n)


def selective_scan_forward(scan: SequenceScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan sequences (b,d,l); see `bench.ops.selective_scan`. Returns the output and the carries."""
    out, carry = _forward(_grouped(scan), save)
    return out.flatten(1, 2), carry


def selective_scan_backward(
    grad_out: Tensor, scan: SequenceScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to u, delta, A, B, C, D, delta_bias, in this order."""
    g = _backward(_grouped(scan), grad_out.unflatten(1, (scan.B.shape[1], -1)), carry)
    grad_d = None if scan.D is None else g.D.flatten()
    grad_bias = None if scan.delta_bias is None else g.bias.flatten()
    return g.u.flatten(1, 2), g.delta.flatten(1, 2), g.A.flatten(0, 1), g.B, g.C, grad_d, grad_bias


# ---- the four-direction form ---------------------------------------------------------------------------------------


def to_sequences(image: Tensor, directions: Sequence[int]) -> Tensor:
    """Read an image (b,h,w,c), or (b,h,w,k,c) with one slice a direction, as sequences (b,k,c,h*w).

    Directions: 0 along rows, 1 along columns, 2 and 3 the same two backwards.
    """
    sequences = []
    for i, direction in enumerate(directions):
        one = image if image.dim() == 4 else image[..., i, :]
        one = one.transpose(1, 2) if direction % 2 else one
        sequence = one.flatten(1, 2).transpose(1, 2)
        sequences.append(sequence.flip(-1) if direction >= 2 else sequence)
    return torch.stack(sequences, 1)


def to_images(sequences: Tensor, directions: Sequence[int], h: int, w: int) -> Tensor:
    """Undo `to_sequences`: (b,k,c,h*w) to (b,h,w,k,c)."""
    images = []
    for i, direction in enumerate(directions):
        sequence = sequences[:, i].flip(-1) if direction >= 2 else sequences[:, i]
        if direction % 2:
            images.append(sequence.unflatten(-1, (w, h)).permute(0, 3, 2, 1))
        else:
            images.append(sequence.unflatten(-1, (h, w)).permute(0, 2, 3, 1))
    return torch.stack(images, 3)


def _cross_problem(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, directions: Sequence[int]
) -> _Problem:
    """The four directions as four groups of one scan; here, and only here, the sequences are written out."""
    r, n = dt_weight.shape[-1], A.shape[-1]
    low_rank, B, C = to_sequences(proj, directions).split([r, n, n], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low_rank.to(A.dtype), dt_weight)
    return _Problem(to_sequences(x, directions), delta, A, B, C, D, dt_bias, True)


def cross_scan_carry_shape(b: int, h: int, w: int, d: int, n: int, r: int, k: int) -> tuple[int, ...]:
    """Shape of the chunk-boundary states kept for the backward."""
    return ((h * w + CHUNK - 1) // CHUNK, b, k, d, n)


def cross_scan_forward(scan: ImageScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan an image (b,h,w,d) in every direction and add the results; see `bench.ops.cross_selective_scan`."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, _ = x.shape
    problem = _cross_problem(x.to(A.dtype), proj, dt_weight, dt_bias, A, D, directions)
    out, carry = _forward(problem, save)
    return to_images(out, directions, h, w).sum(3).to(x.dtype), carry


def cross_scan_backward(
    grad_y: Tensor, scan: ImageScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, proj, dt_weight, dt_bias, A, D, in this order."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    _, h, w, _ = x.shape
    wide = proj.to(A.dtype)  # gradients of B and C must not be rounded before they are complete
    problem = _cross_problem(x.to(A.dtype), wide, dt_weight, dt_bias, A, D, directions)
    g = _backward(problem, to_sequences(grad_y, directions), carry)
    grad_x = to_images(g.u, directions, h, w).sum(3).to(x.dtype)
    grad_low_rank = torch.einsum("bkdl,kdr->bkrl", g.delta, dt_weight)
    grad_proj = to_images(torch.cat([grad_low_rank, g.B, g.C], 2), directions, h, w).to(proj.dtype)
    low_rank = to_sequences(wide[..., : dt_weight.shape[-1]], directions)
    grad_dt_weight = torch.einsum("bkdl,bkrl->kdr", g.delta, low_rank)
    return grad_x, grad_proj.contiguous(), grad_dt_weight, g.bias, g.A, g.D

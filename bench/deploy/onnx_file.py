"""Networks as ONNX of standard operators, the selective scan included.

What is parallel in a scan (projections, step sizes, decays, read-outs) becomes tensor operations; the recurrence
h_t = a_t h_{t-1} + x_t itself becomes ONNX's operator Scan, whose body is a product and a sum: the same sums in the
same order as ours, three nodes at any length, and no exponential is ever divided by another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import BenchError
from bench.ops.backends.reference import SOFTPLUS_THRESHOLD, to_images, to_sequences
from bench.record.files import replacing

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
DOMAIN = "medbench"


class OnnxError(BenchError, ValueError):
    """A network cannot be written as ONNX; the message says why and what to do."""


def _recurrence(start: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    """All states (l, ...) of h_t = decay_t h_{t-1} + value_t after ``start`` (...); a mark that becomes ONNX's Scan."""
    found: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Recurrence", (start, decay, value), dtype=value.dtype, shape=value.shape, version=1
    )
    return found


def _scanned(u: Tensor, raw: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, softplus: bool) -> Tensor:
    """The scan of groups: u, raw (b,g,c,l); A (g,c,n); B, C (b,g,n,l); D (g,c). Returns (b,g,c,l)."""
    step = F.softplus(raw, threshold=SOFTPLUS_THRESHOLD) if softplus else raw
    inputs = (step * u).permute(3, 0, 1, 2).unsqueeze(-1) * B.permute(3, 0, 1, 2).unsqueeze(3)  # (l,b,g,c,n)
    decay = torch.exp(step.permute(3, 0, 1, 2).unsqueeze(-1) * A)
    states = _recurrence(torch.zeros_like(inputs[0]), decay, inputs)
    out = (states * C.permute(3, 0, 1, 2).unsqueeze(3)).sum(-1).permute(1, 2, 3, 0)
    return out if D is None else out + D.unsqueeze(-1) * u


def _cross_scan(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, directions: list[int], *_: object
) -> tuple[Tensor, Tensor]:
    rank, states = dt_weight.shape[-1], A.shape[-1]
    low_rank, B, C = to_sequences(proj, directions).split([rank, states, states], dim=2)
    raw = torch.matmul(dt_weight, low_rank) + dt_bias.unsqueeze(-1)
    out = _scanned(to_sequences(x, directions), raw, A, B, C, D, True)
    return to_images(out, directions, *x.shape[1:3]).sum(3), x.new_empty(0)


def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool,
    *_: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    groups = (B.shape[1], -1)
    raw = delta if bias is None else delta + bias.unsqueeze(-1)
    skip = None if D is None else D.unflatten(0, groups)
    out = _scanned(u.unflatten(1, groups), raw.unflatten(1, groups), A.unflatten(0, groups), B, C, skip, softplus)
    return out.flatten(1, 2), u.new_empty(0)


def write_onnx(model: nn.Module, shape: tuple[int, int, int], path: Path) -> int:
    """Write a network as one ONNX file: ``images`` float32 (N, C, H, W), any N, to ``logits`` float32 (N, K).

    Returns:
        The number of nodes.

    Raises:
        OnnxError: onnx or onnxscript is not installed, or an operation of the network has no ONNX form.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxError(f"ONNX needs {error.name}: pip install 'medbench[onnx]'") from None
    example = torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
            ours = torch.ops.medbench
            standard = {ours.cross_scan.default: _cross_scan, ours.selective_scan.default: _selective_scan}
            program = program.run_decompositions({**torch.export.default_decompositions(), **standard})
            made = torch.onnx.export(
                program, (), input_names=["images"], output_names=["logits"], opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # whatever the exporter meets
        raise OnnxError(f"the network has no ONNX form: {str(error).strip().splitlines()[0]}") from error
    assert made is not None
    proto = made.model_proto
    _with_scans(proto)
    onnx.checker.check_model(proto)
    with replacing(path) as part:
        onnx.save(proto, str(part))
    return len(proto.graph.node)


def _with_scans(proto: ModelProto) -> None:
    """Put ONNX's Scan in the place of every marked recurrence."""
    from onnx import TensorProto, helper

    nodes = []
    for number, node in enumerate(proto.graph.node):
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        names = [f"{name}_{number}" for name in ("h", "decay", "value", "kept", "after", "state")]
        h, decay, value, kept, after, state = names
        infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names}
        steps = (("Mul", [decay, h], [kept]), ("Add", [kept, value], [after]), ("Identity", [after], [state]))
        body = helper.make_graph(
            [helper.make_node(*step) for step in steps], f"recurrence_{number}",
            [infos[h], infos[decay], infos[value]], [infos[after], infos[state]],
        )  # fmt: skip
        outputs = [f"last_{number}", node.output[0]]
        nodes.append(helper.make_node("Scan", list(node.input), outputs, body=body, num_scan_inputs=2))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    standard = [opset for opset in proto.opset_import if opset.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)

"""The operators inside PyTorch's machinery: opcheck, compile, export, autocast, FLOP counters, dispatch, messages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bench.ops import backend_report, cross_selective_scan, flops, fvcore_handles, selective_scan, use_backend

_spec = importlib.util.spec_from_file_location("scan_cases", Path(__file__).with_name("scan_cases.py"))
assert _spec and _spec.loader
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

BACKENDS = [name for name, usable, _ in backend_report("cpu") if usable and name in ("reference", "cpu")]


class Core(nn.Module):
    """The parameters of one block's core."""

    def __init__(self, d: int = 16, n: int = 4, r: int = 2, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend
        for name, value in cases.cross_inputs(1, 1, 1, d, n, r).items():
            if name != "x":
                setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        parameters = {k: getattr(self, k) for k in cases.CROSS_NAMES[1:]}
        return cross_selective_scan(x, **parameters, backend=self.backend)


def operator_arguments(dtype: torch.dtype = torch.float32) -> list:
    p = cases.cross_inputs(1, 1, 1, 6, 3, 2)
    tensors = [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 4, 8)]
    tensors = [t.to(dtype) for t in tensors] + [p[k] for k in ("dt_proj_weight", "dt_bias", "A", "D")]
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("save", [True, False])
def test_opcheck_cross_scan(backend: str, save: bool) -> None:
    torch.library.opcheck(torch.ops.medbench.cross_scan, (*operator_arguments(), [0, 1, 2, 3], backend, save))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck_selective_scan(backend: str, optional: bool) -> None:
    u, delta = torch.randn(2, 4, 9, requires_grad=True), torch.randn(2, 4, 9, requires_grad=True)
    a, b, c = -torch.rand(4, 3), torch.randn(2, 2, 3, 9), torch.randn(2, 2, 3, 9)
    extra = (torch.randn(4, requires_grad=True), torch.randn(4)) if optional else (None, None)
    arguments = (u, delta, a.requires_grad_(), b.requires_grad_(), c, *extra, True, backend, True)
    torch.library.opcheck(torch.ops.medbench.selective_scan, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_fullgraph_equals_eager_forward_and_backward(backend: str) -> None:
    core = Core(backend=backend)
    x = torch.randn(2, 5, 6, 16, requires_grad=True)
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    results = []
    for run in (core, compiled):
        core.zero_grad()
        x.grad = None
        y = run(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in core.parameters())])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-6)


def test_compile_sees_a_change_of_backend() -> None:
    core, x = Core(), torch.randn(1, 3, 3, 16)
    seen: list[str] = []

    def spy(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.extend(str(node.args[-2]) for node in graph.graph.nodes if "cross_scan" in str(node.target))
        return graph

    compiled = torch.compile(core, fullgraph=True, backend=spy)
    for name in BACKENDS:
        with use_backend(name), torch.no_grad():
            compiled(x)
    assert seen == BACKENDS


@pytest.mark.parametrize("strict", [True, False])
def test_export_runs_at_another_batch(strict: bool) -> None:
    core, x = Core().eval(), torch.randn(2, 5, 6, 16)
    program = torch.export.export(
        core, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=64)}}, strict=strict
    )
    other = torch.randn(5, 5, 6, 16)
    torch.testing.assert_close(program.module()(other), core(other))
    save = [node.args[-1] for node in program.graph.nodes if "medbench.cross_scan" in str(node.target)]
    assert save == [False]  # no states are kept for a backward that inference never runs


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_gives_bfloat16_and_keeps_parameters_wide(backend: str) -> None:
    core, x = Core(backend=backend), torch.randn(2, 5, 6, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = core(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in core.parameters())
    assert cases.rel_to_max(y, core(x)) < 0.02
    u = torch.randn(1, 4, 9)
    with torch.autocast("cpu", torch.bfloat16):  # nothing inside may fall to bfloat16: same bits as without
        inside = selective_scan(
            u, u, -torch.ones(4, 3), torch.ones(1, 2, 3, 9), torch.ones(1, 2, 3, 9), backend=backend
        )
    outside = selective_scan(u, u, -torch.ones(4, 3), torch.ones(1, 2, 3, 9), torch.ones(1, 2, 3, 9), backend=backend)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


@pytest.mark.parametrize("backend", BACKENDS)
def test_module_in_half_precision_trains(backend: str) -> None:
    core = Core(backend=backend).to(torch.bfloat16)
    core(torch.randn(1, 3, 3, 16, dtype=torch.bfloat16)).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in core.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_checkpointing_and_missing_carry(backend: str) -> None:
    core, x = Core(backend=backend), torch.randn(1, 9, 9, 16, requires_grad=True)
    (wanted,) = torch.autograd.grad(core(x).sum(), x)
    (got,) = torch.autograd.grad(checkpoint(core, x, use_reentrant=False).sum(), x)
    assert torch.equal(wanted, got)
    arguments = operator_arguments()
    grads = []
    for save in (True, False):
        y = torch.ops.medbench.cross_scan(*arguments, [0, 1, 2, 3], backend, save)[0]
        grads.append(torch.autograd.grad(y.sum(), arguments))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_no_carry_without_gradients() -> None:
    """Inference keeps nothing; the saved bytes of a training step are the inputs and one state a chunk."""
    core, x = Core(), torch.randn(1, 16, 16, 16)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        with torch.no_grad():
            core(x)
        assert not packed
        core(x)
    states_of_all_steps = 4 * 16 * 16 * 16 * 4
    assert packed and max(t.numel() for t in packed) < states_of_all_steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_is_refused_in_words(backend: str) -> None:
    core, x = Core(backend=backend), torch.randn(1, 3, 3, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(core(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend: str) -> None:
    core, x = Core(backend=backend), torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(core(x.permute(0, 2, 3, 1)), core(x.permute(0, 2, 3, 1).contiguous()))
    u = torch.randn(1, 9, 4).mT
    b = torch.randn(1, 2, 9, 3).mT
    a = -torch.rand(3, 4).T
    torch.testing.assert_close(selective_scan(u, u, a, b, b, backend=backend),
                               selective_scan(*(t.contiguous() for t in (u, u, a, b, b)), backend=backend))  # fmt: skip


# ---- counts --------------------------------------------------------------------------------------------------------


def test_counters_agree_with_the_shapes() -> None:
    from fvcore.nn import FlopCountAnalysis

    b, h, w, d, n, r, k = 2, 5, 6, 16, 4, 2, 4
    core, x = Core(d, n, r), torch.randn(b, h, w, d)
    scan = k * (2 * b * d * h * w * n + b * d * h * w) + b * h * w * k * d * r
    linear = b * h * w * d * k * (r + 2 * n)
    with torch.no_grad():
        analysis = FlopCountAnalysis(core, x).set_op_handle(**fvcore_handles())
        assert dict(analysis.by_operator()) == {"linear": linear, "cross_scan": scan}
        assert not [op for op in analysis.unsupported_ops() if not op.startswith("aten::")]
    with FlopCounterMode(display=False) as counter:
        core(x)
    assert counter.get_total_flops() == 2 * (scan + linear)
    with FlopCounterMode(display=False) as counter:
        y = core(x.requires_grad_())
        forward = counter.get_total_flops()
        y.sum().backward()
    backward = k * (8 * b * d * h * w * n + 2 * b * d * h * w) + 3 * b * h * w * k * d * r
    assert counter.get_total_flops() - forward == 2 * (backward + 2 * linear)


def test_selective_scan_counts_with_and_without_d() -> None:
    u, bc, a = torch.randn(2, 4, 9), torch.randn(2, 2, 3, 9), -torch.rand(4, 3)
    for d in (torch.ones(4), None):
        with FlopCounterMode(display=False) as counter:
            selective_scan(u, u, a, bc, bc, d)
        assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 9 * 3 + (2 * 4 * 9 if d is not None else 0))


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_scan_macs_of_medmamba_equal_the_stored_analytic_count(variant: str) -> None:
    entry = json.loads((cases.FIXTURES / "flops.json").read_text())["medmamba"][variant]
    for size, counts in entry["sizes"].items():
        scan = dt = exp = softplus = mul = 0
        side = int(size) // 4
        for depth, dim in zip(entry["config"]["depths"], entry["config"]["dims"], strict=True):
            rank = -(-dim // 32)
            scan += depth * 4 * flops.selective_scan_macs(1, dim, side**2, 16)
            dt += depth * side**2 * 4 * dim * rank
            assert flops.cross_scan_macs(1, side**2, dim, 16, rank, 4) == (
                4 * flops.selective_scan_macs(1, dim, side**2, 16) + side**2 * 4 * dim * rank
            )
            extra = flops.elementwise_counts(1, dim, side**2, 16, 4)
            exp, softplus, mul = (
                exp + depth * extra["exp"],
                softplus + depth * extra["softplus"],
                mul + depth * extra["mul"],
            )
            side //= 2
        wanted = counts["analytic"]
        assert (scan, exp, softplus, mul) == (wanted["scan_mac"], wanted["scan_exp"], wanted["softplus"],
                                              wanted["scan_extra_mul"])  # fmt: skip
        if "analytic_by_layer" in counts:
            assert dt == counts["analytic_by_layer"]["dt_proj"]


# ---- dispatch ------------------------------------------------------------------------------------------------------


def test_backend_can_be_forced_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("reference"):
        assert backend_report("cpu")[0][:2] == ("reference", True)
    monkeypatch.setenv("MEDBENCH_SCAN_BACKEND", "reference")
    name, usable, reason = backend_report("cpu")[0]
    assert (name, usable) == ("reference", True) and "MEDBENCH_SCAN_BACKEND" in reason
    monkeypatch.setenv("MEDBENCH_SCAN_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"unknown scan backend 'fast'; the backends are .*reference"):
        Core()(torch.randn(1, 2, 2, 16))


def test_unusable_backend_says_why() -> None:
    with pytest.raises(ValueError, match=r"scan backend 'mamba-ssm' .*cannot run on cpu: "):
        Core(backend="mamba-ssm")(torch.randn(1, 2, 2, 16))
    report = {name: (usable, reason) for name, usable, reason in backend_report("cpu")}
    assert set(report) == {"reference", "cpu", "triton", "mamba-ssm"}
    assert all(reason for _, reason in report.values())


@pytest.mark.parametrize(("change", "message"), [
    ({"x": torch.randn(3, 3, 16)}, r"x must be \(b,h,w,d\), not \(3, 3, 16\)"),
    ({"D": torch.randn(4, 15)}, r"D must be \(4, 16\), not \(4, 15\)"),
    ({"x_proj_weight": torch.randn(4, 9, 16)}, r"x_proj_weight must be \(4, 10, 16\)"),
    ({"directions": (0, 1, 2, 4)}, "directions are among 0, 1, 2, 3"),
])  # fmt: skip
def test_wrong_shapes_are_named(change: dict, message: str) -> None:
    arguments = cases.cross_inputs(1, 3, 3, 16, 4, 2) | change
    with pytest.raises(ValueError, match=message):
        cross_selective_scan(**arguments)


def test_groups_must_divide_channels() -> None:
    u, bc = torch.randn(1, 5, 3), torch.randn(1, 2, 4, 3)
    with pytest.raises(ValueError, match="2 groups do not divide 5 channels"):
        selective_scan(u, u, -torch.ones(5, 4), bc, bc)

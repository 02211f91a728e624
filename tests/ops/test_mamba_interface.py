"""mamba_ssm's signature against the stored float64 fixtures, and code that imports that package."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.ops import backend_report, selective_scan_fn

_spec = importlib.util.spec_from_file_location("scan_cases", Path(__file__).with_name("scan_cases.py"))
assert _spec and _spec.loader
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

BACKENDS = [name for name, usable, _ in backend_report("cpu") if usable and name in ("reference", "cpu")]
if torch.cuda.is_available():
    BACKENDS.append("triton")


def device(backend: str) -> str:
    return "cuda" if backend == "triton" else "cpu"


def test_signature_is_that_of_mamba_ssm() -> None:
    names = list(inspect.signature(selective_scan_fn).parameters)
    wanted = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state"]
    assert names[: len(wanted)] == wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", cases.case_names())
def test_fixture_with_last_state(name: str, backend: str) -> None:
    case = {k: t.to(device(backend)) for k, t in cases.load_case(name).items()}
    inputs = {k: case[k].clone().requires_grad_() for k in cases.INPUTS if k in case}
    softplus = bool(case["delta_softplus"])
    out, state = selective_scan_fn(**inputs, delta_softplus=softplus, return_last_state=True, backend=backend)
    out.backward(case["grad_out"])
    near_zero = name.startswith("x_near0")
    assert cases.rel_to_max(out, case["out"]) <= (3e-5 if near_zero else 2e-6)
    assert state.shape == case["last_state"].shape and not state.requires_grad
    assert cases.rel_to_max(state, case["last_state"]) <= (3e-5 if near_zero else 2e-6)
    for key, t in inputs.items():
        assert cases.rel_to_max(t.grad, case[f"grad_{key}"]) <= (5e-5 if near_zero else 1e-5), key


def gated(dtype: torch.dtype, backend: str, where: str) -> dict[str, Tensor]:
    """One group given as (b,n,l), a gate, and all gradients."""
    case = cases.load_case("b1g1d4n8l128_noD")
    inputs = {k: case[k].to(where, dtype) for k in cases.INPUTS if k in case and k != "D"}
    inputs["z"] = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(3)).to(where, dtype)
    inputs |= {k: inputs[k].squeeze(1) for k in ("B", "C")}
    leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
    out = selective_scan_fn(**leaves, delta_softplus=True, backend=backend)
    out.backward(case["grad_out"].to(out))
    return {"out": out.detach()} | {k: t.grad for k, t in leaves.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_and_three_dimensions(backend: str) -> None:
    case = cases.load_case("b1g1d4n8l128_noD")
    z = torch.randn(case["u"].shape, generator=torch.Generator().manual_seed(3)).double()
    truth = gated(torch.float64, "reference", "cpu")
    assert cases.rel_to_max(truth["out"], case["out"].double() * z * torch.sigmoid(z)) <= 1.5e-7
    # d out / d z = scan * (sigmoid + z sigmoid (1 - sigmoid))
    slope = torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))
    assert cases.rel_to_max(truth["z"], case["grad_out"].double() * case["out"].double() * slope) <= 1.5e-7
    for key, value in gated(torch.float32, backend, device(backend)).items():
        assert value.shape == truth[key].shape
        assert cases.rel_to_max(value.cpu(), truth[key]) <= (2e-6 if key == "out" else 1e-5), key


def test_output_has_the_type_of_u() -> None:
    u = torch.randn(1, 4, 9, dtype=torch.bfloat16)
    b = torch.randn(1, 3, 9)
    out, state = selective_scan_fn(u, u, -torch.ones(4, 3), b, b, z=u, return_last_state=True)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32


def test_what_is_refused_is_named() -> None:
    u, a, b = torch.randn(1, 4, 9), -torch.ones(4, 3), torch.randn(1, 3, 9)
    with pytest.raises(ValueError, match="A is complex"):
        selective_scan_fn(u, u, a.to(torch.complex64), b, b)
    with pytest.raises(ValueError, match=r"C must be \(b,n,l\) or \(b,g,n,l\), not \(4, 3\)"):
        selective_scan_fn(u, u, a, b, a)
    with pytest.raises(ValueError, match=r"z .* must have u's shape"):
        selective_scan_fn(u, u, a, b, b, z=u[..., 1:])


PUBLIC = """
import sys, types
from bench.ops import install_as_mamba_ssm
if "late" in sys.argv:
    sys.modules["mamba_ssm"] = types.ModuleType("mamba_ssm")
install_as_mamba_ssm()
install_as_mamba_ssm()
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
import mamba_ssm.ops.selective_scan_interface as whole
assert whole.selective_scan_fn is selective_scan_fn
import importlib.util
assert importlib.util.find_spec("mamba_ssm") is not None
# The call of MambaVision's mixer: B and C of three dimensions, return_last_state=None.
u, b = torch.randn(2, 6, 9), torch.randn(2, 3, 9)
bias, skip = torch.randn(6), torch.ones(6)
options = dict(z=None, delta_bias=bias, delta_softplus=True, return_last_state=None)
y = selective_scan_fn(u, u, -torch.ones(6, 3), b, b, skip, **options)
torch.testing.assert_close(y, selective_scan_ref(u, u, -torch.ones(6, 3), b, b, skip, **options))
try:
    from mamba_ssm import Mamba
except ImportError as error:
    assert "mamba_interface.py" in str(error), error
print(tuple(y.shape))
"""


def run_public(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PUBLIC, *arguments], capture_output=True, text=True)


def test_code_written_for_mamba_ssm_runs() -> None:
    done = run_public()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 6, 9)"


def test_a_package_imported_before_is_not_replaced() -> None:
    done = run_public("late")
    assert done.returncode != 0 and "before anything imports mamba_ssm" in done.stderr

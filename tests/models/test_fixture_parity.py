"""Our networks against the public code's numbers (tests/fixtures, tolerances of its README)."""

from __future__ import annotations

import pytest
import torch

FAMILIES = ("medmamba", "vmamba")
SIZES = [
    *(("medmamba", size) for size in ("64x64", "56x72", "100x100", "60x44", "32x32")),
    *(("vmamba", size) for size in ("64x64", "56x72", "100x100", "37x50", "32x32", "28x28")),
]


@pytest.fixture(scope="module")
def cases(parity):
    return {family: parity.load_case(family) for family in FAMILIES}


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_logits(cases, parity, family, size):
    assert parity.logits_error(cases[family], size) <= 1e-5


def test_every_fixture_size_is_tested(cases):
    for family, case in cases.items():
        stored = {key.removeprefix("logits64/") for key in case.tensors if key.startswith("logits64/")}
        assert stored == {size for f, size in SIZES if f == family}


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_epsilons(cases, parity, family):
    assert parity.eps_error(cases[family]) <= 1e-5


@pytest.mark.parametrize("size", ["64x64", "56x72"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages(cases, parity, family, size):
    errors = parity.stage_errors(cases[family], size)
    assert len(errors) >= 4
    assert max(errors.values()) <= 1e-5, max(errors, key=errors.get)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step(cases, parity, family):
    step = parity.train_step(cases[family])
    assert step["loss"] <= 5e-6
    assert max(step["gradients"].values()) <= 1e-4, max(step["gradients"], key=step["gradients"].get)
    assert step["dead_gradient"] <= 2e-6
    assert len(step["buffers"]) == (45 if family == "medmamba" else 0)
    assert max(step["buffers"].values(), default=0.0) <= 5e-6


def test_input_gradient(cases, parity):
    assert parity.input_gradient_error(cases["medmamba"]) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_the_truth(cases, parity, family):
    # What remains in float64 is nothing: the formulas are the same, not merely close.
    case = parity.load_case(family)
    case.model.double()
    with torch.no_grad():
        logits = case.model(case.tensors["input/64x64"].double())
    assert (logits - case.tensors["logits64/64x64"]).abs().max() <= 1e-12


def test_below_32_px_is_a_clear_error(cases):
    with pytest.raises(ValueError, match="at least 32 x 32 px, not 28 x 28"):
        cases["medmamba"].model(cases["medmamba"].tensors["input/28x28"])


def test_single_token_in_training_is_a_clear_error(parity):
    model = parity.load_case("medmamba").model.train()
    with pytest.raises(ValueError, match="single token"):
        model(torch.randn(1, 3, 63, 40))
    model(torch.randn(2, 3, 32, 32))
    model(torch.randn(1, 3, 64, 32))


def test_odd_grids_print_nothing(cases, capsys, recwarn):
    with torch.no_grad():
        for case in cases.values():
            case.model(case.tensors["input/100x100"])
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list

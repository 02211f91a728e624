"""Fresh weights have the public code's distributions (``init_stats_one_seed`` of the key files)."""

from __future__ import annotations

import math
import re

import pytest
import timm
import torch

from bench.models._checkpoint import rename


@pytest.fixture(scope="module", params=["medmamba_tiny", "vmamba_tiny"])
def fresh(request, parity):
    module, _ = parity.FAMILIES[request.param.split("_")[0]]
    public = parity.load_keys(request.param)
    torch.manual_seed(1)
    return timm.create_model(request.param, num_classes=public["num_classes"]), public, module


def grouped(model):
    """All values of one kind of parameter in one stage, as the fixture groups them."""
    groups = {}
    for name, p in model.named_parameters():
        groups.setdefault(re.sub(r"blocks\.\d+", "blocks.*", name), []).append(p.detach().flatten())
    return {name: torch.cat(values) for name, values in groups.items()}


def our_name(public_name, module):
    return rename(public_name.replace("blocks.*", "blocks.0"), module._RULES).replace("blocks.0", "blocks.*")


def test_statistics(fresh):
    model, public, module = fresh
    ours = grouped(model)
    assert {our_name(name, module) for name in public["init_stats_one_seed"]} == ours.keys()
    for name, expected in public["init_stats_one_seed"].items():
        values = ours[our_name(name, module)]
        std = float(values.std(unbiased=False))
        # Two samples of n values: their deviations differ by about std / sqrt(n), their means by std * sqrt(2 / n).
        slack = 6 / math.sqrt(values.numel())
        assert std == pytest.approx(expected["std"], rel=slack, abs=1e-6), name
        assert float(values.mean()) == pytest.approx(expected["mean"], abs=slack * expected["std"] + 1e-5), name
        if expected["std"] == 0:
            assert torch.all(values == values[0])
            assert float(values[0]) == expected["mean"]


def test_uniform_bounds(fresh):
    # A uniform distribution has hard bounds, which deviations alone would not tell from a normal one.
    model, public, module = fresh
    ours = grouped(model)
    for name, expected in public["init_stats_one_seed"].items():
        if name.endswith(("x_proj_weight", "dt_projs_weight", "conv2d.bias", "dt_projs_bias")):
            values, span = ours[our_name(name, module)], expected["max"] - expected["min"]
            assert abs(float(values.max()) - expected["max"]) <= 0.03 * span, name
            assert abs(float(values.min()) - expected["min"]) <= 0.03 * span, name


def test_steps_are_in_mambas_range(fresh):
    model, _, _ = fresh
    for name, p in model.named_parameters():
        if name.endswith("dt_proj_bias"):
            steps = torch.nn.functional.softplus(p.detach().double())
            assert float(steps.min()) >= 0.001 * (1 - 1e-4)
            assert float(steps.max()) <= 0.1 * (1 + 1e-4)
        if name.endswith("A_log"):
            expected = torch.arange(1, p.shape[-1] + 1).log().expand_as(p)
            assert torch.equal(p.detach(), expected)

"""Sound dynamics: the state stays within its bound at any length, and gradients stay finite.

With A < 0, h_t = exp(s_t A) h_{t-1} + s_t b_t is bounded for any length: if |b_t| <= b and s_t <= s, then
|h| <= b s / (1 - exp(-a s)) <= b (1/a + s), a = |A| (s/(1 - exp(-a s)) grows with s, and x/(1 - exp(-x)) <= 1 + x).
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bench.models._ssm import CrossScan
from bench.models.medmamba import MedMamba
from bench.models.vmamba import VMamba
from bench.ops import backend_report, selective_scan

COMPILED = any(name == "cpu" and available for name, available, _ in backend_report("cpu"))
SIDES = (7, 14, 56, pytest.param(256, marks=() if COMPILED else pytest.mark.slow))  # of 28, 56, 224, 1024 px
NETWORKS = {"medmamba": MedMamba, "vmamba": VMamba}


def trained_like(scan):
    """Steps from 1e-4 to 10 and decays from 0.02 to 400: wider than initialisation, as training leaves them."""
    with torch.no_grad():
        steps = torch.empty_like(scan.dt_proj_bias).uniform_(math.log(1e-4), math.log(10)).exp()
        scan.dt_proj_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        scan.A_log.uniform_(-4, 6)
        scan.dt_proj_weight.mul_(2)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", SIDES)
def test_state_is_bounded(side, dtype, trained):
    d, length = 4, side * side
    scan = CrossScan(d, 1, 1)
    if trained:
        trained_like(scan)
    A, bias = -scan.A_log[0].detach().exp(), scan.dt_proj_bias[0].detach()
    u = torch.randn(1, d, length).to(dtype)
    b = (1 + torch.rand(1, 1, 1, length)).to(dtype)  # of one sign, so that the state has every chance to grow
    delta = torch.randn(1, d, length).to(dtype)
    # With one state, C = 1 and no skip, the output of the scan is its state.
    with torch.no_grad():
        h = selective_scan(u.abs(), delta, A, b, torch.ones_like(b), None, bias, True)[0].float()
    steps = F.softplus(delta[0].float() + bias[:, None])
    inputs = (u.abs() * b[:, 0]).float()[0].amax(-1)
    bound = inputs * (1 / -A[:, 0] + steps.amax(-1))
    assert torch.isfinite(h).all()
    assert (h.abs().amax(-1) <= bound * (1 + 4 * torch.finfo(dtype).eps)).all()
    assert float((h.abs().amax(-1) / bound).max()) >= 0.05  # the bound says something


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_gradients_of_the_scan_are_finite(side, autocast, trained):
    scan = CrossScan(8, 16, 2)
    if trained:
        trained_like(scan)
    x = torch.randn(1, side, side, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = scan(x)
    y.float().square().mean().backward()
    assert torch.isfinite(y).all()
    assert float(y.detach().float().abs().max()) <= 1e4
    for key, grad in [("x", x.grad), *((k, p.grad) for k, p in scan.named_parameters())]:
        assert torch.isfinite(grad).all(), key


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("pixels", [28, 224, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", NETWORKS)
def test_networks_train_at_every_size(family, pixels, autocast, trained):
    options = {"patch_size": 2} if family == "medmamba" and pixels < 32 else {}
    model = NETWORKS[family](depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=3, in_chans=1, **options).train()
    for module in model.modules():
        if trained and isinstance(module, CrossScan):
            trained_like(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(torch.randn(2, 1, pixels, pixels))
    F.cross_entropy(logits.float(), torch.tensor([0, 2])).backward()
    assert torch.isfinite(logits).all()
    for key, p in model.named_parameters():
        assert torch.isfinite(p.grad).all(), key


@pytest.mark.parametrize("family", NETWORKS)
def test_bfloat16_follows_float32(family):
    # Half precision may cost digits, not the answer: bfloat16 keeps 8 bits, so a few percent through a small network.
    model = NETWORKS[family](depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=8).eval()
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images).float()
    assert (rough - exact).abs().max() <= 0.05 * exact.abs().max()

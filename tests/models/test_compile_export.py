"""One graph: torch.compile(fullgraph=True) and torch.export see the whole network, scans included."""

from __future__ import annotations

import pytest
import timm
import torch
from torch._dynamo.utils import counters

from bench.models import medmamba, vmamba

NETWORKS = {"medmamba": medmamba.MedMamba, "vmamba": vmamba.VMamba}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64), "num_classes": 3, "drop_path_rate": 0.0}


@pytest.fixture(params=list(NETWORKS))
def model(request):
    torch._dynamo.reset()
    return NETWORKS[request.param](**SMALL)


def gradients(model, run, images):
    model.zero_grad()
    run(images).square().sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters()}


def test_fullgraph_without_breaks(model):
    images = torch.randn(2, 3, 64, 48)
    counters.clear()
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=0)
    assert not counters["graph_break"]


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_training_step_is_equal(model, checkpointing):
    images = torch.randn(2, 3, 64, 64)
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = gradients(model, model, images)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    model.load_state_dict(state)
    model.set_grad_checkpointing(checkpointing)
    compiled = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), images)
    for key, grad in plain.items():
        torch.testing.assert_close(compiled[key], grad, rtol=1e-4, atol=1e-5, msg=key)
    for key, value in model.named_buffers():
        torch.testing.assert_close(value, buffers[key], msg=key)


@pytest.mark.slow
def test_inductor_gives_equal_outputs(model):
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model.eval(), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


def test_export_with_any_batch(model):
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert any("medbench.cross_scan" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        for batch in (1, 5):
            other = torch.randn(batch, 3, 64, 64)
            torch.testing.assert_close(program.module()(other), model(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", ["attention", "none"])
def test_ablations_compile_too(mixer):
    torch._dynamo.reset()
    model = timm.create_model("medmamba_tiny", mixer=mixer, branch="ssm", shuffle=False, **SMALL).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model(images))

"""The FLOP counters against closed forms, published figures and the stored counts of the original code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import registry
from bench.measure import flop_ops
from bench.measure.flops import TOLERANCE, FlopsError, count, count_fvcore, count_torch
from bench.registry.build import build

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "flops.json").read_text())


class Known(nn.Module):
    """One of each operator that multiplies, with dimensions that are all different primes where possible."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 10, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(10, 10, 5, padding=2, groups=10)
        self.grouped = nn.Conv2d(10, 20, 1, groups=2)
        self.up = nn.ConvTranspose2d(20, 7, 2, stride=2)
        self.linear = nn.Linear(7, 11)
        self.mix = nn.Parameter(torch.randn(2, 11, 13))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(self.depthwise(self.dense(x))).relu())
        x = self.linear(x.flatten(2).transpose(1, 2))  # (1, 256, 11)
        x = torch.einsum("bld,kdm->bklm", x, self.mix)  # (1, 2, 256, 13)
        q = x[:, :, :17]
        y = nn.functional.scaled_dot_product_attention(q, x, x)  # (1, 2, 17, 13) over 256 keys
        return torch.matmul(y, y.transpose(-1, -2))


KNOWN = {
    "conv": 8 * 8 * 10 * 3 * 9 + 8 * 8 * 10 * 25 + 8 * 8 * 20 * 5 + 8 * 8 * 20 * 7 * 4,
    "linear": 256 * 7 * 11,
    "einsum": 2 * 256 * 11 * 13,
    "scaled_dot_product_attention": 2 * 17 * 256 * 13 * 2,
    "matmul": 2 * 17 * 17 * 13,
}


def test_every_operator_of_a_known_module() -> None:
    found = count(Known(), (1, 3, 16, 16))
    assert found["macs_by_operator"] == KNOWN
    assert found["macs_g"] == sum(KNOWN.values()) / 1e9
    assert found["flops_g"] == 2 * found["macs_g"]
    assert found["macs_disagreement_rel"] == 0
    assert found["uncounted_operators"] == []
    written = (
        8 * 8 * 10 + 8 * 8 * 10 + 8 * 8 * 20 + 16 * 16 * 7 + 256 * 11 + 2 * 256 * 13 + 2 * 17 * (256 + 13) + 2 * 17 * 17
    )
    assert found["activations_m"] == written / 1e6


def test_norms_and_elementwise_work_stay_out_of_the_macs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GELU(), nn.AvgPool2d(2))
    found = count(net, (1, 3, 4, 4))
    assert found["macs_by_operator"] == {"conv": 3 * 8 * 16}
    assert found["norm_ops_g"] == 2 * 8 * 16 / 1e9  # evaluation: one scale and one shift an element
    assert found["elementwise_ops_g"] == pytest.approx((8 * 16 + 8 * 4) / 1e9)
    assert {"aten::gelu", "aten::avg_pool2d"} <= found["zero_cost_operators"].keys()


@pytest.mark.parametrize(
    ("name", "gmacs", "millions", "activations"),
    [  # models.md section 3 and timm's own tables: parameters and activations in millions
        ("resnet50", 4.1, 25.56, 11.11),
        ("vit_base_patch16_224", 17.6, 86.57, 23.9),
        ("swin_tiny_patch4_window7_224", 4.5, 28.29, 17.06),
    ],
)
def test_reference_models(name: str, gmacs: float, millions: float, activations: float) -> None:
    found = count(build(name, 224), (1, 3, 224, 224))
    assert round(found["macs_g"], 1) == gmacs
    assert round(found["params"] / 1e6, 2) == millions
    assert found["activations_m"] == pytest.approx(activations, abs=0.05)
    assert found["macs_disagreement_rel"] <= TOLERANCE


# tests/models/test_flops_reference.py has all of them by PyTorch's counter, on meta tensors; here both counters run.
LONG = (("base", 64), ("tiny", 224), ("small", 224), ("base", 224))
LONG_CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in LONG]


@pytest.mark.parametrize(("size", "resolution"), [("tiny", 64), ("small", 64), *LONG_CASES])
def test_medmamba_equals_the_hand_count(size: str, resolution: int) -> None:
    expected = FIXTURE["medmamba"][size]
    side = str(resolution)
    found = count(build(f"medmamba_{size}", resolution, num_classes=6), (1, 3, resolution, resolution))
    assert sum(found["macs_by_operator"].values()) == expected["sizes"][side]["analytic"]["total_mac"]
    assert found["params"] == expected["n_parameters"]
    assert found["macs_g_torch"] == found["macs_g"]


@pytest.mark.parametrize("size", ["tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "base"))])
def test_vmamba_equals_the_original_count_with_our_scan_formula(size: str) -> None:
    expected = FIXTURE["vmamba"][size]["sizes"]["224"]
    elements = expected["scan_9BLDN"] // 10  # N = 1: 9 B L D N + B D L
    found = count(build(f"vmamba_{size}", 224), (1, 3, 224, 224))
    assert sum(found["macs_by_operator"].values()) == expected["conv_linear_macs"] + 3 * elements
    assert found["params"] == FIXTURE["vmamba"][size]["n_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [spec.name for spec in registry.expand_models(["all"])])
def test_the_counters_agree_on_every_registered_model(name: str) -> None:
    found = count(build(name, 224), (1, 3, 224, 224))
    assert found["macs_disagreement_rel"] == 0
    facts = registry.models[name]
    assert facts.params is None or found["params"] == pytest.approx(facts.params, rel=0.005)


@pytest.mark.parametrize("name", ["aten::add_", "aten::__ior__", "aten::index_put_", "aten.relu.default", "aten::set_"])
def test_in_place_and_overloaded_names_are_recognised(name: str) -> None:
    assert flop_ops.category(name) is not None


def test_an_operator_that_nobody_counts_is_an_error() -> None:
    class Fourier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft2(x).real

    with pytest.raises(FlopsError, match=r"aten::fft_rfft2 \(once\).*zero-cost list.*register_flop_formula"):
        count(Fourier(), (1, 3, 8, 8))


def test_a_python_autograd_function_is_an_error() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x.transpose(-1, -2)

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Hidden.apply(x)

    with pytest.raises(FlopsError, match=r"prim::PythonOp\.Hidden"):
        count(Net(), (1, 3, 8, 8))


def test_a_custom_operator_is_counted_by_its_registered_formula() -> None:
    @torch.library.custom_op("medbench_test::outer", mutates_args=())
    def outer(x: torch.Tensor, times: int) -> torch.Tensor:
        return x[..., None] * x[..., None, :]

    outer.register_fake(lambda x, times: x.new_empty(*x.shape, x.shape[-1]))

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return outer(x, 3)

    with pytest.raises(FlopsError, match=r"medbench_test::outer"):
        count(Net(), (1, 3, 8, 5))

    @torch.utils.flop_counter.register_flop_formula(torch.ops.medbench_test.outer)
    def flops(x_shape, times, *, out_shape=None):
        return 2 * times * x_shape[0] * out_shape[-1] * out_shape[-2]

    assert count(Net(), (1, 3, 8, 5))["macs_by_operator"] == {"outer": 3 * 25}


def test_counters_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flop_ops.EXTRA_HANDLES, "aten::scaled_dot_product_attention", lambda i, o: 0)
    with pytest.raises(FlopsError, match=r"fvcore counts .* MACs and torch .*apart, allowed 0\.5%"):
        count(build("vit_tiny_patch16_224", 64), (1, 3, 64, 64))


def test_attention_on_real_cpu_tensors_is_counted_too() -> None:
    """What torch dispatches on the CPU (a fused kernel) costs the same as on the meta device (two products)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here = torch.zeros(1)  # no buffer: keeps the module off the meta device

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x + self.here, x, x)

    shape = (1, 2, 24, 16)
    assert count_torch(Net(), shape).macs == count_fvcore(Net(), shape).macs == 2 * 24 * 24 * 16 * 2


def test_transformer_encoder_layer_in_evaluation_is_not_counted_as_nothing() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = count(layer, (1, 9, 16))
    assert found["macs_g"] * 1e9 == pytest.approx(9 * 16 * 16 * 4 + 2 * 9 * 9 * 16 + 2 * 9 * 16 * 32)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 30),
        ("bij,bjk->bik", [(7, 2, 3), (7, 3, 5)], 210),
        ("...ij,jk->...ik", [(7, 2, 3), (3, 5)], 210),
        ("ij->ji", [(2, 3)], 0),
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], 30 + 70),
        ("i,j->ij", [(4,), (6,)], 24),
    ],
)
def test_einsum_formula(equation: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    assert flop_ops.einsum_macs(equation, shapes) == macs


def test_recurrent_layers() -> None:
    found = count(nn.GRU(5, 7, num_layers=2, bidirectional=True, batch_first=True), (1, 11, 5))
    weights = 2 * (21 * 5 + 21 * 7) + 2 * (21 * 14 + 21 * 7)
    assert found["macs_g"] * 1e9 == pytest.approx(11 * weights)


def test_counting_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    count(net, (1, 3, 4, 4))
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()

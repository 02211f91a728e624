"""The comparison of training on a GPU: its public composition means the same as the operator; its table adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.ops import cross_selective_scan
from bench.ops.backends import reference
from bench.ops.problems import SequenceScan
from tools import gpu_check


class StandIn:
    """The public kernel's place, taken by PyTorch."""

    @staticmethod
    def apply(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return reference.selective_scan_forward(SequenceScan(u, delta, A, B, C, D, bias, True), False)[0]


def test_public_composition_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_PublicScan", StandIn)
    g = torch.Generator().manual_seed(0)
    sizes = {"x": (2, 3, 5, 6), "x_proj_weight": (4, 7, 6), "dt_proj_weight": (4, 6, 1), "dt_bias": (4, 6)}
    inputs = {k: torch.randn(s, generator=g) for k, s in sizes.items()}
    inputs |= {"A": -torch.rand(4, 6, 3, generator=g), "D": torch.rand(4, 6, generator=g)}
    fused = cross_selective_scan(**inputs, backend="reference")
    torch.testing.assert_close(gpu_check.public_cross_scan(**inputs), fused, rtol=1e-5, atol=1e-5)


def test_scanning_publicly_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models import _ssm

    with pytest.raises(KeyError), gpu_check.scanning("public"):
        assert _ssm.cross_selective_scan is gpu_check.public_cross_scan
        raise KeyError
    assert _ssm.cross_selective_scan is cross_selective_scan


def test_table_gives_ratios_to_the_last_way() -> None:
    def row(way: str, speed: float, saved: float) -> dict[str, Any]:
        return {"way": way, "images_per_s": speed, "step_ms_p50": 1.0, "saved_mib": saved, "peak_mib": 9.0}

    lines = gpu_check.table([row("triton", 300.0, 50.0), row("public", 100.0, 200.0)]).splitlines()
    assert "3.00x" in lines[1] and "0.25x" in lines[1]
    assert lines[2].count("1.00x") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        gpu_check.compare("medmamba_tiny", 2, 64, ("triton",))

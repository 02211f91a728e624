"""The Triton kernels, run by Triton's interpreter: every stored fixture and whole cross scans, with all gradients."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench.ops.backends import mamba_ssm, reference
from bench.ops.backends.triton import layout, scan

WORKER = Path(__file__).with_name("triton_worker.py")


def work(*arguments: str) -> dict[str, Any]:
    root = Path(__file__).parents[2]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, str(WORKER), *arguments], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return work()


def tolerance(case: str, quantity: str) -> float:
    """From the README beside the fixtures."""
    near_zero = case.startswith("x_near0")
    return (3e-5 if near_zero else 2e-6) if quantity == "out" else (5e-5 if near_zero else 1e-5)


def check_fixtures(found: dict[str, dict[str, float]]) -> None:
    wrong = {f"{c}/{q}": e for c, errors in found.items() for q, e in errors.items() if not e <= tolerance(c, q)}
    assert not wrong


def test_every_fixture(results: dict[str, Any]) -> None:
    assert len(results["fixtures"]) == 15
    check_fixtures(results["fixtures"])


def test_sequences_cut_into_segments(results: dict[str, Any]) -> None:
    check_fixtures(results["cut"])


@pytest.mark.parametrize("group", ["cross", "half", "lanes", "directions"])
def test_cross_scan_is_as_exact_as_pytorch(results: dict[str, Any], group: str) -> None:
    check_cross(results[group], half=group in ("half", "lanes"))


def check_cross(found: dict[str, dict[str, list[float]]], half: bool) -> None:
    """Outputs within twice, gradients within three times the error of the PyTorch backend in the same dtype."""
    floor = 1e-3 if half else 1e-6  # one rounding more or less of the largest element is no error
    for case, errors in found.items():
        for name, (mine, plain) in errors.items():
            assert mine <= max((2 if name == "y" else 3) * plain, floor), (case, name, mine, plain)


def check_fused(found: dict[str, list[list[float]]]) -> None:
    assert len(found) == 6
    for case, errors in found.items():
        for at, (mine, plain) in enumerate(errors):
            assert mine <= max(3 * plain, 5e-7), (case, at, mine, plain)


def test_what_stands_around_a_scan_is_as_exact_as_pytorch(results: dict[str, Any]) -> None:
    """Norm with gate, convolution with activation, shuffled sum: results and all gradients, in float32."""
    check_fused(results["fused"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("triton_worker", WORKER)
    assert spec and spec.loader
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_fused(worker.fused("cuda"))
    # What runs for bfloat16 there alone: tensor cores and shuffles, for 16 states and for one; whole and in segments.
    for sizes in (*worker.LANES, (1, 3, 6, 20, 16, 3), (2, 6, 5, 40, 16, 9), (1, 37, 9, 33, 1, 6)):
        check_cross({str(sizes): worker.cross_errors(sizes, torch.bfloat16, device="cuda")}, half=True)


@pytest.mark.slow
def test_gradients_of_the_other_fixtures() -> None:
    check_fixtures(work("--long")["fixtures"])


def test_order_is_that_of_the_pytorch_backend() -> None:
    h, w, directions = 3, 5, (2, 0, 3, 1)
    pixels = torch.arange(h * w, dtype=torch.int32).view(1, h, w, 1)
    expected = reference.to_sequences(pixels, directions)[0, :, 0]
    assert torch.equal(layout.order_table(h, w, directions, torch.device("cpu")), expected)


@pytest.mark.parametrize("warps", [1, 96, 768, 1536, 12288])
@pytest.mark.parametrize("chunks", [1, 2, 7, 98])
def test_segments_cover_every_chunk_once(warps: int, chunks: int) -> None:
    segments, each = layout.cut(warps, chunks, 1056, 0.2)
    assert segments * each >= chunks > (segments - 1) * each
    assert segments == 1 or warps < 8 * 1056  # a device that is full is not cut up


def test_backends_for_cuda_say_why_they_cannot_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "not for cpu" in (scan.unavailable("cpu") or "")
    assert "not for cpu" in (mamba_ssm.unavailable("cpu") or "")

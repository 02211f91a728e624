"""Blocks in training with little kept for the backward, against the same modules under PyTorch's autograd."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

WORKER = Path(__file__).with_name("training_worker.py")


def check(found: dict[str, dict[str, list[float]]]) -> None:
    """Within three times PyTorch's error; in bf16 a few roundings of the largest element are no error."""
    assert len(found) == 6
    for case, by_tensor in found.items():
        floor = 3e-2 if case.endswith("bf16") else 3e-6
        for name, (mine, plain) in by_tensor.items():
            assert mine <= max(3 * plain, floor), (case, name, mine, plain)


def test_gradients_and_statistics_are_those_of_pytorch() -> None:
    root = Path(__file__).parents[2]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, str(WORKER)], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    check(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("training_worker", WORKER)
    assert spec and spec.loader
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check(worker.errors("cuda"))

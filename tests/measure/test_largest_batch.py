"""The search for the largest batch, on a pretended memory and on a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench.measure import largest_batch
from bench.measure.largest_batch import fits, largest_fitting
from bench.measure.workload import POOL, Workload
from bench.record.cells import EfficiencyCell


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 15, 16])
def test_small_answers_are_exact(capacity: int) -> None:
    assert largest_fitting(lambda batch: batch <= capacity, 4096) == (capacity, capacity + 1)


@pytest.mark.parametrize("capacity", [17, 100, 777, 1000, 3000])
def test_large_answers_are_within_a_sixteenth_and_bracketed(capacity: int) -> None:
    tried: list[int] = []

    def try_one(batch: int) -> bool:
        tried.append(batch)
        return batch <= capacity

    good, bad = largest_fitting(try_one, 4096)
    assert good <= capacity < bad
    assert bad - good <= max(1, good // 16)
    assert len(tried) == len(set(tried)) <= 17


def test_nothing_fits_and_everything_fits() -> None:
    assert largest_fitting(lambda batch: False, limit=100) == (0, 1)
    assert largest_fitting(lambda batch: True, limit=100) == (100, None)


def test_training_is_tried_from_two_images() -> None:
    """Batch norm cannot be trained on one value a channel, which would not be for want of memory."""
    tried: list[int] = []
    assert largest_fitting(lambda batch: tried.append(batch) or batch <= 5, 64, least=2) == (5, 6)
    assert min(tried) == 2
    assert largest_fitting(lambda batch: False, 64, least=2) == (0, 2)
    assert largest_fitting(lambda batch: True, 2, least=2) == (2, None)


def test_a_try_holds_all_the_inputs_that_the_timed_pass_takes_turns_with(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Watched(Workload):
        def inputs(self, batch: int, pool: int = POOL) -> list[torch.Tensor]:
            held.append(len(found := super().inputs(batch, pool)))
            return found

    monkeypatch.setattr(largest_batch, "Workload", Watched)
    monkeypatch.setattr(largest_batch.memory, "cap_data", lambda: None)
    assert largest_batch.try_batch(a_cell(batch=2)) == "fits"
    assert max(held) == POOL


def a_cell(**changes) -> EfficiencyCell:
    facts = {
        "model": "resnet18",
        "resolution": 32,
        "batch": 1,
        "precision": "fp32",
        "compile": False,
        "mode": "infer",
        "device": "cpu",
        "hardware": "test",
        "threads": 1,
        "backend": "reference",
        "versions": {},
        "budget_s": 0.1,
        "rounds": 1,
    }
    return EfficiencyCell(**facts | changes)


def tries() -> None:
    """What needs a process that has not trained yet, as a Cell's own: after that torch refuses a backward in a fork."""
    cell = a_cell(mode="train")
    assert fits(replace(cell, batch=2))
    assert not fits(replace(cell, batch=4_000_000))  # 48 GB of images: more than the cap on this machine's memory
    with pytest.raises(RuntimeError, match=r"batch 1 failed, but not for want of memory: .*1 value per channel"):
        fits(cell)  # batch norm cannot be trained on a single value
    assert fits(replace(cell, batch=2))  # what failed before leaves no trace
    largest_batch.LIMIT["cpu"] = 4
    assert largest_batch.largest_batch(cell) == (4, None)


def test_each_try_is_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_process_that_uses_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="before this process uses CUDA"):
        fits(a_cell())


def test_a_try_that_is_killed_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest_batch, "try_batch", lambda cell: os.kill(os.getpid(), signal.SIGKILL))
    assert not fits(a_cell())


if __name__ == "__main__":
    tries()

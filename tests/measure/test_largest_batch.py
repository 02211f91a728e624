"""The search for the largest batch, on a pretended memory and on a real one."""

from __future__ import annotations

import pytest

from bench.cells import EfficiencyCell
from bench.measure.largest_batch import Prober, largest_fitting


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 15, 16])
def test_small_answers_are_exact(capacity: int) -> None:
    assert largest_fitting(lambda batch: batch <= capacity) == (capacity, capacity + 1)


@pytest.mark.parametrize("capacity", [17, 100, 777, 1000, 3000])
def test_large_answers_are_within_a_sixteenth_and_bracketed(capacity: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= capacity

    good, bad = largest_fitting(fits)
    assert good <= capacity < bad
    assert bad - good <= max(1, good // 16)
    assert len(tried) == len(set(tried)) <= 17


def test_nothing_fits_and_everything_fits() -> None:
    assert largest_fitting(lambda batch: False) == (0, 1)
    assert largest_fitting(lambda batch: True, limit=100) == (100, None)


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


def test_each_try_is_a_process_of_its_own() -> None:
    with Prober(a_cell(mode="train")) as prober:
        assert prober(2)
        assert not prober(4_000_000)  # 48 GB of images in one batch: more than the cap on this machine's memory
        with pytest.raises(RuntimeError, match=r"batch 1 failed, but not for want of memory: .*1 value per channel"):
            prober(1)  # batch norm cannot be trained on a single value
        assert prober(2)  # what failed before leaves no trace

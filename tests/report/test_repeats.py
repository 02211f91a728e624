"""The noise of a figure, from its rounds or, in older records, from its interval."""

from __future__ import annotations

import numpy as np
import pytest

from bench.measure.aggregate import combine
from bench.report.speeds import noise


def test_the_latency_of_older_records_has_the_noise_of_its_interval():
    """Both intervals are Student's over the same rounds, so their widths are in proportion to the noise."""
    rng = np.random.default_rng(1)
    raw = [
        {"round": n, "batch": 8, "block_s": [0.02 * np.exp(0.02 * rng.standard_normal())] * 3,
         "latency_s": [0.003 * np.exp(0.01 * rng.standard_normal())] * 5}
        for n in range(4)
    ]  # fmt: skip
    found = combine(raw)
    own = noise(found, "latency_ms")
    assert own == found["latency_noise_rel"]
    older = {k: v for k, v in found.items() if k != "latency_noise_rel"}
    assert noise(older, "latency_ms") == pytest.approx(own, rel=0.05)
    assert noise(found) == found["noise_rel"] != own


def test_without_a_repeat_there_is_none():
    once = combine([{"round": 0, "batch": 8, "block_s": [0.02, 0.021], "latency_s": [0.003] * 5}])
    assert noise(once) is None and noise(once, "latency_ms") is None
    assert noise({}) is None and noise({"noise_rel": float("nan")}) is None

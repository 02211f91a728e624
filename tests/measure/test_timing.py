"""The timing instrument on a fake clock, where every answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.machine.clock import Clock
from bench.measure.aggregate import combine, repeat_difference
from bench.measure.timing import (
    MIN_PAIRS,
    Budget,
    Samples,
    bootstrap_median,
    latency_samples,
    median_interval,
    phase_seconds,
    side_by_side,
    tail,
    throughput_blocks,
    warm_up,
)
from bench.report.compare.gate_stats import speed_evidence


class SharedCores(Clock):
    """Cores of which others take a share: work lasts longer than the processor time that it takes."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def work(self, seconds: float, taken: float) -> None:
        self.processor += seconds
        self.wall += seconds / (1 - taken)

    def now(self) -> float:
        return self.wall

    def spent(self) -> float:
        return self.processor


class FakeDevice(Clock):
    """A device that works through a queue behind the host's back, on simulated time.

    The host needs ``launch_s`` to enqueue a step, the device ``work_s(step number)`` to do it. A mark is the device
    time at which everything enqueued before it is done, as with CUDA events.
    """

    def __init__(self, launch_s: float, work_s) -> None:
        self.host = 0.0
        self.device = 0.0
        self.launch_s = launch_s
        self.work_s = work_s
        self.steps = 0
        self.most_ahead_s = 0.0
        self.idle_s = 0.0

    def step(self, number: int) -> None:
        self.host += self.launch_s
        self.idle_s += max(0.0, self.host - self.device) if self.steps else 0.0
        self.device = max(self.device, self.host) + self.work_s(self.steps)
        self.most_ahead_s = max(self.most_ahead_s, self.device - self.host)
        self.steps += 1

    def now(self) -> float:
        return self.host

    def mark(self) -> float:
        return max(self.device, self.host)

    def wait(self, mark: float) -> None:
        self.host = max(self.host, mark)

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)


BUDGET = Budget(throughput_s=2.0, latency_s=2.0, warmup_s=0.5, warmup_max_s=3.0, block_s=0.05)


def test_throughput_is_the_device_rate_not_the_launch_rate() -> None:
    device = FakeDevice(launch_s=0.0002, work_s=lambda n: 0.004)
    blocks, per_block = throughput_blocks(device.step, device, BUDGET, step_s=0.004)
    assert per_block == 12
    assert np.allclose(blocks[1:], 0.004)  # the first block starts on an empty queue: one launch more
    assert blocks[0] == pytest.approx(0.004, rel=0.01)


def test_throughput_never_drains_the_queue_and_never_runs_far_ahead() -> None:
    device = FakeDevice(launch_s=0.0002, work_s=lambda n: 0.004)
    throughput_blocks(device.step, device, BUDGET, step_s=0.004)
    assert device.idle_s == 0
    assert device.most_ahead_s <= 3 * BUDGET.block_s
    assert 2.0 <= device.host <= 2.0 + 4 * BUDGET.block_s


def test_the_device_is_looked_at_once_while_it_is_busy() -> None:
    device = FakeDevice(launch_s=0.0002, work_s=lambda n: 0.004)
    looks: list[tuple[float, float]] = []
    throughput_blocks(device.step, device, BUDGET, 0.004, lambda: looks.append((device.host, device.device)))
    ((host, busy_until),) = looks
    assert 1.0 <= host <= 1.2
    assert busy_until > host


def test_throughput_of_a_launch_bound_model_is_the_launch_rate() -> None:
    device = FakeDevice(launch_s=0.004, work_s=lambda n: 0.001)
    blocks, _ = throughput_blocks(device.step, device, BUDGET, step_s=0.004)
    assert np.median(blocks) == pytest.approx(0.004)


def test_a_slow_step_still_gives_the_least_number_of_blocks() -> None:
    device = FakeDevice(launch_s=0.001, work_s=lambda n: 3.0)
    blocks, per_block = throughput_blocks(device.step, device, BUDGET, step_s=3.0)
    assert per_block == 1
    assert len(blocks) == BUDGET.min_blocks


def test_latency_contains_launch_and_work_of_each_step() -> None:
    device = FakeDevice(launch_s=0.001, work_s=lambda n: 0.004 if n % 10 else 0.014)
    samples = latency_samples(device.step, device, BUDGET)
    assert np.median(samples) == pytest.approx(0.005)
    assert max(samples) == pytest.approx(0.015)
    assert sum(samples) == pytest.approx(2.0, rel=0.02)
    assert tail(samples, 90) is not None
    assert tail(samples, 99) is None  # about 330 samples


def test_warm_up_goes_on_until_the_windows_agree() -> None:
    device = FakeDevice(launch_s=0.0001, work_s=lambda n: 0.01 if n > 60 else 0.03 - n * 0.02 / 60)
    warm = warm_up(device.step, device, BUDGET)
    assert warm.stable
    assert warm.step_s == pytest.approx(0.01, rel=0.05)
    assert warm.steps > 60


def test_warm_up_that_never_settles_says_so() -> None:
    device = FakeDevice(launch_s=0.0001, work_s=lambda n: 0.01 * (1 + n // 9 % 2))
    warm = warm_up(device.step, device, BUDGET)
    assert not warm.stable
    assert warm.spread > BUDGET.agree
    assert 3.0 <= warm.seconds <= 3.5


def test_the_first_call_is_in_no_window() -> None:
    device = FakeDevice(launch_s=0.0001, work_s=lambda n: 100.0 if n == 0 else 0.01)
    warm = warm_up(device.step, device, BUDGET)
    assert warm.stable
    assert warm.seconds < 1.0


def test_split_of_a_step() -> None:
    device = FakeDevice(launch_s=0.0, work_s=lambda n: (0.01, 0.02, 0.005)[n % 3])
    phases = [(name, device.step) for name in ("forward", "backward", "optimizer")]
    found = phase_seconds(phases, device, BUDGET)
    assert {name: float(np.median(s)) for name, s in found.items()} == pytest.approx(
        {"forward": 0.01, "backward": 0.02, "optimizer": 0.005}
    )


def test_host_clock_goes_forward() -> None:
    clock = Clock()
    a, b = clock.mark(), clock.mark()
    clock.wait(b)
    assert 0 <= clock.seconds(a, b) < 1


# ---- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "percent", "given"), [(49, 90, False), (50, 90, True), (499, 99, False), (500, 99, True)]
)
def test_no_tail_from_too_few_samples(n: int, percent: float, given: bool) -> None:
    assert (tail(np.arange(n, dtype=float), percent) is not None) is given


@pytest.mark.parametrize("samples", [60, 1500])  # all drawn, and a part of them
def test_bootstrap_interval_covers_the_median_as_often_as_it_says(samples: int) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_median(rng.lognormal(0, 0.1, samples))
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_interval_over_rounds_covers_the_truth_as_often_as_it_says(rounds: int) -> None:
    """Rounds drift by 3 %, their samples by 1 %: a bootstrap of so few rounds covers half to five sixths."""
    rng = np.random.default_rng(rounds)
    hits = 0
    for _ in range(1000):
        drifting = np.exp(0.03 * rng.standard_normal((rounds, 1)) + 0.01 * rng.standard_normal((rounds, 40)))
        low, high = median_interval(drifting)
        hits += low <= 1.0 <= high
        assert low <= Samples([list(r) for r in drifting]).centre() <= high
    assert 0.93 <= hits / 1000 <= 0.97


def test_interval_over_rounds_knows_of_drift_between_them() -> None:
    rng = np.random.default_rng(0)
    steady = [1 + 0.001 * rng.standard_normal(40) for _ in range(4)]
    drifting = [r + shift for r, shift in zip(steady, (0, 0.05, 0.1, 0.15), strict=True)]
    narrow, wide = median_interval(steady), median_interval(drifting)
    assert wide[1] - wide[0] > 20 * (narrow[1] - narrow[0])


def test_interval_of_one_round_is_the_bootstrap() -> None:
    samples = np.random.default_rng(0).lognormal(0, 0.1, 50)
    assert median_interval([samples]) == bootstrap_median(samples)


def test_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval([[]])


def test_one_bad_round_in_three_does_not_move_the_figure() -> None:
    assert Samples([[1.0, 1.0], [1.01, 1.01], [5.0, 5.0]]).centre() == 1.01


# ---- rounds -> metrics -----------------------------------------------------------------------------------------------


def a_round(number: int, step_s: float, device: str = "cpu", noise: float = 0.002, **more):
    rng = np.random.default_rng(number + round(1e6 * step_s))
    blocks = (step_s * (1 + noise * rng.standard_normal(40))).tolist()
    return {
        "round": number,
        "batch": 8,
        "mode": "infer",
        "device": device,
        "block_s": blocks,
        "latency_s": blocks[:20],
    } | more


ROOF = {"device": "cpu", "threads": 1, "copy_gb_per_s": 500.0, "gflops_per_s": {"fp32": 4000.0}}


def test_metrics_of_rounds_have_units_and_order() -> None:
    first = {"static": {"macs_g": 2.0, "traffic_mib_per_image": 1e9 / 2**20}, "ceilings": ROOF}
    rounds = [a_round(n, 0.02, **(first if n == 0 else {})) for n in (2, 0, 1)]
    found = combine(rounds)
    assert found["throughput_images_per_s_p50"] == pytest.approx(400, rel=0.01)
    assert (
        found["throughput_images_per_s_p10"]
        < found["throughput_images_per_s_p50"]
        < found["throughput_images_per_s_p90"]
    )
    assert found["throughput_images_per_s_ci_low"] < 400.5
    assert found["throughput_images_per_s_ci_high"] > 399.5
    assert found["latency_ms_p50"] == pytest.approx(20, rel=0.01)
    assert found["latency_ms_p90"] is not None
    assert found["latency_ms_p99"] is None
    assert found["achieved_gflops_per_s"] == pytest.approx(4.0 * 400, rel=0.01)
    assert found["mfu"] == pytest.approx(0.4, rel=0.01)
    assert found["roofline_fraction"] == pytest.approx(0.8, rel=0.01)  # 4 FLOPs a byte x 500 GB/s
    assert found["bound"] == "memory"
    assert found["noisy"] is False
    assert found["noisy_evidence"] == []


def test_the_roof_of_a_training_step_is_over_what_does_the_counted_work() -> None:
    """The optimizer's time does none of the counted FLOPs; recomputed FLOPs are the hardware's, not the model's."""
    static = {"macs_g": 2.0, "train_macs_g": 8.0, "traffic_mib_per_image": 4e9 / 2**20}
    phases = {"forward": [0.01] * 5, "backward": [0.03] * 5, "optimizer": [0.04] * 5}
    raw = a_round(0, 0.08, mode="train", static=static, ceilings=ROOF, phase_s=phases)
    del raw["latency_s"]
    found = combine([raw])
    assert found["achieved_gflops_per_s"] == pytest.approx(16 / (0.04 / 8))
    assert found["hfu"] == pytest.approx(0.8)
    assert found["mfu"] == pytest.approx(0.6)  # three forward passes of 4 GFLOPs
    less = combine([raw | {"static": static | {"train_macs_g": 5.0}}])  # the image's gradient is not needed
    assert less["mfu"] == less["hfu"] == pytest.approx(0.5)


def test_a_compiled_step_has_no_place_under_a_roof_of_eager_traffic() -> None:
    static = {"macs_g": 2.0, "traffic_mib_per_image": 1e9 / 2**20}
    found = combine([a_round(0, 0.02, static=static, ceilings=ROOF, compile=True)])
    assert found["mfu"] == pytest.approx(0.4, rel=0.01)
    assert not {"bound", "roofline_fraction", "attainable_gflops_per_s", "intensity_flop_per_byte"} & found.keys()


def test_the_check_sees_a_planted_slow_down_and_no_difference_in_an_aa_pair() -> None:
    """By the rule of `bench check`, at its defaults; it asks for six rounds a side."""
    first, again, slower = (
        combine([a_round(n + 10 * run, step_s, noise=0.01) for n in range(6)])["throughput_images_per_s_rounds"]
        for run, step_s in enumerate((0.020, 0.020, 0.024))
    )
    same, change = speed_evidence(first, again, 0.05), speed_evidence(first, slower, 0.05)
    assert same is not None and not same.beyond and same.two_sided > 0.05
    assert change is not None and change.beyond and change.two_sided < 0.05
    assert change.effect == pytest.approx(1 - 1 / 1.2, rel=0.02)


def test_the_noise_of_the_latency_is_its_own() -> None:
    rounds = [a_round(n, 0.02, noise=0) | {"latency_s": [0.01 + 0.0001 * n] * 20} for n in range(3)]
    found = combine(rounds)
    assert found["noise_rel"] == 0
    assert found["latency_noise_rel"] == pytest.approx(math.sqrt(2) * 0.670 * 0.0001 / 0.0101)
    assert found["latency_ms_rounds"] == pytest.approx([10.0, 10.1, 10.2])


@pytest.mark.parametrize(("device", "noisy"), [("cpu", False), ("cuda:0", True)])
def test_noise_is_judged_by_device(device: str, noisy: bool) -> None:
    # 1.5 % between rounds: 1.05 % is the standard deviation of the difference of two runs, 2.1 % covers 95 % of them.
    found = combine([a_round(0, 0.0200, device), a_round(1, 0.0203, device)])
    assert 0.008 < found["noise_rel"] < 0.0125
    assert found["noisy"] is noisy
    assert found["round_spread_rel"] == pytest.approx(0.015, abs=0.002)  # the largest A/A difference seen


def test_a_row_is_noisy_when_its_95_percent_figure_passes_the_limit() -> None:
    found = combine([a_round(0, 0.0200), a_round(1, 0.0206)])  # 2.1 % by its standard deviation, 4 % by 95 %
    assert found["noise_rel"] < 0.03
    assert found["noisy"] is True
    noisy = True
    assert ("two runs would differ by" in " ".join(found["noisy_evidence"])) is noisy


@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 8])
def test_the_noise_is_the_deviation_of_a_difference_of_two_runs(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    runs = 1 + 0.01 * rng.standard_normal((6000, rounds))
    centres = np.median(runs, axis=1)
    true = np.std(centres[::2] - centres[1::2])
    squares = [repeat_difference(Samples([[m] for m in medians])) ** 2 for medians in runs[:1500]]
    assert np.sqrt(np.mean(squares)) == pytest.approx(true, rel=0.05)  # a root mean square over rows, as reported
    outside = np.mean(np.abs(centres[::2] - centres[1::2]) > 1.96 * np.sqrt(np.mean(squares)))
    assert outside == pytest.approx(0.05, abs=0.015)


def test_disturbances_are_evidence_with_their_round() -> None:
    disturbed = {"flags": ["other processes"], "evidence": ["other processes took 40% of the CPU"]}
    warm = {"stable": False, "spread": 0.08, "seconds": 6.0}
    found = combine([a_round(0, 0.02), a_round(1, 0.02, disturbances=disturbed, warmup=warm)])
    assert found["noisy_evidence"] == [
        "round 2: windows still 8.0% apart after 6.0 s of warm-up",
        "round 2: other processes took 40% of the CPU",
    ]
    assert found["flags"] == ["not warm", "other processes"]
    assert found["noisy"] is False


def test_training_has_a_split_and_no_latency() -> None:
    raw = a_round(0, 0.02, phase_s={"forward": [0.005] * 5, "backward": [0.01] * 5, "optimizer": [0.005] * 5})
    del raw["latency_s"]
    found = combine([raw])
    assert found["backward_ms_p50"] == pytest.approx(10)
    assert not any(name.startswith("latency") for name in found)
    assert found["noise_rel"] is None


def test_combine_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        combine([])


# ---- the device behind the host --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graph_s", "bound"), [(0.008, True), (0.019, False)])
def test_a_row_that_waits_for_the_host_is_launch_bound(graph_s: float, bound: bool) -> None:
    static = {"macs_g": 2.0, "traffic_mib_per_image": 1e9 / 2**20}
    rounds = [a_round(n, 0.020, "cuda:0", graph_block_s=[graph_s] * 5, static=static, ceilings=ROOF) for n in (0, 1)]
    found = combine(rounds)
    assert found["device_step_ms_p50"] == pytest.approx(1e3 * graph_s)
    assert found["device_images_per_s_p50"] == pytest.approx(8 / graph_s)
    assert found["device_noise_rel"] == 0
    assert found["launch_bound"] is bound and ("launch-bound" in found["flags"]) is bound
    assert found["bound"] == ("launches" if bound else "memory")


def test_a_step_that_no_graph_can_hold_has_no_figure_of_the_device_and_says_why() -> None:
    found = combine([a_round(0, 0.020, "cuda:0", graph_error="RuntimeError: operation not permitted")])
    assert found["device_step_error"] == "RuntimeError: operation not permitted"
    assert not {"launch_bound", "device_step_ms_p50"} & found.keys()
    assert "launch_bound" not in combine([a_round(0, 0.020)])


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_side_by_side_takes_longer_on_a_busy_machine(noise: float) -> None:
    """Of a machine whose speed wanders the ratio stays; where single blocks differ, more of them are taken."""
    random, clock = np.random.default_rng(0), SharedCores()

    def run(seconds: float):
        def step(number: int) -> None:
            slower = (1.5 + 0.5 * np.sin(clock.wall / 5)) * np.exp(noise * random.normal())
            clock.work(seconds * slower, taken=random.choice([0.0, 0.5]))

        return step

    ratios = side_by_side(run(0.002), run(0.003), clock, BUDGET)
    assert np.median(ratios) == pytest.approx(1.5, rel=0.03)
    assert len(ratios) == MIN_PAIRS if noise == 0 else len(ratios) > MIN_PAIRS
    assert clock.processor < 2.5 * BUDGET.throughput_s

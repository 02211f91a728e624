"""Rounds of raw samples -> the metrics of an efficiency Cell. Pure and torch-free.

All seconds in, named units out. The rounds of one Cell ran in different processes with other models between them, so
the difference between them is an A/A measurement: it is kept as the noise of the figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.measure.roofline import Ceilings, place
from bench.measure.timing import Samples, median_interval, tail
from bench.record.types import Fields

LAUNCH_BOUND = 1.2  # a step that takes so many times its replay as a graph waits for the host
NOISY_REL = {"cpu": 0.03, "cuda": 0.01}  # 95 % of repeats of a sweep should agree within this on an idle machine
Z_95 = 1.96
Rounds = Sequence[Fields]  # of one Cell, each what :func:`bench.measure.efficiency.measure_round` made of it
# Standard deviation of the median of R normal values, that of one being 1; beyond 10, 1.2533 / sqrt(R) is within 6 %.
MEDIAN_DEVIATION = {2: 0.707, 3: 0.670, 4: 0.546, 5: 0.536, 6: 0.463, 7: 0.459, 8: 0.411, 9: 0.407, 10: 0.372}


def combine(rounds: Rounds) -> Fields:
    """Turn the raw rounds of one Cell into its metrics.

    Args:
        rounds: what :func:`bench.measure.efficiency.measure_round` put into ``Result.metrics``, any order.

    Returns:
        Static figures, ``throughput_images_per_s_p50/p10/p90/ci_low/ci_high`` (95 % interval of the median, Student's
        t over the rounds),
        ``step_ms_p50``, ``latency_ms_p50/p90/p99`` (inference; a percentile with too few samples beyond it is None)
        with ``latency_noise_rel``,
        ``relative_speed_rounds`` (the speed over that of ``relative_to``, measured in turn with it in what
        ``relative_in`` says),
        ``forward_ms_p50`` ... (training), energy, the place under the roofline (``mfu``, ``roofline_fraction``),
        ``device_step_ms_p50`` and ``device_images_per_s_p50`` (the step replayed as one CUDA graph) with
        ``launch_bound``,
        ``noise_rel`` (standard deviation of the difference of two runs), ``round_spread_rel`` (largest difference
        seen between two rounds), ``noisy`` (the 95 % bound of a difference of two runs exceeds the limit), ``flags``
        (short words) and ``noisy_evidence``.

    Raises:
        ValueError: there are no rounds.
    """
    if not rounds:
        raise ValueError("combine: no rounds were measured")
    rounds = sorted(rounds, key=lambda r: int(r["round"]))
    metrics: Fields = {}
    for raw in rounds:
        metrics |= raw.get("static", {}) | raw.get("largest", {})
    blocks = Samples([list(r["block_s"]) for r in rounds])
    metrics |= _throughput(blocks, int(rounds[0]["batch"]))
    latency = Samples([list(r["latency_s"]) for r in rounds if "latency_s" in r])
    if latency.rounds:
        metrics |= _latency(latency)
    metrics |= _phases(rounds) | _energy(rounds) | _clocks(rounds) | _device(rounds, metrics)
    if beside := [r["relative_speeds"] for r in rounds if r.get("relative_speeds")]:
        metrics |= {name: rounds[0][name] for name in ("relative_to", "relative_in") if name in rounds[0]}
        metrics["relative_speed_rounds"] = Samples(beside).medians()
    metrics |= _roofline(rounds, metrics)
    if metrics.get("launch_bound") and "bound" in metrics:
        metrics["bound"] = "launches"
    phases = [r.get("phases_s", {}) for r in rounds]
    metrics["phases_s"] = {name: sum(p.get(name, 0.0) for p in phases) for name in {n: None for p in phases for n in p}}
    metrics |= _noise(rounds, blocks, metrics)
    return metrics


def _throughput(blocks: Samples, batch: int) -> Fields:
    seconds = np.asarray(blocks.pooled())
    low, high = median_interval(blocks.rounds)
    return {
        "throughput_images_per_s_p50": batch / blocks.centre(),
        "throughput_images_per_s_p10": batch / float(np.percentile(seconds, 90)),
        "throughput_images_per_s_p90": batch / float(np.percentile(seconds, 10)),
        "throughput_images_per_s_ci_low": batch / high,
        "throughput_images_per_s_ci_high": batch / low,
        "throughput_blocks": len(seconds),
        "throughput_images_per_s_rounds": [batch / m for m in blocks.medians()],
        "step_ms_p50": 1e3 * blocks.centre(),
    }


def _latency(latency: Samples) -> Fields:
    pooled = latency.pooled()
    low, high = median_interval(latency.rounds)
    tails = {f"latency_ms_p{p}": tail(pooled, p) for p in (90, 99)}
    return {
        "latency_ms_p50": 1e3 * latency.centre(),
        "latency_ms_ci_low": 1e3 * low,
        "latency_ms_ci_high": 1e3 * high,
        **{name: None if value is None else 1e3 * value for name, value in tails.items()},
        "latency_samples": len(pooled),
        "latency_ms_rounds": [1e3 * m for m in latency.medians()],
        "latency_noise_rel": repeat_difference(latency),
    }


def _phases(rounds: Rounds) -> Fields:
    names = {name: None for r in rounds for name in r.get("phase_s", {})}
    return {
        f"{name}_ms_p50": 1e3 * Samples([list(r["phase_s"][name]) for r in rounds if "phase_s" in r]).centre()
        for name in names
    }


def _clocks(rounds: Rounds) -> Fields:
    """The GPU's state in the middle of the throughput passes, the mean over rounds."""
    busy = [r["gpu_busy"] for r in rounds if r.get("gpu_busy")]
    found = {}
    for name in ("sm_mhz", "memory_mhz", "temperature_c", "power_w"):
        values = [state[name] for state in busy if state.get(name) is not None]
        if values:
            found[f"gpu_{name}"] = float(np.mean(values))
    return found


def _device(rounds: Rounds, metrics: Fields) -> Fields:
    """What the device itself needs for a step, and whether the host keeps it waiting."""
    replayed = Samples([list(r["graph_block_s"]) for r in rounds if r.get("graph_block_s")])
    if not replayed.rounds:
        reason = next((r["graph_error"] for r in rounds if r.get("graph_error")), None)
        return {"device_step_error": reason} if reason else {}
    seconds = replayed.centre()
    return {
        "device_step_ms_p50": 1e3 * seconds,
        "device_images_per_s_p50": int(rounds[0]["batch"]) / seconds,
        "device_images_per_s_rounds": [int(rounds[0]["batch"]) / m for m in replayed.medians()],
        "device_noise_rel": repeat_difference(replayed),
        "launch_bound": metrics["step_ms_p50"] > LAUNCH_BOUND * 1e3 * seconds,
    }


def _energy(rounds: Rounds) -> Fields:
    """Median over the rounds of each energy figure; what is text stands as it is."""
    found: Fields = {}
    for name in {name: None for r in rounds for name in r.get("energy", {})}:
        values = [r["energy"][name] for r in rounds if r.get("energy", {}).get(name) is not None]
        found[name] = None if not values else values[0] if isinstance(values[0], str) else float(np.median(values))
    return found


def _roofline(rounds: Rounds, metrics: Fields) -> Fields:
    """Place the Cell under the measured roof; {} where FLOPs, traffic or ceilings are unknown.

    In training over forward and backward alone, whose FLOPs are counted. ``mfu`` is of the model's own FLOPs (three
    forward passes, or less where a gradient is not needed), ``hfu`` of all that run, recomputed ones included
    (Chowdhery et al., 2022, appendix B). The traffic is counted on the eager model: what a compiler fuses moves less,
    so a compiled Cell has its ``mfu`` and no place.
    """
    training = rounds[0].get("mode") == "train"
    macs_g = metrics.get("train_macs_g" if training else "macs_g")
    measured = next((r["ceilings"] for r in rounds if r.get("ceilings")), None)
    if macs_g is None or measured is None or not metrics.get("traffic_mib_per_image"):
        return {}
    ceilings = Ceilings(**measured)
    (precision,) = ceilings.gflops_per_s
    seconds = 1 / metrics["throughput_images_per_s_p50"]
    if training:
        seconds = (metrics["forward_ms_p50"] + metrics["backward_ms_p50"]) / 1e3 / int(rounds[0]["batch"])
    placed = place(2e9 * macs_g, metrics["traffic_mib_per_image"] * 2**20, seconds, ceilings, precision)
    found = {
        **placed,
        "ceiling_copy_gb_per_s": ceilings.copy_gb_per_s,
        "ceiling_gflops_per_s": ceilings.gflops_per_s[precision],
    }
    if training:
        found |= {"mfu": placed["mfu"] * min(1.0, 3 * metrics["macs_g"] / macs_g), "hfu": placed["mfu"]}
    if rounds[0].get("compile"):
        return {name: found[name] for name in ("mfu", "ceiling_gflops_per_s")}
    return found


def _noise(rounds: Rounds, blocks: Samples, metrics: Fields) -> Fields:
    kind = "cuda" if str(rounds[0].get("device", "cpu")).startswith("cuda") else "cpu"
    limit = NOISY_REL[kind]
    noise = repeat_difference(blocks)
    flags, evidence = set[str](), list[str]()
    if noise is not None and Z_95 * noise > limit:
        flags.add("noisy")
        seen = ", ".join(f"{1e3 * m:.4g}" for m in blocks.medians())
        evidence.append(
            f"rounds of {seen} ms a step: two runs would differ by up to {Z_95 * noise:.1%} (limit {limit:.0%})"
        )
    if metrics.get("launch_bound"):
        flags.add("launch-bound")
    for raw in rounds:
        where = f"round {raw['round'] + 1}: "
        warm = raw.get("warmup", {})
        if warm and not warm["stable"]:
            flags.add("not warm")
            apart = f"windows still {warm['spread']:.1%} apart" if warm["spread"] >= 0 else "not even three windows"
            evidence.append(f"{where}{apart} after {warm['seconds']:.1f} s of warm-up")
        disturbed = raw.get("disturbances", {})
        flags.update(disturbed.get("flags", ()))
        evidence += [where + text for text in disturbed.get("evidence", ())]
    return {
        "rounds": len(rounds),
        **({"rounds_begun": begun} if len(begun := [r["begun"] for r in rounds if "begun" in r]) else {}),
        "noise_rel": noise,
        "round_spread_rel": blocks.spread(),
        "noisy": "noisy" in flags,
        "flags": sorted(flags),
        "noisy_evidence": evidence,
    }


def repeat_difference(samples: Samples) -> float | None:
    """Standard deviation of the relative difference of two runs of this many rounds; None for one round.

    The figure of a run is the median of its rounds; the difference of two such medians has sqrt(2) times the deviation
    of one. 95 % of repeats lie within ``Z_95`` times the root mean square of this over many rows.
    """
    medians = np.asarray(samples.medians())
    count = len(medians)
    if count < 2:
        return None
    factor = MEDIAN_DEVIATION.get(count, 1.2533 / np.sqrt(count))
    return float(np.sqrt(2) * factor * np.std(medians, ddof=1) / samples.centre())

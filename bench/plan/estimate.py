"""Rough times of Cells before anything has run; torch-free. Good to a factor of two or three, and says so.

Accuracy: images seen x multiply-adds an image x 3 (forward and backward) over the rate such a device usually
reaches. A run in progress corrects the estimate by the ratio of measured to estimated seconds so far.
"""

from __future__ import annotations

from bench import registry
from bench.record.cells import AccuracyCell, Cell, EfficiencyCell
from bench.sweep.recipes import estimate_steps

# Multiply-adds per second (10^9) usually reached in training: per CPU core, and on a data-centre GPU in bf16.
CPU_GMACS_PER_CORE = 25.0
GPU_GMACS = 20_000.0
DEFAULT_MACS_G_224 = 4.0  # a plug-in that publishes no figure
OVERHEAD_S = 1.5  # building the network, loading data, computing metrics


def estimate_s(cell: Cell, threads: int, device: str) -> float:
    """Return the seconds a Cell will take, roughly."""
    if isinstance(cell, EfficiencyCell):
        passes = 2 if cell.mode == "infer" else 1
        return cell.rounds * (OVERHEAD_S + 2.0 * passes * cell.budget_s)
    facts = registry.model_facts(registry.parse_model(cell.model).name)
    info = registry.dataset_facts(cell.dataset)
    train_images, eval_images = 0, info.n_test or 1000
    if isinstance(cell, AccuracyCell):
        train_images, eval_images = estimate_steps(
            info.n_train or 1000, dict(cell.recipe), n_val=info.n_val or 0, n_test=info.n_test or 0
        )
    macs_g = (facts.counted_macs_g_224 or facts.macs_g_224 or DEFAULT_MACS_G_224) * (cell.resolution / 224) ** 2
    rate = GPU_GMACS if device.startswith("cuda") else CPU_GMACS_PER_CORE * threads
    return OVERHEAD_S + macs_g * (3 * train_images + eval_images) / rate

"""Memory of training and inference before anything runs, from what was measured once per network. Torch-free.

Activations grow with the pixels of a batch, so one figure per network is enough: bytes a pixel. Of inference they are
the slope of peak memory over pixels on an H100 in bf16 (results/efficiency: 64 to 1024 px, straight to 5 %); of
training the tensors that autograd keeps for the backward pass in fp32, counted at 64 and 128 px (which differ by up
to 16 %). To both come the weights. Other networks of a family are scaled by the square root of their multiply-adds
(ViT-S over ViT-T: 1.9; measured: 1.7 and 2.0). Workspaces and what the allocator holds in reserve are not counted; in
inference on an H100 these were another 10 to 60 %.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from bench import registry
from bench.machine import hardware
from bench.machine.memory import available
from bench.record.cells import AccuracyCell, Cell, EfficiencyCell, trials_of
from bench.registry import ModelInfo

CUBLAS_BYTES = 32 << 20  # its workspace on a Hopper GPU
BYTES_A_WEIGHT = 16  # in training: fp32 weight, gradient and AdamW's two averages


class _Measured(NamedTuple):
    """Bytes a pixel and image: of inference in bf16, and kept for the backward pass in fp32."""

    infer: float
    train: float


MEASURED = {
    "resnet18": _Measured(84, 445),
    "resnet50": _Measured(116, 1730),
    "vit_tiny_patch16_224": _Measured(36, 620),
    "vit_small_patch16_224": _Measured(60, 1220),
    "swin_tiny_patch4_window7_224": _Measured(263, 2700),
    "medmamba_tiny": _Measured(227, 1890),
    "vmamba_tiny": _Measured(208, 2460),
}
TYPICAL = "swin_tiny_patch4_window7_224"  # for networks of unknown families: the largest


def memory_bytes(cell: Cell) -> int:
    """Return the bytes that a Cell's model, its gradients, optimizer and activations take at once, roughly."""
    if isinstance(cell, AccuracyCell) and (trials := trials_of(cell)):
        return max(map(memory_bytes, trials))
    info = registry.model_info(registry.parse_model(cell.model).name)
    measured, scale = _of(info)
    params, pixels = info.params or 25_000_000, cell.resolution**2
    if isinstance(cell, AccuracyCell) and cell.track != "frozen":
        batch = int(cell.recipe["micro_batch_size"] or cell.recipe["batch_size"])
        half = 0.5 if cell.precision == "bf16" else 1.0
        return int(BYTES_A_WEIGHT * params + half * scale * measured.train * pixels * batch)
    width = 2.0 if getattr(cell, "precision", "fp32") == "fp32" else 1.0
    if isinstance(cell, EfficiencyCell):
        if cell.mode == "train":
            kept = (1.0 if cell.precision == "fp32" else 0.5) * scale * measured.train
            return int(BYTES_A_WEIGHT * params + kept * pixels * max(1, cell.batch))
        workspace = CUBLAS_BYTES if cell.device.startswith("cuda") else 0
        return int(workspace + 4 * params + width * scale * measured.infer * pixels * max(1, cell.batch))
    batch = int(cell.recipe["eval_batch_size"]) if isinstance(cell, AccuracyCell) else 256
    return int(4 * params + width * scale * measured.infer * pixels * batch)


def device_bytes(device: str) -> int | None:
    """Bytes of a GPU's memory, or what the machine has free for a CPU; None where that cannot be read."""
    if not device.startswith("cuda"):
        return available()
    number = int(device.partition(":")[2] or 0)
    found = hardware.gpus()
    return int(found[number]["memory_gib"]) << 30 if number < len(found) else None


def _of(info: ModelInfo) -> tuple[_Measured, float]:
    """What was measured for the nearest network, and by what to multiply it."""
    if info.name in MEASURED:
        return MEASURED[info.name], 1.0
    family = [name for name in MEASURED if registry.model_info(name).family == info.family]
    nearest = registry.model_info(family[-1] if family else TYPICAL)
    return MEASURED[nearest.name], sqrt(_macs(info) / _macs(nearest))


def _macs(info: ModelInfo) -> float:
    return info.counted_macs_g_224 or info.macs_g_224 or 4.0

"""Random numbers that depend on (seed, purpose, epoch, position) and on nothing else.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is counter-based: no state is
carried from epoch to epoch, and image ``i`` of an epoch gets the same numbers whatever the batch size, the device or
the order. Torch's generators give other numbers on CUDA than on the CPU, and NumPy promises only the raw stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

ORDER, AUGMENT, DROPOUT, WEIGHTS = 0, 1, 2, 3


def raw(seed: int, purpose: int, epoch: int, count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` 64-bit numbers of one stream."""
    key = np.array([seed % 2**64, (purpose << 32) | epoch], dtype=np.uint64)
    return np.atleast_1d(np.random.Philox(key=key).random_raw(count))


def uniforms(seed: int, purpose: int, epoch: int, rows: int, columns: int) -> npt.NDArray[np.float64]:
    """Return (rows, columns) numbers in [0, 1); row ``i`` does not depend on the number of rows."""
    bits = raw(seed, purpose, epoch, rows * columns).reshape(rows, columns)
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53, dtype=np.float64)


def order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a uniformly random permutation of 0..n-1."""
    return np.argsort(raw(seed, ORDER, epoch, n), kind="stable")


def torch_seed(seed: int, purpose: int, epoch: int = 0) -> int:
    """Return a seed for torch's own generator (weights, dropout), in 0..2^63-1."""
    return int(raw(seed, purpose, epoch, 1)[0] >> np.uint64(1))


def torch_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's generators that a model on ``device`` draws from."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_torch_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put torch's generators into a state that :func:`torch_state` returned."""
    import torch

    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)

"""Where the Triton backend's tensors lie, the order in which pixels are read, and how sequences are cut up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 32  # channels of a block: one warp
CARRY_EVERY = 16  # positions between the states kept for the backward, which holds as many in registers at a time
MAX_SEGMENTS = 32


@lru_cache(maxsize=64)
def order_table(h: int, w: int, directions: tuple[int, ...], device: torch.device) -> Tensor:
    """The pixel that each direction reads at each position, int32 (k, h*w)."""
    rows = torch.arange(h * w, dtype=torch.int32, device=device)
    columns = rows.view(h, w).t().reshape(-1)
    tables = [columns if i % 2 else rows for i in directions]
    return torch.stack([t.flip(0) if i >= 2 else t for i, t in zip(directions, tables, strict=True)])


class Layout(NamedTuple):
    """Sizes, and where things lie; the strides are those of `walks.py`."""

    batch: int
    k: int
    length: int
    d: int  # channels of one direction
    n: int
    xb: int
    xk: int
    xs: int
    yb: int
    yk: int
    ys: int
    pb: int
    pk: int
    ps: int

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.d // CHANNELS)

    @property
    def chunks(self) -> int:
        """Chunks of a sequence: the state before each is kept for the backward."""
        return -(-self.length // CARRY_EVERY)

    @property
    def group(self) -> int:
        """States that lie side by side where the backward reads them one after the other."""
        return 1 if self.n % 2 else 2

    @property
    def sequences(self) -> int:
        """Images times directions."""
        return self.batch * self.k

    def segments(self, device: torch.device, slots: int, extra: float) -> tuple[int, int]:
        """(segments, chunks a segment) that sequences are cut into; see `cut`."""
        return cut(self.sequences * self.blocks, self.chunks, slots * processors(device), extra)

    @property
    def strides(self) -> tuple[int, ...]:
        """All strides, in the order of the kernels' arguments."""
        return self.xb, self.xk, self.xs, self.yb, self.yk, self.ys, self.pb, self.pk, self.ps

    def state(self, segments: int, like: Tensor) -> Tensor:
        """One state a segment, (s, segments, n, d) float32."""
        return torch.empty((self.sequences, segments, self.n, self.d), dtype=torch.float32, device=like.device)

    def by_groups(self, A: Tensor) -> Tensor:
        """(k,d,n) as (k, blocks, groups, CHANNELS, group), zero behind the last channel."""
        A, missing = A.view(self.k, self.d, self.n), self.blocks * CHANNELS - self.d
        padded = F.pad(A, (0, 0, 0, missing)) if missing else A
        return padded.view(self.k, self.blocks, CHANNELS, -1, self.group).transpose(2, 3).contiguous()


@lru_cache(maxsize=1024)
def cut(warps: int, chunks: int, room: int, extra: float) -> tuple[int, int]:
    """Cut sequences of `chunks` chunks, the work of `warps` warps, into (segments, chunks a segment).

    The device runs `room` warps at once, in waves; each segment but one costs `extra` of its time again for the walk
    that finds what it passes on. Fewer waves of shorter segments win.
    """
    best, best_time = 1, float(-(-warps // room))
    for wanted in range(2, min(chunks, MAX_SEGMENTS) + 1):
        each = -(-chunks // wanted)
        segments = -(-chunks // each)
        waves = -(-warps * segments // room) + extra * -(-warps * (segments - 1) // room)
        if waves * each / chunks < 0.95 * best_time:
            best, best_time = segments, waves * each / chunks
    return best, -(-chunks // best)


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """The context in which kernels are launched where x lies."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 under the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count

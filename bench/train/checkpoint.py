"""A training in progress on disk, so that a killed Cell goes on where it was, to the same bits.

Written between two steps, atomically, and only by trainings that take longer than :data:`EVERY_S`. Order and
augmentation of an epoch follow from the seed and the epoch's number; within an epoch, the state of torch's own
generator (dropout) is stored besides. When a training of more than :data:`WORTH_S` is over, its outcome is written the
same way (the chosen weights and the history, nothing else), so that a kill before the Record is there repeats no epoch.
The driver removes the file after the Record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.record.files import replacing
from bench.record.types import Fields

EVERY_S = 60.0
WORTH_S = 5.0
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept. ``identity`` (the Cell's key) guards against another training's file."""

    path: Path
    identity: str
    every_s: float = EVERY_S
    worth_s: float = WORTH_S

    def save(self, state: Mapping[str, object]) -> None:
        """Write ``state``: plain data and tensors.

        A disk that is full loses the checkpoint, not the training: it says so and goes on.
        """
        try:
            with replacing(self.path) as part:
                torch.save({"format": FORMAT, "identity": self.identity, **state}, part)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a failing write into a RuntimeError
            print(f"checkpoint {self.path} could not be written ({error}); training goes on without it", flush=True)

    def load(self) -> Fields | None:
        """Return the stored state, on the CPU; None if there is none, or it is damaged or another training's."""
        try:
            # mmap=False: the file is replaced while its tensors may still be in use
            state: Fields = torch.load(self.path, map_location="cpu", weights_only=True, mmap=False)
            return state if (state["format"], state["identity"]) == (FORMAT, self.identity) else None
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file raises almost anything; starting anew is always right
            print(f"checkpoint {self.path} cannot be read ({type(error).__name__}: {error}); training starts anew")
            return None

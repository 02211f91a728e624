"""A training in progress on disk, so that a killed Cell goes on where it was, to the same bits.

Written between epochs, atomically, and only by trainings that take longer than :data:`EVERY_S`. Nothing random needs to
be stored: order, augmentation and dropout of an epoch follow from the seed and the epoch's number.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bench.training.loop import Trainer

EVERY_S = 60.0
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept. ``identity`` (the Cell's key) guards against another training's file."""

    path: Path
    identity: str
    every_s: float = EVERY_S

    def save(self, trainer: Trainer) -> None:
        """Write the state after a finished epoch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            torch.save({"format": FORMAT, "identity": self.identity, **_state(trainer)}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def restore(self, trainer: Trainer) -> bool:
        """Put a trainer into the stored state; False if there is none, or it is damaged or another training's."""
        try:
            # mmap=False: the file is replaced while its tensors may still be in use
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=False)
            if (state["format"], state["identity"]) != (FORMAT, self.identity):
                return False
        except FileNotFoundError:
            return False
        except Exception as error:  # a damaged file raises almost anything; starting anew is always right
            print(f"checkpoint {self.path} cannot be read ({type(error).__name__}: {error}); training starts anew")
            return False
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.average is not None:
            trainer.average.load_state_dict(state["average"])
        trainer.best = {name: tensor.to(trainer.device) for name, tensor in state["best"].items()}
        trainer.outcome.history = state["history"]
        trainer.outcome.best_epoch = state["best_epoch"]
        return True

    def remove(self) -> None:
        """Delete the file: the training is over."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _state(trainer: Trainer) -> dict[str, Any]:
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "average": None if trainer.average is None else trainer.average.state_dict(),
        "best": trainer.best,
        "history": trainer.outcome.history,
        "best_epoch": trainer.outcome.best_epoch,
    }

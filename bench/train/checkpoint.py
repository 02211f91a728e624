"""A training in progress on disk, so that a killed Cell goes on where it was, to the same bits.

Written between two steps, atomically, and only by trainings that take longer than :data:`EVERY_S`. Order and
augmentation of an epoch follow from the seed and the epoch's number; within an epoch, the state of torch's own
generator (dropout) is stored besides. When a training of more than :data:`WORTH_S` is over, its outcome is written the
same way (the chosen weights and the history, nothing else), so that a kill before the Record is there repeats no epoch.
The driver removes the file after the Record.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.train import rng

if TYPE_CHECKING:
    from bench.train.loop import Trainer

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

    def save(self, trainer: Trainer, finished: bool = False) -> None:
        """Write the present state; of a finished training only what remains to be evaluated.

        A disk that is full loses the checkpoint, not the training: it says so and goes on.
        """
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save({"format": FORMAT, "identity": self.identity, **_state(trainer, finished)}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a failing write into a RuntimeError
            print(f"checkpoint {self.path} could not be written ({error}); training goes on without it", flush=True)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

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
        if state["model"] is not None:
            trainer.model.load_state_dict(state["model"])
            trainer.optimizer.load_state_dict(state["optimizer"])
            if trainer.average is not None:
                trainer.average.load_state_dict(state["average"])
        trainer.best = {name: tensor.to(trainer.device) for name, tensor in state["best"].items()}
        trainer.outcome.history = state["history"]
        trainer.outcome.best_epoch = state["best_epoch"]
        trainer.finished = state["model"] is None
        trainer.position = state.get("position")
        return True


def _state(trainer: Trainer, finished: bool) -> dict[str, Any]:
    going_on = not finished
    position = None
    if trainer.position is not None and going_on:
        position = {**trainer.position, "random": rng.torch_state(trainer.device)}
    return {
        "position": position,
        "model": trainer.model.state_dict() if going_on else None,
        "optimizer": trainer.optimizer.state_dict() if going_on else None,
        "average": trainer.average.state_dict() if going_on and trainer.average is not None else None,
        "best": trainer.best,
        "history": trainer.outcome.history,
        "best_epoch": trainer.outcome.best_epoch,
    }

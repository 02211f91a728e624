"""Train one model: choose an epoch on validation, evaluate the test split once.

Nothing in a step waits for the device: losses are summed on it and read once an epoch. Given the same model,
recipe, seed, device and threads, every bit comes out the same: the order and the augmentation of an epoch are
counter-based, and torch's generator (dropout, stochastic depth) is seeded anew at the start of each epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.metrics import classification, one_vs_rest
from bench.record.cells import Stopped, never
from bench.record.types import Fields, Recipe
from bench.train import rng, turns
from bench.train.checkpoint import Checkpoint
from bench.train.optim import LearningRates, Loss, learning_rate, make_optimizer
from bench.train.pipeline import Pipeline, batch_bounds
from bench.train.replay import Replayed

Progress = Callable[[Fields], None]
REPORT_EVERY_S = 0.5


class Splits(NamedTuple):
    """The pipelines of a dataset."""

    train: Pipeline
    val: Pipeline
    test: Pipeline


@dataclass(slots=True)
class Outcome:
    """What a training came to. Scores are probabilities, float64 (N, C); ``best_epoch`` counts from 1."""

    status: str = "ok"
    reason: str = ""
    history: list[Fields] = field(default_factory=list)
    best_epoch: int = 0
    val_scores: npt.NDArray[np.float64] | None = None
    test_scores: npt.NDArray[np.float64] | None = None
    timings: dict[str, float] = field(default_factory=dict)


class DivergedError(ArithmeticError):
    """The loss or a validation score stopped being a number."""


class Trainer:
    """One training in progress.

    Args:
        model: on its device already, in the memory format of the pipelines.
        splits: the data.
        recipe: a resolved recipe.
        task: one of :data:`bench.registry.TASKS`.
        n_classes: outputs of the model.
        seed: of order, augmentation and dropout (the weights are the model's own).
        precision: ``fp32``, or ``bf16`` for autocast.
        progress: called with plain dicts, at most every half second within an epoch.
        checkpoint: where to keep long trainings between epochs, and to go on from.
        stop: asked after each step whether to end here, in the state of the last epoch.
        record: on CUDA, replay steps and evaluation as graphs (:mod:`bench.train.replay`); the numbers are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        *,
        task: str,
        n_classes: int,
        seed: int,
        precision: str = "fp32",
        progress: Progress = lambda event: None,
        checkpoint: Checkpoint | None = None,
        stop: Callable[[], bool] = never,
        record: bool = True,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {precision!r}; training runs in fp32 or bf16")
        self.model, self.splits, self.recipe = model, splits, recipe
        self.task, self.seed, self.precision, self.progress = task, seed, precision, progress
        self.device = splits.train.device
        self.optimizer = make_optimizer(model, recipe)
        labels = splits.train.labels.cpu().numpy()
        self.val_labels = splits.val.labels.cpu().numpy()
        self.loss = Loss(task, recipe, labels, n_classes, self.device)
        self.average = _moving_average(model, recipe["ema_decay"])
        self.best: dict[str, torch.Tensor] = {}
        self.outcome = Outcome()
        self.checkpoint, self.stop = checkpoint, stop
        self.finished = False
        self.position: Fields | None = None
        self.stepped = compiled(model, recipe["compile"])
        # torch's own "reduce-overhead" records graphs itself
        record = record and recipe["compile"] != "cuda-graphs"
        self.step = Replayed(self._step, self.device, record=record)
        self.logits = Replayed(self._logits, self.device, record=record)
        self.rates = LearningRates(self.optimizer, self.device)
        self.rate, self.data_s, self.seen, self.saved = 0.0, 0.0, 0, 0.0

    def fit(self) -> Outcome:
        """Train all epochs, restore the chosen one and score the test split with it.

        The checkpoint stays where it is: whoever writes the result down removes it.

        Raises:
            Stopped: it was asked to; the epochs done are in the checkpoint.
        """
        started = self.saved = time.perf_counter()
        if self.checkpoint and (state := self.checkpoint.load()):
            self.load_state_dict(state)
            self.outcome.timings["resumed_after_epoch"] = len(self.outcome.history)
        try:
            for epoch in range(len(self.outcome.history), self.recipe["epochs"]):
                if self.finished or self._exhausted():
                    break
                self.outcome.history.append(self._epoch(epoch))
                if self._improved():
                    self.outcome.best_epoch = epoch + 1
                    self._keep()
                self._pause(f"after epoch {epoch + 1}")
        except DivergedError as error:
            self.outcome.status, self.outcome.reason = "diverged", str(error)
        self.outcome.timings["train_s"] = time.perf_counter() - started
        self._share_of_data()
        if self.outcome.status == "ok":
            if self.checkpoint and not self.finished and time.perf_counter() - self.saved >= self.checkpoint.worth_s:
                self.checkpoint.save(self.state_dict(finished=True))
            self._finish()
        return self.outcome

    def state_dict(self, finished: bool = False) -> Fields:
        """Return all that the training needs to go on to the same bits; ``finished``: only what is to be evaluated."""
        position = None
        if self.position is not None and not finished:
            with turns.turn():
                position = {**self.position, "random": rng.torch_state(self.device)}
        return {
            "position": position,
            "model": None if finished else self.model.state_dict(),
            "optimizer": None if finished else self.optimizer.state_dict(),
            "average": None if finished or self.average is None else self.average.state_dict(),
            "best": self.best,
            "history": self.outcome.history,
            "best_epoch": self.outcome.best_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned; its tensors may be on another device."""
        self.finished = state["model"] is None
        if not self.finished:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        self.best = {name: tensor.to(self.device) for name, tensor in state["best"].items()}
        self.outcome.history, self.outcome.best_epoch = state["history"], state["best_epoch"]
        self.position = state.get("position")

    def _pause(self, where: str) -> None:
        """Write a checkpoint when it is time, or when asked to stop; then stop."""
        asked = self.stop()
        if self.checkpoint and (asked or time.perf_counter() - self.saved >= self.checkpoint.every_s):
            self.checkpoint.save(self.state_dict())
            self.saved = time.perf_counter()
        if asked:
            raise Stopped(where)

    def _share_of_data(self) -> None:
        """Put into the timings how long the steps waited for their batches: seconds, and as a part of all steps."""
        rows = [row for row in self.outcome.history if "data_seconds" in row]
        if (seconds := sum(row["seconds"] for row in rows)) > 0:
            waited = sum(row["data_seconds"] for row in rows)
            self.outcome.timings |= {"data_s": waited, "data_share": waited / seconds}

    def _finish(self) -> None:
        started = time.perf_counter()
        model = self._evaluated()
        model.load_state_dict(self.best)
        self.progress({"phase": "eval"})
        self.outcome.val_scores = scores_of(model, self.splits.val, self.task, self.precision, self.logits)
        self.outcome.test_scores = scores_of(model, self.splits.test, self.task, self.precision, self.logits)
        if not np.isfinite(self.outcome.test_scores).all():
            self.outcome.status, self.outcome.reason = "diverged", "scores of the test split are not finite"
        self.outcome.timings["test_s"] = time.perf_counter() - started

    def _epoch(self, epoch: int) -> Fields:
        started = time.perf_counter()
        loss = self._train_epoch(epoch)
        seconds = time.perf_counter() - started
        rate = self.seen / seconds
        event = {"epoch": epoch + 1, "epochs": self.recipe["epochs"], "loss": loss, "images_per_s": rate}
        self.progress({"phase": "eval", **event})
        row = {"epoch": epoch + 1, "train_loss": loss}
        spent = {"seconds": seconds, "data_seconds": self.data_s, "images_per_s": rate}
        if not math.isfinite(loss):
            self.outcome.history.append({**row, **spent})
            raise DivergedError(f"the training loss became {loss} in epoch {epoch + 1}")
        scores = scores_of(self._evaluated(), self.splits.val, self.task, self.precision, self.logits)
        if not np.isfinite(scores).all():
            self.outcome.history.append({**row, **spent})
            raise DivergedError(f"validation scores are not finite after epoch {epoch + 1}")
        # scikit-learn's checks of its input would take longer here than an epoch of a small set
        row |= {
            "val_loss": classification.negative_log_likelihood(self.val_labels, scores, self.task),
            "val_auc": one_vs_rest.auc(scores, self.val_labels),
            "val_acc": one_vs_rest.acc(scores, self.val_labels),
            "lr": self.rate,
            "eval_seconds": time.perf_counter() - started - seconds,
            **spent,
        }
        return row

    def _train_epoch(self, epoch: int) -> float:
        """Run one epoch; return the mean loss over its images."""
        turns.seed(rng.torch_seed(self.seed, rng.DROPOUT, epoch))
        self.model.train()
        n = len(self.splits.train)
        steps = len(batch_bounds(n, self.recipe["batch_size"]))
        first, total = self._resumed()
        began = reported = time.perf_counter()
        self.seen, self.data_s = 0, 0.0
        batches = self._timed(self.splits.train.train_batches(self.seed, epoch, first))
        for step, (images, labels) in enumerate(batches, first):
            self.rate = learning_rate(self.recipe, epoch * steps + step, steps)
            self.rates.set(self.rate)
            total += self.step(images, labels)
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.seen += len(images)
            if step + 1 < steps:
                self.position = {"step": step + 1, "total": total}
                self._pause(f"in epoch {epoch + 1}, after step {step + 1} of {steps}")
                self.position = None
            now = time.perf_counter()
            if now - reported > REPORT_EVERY_S:
                reported = now
                event = {"epoch": epoch + 1, "epochs": self.recipe["epochs"], "images_per_s": self.seen / (now - began)}
                self.progress({"phase": "train", **event})
        return float(total) / n

    def _resumed(self) -> tuple[int, torch.Tensor]:
        """Where the epoch begins: at its first step with no loss yet, or where a checkpoint left it."""
        at, self.position = self.position, None
        if at is None:
            return 0, torch.zeros((), dtype=torch.float64, device=self.device)
        with turns.turn():
            rng.set_torch_state(at["random"], self.device)
        return int(at["step"]), at["total"].to(self.device)

    def _timed(
        self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pass batches on and add up how long the loop waits for them."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.data_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one optimizer step; return the summed loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = micro_batches(len(images), self.recipe["micro_batch_size"])
        for part_images, part_labels in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            losses = self.loss(self.forward(self.stepped, part_images), part_labels).sum()
            (losses / len(images)).backward()
            total += losses.detach()
        if self.recipe["gradient_clip"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe["gradient_clip"])
        self.optimizer.step()
        return total

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward(self._evaluated(), images).float()

    def forward(self, model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return logits in the training's precision."""
        return forward(model, images, self.precision)

    def _evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def _ranked(self, row: Mapping[str, Any]) -> float:
        """Return what the recipe selects by, larger is better; an undefined value is the worst."""
        rule = self.recipe["select"]
        value = row["epoch"] if rule == "last" else -row["val_loss"] if rule == "val_loss" else row[rule]
        return float(value) if math.isfinite(value) else -math.inf

    def _improved(self) -> bool:
        *before, last = (self._ranked(row) for row in self.outcome.history)
        return not before or last > max(before)

    def _exhausted(self) -> bool:
        patience = self.recipe["early_stopping_patience"]
        return bool(patience) and len(self.outcome.history) - self.outcome.best_epoch >= patience

    def _keep(self) -> None:
        state = self._evaluated().state_dict()
        if not self.best:
            self.best = {name: tensor.detach().clone() for name, tensor in state.items()}
            return
        for name, tensor in state.items():
            self.best[name].copy_(tensor)


def forward(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, precision: str) -> torch.Tensor:
    """Return logits; ``bf16`` is autocast."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return model(images)


def scores_of(
    model: nn.Module,
    pipeline: Pipeline,
    task: str,
    precision: str,
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> npt.NDArray[np.float64]:
    """Return probabilities (N, C) of a split in float64, computed from float32 logits.

    ``logits`` computes those of a batch in place of a plain forward pass of ``model``; it may reuse its output.
    """
    model.eval()
    run = logits or (lambda images: forward(model, images, precision).float())
    with torch.inference_mode():
        wide = torch.cat([run(images).clone() for images in pipeline.eval_batches()]).cpu().double()
    scores = torch.sigmoid(wide) if task == "multi-label" else torch.softmax(wide, dim=1)
    return scores.numpy()


def compiled(model: nn.Module, how: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile the training's forward and backward passes as the recipe says; the module itself stays what it is.

    ``cuda-graphs`` replays each batch shape as one graph (torch's mode "reduce-overhead"); on a CPU there are none.
    """
    if how == "none":
        return model
    mode = "reduce-overhead" if how == "cuda-graphs" else None
    found: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model, dynamic=False, mode=mode)
    return found


def micro_batches(n: int, size: int) -> int:
    """Return into how many parts a batch of ``n`` is cut: of at most ``size`` images, and of no fewer than two.

    Two go before ``size`` (batch norm cannot be trained on one image): with size 1 parts have two images or three. A
    batch of one image stays what it is. Size 0 cuts nothing.
    """
    return 1 if size == 0 else max(1, min(math.ceil(n / size), n // 2))


def _moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

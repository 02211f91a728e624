"""Training on a CUDA device: the same bits twice, the same data as on the CPU, no waiting for data."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry
from bench.record.cells import Stopped
from bench.sweep.recipes import resolve
from bench.train import accuracy
from bench.train.checkpoint import Checkpoint
from bench.train.loop import Outcome, Splits, Trainer
from bench.train.pipeline import Pipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "medmamba_tiny", "vmamba_tiny"]
CUDA = torch.device("cuda:0") if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    accuracy._make_deterministic(CUDA)
    yield
    torch.use_deterministic_algorithms(False)


def pipelines(recipe: dict[str, Any], device: torch.device, n: int = 256, resolution: int = 32, **more: Any) -> Splits:
    made = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, n)
        pixels = (rng.integers(0, 200, (n, 28, 28, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
        settings = {"resolution": resolution, "resize": "nearest", "device": device, "mirror_safe": True, **more}
        made.append(Pipeline(pixels, labels, recipe, **settings))
    return Splits(*made)


def train(name: str, precision: str, **more: Any) -> Outcome:
    recipe = resolve("standard", epochs=2, batch_size=32)
    torch.manual_seed(0)
    model = registry.model_info(name).build(2, 3, 32).to(CUDA)
    splits = pipelines(recipe, CUDA, **more)
    return Trainer(model, splits, recipe, task="binary-class", n_classes=2, seed=0, precision=precision).fit()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_same_bits_twice(name: str, precision: str) -> None:
    first, second = train(name, precision), train(name, precision)
    assert first.status == second.status == "ok"
    assert np.array_equal(first.test_scores, second.test_scores) and np.array_equal(first.val_scores, second.val_scores)


def test_splits_kept_in_host_memory_give_the_same_bits() -> None:
    here, there = train("resnet18", "bf16", resident=True), train("resnet18", "bf16", resident=False)
    assert np.array_equal(here.test_scores, there.test_scores)


def test_the_device_sees_the_images_the_cpu_sees() -> None:
    recipe = resolve("standard", batch_size=50)
    pairs = zip(
        *(pipelines(recipe, device).train.train_batches(3, 1) for device in (torch.device("cpu"), CUDA)), strict=True
    )
    for (images, labels), (device_images, device_labels) in pairs:
        assert torch.equal(labels, device_labels.cpu())
        assert torch.allclose(images, device_images.cpu(), atol=1e-5)


def test_no_step_waits_for_the_device() -> None:
    recipe = resolve("standard", batch_size=64)
    splits = pipelines(recipe, CUDA)
    model = registry.model_info("resnet18").build(2, 3, 32).to(CUDA)
    trainer = Trainer(model, splits, recipe, task="binary-class", n_classes=2, seed=0)
    batches = splits.train.train_batches(0, 0)
    trainer._step(*next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches:
            trainer._step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_data_takes_a_small_share_of_a_step() -> None:
    recipe = resolve("standard", batch_size=128)
    splits = pipelines(recipe, CUDA, n=128 * 20, resolution=224)
    model = registry.model_info("resnet18").build(2, 3, 224).to(CUDA)
    trainer = Trainer(model, splits, recipe, task="binary-class", n_classes=2, seed=0, precision="bf16")

    def seconds(with_steps: bool) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for images, labels in splits.train.train_batches(0, 0):
            if with_steps:
                trainer._step(images, labels)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(True)
    data, both = (min(seconds(flag) for _ in range(3)) for flag in (False, True))
    print(f"28 -> 224 px, augmented: data {data / both:.1%} of a training step of resnet18 in bf16")
    assert data < 0.25 * both


def losses(name: str, precision: str, record: bool, **settings: Any) -> tuple[list[float], Outcome, Trainer]:
    """Four short epochs with a last batch of 4 images; nothing of it is random but order and augmentation."""
    recipe = resolve("standard", epochs=4, batch_size=36, warmup_epochs=0, **settings)
    torch.manual_seed(0)
    model = registry.model_info(name).build(2, 3, 32).to(CUDA)
    splits = pipelines(recipe, CUDA, n=112)
    made = {"task": "binary-class", "n_classes": 2, "seed": 0, "precision": precision, "record": record}
    trainer = Trainer(model, splits, recipe, **made)
    outcome = trainer.fit()
    return [row["train_loss"] for row in outcome.history], outcome, trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_replayed_steps_give_the_bits_of_eager_ones(name: str, precision: str) -> None:
    """Stochastic depth and dropout included: torch's generator goes on within graphs."""
    (eager, plain, _), (replayed, found, trainer) = (losses(name, precision, record) for record in (False, True))
    assert trainer.step.replays and trainer.logits.replays, trainer.step.reason or trainer.logits.reason
    assert replayed == eager
    assert np.array_equal(found.test_scores, plain.test_scores)


@pytest.mark.parametrize(
    "settings", [{"ema_decay": 0.9}, {"optimizer": "sgd"}, {"optimizer": "adam"}, {"micro_batch_size": 9}]
)
def test_every_part_of_a_step_can_be_replayed(settings: dict[str, Any]) -> None:
    (eager, plain, _), (replayed, found, trainer) = (
        losses("resnet18", "bf16", record, **settings) for record in (False, True)
    )
    assert trainer.step.replays, trainer.step.reason
    assert replayed == eager and np.array_equal(found.test_scores, plain.test_scores)


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(steps: int, tmp_path: Path) -> None:
    """Stopped before, and after, its steps are recorded as a graph; the rest draws as if nothing had happened."""

    def begin(stop: Callable[[], bool], kept: Checkpoint | None) -> Trainer:
        recipe = resolve("standard", epochs=4, batch_size=36, warmup_epochs=0)
        torch.manual_seed(0)
        model = registry.model_info("vit_tiny_patch16_224").build(2, 3, 32, drop_rate=0.2, drop_path_rate=0.1).to(CUDA)
        made = {"task": "binary-class", "n_classes": 2, "seed": 0, "precision": "bf16", "stop": stop}
        return Trainer(model, pipelines(recipe, CUDA, n=112), recipe, checkpoint=kept, **made)

    undisturbed = begin(lambda: False, None).fit()
    asked, kept = iter(range(10_000)), Checkpoint(tmp_path / "x.pt", "x")
    with pytest.raises(Stopped):
        begin(lambda: next(asked) >= steps, kept).fit()
    resumed = begin(lambda: False, kept).fit()
    assert "resumed_after_epoch" in resumed.timings
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in undisturbed.history]
    assert np.array_equal(resumed.test_scores, undisturbed.test_scores)


class Waiting(torch.nn.Module):
    """A network that asks the device for a number in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        return self.head(means if float(means.sum()) > -1e9 else -means)


def test_a_step_that_cannot_be_recorded_runs_eagerly_and_says_why() -> None:
    recipe = resolve("standard", epochs=3, batch_size=32)
    found = []
    for record in (True, False):
        torch.manual_seed(0)
        splits = pipelines(recipe, CUDA, n=128)
        made = {"task": "binary-class", "n_classes": 2, "seed": 0, "record": record}
        trainer = Trainer(Waiting().to(CUDA), splits, recipe, **made)
        found.append(trainer.fit())
    first, second = found
    assert first.status == "ok" and np.array_equal(first.test_scores, second.test_scores)
    trainer = Trainer(
        Waiting().to(CUDA), pipelines(recipe, CUDA, n=128), recipe, task="binary-class", n_classes=2, seed=0
    )
    trainer.fit()
    assert not trainer.step.replays and "captur" in trainer.step.reason

"""Images per second of one training on a CUDA device: eager, replayed, and the bare replayed step.

python -m tools.training_speed --models medmamba_tiny,resnet18 --resolution 64
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

import numpy as np
import torch

from bench import registry
from bench.sweep.recipes import resolve
from bench.train import accuracy, turns
from bench.train.loop import Splits, Trainer
from bench.train.pipeline import Pipeline


def make(name: str, resolution: int, images: int, record: bool) -> Trainer:
    """A training on random images, as `bench run` sets it up: recipe medmnist, bf16, batch 128."""
    device = torch.device("cuda:0")
    recipe = resolve("medmnist", epochs=3)
    rng = np.random.default_rng(0)
    made = []
    for n in (images, 512, 512):
        pixels = rng.integers(0, 256, (n, resolution, resolution, 3), np.uint8)
        settings = {"resolution": resolution, "resize": "native", "device": device, "channels_last": True}
        made.append(Pipeline(pixels, rng.integers(0, 2, n), recipe, **settings))
    torch.manual_seed(0)
    model = registry.model_info(name).build(2, 3, resolution).to(device)
    if channels_last := accuracy.prefers_channels_last(model):
        model = model.to(memory_format=torch.channels_last)
    for split in made:
        split.preprocess.layout = torch.channels_last if channels_last else torch.contiguous_format
    given = {"task": "binary-class", "n_classes": 2, "seed": 0, "precision": "bf16", "record": record}
    return Trainer(model, Splits(*made), recipe, **given)


def rate_of_epochs(trainer: Trainer) -> float:
    """Median images/s of the epochs after the first, as the Record's `train_images_per_s`."""
    history = trainer.fit().history
    return statistics.median(row["images_per_s"] for row in history[1:])


def rate_of_step(trainer: Trainer, seconds: float = 1.0) -> float:
    """Images/s of the recorded step alone, replayed without data."""
    images, labels = next(iter(trainer.splits.train.train_batches(0, 0)))
    graph = trainer.step._graphs[(images.shape, labels.shape)].graph

    def timed(repeats: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    once = timed(3)
    return len(images) / statistics.median(timed(max(3, int(seconds / 5 / once))) for _ in range(5))


def rate_together(name: str, resolution: int, images: int, count: int) -> float:
    """Images/s of ``count`` trainings at a time, each in a thread and on a stream of its own, while all of them run."""
    ready, rates = threading.Barrier(count), [0.0] * count

    def train(number: int) -> None:
        device = torch.device("cuda:0")
        with turns.join(device), torch.cuda.stream(torch.cuda.Stream(device)):
            with turns.turn():
                trainer = make(name, resolution, images, True)
            trainer._epoch(0)  # records its graphs
            ready.wait()
            began = time.perf_counter()
            for epoch in (1, 2):
                trainer._train_epoch(epoch)
            rates[number] = 2 * images / (time.perf_counter() - began)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--models", default="medmamba_tiny,vmamba_tiny,resnet18,vit_tiny_patch16_224,swin_tiny_patch4_window7_224"
    )
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--together", type=int, default=0, help="only this: so many trainings of a model at a time")
    options = parser.parse_args()
    accuracy._make_deterministic(torch.device("cuda:0"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, f"{options.resolution} px, batch 128, bf16")
    for name in options.models.split(",") if options.together else ():
        rate = rate_together(name, options.resolution, options.images, options.together)
        print(f"{name:32s} {options.together} at a time: {rate:8.0f} images/s", flush=True)
    if options.together:
        return
    print(f"{'model':32s} {'eager':>8s} {'replayed':>9s} {'step':>8s}  of step")
    for name in options.models.split(","):
        eager = rate_of_epochs(make(name, options.resolution, options.images, False))
        trainer = make(name, options.resolution, options.images, True)
        replayed = rate_of_epochs(trainer)
        if not trainer.step.replays:
            print(f"{name:32s} {eager:8.0f} not recorded: {trainer.step.reason}")
            continue
        step = rate_of_step(trainer)
        print(f"{name:32s} {eager:8.0f} {replayed:9.0f} {step:8.0f}  {replayed / step:7.2f}", flush=True)


if __name__ == "__main__":
    main()

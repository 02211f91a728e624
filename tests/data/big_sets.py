"""Prepares a dataset in a process of its own, NAME SIZE ROOT CACHE, and prints what it cost as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def peak_mib() -> float:
    """Of this program. ``getrusage`` would give at least what the process held that started it, pytest with torch."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(name: str, size: int, root: Path, cache: Path) -> None:
    from bench import registry
    from bench.data.cache import open_entry

    before = peak_mib()
    started = time.perf_counter()
    info = registry.dataset_info(name)
    facts_s = time.perf_counter() - started
    open_entry(info, size, root, cache, resize="bilinear")
    prepare_s = time.perf_counter() - started
    cost = {"facts_s": facts_s, "prepare_s": prepare_s, "imports_mib": before}
    cost["peak_mib"] = peak_mib()
    cost["child_peak_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024

    import torch

    from bench.sweep.recipes import resolve
    from bench.train.pipeline import Pipeline

    recipe = {**resolve("medmnist"), "batch_size": 128}
    started = time.perf_counter()
    entry = open_entry(info, size, root, cache, resize="bilinear")
    cost["open_s"] = time.perf_counter() - started
    train = entry.splits["train"]
    pipeline = Pipeline(
        train.images, train.labels, recipe, resolution=size, resize="native", device=torch.device("cpu")
    )
    images, _ = next(iter(pipeline.train_batches(0, 0)))
    cost["first_batch_s"] = time.perf_counter() - started
    cost["batch_shape"] = list(images.shape)
    cost["images"] = sum(len(split.labels) for split in entry.splits.values())
    print(json.dumps(cost))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))

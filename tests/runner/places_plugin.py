"""A plug-in of the runner's tests: networks that tell where they run, take their time or fail, and 48 images."""

import errno
import json
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.registry import Split, register_dataset, register_model
from bench.train.turns import joined


def told():
    """Where networks write: the folder ``PLACES``, or one of the driver, whose forkserver may be older than a test."""
    parent = multiprocessing.parent_process()
    own = Path(tempfile.gettempdir()) / f"places-{parent.pid if parent else os.getpid()}"
    return Path(os.environ.get("PLACES", own))


class Linear(nn.Module):
    def __init__(self, num_classes, in_chans, seconds=0.0):
        super().__init__()
        self.head = nn.Linear(16 * in_chans, num_classes)
        self.seconds = seconds

    def forward(self, x):
        if self.seconds:
            print("a step of an epoch", flush=True)
            time.sleep(self.seconds)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@register_model(family="places")
def place_plain(num_classes, in_chans, img_size):
    return Linear(num_classes, in_chans)


@register_model(family="places")
def place_slow(num_classes, in_chans, img_size):
    return Linear(num_classes, in_chans, 0.02)


@register_model(family="places")
def place_random(num_classes, in_chans, img_size):
    """Draws in every step, so that its numbers depend on whose generators it uses."""
    return nn.Sequential(nn.Dropout(0.5), Linear(num_classes, in_chans, 0.002))


@register_model(family="faulty")
def place_raises(num_classes, in_chans, img_size):
    raise ValueError("a planted fault")


@register_model(family="faulty")
def place_out_of_memory(num_classes, in_chans, img_size):
    raise MemoryError("planted")


@register_model(family="faulty")
def place_dies(num_classes, in_chans, img_size):
    os.kill(os.getpid(), signal.SIGKILL)


@register_model(family="faulty")
def place_hangs(num_classes, in_chans, img_size):
    if num_classes == 1000:  # a round of an efficiency cell need not wait for the time limit too
        raise TimeoutError("planted")
    time.sleep(600)


@register_model(
    family="faulty", unsupported=lambda resolution, options: "only at 29 pixels" if resolution != 29 else None
)
def place_picky(num_classes, in_chans, img_size):
    return Linear(num_classes, in_chans)


@register_model(family="places")
def place_needs_room(num_classes, in_chans, img_size):
    """Finds no memory beside others."""
    if joined():
        raise MemoryError("planted")
    return Linear(num_classes, in_chans)


class Choosy(Linear):
    """Has no deterministic form."""

    def forward(self, x):
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("choosy has no deterministic implementation")
        return super().forward(x)


@register_model(family="places")
def place_choosy(num_classes, in_chans, img_size):
    return Choosy(num_classes, in_chans)


@register_model(family="places")
def place_tells(num_classes, in_chans, img_size):
    """Write down where this worker runs, from when to when; if there is a file ``meet``, wait for a second one."""
    folder = told()
    began = time.monotonic()
    if (folder / "meet").exists() and num_classes != 1000:  # the efficiency cells' number
        (folder / f"here-{os.getpid()}").touch()
        while len(list(folder.glob("here-*"))) < 2 and time.monotonic() < began + 60:
            time.sleep(0.02)
    facts = {
        "began": began,
        "ended": time.monotonic(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "group": os.getpgid(0) == os.getpid(),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
    }
    (folder / f"{time.monotonic_ns()}.json").write_text(json.dumps(facts))
    return Linear(num_classes, in_chans)


@register_model(family="places")
def place_full_disk(num_classes, in_chans, img_size):
    """Fail as a full disk does, until there is a file ``room``."""
    if not (told() / "room").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    return Linear(num_classes, in_chans)


@register_dataset(
    "place_data",
    task="binary-class",
    classes=("dark", "bright"),
    channels=1,
    sizes=(28,),
    n_train=24,
    n_val=12,
    n_test=12,
)
class PlaceData:
    def __init__(self, info):
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "place-1"

    def load(self, size, root):
        rng = np.random.default_rng(0)

        def split(count):
            labels = np.arange(count) % 2
            images = rng.integers(0, 128, (count, size, size, 1)) + labels[:, None, None, None] * 60
            return Split(images.astype(np.uint8), labels.astype(np.int64))

        return {"train": split(24), "val": split(12), "test": split(12)}

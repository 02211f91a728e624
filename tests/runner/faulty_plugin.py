"""A plug-in of the tests: a tiny model, models that fail in every way there is, and a dataset of 48 images."""

import os
import signal
import time

import numpy as np
from torch import nn

from bench.registry import Split, register_dataset, register_model


@register_model(family="fake", summary="a linear layer")
def fake_fine(num_classes, in_chans, img_size):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))


@register_model(family="fake")
def fake_raises(num_classes, in_chans, img_size):
    raise ValueError("a planted fault")


@register_model(family="fake")
def fake_killed(num_classes, in_chans, img_size):
    os.kill(os.getpid(), signal.SIGKILL)


@register_model(family="fake")
def fake_oom(num_classes, in_chans, img_size):
    raise MemoryError("planted")


@register_model(family="fake")
def fake_hangs(num_classes, in_chans, img_size):
    if num_classes == 1000:  # a round of an efficiency cell need not wait for the time limit too
        raise TimeoutError("planted")
    time.sleep(600)


@register_model(
    family="fake", unsupported=lambda resolution, options: "only at 29 pixels" if resolution != 29 else None
)
def fake_picky(num_classes, in_chans, img_size):
    return fake_fine(num_classes, in_chans, img_size)


@register_dataset(
    "fake_data",
    task="binary-class",
    classes=("dark", "bright"),
    channels=1,
    sizes=(28,),
    n_train=24,
    n_val=12,
    n_test=12,
)
class FakeData:
    def __init__(self, info):
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "fake-1"

    def load(self, size, root):
        rng = np.random.default_rng(0)

        def split(count):
            labels = np.arange(count) % 2
            images = rng.integers(0, 128, (count, size, size, 1)) + labels[:, None, None, None] * 60
            return Split(images.astype(np.uint8), labels.astype(np.int64))

        return {"train": split(24), "val": split(12), "test": split(12)}

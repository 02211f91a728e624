"""A plug-in of the tests: two models, a dataset of 60 images, and two metrics of its own."""

import numpy as np
from torch import nn

from bench.metrics import register_metric
from bench.registry import Split, register_dataset, register_model


@register_model(family="small")
def small_linear(num_classes, in_chans, img_size):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))


@register_model(family="small")
def small_blind(num_classes, in_chans, img_size):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(in_chans), nn.Linear(in_chans, num_classes)
    )


@register_metric("worst_miss", label="worst miss", higher_is_better=False, digits=2)
def worst_miss(labels, scores, task):
    """How sure the model was of the answer it got most wrong."""
    return float((1 - scores[np.arange(len(labels)), labels]).max())


@register_metric("broken")
def broken(labels, scores, task):
    raise ZeroDivisionError("planted")


@register_dataset(
    "little", task="binary-class", classes=("dark", "bright"), channels=1, sizes=(28,), n_train=24, n_val=12, n_test=24
)
class Little:
    def __init__(self, info):
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "little 1"

    def load(self, size, root):
        generator = np.random.default_rng(0)
        splits = {}
        for name, n in (("train", 24), ("val", 12), ("test", 24)):
            labels = np.arange(n) % 2
            images = generator.integers(0, 120, (n, 28, 28, 1)) + 80 * labels[:, None, None, None]
            splits[name] = Split(images.astype(np.uint8), labels.astype(np.int64))
        return splits

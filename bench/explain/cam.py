"""Class-activation maps on test images: which cells of a stage speak for the class that the network names.

HiResCAM (arXiv:2011.08891) of the library grad-cam: activation times gradient, summed over channels. Where the rest of
the network is average pooling and a linear layer, a cell's value is exactly its share of the class's score; elsewhere
to first order. Grad-CAM averages the gradients over the image first, which on tokens with signed activations may point
to places that speak against the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bench.explain.stages import StageOutput
from bench.registry import RegistryError

Array = npt.NDArray[Any]


class Choice(NamedTuple):
    """A test image to look at.

    Attributes:
        image: its place in the test split.
        group: the class under which it is shown: its true one, or the label that is asked about.
        present: whether the image is of class ``group`` (always, unless labels are several).
        predicted: the class that is explained.
        score: the network's score of ``predicted``.
        right: whether the network is right about the image, or about the label.
    """

    image: int
    group: int
    present: bool
    predicted: int
    score: float
    right: bool


def choose(scores: Array, labels: Array, task: str, per_class: int) -> list[Choice]:
    """Choose, of each class, the images that the network was most certain of: right ones, then wrong ones.

    Args:
        scores: (N,C) of the test split.
        labels: (N,), or (N,C) in {0,1} for multi-label.
        task: of the dataset.
        per_class: right ones, and wrong ones, at most of each class.
    """
    found = []
    for group in range(scores.shape[1]):
        if task == "multi-label":
            said, truth = scores[:, group] >= 0.5, labels[:, group] == 1
            certain = np.abs(scores[:, group] - 0.5)
            # An image that rightly lacks a label has nothing to show.
            kinds = (np.flatnonzero(said & truth), np.flatnonzero(said != truth))
        else:
            said = scores.argmax(1)
            certain, of_class = scores.max(1), labels.ravel() == group
            kinds = (np.flatnonzero(of_class & (said == group)), np.flatnonzero(of_class & (said != group)))
        for right, places in zip((True, False), kinds, strict=True):
            for i in places[np.argsort(-certain[places], kind="stable")][:per_class]:
                several = task == "multi-label"
                predicted = group if several else int(said[i])
                present = bool(labels[i, group] == 1) if several else True
                found.append(Choice(int(i), group, present, predicted, float(scores[i, predicted]), right))
    return found


def class_maps(model: nn.Module, images: Tensor, classes: Sequence[int], stage: StageOutput) -> npt.NDArray[np.float32]:
    """Map what in each image speaks for its class.

    Args:
        model: the network; put into evaluation mode.
        images: (b,c,h,w).
        classes: of each image the one to explain.
        stage: whose output is read.

    Returns:
        float32 (b,h,w) from 0 to 1 of each image's own maximum; all zero where nothing speaks for the class.

    Raises:
        RegistryError: the library is not installed.
    """
    try:
        from pytorch_grad_cam import HiResCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise RegistryError(
            f"class-activation maps need the library grad-cam ({error}): pip install 'medbench[explain]'"
        ) from error
    model.eval()
    module = model.get_submodule(stage.name)
    cam = HiResCAM(model=model, target_layers=[module], reshape_transform=stage.as_grid)
    try:  # as a context the library would swallow an IndexError
        maps = cam(input_tensor=images, targets=[ClassifierOutputTarget(number) for number in classes])
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
    return np.asarray(maps, dtype=np.float32)

"""What an exported model is: ``model.json`` beside its weights. Torch-free; ``docs/deploy.md`` explains it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from bench.data.resize import RULES
from bench.errors import BenchError
from bench.metrics.calibration import rescaled

FORMAT = 1
FILE = "model.json"
Scores = npt.NDArray[np.float64]  # (N, C) probabilities
MULTI = "multi-label"


class DeployError(BenchError, ValueError):
    """A model cannot be exported or used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """One trained network: its Cell, its files (names in the folder) and the SHA-256 of its weights."""

    key: str
    seed: int
    fold: int | None
    weights: str
    weights_sha256: str
    onnx: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What training images look like, to notice others.

    Attributes:
        sizes: smallest and largest (height, width) seen, pixels; of sets of one size, that size twice.
        gray: share of them whose pixels are all gray.
        mean: lowest and highest mean gray value of an image, 0 to 255.
        spread: lowest and highest standard deviation of the gray values of an image.
        images: how many were looked at.
    """

    sizes: tuple[tuple[int, int], tuple[int, int]]
    gray: float
    mean: tuple[float, float]
    spread: tuple[float, float]
    images: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything but the weights that is needed to use a trained model.

    Attributes:
        model: as ``bench list models`` names it.
        task: of its dataset.
        classes: what its outputs stand for, in order.
        positive_class: of two classes; "" else.
        size: side length in pixels to which an image is brought by ``resize`` when it is decoded.
        resolution: side length that the network is fed.
        any_size: whether the training images had sizes of their own.
        channels: of a decoded image, 1 or 3; ``in_chans`` of the network's input.
        features: of a frozen network, how many its linear head reads; 0: the network has a classifier of its own.
        mean, std: one number a channel of the input, of pixels scaled to 0..1.
        decoding: ``mix``, ``window``, ``frames`` of :class:`bench.datasets._images.Decoding`.
        precision: fp32 or bf16, as it was scored.
        batch_size, threads: as it was scored; other ones may change the last bits.
        thresholds: of the positive class, or of each label: a probability of at least this says yes. Empty for several
            classes, where the most probable one is the decision.
        temperature: by which the log-probabilities are divided to be calibrated.
        members: the networks whose probabilities are averaged; several where folds were trained.
        training_images: what they look like.
        checks: largest differences of probabilities, by what was compared.
    """

    model: str
    dataset: str
    task: str
    classes: tuple[str, ...]
    positive_class: str
    positive_class_guessed: bool
    size: int
    resolution: int
    resize: str
    any_size: bool
    channels: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoding: Mapping[str, str | bool]
    precision: str
    batch_size: int
    threads: int
    thresholds: tuple[float, ...]
    temperature: float
    members: tuple[Member, ...]
    training_images: Look
    features: int = 0
    licences: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    checks: Mapping[str, float] = field(default_factory=dict)
    medbench: str = ""
    format: int = FORMAT

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @property
    def rule(self) -> str:
        """How an image of another size is brought to ``size``: as in training, or where that had one size, bilinear."""
        return self.resize if self.any_size else "bilinear"

    def calibrated(self, scores: Scores) -> Scores:
        """Probabilities (N, C) at the temperature that validation asks for."""
        if not len(scores):
            return scores
        shaped = np.zeros(scores.shape if self.task == MULTI else len(scores), dtype=np.int64)
        found: Scores = rescaled(scores, shaped, self.temperature)
        return found

    def decisions(self, scores: Scores) -> list[str]:
        """The class of each image, or its labels joined by ``;``."""
        if self.task == MULTI:
            yes = scores >= np.asarray(self.thresholds)
            return [";".join(name for name, hit in zip(self.classes, row, strict=True) if hit) for row in yes]
        if len(self.classes) == 2 and self.thresholds:
            at = self.classes.index(self.positive_class)
            return [self.classes[at if hit else 1 - at] for hit in scores[:, at] >= self.thresholds[0]]
        return [self.classes[k] for k in scores.argmax(axis=1)] if len(scores) else []


def read_bundle(folder: Path) -> Bundle:
    """Read ``model.json`` of an exported model.

    Raises:
        DeployError: there is none, or it is damaged or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise DeployError(f"{folder} is not an exported model: it has no {FILE}; make one with `bench export-model`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise DeployError(f"{path} has format {found.get('format')!r}; this version of medbench reads {FORMAT}")
        bundle = TypeAdapter(Bundle).validate_python(found)
    except (json.JSONDecodeError, ValidationError, AttributeError) as error:
        raise DeployError(f"{path} is damaged ({error}); export the model again") from error
    if bundle.resize not in RULES or not bundle.members or not bundle.classes:
        raise DeployError(f"{path} is damaged (resize {bundle.resize!r}, {len(bundle.members)} members)")
    return bundle

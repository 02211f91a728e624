"""A loaded model: images in, probabilities out, by PyTorch or, without it, by onnxruntime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench import registry
from bench.data.resize import resize_matrix
from bench.deploy.bundle import MULTI, Bundle, DeployError, Scores, read_bundle
from bench.deploy.inputs import Image, decoder, gathered

if TYPE_CHECKING:
    import torch

Images = npt.NDArray[np.uint8]  # (N, H, W, C)
Scorer = Callable[[Images], Scores]
ENGINES = ("torch", "onnx")


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one image.

    Attributes:
        path: as it was named.
        probabilities: by class, as the network gives them (those of a run's Records).
        calibrated: the same at the temperature that validation asks for.
        decision: the class, or labels joined by ``;``; "" for an image that cannot be used.
        warnings: why the image is unlike the training images, or cannot be used.
    """

    path: str
    probabilities: dict[str, float]
    calibrated: dict[str, float]
    decision: str
    warnings: tuple[str, ...] = ()


class LoadedModel:
    """An exported model; made by :func:`load_model`.

    Attributes:
        bundle: what ``model.json`` says.
        engine: ``torch`` or ``onnx``.
    """

    def __init__(self, bundle: Bundle, engine: str, scorers: Sequence[Scorer]) -> None:
        self.bundle, self.engine, self._scorers = bundle, engine, scorers

    def scores(self, images: Images) -> Scores:
        """Probabilities (N, C) in float64 of decoded images uint8 (N, size, size, channels)."""
        b = self.bundle
        if images.dtype != np.uint8 or images.shape[1:] != (b.size, b.size, b.channels):
            raise DeployError(
                f"images should be uint8 (N, {b.size}, {b.size}, {b.channels}), not {images.dtype} {images.shape}"
            )
        if not len(images):
            return np.zeros((0, len(b.classes)))
        found = [scorer(images) for scorer in self._scorers]
        return found[0] if len(found) == 1 else np.mean(found, axis=0)

    def predict(
        self, images: str | Path | Iterable[str | Path], progress: Callable[[int, int], None] | None = None
    ) -> list[Prediction]:
        """Score image files, folders (with all below), tables of paths, ``.npz`` files, or test splits by name.

        Args:
            images: one or several of them.
            progress: told images done, images in all.

        Raises:
            DeployError: there is no such file, or it holds no image.
        """
        named = [images] if isinstance(images, str | Path) else list(images)
        found = gathered([str(name) for name in named], self.bundle)
        predictions: list[Prediction] = []
        for start in range(0, len(found), self.bundle.batch_size):
            predictions += self._batch(found[start : start + self.bundle.batch_size])
            if progress:
                progress(len(predictions), len(found))
        return predictions

    def _batch(self, batch: Sequence[Image]) -> list[Prediction]:
        read = decoder(self.bundle)
        decoded = read(batch)
        usable = [image.pixels for image in decoded if image.pixels is not None]
        scores = self.scores(np.stack(usable)) if usable else np.zeros((0, len(self.bundle.classes)))
        rows = iter(zip(scores, self.bundle.calibrated(scores), self.bundle.decisions(scores), strict=True))
        made = []
        for image, one in zip(batch, decoded, strict=True):
            if one.pixels is None:
                made.append(Prediction(image.name, {}, {}, "", one.warnings))
                continue
            row, calibrated, decision = next(rows)
            named = [dict(zip(self.bundle.classes, map(float, values), strict=True)) for values in (row, calibrated)]
            made.append(Prediction(image.name, named[0], named[1], decision, one.warnings))
        return made


def load_model(folder: str | Path, device: str = "cpu", engine: str | None = None) -> LoadedModel:
    """Load an exported model.

    Args:
        folder: made by ``bench export-model``.
        device: ``cpu`` or ``cuda:N``, of PyTorch.
        engine: ``torch``, or ``onnx`` (onnxruntime, on the CPU); by default PyTorch where it is installed.

    Raises:
        DeployError: it is not an exported model, a file is missing or damaged, or neither library is installed.
    """
    place = Path(folder).expanduser()
    return load_bundle(read_bundle(place), place, device, engine)


def load_bundle(bundle: Bundle, place: Path, device: str = "cpu", engine: str | None = None) -> LoadedModel:
    """The same of a ``model.json`` that was read."""
    chosen = engine or ("torch" if find_spec("torch") and find_spec("timm") else "onnx")
    if chosen not in ENGINES:
        raise DeployError(f"engine {chosen!r} is none of {', '.join(ENGINES)}")
    make = _torch_scorer if chosen == "torch" else _onnx_scorer
    return LoadedModel(bundle, chosen, [make(bundle, place, number, device) for number in range(len(bundle.members))])


def _file(place: Path, name: str) -> Path:
    path = place / name
    if not path.is_file():
        raise DeployError(f"{path} is missing; export the model again")
    return path


# --- PyTorch -----------------------------------------------------------------------------------------------------


def build(bundle: Bundle, device: torch.device) -> tuple[torch.nn.Module, bool]:
    """The network without its weights, and whether it is laid out channels_last."""
    import torch

    from bench.registry.layout import prefers_channels_last
    from bench.train.frozen.network import FrozenNetwork

    try:
        spec = registry.parse_model(bundle.model)
        options = {key: value for key, value in spec.options if key != "pretrained"}
        info = registry.model_info(spec.name)
        classes = 0 if bundle.features else len(bundle.classes)
        model: torch.nn.Module = info.build(classes, bundle.in_chans, bundle.resolution, **options)
    except registry.RegistryError as error:
        where = f" (its plug-in was {', '.join(bundle.plugins)}; name it in bench.toml)" if bundle.plugins else ""
        raise DeployError(f"{error}{where}; an ONNX file runs without it: --onnx") from error
    last = prefers_channels_last(model)
    if bundle.features:
        model = FrozenNetwork(model, bundle.features, len(bundle.classes))
    model = model.to(device)
    return (model.to(memory_format=torch.channels_last) if last else model), last


def _torch_scorer(bundle: Bundle, place: Path, number: int, device: str) -> Scorer:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from bench.train.loop import scores_of
    from bench.train.pipeline import Pipeline

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeployError(f"--device {device}: torch finds no CUDA device; use --device cpu")
    where = torch.device(device)
    model, last = build(bundle, where)
    path = _file(place, bundle.members[number].weights)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle.members[number].weights_sha256:
        raise DeployError(f"{path} is not the file that was exported (its SHA-256 differs); export the model again")
    try:
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise DeployError(f"{path} does not fit {bundle.model} ({str(error).splitlines()[0]})") from error
    recipe = {"as_rgb": bundle.in_chans != bundle.channels, "eval_batch_size": bundle.batch_size}
    resize = "native" if bundle.any_size else bundle.resize

    def scored(images: Images) -> Scores:
        reader = Pipeline(
            images, np.zeros(len(images), np.int64), recipe, resolution=bundle.resolution, resize=resize, device=where,
            channels_last=last, normalisation=(bundle.mean, bundle.std),
        )  # fmt: skip
        return scores_of(model, reader, bundle.task, bundle.precision)

    return scored


# --- onnxruntime -------------------------------------------------------------------------------------------------


def prepared(images: Images, bundle: Bundle) -> npt.NDArray[np.float32]:
    """The network's input (N, in_chans, R, R) of decoded images, as :mod:`bench.train.preprocess` makes it."""
    side = bundle.resolution
    pixels = images.astype(np.float32) / np.float32(255)
    if bundle.channels != bundle.in_chans:
        pixels = np.repeat(pixels, bundle.in_chans, axis=-1)
    mean, std = np.array(bundle.mean, np.float32), np.array(bundle.std, np.float32)
    planes = ((pixels - mean) / std).transpose(0, 3, 1, 2)
    if images.shape[1] != side:
        matrix = resize_matrix(images.shape[1], side, bundle.resize).astype(np.float32)
        planes = matrix @ planes @ matrix.T
        if bundle.resize == "bicubic":
            low, high = (((bound - mean) / std)[:, None, None] for bound in (0, 1))
            planes = planes.clip(low, high)
    return np.ascontiguousarray(planes, dtype=np.float32)


def _onnx_scorer(bundle: Bundle, place: Path, number: int, device: str) -> Scorer:
    try:
        import onnxruntime
    except ImportError:
        raise DeployError(
            "neither torch and timm nor onnxruntime are installed: pip install onnxruntime pillow, or 'medbench[train]'"
        ) from None
    name = bundle.members[number].onnx
    if not name:
        raise DeployError(f"{place} has no ONNX file; export the model again where 'medbench[onnx]' is installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = bundle.threads
    session = onnxruntime.InferenceSession(str(_file(place, name)), options, providers=["CPUExecutionProvider"])

    def scored(images: Images) -> Scores:
        logits = session.run(["logits"], {"images": prepared(images, bundle)})[0].astype(np.float64)
        if bundle.task == MULTI:
            chances: Scores = 1 / (1 + np.exp(-logits))
            return chances
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Scores = powers / powers.sum(axis=1, keepdims=True)
        return shares

    return scored

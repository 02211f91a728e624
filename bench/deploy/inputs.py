"""Images to be scored: found, decoded as the training images were, compared with them. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench import registry
from bench.data.cache import open_entry
from bench.data.cache_entry import members
from bench.data.decode import fit
from bench.datasets import _images
from bench.datasets._archives import ArchiveError, walk
from bench.datasets._listing import usual
from bench.datasets.csv_table import read_table
from bench.deploy.bundle import Bundle, DeployError

Pixels = npt.NDArray[np.uint8]  # (H, W, C)
TABLES = (".csv", ".tsv", ".txt")


class Image(NamedTuple):
    """An image that was named: a file, or pixels that are decoded already, also ``sized`` for the network."""

    name: str
    path: Path | None = None
    pixels: Pixels | None = None
    sized: bool = False


class Decoded(NamedTuple):
    """Pixels as the network takes them, None for an image that cannot be used, and what is to be said of it."""

    pixels: Pixels | None
    warnings: tuple[str, ...]


def gathered(named: Sequence[str], bundle: Bundle) -> list[Image]:
    """Every image that is named, in the order given; those of a folder by their paths.

    Raises:
        DeployError: a name is neither a file, a folder nor a dataset, or holds no image.
    """
    found: list[Image] = []
    for name in named:
        before = len(found)
        path = Path(name).expanduser()
        if path.is_dir():
            found += _below(path)
        elif path.is_file():
            found += _of_file(path, name, bundle)
        else:
            found += _of_dataset(name, bundle)
        if len(found) == before:
            raise DeployError(f"{name} holds no image")
    return found


def _below(folder: Path) -> Iterator[Image]:
    try:
        names = sorted(walk(folder))
    except ArchiveError as error:
        raise DeployError(str(error)) from error
    for name in names:
        path = folder / name
        if _images.is_image(name) or _images.is_bare_dicom(str(path)):
            yield Image(str(path), path)


def _of_file(path: Path, name: str, bundle: Bundle) -> Iterator[Image]:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        yield from _of_table(path)
    elif suffix == ".npz":
        yield from _of_arrays(path, bundle)
    else:
        yield Image(name, path)


def _of_table(path: Path) -> Iterator[Image]:
    """The images that a table names, by paths relative to its folder."""
    try:
        table = read_table(path.read_bytes(), str(path))
        columns = usual("image", table.columns) or (list(table.columns) if len(table.columns) == 1 else [])
        if not columns:
            raise DeployError(f"{path}: no column is called image, file or path; it has {', '.join(table.columns)}")
        for value in table.column(columns[0], "of paths"):
            yield Image(value, path.parent / value)
    except (ValueError, OSError) as error:
        raise error if isinstance(error, DeployError) else DeployError(str(error)) from error


def _of_arrays(path: Path, bundle: Bundle) -> Iterator[Image]:
    """``test_images``, ``images`` or the only array of an npz file: uint8 (N, H, W) or (N, H, W, C)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [name for name in ("test_images", "images") if name in stored.files] or list(stored.files)
            images = stored[names[0]]
    except Exception as error:
        raise DeployError(f"{path} is not a readable .npz file ({error})") from error
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DeployError(f"{path}, {names[0]}: images should be uint8 (N, H, W) or (N, H, W, C), not {images.shape}")
    for number, pixels in enumerate(images):
        yield Image(f"{path}#{names[0]}/{number}", None, pixels)


def _of_dataset(name: str, bundle: Bundle) -> Iterator[Image]:
    """The test split of a dataset, by its name, decoded as for training."""
    try:
        info = registry.dataset_info(name)
    except registry.RegistryError as error:
        why = f" ({error})" if ":" in name else ""
        raise DeployError(f"{name} is neither a file, a folder nor a dataset{why}") from error
    size = bundle.size if not info.sizes or bundle.size in info.sizes else info.sizes[-1]
    entry = open_entry(info, size, resize=bundle.rule)
    split, said = entry.splits["test"], members(entry.folder).get("test")
    for number, pixels in enumerate(split.images):
        yield Image(said.names[number] if said and said.names else f"{name}#test/{number}", None, pixels, info.varied)


def decoder(bundle: Bundle) -> Callable[[Sequence[Image]], list[Decoded]]:
    """What decodes a batch of images, several at once, and looks at each."""
    # Colours are kept where training had no word for them, so that they can be told of.
    asked = bundle.decoding
    channels = 1 if bundle.channels == 1 and asked["mix"] else 3
    how = _images.Decoding(channels, bool(asked["mix"]), str(asked["window"]), str(asked["frames"]))

    def one(image: Image) -> Decoded:
        try:
            pixels = image.pixels if image.path is None else _images.decode(image.path, image.name, how)
            assert pixels is not None
            pixels, warnings = in_channels(np.asarray(pixels), bundle)
            sized = fit(pixels, (bundle.size, bundle.size, bundle.channels), bundle.rule)
        except (ValueError, OSError) as error:
            said = str(error)
            return Decoded(None, (f"not scored: {said if image.name in said else f'{image.name} {said}'}",))
        return Decoded(sized, (*warnings, *unlike(None if image.sized else pixels.shape[:2], sized, bundle)))

    def several(batch: Sequence[Image]) -> list[Decoded]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(one, batch))

    return several


def in_channels(pixels: Pixels, bundle: Bundle) -> tuple[Pixels, tuple[str, ...]]:
    """An image of 1 or 3 channels as one of ``bundle.channels``.

    Raises:
        ValueError: it has colours where the training images were gray.
    """
    gray = pixels.shape[2] == 1 or bool((pixels == pixels[..., :1]).all())
    if bundle.channels == 1:
        if not gray:
            raise ValueError("has colours; the training images are gray")
        return pixels[..., :1], ()
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if gray and bundle.training_images.gray < 0.01:
        return pixels, ("is gray; the training images have colours",)
    if not gray and bundle.training_images.gray > 0.99:
        return pixels, ("has colours; the training images are gray",)
    return pixels, ()


def unlike(shape: tuple[int, int] | None, sized: Pixels, bundle: Bundle) -> list[str]:
    """What sets an image apart from all training images that were looked at; ``shape`` None: its size is not known."""
    look, found = bundle.training_images, []
    (low_h, low_w), (high_h, high_w) = look.sizes
    if shape and not (low_h <= shape[0] <= high_h and low_w <= shape[1] <= high_w):
        usual_ = f"{low_w} x {low_h}" if look.sizes[0] == look.sizes[1] else f"{low_w} x {low_h} to {high_w} x {high_h}"
        found.append(f"has {shape[1]} x {shape[0]} pixels; the training images {usual_}")
    mean, spread = looked_at(sized[None])[0]
    for name, value, (low, high) in (("mean gray value", mean, look.mean), ("contrast", spread, look.spread)):
        if not low - 0.5 <= value <= high + 0.5:
            found.append(f"has a {name} of {value:.0f}; the training images {low:.0f} to {high:.0f}")
    return found


def looked_at(images: Pixels) -> npt.NDArray[np.float64]:
    """Mean and standard deviation of the gray values of each image, (N, 2), of uint8 (N, H, W, C)."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)

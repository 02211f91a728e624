"""The twelve two-dimensional MedMNIST sets at 28, 64, 128 and 224 pixels (Yang et al., Scientific Data 10:41, 2023).

URLs, checksums and counts are those of the installed ``medmnist`` package. Its loader is not used: it takes any file
of the right name for the right file, and importing it imports torch, torchvision and scikit-learn.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.registry import DatasetInfo, RemoteFile, Split

_SPLITS = ("train", "val", "test")


class MedMNISTError(ValueError):
    """A MedMNIST file, or the installed metadata, is not what it should be; the message says where."""


@functools.cache
def official_info() -> dict[str, dict[str, Any]]:
    """Read ``medmnist.INFO`` off the installed package's ``info.py`` without importing or running it.

    (Running it would create ``~/.medmnist``.)

    Raises:
        MedMNISTError: the package is not installed or holds no plain ``INFO``.
    """
    spec = importlib.util.find_spec("medmnist")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        raise MedMNISTError("the package medmnist is not installed: pip install medmnist")
    path = Path(folder) / "info.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "INFO" for t in node.targets):
            info: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
            return info
    raise MedMNISTError(f"{path} defines no INFO; install medmnist 3.0.2 or later 3.x")


def _open_npz(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
    except ValueError as error:  # numpy's word for a pickle
        raise MedMNISTError(f"{path} is not a readable npz file: {error}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise MedMNISTError(f"{path} is not an npz file but a single array of shape {archive.shape}")
    return archive


class MedMNIST:
    """Adapter of one set; see :class:`bench.registry.Adapter`."""

    version = 1  # enters the fingerprint: raise it when what load() returns changes

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        """The one official file for ``size``.

        Raises:
            MedMNISTError: there is no such size.
        """
        if size not in self.info.sizes:
            have = ", ".join(map(str, self.info.sizes))
            raise MedMNISTError(f"{self.info.name} has no {size}-pixel images; sizes are {have}")
        suffix = "" if size == 28 else f"_{size}"
        official = official_info()[self.info.name]
        return (RemoteFile(f"{self.info.name}{suffix}.npz", official[f"url{suffix}"], official[f"MD5{suffix}"]),)

    def fingerprint(self, size: int, root: Path | None) -> str:
        """The published MD5: a file with another one is never read."""
        return f"medmnist-{self.version}-{self.files(size)[0].md5}"

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        """Decode the official splits; nothing in the file is trusted but plain arrays.

        Raises:
            MedMNISTError: naming the file, the key, what was expected and what was found.
        """
        path = Path(root or ".") / self.files(size)[0].name
        try:
            with _open_npz(path) as archive:
                return {split: self._split(archive, path, split, size) for split in _SPLITS}
        except FileNotFoundError:
            raise MedMNISTError(f"{path} does not exist; run `bench fetch --datasets {self.info.name}`") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise MedMNISTError(f"{path} is not a readable npz file: {error}") from error

    def _split(self, archive: Any, path: Path, split: str, size: int) -> Split:
        images = self._array(archive, path, f"{split}_images")
        labels = self._array(archive, path, f"{split}_labels")
        count = official_info()[self.info.name]["n_samples"][split]
        colour = (self.info.channels,) if self.info.channels > 1 else ()
        self._expect(path, f"{split}_images", images, (count, size, size, *colour))
        width = len(self.info.classes) if self.info.task == "multi-label" else 1
        self._expect(path, f"{split}_labels", labels, (count, width))
        top = 1 if self.info.task == "multi-label" else len(self.info.classes) - 1
        if labels.size and (labels.min() < 0 or labels.max() > top):
            found = f"{labels.min()}..{labels.max()}"
            raise MedMNISTError(f"{path}: {split}_labels should lie in 0..{top}, found {found}")
        wide = labels.astype(np.int64)
        return Split(
            images=images.reshape(count, size, size, self.info.channels),
            labels=wide if self.info.task == "multi-label" else wide[:, 0],
        )

    def _array(self, archive: Any, path: Path, key: str) -> np.ndarray[Any, Any]:
        if key not in archive:
            raise MedMNISTError(f"{path}: expected an array {key!r}, found {', '.join(archive.files) or 'none'}")
        try:
            array: np.ndarray[Any, Any] = archive[key]
        except ValueError as error:  # a pickled object array
            raise MedMNISTError(f"{path}: {key} is not a plain array ({error})") from error
        return array

    def _expect(self, path: Path, key: str, array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
        integer = array.dtype == np.uint8 if key.endswith("images") else array.dtype.kind in "iu"
        if array.shape != shape or not integer:
            kind = "uint8" if key.endswith("images") else "an integer type"
            raise MedMNISTError(f"{path}: {key} should be {shape} of {kind}, found {array.shape} of {array.dtype}")

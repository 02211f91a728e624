"""The twelve two-dimensional MedMNIST sets at 28, 64, 128 and 224 pixels (Yang et al., Scientific Data 10:41, 2023).

URLs, checksums and counts are those of the installed ``medmnist`` package. Its loader is not used: it takes any file
of the right name for the right file, and importing it imports torch, torchvision and scikit-learn.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from bench.datasets._contents import contents
from bench.datasets._listing import checked_options
from bench.errors import DataError
from bench.registry import BlockSplit, DatasetInfo, RegistryError, RemoteFile, parse_source

_SPLITS = ("train", "val", "test")
_BLOCK_BYTES = 1 << 24


class MedMNISTError(DataError, ValueError):
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
        raise MedMNISTError("the package medmnist is not installed: pip install medmnist (or 'medbench[train]')")
    path = Path(folder) / "info.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "INFO" for t in node.targets):
            return ast.literal_eval(node.value)
    raise MedMNISTError(f"{path} defines no INFO; install medmnist 3.0.2 or later 3.x")


def _open_npz(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        said = f"is not a readable npz file: {error}"
        with contextlib.suppress(ValueError, EOFError, OSError):  # numpy's words for what is no array
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            said = f"is not an npz file but a single array of shape {shape}"
        raise MedMNISTError(f"{path} {said}") from error


class _Member(NamedTuple):
    """An array in an npz file that is read block by block.

    Attributes:
        key: its name, without ``.npy``.
        in_columns: stored column by column (Fortran order), which cannot be read in blocks of rows.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    in_columns: bool

    def whole(self) -> np.ndarray:
        """Read all of it."""
        blocks = list(self.blocks(max(1, self.shape[0] if self.shape else 1)))
        return blocks[0] if blocks else np.empty(self.shape, self.dtype)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield (``rows``, ...) arrays in order.

        Raises:
            MedMNISTError: the file is cut off or damaged (the archive's own checksum is compared at the end).
        """
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as stream:
                _header(stream)
                if self.in_columns:
                    flat = np.frombuffer(stream.read(), self.dtype)
                    yield np.ascontiguousarray(flat.reshape(self.shape, order="F"))
                    return
                for start in range(0, self.shape[0], rows):
                    count = min(rows, self.shape[0] - start)
                    content = stream.read(count * row_bytes)
                    if len(content) != count * row_bytes:
                        raise EOFError(f"{self.key} ends after {start + len(content) // row_bytes} of {self.shape[0]}")
                    yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])
                stream.read(1)  # at the end, the archive's checksum is compared
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise MedMNISTError(f"{self.path} is not a readable npz file: {error}") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy`` file: shape, Fortran order, dtype."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)  # type: ignore[no-any-return]


def _images(member: _Member, size: int, channels: int) -> Iterator[np.ndarray]:
    for block in member.blocks(max(1, _BLOCK_BYTES // (size * size * channels))):
        yield block.reshape(len(block), size, size, channels)


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
        name = f"{self.info.name}{suffix}.npz"
        bundled = Path(__file__).with_name("bundled") / name if size in self.info.bundled else None
        return (RemoteFile(name, official[f"url{suffix}"], official[f"MD5{suffix}"], bundled=bundled),)

    def fingerprint(self, size: int, root: Path | None) -> str:
        """The published MD5: a file with another one is never read."""
        return f"medmnist-{self.version}-{self.files(size)[0].md5}"

    def load(self, size: int, root: Path | None) -> dict[str, BlockSplit]:
        """Give the official splits, read block by block; nothing in the file is trusted but plain arrays.

        Raises:
            MedMNISTError: naming the file, the key, what was expected and what was found.
        """
        path = self.files(size)[0].locate(Path(root or "."))
        try:
            with _open_npz(path) as archive:
                return {split: self._split(archive, path, split, size) for split in _SPLITS}
        except FileNotFoundError:
            raise MedMNISTError(f"{path} does not exist; run `bench fetch --datasets {self.info.name}`") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise MedMNISTError(f"{path} is not a readable npz file: {error}") from error

    def _split(self, archive: zipfile.ZipFile, path: Path, split: str, size: int) -> BlockSplit:
        images = self._member(archive, path, f"{split}_images")
        labels = self._member(archive, path, f"{split}_labels")
        count = official_info()[self.info.name]["n_samples"][split]
        colour = (self.info.channels,) if self.info.channels > 1 else ()
        self._expect(images, (count, size, size, *colour))
        width = len(self.info.classes) if self.info.task == "multi-label" else 1
        self._expect(labels, (count, width))
        wide = labels.whole().astype(np.int64)
        top = 1 if self.info.task == "multi-label" else len(self.info.classes) - 1
        if wide.size and (wide.min() < 0 or wide.max() > top):
            raise MedMNISTError(f"{path}: {labels.key} should lie in 0..{top}, found {wide.min()}..{wide.max()}")
        return BlockSplit(
            wide if self.info.task == "multi-label" else wide[:, 0],
            functools.partial(_images, images, size, self.info.channels),
        )

    @staticmethod
    def _member(archive: zipfile.ZipFile, path: Path, key: str) -> _Member:
        if f"{key}.npy" not in archive.namelist():
            found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "none"
            raise MedMNISTError(f"{path}: expected an array {key!r}, found {found}")
        try:
            with archive.open(f"{key}.npy") as stream:
                shape, in_columns, dtype = _header(stream)
        except ValueError as error:
            raise MedMNISTError(f"{path}: {key} is not a plain array ({error})") from error
        if dtype.hasobject:
            raise MedMNISTError(f"{path}: {key} is not a plain array (it holds pickled objects, which are never read)")
        return _Member(path, key, shape, dtype, in_columns)

    def _expect(self, member: _Member, shape: tuple[int, ...]) -> None:
        pictures = member.key.endswith("images")
        right = member.dtype == np.uint8 if pictures else member.dtype.kind in "iu"
        if member.shape != shape or not right:
            kind = "uint8" if pictures else "an integer type"
            raise MedMNISTError(
                f"{member.path}: {member.key} should be {shape} of {kind}, found {member.shape} of {member.dtype}"
            )


# --- files of one's own in the same form -----------------------------------------------------------------------


def source_info(name: str) -> DatasetInfo:
    """Describe ``npz:PATH[task=...,mirror=true]``: arrays ``train_images``, ``train_labels`` and so on in one file.

    Labels are numbers from 0: of one class each, (N,) or (N, 1), or findings (N, L).

    Raises:
        RegistryError: it is no such file; the message says what is wrong.
    """
    source = parse_source(name)
    options = checked_options(source)
    if odd := sorted(options.keys() - {"task", "mirror"}):
        raise RegistryError(f"dataset {str(source)!r}: {odd[0]}: of an npz file, the options are task and mirror")
    try:
        found = {split: OwnFile.arrays(Path(source.place), split) for split in _SPLITS}
        labels = {split: members[1].whole() for split, members in found.items()}
    except (MedMNISTError, OSError) as error:
        raise RegistryError(f"dataset {str(source)!r}: {error}") from None
    pictures, several = found["train"][0], labels["train"].ndim == 2 and labels["train"].shape[1] > 1
    count = labels["train"].shape[1] if several else int(max(part.max(initial=0) for part in labels.values())) + 1
    task = options.get("task", "multi-label" if several else "binary-class" if count == 2 else "multi-class")
    return DatasetInfo(
        name=str(source),
        task="ordinal-regression" if task.startswith("ordinal") else task,
        classes=tuple(str(index) for index in range(count)),
        channels=pictures.shape[3] if len(pictures.shape) == 4 else 1,
        adapter="bench.datasets.medmnist:OwnFile",
        sizes=(pictures.shape[1],),
        n_train=len(labels["train"]),
        n_val=len(labels["val"]),
        n_test=len(labels["test"]),
        summary="arrays in a file of one's own",
        source=source.place,
        mirror_safe=options.get("mirror") == "true",
        traps=("this source names no patients: images of one may lie in several splits",),
    )


class OwnFile(MedMNIST):
    """Adapter of a file in MedMNIST's form; see :class:`bench.registry.Adapter`."""

    @classmethod
    def arrays(cls, path: Path, split: str) -> tuple[_Member, _Member]:
        """Images and labels of a split, as the file's headers say. Raises MedMNISTError."""
        with _open_npz(path) as archive:
            found = [cls._member(archive, path, f"{split}_{what}") for what in ("images", "labels")]
        pictures, labels = found
        square = len(pictures.shape) in (3, 4) and pictures.shape[1] == pictures.shape[2]
        if not square or pictures.dtype != np.uint8 or pictures.shape[3:] not in ((), (1,), (3,)):
            said = f"{pictures.shape} of {pictures.dtype}"
            raise MedMNISTError(f"{path}: {pictures.key} should be square images of uint8, found {said}")
        if labels.dtype.kind not in "iu" or labels.shape[:1] != pictures.shape[:1] or len(labels.shape) > 2:
            said = f"{labels.shape} of {labels.dtype} for {pictures.shape[0]} images"
            raise MedMNISTError(f"{path}: {labels.key} should be whole numbers, one row per image, found {said}")
        return pictures, labels

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        """Nothing that could be fetched."""
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        """The file's content."""
        place = Path(parse_source(self.info.name).place)
        return f"npz-{self.version}-{contents(place, place.parent, [place.name])[0][:32]}"

    def load(self, size: int, root: Path | None) -> dict[str, BlockSplit]:
        """Give the file's splits, read block by block."""
        found = {}
        for split in _SPLITS:
            pictures, labels = self.arrays(Path(parse_source(self.info.name).place), split)
            values = labels.whole().astype(np.int64)
            values = values if self.info.task == "multi-label" else values.reshape(-1)
            found[split] = BlockSplit(values, functools.partial(_images, pictures, size, self.info.channels))
        return found

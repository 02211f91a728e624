"""From what an adapter gives to blocks of uint8 images of one size: checked, resized, in parallel, bounded in memory.

Images of any size are brought to the size asked for by a resize rule, on whole gray levels as Pillow does it:
``nearest``; ``bilinear`` and ``bicubic`` with antialiasing; ``pad`` (never enlarged, shrunk only if it does not fit,
centred in black); ``native`` (they must have that size). The first three stretch an image that is not square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from bench.data.decode_pool import in_order
from bench.data.files import DataError
from bench.data.resize import RULES
from bench.registry import BlockSplit, DatasetInfo, LazySplit, Split, legible

Images = npt.NDArray[np.uint8]

_CHUNK_IMAGES, _CHUNK_BYTES = 64, 1 << 22  # what one process decodes before it hands it over
_IN_PROCESS_BELOW = 200  # images: starting processes would take longer
_SHOWN_FAULTS = 20  # broken images after which nothing more is tried


def check_labels(info: DatasetInfo, name: str, split: Split | LazySplit | BlockSplit) -> npt.NDArray[np.int64]:
    """Hold the labels of a split to the contract, whoever wrote the adapter; return them as int64.

    Raises:
        DataError: naming dataset and split, what was expected and what was found.
    """
    where = f"{info.name}, split {name}"
    labels = np.asarray(split.labels)
    several = info.task == "multi-label"
    count = len(split.images) if isinstance(split, Split) else len(labels)
    expected = (count, len(info.classes)) if several else (count,)
    if labels.shape != expected or labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels should be {expected} of integers, found {labels.shape} of {labels.dtype}")
    if not count:
        raise DataError(f"{where}: there are no images")
    top = 1 if several else len(info.classes) - 1
    if labels.min() < 0 or labels.max() > top:
        raise DataError(f"{where}: labels should lie in 0..{top}, found {labels.min()}..{labels.max()}")
    if not isinstance(split, Split):
        for part, values in (("names", split.names), ("groups", split.groups)):
            if len(values) not in (0, count):
                raise DataError(f"{where}: there are {count} labels, but {len(values)} {part}")
    return labels.astype(np.int64)


def blocks_of(
    info: DatasetInfo, name: str, split: Split | LazySplit | BlockSplit, size: int, rule: str
) -> Iterator[Images]:
    """Yield the images of a split in their order as uint8 (n, size, size, C), never many at a time.

    Raises:
        DataError: an image is not what the info says, or cannot be read (listing such images).
    """
    where = f"{info.name}, split {name}"
    shape = (size, size, info.channels)
    if isinstance(split, LazySplit):
        yield from _lazily(split, where, shape, rule)
        return
    blocks = _told(info, split.blocks) if isinstance(split, BlockSplit) else [np.asarray(split.images)]
    for block in blocks:
        if block.dtype != np.uint8 or block.ndim != 4 or block.shape[1:] != shape:
            raise DataError(
                f"{where}: images should be (N, {size}, {size}, {info.channels}) of uint8, "
                f"found {block.shape} of {block.dtype}"
            )
        step = max(1, _CHUNK_BYTES // int(np.prod(shape)))
        for start in range(0, len(block), step):
            yield block[start : start + step]


def _told(info: DatasetInfo, blocks: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Pass on what an adapter reads; what it says is wrong with its file is the user's to know."""
    try:
        yield from blocks()
    except (ValueError, OSError) as error:
        raise DataError(f"{info.name}: {error}") from error


# --- images of any size ----------------------------------------------------------------------------------------


def _lazily(split: LazySplit, where: str, shape: tuple[int, int, int], rule: str) -> Iterator[Images]:
    if rule not in RULES:
        raise DataError(f"{where}: unknown resize rule {rule!r}; rules: {', '.join(RULES)}")
    step = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // int(np.prod(shape))))
    count = len(split.labels)
    chunks = [(start, min(start + step, count)) for start in range(0, count, step)]
    faults: list[str] = []
    for block, wrong in in_order(functools.partial(_decode, split, shape, rule), chunks, count >= _IN_PROCESS_BELOW):
        faults += wrong
        if len(faults) >= _SHOWN_FAULTS:
            break
        yield block
    if faults:
        more = "at least " if len(faults) >= _SHOWN_FAULTS else ""
        lines = "\n  ".join(faults[:_SHOWN_FAULTS])
        raise DataError(
            f"{where}: {more}{len(faults)} of {count:,} images cannot be used (mend or remove them; "
            f"`bench inspect` lists all): {lines}"
        )


def _decode(
    split: LazySplit, shape: tuple[int, int, int], rule: str, start: int, stop: int
) -> tuple[Images, list[str]]:
    """Decode images ``start`` to ``stop``; those that cannot be used are black, and told."""
    images = np.zeros((stop - start, *shape), np.uint8)
    faults = []
    for index in range(start, stop):
        try:
            images[index - start] = fit(split.read(index), shape, rule)
        except (ValueError, OSError, MemoryError) as error:
            name = legible(split.names[index]) if split.names else f"image {index}"
            said = str(error) or type(error).__name__
            faults.append(said if name in said else f"{name}: {said}")
    return images, faults


def fit(image: np.ndarray, shape: tuple[int, int, int], rule: str) -> Images:
    """Bring one image, uint8 (H, W, C), to ``shape`` by a resize rule.

    Raises:
        ValueError: it is not uint8 of C channels, or the rule does not take its size.
    """
    size, _, channels = shape
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise ValueError(f"is {image.shape} of {image.dtype}, expected (H, W, {channels}) of uint8")
    if image.shape == shape:
        return image
    height, width = image.shape[:2]
    if rule == "native":
        raise ValueError(f"has {width} x {height} pixels; the resize rule 'native' takes {size} x {size} only")
    if rule != "pad":
        return _resized(image, (size, size), rule)
    scale = min(1.0, size / max(height, width))
    if scale < 1:
        image = _resized(image, (max(1, round(width * scale)), max(1, round(height * scale))), "bilinear")
        height, width = image.shape[:2]
    canvas = np.zeros(shape, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def _resized(image: Images, width_height: tuple[int, int], rule: str) -> Images:
    from PIL import Image

    method = Image.Resampling[rule.upper()]
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(width_height, method))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(width_height, method))
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)

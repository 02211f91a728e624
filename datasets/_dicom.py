"""One DICOM file to uint8 (H, W) or (H, W, 3), as its header says: by pydicom and what plug-ins it finds.

Gray values are rescaled (modality LUT), then windowed: by the file's VOI LUT or first window and its function
(PS3.3, C.11.2), or by a window asked for. A file without either is stretched from its darkest to its brightest value,
padding left out. Colour comes as pydicom's decoders give it: RGB, whatever the file is coded in.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

Array = np.ndarray

WINDOWS = {"bone": (400.0, 1800.0), "lung": (-600.0, 1500.0), "brain": (40.0, 80.0)}  # centre, width; Hounsfield
_DIRECTORY = "1.2.840.10008.1.3.10"
# Transfer syntaxes that pydicom, numpy and Pillow do not decode: what does, and how to get it. (The last but one is
# GPL-3, so it is named and not required; it decodes 12 bits, where gdcm and Pillow decode 8.)
_EXTRA = "pip install 'medbench[dicom]'"
_PLUGINS = {
    "1.2.840.10008.1.2.4.57": (("gdcm",), _EXTRA),
    "1.2.840.10008.1.2.4.70": (("gdcm",), _EXTRA),
    "1.2.840.10008.1.2.4.80": (("jpeg_ls", "gdcm"), _EXTRA),
    "1.2.840.10008.1.2.4.81": (("jpeg_ls", "gdcm"), _EXTRA),
    "1.2.840.10008.1.2.4.51": (("libjpeg",), "pip install pylibjpeg-libjpeg (GPL-3) for more than 8 bits"),
    **{
        f"1.2.840.10008.1.2.4.{number}": (("openjpeg",), "pip install pylibjpeg pylibjpeg-openjpeg")
        for number in (201, 202, 203)
    },
}


class DicomError(ValueError):
    """A DICOM file cannot be used; the message says why, without its name."""


def is_dicom(stream: BinaryIO, bare: bool = True) -> bool:
    """Whether a file is DICOM: by its magic, or, if ``bare``, by a first element that only a data set begins with."""
    head = stream.read(132)
    stream.seek(0)
    if head[128:] == b"DICM":
        return True
    if not bare or len(head) < 12 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element = int.from_bytes(head[2:4], "little")
    explicit = head[4:6] in (b"UL", b"OB", b"UI", b"CS", b"SH", b"DA", b"LO")
    implicit = head[6:8] == b"\0\0" and 0 < int.from_bytes(head[4:6], "little") <= 64
    return element <= 0x70 and (explicit or implicit)


def read(stream: BinaryIO, header_only: bool = False) -> FileDataset:
    """Read a file, with or without preamble. Raises DicomError where pydicom is not installed."""
    try:
        import pydicom
    except ImportError:
        raise DicomError("is a DICOM file, which pydicom reads: pip install 'medbench[dicom]'") from None
    data = pydicom.dcmread(stream, stop_before_pixels=header_only, force=True)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        ending = "" if implicit else ".1" if little else ".2"
        data.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2{ending}")
    return data


def is_directory(data: FileDataset) -> bool:
    """Whether a file is a DICOMDIR: a list of files, no image."""
    return str(data.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY


def is_gray(data: FileDataset) -> bool:
    """Whether a header says that the image is gray."""
    return str(data.get("PhotometricInterpretation", "")).startswith("MONOCHROME")


def missing_plugin(data: FileDataset) -> str:
    """Name the plug-in that the file's transfer syntax needs and that is not installed, or ""."""
    syntax = data.file_meta.TransferSyntaxUID
    plugins, how = _PLUGINS.get(str(syntax), ((), ""))
    small = str(syntax).endswith(".51") and data.get("BitsStored", 8) <= 8
    if not plugins or small or any(importlib.util.find_spec(name) for name in plugins):
        return ""
    return f"{syntax.name} needs a plug-in: {how}"


def unscaled_ct(data: FileDataset) -> bool:
    """Whether a file is a CT slice without a window, which stretching would give a scale of its own."""
    return data.get("Modality") == "CT" and not data.get("VOILUTSequence") and _window(data) is None


def pixels(stream: BinaryIO, window: str, frame_of: Callable[[int], int], bounded: Callable[[int, int], None]) -> Array:
    """Decode a file.

    Args:
        stream: the file.
        window: ``file``, ``full``, a name in :data:`WINDOWS` or ``centre/width``.
        frame_of: from the number of frames to the one taken; raises ValueError.
        bounded: refuses a width and height.

    Returns:
        uint8 (H, W) or (H, W, 3).
    """
    data = read(stream)
    held = any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if is_directory(data) or not held or "Rows" not in data or "Columns" not in data:
        raise DicomError("is a DICOM file without an image")
    bounded(int(data.Columns), int(data.Rows))
    frame = frame_of(int(data.get("NumberOfFrames") or 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on values that break the standard's wording, not its meaning
        stored = _decoded(data, frame)
        return _gray(data, stored, window) if is_gray(data) else _colour(data, stored)


def _decoded(data: FileDataset, frame: int) -> Array:
    from pydicom.pixels.utils import pixel_array

    try:
        return np.asarray(pixel_array(data, index=frame))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if lacking := missing_plugin(data):
            raise DicomError(f"cannot be decoded: {lacking}") from error
        raise DicomError(f"cannot be decoded: {said}") from error


def _gray(data: FileDataset, stored: Array, window: str) -> Array:
    from pydicom.pixels.processing import apply_modality_lut

    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    values = np.asarray(apply_modality_lut(stored, data))
    limits = _window(data) if window == "file" else named_window(window)
    if window == "file" and data.get("VOILUTSequence"):
        gray = _by_table(values, data.VOILUTSequence[0])
    elif limits:
        function = str(data.get("VOILUTFunction") or "LINEAR") if window == "file" else "LINEAR_EXACT"
        gray = windowed(values, *limits, function)
    elif window == "full":
        ends = np.array(_range(data, stored.dtype))
        low, high = sorted(np.asarray(apply_modality_lut(ends, data), float).tolist())
        gray = scaled(values, low, high)
    else:
        padding = _padding(data, stored)
        shown = values[~padding] if padding is not None and not padding.all() else values
        gray = scaled(values, float(np.nanmin(shown)), float(np.nanmax(shown)))
        gray = 255 - gray if inverted else gray
        return gray if padding is None else np.where(padding, np.uint8(0), gray)
    return 255 - gray if inverted else gray


def _by_table(values: Array, table: Dataset) -> Array:
    """Look values up in a VOI LUT (PS3.3, C.11.2.1.1); values beyond its ends take these."""
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    content = table.LUTData
    if isinstance(content, bytes):
        content = np.frombuffer(content, np.uint8 if len(content) == (count or 65536) else np.dtype("<u2"))
    index = np.clip(np.asarray(values, np.float64) - first, 0, (count or 65536) - 1).astype(np.int64)
    return scaled(np.asarray(content)[index], 0, 2**bits - 1)


def scaled(values: Array, low: float, high: float) -> Array:
    """Map ``low`` to 0 and ``high`` to 255, linearly, and what lies beyond to these."""
    span = high - low
    found = (np.asarray(values, np.float64) - low) * (255.0 / span if span > 0 else 0.0)
    return (np.nan_to_num(np.clip(found, 0, 255)) + 0.5).astype(np.uint8)


def windowed(values: Array, centre: float, width: float, function: str = "LINEAR") -> Array:
    """Apply a window (PS3.3, C.11.2.1.2.1 and C.11.2.1.3). LINEAR is exact where its width - 1 would be none."""
    numbers = np.asarray(values, np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return scaled(1 / (1 + np.exp(-4 * (numbers - centre) / width)), 0, 1)
    if function == "LINEAR_EXACT" or width < 1:
        return scaled(numbers, centre - width / 2, centre + width / 2)
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    if width == 1:
        return np.where(numbers > high, 255, 0).astype(np.uint8)
    return scaled(numbers, low, high)


def named_window(window: str) -> tuple[float, float] | None:
    """Centre and width of a window asked for; None for ``file`` and ``full``."""
    if window in ("file", "full"):
        return None
    if window in WINDOWS:
        return WINDOWS[window]
    centre, _, width = window.partition("/")
    return float(centre), float(width)


def _window(data: FileDataset) -> tuple[float, float] | None:
    """The file's first window, if it has a usable one."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        return None
    first = [float(value[0] if hasattr(value, "__getitem__") else value) for value in (centre, width)]
    return (first[0], first[1]) if first[1] > 0 else None


def _range(data: FileDataset, dtype: np.dtype) -> tuple[float, float]:
    """Smallest and largest value that the file could store."""
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = int(data.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if data.PixelRepresentation else (0, 2**bits - 1)


def _padding(data: FileDataset, stored: Array) -> Array | None:
    """Mask of the pixels that the file calls padding; None where it has none."""
    value = data.get("PixelPaddingValue")
    if value in (None, "") or stored.dtype.kind == "f":
        return None
    value = _as_stored(int(value), stored.dtype)
    limit = data.get("PixelPaddingRangeLimit")
    other = value if limit in (None, "") else _as_stored(int(limit), stored.dtype)
    mask: Array = (stored >= min(value, other)) & (stored <= max(value, other))
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Read 63536 as -2000 where pixels are signed, and the other way round: writers mix the two up."""
    info = np.iinfo(dtype)
    return value if info.min <= value <= info.max else int(np.array(value).astype(dtype))


def _colour(data: FileDataset, stored: Array) -> Array:
    kind, bits = str(data.PhotometricInterpretation), int(data.BitsStored)
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = np.asarray(apply_color_lut(stored, data))
        bits = _palette_bits(data)
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise DicomError(f"is a DICOM image of kind {kind}, which is not supported")
    return stored if stored.dtype == np.uint8 else scaled(stored, 0, 2**bits - 1)


def _palette_bits(data: FileDataset) -> int:
    """8 where no entry of the palette needs more, whatever its descriptor says."""
    names = ("Red", "Green", "Blue")
    if "SegmentedRedPaletteColorLookupTableData" in data:
        return int(data.RedPaletteColorLookupTableDescriptor[2])
    most = max(_largest(data[f"{name}PaletteColorLookupTableData"].value) for name in names)
    return 8 if most < 256 else 16


@functools.lru_cache(maxsize=32)
def _largest(table: bytes) -> int:
    return int(np.frombuffer(table, "<u2").max()) if len(table) > 256 else 255

"""One image file or its bytes to uint8 (H, W, 1 or 3): any raster format that Pillow reads, and DICOM.

What a file says is taken seriously (EXIF orientation, palette, transparency, a DICOM's window and photometric
interpretation) and not trusted: its size in pixels is bounded before a pixel is decoded, and only raster formats are
tried (EPS, for one, would start another program). Images of more than 8 bits are stretched from their own darkest to
their own brightest value, since 12-bit values in a 16-bit file would otherwise come out almost black.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: a quarter of a GiB as RGB
MAX_BYTES = 1 << 29  # of a file
FORMATS = (
    "PNG", "JPEG", "JPEG2000", "MPO", "TIFF", "BMP", "DIB", "GIF", "PPM", "WEBP", "PCX", "SGI", "TGA", "AVIF",
)  # fmt: skip
SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".pbm", ".pgm", ".ppm", ".pnm", ".webp", ".pcx", ".sgi", ".tga", ".avif", ".dcm", ".dicom",
))  # fmt: skip
_TOO_MANY = f"more than {MAX_PIXELS / 1e6:.0f} million are not decoded (a decompression bomb?)"
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_GRAY = ("1", "L", "LA", "La", *_DEEP)


class ImageError(ValueError):
    """An image cannot be used; the message names it and says why."""


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image (hidden files, such as the ``._`` ones of a Mac, are not)."""
    base = name.rpartition("/")[2]
    return base[:1] != "." and base[base.rfind(".") :].lower() in SUFFIXES if "." in base else False


def is_bare_dicom(path: str) -> bool:
    """Whether a file without a suffix of letters (scanners write ``IM0001`` or ``1.2.840.113619``) is DICOM."""
    suffix = path.rpartition("/")[2].rpartition(".")
    if suffix[1] and not suffix[2].isdecimal():
        return False
    try:
        with open(path, "rb") as stream:
            return _is_dicom(stream)
    except OSError:
        return False


def decode(source: Path | bytes, name: str, channels: int, mix: bool = False) -> Array:
    """Decode one image.

    Args:
        source: a file, or the bytes of one.
        name: what an error calls it.
        channels: 1 or 3. A gray image is repeated for 3; a colour image is an error for 1 unless all its pixels are
            gray, or ``mix`` is set.
        mix: turn colour into gray (ITU-R 601-2 luma) where 1 channel is wanted.

    Returns:
        uint8 (H, W, channels), upright.

    Raises:
        ImageError: it is no image, is cut off, is too large, or has colours where gray was promised.
    """
    try:
        with _opened(source) as stream:
            pixels = _dicom(stream, name) if _is_dicom(stream) else _raster(stream, name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name}: there is not enough memory to decode it") from None
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        raise ImageError(f"{name} is not a readable image: {_said(error, name)}") from error
    return _with_channels(pixels, name, channels, mix)


def channels_of(sources: Iterable[tuple[Path | bytes, str]]) -> int:
    """Return 1 if every one of ``sources`` (file or bytes, name) says in its header that it is gray, else 3.

    Reads headers only. Files that cannot be read say nothing here; they are reported when they are decoded.
    """
    seen = 0
    for source, name in sources:
        try:
            with _opened(source) as stream:
                gray = _dicom_is_gray(stream, name) if _is_dicom(stream) else _raster_is_gray(stream, name)
        except Exception:  # as in decode()
            continue
        if not gray:
            return 3
        seen += 1
    return 1 if seen else 3


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.stat().st_size > MAX_BYTES:
        raise ImageError(f"{source} has {source.stat().st_size / 2**20:,.0f} MiB; image files up to 512 MiB are read")
    return source.open("rb")


def _said(error: Exception, name: str) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "no known image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{name}: ")


def _bounded(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} says it has {width} x {height} pixels; {_TOO_MANY}")
    if width < 1 or height < 1:
        raise ImageError(f"{name} says it has {width} x {height} pixels")


# --- raster images ---------------------------------------------------------------------------------------------


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow can read of those that we let it."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_raster(stream: BinaryIO, name: str) -> Any:
    from PIL import Image

    with warnings.catch_warnings():  # _bounded() says it better than Pillow's warning
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream, formats=_formats())
        except Image.DecompressionBombError as error:
            count = re.search(r"\d+", str(error))
            pixels = f"{int(count[0]):,}" if count else "too many"
            raise ImageError(f"{name} says it has {pixels} pixels; {_TOO_MANY}") from None
    _bounded(name, *image.size)
    return image


def _raster_is_gray(stream: BinaryIO, name: str) -> bool:
    image = _open_raster(stream, name)
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GRAY


def _raster(stream: BinaryIO, name: str) -> Array:
    """Return uint8 (H, W) or (H, W, 3)."""
    from PIL import Image, ImageFile, ImageOps

    image = _open_raster(stream, name)
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # somebody's global switch: a cut-off image would come out half gray
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        return stretch(np.asarray(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        gray = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")  # transparent places show black, as outside of a scanner's field of view
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
        return np.asarray(image)[:, :, 0] if gray else np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def stretch(values: Array, low: float | None = None, high: float | None = None) -> Array:
    """Map numbers linearly to 0..255: ``low`` (else the smallest) becomes 0, ``high`` (else the largest) 255.

    NaN counts as the smallest. An image of one value becomes black.
    """
    numbers: Array = values.astype(np.float32 if values.dtype.kind == "f" or values.dtype.itemsize <= 2 else np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        kept = numbers[finite] if finite.any() else np.zeros(1, numbers.dtype)
        numbers = np.nan_to_num(numbers, nan=kept.min(), posinf=kept.max(), neginf=kept.min())
    bottom = float(numbers.min()) if low is None else low
    top = float(numbers.max()) if high is None else high
    scaled = np.subtract(numbers, bottom) * (255.0 / (top - bottom) if top > bottom else 0.0)
    mapped: Array = (np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)
    return mapped


def _with_channels(pixels: Array, name: str, channels: int, mix: bool) -> Array:
    if channels == 3:
        return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels[:, :, None])
    if (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, :1])
    if not mix:
        raise ImageError(
            f"{name} is a colour image in a set that is gray otherwise; add [channels=3] to keep the colour of such "
            "images or [channels=1] to drop it"
        )
    luma: Array = pixels @ np.array([19595, 38470, 7471]) + 32768 >> 16  # Pillow's integers for 601-2
    return luma.astype(np.uint8)[:, :, None]


# --- DICOM -----------------------------------------------------------------------------------------------------


def _is_dicom(stream: BinaryIO) -> bool:
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM"


def _read_dicom(stream: BinaryIO, name: str, header_only: bool) -> Any:
    try:
        import pydicom
    except ImportError:
        raise ImageError(f"{name} is a DICOM file, which pydicom reads: pip install 'medbench[dicom]'") from None
    return pydicom.dcmread(stream, stop_before_pixels=header_only)


def _dicom_is_gray(stream: BinaryIO, name: str) -> bool:
    return str(_read_dicom(stream, name, True).get("PhotometricInterpretation", "")).startswith("MONOCHROME")


def _dicom(stream: BinaryIO, name: str) -> Array:
    """Return uint8 (H, W) or (H, W, 3): rescaled, windowed by the file's first window, bright where it should be."""
    data = _read_dicom(stream, name, False)
    if "PixelData" not in data:
        raise ImageError(f"{name} is a DICOM file without an image")
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise ImageError(f"{name} has {data.NumberOfFrames} frames; DICOM files of one image are read")
    _bounded(name, int(data.Columns), int(data.Rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on values that break the standard's wording, not its meaning
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

        pixels = np.asarray(data.pixel_array)
        if not str(data.PhotometricInterpretation).startswith("MONOCHROME"):
            return _dicom_colour(data, pixels, name)
        values = np.asarray(apply_modality_lut(pixels, data))
        low, high = _window(data)
        if low is None and "VOILUTSequence" in data:
            values = np.asarray(apply_voi_lut(values, data))
    gray = stretch(values, low, high)
    return 255 - gray if data.PhotometricInterpretation == "MONOCHROME1" else gray


def _window(data: Any) -> tuple[float | None, float | None]:
    """Darkest and brightest value of the file's first window (PS3.3, C.11.2.1.2.1), if it has one."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        return None, None
    centre, width = (float(v[0] if hasattr(v, "__getitem__") else v) for v in (centre, width))
    if not width >= 1:
        return None, None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _dicom_colour(data: Any, pixels: Array, name: str) -> Array:
    from pydicom.pixels.processing import apply_color_lut, convert_color_space

    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = np.asarray(apply_color_lut(pixels, data))
    elif str(data.PhotometricInterpretation).startswith("YBR"):
        pixels = np.asarray(convert_color_space(pixels, data.PhotometricInterpretation, "RGB"))
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"{name}: a DICOM image of kind {data.PhotometricInterpretation} is not read")
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)

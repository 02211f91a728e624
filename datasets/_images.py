"""One image file or its bytes to uint8 (H, W, 1 or 3): any raster format that Pillow reads, and DICOM.

What a file says is taken seriously (EXIF orientation, palette, transparency, white-is-zero, a DICOM's header) and not
trusted: its size in pixels is bounded before a pixel is decoded, and only raster formats are tried (EPS, for one,
would start another program). Images of more than 8 bits are stretched from their own darkest to their own brightest
value, since 12-bit values in a 16-bit file would otherwise come out almost black, unless a window says otherwise.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from bench.datasets import _dicom
from bench.registry import legible

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Array = np.ndarray

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: a quarter of a GiB as RGB
MAX_BYTES = 1 << 29  # of a file
FORMATS = (
    "PNG", "JPEG", "JPEG2000", "MPO", "TIFF", "BMP", "DIB", "GIF", "PPM", "WEBP", "PCX", "SGI", "TGA", "AVIF",
)  # fmt: skip
SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".pbm", ".pgm", ".ppm", ".pnm", ".webp", ".pcx", ".sgi", ".tga", ".avif", ".dcm", ".dicom", ".dic", ".ima",
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
    """Whether a file whose name tells nothing (scanners write ``IM0001``, ``1.2.840.113619``, ``x.MR``) is DICOM.

    A ``DICOMDIR`` is a list of files and no image.
    """
    base = path.rpartition("/")[2]
    if base[:1] == "." or base.upper().startswith("DICOMDIR"):
        return False
    _, dot, suffix = base.rpartition(".")
    try:
        with open(path, "rb") as stream:
            return bool(_dicom.is_dicom(stream, bare=not dot or suffix.isdecimal()))
    except OSError:
        return False


class Decoding(NamedTuple):
    """How images are decoded.

    Attributes:
        channels: 1 or 3. A gray image is repeated for 3; a colour image is an error for 1 unless all its pixels are
            gray, or ``mix`` is set.
        mix: turn colour into gray (ITU-R 601-2 luma) where 1 channel is wanted.
        window: gray values shown: ``file`` (what a DICOM file says, else from darkest to brightest), ``full`` (all that
            the file could hold), ``centre/width``, or ``bone``, ``lung``, ``brain`` in Hounsfield units.
        frames: of files that hold several: ``first``, ``middle``, ``last`` or a number from 1; "" refuses them.
    """

    channels: int
    mix: bool = False
    window: str = "file"
    frames: str = ""

    def frame_of(self, count: int) -> int:
        """Index of the frame that is taken of ``count``. Raises ImageError."""
        if count == 1:
            return 0
        if not self.frames:
            raise ImageError(f"has {count} frames (or pages); set frames=first, middle, last or a number")
        named = {"first": 0, "middle": count // 2, "last": count - 1}
        index = named[self.frames] if self.frames in named else int(self.frames) - 1
        if not 0 <= index < count:
            raise ImageError(f"has {count} frames, so there is none of frames={self.frames}")
        return index


def decode(source: Path | bytes, name: str, how: Decoding) -> Array:
    """Decode one image.

    Args:
        source: a file, or the bytes of one.
        name: what an error calls it.
        how: channels, window and frame.

    Returns:
        uint8 (H, W, channels), upright.

    Raises:
        ImageError: it is no image, is cut off, is too large, or has colours where gray was promised.
    """
    name = legible(name)
    try:
        with _opened(source) as stream:
            if _dicom.is_dicom(stream):
                pixels = _dicom.pixels(stream, how.window, how.frame_of, _bounded)
            else:
                pixels = _raster(stream, how)
        return _with_channels(pixels, how)
    except (ImageError, _dicom.DicomError) as error:
        raise ImageError(f"{name} {error}") from None
    except MemoryError:
        raise ImageError(f"{name}: there is not enough memory to decode it") from None
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        raise ImageError(f"{name} is not a readable image: {_said(error, name)}") from error


class Survey(NamedTuple):
    """What the headers of some images say.

    Attributes:
        channels: 1 if every one that can be read is gray, else 3.
        remarks: what a reader of a score should know, each with the names of the files.
    """

    channels: int
    remarks: dict[str, list[str]]


def survey(sources: Iterable[tuple[Path | bytes, str]], how: Decoding) -> Survey:
    """Read the headers of ``sources`` (file or bytes, name). Files that cannot be read are told when decoded."""
    gray: list[bool] = []
    remarks: dict[str, list[str]] = {}
    for source, name in sources:
        try:
            with _opened(source) as stream:
                if not _dicom.is_dicom(stream):
                    gray.append(_raster_is_gray(stream))
                    continue
                header = _dicom.read(stream, header_only=True)
                gray.append(_dicom.is_gray(header))
        except Exception:  # as in decode()
            continue
        if lacking := _dicom.missing_plugin(header):
            remarks.setdefault(f"DICOM images cannot be decoded: {lacking}", []).append(name)
        if how.window == "file" and _dicom.unscaled_ct(header):
            said = "CT images without a window are stretched one by one, so one gray is not one Hounsfield value; set "
            remarks.setdefault(f"{said}window=bone, lung, brain, full or CENTRE/WIDTH", []).append(name)
    return Survey(1 if gray and all(gray) else 3, remarks)


def header_field(source: Path | bytes, name: str, keyword: str) -> str:
    """One field of a DICOM header as text. Raises ImageError where the file has none."""
    try:
        with _opened(source) as stream:
            value = _dicom.read(stream, True).get(keyword) if _dicom.is_dicom(stream) else None
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None
    except Exception as error:
        raise ImageError(f"{name} is not a readable image: {_said(error, name)}") from error
    if value in (None, ""):
        raise ImageError(f"{name} has no {keyword} in a DICOM header")
    return str(value).strip()


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not source.exists():
        raise ImageError("does not exist")
    if source.stat().st_size > MAX_BYTES:
        raise ImageError(f"has {source.stat().st_size / 2**20:,.0f} MiB; image files up to 512 MiB are read")
    return source.open("rb")


def _said(error: Exception, name: str) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "no known image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{name}: ")


def _bounded(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"says it has {width} x {height} pixels; {_TOO_MANY}")
    if width < 1 or height < 1:
        raise ImageError(f"says it has {width} x {height} pixels")


# --- raster images ---------------------------------------------------------------------------------------------


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow can read of those that we let it."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_raster(stream: BinaryIO) -> ImageFile:
    from PIL import Image

    with warnings.catch_warnings():  # _bounded() says it better than Pillow's warning
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream, formats=_formats())
        except Image.DecompressionBombError as error:
            count = re.search(r"\d+", str(error))
            pixels = f"{int(count[0]):,}" if count else "too many"
            raise ImageError(f"says it has {pixels} pixels; {_TOO_MANY}") from None
    _bounded(*image.size)
    return image


def _raster_is_gray(stream: BinaryIO) -> bool:
    image = _open_raster(stream)
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GRAY or _raw_mode(image).startswith("LA;16")


def _raster(stream: BinaryIO, how: Decoding) -> Array:
    """Return uint8 (H, W) or (H, W, 3)."""
    from PIL import Image, ImageOps
    from PIL import ImageFile as Files

    image = _open_raster(stream)
    if Files.LOAD_TRUNCATED_IMAGES:  # somebody's global switch: a cut-off image would come out half gray
        Files.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = how.frame_of(1 if image.format == "MPO" else getattr(image, "n_frames", 1))
        if frame:
            image.seek(frame)
        white_is_zero, deep = _white_is_zero(image), _deep_bands(stream, image, frame)
        if deep:
            upright = Image.fromarray(_composed(*deep, how.window))
            upright.getexif()[274] = image.getexif().get(274, 1)
            return np.asarray(ImageOps.exif_transpose(upright))
        image.load()
        picture = ImageOps.exif_transpose(image)
    if picture.mode in _DEEP:
        gray = shown(np.asarray(picture), how.window)
        return 255 - gray if white_is_zero else gray
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        is_gray = picture.mode in ("1", "L", "LA", "La")
        picture = picture.convert("RGBA")  # transparent places show black, as outside of a scanner's field of view
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
        return np.asarray(picture)[:, :, 0] if is_gray else np.asarray(picture)
    return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))


def _raw_mode(image: ImageFile) -> str:
    """How Pillow's decoder will unpack an image, ``RGB;16B`` for one."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _white_is_zero(image: ImageFile) -> bool:
    """Whether a TIFF says that 0 is white; Pillow minds it in images of 8 bits only."""
    return bool(image.format == "TIFF" and image.tag_v2.get(262) == 0)  # type: ignore[attr-defined]


def _deep_bands(stream: BinaryIO, image: ImageFile, frame: int) -> tuple[Array, Array | None] | None:
    """Colours (H, W, 1 or 3) and opacity (H, W) of an image of 16 bits a band, uint16; None for others.

    Pillow keeps the upper byte of such a band and drops the other. Told that the bytes lie the other way round it
    keeps the lower one, so two passes give both.
    """
    mode = _raw_mode(image)
    bands, deep, order = mode.partition(";16")
    if image.format == "TIFF" and image.mode not in _DEEP:
        bits, planar = image.tag_v2.get(258, (8,)), image.tag_v2.get(284, 1) == 2  # type: ignore[attr-defined]
        if max(bits) > 8 and (not deep or planar or bands not in ("LA", "RGB", "RGBA", "RGBX")):
            raise ImageError(f"is a TIFF of {len(bits)} bands of {max(bits)} bits in an unsupported layout")
    if not deep or image.mode in _DEEP:
        return None
    if bands == "LA":  # four bytes a pixel, taken as they are
        raw = _unpacked(stream, frame, "RGBA").astype(np.uint16)
        first = 0 if order == "B" else 1
        return raw[:, :, first : first + 1] << 8 | raw[:, :, 1 - first : 2 - first], raw[:, :, 2 + first] << 8
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[order]
    high, low = (_unpacked(stream, frame, f"{bands};16{end}").astype(np.uint16) for end in (order, other))
    values = high << 8 | low
    return values[:, :, :3], values[:, :, 3] if bands == "RGBA" else None


def _unpacked(stream: BinaryIO, frame: int, mode: str) -> Array:
    stream.seek(0)
    image = _open_raster(stream)
    if frame:
        image.seek(frame)

    def args(old: tuple[object, ...] | str | None) -> tuple[object, ...] | str:
        return (mode, *old[1:]) if isinstance(old, tuple) else mode

    image.tile = [tile._replace(args=args(tile.args)) for tile in image.tile]
    return np.asarray(image)


def _composed(values: Array, opacity: Array | None, window: str) -> Array:
    """Deep colours on black."""
    seen = opacity > 0 if opacity is not None else None
    low, high = (values[seen].min(), values[seen].max()) if seen is not None and seen.any() else (None, None)
    pixels = shown(values, window, low, high)
    if opacity is not None:
        pixels = np.rint(pixels * (opacity[:, :, None] / opacity.max(initial=1))).astype(np.uint8)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def shown(values: Array, window: str, low: float | None = None, high: float | None = None) -> Array:
    """Map values of more than 8 bits to uint8 by a window; ``file`` stretches them (from ``low`` to ``high``)."""
    if limits := _dicom.named_window(window):
        return np.asarray(_dicom.windowed(values, *limits, "LINEAR_EXACT"))
    if window == "full":
        return np.asarray(_dicom.scaled(values, 0, 1 if values.dtype.kind == "f" else 65535))
    return stretch(values, low, high)


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
    return (np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)


def _with_channels(pixels: Array, how: Decoding) -> Array:
    if how.channels == 3:
        return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels[:, :, None])
    if (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, :1])
    if not how.mix:
        raise ImageError(
            "is a colour image in a set that is gray otherwise; add [channels=3] to keep the colour of such "
            "images or [channels=1] to drop it"
        )
    luma: Array = pixels @ np.array([19595, 38470, 7471]) + 32768 >> 16  # Pillow's integers for 601-2
    return luma.astype(np.uint8)[:, :, None]

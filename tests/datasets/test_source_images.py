"""Decoding of single images: every kind of pixel comes out as it was put in, and bad files get one clear line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.datasets import _images
from bench.datasets._images import Decoding, ImageError, decode, is_image, stretch, survey

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def written(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "TGA", "PCX", "SGI", "JPEG2000"])
def test_lossless_formats_come_back_to_the_pixel(kind: str) -> None:
    content = written(Image.fromarray(GRAY), kind)
    assert np.array_equal(decode(content, "x", Decoding(1))[:, :, 0], GRAY)
    assert np.array_equal(decode(content, "x", Decoding(3)), np.repeat(GRAY[:, :, None], 3, 2))
    assert survey([(content, "x")], Decoding(3)).channels == 1
    if kind != "GIF":
        content = written(Image.fromarray(COLOUR), kind)
        assert np.array_equal(decode(content, "x", Decoding(3)), COLOUR)
        assert survey([(content, "x")], Decoding(3)).channels == 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((64, 48), Image.Resampling.BICUBIC))
    found = decode(written(Image.fromarray(smooth), kind, quality=95), "x", Decoding(3))
    assert found.shape == (48, 64, 3)
    assert np.abs(found.astype(int) - smooth).mean() < 6


@pytest.mark.parametrize(
    "dtype, kind", [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")]
)
def test_deep_images_are_stretched_from_darkest_to_brightest(dtype: type, kind: str) -> None:
    deep = (GRAY.astype(dtype) * 17 + 3).astype(dtype)  # twelve of the bits: a plain >> 8 would leave 0..15
    content = written(Image.fromarray(deep), kind)
    expected = np.round(GRAY / GRAY.max() * 255)
    assert np.abs(decode(content, "x", Decoding(1))[:, :, 0] - expected).max() <= 1
    assert survey([(content, "x")], Decoding(3)).channels == 1


def test_stretch_of_odd_values() -> None:
    assert np.array_equal(stretch(np.array([[-5.0, np.nan, 5.0, np.inf]])), [[0, 0, 255, 255]])
    assert not stretch(np.full((2, 2), 700, np.uint16)).any()
    assert np.array_equal(stretch(np.array([[0, 50, 100, 200]], np.int16), 50, 100), [[0, 0, 255, 255]])


def test_palettes_bits_and_inverted_bits() -> None:
    few = COLOUR // 128 * 255
    content = written(Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8))
    assert np.array_equal(decode(content, "x", Decoding(3)), few)
    assert survey([(content, "x")], Decoding(3)).channels == 3
    gray_palette = Image.fromarray(GRAY).convert("P")
    assert survey([(written(gray_palette), "x")], Decoding(3)).channels == 1
    assert np.array_equal(decode(written(gray_palette), "x", Decoding(1))[:, :, 0], GRAY)
    assert np.array_equal(decode(written(Image.fromarray(GRAY > 100)), "x", Decoding(1))[:, :, 0], (GRAY > 100) * 255)


def test_transparent_places_are_black() -> None:
    alpha = np.full(GRAY.shape, 255, np.uint8)
    alpha[:, :4] = 0
    expected = COLOUR * (alpha[:, :, None] > 0)
    assert np.array_equal(decode(written(Image.fromarray(np.dstack([COLOUR, alpha]))), "x", Decoding(3)), expected)
    content = written(Image.fromarray(np.dstack([GRAY, alpha]), "LA"))
    assert np.array_equal(decode(content, "x", Decoding(1))[:, :, 0], GRAY * (alpha > 0))
    assert survey([(content, "x")], Decoding(3)).channels == 1


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # "the row 0 is the right-hand side": to be turned clockwise
    content = written(Image.fromarray(GRAY), exif=exif)
    assert np.array_equal(decode(content, "x", Decoding(1))[:, :, 0], np.rot90(GRAY, -1))


def test_colour_where_gray_was_promised() -> None:
    content = written(Image.fromarray(COLOUR))
    with pytest.raises(ImageError, match=r"a\.png is a colour image in a set that is gray otherwise; .*channels=3"):
        decode(content, "a.png", Decoding(1))
    luma = np.asarray(Image.fromarray(COLOUR).convert("L"))
    assert np.array_equal(decode(content, "a.png", Decoding(1, mix=True))[:, :, 0], luma)
    gray_as_colour = written(Image.fromarray(GRAY).convert("RGB"))
    assert np.array_equal(decode(gray_as_colour, "x", Decoding(1))[:, :, 0], GRAY)
    assert survey([(written(Image.fromarray(GRAY)), "a"), (content, "b")], Decoding(3)).channels == 3


# --- bad input -------------------------------------------------------------------------------------------------


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_images_are_named(kind: str, share: float, tmp_path: Path) -> None:
    content = written(noise(), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=r"^case/cut\.img is not a readable image: .") as error:
        decode(path, "case/cut.img", Decoding(3))
    assert "\n" not in str(error.value)


def test_somebodys_switch_for_truncated_images_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = written(noise(), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(content[: len(content) // 2], "x", Decoding(3))


@pytest.mark.parametrize(
    "content", [b"", b"hello" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", bytes(300)]
)
def test_what_is_no_image(content: bytes) -> None:
    with pytest.raises(ImageError, match="x is not a readable image: no known image format"):
        decode(content, "x", Decoding(3))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a/b\.png is not a readable image: No such file or directory"):
        decode(tmp_path / "b.png", "a/b.png", Decoding(3))


def png_header(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side, said", [(10_000, "10000 x 10000"), (60_000, "3,600,000,000")])
def test_a_decompression_bomb_is_not_decoded(side: int, said: str) -> None:
    with pytest.raises(ImageError, match=rf"b\.png says it has {said} pixels; more than 89 million are not decoded"):
        decode(png_header(side), "b.png", Decoding(3))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with path.open("wb") as stream:
        stream.truncate(_images.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="512 MiB; image files up to 512 MiB are read"):
        decode(path, "x.tif", Decoding(3))


@pytest.mark.parametrize(
    "name, wanted",
    [("a/b.PNG", True), ("x.jpeg", True), ("x.dcm", True), ("a/._b.png", False), ("png", False), ("x.txt", False)],
)
def test_names_of_images(name: str, wanted: bool) -> None:
    assert is_image(name) is wanted


# --- DICOM -----------------------------------------------------------------------------------------------------


def dicom(pixels: np.ndarray, kind: str = "MONOCHROME2", **fields: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[-2:] if pixels.ndim == 2 else pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_dicom_window_and_rescale() -> None:
    stored = np.arange(48, dtype=np.int16).reshape(6, 8) * 50  # Hounsfield: -1024 .. 1326
    content = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 300], WindowWidth=[400, 1500])
    hounsfield = stored.astype(float) - 1024
    expected = np.clip((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5, 0, 1) * 255  # PS3.3, C.11.2.1.2.1
    assert np.abs(decode(content, "x", Decoding(1))[:, :, 0] - expected).max() <= 0.51
    assert survey([(content, "x")], Decoding(3)).channels == 1


def test_dicom_without_window_is_stretched_and_monochrome1_inverted() -> None:
    stored = GRAY.astype(np.uint16) * 16
    expected = np.round(GRAY / GRAY.max() * 255)
    assert np.abs(decode(dicom(stored), "x", Decoding(1))[:, :, 0] - expected).max() <= 1
    assert np.abs(decode(dicom(stored, "MONOCHROME1"), "x", Decoding(1))[:, :, 0] - (255 - expected)).max() <= 1


def test_dicom_in_colour() -> None:
    content = dicom(COLOUR, "RGB")
    assert np.array_equal(decode(content, "x", Decoding(3)), COLOUR)
    assert survey([(content, "x")], Decoding(3)).channels == 3


def test_dicom_files_that_hold_no_single_image() -> None:
    with pytest.raises(
        ImageError, match=r"s\.dcm has 3 frames \(or pages\); say frames=first, middle, last or a number"
    ):
        decode(dicom(GRAY, NumberOfFrames=3), "s.dcm", Decoding(1))
    with pytest.raises(ImageError, match=r"b\.dcm says it has 20000 x 20000 pixels"):
        decode(dicom(GRAY, Rows=20_000, Columns=20_000), "b.dcm", Decoding(1))
    with pytest.raises(ImageError, match=r"c\.dcm is not a readable image"):
        decode(dicom(GRAY, Rows=100), "c.dcm", Decoding(1))

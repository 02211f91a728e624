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
    with pytest.raises(ImageError, match=r"^a/b\.png does not exist"):
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
        ImageError, match=r"s\.dcm has 3 frames \(or pages\); set frames=first, middle, last or a number"
    ):
        decode(dicom(GRAY, NumberOfFrames=3), "s.dcm", Decoding(1))
    with pytest.raises(ImageError, match=r"b\.dcm says it has 20000 x 20000 pixels"):
        decode(dicom(GRAY, Rows=20_000, Columns=20_000), "b.dcm", Decoding(1))
    with pytest.raises(ImageError, match=r"c\.dcm is not a readable image"):
        decode(dicom(GRAY, Rows=100), "c.dcm", Decoding(1))


def reference(content: bytes) -> np.ndarray:
    """What pydicom's own functions say of a gray image, 0..255 over what the file could hold."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    data = dcmread(io.BytesIO(content))
    values = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(float)
    signed = data.PixelRepresentation
    ends = np.array([-(2 ** (data.BitsStored - 1)) if signed else 0, 2 ** (data.BitsStored - signed) - 1], float)
    low, high = ends * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    return (values - low) / (high - low) * 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("window", [(2000, 1500, 1, -24), (0.4, 0.8, 0.0002, 0)])
def test_dicom_window_functions(function: str, window: tuple[float, float, float, float]) -> None:
    centre, width, slope, intercept = window
    if function == "LINEAR" and width < 1:
        function = "LINEAR_EXACT"  # the standard forbids the other, pydicom refuses it
    stored = GRAY.astype(np.uint16) * 17
    content = dicom(
        stored, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function, RescaleSlope=slope,
        RescaleIntercept=intercept,
    )  # fmt: skip
    assert np.abs(decode(content, "x", Decoding(1))[:, :, 0] - reference(content)).max() <= 0.51


def test_dicom_window_of_less_than_one_value() -> None:
    """A window of 0.8 after a rescale (PET) is a window, function named or not."""
    stored = GRAY.astype(np.uint16) * 17
    exact = dicom(
        stored, WindowCenter=0.4, WindowWidth=0.8, RescaleSlope=2e-4, RescaleIntercept=0, VOILUTFunction="LINEAR_EXACT"
    )
    plain = dicom(stored, WindowCenter=0.4, WindowWidth=0.8, RescaleSlope=2e-4, RescaleIntercept=0)
    assert np.array_equal(decode(plain, "x", Decoding(1)), decode(exact, "x", Decoding(1)))


def test_dicom_lookup_table_of_values() -> None:
    from pydicom import Dataset

    item = Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 8], [255 - i for i in range(256)]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    content = dicom(GRAY, VOILUTSequence=[item], WindowCenter=10, WindowWidth=5)
    assert np.array_equal(decode(content, "x", Decoding(1))[:, :, 0], 255 - GRAY)


def test_dicom_padding_is_black_and_sets_no_range() -> None:
    stored = GRAY.astype(np.int16) * 4 - 200
    stored[:2] = -3024
    content = dicom(stored, PixelPaddingValue=-3024, RescaleSlope=1, RescaleIntercept=0)
    shown = stored[2:].astype(float)
    found = decode(content, "x", Decoding(1))[:, :, 0]
    assert not found[:2].any()
    assert np.abs(found[2:] - (shown - shown.min()) / (shown.max() - shown.min()) * 255).max() <= 0.51
    inverted = dicom(stored, "MONOCHROME1", PixelPaddingValue=-3024, RescaleSlope=1, RescaleIntercept=0)
    assert not decode(inverted, "x", Decoding(1))[:2].any(), "outside of the field of view is black"


@pytest.mark.parametrize(
    "window, low, high",
    [("40/400", -160, 240), ("brain", 0, 80), ("lung", -1350, 150), ("bone", -500, 1300), ("full", -1024, 3071)],
)
def test_windows_asked_for(window: str, low: float, high: float) -> None:
    hounsfield = np.arange(48).reshape(6, 8) * 60.0 - 1024
    stored = (hounsfield + 1024).astype(np.uint16)
    content = dicom(
        stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9, BitsStored=12, HighBit=11
    )
    expected = np.clip((hounsfield - low) / (high - low), 0, 1) * 255
    assert np.abs(decode(content, "x", Decoding(1, window=window))[:, :, 0] - expected).max() <= 0.51


def test_ct_without_a_window_is_told() -> None:
    content = dicom(GRAY.astype(np.uint16), Modality="CT")
    assert "so one gray is not one Hounsfield value" in next(iter(survey([(content, "x")], Decoding(1)).remarks))
    assert not survey([(content, "x")], Decoding(1, window="lung")).remarks


COLOURS = np.repeat(np.array([[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (240, 240, 10)]], np.uint8), 8, 0).repeat(
    8, 1
)


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "RLE", "planes", "palette"])
def test_dicom_colour_is_pydicoms(kind: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom import uid
    from pydicom.encaps import encapsulate
    from pydicom.pixels import pixel_array

    data = pydicom.dcmread(io.BytesIO(dicom(COLOURS, kind if kind.startswith("YBR") else "RGB")))
    if kind == "YBR_FULL":
        data.PixelData = np.asarray(Image.fromarray(COLOURS).convert("YCbCr")).tobytes()
    elif kind.startswith("YBR"):
        form, options, syntax = {
            "YBR_FULL_422": ("JPEG", {"quality": 95}, uid.JPEGBaseline8Bit),
            "YBR_RCT": ("JPEG2000", {"irreversible": False}, uid.JPEG2000Lossless),
            "YBR_ICT": ("JPEG2000", {"irreversible": True, "quality_layers": [2]}, uid.JPEG2000),
        }[kind]
        data.PixelData = encapsulate([written(Image.fromarray(COLOURS), form, **options)])
        data.file_meta.TransferSyntaxUID = syntax
    elif kind == "RLE":
        data.compress(uid.RLELossless)
    elif kind == "planes":
        data.PlanarConfiguration, data.PixelData = 1, np.moveaxis(COLOURS, -1, 0).tobytes()
    elif kind == "palette":  # entries of 8 bits in a table of 16, as some writers leave them
        data = pydicom.dcmread(io.BytesIO(dicom((COLOURS[:, :, 0] > 100).astype(np.uint8), "PALETTE COLOR")))
        for at, name in enumerate(("Red", "Green", "Blue")):
            data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
            table = np.arange(256, dtype=np.uint16) * 0 + np.array((30, 90, 250), np.uint16)[at]
            data.add_new(f"{name}PaletteColorLookupTableData", "OW", table.tobytes())
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    found = decode(stream.getvalue(), "x", Decoding(3))
    expected = pixel_array(io.BytesIO(stream.getvalue())) if kind != "palette" else np.array([[[30, 90, 250]]])
    assert np.abs(found.astype(int) - expected).max() <= 2
    if kind not in ("palette", "YBR_ICT"):
        assert np.abs(found[4, 4].astype(int) - COLOURS[4, 4]).max() <= 3, "red is red"


def test_dicom_without_a_preamble_and_deep_colour() -> None:
    pydicom = pytest.importorskip("pydicom")
    content = dicom(GRAY.astype(np.uint16) * 16)
    data = pydicom.Dataset()
    data.update(dict(pydicom.dcmread(io.BytesIO(content)).items()))
    for implicit in (True, False):
        stream = io.BytesIO()
        data.save_as(stream, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert np.array_equal(decode(stream.getvalue(), "x", Decoding(1)), decode(content, "x", Decoding(1)))
    deep = dicom(COLOURS.astype(np.uint16) * 16, "RGB", BitsStored=12, HighBit=11)
    assert np.abs(decode(deep, "x", Decoding(3)).astype(int) - COLOURS).max() <= 1


def test_frames() -> None:
    full = GRAY.copy()
    full[0, 0], full[-1, -1] = 0, 255  # so that stretching leaves it as it is
    frames = np.stack([full, full[::-1], full[:, ::-1]])
    content = dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    stream = io.BytesIO()
    pages = [Image.fromarray(frame) for frame in frames]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    for several in (content, stream.getvalue()):
        with pytest.raises(ImageError, match="x has 3 frames"):
            decode(several, "x", Decoding(1))
        for frame, at in (("first", 0), ("middle", 1), ("last", 2), ("2", 1)):
            assert np.array_equal(decode(several, "x", Decoding(1, frames=frame, window="file"))[:, :, 0], frames[at])
        with pytest.raises(ImageError, match="so there is none of frames=4"):
            decode(several, "x", Decoding(1, frames="4"))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.51"])
def test_a_missing_plugin_is_told_in_the_plan(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydicom")
    from bench.datasets import _dicom

    monkeypatch.setattr(_dicom.importlib.util, "find_spec", lambda name: None)
    content = dicom(GRAY.astype(np.uint16), BitsStored=12, HighBit=11)
    import pydicom
    from pydicom.encaps import encapsulate

    data = pydicom.dcmread(io.BytesIO(content))
    data.file_meta.TransferSyntaxUID, data.PixelData = syntax, encapsulate([b"\xff\xd8\xff\xc3" + bytes(60)])
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    [remark] = survey([(stream.getvalue(), "x")], Decoding(1)).remarks
    assert "needs a plug-in: pip install" in remark
    with pytest.raises(ImageError, match=r"x cannot be decoded: .* needs a plug-in: pip install"):
        decode(stream.getvalue(), "x", Decoding(1))


def test_pydicoms_own_files_come_out_as_pydicom_says() -> None:
    """Gray files with a window, and colour files, of every syntax that can be read here."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data.data_manager import DATA_ROOT
    from pydicom.pixels import pixel_array

    compared = 0
    for path in sorted((Path(DATA_ROOT) / "test_files").glob("*.dcm")):
        try:
            data = pydicom.dcmread(path)
            expected = pixel_array(data, index=0)
            kind = data.PhotometricInterpretation
            if kind.startswith("MONOCHROME") and data.get("WindowWidth"):
                expected = reference(path.read_bytes()) if int(data.get("NumberOfFrames") or 1) == 1 else None
            elif expected.dtype != np.uint8 or kind.startswith(("MONO", "PALETTE")):
                expected = None
        except Exception:
            continue
        if expected is not None:
            expected = 255 - expected if kind == "MONOCHROME1" else expected
            found = decode(path, path.name, Decoding(1 if kind.startswith("MONO") else 3, frames="first"))
            assert np.abs(found.squeeze() - expected).max() <= 2, path.name
            compared += 1
    assert compared > 20


# --- deep rasters ----------------------------------------------------------------------------------------------


def deep_png(bands: np.ndarray) -> bytes:
    """A PNG of 16 bits, (H, W, C), each row filtered by the row above."""
    height, width, channels = bands.shape
    big = bands.astype(">u2").view(np.uint8).reshape(height, -1)
    up = np.vstack([big[:1], big[1:] - big[:-1]])
    rows = b"".join(bytes([2 if y else 0]) + up[y].tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_deep_png_in_colour_and_with_opacity() -> None:
    twelve = COLOUR.astype(np.uint16) * 16 + 5
    expected = (twelve - twelve.min()) / (twelve.max() - twelve.min()) * 255.0
    found = decode(deep_png(twelve), "x", Decoding(3))
    assert np.abs(found - expected).max() <= 0.51
    opaque = np.full((6, 8, 1), 65535, np.uint16)
    assert np.array_equal(decode(deep_png(np.dstack([twelve, opaque])), "x", Decoding(3)), found)
    gray = deep_png(np.dstack([twelve[:, :, :1], opaque]))
    assert survey([(gray, "x")], Decoding(1)).channels == 1
    plain = decode(deep_png(twelve[:, :, :1]), "x", Decoding(1))
    assert np.array_equal(decode(gray, "x", Decoding(1)), plain)
    opaque[:3] = 0
    assert not decode(deep_png(np.dstack([twelve, opaque])), "x", Decoding(3))[:3].any()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", "<>")
def test_deep_tiff_in_colour(compression: str | None, order: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    twelve = COLOUR.astype(np.uint16) * 16 + 5
    stream = io.BytesIO()
    tifffile.imwrite(stream, twelve, photometric="rgb", compression=compression, byteorder=order)
    expected = (twelve - twelve.min()) / (twelve.max() - twelve.min()) * 255.0
    assert np.abs(decode(stream.getvalue(), "x", Decoding(3)) - expected).max() <= 0.51
    stream = io.BytesIO()
    planes = np.moveaxis(twelve, -1, 0)
    tifffile.imwrite(stream, planes, photometric="rgb", planarconfig="separate", byteorder=order)
    with pytest.raises(ImageError, match="x is a TIFF of 3 bands of 16 bits in an unsupported layout"):
        decode(stream.getvalue(), "x", Decoding(3))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_white_is_zero(dtype: type) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = GRAY.astype(dtype) * (1 if dtype == np.uint8 else 16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, (255 - values) if dtype == np.uint8 else values.max() - values, photometric="miniswhite")
    plain = written(Image.fromarray(values), "TIFF")
    assert np.abs(decode(stream.getvalue(), "x", Decoding(1)).astype(int) - decode(plain, "x", Decoding(1))).max() <= 1


def test_a_window_for_deep_rasters() -> None:
    content = written(Image.fromarray(GRAY.astype(np.uint16) * 100))
    full = decode(content, "x", Decoding(1, window="full"))[:, :, 0]
    assert np.abs(full - GRAY * 100.0 / 65535 * 255).max() <= 0.51
    narrow = decode(content, "x", Decoding(1, window="10000/5000"))[:, :, 0]
    assert np.abs(narrow - np.clip((GRAY * 100.0 - 7500) / 5000, 0, 1) * 255).max() <= 0.51

"""Tables, folder trees and DICOM headers made up by hypothesis: read as an independent reading says, or refused.

Never another exception than ours, never another number of images without a finding that counts them.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.datasets._images import Decoding, ImageError, decode
from bench.datasets.csv_table import read_table
from bench.registry import DatasetInfo, LazySplit, RegistryError, dataset_info

SHORT = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = st.text(st.sampled_from("aBé 'x|;,\"\t_-1\u200b"), max_size=5)
LABELS = st.sampled_from(
    ["a", "b", "A", "b ", "a|b", "a;b", "a,b", "", "?", "none", "1", "0", "-1", "1.0", "0,5", "é", "e\u0301"]
)
CELL = st.one_of(LABELS, WORDS)


def images_of(info: DatasetInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in info.open().load(28, None).values():
        assert isinstance(split, LazySplit)
        for name, label in zip(split.names, split.labels, strict=True):
            assert name not in found or info.findings, f"{name} is there twice"
            several = isinstance(label, np.ndarray)
            found[name] = {info.classes[c] for c in np.flatnonzero(label)} if several else {info.classes[label]}
    return found


def counted(info: DatasetInfo) -> int:
    return sum(f.count for f in info.findings if "left out" in f.text or "count once" in f.text)


@st.composite
def tables(draw: Any) -> tuple[list[str], str, str]:
    kinds = draw(st.lists(CELL, min_size=2, max_size=4, unique=True))
    labels = [kinds[at] for at in draw(st.lists(st.integers(0, len(kinds) - 1), min_size=30, max_size=40))]
    return labels, draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))


def check_table(labels: list[str], separator: str, end: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(("image", "label"))
    writer.writerows((f"{i}.png", label) for i, label in enumerate(labels))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(text.getvalue().encode())
        try:
            info = dataset_info(f"csv:{path}", refresh=True)
            found = images_of(info)
        except (RegistryError, ValueError) as error:
            assert str(error) and "Traceback" not in str(error)
            return
    frame = pd.read_csv(
        io.BytesIO(text.getvalue().replace("\r\n", "\n").replace("\r", "\n").encode()),
        sep=separator, dtype=str, keep_default_na=False,
    )  # fmt: skip
    wanted = {row.image: row.label.strip() for row in frame.itertuples()}
    assert len(found) + counted(info) == len(labels)
    for name, label in found.items():
        cell = wanted[name]
        if info.task == "multi-label":
            assert label == {p.strip() for s in "|;," if s in cell for p in cell.split(s) if p.strip()} or label <= {
                cell
            }
        elif label != {cell}:
            assert float(cell.replace(",", ".")) == float(next(iter(label)).replace(",", "."))


@SHORT
@given(tables())
def test_tables(made: tuple[list[str], str, str]) -> None:
    check_table(*made)


@pytest.mark.slow
@LONG
@given(tables())
def test_many_tables(made: tuple[list[str], str, str]) -> None:
    check_table(*made)


def check_text(content: bytes) -> None:
    try:
        table = read_table(content, "t.csv")
    except ValueError:
        return
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(table.rows) <= content.count(b"\n") + content.count(b"\r") + content.count(b"\x85") + 1


BYTES = st.one_of(
    st.binary(max_size=80),
    st.text(st.sampled_from('ab,;\t|"\n\r #=sep'), max_size=80).map(str.encode),
)


@SHORT
@given(BYTES)
def test_text_that_may_be_a_table(content: bytes) -> None:
    check_text(content)


@pytest.mark.slow
@LONG
@given(BYTES)
def test_much_text_that_may_be_a_table(content: bytes) -> None:
    check_text(content)


NAMES = st.sampled_from(
    ["train", "test", "Val", "train_set", "fold1", "fold2", "benign", "Benign", "malignant", "images", "masks", "p1",
     "p2", "0", "1", "none", "a|b", "é"]
)  # fmt: skip
TREES = st.lists(st.tuples(st.lists(NAMES, max_size=3).map(tuple), st.integers(1, 6)), min_size=1, max_size=8)
FILES = ("{}.png", "{}_mask.png", "x ({}).PNG", "{}.txt")


def check_tree(tree: list[tuple[tuple[str, ...], int]], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = set()
        for parts, count in tree:
            for i in range(count):
                path = Path(folder, *parts, kind.format(i))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2), i).save(path, "PNG")
                made.add(path.relative_to(folder).as_posix())
        try:
            info = dataset_info(f"folder:{folder}", refresh=True)
            found = images_of(info)
        except (RegistryError, ValueError) as error:
            assert str(error)
            return
        assert found.keys() <= made
        assert len(found) + counted(info) >= len([name for name in made if not name.endswith(".txt")])
        for name, label in found.items():
            assert next(iter(label)) in name.split("/")[:-1], "a class is a folder above the image"


@SHORT
@given(TREES, st.sampled_from(FILES))
def test_trees(tree: list[tuple[tuple[str, ...], int]], kind: str) -> None:
    check_tree(tree, kind)


@pytest.mark.slow
@LONG
@given(TREES, st.sampled_from(FILES))
def test_many_trees(tree: list[tuple[tuple[str, ...], int]], kind: str) -> None:
    check_tree(tree, kind)


NUMBERS = st.one_of(st.integers(-70_000, 70_000), st.floats(-4000, 4000, width=16), st.just(None), st.just(""))
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "WindowCenter": NUMBERS, "WindowWidth": NUMBERS, "RescaleSlope": NUMBERS, "RescaleIntercept": NUMBERS,
        "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "", "odd"]),
        "PhotometricInterpretation": st.sampled_from(
            ["MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", ""]
        ),
        "BitsStored": st.integers(0, 17), "BitsAllocated": st.sampled_from([1, 8, 12, 16, 32]),
        "PixelRepresentation": st.integers(0, 1), "Rows": st.integers(0, 9), "SamplesPerPixel": st.sampled_from([1, 3]),
        "NumberOfFrames": st.integers(0, 3), "Modality": st.sampled_from(["CT", "MR"]),
    },
)  # fmt: skip


def check_header(fields: dict[str, Any], pixels: bytes) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.uid import ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    plain = {
        "Rows": 4, "Columns": 4, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelData": pixels,
    }  # fmt: skip
    stream = io.BytesIO()
    try:
        for key, value in {**plain, **fields}.items():
            setattr(data, key, value)
        data.save_as(stream, enforce_file_format=True)
    except Exception:  # what cannot be written is no header
        return
    try:
        found = decode(stream.getvalue(), "x.dcm", Decoding(1, mix=True))
    except ImageError as error:
        assert str(error).startswith("x.dcm")
        return
    assert found.dtype == np.uint8 and found.shape[2] == 1
    width = fields.get("WindowWidth")
    if (
        fields.keys() <= {"WindowCenter", "WindowWidth"}
        and isinstance(width, int)
        and width >= 1
        and fields.get("WindowCenter") not in (None, "")
    ):
        again = pydicom.dcmread(io.BytesIO(stream.getvalue()))
        said = apply_voi_lut(apply_modality_lut(again.pixel_array, again), again) / 65535 * 255
        assert np.abs(found[:, :, 0] - said).max() <= 1


@SHORT
@given(HEADERS, st.binary(min_size=32, max_size=32))
def test_headers(fields: dict[str, Any], pixels: bytes) -> None:
    check_header(fields, pixels)


@pytest.mark.slow
@LONG
@given(HEADERS, st.binary(min_size=32, max_size=32))
def test_many_headers(fields: dict[str, Any], pixels: bytes) -> None:
    check_header(fields, pixels)

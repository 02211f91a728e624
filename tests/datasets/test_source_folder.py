"""``folder:PATH``: layouts, order of classes, channels, splits, fingerprints, and one line for each fault."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.registry import DatasetInfo, LazySplit, RegistryError, dataset_info

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "medical_mnist_600"


def picture(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


def classes_in(top: Path, counts: dict[str, int], mode: str = "L") -> None:
    for at, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(top / name / f"{i:03}.png", 10 * at + i, mode)


def facts(top: Path, options: str = "") -> DatasetInfo:
    return dataset_info(f"folder:{top}{options}", refresh=True)


def load(info: DatasetInfo) -> dict[str, LazySplit]:
    return info.open().load(28, None)  # type: ignore[return-value]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    classes_in(tmp_path, {"stage 10": 10, "stage 2": 20, "Stage 1": 30})
    info = facts(tmp_path)
    assert info.classes == ("Stage 1", "stage 2", "stage 10")
    assert (info.task, info.channels, info.varied, info.sizes, info.mirror_safe) == ("multi-class", 1, True, (), False)
    assert (info.n_train, info.n_val, info.n_test) == (42, 6, 12)
    assert "the splits were made by medbench, image by image" in info.traps[0]
    splits = load(info)
    assert [np.bincount(splits[s].labels).tolist() for s in ("train", "val", "test")] == [
        [21, 14, 7],
        [3, 2, 1],
        [6, 4, 2],
    ]
    seen = set()
    for split in splits.values():
        read = pickle.loads(pickle.dumps(split.read))
        for i, (name, label) in enumerate(zip(split.names, split.labels, strict=True)):
            kind, number = name.split("/")
            assert info.classes[label] == kind
            offset = {"stage 10": 0, "stage 2": 10, "Stage 1": 20}[kind]
            assert (read(i) == offset + int(number[:3])).all() and read(i).shape == (7, 9, 1)
            seen.add(name)
    assert len(seen) == 60


def test_published_splits_and_what_they_lack(tmp_path: Path) -> None:
    for split, count in (("Training", 20), ("valid", 5), ("testing", 8)):
        classes_in(tmp_path / split, {"no": count, "yes": count})
    info = facts(tmp_path)
    assert (info.task, info.n_train, info.n_val, info.n_test, info.traps) == ("binary-class", 40, 10, 16, ())
    assert load(info)["val"].names[0] == "valid/no/000.png"
    for path in sorted((tmp_path / "valid").rglob("*.png")):
        path.unlink()
    for kind in ("no", "yes"):
        (tmp_path / "valid" / kind).rmdir()
    (tmp_path / "valid").rmdir()
    info = facts(tmp_path)
    assert (info.n_train, info.n_val, info.n_test) == (36, 4, 16)
    assert info.traps[0].startswith("val was made by medbench")


def test_patients_found_in_names_stay_whole(tmp_path: Path) -> None:
    for patient in range(30):
        for shot in range(4):
            picture(tmp_path / ("a" if patient % 2 else "b") / f"p{patient}_{shot}.png", patient)
    info = facts(tmp_path, r"[patient=(p\d+)_]")
    splits = load(info)
    owners = [set(split.groups) for split in splits.values()]
    assert set().union(*owners) == {f"p{i}" for i in range(30)}
    assert sum(map(len, owners)) == 30
    assert "by patient" in info.traps[0]
    with pytest.raises(RegistryError, match=r"patient=x\(\\d\) finds no patient in 'a/p11_0\.png'"):
        facts(tmp_path, r"[patient=x(\d)]")
    with pytest.raises(RegistryError, match=r"patient=\( is not a valid regular expression"):
        facts(tmp_path, "[patient=(]")


def test_options(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 10}, "RGB")
    assert facts(tmp_path).channels == 3
    gray = facts(tmp_path, "[mirror=true,channels=1]")
    assert (gray.channels, gray.mirror_safe, gray.name) == (1, True, f"folder:{tmp_path}[channels=1,mirror=true]")
    assert load(gray)["train"].read(0).shape == (7, 9, 1)
    assert load(facts(tmp_path))["test"].names != load(facts(tmp_path, "[seed=3]"))["test"].names
    for options, said in (
        ("[chanels=1]", r"chanels=1: no such option \(did you mean 'channels'\?\)"),
        ("[channels=2]", "channels are 1 or 3"),
        ("[seed=x]", "a seed is a whole number"),
        ("[mirror=maybe]", "write true if a left-right flip keeps every label"),
    ):
        with pytest.raises(RegistryError, match=said):
            facts(tmp_path, options)


def test_fingerprints_follow_the_files(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 10})
    info = facts(tmp_path)
    first = info.open().fingerprint(28, None)
    assert first == facts(tmp_path).open().fingerprint(64, None)
    assert facts(tmp_path, "[seed=1]").open().fingerprint(28, None) != first
    os.utime(tmp_path / "a" / "003.png", ns=(1, 1))
    assert info.open().fingerprint(28, None) == first, "a time is no content"
    picture(tmp_path / "a" / "003.png", 99)
    second = info.open().fingerprint(28, None)
    picture(tmp_path / "b" / "new.png", 3)
    third = info.open().fingerprint(28, None)
    (tmp_path / "b" / "new.png").rename(tmp_path / "b" / "renamed.png")
    assert len({first, second, third, info.open().fingerprint(28, None)}) == 4


# --- bad input -------------------------------------------------------------------------------------------------


def refused(top: Path, said: str) -> None:
    with pytest.raises(RegistryError, match=said) as error:
        facts(top)
    assert "\n" not in str(error.value)


def test_an_empty_class(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "c").mkdir()
    refused(tmp_path, r"the class folder .*/c holds no image$")
    (tmp_path / "c" / "notes.txt").write_text("x")
    refused(tmp_path, r"the class folder .*/c holds no image \(files of other kinds: \.txt\)")


def test_a_class_missing_in_a_split(tmp_path: Path) -> None:
    classes_in(tmp_path / "train", {"a": 10, "b": 10})
    classes_in(tmp_path / "val", {"a": 10, "b": 10})
    classes_in(tmp_path / "test", {"a": 10})
    refused(tmp_path, "no test image is of class 'b'; no score could be given for it")


def test_a_class_too_small_to_split(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 2})
    refused(tmp_path, "class 'b' has 2 images, too few to give val a share")


def test_layouts_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "there is no folder .*absent")
    refused(tmp_path, "holds no folder; expected one folder per class")
    picture(tmp_path / "x.png", 1)
    refused(tmp_path, "holds no folder but 1 image; expected one folder per class")
    refused(tmp_path / "x.png", "is a file; name its folder")
    classes_in(tmp_path / "inside", {"a": 10, "b": 10})
    refused(tmp_path, r"holds only the folder 'inside' \(is that one meant\?\)")
    with pytest.raises(RegistryError, match="missing path after 'folder:'"):
        dataset_info("folder:")


def test_a_table_beside_the_images_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / "images" / f"{seed}.png", seed)
    refused(tmp_path, "holds 3 images of one class only, 'images'; expected one folder per class")
    (tmp_path / "labels.csv").write_text("path,icu\n")
    refused(tmp_path, r"The labels may be in a table: csv:.*/labels\.csv\[label=COLUMN\]")
    (tmp_path / "train.parquet").write_bytes(b"")
    refused(tmp_path, "It looks like a Hugging Face dataset: hf:")


def test_a_stranger_beside_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        classes_in(tmp_path / split, {"a": 10, "b": 10})
    classes_in(tmp_path / "masks", {"a": 3})
    refused(tmp_path, "holds splits, but also a folder 'masks', which is none; move it away")


def test_a_folder_that_changed_since_the_plan(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 10})
    info = facts(tmp_path)
    classes_in(tmp_path, {"c": 10})
    with pytest.raises(ValueError, match=r"its classes were \('a', 'b'\) and are \('a', 'b', 'c'\) now; run again"):
        load(info)


def test_a_truncated_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 10, "b": 10})
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:50])
    info = facts(tmp_path)
    with pytest.raises(ValueError, match=r"^[ab]/\d{3}\.png is not a readable image: "):
        load(info)["train"].read(0)


def test_facts_import_nothing_heavy(tmp_path: Path) -> None:
    classes_in(tmp_path, {"a": 3, "b": 3})
    code = (
        "import sys; from bench.registry import dataset_info; dataset_info(sys.argv[1]).open().fingerprint(28, None);"
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"folder:{tmp_path}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real folder ../shared/data/medical_mnist_600 is not here")
def test_the_real_folder() -> None:
    info = facts(REAL)
    assert info.classes == ("AbdomenCT", "BreastMRI", "ChestCT", "CXR", "Hand", "HeadCT")
    assert (info.channels, info.n_train, info.n_val, info.n_test) == (1, 420, 60, 120)
    split = load(info)["test"]
    with Image.open(REAL / split.names[7]) as image:
        assert np.array_equal(split.read(7)[:, :, 0], np.asarray(image))


def test_dicom_files_without_a_suffix(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    for i in range(20):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", f"1.2.{i + 1}"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.WindowCenter, data.WindowWidth = 2048, 4096
        data.PixelData = np.full((4, 4), i * 200, np.uint16).tobytes()
        folder = tmp_path / ("a" if i % 2 else "b")
        folder.mkdir(exist_ok=True)
        data.save_as(folder / (f"IM{i:04}" if i < 10 else f"1.2.840.{i}"), enforce_file_format=True)
        (folder / "notes").write_text("not an image")
    info = facts(tmp_path)
    assert (info.channels, info.n_train) == (1, 14)
    for split in load(info).values():
        for i, name in enumerate(split.names):
            number = int(name[-4:].replace("IM", "").rpartition(".")[2])
            assert abs(int(split.read(i)[0, 0, 0]) - number * 200 / 4095 * 255) <= 1

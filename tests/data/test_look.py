"""What is noticed while a set is decoded: repeated images, blank ones, shared patients, one-sided splits."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.data.cache import load_dataset, looked_at, open_entry
from bench.data.cache_entry import without_repeats
from bench.data.look import Looked, all_findings
from bench.registry import Finding

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "medmnist"


def picture(path: Path, seed: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8) if seed is not None else np.full((16, 16), 9)
    )
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def folder(top: Path) -> Path:
    """Two images of train are in test (one as the other class), one in val, two are blank, one repeats in train."""
    number = itertools.count()
    for split, kind in itertools.product(("train", "val", "test"), ("a", "b")):
        for _ in range(8):
            picture(top / split / kind / f"p{next(number)}.png", next(number))
    copies = [
        ("train/a/p0.png", "test/a/p80.png"),
        ("train/a/p2.png", "test/b/p90.png"),
        ("train/b/p20.png", "val/b/c.png"),
    ]
    for source, target in [*copies, ("train/b/p22.png", "train/b/p99.png")]:
        (top / target).write_bytes((top / source).read_bytes())
    picture(top / "train" / "a" / "blank.png", None)
    picture(top / "test" / "b" / "blank.png", None)
    return top


def test_what_is_found(tmp_path: Path) -> None:
    top = folder(tmp_path / "set")
    info = registry.dataset_info(f"folder:{top}[patient=(p\\d+|blank|c)]")
    entry = open_entry(info, 16, None, tmp_path / "cache", resize="nearest")
    found = {finding.text: finding for finding in entry.looked.findings}
    assert found["2 images of train are in test too, with equal pixels (1 with another label)"].severity == "leak"
    assert found["1 image of train is in val too, with equal pixels"].examples == ("train/b/p20.png = val/b/c.png",)
    assert found["1 image of train repeats another of train"].examples == ("train/b/p22.png = train/b/p99.png",)
    assert found["1 image of train is of one gray level"].examples == ("train/a/blank.png",)
    assert found["1 patient is in train and in test"] == Finding(
        "1 patient is in train and in test", 1, ("blank",), "leak"
    )
    assert looked_at(info, 16, entry.fingerprint, "nearest", tmp_path / "cache") == entry.looked
    kept = without_repeats(entry)
    names = np.array(load_dataset(info.name, 16, None, tmp_path / "cache", resize="nearest").members("train").names)
    gone = {"train/a/p0.png", "train/a/p2.png", "train/b/p20.png"}
    assert len(kept["train"].labels) == len(names) - 3
    wanted = entry.splits["train"].images[[name not in gone for name in names]]
    assert np.array_equal(kept["train"].images, wanted)
    assert len(kept["test"].labels) == len(entry.splits["test"].labels)


def test_one_sided_splits(tmp_path: Path) -> None:
    arrays = {
        f"{split}_images": np.random.default_rng(at).integers(0, 256, (6, 9, 9), np.uint8)
        for at, split in enumerate(("train", "val", "test"))
    }
    labels = {"train_labels": [0, 1, 2] * 2, "val_labels": [1] * 6, "test_labels": [0, 2] * 3}
    np.savez(tmp_path / "x.npz", **arrays, **{key: np.array(value) for key, value in labels.items()})
    info = registry.dataset_info(f"npz:{tmp_path / 'x.npz'}")
    texts = [finding.text for finding in open_entry(info, 9, None, tmp_path / "cache").looked.findings]
    assert texts == ["val has images of one class only", "test has no image of: 1"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files ../shared/data/medmnist are not here")
def test_pneumoniamnist_as_published(tmp_path: Path) -> None:
    with np.load(REAL / "pneumoniamnist.npz") as file:
        rows = {split: [image.tobytes() for image in file[f"{split}_images"]] for split in ("train", "val", "test")}
    shared = set(rows["train"]) & set(rows["val"])
    repeats = {split: len(images) - len(set(images)) for split, images in rows.items()}
    assert (len(shared), repeats) == (8, {"train": 18, "val": 0, "test": 3})
    info = registry.dataset_info("pneumoniamnist")
    looked = open_entry(info, 28, REAL, tmp_path).looked
    assert [(finding.severity, finding.count) for finding in looked.findings] == [
        ("leak", 8), ("warning", 18), ("warning", 3),
    ]  # fmt: skip
    where: dict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(rows["train"]):
        where[image].append(row)
    assert sorted(looked.repeated["train"]) == sorted(row for image in shared for row in where[image])


def test_a_leak_that_source_and_pixels_know_is_said_once() -> None:
    torn, other = Finding("2 patients have images in more than one split", severity="leak"), Finding("column 'x'")
    info = registry.DatasetInfo("torn", "binary-class", ("a", "b"), 1, object, findings=(torn, other))
    pairs = Finding("2 patients are in train and in test", severity="leak")
    assert all_findings(info, Looked((pairs,))) == [other, pairs]
    assert all_findings(info, Looked()) == [torn, other]

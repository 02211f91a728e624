"""``bench inspect``: planted leaks, copies and broken files are found, and nothing where nothing is."""

from __future__ import annotations

import csv
import functools
import io
import json
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from rich.console import Console

from bench import registry
from bench.cli.inspection import print_inspection, write_files
from bench.cli.main import main
from bench.data import decode_pool
from bench.data.files import DataError
from bench.data.inspect import hashes
from bench.data.inspect.scan import inspect
from bench.data.resize import resize_matrix
from bench.registry import BlockSplit, DatasetInfo, LazySplit, Split, SplitByImage


def picture(seed: int, side: int = 96, channels: int = 3) -> np.ndarray:
    """A smooth random picture, unlike any other."""
    rng = np.random.default_rng(seed)
    fine = sum(
        np.asarray(Image.fromarray(rng.random((n, n)).astype(np.float32)).resize((side, side), Image.BICUBIC)) / n**0.5
        for n in (5, 11, 23)
    )
    gray = np.clip((fine - fine.min()) / (fine.max() - fine.min()) * 255, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], channels, axis=2) * np.array([1, 0.8, 0.6][:channels])[None, None] // 1


def colour(seed: int, side: int = 96) -> np.ndarray:
    return picture(seed, side).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 70) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


COPIES = {
    "saved as JPEG": jpeg,
    "enlarged": lambda image: np.asarray(Image.fromarray(image).resize((150, 150), Image.BICUBIC)),
    "shrunk": lambda image: np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR)),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "of less contrast": lambda image: np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(0.6)),
    "with noise": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(
        np.uint8
    ),
    "gray": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
}


def small(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([hashes.print_of(image).small for image in images])


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_near_and_others_are_not(copy):
    train = [colour(seed) for seed in range(60)]
    test = [colour(seed) for seed in range(100, 130)]
    assert hashes.near(small(test), small(train)) == []
    test[7] = COPIES[copy](train[41])
    (found,) = hashes.near(small(test), small(train))
    assert (found.first, found.second) == (7, 41) and found.bits <= 12 and found.correlation > 0.95


def test_near_is_the_same_however_it_is_cut_into_blocks(monkeypatch):
    train, test = small([colour(seed) for seed in range(40)]), small([jpeg(colour(seed)) for seed in range(5, 30)])
    whole = hashes.near(test, train)
    assert [(found.first, found.second) for found in whole] == [(i, i + 5) for i in range(25)]
    monkeypatch.setattr(hashes, "_ROWS", 7)
    monkeypatch.setattr(hashes, "_COLUMNS", 3)
    cut = hashes.near(test, train)
    assert [found[:3] for found in cut] == [found[:3] for found in whole]


def test_a_difference_hash_is_its_definition():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, hashes.SIDE, hashes.SIDE), dtype=np.uint8)
    found = hashes.difference_hash(pictures)
    assert found.shape == (3, 128) and set(np.unique(found)) == {-1.0, 1.0}
    for one, bits in zip(pictures, found, strict=True):
        exact = Image.fromarray(one.astype(np.float32))
        wide = np.asarray(exact.resize((9, 8), Image.BILINEAR))
        tall = np.asarray(exact.resize((8, 9), Image.BILINEAR))
        wanted = np.concatenate([(wide[:, 1:] > wide[:, :-1]).ravel(), (tall[1:] > tall[:-1]).ravel()])
        assert (bits > 0).tolist() == wanted.tolist()


def test_equal_pixels_of_another_shape_are_not_the_same():
    one = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    digests = [hashes.print_of(image).digest for image in (one, one.reshape(6, 4, 1), one.copy(), one[::-1])]
    assert digests[0] == digests[2] and len(set(digests)) == 3
    assert hashes.print_of(np.full_like(one, 7)).digest == b""


# --- a dataset with everything wrong in it ---------------------------------------------------------------------


def image_of(split: str, index: int) -> np.ndarray:
    if (split, index) in {("train", 30), ("test", 2)}:
        raise ValueError(f"{split}/{index}.png is not a readable image: cut off")
    if (split, index) in {("train", 31), ("test", 3)}:
        return np.full((96, 80, 3), 7, np.uint8)
    if (split, index) == ("test", 5):
        return colour(11)  # of train
    if (split, index) == ("train", 35):
        return colour(12, 80)  # repeated
    if (split, index) == ("val", 4):
        return jpeg(colour(20), 60)
    if (split, index) == ("val", 5):
        return np.repeat(colour(777)[..., :1], 3, axis=2)
    return colour({"train": 0, "val": 200, "test": 300}[split] + index, 96 if index % 2 else 80)


class Flawed:
    counts: ClassVar = {"train": 40, "val": 8, "test": 10}

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "flawed"

    def load(self, size, root):
        return {
            name: LazySplit(
                np.arange(count) % (2 if name == "val" else 3),
                functools.partial(image_of, name),
                [f"{name}/{i}.png" for i in range(count)],
                ["" if i == 0 else f"patient {i // 2 + offset}" for i in range(count)],
            )
            for (name, count), offset in zip(self.counts.items(), (0, 100, 19), strict=True)
        }


@pytest.fixture
def flawed(monkeypatch) -> DatasetInfo:
    info = DatasetInfo(
        "flawed", "multi-class", ("a", "b", "c"), 3, Flawed, varied=True, traps=("a trap",), summary="made by a test"
    )
    known = {name: registry.datasets[name] for name in registry.datasets}
    monkeypatch.setattr(registry.datasets, "_info", {**known, "flawed": info})
    return info


@pytest.mark.parametrize("processes", [1, 2])
def test_every_planted_fault_is_found(flawed, monkeypatch, processes):
    from bench.data.inspect import scan

    monkeypatch.setattr(decode_pool, "processor_count", lambda: processes)
    monkeypatch.setattr(scan, "_IN_PROCESS_BELOW", 0)
    monkeypatch.setattr(scan, "_CHUNK", 7)
    told = []
    found = inspect(flawed, told=lambda done, total: told.append((done, total)))
    assert told[-1] == (58, 58)
    assert found.counts["val"] == {"a": 4, "b": 4, "c": 0}
    assert [(member.name, why) for member, why in found.unreadable] == [
        ("train/30.png", "train/30.png is not a readable image: cut off"),
        ("test/2.png", "test/2.png is not a readable image: cut off"),
    ]
    said = {finding.text: finding.examples for finding in found.looked.findings}
    assert said == {
        "1 image of train is in test too, with equal pixels": ("train/11.png = test/5.png",),
        "1 patient is in train and in test": ("patient 19",),
        "1 image of train repeats another of train (1 with another label)": ("train/12.png (a) = train/35.png (c)",),
        "1 image of train is of one gray level": ("train/31.png",),
        "1 image of test is of one gray level": ("test/3.png",),
        "val has no image of: c": (),
    }
    assert [(pair.first.name, pair.second.name) for pair in found.equal] == [("train/11.png", "test/5.png")]
    assert [(pair.first.name, pair.second.name) for pair in found.near] == [("val/4.png", "train/20.png")]
    assert found.patients == {"train": 20, "val": 4, "test": 5} and found.ungrouped == 3
    assert found.gray == 3 and sum(found.sizes.values()) == 56 and found.sizes[80, 96] == 2 and not found.sound


def test_a_multi_label_set_and_one_without_names(tmp_path):
    class Plain(Flawed):
        def load(self, size, root):
            return {
                name: Split(
                    np.stack([picture(seed + 1000 * at, size, 1) for seed in range(6)]).astype(np.uint8),
                    np.eye(3, dtype=np.int64)[np.arange(6) % 3] | np.array([1, 0, 0]),
                )
                for at, name in enumerate(("train", "val", "test"))
            }

    info = DatasetInfo("plain", "multi-label", ("a", "b", "c"), 1, Plain)
    found = inspect(info, 64)
    assert found.counts["test"] == {"a": 6, "b": 2, "c": 2} and found.sound and found.patients == {}
    said = {finding.text: finding.severity for finding in found.findings}
    unknown = "this source names no patients, so whether splits share some cannot be checked"
    assert said[unknown] == "note"
    drawn = inspect(replace(info, findings=(SplitByImage("drawn image by image"),)), 64)
    assert unknown not in {finding.text for finding in drawn.findings}, "that it was drawn so says it already"
    assert not found.near and found.size == 64
    sheet, *_ = write_files(found, tmp_path / "out", None)
    assert Image.open(sheet).size[1] > 300


def test_what_is_printed_and_written(flawed, tmp_path, capsys):
    found = inspect(flawed)
    for width in (80, 140):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        print_inspection(found, console)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        flat = " ".join(text.split())
        for said in (
            "BROKEN 2 of 58 images cannot be read train/30.png is not a readable image: cut off",
            "LEAK 1 image of train is in test too, with equal pixels train/11.png = test/5.png",
            "LEAK 1 patient is in train and in test patient 19",
            "warning 1 image nearly the same as one of another split, for you to look at val/4.png (a) ~ train/20",
            "warning val has no image of: c",
            "warning 1 image of test is of one gray level",
            "warning 3 images without a patient",
            "warning known issue: a trap",
            "note 3 images of this colour dataset without colour",
        ):
            assert said in flat, (said, flat)
    assert main(["inspect", "flawed", "--out", str(tmp_path / "a b"), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["sound"] is False and ["patient 19"] in [one["examples"] for one in data["findings"]]
    assert data == json.loads((tmp_path / "a b" / "flawed.json").read_text())
    rows = list(csv.DictReader((tmp_path / "a b" / "flawed.csv").open()))
    assert [row["example"] for row in rows if "patient is" in row["finding"]] == ["patient 19"]
    sheet = np.asarray(Image.open(tmp_path / "a b" / "flawed.png"))
    assert sheet.shape[2] == 3 and (sheet == [170, 30, 30]).all(axis=2).any()  # "none" of class c in val, in red


class Large:
    """100,000 different small pictures, with copies planted in the test split."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "large"

    def load(self, size, root):
        counts = {"train": 70_000, "val": 10_000, "test": 20_000}
        return {
            name: BlockSplit(np.arange(count) % 9, functools.partial(self.blocks, at, count, size))
            for at, (name, count) in enumerate(counts.items())
        }

    def blocks(self, at: int, count: int, size: int):
        for start in range(0, count, 5000):
            images = self.some(at, start, size)
            if (at, start) == (2, 5000):
                images[:50] = self.some(0, 30_000, size)[:50]  # the same
                copies = self.some(0, 30_000, size)[50:100].astype(int)
                images[50:100] = np.clip(copies * 0.8 + 9, 0, 255)  # nearly
            yield images

    def some(self, at: int, start: int, size: int) -> np.ndarray:
        coarse = np.random.default_rng((at, start)).integers(0, 256, (5000, 14, 14)).astype(np.float32)
        finer = resize_matrix(14, size, "bilinear").astype(np.float32)
        return (finer @ coarse @ finer.T).astype(np.uint8)[..., None]


@pytest.mark.slow
def test_a_hundred_thousand_images():
    started = time.perf_counter()
    found = inspect(DatasetInfo("large", "multi-class", tuple("abcdefghi"), 1, Large, sizes=(28,)))
    took_s = time.perf_counter() - started
    print(f"100,000 images in {took_s:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    assert sum(found.images.values()) == 100_000 and len(found.equal) == 50
    pairs = {(pair.first.split, pair.first.row, pair.second.row) for pair in found.near}
    assert pairs == {("test", 5000 + i, 30_000 + i) for i in range(50, 100)}
    assert took_s < 300


def test_many_findings_are_cut(flawed):
    found = inspect(flawed)
    found.unreadable *= 20
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_inspection(found, console)
    assert "40 of 58 images cannot be read" in console.file.getvalue() and "and 32 more" in console.file.getvalue()


def test_what_bad_requests_get(flawed, tmp_path, capsys):
    for arguments, said in (
        (["inspect", "flawd"], "unknown dataset 'flawd' (did you mean 'flawed'?)"),
        (["inspect", "flawed", "--size", "64"], "its images are looked at in their own sizes; leave --size out"),
        (["inspect", "breastmnist", "--size", "32"], "breastmnist has no size 32; it exists in 28, 64, 128, 224"),
        (["inspect", "retinamnist", "--data-root", str(tmp_path)], f"1 data file is missing from {tmp_path}"),
        (["inspect", f"folder:{tmp_path}/none"], "none"),
    ):
        assert main(arguments) == 2, arguments
        assert said in capsys.readouterr().err


def test_every_image_broken(flawed, monkeypatch, tmp_path):
    def broken(split, index):
        raise OSError(f"{split}/{index}.png: no such file")

    monkeypatch.setitem(globals(), "image_of", broken)
    found = inspect(flawed)
    assert len(found.unreadable) == 58 and not found.near and not found.equal
    write_files(found, tmp_path, None)
    console = Console(width=80, file=io.StringIO())
    print_inspection(found, console)
    assert "no image can be read" in console.file.getvalue()


DATA = Path(__file__).parents[3] / "shared" / "data"


def test_breastmnist_has_one_picture_in_train_and_test_under_two_labels(tmp_path):
    if not (DATA / "medmnist" / "breastmnist.npz").is_file():
        pytest.skip("needs the official breastmnist.npz")
    found = inspect(registry.datasets["breastmnist"], None, DATA / "medmnist")
    with np.load(DATA / "medmnist" / "breastmnist.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["train_images"][115], archive["test_images"][76])
        assert archive["train_labels"][115] != archive["test_labels"][76]
    assert [(pair.first[:2], pair.second[:2]) for pair in found.equal] == [(("train", 115), ("test", 76))]
    assert found.looked.leaks[0].text.endswith("with equal pixels (1 with another label)")


def test_a_generated_set_is_sound(monkeypatch):
    info = replace(registry.datasets["phantom_local"], n_train=60, n_val=20, n_test=20)
    found = inspect(info)
    assert found.sound and found.size == 64 and sum(found.images.values()) == 100
    with pytest.raises(DataError, match="needs 28 or more"):
        inspect(info, 16)


def test_the_same_picture_in_two_folders(tmp_path, capsys):
    for split, start in (("train", 0), ("val", 50), ("test", 90)):
        for label in ("ill", "well"):
            folder = tmp_path / "a set ü" / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                seed = start + index + 10 * (label == "ill")
                Image.fromarray(colour(seed)).save(folder / f"{index} x.png")
    shutil.copy(tmp_path / "a set ü/train/ill/2 x.png", tmp_path / "a set ü/test/well/copy.png")
    Image.open(tmp_path / "a set ü/train/well/3 x.png").save(tmp_path / "a set ü/val/well/again.jpg", quality=80)
    assert main(["inspect", f"folder:{tmp_path}/a set ü", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    for kind, names in (("equal", {"2 x.png", "copy.png"}), ("near", {"again.jpg", "3 x.png"})):
        assert [{Path(pair[side]["name"]).name for side in ("first", "second")} for pair in data[kind]] == [names]


def test_a_table_whose_images_are_elsewhere_is_answered_with_the_option_that_helps(tmp_path, capsys):
    rows = []
    for number in range(20):
        path = tmp_path / "study" / "img" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9), np.uint8)).save(path)
        rows.append(f"{number}.png,{'ab'[number % 2]}")
    (tmp_path / "study" / "labels.csv").write_text("\n".join(["image,label", *rows]))
    assert main(["inspect", f"{tmp_path}/study/labels.csv"]) == 2
    assert f"img/0.png is: set root={tmp_path}/study/img" in capsys.readouterr().err

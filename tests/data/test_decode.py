"""Images of any size through the cache: resize rules as Pillow's, names and groups kept, every fault told."""

from __future__ import annotations

import csv
import functools
import os
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from bench.data import cache, cache_entry, decode, decode_pool
from bench.data.cache import open_entry, write_split_file
from bench.data.files import DataError
from bench.registry import BlockSplit, DatasetInfo, LazySplit


def read(seed: int, broken: tuple[int, ...], index: int) -> np.ndarray:
    """Image ``index`` of a made-up split: as large as its index says."""
    if index in broken:
        raise ValueError(f"img {index} ü.png is cut off")
    rng = np.random.default_rng((seed, index))
    return rng.integers(0, 256, (20 + index % 7, 30 + index % 5, 3), dtype=np.uint8)


class Lazy:
    counts: ClassVar = {"train": 40, "val": 8, "test": 9}
    broken: tuple[int, ...] = ()

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size):
        return ()

    def fingerprint(self, size, root):
        return "lazy"

    def load(self, size, root):
        return {
            name: LazySplit(
                np.arange(count) % 3,
                functools.partial(read, seed, self.broken if name == "train" else ()),
                [f"{name}/img {i} ü.png" for i in range(count)],
                [f"patient, {i // 2}" for i in range(count)],
            )
            for seed, (name, count) in enumerate(self.counts.items())
        }


@pytest.fixture
def info() -> DatasetInfo:
    return DatasetInfo("folder:a b/ü", "multi-class", ("a", "b|c", "d"), 3, Lazy, varied=True)


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(decode, "_IN_PROCESS_BELOW", 0)
    monkeypatch.setattr(decode, "_CHUNK_IMAGES", 3)
    monkeypatch.setattr(decode_pool, "processor_count", lambda: 2)


METHODS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.BICUBIC}


@pytest.mark.parametrize("rule", METHODS)
def test_each_rule_is_pillow_s_and_an_entry_of_its_own(info, tmp_path, rule, two_processes):
    splits = open_entry(info, 16, None, tmp_path, resize=rule).splits
    for seed, (name, split) in enumerate(splits.items()):
        assert split.images.shape == (Lazy.counts[name], 16, 16, 3) and isinstance(split.images, np.memmap)
        for index, found in enumerate(split.images):
            wanted = Image.fromarray(read(seed, (), index)).resize((16, 16), METHODS[rule])
            np.testing.assert_array_equal(found, np.asarray(wanted))
    open_entry(info, 16, None, tmp_path, resize="pad")
    assert len([path for path in (tmp_path / "decoded").iterdir() if path.is_dir()]) == 2


def test_pad_shrinks_only_what_does_not_fit_and_centres_it():
    small = np.full((4, 6, 1), 9, np.uint8)
    padded = decode.fit(small, (8, 8, 1), "pad")
    assert padded.sum() == 9 * 24 and (padded[2:6, 1:7] == 9).all()
    large = decode.fit(np.full((40, 20, 1), 7, np.uint8), (8, 8, 1), "pad")
    assert (large[:, 2:6] == 7).all() and large.sum() == 7 * 32  # 2:1 stays 2:1
    odd = decode.fit(np.full((1, 1000, 3), 5, np.uint8), (8, 8, 3), "pad")
    assert (odd[3] == 5).all() and odd.sum() == 5 * 24


def test_two_and_four_channels_are_resized_plane_by_plane():
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 4), dtype=np.uint8)
    found = decode.fit(image, (8, 8, 4), "bicubic")
    for channel in range(4):
        wanted = Image.fromarray(np.ascontiguousarray(image[..., channel])).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found[..., channel], np.asarray(wanted))


def test_native_takes_its_size_only(info, tmp_path):
    with pytest.raises(DataError) as caught:
        open_entry(info, 16, None, tmp_path, resize="native")
    assert "train/img 0 ü.png: has 30 x 20 pixels; the resize rule 'native' takes 16 x 16 only" in str(caught.value)
    with pytest.raises(DataError, match="unknown resize rule 'bicubik'"):
        open_entry(info, 16, None, tmp_path, resize="bicubik")


@pytest.mark.parametrize("broken", [(2,), (0, 5, 39), tuple(range(30))])
def test_broken_images_are_told_together_and_nothing_is_kept(info, tmp_path, monkeypatch, broken, two_processes):
    monkeypatch.setattr(Lazy, "broken", broken)
    with pytest.raises(DataError) as caught:
        open_entry(info, 16, None, tmp_path, resize="bilinear")
    said = str(caught.value)
    assert said.startswith("folder:a b/ü, split train: ") and "`bench inspect` lists all" in said
    assert said.count("train/img ") == min(len(broken), 20) and f"img {broken[0]} ü.png is cut off" in said
    assert f"train/img {broken[0]} ü.png: " in said.splitlines()[0]  # all that a Record's reason has room for
    assert [path.name for path in (tmp_path / "decoded").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), r"is \(4, 4\) of uint8"),
        (np.zeros((4, 4, 1), np.float32), "of float32"),
        (np.zeros((4, 4, 4), np.uint8), r"expected \(H, W, 1\) of uint8"),
        (np.zeros((0, 4, 1), np.uint8), r"is \(0, 4, 1\)"),
    ],
)
def test_an_image_is_held_to_the_contract(image, said):
    with pytest.raises(ValueError, match=said):
        decode.fit(image, (8, 8, 1), "bilinear")


def die(index: int) -> np.ndarray:
    os._exit(9)


def test_a_dead_process_and_a_fault_of_the_adapter_are_not_silent(info, tmp_path, monkeypatch, two_processes):
    for seen, error, said in ((die, DataError, "a process that decodes images died"), ({}.__getitem__, KeyError, "0")):
        whole = {name: LazySplit(np.zeros(9, int), seen) for name in ("train", "val", "test")}
        monkeypatch.setattr(Lazy, "load", lambda self, size, root, whole=whole: whole)
        with pytest.raises(error, match=said):
            open_entry(info, 16, None, tmp_path, resize="bilinear")


def test_names_and_groups_are_kept_and_the_split_file_can_be_used_again(info, tmp_path):
    opened = open_entry(info, 16, None, tmp_path / "cache", resize="bilinear")
    members = cache_entry.members(opened.folder)
    assert members["val"].names[7] == "val/img 7 ü.png" and members["val"].groups[:3] == (
        "patient, 0",
        "patient, 0",
        "patient, 1",
    )
    path = write_split_file(info, opened, tmp_path / "run" / "splits")
    assert path and path.name.startswith("folder-") and path.suffix == ".csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    assert list(rows[0]) == ["name", "label", "split", "group"] and len(rows) == 57
    assert rows[41] == {"name": "val/img 1 ü.png", "label": "b|c", "split": "val", "group": "patient, 0"}
    stamp = path.stat().st_mtime_ns
    assert write_split_file(info, opened, path.parent) == path and path.stat().st_mtime_ns == stamp
    path.write_text("another")
    other = write_split_file(info, opened, path.parent)
    assert other != path and path.read_text() == "another" and write_split_file(info, opened, path.parent) == other
    assert sorted(os.listdir(path.parent)) == sorted([path.name, other.name])


def test_progress_is_told(info, tmp_path):
    events: list[dict] = []
    open_entry(info, 16, None, tmp_path, resize="bilinear", progress=events.append)
    assert events[0]["phase"] == "decoding 0 of 57 images" and events[-1]["decoded"] == 57
    counts = [event["decoded"] for event in events if "decoded" in event]
    assert counts == sorted(counts)
    events.clear()
    open_entry(info, 16, None, tmp_path, resize="bilinear", progress=events.append)
    assert events == []


def test_data_that_changed_after_planning(info, tmp_path):
    with pytest.raises(DataError, match="the data changed after the run was planned; run again"):
        open_entry(info, 16, None, tmp_path, resize="pad", fingerprint="another")


def test_a_set_too_large_for_the_disk(info, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_entry.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 << 30))
    with pytest.raises(DataError) as caught:
        open_entry(info, 8192, None, tmp_path, resize="bilinear")
    said = str(caught.value)
    assert "57 decoded images take 10.8 GiB" in said and "has 3.0 GiB free" in said and "MEDBENCH_CACHE" in said


class Blocks(Lazy):
    block = staticmethod(lambda: iter([np.full((5, 8, 8, 1), 3, np.uint8), np.full((4, 8, 8, 1), 200, np.uint8)]))

    def load(self, size, root):
        return {name: BlockSplit(np.zeros(9, int), self.block) for name in ("train", "val", "test")}


def failing():
    yield np.zeros((5, 8, 8, 1), np.uint8)
    raise ValueError("x.npz is cut off")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (lambda: iter([np.zeros((5, 8, 8, 1), np.uint8)]), "the adapter gave 5 images for 9 labels"),
        (lambda: iter([np.zeros((9, 8, 8), np.uint8)]), r"images should be \(N, 8, 8, 1\) of uint8, found \(9, 8, 8\)"),
        (failing, "made_up: x.npz is cut off"),
    ],
)
def test_blocks(tmp_path, monkeypatch, blocks, said):
    info = DatasetInfo("made_up", "multi-class", ("a",), 1, Blocks, sizes=(8,))
    images = open_entry(info, 8, None, tmp_path).splits["val"].images
    assert (images[:5] == 3).all() and (images[5:] == 200).all()
    monkeypatch.setattr(Blocks, "block", staticmethod(blocks))
    with pytest.raises(DataError, match=said):
        open_entry(info, 8, None, tmp_path / "other")


def test_names_must_be_as_many_as_labels(info, tmp_path, monkeypatch):
    wrong = {name: LazySplit(np.zeros(4, int), read, ["a"]) for name in ("train", "val", "test")}
    monkeypatch.setattr(Lazy, "load", lambda self, size, root: wrong)
    with pytest.raises(DataError, match="there are 4 labels, but 1 names"):
        open_entry(info, 16, None, tmp_path, resize="pad")


def test_a_worker_that_is_a_daemon_may_decode_in_processes(info, tmp_path, two_processes):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    child = context.Process(
        target=open_entry, args=(info, 16, None, tmp_path), kwargs={"resize": "bilinear"}, daemon=True
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert len(cache.open_entry(info, 16, None, tmp_path, resize="bilinear").splits["train"].images) == 40

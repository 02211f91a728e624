"""The decoded cache: one form for all sources, safe between processes, damage noticed and repaired."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.data import cache_entry as entries
from bench.data.cache import load_dataset, open_entry
from bench.data.files import DataError, MissingFilesError
from bench.record.paths import default_cache_dir
from bench.registry import DatasetInfo, RemoteFile, Split

REAL = Path(os.environ.get("MEDBENCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "medmnist"))


class Source:
    """An adapter that counts its decodings and gives what the test wants."""

    decoded = 0
    mark = "a"
    change = staticmethod(lambda splits: splits)

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        return self.mark

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        type(self).decoded += 1
        rng = np.random.default_rng(size)
        splits = {}
        for name, count in (("train", 9), ("val", 4), ("test", 5)):
            images = rng.integers(0, 256, (count, size, size, self.info.channels), dtype=np.uint8)
            splits[name] = Split(images, np.arange(count, dtype=np.int64) % len(self.info.classes))
        return self.change(splits)


@pytest.fixture
def info(monkeypatch) -> DatasetInfo:
    monkeypatch.setattr(Source, "decoded", 0)
    return DatasetInfo("made_up", "multi-class", ("a", "b", "c"), 1, Source)


def entry_of(folder: Path) -> Path:
    (entry,) = [path for path in (folder / "decoded").iterdir() if path.is_dir()]
    return entry


def test_decoded_once_then_mapped(info, tmp_path):
    first = open_entry(info, 8, None, tmp_path).splits
    again = open_entry(info, 8, None, tmp_path).splits
    assert Source.decoded == 1 and list(again) == ["train", "val", "test"]
    expected = Source(info).load(8, None)
    for name in expected:
        for split in (first[name], again[name]):
            np.testing.assert_array_equal(split.images, expected[name].images)
            np.testing.assert_array_equal(split.labels, expected[name].labels)
            assert isinstance(split.images, np.memmap) and split.images.dtype == np.uint8
            assert split.labels.dtype == np.int64
            with pytest.raises(ValueError, match="read-only"):
                split.images[0] = 0
    entry = entry_of(tmp_path)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert sorted(os.listdir(entry)) == sorted([*manifest["files"], "manifest.json"])
    assert not list(entry.parent.glob(".*.tmp-*"))


def test_size_fingerprint_name_format_and_plugin_make_other_entries(info, tmp_path, monkeypatch):
    plugin = tmp_path / "plugin.py"
    plugin.write_text("version = 1")

    def opened(**changes):
        open_entry(replace(info, **changes), 8, None, tmp_path)
        return Source.decoded

    assert opened() == opened() == 1
    open_entry(info, 16, None, tmp_path)
    assert Source.decoded == 2
    monkeypatch.setattr(Source, "mark", "b")
    assert opened() == 3
    assert opened(name="another") == 4
    assert opened(plugin_file=str(plugin)) == 5
    plugin.write_text("version = 2")  # an edited adapter may decode otherwise
    assert opened(plugin_file=str(plugin)) == 6
    monkeypatch.setattr(entries, "FORMAT", 99)
    assert opened() == 7


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda entry: flip_a_byte(entry / "val_images.npy"),
    "a flipped bit in a label": lambda entry: flip_a_byte(entry / "test_labels.npy"),
    "a short file": lambda entry: os.truncate(entry / "train_images.npy", 200),
    "an empty file": lambda entry: os.truncate(entry / "train_images.npy", 0),
    "a file gone": lambda entry: (entry / "test_images.npy").unlink(),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "half a manifest": lambda entry: os.truncate(entry / "manifest.json", 50),
    "another manifest": lambda entry: (entry / "manifest.json").write_text('{"identity": {}, "files": []}'),
    "a list for a manifest": lambda entry: (entry / "manifest.json").write_text("[]"),
    "an empty folder": lambda entry: [path.unlink() for path in entry.iterdir()],
    "a pickle": lambda entry: np.save(entry / "val_labels.npy", np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew(info, tmp_path, damage):
    before = {name: split.images.copy() for name, split in open_entry(info, 8, None, tmp_path).splits.items()}
    DAMAGES[damage](entry_of(tmp_path))
    after = open_entry(info, 8, None, tmp_path).splits
    assert Source.decoded == 2
    for name, images in before.items():
        np.testing.assert_array_equal(after[name].images, images)
    open_entry(info, 8, None, tmp_path)
    assert Source.decoded == 2


def test_large_entries_are_read_in_full_only_when_touched(info, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "CRC_LIMIT_BYTES", 10)
    open_entry(info, 8, None, tmp_path)
    read = []
    plain = entries.crc32_of
    monkeypatch.setattr(entries, "crc32_of", lambda path: (read.append(path.name), plain(path))[1])
    open_entry(info, 8, None, tmp_path)
    assert read == [] and Source.decoded == 1
    entry = entry_of(tmp_path)
    os.utime(entry / "val_images.npy")  # as after copying a cache: read once a process, and found to be in order
    open_entry(info, 8, None, tmp_path)
    assert read == ["val_images.npy"] and Source.decoded == 1
    for damage in (lambda: os.truncate(entry / "val_images.npy", 200), lambda: flip_a_byte(entry / "train_images.npy")):
        damage()
        before = Source.decoded
        open_entry(info, 8, None, tmp_path)
        assert Source.decoded == before + 1


def test_remains_of_a_killed_process_are_cleared(info, tmp_path):
    open_entry(info, 8, None, tmp_path)
    entry = entry_of(tmp_path)
    remains = entry.with_name(f".{entry.name}.tmp-killed")
    remains.mkdir()
    (remains / "train_images.npy").write_bytes(b"half")
    (entry / "manifest.json").unlink()
    open_entry(info, 8, None, tmp_path)
    assert not remains.exists()


def test_a_failed_decoding_leaves_nothing(info, tmp_path, monkeypatch):
    monkeypatch.setattr(entries.os, "fsync", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(DataError, match=r"made_up: cannot use the cache .* No space left.*MEDBENCH_CACHE"):
        open_entry(info, 8, None, tmp_path)
    assert [p.name for p in (tmp_path / "decoded").iterdir() if not p.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_made(info, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot use the cache of decoded images"):
        open_entry(info, 8, None, tmp_path / "file")


WRONG = {
    "no split val": lambda s: {k: v for k, v in s.items() if k != "val"},
    r"split train: images should be \(N, 8, 8, 1\) of uint8, found \(9, 8, 8, 1\) of float64": lambda s: {
        **s,
        "train": Split(s["train"].images / 255.0, s["train"].labels),
    },
    r"split val: images should be .* found \(4, 8, 8\)": lambda s: {
        **s,
        "val": Split(s["val"].images[..., 0], s["val"].labels),
    },
    r"split test: labels should be \(5,\) of integers, found \(5, 1\)": lambda s: {
        **s,
        "test": Split(s["test"].images, s["test"].labels[:, None]),
    },
    r"split test: labels should be \(5,\) of integers, found \(5,\) of float64": lambda s: {
        **s,
        "test": Split(s["test"].images, s["test"].labels * np.nan),
    },
    r"split test: labels should lie in 0..2, found 0..3": lambda s: {
        **s,
        "test": Split(s["test"].images, np.array([0, 1, 2, 3, 0])),
    },
    "split test: there are no images": lambda s: {**s, "test": Split(s["test"].images[:0], s["test"].labels[:0])},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_an_adapter_gives_is_checked(info, tmp_path, monkeypatch, message):
    monkeypatch.setattr(Source, "change", staticmethod(WRONG[message]))
    with pytest.raises(DataError, match=f"made_up.*{message}"):
        open_entry(info, 8, None, tmp_path)


def test_multi_label(info, tmp_path, monkeypatch):
    labels = lambda n: (np.arange(n * 3).reshape(n, 3) % 2).astype(np.uint8)  # noqa: E731
    monkeypatch.setattr(
        Source, "change", staticmethod(lambda s: {k: Split(v.images, labels(len(v.images))) for k, v in s.items()})
    )
    several = replace(info, task="multi-label")
    found = open_entry(several, 8, None, tmp_path).splits["val"].labels
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels(4))


def test_processes_that_open_at_once_decode_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench import registry; from bench.datasets import phantoms\n"
        "from bench.data.cache import open_entry\n"
        "plain = phantoms.Phantom.load\n"
        "def load(self, size, root):\n"
        "    with open(sys.argv[2], 'a') as log: log.write('x')\n"
        "    time.sleep(.3); return plain(self, size, root)\n"
        "phantoms.Phantom.load = load\n"
        "s = open_entry(registry.datasets['phantom_small'], 28, None, Path(sys.argv[1])).splits\n"
        "print(int(s['train'].images.sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in running]
    assert len({out for out, _ in results}) == 1 and results[0][0], results
    assert (tmp_path / "log").read_text() == "x"


def test_the_source_is_verified_before_it_is_decoded(tmp_path):
    breast = registry.datasets["breastmnist"]
    with pytest.raises(MissingFilesError, match=rf"missing from {tmp_path}:\n  retinamnist.npz"):
        open_entry(registry.datasets["retinamnist"], 28, tmp_path, tmp_path / "cache")
    (tmp_path / "breastmnist.npz").write_bytes(b"half a download")
    with pytest.raises(MissingFilesError, match=r"breastmnist\.npz is damaged") as caught:
        open_entry(breast, 28, tmp_path, tmp_path / "cache")
    assert "750601b1f35ba3300ea97c75c52ff8f6" in caught.value.details
    assert not list((tmp_path / "cache").rglob("*.npy"))
    with pytest.raises(DataError, match="breastmnist has no size 32; it exists in 28, 64, 128, 224 pixels"):
        open_entry(breast, 32, tmp_path, tmp_path / "cache")


def test_real_images_through_the_public_function(tmp_path):
    if not (REAL / "retinamnist.npz").is_file():
        pytest.skip(f"needs the official retinamnist.npz in {REAL} (set MEDBENCH_TEST_DATA)")
    loaded = load_dataset("retinamnist", root=str(REAL), cache_dir=tmp_path)
    with np.load(REAL / "retinamnist.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(loaded.test.images, archive["test_images"])
        np.testing.assert_array_equal(loaded.train.labels, archive["train_labels"][:, 0])
    assert len(loaded.val.labels) == 120 and loaded.info.name == "retinamnist" and loaded.size == 28
    assert "bd4c0672f1bba3e3a89f0e4e876791e4" in loaded.fingerprint  # shared/data/README.md


def test_load_dataset_of_a_phantom_and_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path))
    loaded = load_dataset("phantom_global", size=32)
    assert loaded.train.images.shape == (loaded.info.n_train, 32, 32, 1)
    assert (tmp_path / "decoded").is_dir()
    with pytest.raises(registry.RegistryError, match="did you mean 'phantom_global'"):
        load_dataset("phantom_globl")
    with pytest.raises(DataError, match=r"phantom_global at 16 pixels: .*needs 28 or more"):
        load_dataset("phantom_global", size=16)


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MEDBENCH_CACHE")
    assert default_cache_dir().name == "medbench"


def test_a_printed_dataset_fits_a_screen(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path))
    assert repr(load_dataset("phantom_local", 32)).splitlines() == [
        "phantom_local: binary-class, 2 classes, 32 px",
        "  train  images uint8 (1200, 32, 32, 1), labels (1200,)",
        "  val    images uint8 (300, 32, 32, 1), labels (300,)",
        "  test   images uint8 (1000, 32, 32, 1), labels (1000,)",
        "  classes: granular, reticular",
    ]

"""What files hold: read once, never taken for the old when they changed, the same wherever they lie."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.datasets import _contents
from bench.datasets._archives import Tree
from bench.registry import dataset_info


@pytest.fixture(autouse=True)
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A cache of its own; the files that were read, by name. Files that were just written count as old ones."""
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_contents, "_RACY_NS", -(10**18))
    read: list[str] = []
    real = _contents._hash
    monkeypatch.setattr(_contents, "_hash", lambda paths: read.extend(map(os.path.basename, paths)) or real(paths))
    yield read


def files(folder: Path, count: int = 200) -> list[str]:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(bytes([i]) * (i + 1))
    return [f"{i}.png" for i in range(count)]


def test_files_are_read_once_and_again_when_changed(tmp_path: Path, reads: list[str]) -> None:
    place = tmp_path / "set"
    names = files(place)
    first = _contents.contents(place, place, names)
    assert sorted(reads) == sorted(names) and len(set(first)) == len(names)
    reads.clear()
    assert _contents.contents(place, place, names) == first and not reads
    (place / "7.png").write_bytes(b"other")
    (place / "8.png").touch()
    second = _contents.contents(place, place, names)
    assert sorted(reads) == ["7.png", "8.png"]
    assert [name for name, a, b in zip(names, first, second, strict=True) if a != b] == ["7.png"]
    reads.clear()
    assert _contents.contents(place, place, names[:50]) == second[:50] and not reads


def test_a_change_that_hides_its_time_is_seen(tmp_path: Path) -> None:
    """Same size, same time of change: the time of the file's state cannot be set back."""
    place = tmp_path / "set"
    names = files(place)
    first = _contents.contents(place, place, names)
    before = (place / "9.png").stat()
    (place / "9.png").write_bytes(b"x" * before.st_size)
    os.utime(place / "9.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (place / "9.png").stat().st_mtime_ns == before.st_mtime_ns
    assert _contents.contents(place, place, names) != first
    (tmp_path / "other").write_bytes(b"y" * before.st_size)
    os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = _contents.contents(place, place, names)
    os.replace(tmp_path / "other", place / "9.png")
    assert _contents.contents(place, place, names) != second


def test_what_was_just_written_is_not_trusted(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_contents, "_RACY_NS", 2_000_000_000)
    place = tmp_path / "set"
    names = files(place, 5)
    _contents.contents(place, place, names)
    _contents.contents(place, place, names)
    assert len(reads) == 10 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "read-only"])
def test_a_damaged_index_costs_only_time(tmp_path: Path, reads: list[str], damage: str) -> None:
    place = tmp_path / "set"
    names = files(place)
    first = _contents.contents(place, place, names)
    (index,) = (tmp_path / "cache" / "contents").iterdir()
    data = bytearray(index.read_bytes())
    if damage == "read-only":
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("no folder")
    elif damage == "gone":
        index.unlink()
    else:
        data[-5] ^= 1
        index.write_bytes(data if damage == "flipped" else data[:-70])
    reads.clear()
    assert _contents.contents(place, place, names) == first and len(reads) == len(names)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _contents.contents(tmp_path, tmp_path, ["none.png"])


def test_much_to_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_contents, "_TOLD_BYTES", 1000)
    place = tmp_path / "set"
    names = files(place)
    for _ in range(2):
        _contents.contents(place, place, names)
    assert capsys.readouterr().err.count("GiB in 200 files, to know them again by what they hold") == 1


def test_a_copy_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind of source, under the same name seen from another folder; and another image is other data."""
    from PIL import Image

    here, there = tmp_path / "here", tmp_path / "there"
    for i in range(40):
        path = here / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(path)
    rows = [f"images/{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]}" for i in range(40)]
    (here / "table.csv").write_text("\n".join(["image,label", *rows]))
    arrays = {f"{s}_images": np.zeros((4, 28, 28), np.uint8) for s in ("train", "val", "test")}
    np.savez(here / "own.npz", **arrays, **{f"{s}_labels": np.arange(4)[:, None] % 2 for s in ("train", "val", "test")})
    shutil.copytree(here, there, copy_function=shutil.copy)
    os.utime(there / "images" / "a" / "0.png", ns=(1, 1))
    prints = []
    for place in (here, there):
        monkeypatch.chdir(place)
        own = [dataset_info(n, refresh=True).open().fingerprint(28, None) for n in ("folder:images", "csv:table.csv")]
        prints.append(
            [*own, dataset_info("own.npz", refresh=True).open().fingerprint(28, None), Tree(Path("images")).digest()]
        )
    assert prints[0] == prints[1]
    Image.new("L", (4, 4), 99).save(there / "images" / "a" / "0.png")
    np.savez(there / "own.npz", **arrays, **{f"{s}_labels": np.ones((4, 1), int) for s in ("train", "val", "test")})
    own = [
        dataset_info(n, refresh=True).open().fingerprint(28, None)
        for n in ("folder:images", "csv:table.csv", "own.npz")
    ]
    assert not set([*own, Tree(Path("images")).digest()]) & set(prints[0])

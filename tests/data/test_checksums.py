"""Stamps: files are hashed once for all processes, and again when anything about them changed."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from bench.data import checksums
from bench.data.files import preflight
from bench.registry import DatasetInfo, RemoteFile


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read; no memory of earlier processes."""
    read = []
    plain = checksums._hash
    monkeypatch.setattr(checksums, "_hash", lambda path: (read.append(path.name), plain(path))[1])
    forget(monkeypatch)
    return read


def forget(monkeypatch):
    """As a new process."""
    monkeypatch.setattr(checksums, "_known", {})


def old(path, content: bytes):
    path.write_bytes(content)
    os.utime(path, ns=(1_600_000_000_000_000_000,) * 2)
    return path


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written long ago (the time of a change of state cannot be set)."""
    monkeypatch.setattr(checksums, "_RACY_NS", -(10**18))


def test_hashed_once_for_all_processes(tmp_path, monkeypatch, hashed, settled):
    path, cache = old(tmp_path / "a b ü.npz", b"content"), tmp_path / "cache"
    expected = hashlib.md5(b"content").hexdigest()
    for _ in range(3):
        forget(monkeypatch)
        assert checksums.md5_of(path, cache) == expected
    assert hashed == ["a b ü.npz"]
    forget(monkeypatch)
    assert checksums.md5_of(path, cache, fresh=True) == expected and len(hashed) == 2  # before it is decoded
    assert checksums.md5_of(path, cache, fresh=True) == expected and len(hashed) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"another"),
        lambda path: old(path, b"Content"),  # same size, same time
        lambda path: os.utime(path),
        lambda path: os.replace(old(path.with_name("new"), b"cOntent"), path),
    ],
)
def test_a_change_is_noticed(tmp_path, monkeypatch, hashed, settled, change):
    path, cache = old(tmp_path / "x", b"content"), tmp_path / "cache"
    checksums.md5_of(path, cache)
    time.sleep(0.02)
    change(path)
    forget(monkeypatch)
    assert checksums.md5_of(path, cache) == hashlib.md5(path.read_bytes()).hexdigest() and len(hashed) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"stamp": [["a"], 5], "md5": 7}'])
def test_any_damage_costs_time_only(tmp_path, monkeypatch, hashed, settled, content):
    path, cache = old(tmp_path / "x", b"content"), tmp_path / "cache"
    expected = checksums.md5_of(path, cache)
    (store,) = (cache / "verified").iterdir()
    store.write_text(content)
    forget(monkeypatch)
    assert checksums.md5_of(path, cache) == expected and len(hashed) == 2
    forget(monkeypatch)
    assert checksums.md5_of(path, cache) == expected and len(hashed) == 2  # mended


def test_a_file_just_written_is_not_stamped_and_a_lost_cache_is_no_error(tmp_path, monkeypatch, hashed):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    checksums.md5_of(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(checksums, "_RACY_NS", -(10**18))
    forget(monkeypatch)
    assert checksums.md5_of(path, path) == hashlib.md5(b"content").hexdigest()  # the "folder" is a file
    with pytest.raises(FileNotFoundError):
        checksums.md5_of(tmp_path / "none", tmp_path / "cache")


class Adapter:
    def __init__(self, info):
        self.info = info

    def files(self, size):
        return (RemoteFile("x.npz", "http://host/x", hashlib.md5(b"content").hexdigest()),)


def test_preflight_believes_stamps_and_decoding_does_not(tmp_path, monkeypatch, hashed, settled):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    old(tmp_path / "x.npz", b"content")
    info = DatasetInfo("made_up", "multi-class", ("a", "b"), 1, Adapter)
    for fresh, reads in ((False, 1), (False, 1), (True, 2)):
        forget(monkeypatch)
        assert preflight([(info, 28)], tmp_path, fresh=fresh) == [] and len(hashed) == reads

"""Large sets, made here: time to prepare, memory, time to the first batch. Run with -s to see the figures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry

HELPER = Path(__file__).with_name("big_sets.py")
GIB = 1 << 30


def prepared(name: str, size: int, root: Path, cache: Path, code: str = "") -> dict:
    command = [sys.executable, str(HELPER), name, str(size), str(root), str(cache)]
    if code:
        command = [sys.executable, "-c", code, *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    cost: dict = json.loads(done.stdout.splitlines()[-1])
    print({key: round(value, 2) if isinstance(value, float) else value for key, value in cost.items()})
    return cost


def folder_of(tmp_path: Path, count: int, suffix: str, width: int, height: int, channels: int) -> Path:
    """``count`` files in four classes: links to 200 different pictures, so that making them takes seconds."""
    rng = np.random.default_rng(0)
    originals = tmp_path / "originals"
    originals.mkdir()
    for index in range(200):
        coarse = rng.integers(0, 256, (9, 9, channels), dtype=np.uint8)
        picture = Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture).astype(int) + rng.integers(-6, 7, (height, width, channels)).squeeze()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(originals / f"{index}{suffix}")
    root = tmp_path / "set"
    for label in "abcd":
        (root / label).mkdir(parents=True)
    for index in range(count):
        os.link(originals / f"{index % 200}{suffix}", root / "abcd"[index % 4] / f"{index:06d}{suffix}")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "suffix", "width", "height", "channels", "size"),
    [(100_000, ".png", 28, 28, 1, 28), (20_000, ".jpg", 320, 260, 3, 224)],
)
def test_a_large_folder(tmp_path, count, suffix, width, height, channels, size):
    root = folder_of(tmp_path, count, suffix, width, height, channels)
    cost = prepared(f"folder:{root}", size, tmp_path, tmp_path / "cache")
    assert cost["images"] == count and cost["batch_shape"][2:] == [size, size]
    assert cost["peak_mib"] < 300 and cost["child_peak_mib"] < 300  # 155 and 68 MiB were seen
    assert cost["first_batch_s"] < 20


def big_npz(path: Path, counts: dict[str, int], size: int) -> None:
    """An npz in the official layout, written block by block."""
    block = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    block[:, size // 16 :] = 0  # so that it takes seconds to write and not an hour
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in counts.items():
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                shape = (count, size, size, 3)
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for start in range(0, count, 8):
                    stream.write(block[: count - start].tobytes())
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, (np.arange(count) % 9).astype(np.uint8)[:, None])


@pytest.mark.slow
def test_sixteen_gigabytes_within_one_of_memory(tmp_path):
    """PathMNIST at 224 pixels, its real counts: 107,180 images, 16.1 GB decoded."""
    if shutil.disk_usage(tmp_path).free < 20 * GIB:
        pytest.skip("needs 20 GiB of disk")
    info = registry.datasets["pathmnist"]
    counts = {"train": info.n_train, "val": info.n_val, "test": info.n_test}
    path = tmp_path / "pathmnist_224.npz"
    started = time.perf_counter()
    big_npz(path, counts, 224)
    digest = hashlib.md5()
    with path.open("rb") as stream:
        while part := stream.read(1 << 24):
            digest.update(part)
    print(f"made in {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e9:.1f} GB")
    code = (
        "import sys, runpy; from bench.datasets import medmnist as m; i = m.official_info()['pathmnist']; "
        f"i['MD5_224'] = '{digest.hexdigest()}'; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    cost = prepared("pathmnist", 224, tmp_path, tmp_path / "cache", code)
    assert cost["images"] == 107_180 and cost["peak_mib"] < 1024
    shutil.rmtree(tmp_path / "cache")

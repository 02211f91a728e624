"""The package imports from a wheel, an editable install and the checkout; Hugging Face's `datasets` stays itself."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Facts only: torch is not needed to see where modules come from.
LOOK = """
import importlib.util, bench, bench.models._info, bench.datasets._info
hf = importlib.util.find_spec("datasets")
print(bench.__file__, bench.models._info.__file__, bench.datasets._info.__file__, hf.origin, sep="\\n")
"""


def look(cwd: Path, **environment: str) -> list[Path]:
    """Where bench, its models, its datasets and Hugging Face's datasets come from, in a fresh interpreter."""
    env = {**os.environ, **environment}
    ran = subprocess.run([sys.executable, "-c", LOOK], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [Path(line) for line in ran.stdout.split("\n") if line]


def is_hugging_face(path: Path) -> bool:
    return path.name == "__init__.py" and (path.parent / "arrow_dataset.py").is_file()


def test_the_folders_stay_namespaces():
    for folder in ("models", "datasets"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_from_the_checkout_root():
    bench, models, datasets, hugging_face = look(ROOT, PYTHONPATH="")
    assert bench == ROOT / "bench" / "__init__.py"
    assert models == ROOT / "models" / "_info.py" and datasets == ROOT / "datasets" / "_info.py"
    assert is_hugging_face(hugging_face)


def test_pytest_from_the_root_sees_hugging_face(tmp_path):
    test = tmp_path / "test_inner.py"
    test.write_text(
        "import sys, importlib.util\n"
        "def test_it():\n"
        f"    assert {str(ROOT)!r} in [p or {str(ROOT)!r} for p in sys.path]\n"
        "    import bench.datasets._info\n"
        "    assert 'site-packages' in importlib.util.find_spec('datasets').origin\n"
    )
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), "--rootdir", str(tmp_path)]
    ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_from_the_editable_install(tmp_path):
    try:
        bench, models, datasets, hugging_face = look(tmp_path, PYTHONPATH="")
    except AssertionError:
        pytest.skip("this environment has no editable install of the checkout; `make test` makes one")
    assert bench.parent.parent == models.parent.parent == datasets.parent.parent == ROOT
    assert is_hugging_face(hugging_face)


@pytest.mark.timeout(600)  # builds, installs and trains, perhaps beside others
def test_from_the_wheel(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    source = tmp_path / "source"
    copy = ["bench", "models", "datasets", "pyproject.toml", "README.md", "LICENSE"]
    source.mkdir()
    for name in copy:  # a copy: building in place would leave build/ in the checkout
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    ran = subprocess.run([*build, str(tmp_path), str(source)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,) = tmp_path.glob("medbench-*.whl")
    backend = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", backend, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (sdist,) = tmp_path.glob("medbench-*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"bench/ops/backends/scan_cpu.cpp", "models/medmamba.py", "datasets/bundled/breastmnist.npz"} <= packed
    twine = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    assert subprocess.run(twine, capture_output=True, text=True).stdout.count("PASSED") == 2
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"bench"}, "the wheel must put nothing called models or datasets beside other packages"
    assert "bench/report/write/assets/page.html" in names
    for wanted in ("bench/models/medmamba.py", "bench/datasets/phantoms.py", "bench/sweep/recipes/medmnist.toml"):
        assert wanted in names
    assert any(name.startswith("bench/ops/") and name.endswith(".cpp") for name in names)
    bench, models, datasets, hugging_face = look(tmp_path, PYTHONPATH=str(site))
    assert all(path.is_relative_to(site) for path in (bench, models, datasets))
    assert is_hugging_face(hugging_face)
    listed = subprocess.run(
        [sys.executable, "-m", "bench", "list", "models", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "medmamba_tiny" in listed.stdout
    assert {"bench/datasets/bundled/breastmnist.npz", "bench/datasets/bundled/LICENSE.md"} <= set(names)
    assert wheel.stat().st_size < 2_000_000
    trains_without_a_network(tmp_path, site)


# Read by every interpreter that starts with it on its path, workers too.
NO_NETWORK = """
import socket
def refused(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the network was used: {address}")
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refused
def getaddrinfo(*a, **k): raise OSError(f"the network was used: {a}")
socket.getaddrinfo = getaddrinfo
"""


def trains_without_a_network(folder, site):
    """One epoch on the bundled BreastMNIST, from the unpacked wheel, in a folder without a bench.toml."""
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    env = {**os.environ, "PYTHONPATH": str(site), "MEDBENCH_DATA": str(folder / "none")}
    env["MEDBENCH_CACHE"] = str(folder / "cache")
    blocked = [sys.executable, "-c", "import socket; socket.create_connection(('localhost', 9))"]
    assert b"the network was used" in subprocess.run(blocked, env=env, capture_output=True, check=False).stderr
    run = [sys.executable, "-m", "bench", "run", "--models", "vit_tiny_patch16_224", "--datasets", "breastmnist"]
    run += ["--resolutions", "32", "--epochs", "1", "--recipe", "quick", "--kinds", "accuracy", "--device", "cpu"]
    ran = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "bundled" in ran.stdout and not (folder / "none").exists()
    (record,) = (folder / "runs" / "sweep" / "cells").glob("*.json")
    assert json.loads(record.read_text())["spec"]["data_fingerprint"].endswith("750601b1f35ba3300ea97c75c52ff8f6")

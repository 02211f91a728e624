"""Built-in dataset facts against the medmnist package's own metadata, read by importing it in the ordinary way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench import registry
from bench.datasets.medmnist import official_info

MEDMNIST = registry.datasets.expand("medmnist")
TASKS = {"multi-label, binary-class": "multi-label"}


def official() -> dict:
    return pytest.importorskip("medmnist").INFO


def test_groups_and_all():
    assert len(MEDMNIST) == 12
    assert set(MEDMNIST) == {name for name, facts in official().items() if "3d" not in name}
    phantoms = registry.datasets.expand("phantoms")
    assert phantoms == ["phantom_local", "phantom_global", "phantom_mixed", "phantom_small"]
    assert registry.expand_datasets(["all"]) == MEDMNIST + phantoms
    assert registry.expand_datasets(["organ*"]) == ["organamnist", "organcmnist", "organsmnist"]


@pytest.mark.parametrize("name", MEDMNIST)
def test_facts_equal_the_package(name):
    theirs, ours = official()[name], registry.datasets[name]
    assert ours.task == TASKS.get(theirs["task"], theirs["task"])
    assert ours.classes == tuple(theirs["label"][str(i)] for i in range(len(theirs["label"])))
    assert ours.channels == theirs["n_channels"]
    assert (ours.n_train, ours.n_val, ours.n_test) == tuple(theirs["n_samples"][s] for s in ("train", "val", "test"))
    assert ours.licence == theirs["license"]
    for size in ours.sizes:
        (file,) = ours.open().files(size)
        suffix = "" if size == 28 else f"_{size}"
        assert file.name == f"{name}{suffix}.npz"
        assert (file.url, file.md5) == (theirs[f"url{suffix}"], theirs[f"MD5{suffix}"])
    assert {f"url_{s}" for s in ours.sizes if s != 28} == {k for k in theirs if k.startswith("url_")}


def test_metadata_read_off_the_file_is_the_package_s():
    assert official_info() == official()


def test_every_dataset_says_what_a_reader_needs():
    for facts in (info for info in registry.datasets.values() if info.plugin_file is None):
        assert facts.licence and facts.citation and facts.source and facts.modality and facts.summary
        assert facts.origin.endswith("sets.toml")
    for organ in ("organamnist", "organcmnist", "organsmnist"):
        assert not registry.datasets[organ].mirror_safe  # femur-left is not femur-right


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from bench.registry import datasets; [d.open().files(28) for d in datasets.values() if d.sizes];"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'pandas', 'medmnist', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

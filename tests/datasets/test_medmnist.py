"""The MedMNIST adapter: on the official files where they lie, and on small files in the official layout."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.datasets import medmnist as adapter_module
from bench.datasets.medmnist import MedMNIST, MedMNISTError
from bench.registry import datasets

REAL = Path(os.environ.get("MEDBENCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "medmnist"))


def real(name: str) -> Path:
    if not (REAL / f"{name}.npz").is_file():
        pytest.skip(f"needs the official {name}.npz in {REAL} (set MEDBENCH_TEST_DATA)")
    return REAL


@pytest.mark.parametrize(("name", "channels"), [("breastmnist", 1), ("retinamnist", 3)])
def test_official_file_equals_medmnist_s_own_loader(name, channels):
    root = real(name)
    theirs = pytest.importorskip("medmnist")
    info = registry.datasets[name]
    splits = info.open().load(28, root)
    for split, (images, labels) in read(splits).items():
        reference = getattr(theirs, theirs.INFO[name]["python_class"])(split=split, root=str(root))
        np.testing.assert_array_equal(images.squeeze(), reference.imgs)
        np.testing.assert_array_equal(labels[:, None], reference.labels)
        assert images.shape == (len(reference), 28, 28, channels) and images.dtype == np.uint8
        assert labels.dtype == np.int64 and labels.shape == (len(reference),)
    assert [len(splits[s].labels) for s in ("train", "val", "test")] == [info.n_train, info.n_val, info.n_test]


COUNTS = {"train": 5, "val": 3, "test": 4}


@pytest.fixture
def tiny(monkeypatch):
    """Let every set have 5/3/4 images, so that a test can write files in the official layout."""
    real_info = adapter_module.official_info()
    shrunk = {name: {**entry, "n_samples": COUNTS} for name, entry in real_info.items()}
    monkeypatch.setattr(adapter_module, "official_info", lambda: shrunk)


def arrays(name: str, size: int) -> dict[str, np.ndarray]:
    info = registry.datasets[name]
    rng = np.random.default_rng(0)
    made = {}
    for split, count in COUNTS.items():
        shape = (count, size, size) + ((3,) if info.channels == 3 else ())
        made[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        width, top = (len(info.classes), 2) if info.task == "multi-label" else (1, len(info.classes))
        made[f"{split}_labels"] = rng.integers(0, top, (count, width), dtype=np.uint8)
    return made


@pytest.mark.parametrize("name", registry.datasets.expand("medmnist"))
@pytest.mark.parametrize("size", [28, 64])
def test_official_layout_of_every_set(tiny, tmp_path, name, size):
    info = registry.datasets[name]
    (file,) = info.open().files(size)
    made = arrays(name, size)
    np.savez_compressed(tmp_path / file.name, **made)
    splits = info.open().load(size, tmp_path)
    assert list(splits) == ["train", "val", "test"]
    for split, (images, labels) in read(splits).items():
        assert images.shape == (COUNTS[split], size, size, info.channels)
        np.testing.assert_array_equal(images.reshape(made[f"{split}_images"].shape), made[f"{split}_images"])
        expected = made[f"{split}_labels"]
        np.testing.assert_array_equal(labels, expected if info.task == "multi-label" else expected[:, 0])
        assert labels.dtype == np.int64


def read(splits):
    """Read splits that come in blocks."""
    return {name: (np.concatenate(list(split.blocks())), split.labels) for name, split in splits.items()}


def load_with(tmp_path: Path, **changes) -> str:
    made = {**arrays("breastmnist", 28), **changes}
    path = tmp_path / "breastmnist.npz"
    np.savez(path, **{key: value for key, value in made.items() if value is not None})
    with pytest.raises(MedMNISTError) as caught:
        MedMNIST(registry.datasets["breastmnist"]).load(28, tmp_path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_errors_name_file_key_expected_and_found(tiny, tmp_path):
    message = load_with(tmp_path, val_images=None)
    assert "'val_images'" in message and "train_images" in message
    message = load_with(tmp_path, val_images=np.zeros((3, 64, 64), np.uint8))
    assert "val_images should be (3, 28, 28) of uint8, found (3, 64, 64) of uint8" in message
    message = load_with(tmp_path, test_images=np.zeros((4, 28, 28), np.float32))
    assert "test_images" in message and "found (4, 28, 28) of float32" in message
    message = load_with(tmp_path, train_labels=np.full((5, 1), 2, np.uint8))
    assert "train_labels should lie in 0..1, found 2..2" in message
    message = load_with(tmp_path, train_labels=np.full((5, 1), np.nan))
    assert "train_labels should be (5, 1) of an integer type, found (5, 1) of float64" in message
    message = load_with(tmp_path, train_labels=np.zeros((4, 1), np.uint8))
    assert "train_labels should be (5, 1)" in message


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


def test_pickles_never_run(tiny, tmp_path):
    assert "train_images is not a plain array" in load_with(tmp_path, train_images=np.array([Harmful()], dtype=object))
    (tmp_path / "breastmnist.npz").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(MedMNISTError, match="is not a readable npz file"):
        MedMNIST(registry.datasets["breastmnist"]).load(28, tmp_path)


def test_unreadable_files(tiny, tmp_path):
    adapter = MedMNIST(registry.datasets["breastmnist"])
    with pytest.raises(
        MedMNISTError, match=r"breastmnist_64.npz does not exist; run `bench fetch --datasets breastmnist`"
    ):
        adapter.load(64, tmp_path)
    path = tmp_path / "breastmnist.npz"
    np.savez_compressed(path, **arrays("breastmnist", 28))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(MedMNISTError, match="is not a readable npz file"):
        adapter.load(28, tmp_path)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(MedMNISTError, match=r"single array of shape \(3,\)"):
        adapter.load(28, tmp_path)


def test_streamed_in_blocks_in_either_order_and_damage_is_noticed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_module, "_BLOCK_BYTES", 2 * 28 * 28)  # two images at a time
    adapter, made = MedMNIST(registry.datasets["breastmnist"]), arrays("breastmnist", 28)
    path = tmp_path / "breastmnist.npz"
    np.savez_compressed(path, **{key: np.asfortranarray(value) for key, value in made.items()})
    columns = read(adapter.load(28, tmp_path))
    np.savez_compressed(path, **made)
    splits = adapter.load(28, tmp_path)
    assert [len(block) for block in splits["train"].blocks()] == [2, 2, 1]
    for split, (images, _) in read(splits).items():
        np.testing.assert_array_equal(images[..., 0], made[f"{split}_images"])
        np.testing.assert_array_equal(images, columns[split][0])
    np.savez(path, **made)
    content = bytearray(path.read_bytes())
    content[content.index(made["val_images"].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(MedMNISTError, match=r"breastmnist.npz is not a readable npz file: Bad CRC-32"):
        list(adapter.load(28, tmp_path)["val"].blocks())


def test_unknown_size_and_fingerprint():
    adapter = MedMNIST(registry.datasets["breastmnist"])
    with pytest.raises(MedMNISTError, match="no 32-pixel images; sizes are 28, 64, 128, 224"):
        adapter.files(32)
    assert "750601b1f35ba3300ea97c75c52ff8f6" in adapter.fingerprint(28, None)  # shared/data/README.md
    assert len({adapter.fingerprint(size, None) for size in adapter.info.sizes}) == 4


def test_a_package_without_metadata_is_named(monkeypatch, tmp_path):
    adapter_module.official_info.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MedMNISTError, match="pip install medmnist"):
        adapter_module.official_info()
    (tmp_path / "info.py").write_text("VERSION = 4\n")
    spec = replace_locations(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(MedMNISTError, match=r"info.py defines no INFO"):
        adapter_module.official_info()


def replace_locations(folder: Path):
    import importlib.machinery

    spec = importlib.machinery.ModuleSpec("medmnist", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_adapter_takes_any_info():
    info = replace(registry.datasets["breastmnist"], sizes=(28,))
    with pytest.raises(MedMNISTError, match="sizes are 28"):
        info.open().files(64)


def test_the_bundled_file_is_the_official_one_and_serves_where_the_root_has_none(tmp_path):
    from bench.data.files import bundled_note, check, fetch, preflight

    info = datasets["breastmnist"]
    (file,) = info.open().files(28)
    assert hashlib.md5(file.bundled.read_bytes()).hexdigest() == file.md5 == "750601b1f35ba3300ea97c75c52ff8f6"
    notes = (file.bundled.parent / "LICENSE.md").read_text()
    assert "CC BY 4.0" in notes and "Al-Dhabyani" in notes and file.md5 in notes
    root = tmp_path / "none"
    assert not preflight([(info, 28)], root) and "bundled" in bundled_note(info, 28, root)
    assert fetch([file], root) == [file.bundled] and not root.exists()  # nothing to fetch, nothing is made
    assert len(info.open().load(28, root)["train"].labels) == 546
    assert [problem.reason for problem in preflight([(info, 64)], root)] == ["missing"]
    root.mkdir()
    own = root / "breastmnist.npz"
    own.write_bytes(b"other")  # a file of one's own is used, and a damaged one is no reason to look elsewhere
    assert [problem.path for problem in check([file], root)] == [own] and not bundled_note(info, 28, root)
    own.write_bytes(file.bundled.read_bytes())
    assert not preflight([(info, 28)], root) and not bundled_note(info, 28, root)

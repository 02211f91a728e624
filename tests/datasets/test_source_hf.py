"""``hf:NAME``: parquet, image folders and saved sets from a disk, with the network forbidden."""

from __future__ import annotations

import io
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.registry import DatasetInfo, LazySplit, RegistryError, dataset_info

library = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    library.disable_progress_bars()


def png(value: int, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (6, 5), value if mode == "L" else (value, 0, 9)).save(stream, "PNG")
    return stream.getvalue()


def rows(count: int, start: int = 0, mode: str = "L") -> dict[str, list[Any]]:
    numbers = range(start, start + count)
    return {
        "image": [{"bytes": png(i % 256, mode), "path": None} for i in numbers],
        "label": [i % 2 for i in numbers],
        "who": [f"p{i // 4}" for i in numbers],
    }


FEATURES = library.Features(
    {"image": library.Image(), "label": library.ClassLabel(names=["sound", "ill"]), "who": library.Value("string")}
)


def table(count: int, start: int = 0, **options: Any) -> Any:
    return library.Dataset.from_dict(rows(count, start, **options), features=FEATURES)


def facts(place: Path, options: str = "") -> DatasetInfo:
    return dataset_info(f"hf:{place}{options}", refresh=True)


def load(info: DatasetInfo) -> dict[str, LazySplit]:
    return info.open().load(28, None)  # type: ignore[return-value]


def test_a_parquet_file_is_split_by_patient(tmp_path: Path) -> None:
    table(60).to_parquet(tmp_path / "set.parquet")
    info = facts(tmp_path / "set.parquet", "[patient=who]")
    assert (info.classes, info.task, info.channels, info.varied) == (("sound", "ill"), "binary-class", 1, True)
    splits = load(info)
    owners = [set(split.groups) for split in splits.values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 15
    for split in splits.values():
        read = pickle.loads(pickle.dumps(split.read))
        for i, name in enumerate(split.names):
            number = int(name.split("/")[1])
            assert (read(i) == number).all() and read(i).shape == (5, 6, 1)
            assert split.labels[i] == number % 2 and split.groups[i] == f"p{number // 4}"


def test_a_folder_of_parquet_files_keeps_its_splits(tmp_path: Path) -> None:
    top = tmp_path / "set" / "data"
    top.mkdir(parents=True)
    table(40, mode="RGB").to_parquet(top / "train-00000-of-00001.parquet")
    table(10, 40, mode="RGB").to_parquet(top / "validation-00000-of-00001.parquet")
    table(20, 50, mode="RGB").to_parquet(top / "test-00000-of-00001.parquet")
    info = facts(tmp_path / "set")
    assert (info.channels, info.n_train, info.n_val, info.n_test, info.traps) == (3, 40, 10, 20, ())
    assert load(info)["test"].read(3)[0, 0].tolist() == [53, 0, 9]


def test_an_image_folder(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 10)):
        for kind in ("no", "yes"):
            folder = tmp_path / "set" / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(png(i + 100 * (kind == "yes")))
    info = facts(tmp_path / "set")
    assert (info.classes, info.n_train, info.n_val, info.n_test) == (("no", "yes"), 36, 4, 20)
    splits = load(info)
    for split in splits.values():
        for i, label in enumerate(split.labels):
            assert (split.read(i) >= 100).all() == bool(label)


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    library.DatasetDict({"train": table(40), "test": table(20, 40)}).save_to_disk(tmp_path / "saved")
    info = facts(tmp_path / "saved")
    assert (info.n_train, info.n_val, info.n_test) == (36, 4, 20)
    assert (load(info)["test"].read(0) == 40).all()
    table(60).shuffle(seed=1).select(range(50)).save_to_disk(tmp_path / "one")
    splits = load(facts(tmp_path / "one"))
    for split in splits.values():
        assert [int(split.read(i)[0, 0, 0]) % 2 for i in range(len(split.labels))] == split.labels.tolist()


def test_plain_values_as_classes_and_findings(tmp_path: Path) -> None:
    data = {
        **rows(60),
        "kind": [f"grade {i % 3}" for i in range(60)],
        "a": [i % 2 for i in range(60)],
        "b": [1, 0, 0] * 20,
    }
    library.Dataset.from_dict(data, features=None).to_parquet(tmp_path / "set.parquet")
    info = facts(tmp_path / "set.parquet", "[label=kind]")
    assert info.classes == ("grade 0", "grade 1", "grade 2")
    info = facts(tmp_path / "set.parquet", "[label=a+b]")
    assert (info.task, info.classes) == ("multi-label", ("a", "b"))
    split = load(info)["train"]
    assert split.labels.tolist() == [[int(n.split("/")[1]) % 2, int(n.split("/")[1]) % 3 == 0] for n in split.names]


def test_lists_of_classes_are_findings(tmp_path: Path) -> None:
    features = library.Features(
        {"image": library.Image(), "labels": library.Sequence(library.ClassLabel(names=["x", "y", "z"]))}
    )
    lists = [[0], [1, 2], [], [0, 2]] * 15
    library.Dataset.from_dict({"image": rows(60)["image"], "labels": lists}, features=features).to_parquet(
        tmp_path / "set.parquet"
    )
    info = facts(tmp_path / "set.parquet")
    assert (info.task, info.classes) == ("multi-label", ("x", "y", "z"))
    for split in load(info).values():
        for name, row in zip(split.names, split.labels, strict=True):
            assert np.flatnonzero(row).tolist() == lists[int(name.split("/")[1])]


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    parts = {"train": table(40), "validation": table(10, 40), "test": table(20, 50), "unsupervised": table(5)}

    def load_dataset(*args: Any) -> Any:
        asked.append(args)
        return library.DatasetDict(parts)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    info = dataset_info("hf:owner/name[small,patient=who]")
    assert asked == [("owner/name", "small")]
    assert (info.n_train, info.n_val, info.n_test) == (40, 10, 20)
    assert "the splits unsupervised are not used" in info.traps and "1 patient has images in" in info.traps[1]
    first = info.open().fingerprint(28, None)
    assert first == info.open().fingerprint(28, None)
    parts["test"] = table(21, 50)
    assert info.open().fingerprint(28, None) != first


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    table(60).to_parquet(path)
    first = facts(path).open().fingerprint(28, None)
    assert first == facts(path).open().fingerprint(28, None)
    table(60, 1).to_parquet(path)
    assert facts(path).open().fingerprint(28, None) != first
    assert (load(facts(path))["train"].read(0) > 0).all()


# --- bad input -------------------------------------------------------------------------------------------------


def refused(place: Path | str, said: str, options: str = "") -> None:
    with pytest.raises(RegistryError, match=said) as error:
        dataset_info(f"hf:{place}{options}", refresh=True)
    assert "\n" not in str(error.value)


def test_a_name_that_cannot_be_had_offline() -> None:
    refused("nobody/nothing", "nobody/nothing is neither on this disk nor on the hub: ")


def test_faults_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    table(60).to_parquet(path)
    refused(
        path, r"there is no label column 'lable' \(did you mean 'label'\?\); it has image, label, who", "[label=lable]"
    )
    refused(path, r"there is no image column 'imag' \(did you mean 'image'\?\)", "[image=imag]")
    refused(path, r"there is no column 'whom' \(did you mean 'who'\?\)", "[patient=whom]")
    refused(path, "there is no label column 'nothing'; it has image, label, who", "[label=nothing+who]")
    table(60).remove_columns("label").to_parquet(path)
    refused(path, r"there is no label column; set label=COLUMN in brackets; it has image, who")


def test_rows_without_a_label(tmp_path: Path) -> None:
    data = rows(60)
    data["label"][7] = data["label"][9] = -1
    library.Dataset.from_dict(data, features=FEATURES).to_parquet(tmp_path / "set.parquet")
    refused(tmp_path / "set.parquet", "row 'train/7' and 'train/9': no label in column 'label'; missing=ignore")


def test_a_truncated_image_in_a_table(tmp_path: Path) -> None:
    data = rows(60)
    data["image"] = [{"bytes": image["bytes"][:44], "path": None} for image in data["image"]]
    library.Dataset.from_dict(data, features=FEATURES).to_parquet(tmp_path / "set.parquet")
    split = load(facts(tmp_path / "set.parquet"))["train"]
    with pytest.raises(ValueError, match=r"^train/\d+ is not a readable image"):
        split.read(0)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    refused(tmp_path / "x.parquet", r"x\.parquet is not a dataset that can be read: ")
    (tmp_path / "x.txt").write_text("x")
    refused(tmp_path / "x.txt", r"x\.txt is not a parquet file; give a \.parquet or \.arrow file, or a folder")
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded" / "coded.py").write_text("raise SystemExit('ran')")
    refused(tmp_path / "coded", "needs a loading script, which is not run")


@pytest.mark.slow
def test_facts_import_no_torch(tmp_path: Path) -> None:
    table(60).to_parquet(tmp_path / "set.parquet")
    code = (
        "import sys; from bench.registry import dataset_info; dataset_info(sys.argv[1]).open().fingerprint(28, None);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"hf:{tmp_path / 'set.parquet'}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"

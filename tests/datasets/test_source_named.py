"""The published sets, each on a tiny archive in its official layout: packed, unpacked, incomplete, absent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.datasets import _splits
from bench.registry import LazySplit, RegistryError, dataset_info


def png(value: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A picture that says its number: red is the number, or all of it is."""
    stream = io.BytesIO()
    size = (8 + value % 3, 8)
    Image.new(mode, size, value % 256 if mode == "L" else (value % 256, value // 256, 7)).save(stream, kind)
    return stream.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def pad_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return (members of the archive, what all of it unpacks to): 60 patients, two lesions and four images each."""
    lines = ["patient_id,lesion_id,smoke,img_id,diagnostic,biopsed"]
    parts: dict[int, dict[str, bytes]] = {1: {}, 2: {}, 3: {}}
    for patient in range(60):
        kind = ("ACK", "BCC", "MEL", "NEV", "SCC", "SEK")[patient % 6]
        for shot in range(4):
            name = f"PAT_{patient}_{patient * 2 + shot // 2}_{shot}.png"
            lines.append(f"PAT_{patient},{patient * 2 + shot // 2},,{name},{kind},True")
            parts[patient % 3 + 1][f"imgs_part_{patient % 3 + 1}/{name}"] = png(patient * 4 + shot)
    table = "\n".join(lines).encode()
    packed = {"metadata.csv": table} | {f"images/imgs_part_{i}.zip": zipped(part) for i, part in parts.items()}
    plain = {"metadata.csv": table} | {f"images/{k}": v for part in parts.values() for k, v in part.items()}
    return packed, plain


def fetal_files() -> dict[str, bytes]:
    """180 images of 60 patients; blanks after names, in a header, and an image without suffix in the table."""
    kinds = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
    lines = ["Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "]
    images = {}
    for i in range(180):
        patient = i // 3
        name = f"Patient{patient:05}_Plane{i % 3}_{i}"
        lines.append(
            f"{name}{'  ' * (i % 7 == 0)};{patient};{kinds[patient % 6]};Not A Brain;Op. 1;Aloka;{int(patient < 36)}"
        )
        images[f"Images/{name}.png"] = png(i, "L")
    return images | {"FETAL_PLANES_DB_data.csv": "\r\n".join(lines).encode(), "FETAL_PLANES_DB_data.xlsx": b"no"}


def class_files(name: str, each: int, mode: str, suffix: str = "png", top: str = "") -> dict[str, bytes]:
    kind = "JPEG" if suffix == "jpg" else "PNG"
    classes = registry.datasets[name].classes
    return {
        f"{top}{label}/{i:04}.{suffix}": png(at * 60 + i, mode, kind)
        for at, label in enumerate(classes)
        for i in range(each)
    }


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def unpacked(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


CPN_INNER = "Covid19-Pneumonia-Normal Chest X-Ray Images Dataset.zip"


def official(name: str) -> tuple[str, bytes, dict[str, bytes]]:
    """Return the archive's name, its content, and what it unpacks to entirely."""
    if name == "pad_ufes_20":
        packed, plain = pad_files()
        return "zr7vgbcyr2-1.zip", zipped(packed), plain
    if name == "fetal_planes_db":
        return "FETAL_PLANES_ZENODO.zip", zipped(fetal_files()), fetal_files()
    if name == "cpn_xray":
        plain = class_files(name, 20, "RGB")
        return "dvntn9yhd2-1.zip", zipped({f"CPN folder/{CPN_INNER}": zipped(plain)}, zipfile.ZIP_STORED), plain
    if name.startswith("kvasir"):
        top = f"kvasir-dataset{'-v2' if name.endswith('v2') else ''}"
        plain = class_files(name, 20, "RGB", "jpg", f"{top}/")
        return f"{top}.zip", zipped(plain), plain
    plain = class_files(name, 20, "RGB" if name == "otoscopy2024" else "L")
    return "mine.zip", zipped(plain), plain


NAMES = ("pad_ufes_20", "fetal_planes_db", "cpn_xray", "kvasir_v1", "kvasir_v2", "otoscopy2024", "cervical_us")


def load(name: str, root: Path, options: str = "subset=true") -> dict[str, LazySplit]:
    info = dataset_info(f"{name}[{options}]" if options else name)
    return info.open().load(28, root)  # type: ignore[return-value]


def all_of(splits: dict[str, LazySplit]) -> list[tuple[str, str, int, str, bytes]]:
    found = []
    for part, split in splits.items():
        groups = split.groups or [""] * len(split.names)
        for i, name in enumerate(split.names):
            found.append((name, part, int(split.labels[i]), groups[i], split.read(i).tobytes()))
    return sorted(found)


@pytest.mark.parametrize("name", NAMES)
def test_archive_and_unpacked_files_give_the_same(name: str, tmp_path: Path) -> None:
    archive, content, plain = official(name)
    put(tmp_path / "packed" / name, {archive: content})
    put(tmp_path / "plain" / name / "wherever", plain)
    half = unpacked(content) if name in ("pad_ufes_20", "cpn_xray") else {archive: content, **plain}
    put(tmp_path / "half" / name, half)
    packed = all_of(load(name, tmp_path / "packed"))
    assert packed == all_of(load(name, tmp_path / "plain"))
    assert packed == all_of(load(name, tmp_path / "half"))
    info = registry.datasets[name]
    assert len(packed) == {"pad_ufes_20": 240, "fetal_planes_db": 180}.get(name, 20 * len(info.classes))
    counts = np.array([sum(row[1] == split for row in packed) for split in ("train", "val", "test")]) / len(packed)
    assert np.abs(counts - [0.6, 0.1, 0.3]).max() < 0.11
    prints = {
        dataset_info(f"{name}[{o}]").open().fingerprint(28, tmp_path / "packed") for o in ("subset=true", "seed=1")
    }
    assert len(prints) == 2
    assert dataset_info(name).open().fingerprint(28, tmp_path / "packed") in prints


@pytest.mark.parametrize("name", NAMES)
def test_what_is_absent_is_told_with_what_to_put_where(name: str, tmp_path: Path) -> None:
    for call in (lambda: dataset_info(name).open().fingerprint(28, tmp_path), lambda: load(name, tmp_path)):
        with pytest.raises(ValueError, match=rf"{name}: there is nothing in .*/{name}; put there .+") as error:
            call()
        assert "\n" not in str(error.value)
    public = name not in ("otoscopy2024", "cervical_us")
    assert ("https://d" in str(error.value) or "zenodo" in str(error.value)) is public
    assert ("no public archive" in str(error.value) and "ask the authors" in str(error.value)) is not public


@pytest.mark.parametrize("name", NAMES)
def test_an_incomplete_set_is_refused(name: str, tmp_path: Path) -> None:
    archive, content, _ = official(name)
    put(tmp_path / name, {archive: content})
    with pytest.raises(ValueError, match=rf"{name}: found \d+ images.*, the published set has [\d,]+.*\[subset=true\]"):
        load(name, tmp_path, "")


def test_facts_are_the_published_numbers() -> None:
    totals = (2_298, 12_400, 5_228, 4_000, 8_000, 22_581, 3_392)
    for name, total in zip(NAMES, totals, strict=True):
        adapter = registry.datasets[name].open()
        counts = adapter.per_class  # type: ignore[attr-defined]
        assert adapter.total == total  # type: ignore[attr-defined]
        assert not counts or sum(counts.values()) == total
        assert not counts or set(counts) == set(registry.datasets[name].classes)
        assert f"{total:,} images" in registry.datasets[name].summary
    assert registry.expand_datasets(["medmamba_six"]) == [n for n in NAMES if n != "kvasir_v2"]
    assert not registry.datasets["cpn_xray"].mirror_safe


# --- each set's known issues ------------------------------------------------------------------------------------------


def test_pad_is_split_by_patient(tmp_path: Path) -> None:
    put(tmp_path / "pad_ufes_20", {"zr7vgbcyr2-1.zip": official("pad_ufes_20")[1]})
    for name, _, label, patient, pixels in all_of(load("pad_ufes_20", tmp_path)):
        number = int(name.split("_")[1])
        assert (patient, label) == (f"PAT_{number}", number % 6)
        assert pixels[0] == (number * 4 + int(name[-5])) % 256
    splits = load("pad_ufes_20", tmp_path)
    owners = [set(split.groups) for split in splits.values()]
    assert sum(map(len, owners)) == 60


def test_fetal_keeps_the_official_split_in_spite_of_blanks(tmp_path: Path) -> None:
    put(tmp_path / "fetal_planes_db", {"FETAL_PLANES_ZENODO.zip": zipped(fetal_files())})
    splits = load("fetal_planes_db", tmp_path)
    patients = {split: {int(group) for group in splits[split].groups} for split in splits}
    assert patients["test"] == set(range(36, 60))
    assert patients["train"] | patients["val"] == set(range(36))
    assert not patients["train"] & patients["val"]
    assert splits["train"].read(0).shape[2] == 1


@pytest.mark.parametrize(
    "name, proportions",
    [("pad_ufes_20", (1_384, 227, 687)), ("kvasir_v1", (2_408, 392, 1_200)), ("cpn_xray", (3_140, 521, 1_567))],
)
def test_the_authors_split_leaks_and_says_so(name: str, proportions: tuple[int, int, int], tmp_path: Path) -> None:
    info = dataset_info(f"{name}[split=author]")
    assert (info.n_train, info.n_val, info.n_test) == proportions
    assert "images of one patient or lesion lie on both sides" in info.traps[0]
    assert registry.expand_datasets([f"{name}[split=author]"]) == [f"{name}[split=author]"]
    put(tmp_path / name, {official(name)[0]: official(name)[1]})
    ours, theirs = load(name, tmp_path), load(name, tmp_path, "subset=true,split=author")
    count = sum(len(split.labels) for split in theirs.values())
    for part, share in zip(("train", "val", "test"), proportions, strict=True):
        assert abs(len(theirs[part].labels) - count * share / sum(proportions)) <= 1
    if name == "pad_ufes_20":
        torn: Callable[[dict[str, LazySplit]], int] = lambda splits: _splits.torn(  # noqa: E731
            [g for s in splits.values() for g in s.groups],
            np.repeat([0, 1, 2], [len(s.labels) for s in splits.values()]),
        )
        assert torn(ours) == 0 and torn(theirs) > 30


def test_files_that_are_the_same_stay_together(tmp_path: Path) -> None:
    files = class_files("cpn_xray", 40, "L")
    for i in range(15):
        files[f"COVID/copy {i}.png"] = files[f"COVID/{i:04}.png"]
    put(tmp_path / "cpn_xray", files)
    where: dict[str, set[str]] = {}
    for name, part, _, group, _ in all_of(load("cpn_xray", tmp_path)):
        where.setdefault(group, set()).add(part)
        assert bool(group) == (name.startswith("COVID/") and ("copy" in name or int(name[6:10]) < 15))
    assert all(len(parts) == 1 for group, parts in where.items() if group)
    assert sum(bool(group) for group in where) >= 5


def test_one_kvasir_in_place_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.datasets._info import SETS

    monkeypatch.setitem(SETS["published"]["kvasir_v1"], "lookalikes", {"160": "kvasir_v2"})
    put(tmp_path / "kvasir_v1", official("kvasir_v2")[2])
    with pytest.raises(
        ValueError, match=r"kvasir_v1: found 160 images \(as many as kvasir_v2 has\), the published set has 4,000"
    ):
        load("kvasir_v1", tmp_path, "")


def test_tables_that_do_not_fit_the_images(tmp_path: Path) -> None:
    _, plain = pad_files()
    put(tmp_path / "pad_ufes_20", plain)
    (tmp_path / "pad_ufes_20" / "images" / "imgs_part_2" / "PAT_1_2_0.png").unlink()
    with pytest.raises(ValueError, match=r"metadata\.csv, line 6: the image is not there; expected zr7vgbcyr2-1\.zip"):
        load("pad_ufes_20", tmp_path)
    table = tmp_path / "pad_ufes_20" / "metadata.csv"
    table.write_bytes(plain["metadata.csv"].replace(b"diagnostic", b"diagnosis"))
    with pytest.raises(ValueError, match=r"no column 'diagnostic' .*did you mean 'diagnosis'"):
        load("pad_ufes_20", tmp_path)
    table.unlink()
    with pytest.raises(ValueError, match=r"holds no metadata\.csv; put there zr7vgbcyr2-1\.zip"):
        load("pad_ufes_20", tmp_path)


def test_a_class_folder_is_missing(tmp_path: Path) -> None:
    files = class_files("kvasir_v1", 5, "RGB")
    put(tmp_path / "kvasir_v1", {k: v for k, v in files.items() if not k.startswith("polyps/")})
    with pytest.raises(
        ValueError, match=r"kvasir_v1: .* holds no image of class 'polyps'; expected kvasir-dataset\.zip"
    ):
        load("kvasir_v1", tmp_path)


def test_an_archive_that_reaches_out_of_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "kvasir_v1", {"kvasir-dataset.zip": zipped({"polyps/../../evil.jpg": b"x"})})
    with pytest.raises(ValueError, match=r"kvasir-dataset\.zip: member .* would lie outside of the folder"):
        dataset_info("kvasir_v1").open().fingerprint(28, tmp_path)


def test_options_of_published_sets() -> None:
    assert dataset_info("kvasir_v1[seed=2,split=author]").name == "kvasir_v1[seed=2,split=author]"
    assert dataset_info("kvasir_v1[split=author,seed=2]").name == "kvasir_v1[seed=2,split=author]"
    for name, said in (
        ("kvasir_v1[splt=author]", r"splt=author: no such option \(did you mean 'split'\?\)"),
        ("kvasir_v1[split=official]", "the only value is split=author"),
        ("kvasir_v1[author]", r"write name\[key=value\]"),
        ("breastmnist[split=author]", "it has no options"),
        ("kvasir_v3[split=author]", "unknown dataset 'kvasir_v3'"),
    ):
        with pytest.raises(RegistryError, match=said):
            dataset_info(name)


def test_through_the_cache_in_several_processes(tmp_path: Path) -> None:
    """Members of an archive in an archive, read by processes that did not open it, at one size."""
    from bench.data.cache import load_dataset
    from bench.data.files import DataError

    plain = {
        f"{kind}/{i}.png": png(60 * at + i % 60, "L")
        for at, kind in enumerate(("COVID", "NORMAL", "PNEUMONIA"))
        for i in range(90)
    }
    place = tmp_path / "cpn_xray" / "dvntn9yhd2-1.zip"
    put(place.parent, {place.name: zipped({CPN_INNER: zipped(plain)})})
    data = load_dataset("cpn_xray[subset=true]", 16, tmp_path, tmp_path / "cache")
    assert sum(len(split.labels) for split in data.splits.values()) == 270
    for part, split in data.splits.items():
        names = data.members(part).names
        expected = [
            60 * int(label) + int(name.split("/")[1][:-4]) % 60 for name, label in zip(names, split.labels, strict=True)
        ]
        assert split.images.shape == (len(expected), 16, 16, 1)
        assert (split.images == np.array(expected)[:, None, None, None]).all()
    plain["COVID/7.png"] = plain["COVID/7.png"][:44]
    put(place.parent, {place.name: zipped({CPN_INNER: zipped(plain)})})
    with pytest.raises(
        DataError, match=r"(?s)1 of \d+ images cannot be used .*: .*7\.png is not a readable image: .*truncated"
    ):
        load_dataset("cpn_xray[subset=true]", 16, tmp_path, tmp_path / "cache")


def test_fetch_says_what_has_to_be_fetched_by_hand(tmp_path: Path) -> None:
    from bench.data.files import FetchError, fetch_datasets

    with pytest.raises(
        FetchError, match=r"by hand:\nkvasir_v1: there is nothing in .*kvasir-dataset\.zip from https://datasets"
    ):
        fetch_datasets(["kvasir_v1"], [28], tmp_path)
    put(tmp_path / "kvasir_v1", official("kvasir_v1")[2])
    assert fetch_datasets(["kvasir_v1"], [28], tmp_path) == []


def test_metadata_of_the_set_are_kept_and_may_be_subgroups(tmp_path: Path) -> None:
    put(tmp_path / "pad_ufes_20", {"zr7vgbcyr2-1.zip": official("pad_ufes_20")[1]})
    info = registry.dataset_info("pad_ufes_20[group=biopsed,subset=true]")
    assert info.subgroups == ("biopsed",) and "age" in info.columns
    splits = info.open().load(28, tmp_path)
    assert {value for split in splits.values() for value in split.columns["biopsed"]} == {"True"}  # type: ignore[union-attr]
    with pytest.raises(
        registry.RegistryError, match=r"group=sex: there is no column 'sex'.*; the columns are age, gender"
    ):
        registry.dataset_info("pad_ufes_20[group=sex]")
    with pytest.raises(registry.RegistryError, match="this source has no columns beside its images"):
        registry.dataset_info("kvasir_v1[group=sex]")

"""Inputs as people have them, of kinds that once went wrong without a word: read as they say, or refused.

What is right is said by pandas, scikit-learn, Pillow and Hugging Face's library, or stands in the input itself.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats.contingency import association
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.preprocessing import MultiLabelBinarizer

from bench.data.cache import open_entry
from bench.data.files import DataError
from bench.registry import DatasetInfo, Finding, LazySplit, RegistryError, dataset_info


def picture(path: Path | str, seed: int, mode: str = "L") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shape = (12, 12) if mode == "L" else (12, 12, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def look(name: str) -> DatasetInfo:
    return dataset_info(name, refresh=True)


def read(name: str) -> dict[str, Any]:
    """Name of each image -> its label (a class, or a set of them)."""
    info = look(name)
    info.open().fingerprint(28, None)
    found: dict[str, Any] = {}
    for split in info.open().load(28, None).values():
        assert isinstance(split, LazySplit)
        for row, (path, label) in enumerate(zip(split.names, split.labels, strict=True)):
            assert split.read(row).dtype == np.uint8
            several = isinstance(label, np.ndarray)
            found[path] = {info.classes[c] for c in np.flatnonzero(label)} if several else info.classes[label]
    return found


def finding(name: str, words: str) -> Finding:
    [found] = [f for f in look(name).findings if words in f.text]
    return found


def refused(name: str, *said: str) -> None:
    with pytest.raises(RegistryError) as error:
        look(name)
    for words in said:
        assert words in str(error.value)


def table(folder: Path, text: str | bytes, name: str = "t.csv", count: int = 60, suffix: str = ".png") -> str:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        if not (folder / f"{i}{suffix}").exists():
            picture(folder / f"{i}{suffix}", i)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{path}"


def lines(head: str, row: Callable[[int], str], count: int = 60) -> str:
    return "\n".join([head, *map(row, range(count))]) + "\n"


# --- several labels in a cell (01) -----------------------------------------------------------------------------


@pytest.mark.parametrize("separator, name", [("|", "|"), (";", ";"), (", ", "comma")])
def test_cells_of_several_labels(separator: str, name: str, tmp_path: Path) -> None:
    kinds = ["No Finding", "Effusion", "Mass", f"Effusion{separator}Mass"]
    text = lines("Image Index\tFinding Labels\tPatient ID", lambda i: f"{i}.png\t{kinds[i % 4]}\t{i // 3}")
    source = table(tmp_path, text)
    frame = pd.read_csv(tmp_path / "t.csv", sep="\t")
    parts = [{part.strip() for part in cell.split(separator)} for cell in frame["Finding Labels"]]
    assert read(source) == dict(zip(frame["Image Index"], parts, strict=True))
    assert look(source).task == "multi-label"
    assert list(look(source).classes) == MultiLabelBinarizer().fit(parts).classes_.tolist()
    assert finding(source, "is split at").count == 15
    assert "without patient=Patient ID" in finding(source, "'Patient ID' is not used").text
    assert read(f"{source}[labels=split:{name}]") == read(source)
    assert look(f"{source}[labels=whole]").task == "multi-class"


def test_cells_that_may_be_one_label_are_refused(tmp_path: Path) -> None:
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{('a', 'b|c', 'b')[i % 3]}"))
    refused(source, "t.csv, lines 3, 6", "'b|c' in column 'label'", "labels=split:|", "labels=whole")
    assert len(look(f"{source}[labels=whole]").classes) == 3
    plain = table(
        tmp_path, lines("image\tlabel", lambda i: f"{i}.png\t{('carcinoma, in situ', 'nevus')[i % 2]}"), "p.csv"
    )
    assert look(plain).classes == ("carcinoma, in situ", "nevus"), "a comma is part of a name where no part recurs"


def test_lists_in_cells(tmp_path: Path) -> None:
    cells = ["['x']", "['y', 'x']", "[]"]
    source = table(tmp_path, lines("image\tlabel", lambda i: f"{i}.png\t{cells[i % 3]}"))
    assert read(source) == {f"{i}.png": [{"x"}, {"x", "y"}, set()][i % 3] for i in range(60)}


def test_lists_of_0_and_1(tmp_path: Path) -> None:
    cells = ["[1, 0, 0]", "[0, 1, 1]", "[0, 0, 0]"]
    source = table(tmp_path, lines("image\tlabel", lambda i: f"{i}.png\t{cells[i % 3]}"))
    assert read(source) == {f"{i}.png": [{"0"}, {"1", "2"}, set()][i % 3] for i in range(60)}


def test_one_row_a_finding(tmp_path: Path) -> None:
    rows = [(f"{i}.png", label) for i in range(60) for label in (("a",), ("b", "a"), ("b",))[i % 3]]
    source = table(tmp_path, "image,label\n" + "\n".join(map(",".join, rows)))
    refused(source, "one image is listed with several labels", "labels=rows", "conflicts=drop")
    frame = pd.DataFrame(rows, columns=["image", "label"])
    assert read(f"{source}[labels=rows]") == frame.groupby("image")["label"].agg(set).to_dict()
    assert len(read(f"{source}[conflicts=drop]")) == 40


# --- layouts of folders (03, 04) -------------------------------------------------------------------------------


def tree(top: Path, folders: Sequence[str], count: int, suffix: str = ".png") -> str:
    for folder in folders:
        for i in range(count):
            picture(top / folder / f"{i}{suffix}", abs(hash((folder, i))) % 2**31)
    return f"folder:{top}"


@pytest.mark.parametrize(
    "train, test", [("train_set", "test_set"), ("Training", "Testing"), ("TrainData", "test_images")]
)
def test_folders_that_are_splits_by_their_names(train: str, test: str, tmp_path: Path) -> None:
    source = tree(tmp_path, [f"{top}/{kind}" for top in (train, test) for kind in ("benign", "malignant")], 20)
    info = look(source)
    assert (info.classes, info.n_train, info.n_val, info.n_test) == (("benign", "malignant"), 36, 4, 40)


def test_splits_below_the_classes(tmp_path: Path) -> None:
    source = tree(tmp_path, [f"{kind}/{split}" for kind in ("no", "yes") for split in ("train", "val", "test")], 6)
    info = look(source)
    assert (info.classes, info.n_train, info.n_val, info.n_test) == (("no", "yes"), 12, 12, 12)


@pytest.mark.parametrize("tops", [("fold1", "fold2", "fold3"), ("8001", "8002", "8003", "8004"), ("north", "south")])
def test_the_same_folders_below_each_are_no_classes(tops: Sequence[str], tmp_path: Path) -> None:
    source = tree(tmp_path, [f"{top}/{kind}" for top in tops for kind in ("0", "1")], 12)
    refused(source, "the same folders ('0' and '1')", "split=patient_folders", "split=classes", f"test={tops[-1]}")
    info = (
        look(f"{source}[split=folders,test={tops[-1]},val={tops[0]}]")
        if len(tops) > 2
        else look(f"{source}[split=folders,test={tops[-1]}]")
    )
    assert (info.classes, info.n_test) == (("0", "1"), 24)
    assert set(read(f"{source}[split=folders,test={tops[-1]}]").values()) == {"0", "1"}


def test_patients_as_folders(tmp_path: Path) -> None:
    source = tree(tmp_path, [f"p{patient}/{kind}" for patient in range(12) for kind in ("0", "1")], 4)
    info = look(f"{source}[split=patient_folders]")
    assert info.classes == ("0", "1")
    owners = [set(split.groups) for split in info.open().load(28, None).values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 12
    assert all(label == name.split("/")[1] for name, label in read(f"{source}[split=patient_folders]").items())


def test_splits_without_classes(tmp_path: Path) -> None:
    refused(tree(tmp_path, ["train", "test"], 9), "holds no folder of a class but 18 images")


def test_images_beside_the_classes_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path, ["a", "b"], 10)
    picture(tmp_path / "overview.png", 1)
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert finding(source, "in no class folder").examples == ("overview.png",)
    assert finding(source, "files of other kinds are left out: 1 .txt").count == 1


MASKS = [
    "{0}_mask/x ({1}).png",
    "{0}_masks/x ({1})_mask.png",
    "{0}/x ({1})Mask.png",
    "{0}/x ({1})_mask.png",
    "{0}/x ({1})_mask_1.png",
    "{0}/masks/x ({1}).png",
    "{0}/mask_x ({1}).png",
]


@pytest.mark.parametrize("mask", [*MASKS, "{0}/x ({1})-segmentation.png"])
def test_masks_are_no_samples(mask: str, tmp_path: Path) -> None:
    for kind in ("benign", "malignant"):
        for i in range(10):
            picture(tmp_path / kind / f"x ({i}).png", i)
            picture(tmp_path / mask.format(kind, i), 100 + i)
    source = f"folder:{tmp_path}"
    assert set(read(source)) == {f"{kind}/x ({i}).png" for kind in ("benign", "malignant") for i in range(10)}
    assert finding(source, "masks beside images left out").count == 20
    assert len(read(f"{source}[masks=keep]")) == 40
    assert finding(f"{source}[masks=ignore]", "masks beside images").severity == "note"


def test_one_name_with_two_suffixes_is_told(tmp_path: Path) -> None:
    source = tree(tmp_path, ["a", "b"], 10)
    for i in range(10):
        picture(tmp_path / "a" / f"{i}.bmp", i)
    assert finding(source, "beside another of the same name").count == 10


def test_classes_spelt_otherwise_in_another_split(tmp_path: Path) -> None:
    source = tree(tmp_path, ["train/Benign", "train/malignant", "test/benign", "test/malignant"], 10)
    refused(source, "'Benign' = 'benign'", "spelling=merge")
    assert len(look(f"{source}[spelling=merge]").classes) == 2


def test_spellings_of_one_patient(tmp_path: Path) -> None:
    text = lines("image,label,who", lambda i: f"{i}.png,{'ab'[i % 2]},{'Pp'[i // 30]}{i % 30}")
    splits = look(f"{table(tmp_path / 'x', text)}[patient=who]").open().load(28, None)
    owners = [{group.lower() for group in split.groups} for split in splits.values()]  # type: ignore[union-attr]
    assert sum(map(len, owners)) == 30


def test_folders_of_images_and_masks(tmp_path: Path) -> None:
    tree(tmp_path, ["COVID/images", "COVID/masks", "Normal/images", "Normal/masks"], 10)
    assert {name.split("/")[1] for name in read(f"folder:{tmp_path}")} == {"images"}
    for i in range(10):
        (tmp_path / "COVID" / "images" / f"{i}.png").rename(tmp_path / "COVID" / "images" / f"other{i}.png")
        (tmp_path / "Normal" / "images" / f"{i}.png").rename(tmp_path / "Normal" / "images" / f"other{i}.png")
    refused(f"folder:{tmp_path}", "20 images in a folder named like masks", "masks=ignore")
    assert len(read(f"folder:{tmp_path}[masks=ignore]")) == 20


def test_a_class_that_is_called_mask_is_one(tmp_path: Path) -> None:
    assert set(read(tree(tmp_path, ["mask", "no mask"], 10)).values()) == {"mask", "no mask"}


# --- Hugging Face (05, 25) -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


def content(value: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new("L", (6, 5), value).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def named(hub: Any, names: list[str], labels: list[int]) -> Any:
    """Images whose gray says their class: 200 for "tumour", 10 for another."""
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=names)})
    images = [content(200 if names[label] == "tumour" else 10) for label in labels]
    return hub.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_splits_that_number_their_classes_apart(form: str, hub: Any, tmp_path: Path) -> None:
    parts = {
        "train": named(hub, ["normal", "tumour"], [0, 1] * 20),
        "validation": named(hub, ["normal", "tumour"], [0, 1] * 5),
        "test": named(hub, ["tumour", "normal"], [0, 1] * 10),
    }
    if form == "saved":
        hub.DatasetDict(parts).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        for split, part in parts.items():
            part.to_parquet(tmp_path / "set" / f"{split}.parquet")
    info = look(f"hf:{tmp_path / 'set'}")
    test = info.open().load(28, None)["test"]
    assert isinstance(test, LazySplit) and info.classes == ("normal", "tumour")
    brightness = [float(test.read(i).mean()) for i in range(len(test.labels))]
    assert roc_auc_score(test.labels, brightness) == 1.0


def test_a_split_that_lacks_a_class_numbers_the_others_by_name(hub: Any, tmp_path: Path) -> None:
    hub.DatasetDict(
        train=named(hub, ["a", "b", "tumour"], [0, 1, 2] * 10), test=named(hub, ["a", "tumour"], [0, 1] * 9)
    ).save_to_disk(tmp_path / "set")
    refused(f"hf:{tmp_path / 'set'}", "no test image is of class 'b'")


def test_numbers_in_lists_and_texts_with_bars(hub: Any, tmp_path: Path) -> None:
    lists = [[0], [1], [0, 1], [2]] * 20
    data = {"image": [content(i) for i in range(80)], "label": lists}
    hub.Dataset.from_dict(data).to_parquet(tmp_path / "lists.parquet")
    found = read(f"hf:{tmp_path / 'lists.parquet'}[image=image]")
    assert found == {f"train/{i}": {str(part) for part in lists[i]} for i in range(80)}
    data["label"] = ["|".join("ABC"[part] for part in parts) for parts in lists]
    hub.Dataset.from_dict(data).to_parquet(tmp_path / "bars.parquet")
    found = read(f"hf:{tmp_path / 'bars.parquet'}[image=image]")
    assert found == {f"train/{i}": {"ABC"[part] for part in lists[i]} for i in range(80)}


def test_hidden_labels_of_a_test_split(hub: Any, tmp_path: Path) -> None:
    hub.DatasetDict(
        train=named(hub, ["normal", "tumour"], [0, 1] * 30),
        test=named(hub, ["normal", "tumour"], [0] * 20).map(lambda row: {"label": -1}),
    ).save_to_disk(tmp_path / "set")
    refused(f"hf:{tmp_path / 'set'}", "row 'test/0', 'test/1'", "no label", "missing=ignore")
    info = look(f"hf:{tmp_path / 'set'}[missing=ignore]")
    assert info.n_train + info.n_val + info.n_test == 60  # type: ignore[operator]


def test_metadata_of_some_of_the_images(hub: Any, tmp_path: Path) -> None:
    text = lines("file_name,label,patient", lambda i: f"{i}.png,{('pos', 'neg')[i % 2]},p{i // 2}", 40)
    table(tmp_path / "set", text, "metadata.csv")
    source = f"hf:{tmp_path / 'set'}"
    assert finding(source, "no row in the folder's metadata").count == 20
    assert "without patient=patient" in finding(source, "'patient' is not used").text
    groups = [set(split.groups) for split in look(f"{source}[patient=patient]").open().load(28, None).values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20


def test_a_file_in_medmnists_form(tmp_path: Path) -> None:
    parts = {"train": 20, "val": 10, "test": 10}
    arrays = {f"{split}_images": np.full((n, 9, 9), n, np.uint8) for split, n in parts.items()}
    labels = {f"{split}_labels": np.arange(n)[:, None] % 3 for split, n in parts.items()}
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays, **labels)
    assert look(str(path)).name == f"npz:{path}"
    info = look(f"npz:{path}[task=ordinal]")
    assert (info.task, info.classes, info.sizes, info.channels) == ("ordinal-regression", ("0", "1", "2"), (9,), 1)
    test = info.open().load(9, None)["test"]
    assert test.labels.tolist() == [i % 3 for i in range(10)]
    np.savez(path, **{**arrays, **labels, "test_images": np.zeros((10, 9, 8), np.uint8)})
    with pytest.raises(ValueError, match=r"test_images should be square images of uint8, found \(10, 9, 8\)"):
        info.open().load(9, None)


# --- tables as they are met (10, 14) ---------------------------------------------------------------------------


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    text = lines("image,label,note", lambda i: f"{i}.png,{'ab'[i % 2]},{chr(34) + 'nodule' if i == 28 else 'ok'}")
    refused(table(tmp_path, text), "t.csv, line 30: a quote is opened here and never closed")
    text = lines("image,label,note", lambda i: f"{i}.png,{'ab'[i % 2]},{chr(34) + 'x' if i == 28 else 'ok'}").replace(
        "40.png,a,ok", '40.png,a,ok"'
    )
    refused(table(tmp_path, text), "t.csv, line 30: a quote that is opened here is closed after 12 lines that look")
    two = {28: '"nodule', 29: 'cyst"'}  # the next row is swallowed whole
    text = lines("image,label,note", lambda i: f"{i}.png,{'ab'[i % 2]},{two.get(i, 'ok')}")
    refused(table(tmp_path, text), "t.csv, line 30: a quote that is opened here is closed after 1 lines")
    text = lines("image,label,note", lambda i: f'{i}.png,{"ab"[i % 2]},"two\nlines, and, commas"')
    assert len(read(table(tmp_path, text))) == 60


DIALECTS = {
    "sep": ("sep=;\r\n", ";", "\r\n", "utf-8"),
    "pipe": ("", "|", "\n", "utf-8"),
    "utf16": ("", "\t", "\r\n", "utf-16"),
    "mac": ("", ",", "\r", "utf-8"),
    "comment": ("# exported 2024, by hand\n", ",", "\n", "utf-8"),
    "bom": ("\ufeff", ";", "\r\n", "utf-8"),
    "blank lines": ("\n\n", ",", "\n\n", "utf-8"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name: str, tmp_path: Path) -> None:
    before, separator, end, encoding = DIALECTS[name]
    rows = [("image", "label", "size"), *((f"{i}.png", "ab"[i % 2], f'"{i},5"') for i in range(60))]
    source = table(tmp_path, (before + end.join(map(separator.join, rows))).encode(encoding))
    assert read(source) == {f"{i}.png": "ab"[i % 2] for i in range(60)}


def test_names_of_columns(tmp_path: Path) -> None:
    quoted = table(tmp_path, lines('"image";"label";"size (w, h, d)"', lambda i: f"{i}.png;{'ab'[i % 2]};1"))
    assert look(quoted).classes == ("a", "b")
    comma = table(tmp_path, lines('image,"Diagnosis (a, b)",set', lambda i: f"{i}.png,{'ab'[i % 2]},{_set(i)}"))
    for spelt in ("Diagnosis (a, b)", '"Diagnosis (a, b)"'):
        assert look(f"{comma}[label={spelt}]").classes == ("a", "b")
    refused(comma, "set label=COLUMN in brackets; it has image, Diagnosis (a, b), set")
    assert "set split=set" in finding(f"{comma}[label=Diagnosis (a, b)]", "'set' is not used").text
    info = look(f"{comma}[label=Diagnosis (a, b),split=set]")
    assert (info.n_train, info.n_val, info.n_test) == (36, 4, 20)
    refused(table(tmp_path, lines("image  label", lambda i: f"{i}.png  a")), "it has image  label (separated by comma")
    refused(
        table(tmp_path, lines("größe,image", lambda i: "1,2").encode("cp1252")), "line 1: is not UTF-8", "encoding="
    )
    both = table(tmp_path, lines("image,label;x", lambda i: f"{i}.png,{'ab'[i % 2]};1"))
    refused(both, "comma and semicolon both separate its lines evenly")
    assert look(f"{both}[sep=comma,label=label;x,labels=whole]").classes == ("a;1", "b;1")


def _set(i: int) -> str:
    return "training" if i < 40 else "testing"


def test_values_that_name_splits(tmp_path: Path) -> None:
    source = table(tmp_path, lines("image,label,fold", lambda i: f"{i}.png,{'ab'[i % 2]},{i // 12}"))
    refused(f"{source}[split=fold]", "there is no train split; it has 0, 1, 2, 3, 4; set test=NAME")
    info = look(f"{source}[split=fold,test=4,val=3]")
    assert (info.n_train, info.n_val, info.n_test) == (36, 12, 12)
    refused(f"{source}[split=fold,test=5]", "test=5: there is none")


# --- grades (15) and spellings (16) ----------------------------------------------------------------------------

WORDS = ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]


def test_grades_in_words_need_their_order(tmp_path: Path) -> None:
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{WORDS[i % 5]}"))
    refused(f"{source}[task=ordinal]", "grades that are not numbers", "order=Mild<Moderate<No DR")
    info = look(f"{source}[task=ordinal,order={'<'.join(WORDS)}]")
    assert list(info.classes) == WORDS
    truth, off_by_one = [i % 5 for i in range(60)], [min(i % 5 + 1, 4) for i in range(60)]
    ours = [info.classes.index(WORDS[grade]) for grade in truth]
    said = cohen_kappa_score(ours, off_by_one, weights="quadratic")
    assert said == cohen_kappa_score(truth, off_by_one, weights="quadratic") > 0.7
    refused(f"{source}[task=ordinal,order={'<'.join(WORDS[:4])}]", "lacks 'Proliferative DR'")
    refused(f"{source}[order={'<'.join([*WORDS, 'Worse'])}]", "column 'label' has no 'Worse'")
    for grades in (["I", "II", "IX", "V"], ["T0", "T1", "T1a", "T2"]):
        path = table(tmp_path, lines("image,label", lambda i, g=grades: f"{i}.png,{g[i % 4]}"))
        refused(f"{path}[task=ordinal]", "grades that are not numbers")


@pytest.mark.parametrize(
    "grades",
    [["-2", "-1", "0", "1", "2"], ["0", "0.5", "0.25", "1", "1.5"], ["9", "10", "11", "2"], ["1.0", "2.0", "10"]],
)
def test_grades_in_numbers_go_by_value(grades: list[str], tmp_path: Path) -> None:
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{grades[i % len(grades)]}"))
    values = [float(name) for name in look(f"{source}[task=ordinal]").classes]
    assert values == sorted(map(float, grades))


def test_decimal_commas(tmp_path: Path) -> None:
    source = table(tmp_path, lines("image;label", lambda i: f"{i}.png;{('0', '0,5', '10', '1,5')[i % 4]}"))
    assert look(f"{source}[task=ordinal]").classes == ("0", "0,5", "1,5", "10")


def test_spellings_of_one_class(tmp_path: Path) -> None:
    spelt = ["Benign", "benign", "BENIGN ", "Malignant", "malignant", "Malignant\u200b"]
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{spelt[i % 6]}"))
    refused(source, "spells classes in several ways", "'Malignant\\u200b'", "spelling=merge", "spelling=keep")
    found = read(f"{source}[spelling=merge]")
    assert {found[f"{i}.png"].casefold() for i in range(60) if i % 6 < 3} == {"benign"}
    assert len(set(found.values())) == 2
    assert len(look(f"{source}[spelling=keep]").classes) == 6
    composed = [unicodedata.normalize("NFC", "Läsion"), unicodedata.normalize("NFD", "Läsion"), "gesund"]
    refused(table(tmp_path, lines("image,label", lambda i: f"{i}.png,{composed[i % 3]}")), "spells classes")


def test_words_for_no_label(tmp_path: Path) -> None:
    words = ["unknown", "-", "None", "?"]
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{'ab'[i % 2] if i % 5 else words[i // 5 % 4]}"))
    refused(source, "t.csv, lines 2, 7, 12", "may mean that there is no label", "missing=ignore", "missing=class")
    assert set(read(f"{source}[missing=ignore]")) == {f"{i}.png" for i in range(60) if i % 5}
    assert finding(f"{source}[missing=ignore]", "rows left out: no label").count == 12
    assert len(look(f"{source}[missing=class]").classes) == 6
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{(-1, 0, 1)[i % 3]}"))
    refused(source, "'-1' in column 'label' may mean that there is no label")
    source = table(tmp_path, lines("image,label", lambda i: f"{i}.png,{('none', 'mild', 'severe')[i % 3]}"))
    assert look(f"{source}[order=none<mild<severe]").classes == ("none", "mild", "severe")


# --- paths in tables (17) and names that are no UTF-8 (18) -----------------------------------------------------


@pytest.mark.parametrize(
    "write, answer",
    [
        (lambda i, top: rf"C:\Users\me\study\img\{i}.png", "strip=C:/Users/me/study"),
        (lambda i, top: f"/mnt/nas/study/img/{i}.png", "strip=/mnt/nas/study"),
        (lambda i, top: f"{i}.png", "root="),
        (lambda i, top: f"img/{i}", "suffix=.png"),
        (lambda i, top: rf"img\{i}.png", ""),
        (lambda i, top: f"file://{top}/img/{i}.png", ""),
        (lambda i, top: f"'./img//{i}.png'", ""),
        (lambda i, top: f"IMG/{i}.PNG", ""),
        (lambda i, top: f"{top}/img/../img/{i}.png", ""),
    ],
)
def test_paths(write: Callable[[int, Path], str], answer: str, tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / "img" / f"{i}.png", i)
    source = table(tmp_path, lines("image,label", lambda i: f"{write(i, tmp_path)},{'ab'[i % 2]}", 40), count=0)
    if answer:
        with pytest.raises(ValueError, match=f"set {answer}") as error:
            look(source).open().fingerprint(28, None)
        option = str(error.value).partition(": set ")[2]
        source = f"{source}[{option}]"
    found = read(source)
    assert {int(name.rpartition("/")[2].split(".")[0]): label for name, label in found.items()} == {
        i: "ab"[i % 2] for i in range(40)
    }


def test_composed_and_decomposed_letters(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / unicodedata.normalize("NFD", f"é{i}.png"), i)
    text = lines("image,label", lambda i: f"{unicodedata.normalize('NFC', f'é{i}.png')},{'ab'[i % 2]}", 40)
    source = table(tmp_path, text, count=0)
    assert len(read(source)) == 40 and finding(source, "differ from the names of their files").count == 40


def test_one_image_in_two_rows(tmp_path: Path) -> None:
    twice = lines("image,label,who", lambda i: f"{'./' if i >= 40 else ''}{i % 40}.png,{'ab'[i % 2]},p{i % 40}", 80)
    source = table(tmp_path, twice)
    assert len(read(source)) == 40 and finding(source, "rows left out: the image of another row").count == 40
    torn = lines("image,label,who", lambda i: f"{i % 40}.png,{'ab'[i % 2]},p{i}")
    refused(f"{table(tmp_path, torn)}[patient=who]", "lines 2, 3", "one image is listed with several patients")
    assert len(read(f"{table(tmp_path, torn)}[patient=who,conflicts=drop]")) == 20
    wrong = lines("image,label", lambda i: f"{i % 40}.png,{'ab'[i % 2 if i < 40 else (i + 1) % 2]}")
    refused(table(tmp_path, wrong), "one image is listed with several labels", "conflicts=drop")
    assert finding(f"{table(tmp_path, wrong)}[conflicts=drop]", "several labels or patients").count == 40
    leak = lines("image,label,set", lambda i: f"{i % 50}.png,{'ab'[i % 2]},{_set(i)}")
    assert finding(f"{table(tmp_path, leak)}[split=set]", "listed in more than one split").severity == "leak"


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    top = tmp_path / "set"
    for kind in ("a", "b"):
        for i in range(20):
            picture(tmp_path / "x.png", i)
            (top / kind).mkdir(exist_ok=True, parents=True)
            os.replace(tmp_path / "x.png", os.fsencode(top / kind) + b"/M\xfcller_%d.png" % i)
    source = f"folder:{top}"
    assert len(read(source)) == 40
    looked = open_entry(look(source), 12, None, tmp_path / "cache", resize="nearest").looked  # a and b are the same
    assert looked.leaks and all(text.encode() for finding in looked.findings for text in finding.examples)
    assert "M\\xfcller_" in looked.leaks[0].examples[0]
    Path(os.fsdecode(os.fsencode(top) + b"/a/M\xfcller_3.png")).write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"a/M\\xfcller_3\.png is not a readable image"):
        open_entry(look(source), 12, None, tmp_path / "cache", resize="nearest")


# --- columns of 0 and 1 (23) -----------------------------------------------------------------------------------


def test_exactly_one_1_in_a_row_is_a_class(tmp_path: Path) -> None:
    kinds = ["MEL", "NV", "BCC"]
    text = lines(f"image,{','.join(kinds)}", lambda i: f"{i},{','.join(str(float(k == i % 3)) for k in range(3))}")
    source = f"{table(tmp_path, text)}[label=MEL+NV+BCC,suffix=.png]"
    frame = pd.read_csv(tmp_path / "t.csv")
    best = frame[kinds].idxmax(axis=1)
    assert read(source) == {f"{name}.png": label for name, label in zip(frame["image"], best, strict=True)}
    assert (look(source).task, finding(source, "exactly one 1").severity) == ("multi-class", "note")
    assert look(f"{source[:-1]},task=multi-label]").task == "multi-label"
    refused(source.partition("[")[0], "(label=MEL+NV+BCC takes those of 0 and 1)")


@pytest.mark.parametrize("how, doubt", [("zero", 0), ("one", 1), ("ignore", None)])
def test_blank_and_uncertain_findings(how: str, doubt: int | None, tmp_path: Path) -> None:
    cells = ["1.0", "0.0", "-1.0", ""]
    text = lines("image,edema,mass", lambda i: f"{i}.png,{cells[i % 4]},{i % 3 % 2}")
    source = table(tmp_path, text)
    refused(f"{source}[label=edema+mass]", "lines 5, 9", "missing=zero")
    refused(f"{source}[label=edema+mass,missing=zero]", "line", "for -1 set uncertain=zero, uncertain=one")
    frame = pd.read_csv(tmp_path / "t.csv").set_index("image")
    frame = frame[frame["edema"] != -1] if doubt is None else frame.replace(-1, doubt)
    wanted = {name: set(row.index[row == 1]) for name, row in frame.fillna(0).iterrows()}
    assert read(f"{source}[label=edema+mass,uncertain={how}]") == wanted


# --- what lies on a scanner's CD (09) --------------------------------------------------------------------------


def scan(path: Path, value: int, patient: str, **fields: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = "1.2.840.10008.5.1.4.1.1.7", f"1.2.{value + 1}", patient
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth, data.Laterality = 2048, 4096, "LR"[value % 2]
    data.PixelData = np.full((4, 4), value * 16, np.uint16).tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_files_of_a_cd(tmp_path: Path) -> None:
    names = ["IM{:06}", "MR.{}.IMA", "{}.dcm", "1.2.840.{}", "{}.MR"]
    for i in range(40):
        scan(tmp_path / "ab"[i % 2] / names[i // 2 % 5].format(i), i, f"p{i // 4}")
    for name in ("DICOMDIR", "LOCKFILE", "VERSION"):
        (tmp_path / "a" / name).write_bytes(bytes(128) + b"DICM" if name == "DICOMDIR" else b"x")
    source = f"folder:{tmp_path}"
    assert len(read(source)) == 40
    assert finding(source, "files of other kinds are left out").count == 3
    splits = look(f"{source}[patient=dicom]").open().load(28, None)
    owners = [set(split.groups) for split in splits.values()]  # type: ignore[union-attr]
    assert set().union(*owners) == {f"p{i}" for i in range(10)} and sum(map(len, owners)) == 10
    with pytest.raises(RegistryError, match="has no StudyInstanceUID in a DICOM header"):
        look(f"{source}[patient=dicom:StudyInstanceUID]")


# --- what may be learnt instead --------------------------------------------------------------------------------


def test_a_column_that_goes_with_the_label(tmp_path: Path) -> None:
    rows = [("icu" if i < 40 else "ward", "ap" if i < 38 or i > 55 else "pa", "FM"[i % 2]) for i in range(60)]
    source = table(tmp_path, lines("image,label,view,sex", lambda i: f"{i}.png,{','.join(rows[i])}"))
    frame = pd.DataFrame(rows, columns=["label", "view", "sex"])
    strength = association(pd.crosstab(frame["label"], frame["view"]).to_numpy(), method="cramer")
    assert f"Cramér's V {strength:.2f}; 38 of 40 'icu' have 'ap'" in finding(source, "'view' goes with the label").text
    assert not any("'sex'" in f.text for f in look(source).findings)


def test_a_column_that_tells_the_label_exactly_is_noted(tmp_path: Path) -> None:
    source = table(tmp_path, lines("image,label,site", lambda i: f"{i}.png,{i % 2},{'AB'[i % 2]}"))
    assert finding(source, "column 'site' tells the label exactly").severity == "note"


HANNOVER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "covid_cxr_hannover" / "labels.csv"


@pytest.mark.skipif(not HANNOVER.is_file(), reason="the real set ../shared/data/covid_cxr_hannover is not here")
def test_the_shortcut_of_the_hannover_set() -> None:
    source = f"csv:{HANNOVER}[label=icu,patient=patient_id]"
    assert "179 of 186 'icu' have 'ap'" in finding(source, "'projection' goes with the label").text
    groups = [set(split.groups) for split in look(source).open().load(28, None).values()]  # type: ignore[union-attr]
    assert sum(map(len, groups)) == len(set().union(*groups)) == pd.read_csv(HANNOVER)["patient_id"].nunique() == 71

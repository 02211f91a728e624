"""``csv:PATH``: columns, labels, patients, splits, and the lines of what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.registry import DatasetInfo, LazySplit, RegistryError, dataset_info


def table(folder: Path, rows: list[str], name: str = "t.csv", pictures: bool = True) -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    for i in range(60 if pictures else 0):
        file = folder / "img" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (5 + i % 3, 4), i).save(file)
    return path


def plain(folder: Path, head: str = "image,label,patient", count: int = 60) -> Path:
    return table(folder, [head, *(f"img/{i}.png,{'yes' if i // 3 % 2 else 'no'},p{i // 3}" for i in range(count))])


def facts(path: Path, options: str = "") -> DatasetInfo:
    return dataset_info(f"csv:{path}{options}", refresh=True)


def load(info: DatasetInfo) -> dict[str, LazySplit]:
    return info.open().load(28, None)  # type: ignore[return-value]


def test_patients_stay_whole(tmp_path: Path) -> None:
    info = facts(plain(tmp_path), "[patient=patient]")
    assert (info.classes, info.task, info.channels) == (("no", "yes"), "binary-class", 1)
    splits = load(info)
    owners = [set(split.groups) for split in splits.values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 20
    for split in splits.values():
        for i, name in enumerate(split.names):
            number = int(name[4:-4])
            assert (split.read(i) == number).all()
            assert split.labels[i] == number // 3 % 2 and split.groups[i] == f"p{number // 3}"


def test_columns_that_would_matter_and_are_not_used_are_named(tmp_path: Path) -> None:
    rows = [f"img/{i}.png,{'yes' if i % 2 else 'no'},p{i // 3},train" for i in range(60)]
    path = table(tmp_path, ["image,label,Patient_ID,split", *rows])
    assert facts(path).traps[:2] == (
        "column 'Patient_ID' is not used: without patient=Patient_ID images of one patient may lie on both sides",
        "column 'split' is not used: set split=split if it is the published split",
    )
    assert not any("is not used" in trap for trap in facts(path, "[patient=Patient_ID,split=split]").traps)


def test_columns_are_compared_without_blanks_and_may_be_separated_otherwise(tmp_path: Path) -> None:
    rows = [
        "\ufeff Image ; Plane ;Train ",
        *(f"{i} ; {'a' if i % 2 else 'b'};{'train' if i < 40 else 'test'}" for i in range(60)),
    ]
    path = table(tmp_path, rows)
    info = facts(path, f"[image=Image,label=Plane,split=Train,root={tmp_path}/img,suffix=.png]")
    assert (info.n_train, info.n_val, info.n_test) == (36, 4, 20)
    assert info.traps == (
        "val was made by medbench, image by image: images of one patient, if there are any, may lie on both sides",
    )
    tabs = table(tmp_path, ["file\tclass", *(f"img/{i}.png\t{i % 3}" for i in range(60))], "t.tsv")
    assert facts(tabs).classes == ("0", "1", "2")  # and the columns were found by their usual names


def test_empty_columns_at_the_end_are_a_spreadsheets(tmp_path: Path) -> None:
    rows = ["image;label;;", *(f"img/{i}.png;{'a' if i % 2 else 'b'};;" for i in range(60)), ";;;"]
    assert facts(table(tmp_path, rows)).classes == ("a", "b")


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    path = table(tmp_path, ["image,label", *(f"img/{i}.png,{float(i % 12)}" for i in range(60))])
    assert facts(path).classes == tuple(str(i) for i in range(12))
    graded = facts(path, "[task=ordinal]")
    assert graded.task == "ordinal-regression"


def test_several_label_columns_are_findings(tmp_path: Path) -> None:
    rows = [
        "image,edema,mass,none of it",
        *(f"img/{i}.png,{i % 2},{int(i % 3 == 0)}.0,{i % 5 == 0}" for i in range(60)),
    ]
    info = facts(table(tmp_path, rows), "[label=edema+mass+none of it]")
    assert (info.task, info.classes) == ("multi-label", ("edema", "mass", "none of it"))
    for split in load(info).values():
        for name, row in zip(split.names, split.labels, strict=True):
            number = int(name[4:-4])
            assert row.tolist() == [number % 2, number % 3 == 0, number % 5 == 0]


def test_an_image_listed_twice_is_in_one_split(tmp_path: Path) -> None:
    rows = ["image,label", *(f"img/{i % 30}.png,{i % 2}" for i in range(60))]
    splits = load(facts(table(tmp_path, rows)))
    names = [set(split.names) for split in splits.values()]
    assert sum(map(len, names)) == 30


def test_patients_on_both_sides_of_a_published_split_are_told(tmp_path: Path) -> None:
    rows = ["image,label,who,split"]
    rows += [f"img/{i}.png,{i % 2},p{i % 20},{('train', 'val', 'test')[i // 20]}" for i in range(60)]
    assert facts(table(tmp_path, rows), "[patient=who,split=split]").traps == (
        "20 patients have images in more than one split",
    )


def test_fingerprints_follow_table_and_images(tmp_path: Path) -> None:
    path = plain(tmp_path)
    first = facts(path).open().fingerprint(28, None)
    path.touch()
    assert facts(path).open().fingerprint(28, None) == first, "the table counts by its content"
    Image.new("L", (4, 4), 3).save(tmp_path / "img" / "3.png")
    second = facts(path).open().fingerprint(28, None)
    path.write_text(path.read_text().replace("p0", "q0"))
    assert len({first, second, facts(path).open().fingerprint(28, None)}) == 3


# --- bad input -------------------------------------------------------------------------------------------------


def refused(path: Path, options: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said) as error:
        facts(path, options)
    assert "\n" not in str(error.value)


def test_wrong_columns(tmp_path: Path) -> None:
    path = plain(tmp_path, "img_file,Diagnosis,patient_id")
    refused(path, "", r"t\.csv: set image=COLUMN in brackets; it has img_file, Diagnosis, patient_id")
    refused(
        path,
        "[image=img_fil]",
        r"t\.csv has no column 'img_fil' \(of the images\) \(did you mean 'img_file'\?\); it has img_file, Diagnosis",
    )
    refused(path, "[image=img_file,label=diagnosis]", r"no column 'diagnosis' .*did you mean 'Diagnosis'")
    refused(path, "[image=img_file,patient=pat]", "no column 'pat'")
    refused(path, "[imag=img_file]", r"imag=img_file: no such option \(did you mean 'image'\?\)")


def test_missing_labels_are_told_by_line(tmp_path: Path) -> None:
    path = plain(tmp_path)
    rows = path.read_text().splitlines()
    for line, value in ((3, ""), (5, "NaN"), (9, " n/a "), (11, "null"), (14, "<NA>"), (20, "")):
        fields = rows[line - 1].split(",")
        rows[line - 1] = f"{fields[0]},{value},{fields[2]}"
    path.write_text("\n".join(rows))
    refused(
        path,
        "",
        r"t\.csv, lines 3, 5, 9, 11, 14 and 1 more: no label in column 'label'; missing=ignore leaves such rows out$",
    )


def test_missing_patients_and_images_are_told_by_line(tmp_path: Path) -> None:
    path = plain(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("no,p2\n", "no,\n"))
    refused(path, "[patient=patient]", r"t\.csv, lines 8, 9 and 10: no patient is named")
    path.write_text(text.replace("img/7.png", ""))
    refused(path, "", r"t\.csv, line 9: no image is named")
    path.write_text(text.replace("img/7.png", "img/seven.png"))
    with pytest.raises(ValueError, match=r"t\.csv, line 9: there is no image .*img/seven\.png \(set root=DIR\?\)"):
        facts(path).open().fingerprint(28, None)


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "t.csv holds nothing; rows of images are expected"),
        ("image,label\n", "t.csv holds a header only; rows of images are expected"),
        ("image,label\na.png\n", "t.csv, line 2: has 1 fields, the header 2"),
        ("image,label, image\na,b,c\n", "t.csv: column 'image' is there twice"),
        ("image,label\na.png,x\nb.png,x\n", "column 'label' holds one class only, 'x'"),
        ("image,label\n\0", "t.csv is not a text table"),
    ],
)
def test_tables_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    refused(path, "[image=image,label=label]", said)


def test_other_faults(tmp_path: Path) -> None:
    refused(tmp_path / "absent.csv", "", r"there is no table .*absent\.csv")
    refused(tmp_path, "", "is not a file; name the table")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("image,label\na.png,gesund\nb.png,Fraktur Elle\nc.png,Läsion\n".encode("latin-1"))
    refused(latin, "", r"latin\.csv, line 4: is not UTF-8; save the table as UTF-8")
    free = table(tmp_path, ["image,label", *(f"img/{i}.png,text {i}" for i in range(60))], "free.csv")
    refused(free, "", "column 'label' holds 60 different values in 60 rows; too many for classes")
    uncertain = table(tmp_path, ["image,a,b", *(f"img/{i}.png,1,{-1 if i == 4 else 0}" for i in range(60))], "u.csv")
    refused(uncertain, "[label=a+b]", r"u\.csv, line 6: column 'b' should hold 0 and 1 only")
    odd = table(
        tmp_path, ["image,label,split", *(f"img/{i}.png,{i % 2},{'fold1' if i == 2 else 'train'}" for i in range(60))]
    )
    refused(odd, "[split=split]", r"t\.csv, line 4: column 'split' should say train, val or test, found 'fold1'")
    refused(odd, "[task=segmentation]", "task=segmentation is none of multi-class, binary-class, multi-label, ordinal")


def test_labels_are_whole_arrays(tmp_path: Path) -> None:
    splits = load(facts(plain(tmp_path)))
    assert all(split.labels.dtype == np.int64 for split in splits.values())


def test_the_positive_class_and_columns_are_named(tmp_path: Path) -> None:
    rows = [
        f"img/{i}.png,{'icu' if i // 3 % 2 else 'no_icu'},p{i // 3},{'FM'[i // 3 % 2]},{20 + i},note {i}"
        for i in range(60)
    ]
    path = table(tmp_path, ["image,label,patient,sex,age,remark", *rows])
    guessed = facts(path, "[patient=patient]")
    assert guessed.positive_class == ("icu", 0, True)
    assert guessed.findings[-1].text == "the positive class is taken to be 'icu'; override with positive=no_icu"
    assert guessed.columns == ("sex", "age") and guessed.subgroups == ()
    info = facts(path, "[patient=patient,positive=no_icu,group=sex+remark]")
    assert info.positive_class == ("no_icu", 1, False)
    assert (info.columns, info.subgroups) == (("sex", "age", "remark"), ("sex", "remark"))
    for split in load(info).values():
        for i, name in enumerate(split.names):
            number = int(name[4:-4])
            assert [split.columns[c][i] for c in info.columns] == [
                "FM"[number // 3 % 2], str(20 + number), f"note {number}",
            ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("positive=icuu", "positive=icuu is none of two classes; its classes are icu, no_icu .did you mean 'icu'"),
        ("group=sexx", "group=sexx: there is no column 'sexx' .did you mean 'sex'.*; the columns are sex"),
    ],
)
def test_a_wrong_class_or_column_is_refused(tmp_path: Path, options: str, said: str) -> None:
    rows = [f"img/{i}.png,{'icu' if i % 2 else 'no_icu'},{'FM'[i % 2]}" for i in range(60)]
    path = table(tmp_path, ["image,label,sex", *rows])
    with pytest.raises(RegistryError, match=said):
        facts(path, f"[{options}]")

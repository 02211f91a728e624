"""What people see of datasets of their own, and what a bare path means."""

from pathlib import Path

import pytest

from bench import registry
from bench.registry import display_names, parse_source
from bench.registry.names import source_of_path


def test_a_source_is_shown_by_its_name_its_stem_or_its_folder() -> None:
    names = {
        "csv:/data/cxr/labels.csv[image=file,label=finding]": "labels",
        "csv:cxr/table.tsv[label=finding,name=thorax]": "thorax",
        "folder:/data/skin.v2": "skin.v2",
        "hf:owner/skin_cancer[small]": "skin_cancer",
        "breastmnist": "breastmnist",
        "pad_ufes_20[split=author]": "pad_ufes_20[split=author]",
        "folder:.": "folder:.",
    }
    assert display_names(names) == names


def test_two_sources_of_one_stem_stay_apart() -> None:
    here, there = "csv:a/labels.csv[label=x]", "csv:b/labels.csv[label=x]"
    assert display_names([here, there]) == {here: "a/labels", there: "b/labels"}
    one, other = "csv:a/labels.csv[label=x]", "csv:a/labels.csv[label=y]"
    assert display_names([one, other]) == {one: "labels[label=x]", other: "labels[label=y]"}
    same = ["csv:a/t.csv[name=cxr]", "csv:b/t.csv[name=cxr]", "csv:a/t.csv", "csv:a/t.tsv"]
    assert len(set(display_names(same).values())) == len(same)


def test_a_source_is_never_shown_as_a_published_set() -> None:
    mine = "folder:copies/breastmnist"
    assert display_names([mine], ["breastmnist"]) == {mine: "copies/breastmnist"}
    assert display_names([mine, "breastmnist"]) == {mine: "copies/breastmnist", "breastmnist": "breastmnist"}


def test_the_name_decides_no_data_and_is_no_option() -> None:
    plain, named = parse_source("csv:a.csv[label=x]"), parse_source("csv:a.csv[name=cxr,label=x]")
    assert named.options == plain.options == (("label", "x"),)
    assert str(plain) == "csv:a.csv[label=x]"  # the spelling that keys of older Records hash
    assert str(named) == "csv:a.csv[label=x,name=cxr]" and str(parse_source(str(named))) == str(named)


def test_a_path_is_taken_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cxr").mkdir()
    for name in ("labels.csv", "labels.xlsx", "photo.png"):
        (tmp_path / "cxr" / name).write_text("x")
    assert source_of_path("cxr") == "folder:cxr"
    assert source_of_path("cxr/labels.csv[label=finding]") == "csv:cxr/labels.csv[label=finding]"
    assert source_of_path("cxr/labels.xlsx") == "csv:cxr/labels.xlsx"  # whose reader says how to save it as CSV
    assert source_of_path("breastmnist") is None
    for path, said in (
        ("cxr/photo.png", "is a file, but no table"),
        ("cxr/label.csv", "dataset 'cxr/label.csv': there is no such file or folder"),
        ("owner/mnist", "on Hugging Face: hf:owner/mnist"),
    ):
        with pytest.raises(registry.RegistryError, match=said):
            source_of_path(path)


def test_registered_names_and_groups_come_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("breastmnist", "phantoms"):
        (tmp_path / name).mkdir()
    assert registry.expand_datasets(["breastmnist"]) == ["breastmnist"]
    assert "phantom_local" in registry.expand_datasets(["phantoms"])

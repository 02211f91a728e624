"""Published figures: the file as it is, and what sets each row apart from ours."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.report.build import Report, write_boards
from bench.report.sections import published as module
from bench.report.sections.published import Published, differences, published
from bench.sweep import recipes

MEDMNIST = {"name": "medmnist", "epochs": 100}
OFFICIAL = "MedMNIST v2, Sci Data 2023, 2D table"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Published]]:
    found: list[Published] = []
    monkeypatch.setattr(module, "published", lambda: tuple(found))
    yield found


def official(auc: float = 0.901, **changes: Any) -> Published:
    row = {"dataset": "breastmnist", "size": 28, "resolution": 224, "resize": "nearest", "ours": "resnet18",
           "model": "ResNet-18 (224)", "pretrained": "no", "auc": auc, "acc": 0.863, "differs": (),
           "recipes": {"medmnist": 100}, "source": OFFICIAL}  # fmt: skip
    return Published(**{**row, **changes})


def row_of(run: Any, **changes: Any) -> Any:
    run.accuracy("resnet18", "breastmnist", 0.89, acc=0.85, **{"resolution": 224, "recipe": MEDMNIST, **changes})
    return Report(run.records).rows[-1]


def test_the_file_is_whole_and_every_row_has_a_source():
    found = published()
    assert len(found) == 621
    assert all(p.source and p.model and p.dataset for p in found)
    assert all(0 <= v <= 1 for p in found for v in (p.auc, p.acc) if v is not None)
    assert {p.ours for p in found if p.ours} <= set(registry.models)
    assert {recipe for p in found for recipe in p.recipes} <= set(recipes.names())
    assert {p.resize for p in found} <= {"", "pad", "nearest"}
    first = next(p for p in found if (p.dataset, p.model) == ("breastmnist", "ResNet-18 (28)"))
    assert (first.auc, first.acc, first.size, first.resolution) == (
        0.901,
        0.863,
        28,
        28,
    )  # the MedMNIST v2 paper, table 3


def test_the_file_is_package_data_with_a_header():
    text = resources.files("bench.report").joinpath("data", "published_results.csv").read_text(encoding="utf-8")
    assert next(csv.reader(text.splitlines()))[:5] == ["dataset", "size", "resolution", "resize", "ours"]


def test_the_official_protocol_is_the_same(run: Any):
    assert differences(row_of(run), official()) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"resolution": 64}, {}, "fed 28→224 px (nearest)"),
        ({}, {"resize": ""}, "the resize rule is not stated"),
        ({}, {"resize": "pad"}, "resized by pad"),
        ({"size": 224}, {}, "fed 28→224 px (nearest)"),
        ({}, {"pretrained": "yes"}, "pretrained there"),
        ({"of": {"weights_sha256": "ab" * 32}}, {}, "trained from scratch there"),
        ({}, {"pretrained": ""}, "whether pretrained is not stated"),
        ({}, {"differs": ("a stem for small images",)}, "a stem for small images"),
        ({"recipe": {"name": "quick", "epochs": 3}}, {}, "our recipe is quick"),
        ({"recipe": {"name": "medmnist", "epochs": 5}}, {}, "we trained 5 epochs of 100"),
        ({}, {"recipes": {}}, "a training procedure of their own"),
    ],
)  # fmt: skip
def test_what_differs_is_named(run: Any, ours: dict[str, Any], theirs: dict[str, Any], words: str):
    assert words in differences(row_of(run, **ours), official(**theirs))


def test_the_difference_stands_beside_both(run: Any, figures: list[Published], tmp_path: Path):
    figures += [official(), official(0.95, pretrained="yes"), official(0.5, dataset="bloodmnist"),
                official(0.6, ours="")]  # fmt: skip
    row_of(run)
    text = write_boards(tmp_path, run.records)[0].read_text()
    section = text.split("## Published figures beside ours")[1].split("\n## ")[0]
    assert "| `breastmnist` | `resnet18` | 0.890 | 0.901 | -0.011 |" in section
    assert "Of the same protocol, as far as it is published" in section
    assert "0.950" not in section, "where the same protocol is published, others are not shown"
    assert f"- \\[1\\] {OFFICIAL}" in section


def test_inside_is_of_trainings_since_the_test_images_are_the_same(run: Any, figures: list[Published], tmp_path: Path):
    figures += [official(0.901)]
    for seed, auc in enumerate((0.88, 0.89, 0.90)):  # by hand: 0.89 +- 4.303 * 0.01 / sqrt(3) = 0.865 to 0.915
        run.accuracy("resnet18", "breastmnist", auc, acc=0.85, seed=seed, resolution=224, recipe=MEDMNIST)
    text = write_boards(tmp_path, run.records)[0].read_text()
    assert "| 0.890 | 0.901 | -0.011 | yes |" in text
    figures[:] = [official(0.916)]
    text = write_boards(tmp_path, run.records)[0].read_text()
    assert "| 0.890 | 0.916 | -0.026 | no |" in text
    assert "95 % interval over trainings" in text


def test_another_protocol_is_marked_and_folded(run: Any, figures: list[Published], tmp_path: Path):
    figures += [official(0.9 + i / 100, pretrained="yes") for i in range(5)]
    row_of(run, recipe={"name": "quick", "epochs": 3})
    text = write_boards(tmp_path, run.records)[0].read_text()
    assert "No published result uses this protocol." in text
    assert "<summary>3 published figures of another protocol, each with what differs</summary>" in text
    assert "| pretrained there; our recipe is quick |" in text


def test_nothing_published_no_section(run: Any, figures: list[Published], tmp_path: Path):
    row_of(run)
    assert "Published" not in write_boards(tmp_path, run.records)[0].read_text()

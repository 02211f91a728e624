"""Traps of datasets stand beside their scores, on the page and in report.html; runs from before have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report.build import write_boards

LEAKS = "images of one patient lie on both sides | so scores are <b>too high</b>"
FACTS = {
    "task": "binary-class", "classes": ["malignant", "normal, benign"], "modality": "breast ultrasound",
    "licence": "CC BY 4.0", "traps": [LEAKS, "156 test images"],
}  # fmt: skip


def test_known_issues_stand_beside_the_scores(run: Any, tmp_path: Path, run_info: dict[str, Any]):
    run.accuracy("resnet18", "breastmnist", 0.8, acc=0.7)
    run.accuracy("resnet18", "phantom_local", 0.9, acc=0.7)
    info = {**run_info, "datasets": {"breastmnist": FACTS, "phantom_local": {"task": "x", "classes": [], "traps": []}}}
    first = write_boards(tmp_path, run.records, info)
    page, html = first[0].read_text(), first[-1].read_text()
    here = page.split("### `breastmnist`")[1].split("### ")[0]
    assert "Breast ultrasound; binary-class, 2 classes; licence CC BY 4.0." in here
    assert "<summary>2 known issues: images of one patient lie on both sides | so scores are &lt;b&gt;too" in here
    assert "- 156 test images" in here
    assert "known issue" not in page.split("### `phantom_local`")[1]
    assert "2 known issues: images of one patient" in html and "<b>too high" not in html
    before = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in write_boards(tmp_path, list(reversed(run.records)), info)] == before


def test_targets_of_transfers_have_theirs_below_the_table(run: Any, tmp_path: Path):
    spec = {"model": "resnet18", "source": "breastmnist", "dataset": "away", "recipe": "quick", "resolution": 64}
    run.accuracy("resnet18", "breastmnist", 0.8, acc=0.7)
    moved = run.efficiency("resnet18", 64, of=spec)
    moved |= {"kind": "transfer", "metrics": {"test_auc": 0.7, "source_test_auc": 0.8}}
    page = write_boards(tmp_path, run.records, {"datasets": {"away": FACTS}})[0].read_text()
    assert "2 known issues" in page.split("## Transfer")[1].split("## By dataset")[0]


def test_what_run_json_says_may_be_anything(run: Any, tmp_path: Path):
    run.accuracy("resnet18", "breastmnist", 0.8, acc=0.7)
    plain = write_boards(tmp_path, run.records, {})[0].read_text()
    odd = {"traps": "no list", "classes": 3}
    for datasets in (None, [], {"breastmnist": []}, {"breastmnist": odd}, {"other": FACTS}):
        assert write_boards(tmp_path, run.records, {"datasets": datasets})[0].read_text() == plain

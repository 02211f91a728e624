"""A user's own datasets on boards: by short names, two of one stem apart, what was asked beside them."""

from pathlib import Path
from typing import Any

from bench.report.build import write_boards

LABELS = "[image=file,label=finding,patient=who]"
HERE, THERE = f"csv:/data/a/labels.csv{LABELS}", f"csv:/data/b/labels.csv{LABELS}"
NAMED = "folder:/scans/of/monday[name=skin]"


def test_boards_show_short_names_and_say_once_what_was_read(run: Any, tmp_path: Path, run_info: dict[str, Any]) -> None:
    for dataset in (HERE, THERE, NAMED, "breastmnist"):
        run.accuracy("resnet18", dataset, 0.8, acc=0.7)
    facts = {"task": "binary-class", "classes": ["a", "b"], "traps": []}
    info = {**run_info, "datasets": {name: facts for name in (HERE, THERE, NAMED)}}
    paths = write_boards(tmp_path, run.records, info)
    page = paths[0].read_text()
    for shown, spelt in (("a/labels", HERE), ("b/labels", THERE), ("skin", NAMED)):
        section = page.split(f"### `{shown}`")[1].split("### ")[0]
        assert f"Read from `{spelt}`." in section and page.count(spelt) == 1
    assert "### `breastmnist`" in page
    assert {line.split(",")[1] for line in paths[1].read_text().splitlines()[1:]} == {
        "a/labels", "b/labels", "skin", "breastmnist",
    }  # fmt: skip

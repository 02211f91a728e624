"""Checklists: the items of each guideline by number, what the records answer, and what is left to the authors."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cli.main import main
from bench.report.build import Report
from bench.report.clinical import checklist as module

ROWS = list(csv.DictReader((Path(module.__file__).parents[1] / "data" / "checklists.csv").open()))


def test_the_items_are_numbered_as_in_the_guidelines() -> None:
    """TRIPOD+AI has 27 items in 52 parts, STARD-AI 40 in 48 rows, CLAIM 44."""
    assert Counter(row["guideline"] for row in ROWS) == {"tripod-ai": 52, "stard-ai": 48, "claim": 44}
    numbers = {g: {row["item"].rstrip("abcdefg") for row in ROWS if row["guideline"] == g} for g in module.GUIDELINES}
    assert {g: len(found) for g, found in numbers.items()} == {"tripod-ai": 27, "stard-ai": 40, "claim": 44}
    for guideline, found in numbers.items():
        assert sorted(map(int, found)) == list(range(1, len(found) + 1)), guideline
    assert {row["topic"] for row in ROWS} - {""} == set(module.ANSWERS)
    assert all(row["asks"] for row in ROWS)


def made(run: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    for model, sharp in (("good", 2.0), ("poor", 0.5)):
        scores, val = (1 / (1 + np.exp(-generator.normal(sharp * labels, 1))) for _ in range(2))
        record = run.accuracy(
            model, "set0", scores=scores, labels=labels, classes=["no", "yes"], positive_class="yes",
            positive_class_guessed=False, test_sensitivity=0.5, params=1_000,
        )  # fmt: skip
        patients = np.array([f"p{i // 2}" for i in range(80)])
        run.arrays[record["key"]] |= {"val_scores": val, "val_labels": labels, "test_patients": patients}
    run.write(tmp_path)


@pytest.mark.parametrize("guideline", module.GUIDELINES)
def test_what_the_records_answer_is_filled_in_and_the_rest_is_asked(run: Any, tmp_path: Path, guideline: str) -> None:
    made(run, tmp_path)
    assert main(["report", str(tmp_path), "--no-figures", "--checklist", guideline, "--sensitivity", "0.9"]) == 0
    lines = (tmp_path / "CHECKLIST.md").read_text().splitlines()
    items = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ") and "asks" not in line}
    assert len(items) == sum(row["guideline"] == guideline for row in ROWS)
    report = Report(run.records, {}, tmp_path / "predictions")
    low, high = report.boards[0].ranked[0].rows["set0"].evidence.interval(report.boards[0].metric)  # type: ignore[union-attr]
    accuracy = {"tripod-ai": "23a", "stard-ai": "31", "claim": "38"}[guideline]
    assert f"`good` on `set0`: AUC {report.rows[0].mean('test_auc'):.3f} ({low:.3f}–{high:.3f})" in items[accuracy]
    assert "sensitivity at threshold" in items[accuracy]
    size = {"tripod-ai": "10", "stard-ai": "22", "claim": "21"}[guideline]
    assert "With 80 images of 40 patients the test resolves a difference in AUC of" in items[size]
    ethics = {"tripod-ai": "17", "stard-ai": "6", "claim": "44"}[guideline]
    assert "**?** to be answered by you" in items[ethics]


def test_an_unknown_guideline_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--checklist", "tripod"])
    assert "did you mean tripod-ai?" in capsys.readouterr().err

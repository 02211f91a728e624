"""What is published under results/ is what the program makes of the records there, and its sweeps find their cells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import spec_key
from bench.report.build import write_boards
from bench.sweep import recipes
from bench.sweep.config import load
from tests.repo import docs_tables

RESULTS = Path(__file__).resolve().parents[2] / "results"


def published(results: Path) -> list[Path]:
    """Run directories of which git tracks cells; where git is not there, all that lie around."""
    listed = subprocess.run(
        ["git", "-C", str(results), "ls-files", "-z", "*/cells/*"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return sorted(path.parent for path in results.glob("*/cells"))
    return sorted({results / name.split("/")[0] for name in listed.stdout.split("\0") if name})


RUNS = published(RESULTS)
BOARDS = ("LEADERBOARD.md", "leaderboard_accuracy.csv", "leaderboard_efficiency.csv")
PUBLISHED = pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)


def test_there_are_results() -> None:
    assert {"breast-retina", "phantoms", "efficiency", "efficiency-repeat"} <= {run.name for run in RUNS}


@PUBLISHED
def test_the_boards_are_made_again_byte_for_byte(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    for name in BOARDS:
        (copy / name).unlink()
    records, problems = store.read_records(copy)
    assert not problems
    write_boards(copy, records, store.read_run(copy))
    for name in BOARDS:
        assert (copy / name).read_bytes() == (run / name).read_bytes(), f"run `bench leaderboard results/{run.name}`"


@PUBLISHED
def test_every_record_is_named_by_what_was_asked(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        record = store.read_record(path)
        assert record["key"] == path.stem == spec_key(record["kind"], record["spec"])


def test_the_sweep_of_the_phantoms_finds_all_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RESULTS.parent)
    plan = make_plan(load(RESULTS / "phantoms" / "sweep.toml", flags={"run.device": "cpu"}))
    assert len(plan.cells) == 108
    assert plan.cells.keys() <= {path.stem for path in (RESULTS / "phantoms" / "cells").glob("*.json")}


def test_each_run_that_the_page_names_is_there_and_each_run_is_named() -> None:
    page = (RESULTS / "README.md").read_text()
    assert set(re.findall(r"^\| \[`([^`]+)`\]", page, re.M)) == {run.name for run in RUNS}


def test_the_excerpt_of_the_readme_is_the_board_of_today() -> None:
    """``python tests/repo/docs_tables.py`` writes it anew."""
    page = (RESULTS.parent / "README.md").read_text()
    assert docs_tables.with_excerpt(page) == page
    assert page.count("| `medmamba_tiny") == 5  # no empty table


def test_recipes_of_today_are_those_of_the_records() -> None:
    """The settings that a published Record was trained with come out of today's recipe of that name and version."""
    seen = set()
    for path in RESULTS.glob("*/cells/*.json"):
        spec = store.read_record(path)["spec"]
        settings = spec.get("recipe_settings")
        if settings and not spec.get("head") and (spec["recipe"], settings["epochs"]) not in seen:
            seen.add((spec["recipe"], settings["epochs"]))
            today = recipes.resolve(spec["recipe"], overrides={k: v for k, v in settings.items() if k != "name"})
            assert {key: today[key] for key in settings} == settings
            assert [type(today[key]) for key in settings] == [type(value) for value in settings.values()]
    assert seen


def test_a_run_in_a_clone_leaves_it_clean_and_its_published_runs_as_they_were(tmp_path: Path) -> None:
    """The two commands of the Makefile in their order, bench and test, at the least that each can be."""
    root, clone = RESULTS.parent, tmp_path / "clone"
    if subprocess.run(["git", "-C", str(root), "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "-q", "--shared", str(root), str(clone)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(clone), "MEDBENCH_DATA": str(tmp_path / "data")}
    run = [sys.executable, "-m", "bench", "run", "--preset", "quick", "--models", "vit_tiny_patch16_224"]
    run += ["--datasets", "phantom_local[train=40]", "--epochs", "1", "--kinds", "accuracy", "--device", "cpu"]
    subprocess.run(run, cwd=clone, env=environment, check=True, capture_output=True)
    assert len(list((clone / "runs" / "quick" / "cells").glob("*.json"))) == 1
    shutil.copytree(clone / "runs" / "quick", clone / "results" / "mine")  # what lies around is not published
    assert {path.name for path in published(clone / "results")} == {path.name for path in RUNS}
    shutil.rmtree(clone / "results" / "mine")
    status = subprocess.run(["git", "-C", str(clone), "status", "--porcelain"], capture_output=True, text=True)
    assert status.stdout == ""

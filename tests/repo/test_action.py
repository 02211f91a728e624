"""The GitHub action and the workflows: well-formed, about files that exist; the check step run as GitHub runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps_of(file: Path) -> list[dict[str, Any]]:
    content = yaml.safe_load(file.read_text())
    return [step for job in content["jobs"].values() for step in job["steps"]]


def test_every_reference_to_an_input_or_output_exists():
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(ACTION["inputs"])
    outputs = set(re.findall(r"steps\.check\.outputs\.([a-z-]+)", text))
    assert outputs == set(ACTION["outputs"])
    script = ACTION["runs"]["steps"][-1]["run"]
    assert outputs == set(re.findall(r'echo "([a-z-]+)=', script))
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"], "inputs reach the script as variables, never as text of it"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_use_what_exists(file: Path):
    for step in steps_of(file):
        if step.get("uses") == "./":
            assert set(step["with"]) <= set(ACTION["inputs"])
        for named in re.findall(r"--config (\S+)", step.get("run", "")):
            assert (ROOT / named).is_file()
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


def test_the_gate_s_sweep_is_valid():
    from bench.sweep import config

    sweep = config.load(ROOT / ".ci" / "gate.toml").sweep
    assert sweep.efficiency.rounds >= 6
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize(("macs", "code"), [(0.5, 0), (0.6, 1)])
def test_the_check_step(tmp_path: Path, macs: float, code: int):
    """A hostile file name stays a name, and the outputs are written whatever the exit code."""
    for name, value in (("before", 0.5), ("now; touch hacked", macs)):
        record = {
            "schema": 1, "key": "0" * 20, "kind": "efficiency", "status": "ok", "reason": "",
            "spec": {"model": "resnet18", "resolution": 64, "batch": 8, "device": "cpu", "hardware": "x", "threads": 2},
            "metrics": {"macs_g": value}, "environment": {},
        }  # fmt: skip
        (tmp_path / name / "cells").mkdir(parents=True)
        (tmp_path / name / "cells" / f"{'0' * 20}.json").write_text(json.dumps(record))
    (tmp_path / "now; touch hacked").rename(tmp_path / "now;touch")
    assert main(["baseline", str(tmp_path / "before"), "--out", str(tmp_path / "base.json")]) == 0
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    variables = {
        "RUN": "now;touch", "BASELINE": "base.json", "FLAGS": "--alpha 0.01", "PYTHON": sys.executable,
        "TEMPORARY": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }  # fmt: skip
    script = ACTION["runs"]["steps"][-1]["run"]
    # as GitHub runs `shell: bash`
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(shell, cwd=tmp_path, env={**path, **variables}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs["exit-code"] == str(code)
    assert json.loads(Path(outputs["json"]).read_text())["exit_code"] == code
    assert "Regression check" in (tmp_path / "summary.md").read_text()

"""The notebook is valid, has no stored outputs, and its cells run from top to bottom."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"

RUN = """
import json, sys
names = {}
for cell in json.loads(sys.argv[1]):
    exec(compile(cell, "cell", "exec"), names)
print(json.dumps({"board": names["board"].model.tolist(), "runs": names["records"].status.tolist()}))
"""


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 5 and not any(cell.outputs for cell in cells)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MEDBENCH_DATA": str(tmp_path / "none")}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([cell.source for cell in cells])],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {"board": ["resnet18"], "runs": ["ok", "ok"]}
    assert "breastmnist: binary-class" in ran.stdout and "train 115" in ran.stdout
    assert (tmp_path / "runs" / "tour" / "LEADERBOARD.md").is_file()

"""A training killed by the kernel's hand, in the middle of an epoch, between two writes: the same bits in the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from bench import registry
from bench.record.cells import AccuracyCell, Context, weights_path, cell_key
from bench.train import checkpoint
from bench.train.accuracy import run_accuracy
from bench.sweep.recipes import resolve

out, kill_after = Path(sys.argv[1]), int(sys.argv[2])
checkpoint.Checkpoint.__dataclass_fields__["every_s"].default = 0.0
checkpoint.Checkpoint.__init__.__defaults__ = (0.0, 0.0)
steps = 0

def stop():
    global steps
    steps += 1
    if steps == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

recipe = resolve("standard", epochs=2, batch_size=128, warmup_epochs=0.5)
cell = AccuracyCell(
    model="timm:test_efficientnet[drop_rate=0.3]", dataset="phantom_local", size=32, resolution=32, resize="native",
    recipe=recipe, seed=3, precision="fp32",
    data_fingerprint=registry.datasets["phantom_local"].open().fingerprint(32, None),
)
context = Context("cpu", 1, None, out / "cache", out, lambda event: None, stop=stop, keep_weights=True)
result = run_accuracy(cell, context)
losses = [row["train_loss"] for row in result.history]
weights = weights_path(out, cell_key(cell)).read_bytes()
print(json.dumps({"losses": losses, "weights": hashlib.sha256(weights).hexdigest(), "auc": result.metrics["test_auc"],
                  "steps": steps, "resumed": result.timings.get("resumed_after_epoch")}))
"""


def train(out: Path, kill_after: int) -> tuple[int, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), str(kill_after)], capture_output=True, text=True, env=environment
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    code, straight = train(tmp_path / "straight", 0)
    assert code == 0, straight
    for kill_after in (3, 4, 9):  # within the first epoch, again within it, in the second
        code, _ = train(tmp_path / "killed", kill_after)
        assert code == -signal.SIGKILL
    code, resumed = train(tmp_path / "killed", 0)
    assert code == 0, resumed
    assert resumed["steps"] < straight["steps"]
    assert {key: resumed[key] for key in ("losses", "weights", "auc")} == {
        key: straight[key] for key in ("losses", "weights", "auc")
    }
    # Killed after the training and before the Record: only the evaluation is done again.
    code, again = train(tmp_path / "killed", 0)
    assert code == 0 and again["steps"] == 0 and again["weights"] == straight["weights"]

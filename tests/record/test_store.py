"""Records on disk: atomic, checked, set aside when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.record import files, store
from bench.record.store import StoreError

ROOT = Path(__file__).resolve().parents[2]


def record(key="k1", **changes):
    return {
        "schema": store.SCHEMA,
        "key": key,
        "kind": "accuracy",
        "status": "ok",
        "reason": "",
        "spec": {"model": "résumé", "seed": 0},
        "metrics": {"test_auc": np.float64(0.5), "bad": float("nan"), "seed": 3, "m": np.eye(2)},
        "environment": {},
        **changes,
    }


def test_round_trip_and_dataframe(tmp_path):
    out = tmp_path / "a run é"
    scores = np.random.default_rng(0).random((4, 2))
    store.write_record(out, record(), {"test_scores": scores}, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "val": 1}])
    (found,), problems = store.read_records(out)
    assert not problems and found["metrics"] == {"test_auc": 0.5, "bad": None, "seed": 3, "m": [[1.0, 0.0], [0.0, 1.0]]}
    assert (np.load(out / "predictions" / "k1.npz", allow_pickle=False)["test_scores"] == scores).all()
    assert (out / "history" / "k1.csv").read_text() == "epoch,loss,val\n1,0.5,\n2,,1\n"
    frame = store.load_records(out)
    assert frame.loc[0, "model"] == "résumé" and frame.loc[0, "metric_seed"] == 3 and frame.loc[0, "seed"] == 0
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["k1.csv", "k1.json", "k1.npz"]  # no temp files


def test_same_record_same_bytes(tmp_path):
    one, two = record(), dict(reversed(record().items()))
    assert store.write_record(tmp_path / "1", one).read_bytes() == store.write_record(tmp_path / "2", two).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"status": "fine"}, "status"), ({"schema": 99}, "schema"), ({"key": "other"}, "file's name")],
)
def test_a_record_that_lies_is_named(tmp_path, change, said):
    path = store.write_record(tmp_path, record())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    records, problems = store.read_records(tmp_path)
    assert not records and said in problems[0] and str(path) in problems[0]


def test_a_torn_record_is_set_aside_not_dropped(tmp_path):
    path = store.write_record(tmp_path, record())
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    _, problems = store.read_records(tmp_path)
    (message,) = store.set_aside(tmp_path, problems)
    assert not path.exists() and (tmp_path / "cells" / "damaged" / "k1.json").read_bytes() == good[: len(good) // 2]
    assert "damaged" in message and store.read_records(tmp_path) == ([], [])


def test_an_invalid_record_is_not_written(tmp_path):
    with pytest.raises(StoreError, match="lacks environment"):
        store.write_record(tmp_path, {k: v for k, v in record().items() if k != "environment"})


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    store.atomic_write(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.json"]


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="--out"):
        store.write_record(tmp_path / "run", record())


KILLED_IN_A_WRITE = """
import os, signal, sys
from pathlib import Path
from bench.record import store
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
store.atomic_write(Path(sys.argv[1]), b"{}")
"""


@pytest.mark.parametrize(
    "name", ["cells/a.json", "predictions/a.npz", "rounds/a/0.json", "run.json", "weights/a.bin", "checkpoints/a.pt"]
)
def test_what_a_killed_driver_was_writing_is_cleared_away(tmp_path, name):
    store.prepare(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED_IN_A_WRITE, str(tmp_path / name)], cwd=ROOT)
    left = [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert len(left) == 1, "the file it had begun"
    files.clear_abandoned(tmp_path)
    assert not left[0].exists()


def test_what_others_may_still_be_writing_stays(tmp_path):
    store.prepare(tmp_path)
    ours, elsewhere, old, strange = (
        tmp_path / "cells" / name
        for name in (
            f".a.json.x1.{os.getpid()}@{files._machine_digest()}", ".a.json.x2.1@0123abcd", ".a.json.x3.1@0123abcd",
            ".notes",
        )
    )  # fmt: skip
    for path in (ours, elsewhere, old, strange):
        path.write_bytes(b"{")
    os.utime(old, (1.0, 1.0))  # no write lasts a day
    files.clear_abandoned(tmp_path)
    assert ours.exists() and elsewhere.exists() and strange.exists() and not old.exists()

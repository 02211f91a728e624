"""Joining runs: companions travel, duplicates stay once, what was changed by hand is refused."""

import json

import numpy as np
import pytest

from bench.cli import main
from bench.record import paths, store
from bench.record.cells import spec_key
from bench.record.merge import merge
from bench.record.store import StoreError


def record(seed=0, kind="accuracy", **changes):
    spec = {"model": "net", "dataset": "set", "seed": seed}
    return {
        "schema": store.SCHEMA,
        "key": spec_key(kind, spec),
        "kind": kind,
        "status": "ok",
        "reason": "",
        "spec": spec,
        "metrics": {"test_auc": 0.5},
        "environment": {"threads": 1},
        **changes,
    }


def write(run, *records):
    for item in records:
        scores = {"test_scores": np.full((2, 2), item["spec"]["seed"])}
        store.write_record(run, item, scores, [{"epoch": 1}])
        (run / "logs").mkdir(exist_ok=True)
        (run / "logs" / f"{item['key']}.log").write_text(f"log of {run.name}")
    store.write_json(run / "run.json", {"command": f"bench run {run.name}", "skipped": [f"left out by {run.name}"]})
    return run


def test_records_travel_with_what_belongs_to_them(tmp_path):
    a, b = write(tmp_path / "a é", record(0)), write(tmp_path / "b", record(0), record(1))
    (b / "splits").mkdir()
    (b / "splits" / "set.csv").write_text("name,label,split,group\n")
    pictures = b / "explain" / record(1)["key"]  # a folder of a Cell's own
    pictures.mkdir(parents=True)
    (pictures / "looks.png").write_bytes(b"picture")
    merged = merge(tmp_path / "out", [a, b])
    assert (merged.added, merged.present, merged.refused, merged.notes) == (2, 1, [], [])
    out = tmp_path / "out"
    assert [r["spec"]["seed"] for r in sorted(store.read_records(out)[0], key=lambda r: r["spec"]["seed"])] == [0, 1]
    for item, origin in ((record(0), a), (record(1), b)):
        for part in ("predictions/{}.npz", "history/{}.csv", "logs/{}.log", "cells/{}.json"):
            name = part.format(item["key"])
            assert (out / name).read_bytes() == (origin / name).read_bytes()
    assert (out / "splits" / "set.csv").is_file()
    assert (out / "explain" / record(1)["key"] / "looks.png").read_bytes() == b"picture"
    info = store.read_run(out)
    assert info["command"].splitlines() == ["bench run a é", "bench run b"] and len(info["skipped"]) == 2
    assert not list(out.rglob(".*"))
    again = merge(out, [a, b])
    assert (again.added, again.present) == (0, 3)


def test_what_is_known_of_datasets_and_what_was_planned_is_joined(tmp_path):
    runs = []
    for i, name in enumerate(("a", "b")):
        run = write(tmp_path / name, record(i))
        datasets = {"set": {"traps": [f"trap of {name}"]}, name: {"traps": []}}
        store.write_json(run / "run.json", {"command": "x", "datasets": datasets, "planned": {"x": ["k", f"k{i}"]}})
        runs.append(run)
    merge(tmp_path / "out", [*runs, write(tmp_path / "old", record(2))])
    info = store.read_run(tmp_path / "out")
    assert info["datasets"] == {"a": {"traps": []}, "b": {"traps": []}, "set": {"traps": ["trap of a"]}}
    assert info["planned"] == {"x": ["k", "k0", "k1"]}


def test_a_result_replaces_a_failure_and_not_the_other_way(tmp_path):
    failed = write(tmp_path / "failed", record(0, status="failed", reason="no"))
    good = write(tmp_path / "good", record(0))
    assert merge(tmp_path / "one", [failed, good]).replaced == 1
    assert merge(tmp_path / "two", [good, failed]).present == 1
    for out in ("one", "two"):
        assert store.read_records(tmp_path / out)[0][0]["status"] == "ok"


def test_scores_that_disagree_are_told(tmp_path):
    a = write(tmp_path / "a", record(0))
    b = write(tmp_path / "b", record(0, metrics={"test_auc": 0.6}, environment={"threads": 2}))
    (note,) = merge(tmp_path / "out", [a, b]).notes
    assert f"cell {record(0)['key']}: its scores differ" in note
    assert store.read_records(tmp_path / "out")[0][0]["metrics"]["test_auc"] == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": {"model": "better", "dataset": "set", "seed": 0}}, "its key should be"),
        ({"schema": 99}, "its schema is 99"),
        ({"metrics": None}, "its metrics is no JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_rest_merged(tmp_path, capsys, change, said):
    run = write(tmp_path / "run", record(0), record(1))
    path = paths.record_path(run, record(0)["key"])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main.main(["merge", str(tmp_path / "out"), str(run)]) == 1
    printed = capsys.readouterr()
    assert said in printed.err and str(path) in printed.err and "1 record added" in printed.out
    assert [r["spec"]["seed"] for r in store.read_records(tmp_path / "out")[0]] == [1]


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    run = write(tmp_path / "run", record(0))
    assert main.main(["merge", str(tmp_path / "out"), str(tmp_path / "nothing")]) == 2
    assert "nothing is not a run directory" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match="merge into"):
        merge(run, [run])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out"):
        merge(tmp_path / "file", [run])


def test_an_older_schema_is_migrated(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MIGRATIONS", {0: lambda old: {**old, "schema": 1, "reason": old.pop("why")}})
    path = store.write_record(tmp_path, record(0))
    old = json.loads(path.read_text())
    path.write_text(json.dumps({**{k: v for k, v in old.items() if k != "reason"}, "schema": 0, "why": "so"}))
    assert store.read_record(path)["reason"] == "so" and store.read_states(tmp_path)[1] == []


def test_one_is_told_as_one(tmp_path, capsys):
    runs = [str(write(tmp_path / name, record(0))) for name in ("a", "b")]
    assert main.main(["merge", str(tmp_path / "out"), *runs]) == 0
    assert "1 record added, 0 replaced (without a result before), 1 was there already" in capsys.readouterr().out

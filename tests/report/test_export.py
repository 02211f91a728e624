"""Every Record as CSV, JSON and Parquet, and as a DataFrame."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.record import store
from bench.report.write.csv import export_records, flat


@pytest.fixture
def out(full_run: Any, tmp_path: Path) -> Path:
    return Path(full_run.write(tmp_path / "run"))


def test_formats_agree_with_the_records(out: Path, full_run: Any, tmp_path: Path):
    frames = {}
    for suffix in ("csv", "json", "parquet"):
        target = tmp_path / f"all.{suffix}"
        rows, problems = export_records(out, target)
        assert rows == len(full_run.records) and problems == []
        frames[suffix] = getattr(pd, f"read_{suffix}")(target).set_index("key")
    for record in full_run.records:
        for frame in frames.values():
            row = frame.loc[record["key"]]
            assert row["status"] == record["status"] and row["model"] == record["spec"]["model"]
            if "test_auc" in record["metrics"]:
                assert row["test_auc"] == pytest.approx(record["metrics"]["test_auc"], rel=1e-12)
                assert row["recipe_settings.learning_rate"] == record["spec"]["recipe_settings"]["learning_rate"]
            assert row["environment.device"] == "cpu"
    assert frames["csv"].columns.tolist() == frames["parquet"].columns.tolist()
    confusion = frames["parquet"]["test_confusion"].dropna().iloc[0]
    assert json.loads(confusion) == [[50, 0], [10, 40]]
    assert frames["json"]["test_confusion"].dropna().iloc[0] == [[50, 0], [10, 40]]


def test_same_records_same_bytes(out: Path, tmp_path: Path):
    for suffix in ("csv", "json", "parquet"):
        first, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        export_records(out, first)
        export_records(out, again)
        assert first.read_bytes() == again.read_bytes()


def test_fields_of_two_kinds_and_of_no_value(run: Any, tmp_path: Path):
    run.accuracy("resnet18", "breastmnist", 0.8, odd=1, empty=None, ratio=1)
    run.accuracy("vit", "breastmnist", 0.8, odd="text", empty=None, ratio=0.5, seed=0, size=28)
    run.records[-1]["metrics"]["model"] = "a metric called model"
    run.write(tmp_path)
    export_records(tmp_path, tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet").set_index("model")
    assert frame.loc["resnet18", "odd"] == "1" and frame.loc["vit", "odd"] == "text"
    assert frame["empty"].isna().all() and frame["ratio"].tolist() == [1.0, 0.5]
    assert frame.loc["vit", "metric_model"] == "a metric called model"


def test_flat_keeps_the_names_of_the_data_frame(full_run: Any):
    for record in full_run.records:
        row = flat(record)
        for name, value in store.flatten(record).items():
            assert isinstance(value, dict) or row[name] == value


def test_unreadable_records_are_told(out: Path, tmp_path: Path):
    (out / "cells" / "torn.json").write_text("{")
    rows, problems = export_records(out, tmp_path / "x.csv")
    assert rows == len(list((out / "cells").glob("*.json"))) - 1
    assert len(problems) == 1 and "torn.json" in problems[0]


def test_unhappy_paths(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(store.StoreError, match=r"x\.xlsx: name a file that ends in \.csv, \.json, \.parquet"):
        export_records(out, tmp_path / "x.xlsx")
    with pytest.raises(store.StoreError, match=r"is not a run directory: it has no cells/ and no run\.json"):
        export_records(tmp_path, tmp_path / "x.csv")
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(store.StoreError, match=r"Parquet needs pyarrow \(pip install pyarrow\)"):
        export_records(out, tmp_path / "x.parquet")


def test_load_records(out: Path, full_run: Any, tmp_path: Path):
    import bench

    frame = bench.load_records(out)
    assert len(frame) == len(full_run.records)
    ok = frame[(frame.kind == "accuracy") & (frame.status == "ok") & (frame.model == "resnet18")]
    assert set(ok.dataset) == {"breastmnist", "phantom_local", "retinamnist"}
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    assert len(bench.load_records(tmp_path / "empty")) == 0
    with pytest.raises(store.StoreError, match=r"nowhere is not a run directory"):
        bench.load_records(tmp_path / "nowhere")


def test_the_commands(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from bench.cli.main import main

    assert main(["export", str(out), str(tmp_path / "x.json")]) == 0
    assert "x.json (" in capsys.readouterr().out and len(json.loads((tmp_path / "x.json").read_text())) > 10
    assert main(["export", str(out), str(tmp_path / "x.xlsx")]) == 2
    assert "x.xlsx: name a file that ends in .csv, .json, .parquet" in capsys.readouterr().err
    (out / "cells" / "torn.json").write_text("{")
    assert main(["report", str(out), "--no-figures"]) == 0
    told = capsys.readouterr()
    assert "report.html" in told.out and "left out: " in told.err and not (out / "figures").exists()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a run directory" in capsys.readouterr().err

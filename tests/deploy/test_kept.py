"""Which weights stay when a run ends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.deploy import kept
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.paths import weights_path
from bench.report.recommend import RecommendError
from bench.sweep.config import load


def _trained(out: Path, key: str, model: str) -> None:
    record = {"schema": store.SCHEMA, "key": key, "kind": "accuracy", "status": "ok", "reason": "", "metrics": {},
              "environment": {}, "spec": {"model": model}}  # fmt: skip
    store.write_record(out, record)
    weights_path(out, key).parent.mkdir(exist_ok=True)
    weights_path(out, key).write_bytes(b"w" * 2**20)


def _picks(monkeypatch: pytest.MonkeyPatch, model: str | None) -> None:
    def chosen(*_: Any) -> Any:
        if model is None:
            raise RecommendError("nothing")
        return SimpleNamespace(model=model)

    monkeypatch.setattr(kept, "recommend", chosen)


def _there(out: Path) -> set[str]:
    return {path.stem for path in (out / "weights").glob("*.safetensors")}


def test_the_recommended_model_and_what_was_asked_for_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, model in (("a0", "good"), ("a1", "good"), ("b0", "poor"), ("c0", "asked")):
        _trained(tmp_path, key, model)
    kept.note_unasked(tmp_path, {"a0", "a1", "b0", "d0"}, {"c0"})
    _picks(monkeypatch, "good")
    line = kept.keep_recommended(tmp_path, Any)  # type: ignore[arg-type]
    assert _there(tmp_path) == {"a0", "a1", "c0"}
    assert line.startswith("Weights of good are kept (2 cells, 2 MiB;") and f"bench export-model {tmp_path}" in line
    # A later command into the same run: what it asks for stays, and the rest is chosen again.
    _trained(tmp_path, "e0", "better")
    kept.note_unasked(tmp_path, {"e0"}, {"a1"})
    _picks(monkeypatch, "better")
    kept.keep_recommended(tmp_path, Any)  # type: ignore[arg-type]
    assert _there(tmp_path) == {"a1", "c0", "e0"}
    _picks(monkeypatch, None)
    assert kept.keep_recommended(tmp_path, Any) == "" and _there(tmp_path) == {"a1", "c0"}  # type: ignore[arg-type]


def test_unasked_weights_have_a_limit_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"sweep.models": "resnet18", "sweep.datasets": "phantom_local", "sweep.resolutions": "32",
             "sweep.seeds": "0,1", "run.device": "cpu"}  # fmt: skip
    plan = make_plan(load(None, None, flags))
    trainings = {key for key, cell in plan.cells.items() if cell.kind == "accuracy"}
    first = min(trainings)
    assert load(None, None, flags).sweep.run.keep_weights == "recommended"
    assert kept.unasked(plan, {first}, plan.cells.keys(), "recommended") == trainings - {first}
    assert kept.unasked(plan, set(), {first}, "recommended") == {first}
    assert not kept.unasked(plan, set(), plan.cells.keys(), False)
    monkeypatch.setattr(kept, "MOST_BYTES", 60 << 20)  # two of resnet18 are 89 MiB
    assert not kept.unasked(plan, set(), plan.cells.keys(), "recommended")

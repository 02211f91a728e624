"""Several trainings in one process: the numbers of each are those it has alone, and each has its own fate.

On the CPU, where threads share everything but streams and graphs; tests/train/test_cuda.py has those.
"""

import os
import signal

import pytest

from bench.record import store
from bench.runner.executors import local
from tests.runner.runs import Listener, run
from tests.runner.test_executor import surroundings  # noqa: F401

pytestmark = pytest.mark.usefixtures("surroundings")


def shared(count, **keys):
    return local.LocalExecutor([local.Slot("cpu", 1, shared=True, **keys)] * count)


def results(out):
    hidden = ("per_s", "packed")
    return {
        record["key"]: {k: v for k, v in record["metrics"].items() if not any(word in k for word in hidden)}
        for record in store.read_records(out)[0]
    }


def test_numbers_are_those_of_a_training_alone(tmp_path):
    keys = {"seeds": range(4), "sweep.epochs": 3}
    run(["place_random"], tmp_path / "alone", executor=local.LocalExecutor([local.Slot("cpu", 1)]), **keys)
    outcome = run(["place_random"], tmp_path / "shared", executor=shared(4), **keys)
    assert len(results(tmp_path / "alone")) == 4 and results(tmp_path / "alone") == results(tmp_path / "shared")
    assert max(record["environment"]["packed"] for record in outcome.written) > 1
    for record in outcome.written:
        assert store.read_record(tmp_path / "shared" / "cells" / f"{record['key']}.json")["status"] == "ok"


def test_a_crash_takes_neighbours_along_and_all_run_again_alone(tmp_path):
    listener = Listener()
    models = ["place_slow", "place_dies"]
    outcome = run(models, tmp_path / "run", listener, executor=shared(2), **{"sweep.epochs": 20})
    by_model = {record["spec"]["model"]: record for record in outcome.written}
    assert by_model["place_slow"]["status"] == "ok"
    assert by_model["place_dies"]["status"] == "failed" and "SIGKILL" in by_model["place_dies"]["reason"]
    again = [said for _, status, said in listener.ended if status is None]
    assert len(again) == 2 and all("SIGKILL" in said and "shared by 2 trainings" in said for said in again)


@pytest.mark.parametrize(
    ("model", "why"),
    [("place_needs_room", "out of memory beside its neighbours"), ("place_choosy", "not deterministic")],
)
def test_what_cannot_share_runs_again_alone_and_its_neighbour_goes_on(model, why, tmp_path):
    listener = Listener()
    outcome = run(["place_slow", model], tmp_path / "run", listener, executor=shared(2))
    assert {record["status"] for record in outcome.written} == {"ok"}
    (said,) = [said for _, status, said in listener.ended if status is None]
    assert why in said and "in a process of its own" in said
    assert "packed" not in {r["spec"]["model"]: r for r in outcome.written}[model]["metrics"]


def test_one_out_of_time_ends_alone(tmp_path):
    keys = {"sweep.epochs": 10_000, "run.timeout_s": 4}
    outcome = run(["place_slow"], tmp_path / "run", executor=shared(2), **keys)
    assert outcome.written[0]["status"] == "timeout" and "4 s" in outcome.written[0]["reason"]


def test_logs_are_apart(tmp_path):
    run(["place_slow"], tmp_path / "run", seeds=(0, 1), executor=shared(2))
    logs = [path.read_text() for path in (tmp_path / "run" / "logs").glob("*.log") if "shared" not in path.name]
    assert len(logs) == 2 and all("a step of an epoch" in text for text in logs)


def test_an_interrupt_keeps_a_checkpoint_of_each(tmp_path):
    training = set()

    def interrupt(label, event):
        training.update({label} if event.get("epoch", 0) > 1 else ())
        if len(training) == 2 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    asked = []
    keys = {"seeds": (0, 1), "sweep.epochs": 2000}
    outcome = run(["place_slow"], tmp_path / "run", Listener(interrupt), executor=shared(2), **keys)
    assert outcome.interrupted and not outcome.written
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2


def test_the_fate_of_a_process_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "OVERTIME_S", 1.0)
    listener = Listener()
    keys = {"run.timeout_s": 3, "sweep.epochs": 2}
    outcome = run(["place_hangs"], tmp_path / "run", listener, executor=shared(2), **keys)
    assert outcome.written[0]["status"] == "timeout"

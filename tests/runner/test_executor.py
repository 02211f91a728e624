"""The local executor: places for workers, packing, and what a run does when the disk or a process fails it."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from bench.plan.plan import make_plan
from bench.record import store
from bench.record.files import this_machine
from bench.runner import storage
from bench.runner.executors import local
from tests.runner.runs import Listener, run, sweep


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """One cache and one folder for what workers tell, for all tests of this file."""
    patch = pytest.MonkeyPatch()
    folder, told = tmp_path_factory.mktemp("places"), Path(tempfile.gettempdir()) / f"places-{os.getpid()}"
    patch.setenv("MEDBENCH_CACHE", str(folder / "cache"))
    patch.delenv("PLACES", raising=False)
    patch.chdir(folder)  # away from the bench.toml of the checkout
    told.mkdir()
    yield told
    patch.undo()
    shutil.rmtree(told)


# --- places ----------------------------------------------------------------------------------------------------------


def test_cores_are_divided_evenly(monkeypatch):
    monkeypatch.setattr(local, "sorted_cores", lambda: [0, 4, 1, 5])
    assert local.make_slots("cpu", False, 0, 1) == [local.Slot("cpu", 4)]
    assert local.make_slots("cpu", False, 0, 2) == [
        local.Slot("cpu", 2, cores=(0, 4)),
        local.Slot("cpu", 2, cores=(1, 5)),
    ]
    assert [s.threads for s in local.make_slots("cpu", False, 1, 2)] == [1, 1]
    assert local.make_slots("cpu", False, 0, 8) == [local.Slot("cpu", 1)] * 8


def test_gpus_of_the_planned_kind_are_filled_one_by_one(monkeypatch):
    gpus = ({"name": "big", "uuid": "GPU-a"}, {"name": "small", "uuid": "GPU-b"}, {"name": "big", "uuid": "GPU-c"})
    monkeypatch.setattr(local, "gpus", lambda: gpus)
    monkeypatch.setattr(local, "sorted_cores", lambda: list(range(8)))
    slots = local.make_slots("cuda:0", True, 0, 2)
    assert [(s.visible_gpus, s.device, s.threads) for s in slots] == [
        ("GPU-a", "cuda:0", 2), ("GPU-c", "cuda:0", 2), ("GPU-a", "cuda:0", 2), ("GPU-c", "cuda:0", 2),
    ]  # fmt: skip
    assert [s.visible_gpus for s in local.make_slots("cuda:1", False, 3, 1)] == ["GPU-b"]


def test_hardware_threads_of_a_core_stay_together(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    read = Path.read_text

    def topology(self, *args, **kwargs):
        cpu = self.parts[-3]
        return {"physical_package_id": "0", "core_id": str(int(cpu[3:]) % 2)}.get(self.name) or read(self)

    monkeypatch.setattr(Path, "read_text", topology)
    assert local.sorted_cores() == [0, 2, 1, 3]


def told(surroundings, count):
    found = [json.loads(path.read_text()) for path in sorted(surroundings.glob("*.json"))]
    for path in surroundings.glob("*.json"):
        path.unlink()
    assert len(found) == count
    return found


@pytest.mark.skipif(len(local.sorted_cores()) < 2, reason="needs two cores")
def test_packed_cells_run_at_a_time_on_cores_of_their_own_and_timed_ones_alone(surroundings, tmp_path):
    (surroundings / "meet").touch()
    kinds = {"sweep.kinds": ["accuracy", "efficiency"], "run.pack": 2}
    outcome = run(["place_tells"], tmp_path / "packed", seeds=(0, 1), **kinds)
    (surroundings / "meet").unlink()
    assert outcome.failed == 0 and len(outcome.written) == 3
    timed, one, two = told(surroundings, 3)
    assert timed["cores"] == sorted(local.sorted_cores()) and timed["ended"] <= min(one["began"], two["began"])
    assert not set(one["cores"]) & set(two["cores"]) and one["threads"] == two["threads"] == len(one["cores"])
    assert max(one["began"], two["began"]) < min(one["ended"], two["ended"]), "they did not run at the same time"
    assert one["group"] and one["oom_score_adj"] == "500"


def test_a_gpu_is_named_before_cuda_starts(surroundings, tmp_path):
    executor = local.LocalExecutor([local.Slot("cpu", 1, visible_gpus="GPU-1234")])
    run(["place_tells"], tmp_path / "gpu", executor=executor)
    assert told(surroundings, 1)[0]["cuda"] == "GPU-1234"


def test_packed_and_single_runs_agree_to_the_bit(tmp_path):
    found = []
    for pack in (1, 3):
        keys = {"run.pack": pack, "run.threads": 1}
        run(["place_plain"], tmp_path / str(pack), seeds=range(4), **keys)
        found.append({r["key"]: steady(r) for r in store.read_records(tmp_path / str(pack))[0]})
    assert len(found[0]) == 4 and found[0] == found[1]


def steady(record):
    return {name: value for name, value in record["metrics"].items() if "per_s" not in name}


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exitcode", "oom", "expected"),
    [
        (-9, True, ("oom", "out of memory")),
        (-9, False, ("failed", "SIGKILL")),
        (-11, False, ("failed", "SIGSEGV")),
        (3, False, ("failed", "exit status 3")),
        (-99, False, ("failed", "signal 99")),
    ],
)
def test_deaths_are_told_apart(exitcode, oom, expected):
    status, reason = local.death(exitcode, oom, neighbours=2)
    assert (status, expected[1] in reason) == (expected[0], True), reason
    assert status != "oom" or "2 cells shared it" in reason


def workers():
    servers = [p for p in psutil.Process().children() if "multiprocessing.forkserver" in " ".join(p.cmdline())]
    return servers, [w for server in servers for w in server.children()]


def test_a_killed_forkserver_loses_no_cell(tmp_path):
    def kill_server(label, event):
        if not killed:
            killed.append(workers()[0][0].pid)
            os.kill(killed[0], signal.SIGKILL)

    killed = []
    listener = Listener(kill_server)
    outcome = run(["place_plain"], tmp_path / "run", listener, seeds=(0, 1))
    assert killed and {r["status"] for r in outcome.written} == {"ok"} and len(outcome.written) == 2
    assert any("will run again" in said for _, _, said in listener.ended)


def test_a_full_disk_is_not_the_fault_of_a_cell(surroundings, tmp_path):
    class MakesRoom(Listener):
        def finish(self, *args, **kwargs):
            super().finish(*args, **kwargs)
            (surroundings / "room").touch()

    listener = MakesRoom()
    outcome = run(["place_full_disk"], tmp_path / "run", listener)
    assert [record["status"] for record in outcome.written] == ["ok"] and len(listener.ended) == 2
    assert "will run again" in listener.ended[0][2] and "No space left" in listener.ended[0][2]


def test_results_wait_in_memory_while_the_run_directory_is_full(tmp_path, monkeypatch):
    out, real = tmp_path / "run", store.atomic_write
    full = threading.Event()

    def write(path, data):
        if full.is_set() and "cells" in str(path):
            raise store.StoreError(f"cannot write {path}: No space left on device; nothing was changed")
        real(path, data)

    def room_again(label, event):
        if not full.is_set() and not listener.notes:
            full.set()
            threading.Timer(1.5, full.clear).start()

    monkeypatch.setattr(store, "atomic_write", write)
    monkeypatch.setattr(store, "unwritable", lambda out: "cannot write RUN: No space left" if full.is_set() else None)
    listener = Listener(room_again)
    outcome = run(["place_plain"], out, listener, seeds=(0, 1))
    assert len(outcome.written) == 2 and {r["status"] for r in store.read_records(out)[0]} == {"ok"}
    assert any("finished results wait in memory" in note for note in listener.notes) and any(
        "continuing" in n for n in listener.notes
    )


def test_a_disk_that_stays_full_ends_the_run_with_what_is_missing(tmp_path, monkeypatch):
    out, real = tmp_path / "run", store.atomic_write

    def write(path, data):
        if "cells" in str(path):
            raise store.StoreError(f"cannot write {path}: No space left on device; nothing was changed")
        real(path, data)

    monkeypatch.setattr(store, "atomic_write", write)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    with pytest.raises(store.StoreError, match="Not saved: place_plain on place_data"):
        run(["place_plain"], out)
    assert not (out / "claims").exists() and not list(out.rglob(".*"))
    monkeypatch.undo()
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    assert run(["place_plain"], out).written[0]["status"] == "ok"


def test_a_read_only_run_directory_is_named(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", read_only)
    with pytest.raises(store.StoreError, match=r"Read-only file system.*--out"):
        store.prepare(tmp_path / "run")


def test_two_drivers_at_once_do_every_cell_once(tmp_path):
    out, outcomes = tmp_path / "run", []

    def drive():
        outcomes.append(run(["place_slow"], out, seeds=range(6)))

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    written = [r["key"] for outcome in outcomes for r in outcome.written]
    assert len(outcomes) == 2 and len(written) == len(set(written)) == 6
    assert sum(outcome.resumed for outcome in outcomes) == 6 and len(store.read_records(out)[0]) == 6
    assert not (out / "claims").exists()


def test_a_waiting_driver_takes_over_from_a_dead_one(tmp_path):
    out = tmp_path / "run"
    loaded = sweep(["place_plain"], out)
    (key,) = make_plan(loaded).cells
    (out / "claims").mkdir(parents=True)
    owner = {"host": "here", "pid": 2**22 + 1, "machine": None, "token": "x", "started": "1"}
    claim = out / "claims" / f"{key}.0.claim"
    claim.write_text(json.dumps({**owner, "machine": "another"}))
    begun = time.monotonic()

    def dies():
        claim.write_text(json.dumps({**owner, "machine": this_machine()}))

    timer = threading.Timer(1.0, dies)
    timer.start()
    listener = Listener()
    assert run(["place_plain"], out, listener).written[0]["status"] == "ok"
    assert time.monotonic() - begun >= 1.0 and any("process 4194305 on here" in note for note in listener.notes)


def test_a_signal_while_everything_is_given_back_cuts_that_not_short(tmp_path):
    class Closing(local.LocalExecutor):
        def close(self):
            os.kill(os.getpid(), signal.SIGINT)
            super().close()

    outcome = run(["place_plain"], tmp_path / "run", executor=Closing([local.Slot("cpu", 1)]))
    assert len(outcome.written) == 1 and not outcome.interrupted and not (tmp_path / "run" / "claims").exists()

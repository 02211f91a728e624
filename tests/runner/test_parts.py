"""The parts of a run by themselves: schedule, storage on a disk that fails, signals. No worker runs here."""

import os
import signal

import pytest

from bench.plan.base import Plan
from bench.record import store
from bench.record.cells import AccuracyCell, EfficiencyCell, Result, cell_key
from bench.record.paths import round_path
from bench.record.store import StoreError
from bench.runner import interrupts, storage
from bench.runner.done import Done
from bench.runner.executors.base import Finished, Job
from bench.runner.interrupts import Interrupts
from bench.runner.leases import Leases
from bench.runner.schedule import Schedule
from bench.runner.storage import Running, Storage
from bench.sweep.recipes import resolve


class Place:
    """An executor with room for so many jobs."""

    def __init__(self, parallel):
        self.parallel, self.running = parallel, {}

    def room(self, job):
        return len(self.running) < self.parallel


class Silent:
    def __init__(self):
        self.skipped, self.notes = [], []

    def skip(self, estimate_s, cells=0):
        self.skipped.append(cells)

    def note(self, text):
        self.notes.append(text)


def training(seed):
    return AccuracyCell(
        "resnet18",
        "phantom_local",
        32,
        32,
        "native",
        resolve("quick", epochs=1),
        seed,
        "fp32",
        data_fingerprint="1",
    )


def timed(rounds=2):
    return EfficiencyCell(
        "resnet18", 32, 1, "fp32", False, "infer", "cpu", "a CPU", 1, "cpu", {}, budget_s=1.0, rounds=rounds
    )


def job(cell, out, number=None):
    return Job(cell_key(cell), cell, number, "cpu", 1, None, out, (), out)


def record(cell, status="ok"):
    key = cell_key(cell)
    empty = {"metrics": {}, "environment": {}, "reason": ""}
    return {"schema": store.SCHEMA, "key": key, "kind": cell.kind, "status": status, "spec": cell.spec(), **empty}


@pytest.fixture
def schedule(tmp_path):
    """Make a schedule of jobs; its executor has two places."""
    opened = []

    def make(jobs):
        plan = Plan("cpu", 1, None, {each.key: each.cell for each in jobs})
        leases = Leases(tmp_path)
        opened.append(leases)
        made = Schedule(plan, Done(tmp_path, {}, {}), jobs, leases, Silent(), Place(2))
        return made

    yield make
    for leases in opened:
        leases.close()


def start(schedule, running):
    """Start what can start, as the driver does."""
    for each in schedule.startable(running):
        running[each.ticket] = schedule.executor.running[each.ticket] = Running(each, each.ticket, 0.0)
    return sorted(running)


def end(schedule, running, ticket):
    del schedule.executor.running[ticket]
    schedule.finished(running.pop(ticket).job)


def test_timed_jobs_run_first_and_alone_the_others_side_by_side(schedule, tmp_path):
    cell = timed()
    jobs = [job(cell, tmp_path, 0), job(cell, tmp_path, 1), *(job(training(seed), tmp_path) for seed in range(3))]
    made, running = schedule(jobs), {}
    for number in range(2):
        assert start(made, running) == [jobs[number].ticket]
        end(made, running, jobs[number].ticket)
    assert start(made, running) == sorted(each.ticket for each in jobs[2:4])
    end(made, running, jobs[2].ticket)
    assert start(made, running) == sorted(each.ticket for each in jobs[3:]) and not made.pending()


def test_what_another_driver_has_or_has_done_is_not_started(schedule, tmp_path):
    jobs = [job(training(seed), tmp_path) for seed in range(2)]
    made, other = schedule(jobs), Leases(tmp_path)
    assert other.take(jobs[0].key)
    store.write_record(tmp_path, record(jobs[1].cell))
    assert start(made, {}) == [] and made.pending() == [jobs[0]]
    assert made.reporter.skipped == [1] and "another `bench run` is using this directory too" in made.reporter.notes[0]
    assert made.patience_s(running=False) and made.patience_s(running=True)
    other.release(jobs[0].key)
    running = {}
    assert start(made, running) == [jobs[0].ticket]
    assert made.patience_s(running=True) is None and not made.taken_over(jobs[0])
    made.give_back(running[jobs[0].ticket].job, again=True)
    assert made.pending() == [jobs[0]] and other.take(jobs[0].key)
    other.close()


def test_a_round_that_is_measured_is_not_measured_again(schedule, tmp_path):
    cell = timed(rounds=2)
    jobs = [job(cell, tmp_path, number) for number in range(2)]
    store.write_json(round_path(tmp_path, jobs[0].key, 0), {"metrics": {}, "environment": {}, "seconds": 1.0})
    assert start(schedule(jobs), {}) == [jobs[1].ticket]


def test_results_wait_until_the_disk_takes_them(tmp_path, monkeypatch):
    notes, running = [], Running(job(training(0), tmp_path), "a training", 0.0)
    store.prepare(tmp_path)
    kept, finished = Storage(tmp_path, notes.append), Finished(Result({}), {"device": "cpu"}, 1.0)
    written, full = store.atomic_write, True

    def write(path, data):
        if full:
            raise StoreError(f"cannot write {path}: No space left on device")
        written(path, data)

    monkeypatch.setattr(store, "atomic_write", write)
    assert kept.write(running, finished) == (False, None) and kept.failing
    monkeypatch.setattr(store, "unwritable", lambda out: "cannot write RUN: No space left on device" if full else None)
    kept.retry(kept.write, stopping=False)
    assert kept.failing and len(notes) == 1 and "finished results wait in memory" in notes[0]
    with pytest.raises(StoreError, match="Not saved: a training; everything else is"):
        kept.retry(kept.write, stopping=True)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    with pytest.raises(StoreError, match=r"No space left on device\. Not saved"):
        kept.retry(kept.write, stopping=False)
    full = False
    kept.retry(kept.write, stopping=False)
    assert not kept.failing and "continuing" in notes[-1]
    assert [found["status"] for found in store.read_records(tmp_path)[0]] == ["ok"]


def test_the_first_signal_asks_and_the_second_ends():
    woken = []
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as asked:
        asked.wake = lambda: woken.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.asked and woken == [1] and asked.deadline
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    with Interrupts() as early, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)  # nothing runs yet that could end gently
    assert early.asked and early.deadline is None and interrupts.GRACE_S < 30

"""Leases of drivers that share a run directory: one holder, dead ones succeeded, no clock compared."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.record.store import StoreError
from bench.runner import leases
from bench.runner.leases import Leases


@pytest.fixture
def two(tmp_path):
    one, other = Leases(tmp_path, 0.05, 0.4), Leases(tmp_path, 0.05, 0.4)
    yield one, other
    one.close()
    other.close()


def foreign(folder, name="cell", number=0, **owner):
    """A lease of another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{number}.claim"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "machine": "another", "token": "t", **owner}))
    return path


def test_one_of_two_has_it_until_it_gives_it_back(two):
    one, other = two
    assert one.take("cell") and one.take("cell") is one.held["cell"]
    assert other.take("cell") is None and str(os.getpid()) in other.holder("cell") and one.holder("cell") is None
    one.release("cell")
    assert other.take("cell") and one.take("cell") is None and not other.lost("cell")


def test_a_driver_between_two_claims_survives_that_another_ends(two, tmp_path):
    one, other = two
    other.close()
    assert not (tmp_path / "claims").exists() and one.take("cell")


def test_of_many_at_once_exactly_one_wins(tmp_path):
    drivers = [Leases(tmp_path, 60) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for number in range(30):
            won = [c for c in pool.map(lambda d, n=f"cell{number}": d.take(n), drivers) if c]
            assert len(won) <= 1  # none, if two stepped back for each other: they try again later
    for driver in drivers:
        driver.close()
    assert not (tmp_path / "claims").exists()


def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path):
    code = (
        f"from bench.runner.leases import Leases; Leases(__import__('pathlib').Path({str(tmp_path)!r})).take('cell')\n"
    )
    code += "import os; os._exit(1)"
    subprocess.run([sys.executable, "-c", code], check=False)
    mine = Leases(tmp_path)
    claim = mine.take("cell")
    assert claim and claim.number == 1 and len(list((tmp_path / "claims").iterdir())) == 2
    mine.release("cell", done=True)
    assert not list((tmp_path / "claims").iterdir())
    mine.close()


def test_a_zombie_and_a_recycled_number_are_dead(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    child.start()
    end = time.monotonic() + 20
    while leases._started(child.pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert leases._started(child.pid) is None  # it has ended and was not waited for
    child.join()
    me = leases.process_identity()
    foreign(tmp_path / "claims", "other", pid=os.getpid(), machine=me["machine"], started="1")
    mine = Leases(tmp_path)
    assert mine.take("other").number == 1
    mine.close()


def test_another_machine_is_respected_while_it_beats(tmp_path):
    path = foreign(tmp_path / "claims")
    mine = Leases(tmp_path, 60, 0.3)
    for beat in range(4):
        os.utime(path, ns=(beat, beat))  # whatever its clock says
        assert mine.take("cell") is None
        time.sleep(0.15)
    time.sleep(0.4)
    assert mine.take("cell").number == 1
    mine.close()


def test_jumping_clocks_make_no_claim_stale(tmp_path, monkeypatch):
    path = foreign(tmp_path / "claims")
    mine = Leases(tmp_path, 60, 30)
    for jump in (0.0, 1e9, -1e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
        os.utime(path, (1.7e9 + jump, 1.7e9 + jump))
        assert mine.take("cell") is None
    mine.close()


def test_a_claim_is_kept_alive_and_its_loss_is_noticed(two, tmp_path):
    one, _ = two
    claim = one.take("cell")
    before = claim.path.stat().st_mtime_ns
    end = time.monotonic() + 20
    while claim.path.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.02)
    assert claim.path.stat().st_mtime_ns > before and not one.lost("cell")
    foreign(tmp_path / "claims", number=1)
    assert one.lost("cell")


def test_an_empty_claim_of_a_crash_expires(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "cell.0.claim").write_bytes(b"")
    mine = Leases(tmp_path, 60, 0.1)
    assert mine.take("cell") is None
    time.sleep(0.2)
    assert mine.take("cell").number == 1
    mine.close()
    assert not (tmp_path / "claims").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="run"):
        Leases(tmp_path / "run")
    mine = Leases(tmp_path / "other")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="No space left"):
            mine.take("cell")
    assert not list((tmp_path / "other" / "claims").iterdir())
    mine.close()

"""Random processes of a running sweep are killed; in the end every Cell has one Record, as if nothing had happened.

The full form leaves its log where ``MEDBENCH_CHAOS_LOG`` says.
"""

import collections
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bench.record.store import read_record
from tests.runner.runs import PLUGIN, ROOT, here, results, wait_for


class Sweep:
    """A sweep in a folder of its own, whose driver is started again whenever it has ended or was killed."""

    def __init__(self, folder, seeds, drivers=1):
        self.folder, self.out, self.drivers = folder, folder / "run", drivers
        self.temporary = Path(tempfile.mkdtemp(prefix="mb-"))  # short: sockets have names of 107 bytes at most
        (folder / "bench.toml").write_text(
            f'[plugins]\npaths = ["{PLUGIN}"]\n[sweep]\nmodels = ["place_slow", "place_plain"]\n'
            'datasets = "place_data"\nresolutions = [28]\nrecipe = "quick"\nepochs = 3\nkinds = ["accuracy"]\n'
            f"seeds = {list(range(seeds))}\n"
            '[run]\nthreads = 1\ndevice = "cpu"\nretry = ["failed"]\npack = 2\n'
        )
        self.running, self.started = [], 0

    def start(self):
        """Have as many drivers as there should be; True if one had ended by itself."""
        ended = any(process.poll() is not None and process.returncode >= 0 for process in self.running)
        self.running = [process for process in self.running if process.poll() is None]
        while len(self.running) < self.drivers and not ended:
            env = {**os.environ, "MEDBENCH_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT)}
            env |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}
            log = (self.folder / "driver.log").open("ab")
            arguments = [sys.executable, "-m", "bench", "run", "--out", "run"]
            self.running.append(subprocess.Popen(arguments, cwd=self.folder, env=env, stdout=log, stderr=log))
            self.started += 1
        return ended

    def processes(self):
        """(what it is, process) of everything that could be killed now."""
        found = []
        for driver in self.running:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(driver.pid)
                found.append(("driver", process))
                for child in process.children():
                    if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                        found.append(("forkserver", child))
                        found += [("worker", worker) for worker in child.children()]
        return [(what, process) for what, process in found if alive(process)]

    def records(self):
        return len(list((self.out / "cells").glob("*.json"))) if self.out.exists() else 0

    def finish(self):
        """Let it come to its end."""
        for _ in range(3):  # the last kills may have left failures: they are tried again by the next start
            self.start()
            for process in self.running:
                process.wait(timeout=600)
            codes = [process.returncode for process in self.running]
            self.running = []
            if codes and not any(codes):
                return
        raise AssertionError((self.folder / "driver.log").read_text()[-3000:])


def alive(process):
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def chaos(sweep, plan, rng, say=lambda text: None):
    """Kill as ``plan`` says (what, how often) in random order, at random moments; return how often each was killed."""
    order = [what for what, count in plan.items() for _ in range(count)]
    rng.shuffle(order)
    done = collections.Counter()
    victims = []
    end = time.monotonic() + 5400  # a busy machine takes a minute for each driver
    while order and time.monotonic() < end:
        if sweep.start():  # all done before all kills: some Records go, as if they had never been
            lost = sorted((sweep.out / "cells").glob("*.json"))
            for path in rng.sample(lost, len(lost) // 2):
                path.unlink()
            sweep.running = []
            continue
        time.sleep(rng.random() * 0.15)
        choices = [process for what, process in sweep.processes() if what == order[0]]
        if not choices:
            continue
        victim = rng.choice(choices)
        with contextlib.suppress(psutil.Error):
            victims += victim.children(recursive=True)
            victim.kill()
            what = order.pop(0)
            done[what] += 1
            say(f"kill {done.total()}: {what} {victim.pid}; {sweep.records()} records; {sweep.started} drivers so far")
            if what == "driver":
                victim.wait(30)
    _, left = psutil.wait_procs(victims, timeout=60)
    assert not left, f"processes outlive what started them: {left}"
    return done


def prove(tmp_path, seeds, plan, drivers, say=lambda text: None, order=7):
    calm, wild = (tmp_path / name for name in ("calm", "wild é"))
    for folder in (calm, wild):
        folder.mkdir()
    undisturbed = Sweep(calm, seeds)
    assert here(calm, "run", "--out", "run")[0] == 0
    sweep = Sweep(wild, seeds, drivers)
    shared = set(os.listdir("/dev/shm"))
    killed = chaos(sweep, plan, random.Random(order), say)
    done = {
        path: path.stat().st_mtime_ns for path in sweep.out.glob("cells/*.json") if read_record(path)["status"] == "ok"
    }
    sweep.finish()
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert killed == collections.Counter(plan)
    expected, found = results(undisturbed.out), results(sweep.out)
    say(f"{killed.total()} kills ({dict(killed)}), {sweep.started} drivers, {len(found)} records")
    assert len(found) == 2 * seeds and found == expected
    assert not list(sweep.out.rglob(".*")) and not (sweep.out / "claims").exists(), "something was left behind"
    assert not list((sweep.out / "checkpoints").glob("*")) and not list((sweep.out / "rounds").glob("*"))
    if not plan.get("forkserver"):  # killed with its driver, it cannot clear away their folder of sockets
        # torch's cache of compiled kernels is meant to stay
        left = lambda: [path for path in sweep.temporary.iterdir() if "torchinductor" not in path.name]  # noqa: E731
        assert wait_for(lambda: not left(), 20), left()
    mine = [name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("torch_")]
    assert not mine, "shared memory is left"
    say("every record is equal to that of the undisturbed run, to the bit; nothing is left behind")


def test_a_few_kills_change_nothing(tmp_path):
    prove(tmp_path, 3, {"worker": 4, "driver": 1}, drivers=1, order=10)  # the driver last: two are started in all


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills_change_nothing(tmp_path):
    log = open(os.environ.get("MEDBENCH_CHAOS_LOG", tmp_path / "chaos.log"), "w", buffering=1)  # noqa: SIM115
    begun = time.monotonic()
    with log:
        plan = {"worker": 85, "driver": 16, "forkserver": 4}
        prove(tmp_path, 25, plan, 2, lambda text: print(f"{time.monotonic() - begun:7.1f} s  {text}", file=log))

"""Cells on a real Ray cluster of several nodes, which are killed meanwhile; and how a driver ends. Long proofs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.runner.runs import results, wait_for

pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """Nodes of a cluster on this machine."""

    def __init__(self, count, cpus=1):
        arguments = [sys.executable, str(HERE / "ray_nodes.py"), str(count), str(cpus)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **QUIET},
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()
        assert ":" in self.address

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == word

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture
def nodes():
    made = []

    def make(count, cpus=1):
        made.append(Nodes(count, cpus))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


STARTED = []


@pytest.fixture(autouse=True)
def no_driver_stays():
    yield
    while STARTED:
        STARTED.pop().kill()


def folder_with(path, seeds, kinds=("accuracy",), models=("place_slow", "place_plain"), epochs=3):
    path.mkdir()
    shutil.copy(HERE / "places_plugin.py", path / "mine.py")
    (path / "bench.toml").write_text(
        f'[plugins]\npaths = ["mine.py"]\n[sweep]\nmodels = {list(models)}\ndatasets = "place_data"\n'
        f'resolutions = [28]\nrecipe = "quick"\nepochs = {epochs}\nkinds = {list(kinds)}\n'
        f"seeds = {list(range(seeds))}\n[efficiency]\nresolutions = [28]\nbatches = [2]\nbudget_s = 0.01\nrounds = 2\n"
        '[run]\nthreads = 1\ndevice = "cpu"\n'
    )
    return path


def start(folder, *arguments, **env):
    temporary = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))
    variables = {
        **os.environ, "MEDBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary), "PLACES": str(folder), **env,
    }  # fmt: skip
    log = (folder / "driver.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", "--out", "run", *arguments], cwd=folder, env=variables, stdout=log,
        stderr=log, start_new_session=True,
        # Where the tests run in the background of a shell, interrupts are ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    STARTED.append(process)
    return process, temporary


def run(folder, *arguments, **env):
    process, _ = start(folder, *arguments, **env)
    assert process.wait(900) == 0, (folder / "driver.log").read_text()[-3000:]


def cells(folder):
    return len(list((folder / "run" / "cells").glob("*.json"))) if (folder / "run").exists() else 0


def say(begun, text):
    if path := os.environ.get("MEDBENCH_CHAOS_LOG"):
        with open(path, "a") as file:
            print(f"{time.monotonic() - begun:7.1f} s  {text}", file=file)


@pytest.mark.parametrize("count", [2, 4])
def test_nodes_that_are_killed_change_nothing(tmp_path, nodes, count):
    begun = time.monotonic()
    calm, wild = folder_with(tmp_path / "calm", 12), folder_with(tmp_path / "wild é", 12)
    run(calm)
    cluster = nodes(count)
    say(begun, f"{count} nodes of one CPU at {cluster.address}; 24 cells")
    process, _ = start(wild, "--executor", "ray", "--ray-address", cluster.address, **QUIET)
    rng = random.Random(3)
    for number in range(count // 2):
        assert wait_for(lambda mark=3 + 4 * number: cells(wild) >= mark), (wild / "driver.log").read_text()[-3000:]
        time.sleep(rng.random())
        cluster.tell("kill")
        say(begun, f"a node is killed; {cells(wild)} records")
        if number:
            cluster.tell("add")
            say(begun, "a node joins")
    assert process.wait(900) == 0, (wild / "driver.log").read_text()[-3000:]
    said = (wild / "driver.log").read_text()
    say(begun, f"all done; said of it: {[line.strip() for line in said.splitlines() if 'will run again' in line]}")
    expected, found = results(calm / "run"), results(wild / "run")
    assert len(found) == 24 and found == expected and not (wild / "run" / "claims").exists()
    assert "will run again" in said and "node" in said
    say(begun, "every record is equal to that of the undisturbed local run, to the bit")


def test_a_killed_driver_is_started_again_on_the_same_cluster(tmp_path, nodes):
    calm, wild = folder_with(tmp_path / "calm", 6), folder_with(tmp_path / "wild", 6)
    run(calm)
    cluster = nodes(2)
    process, _ = start(wild, "--executor", "ray", "--ray-address", cluster.address, **QUIET)
    assert wait_for(lambda: cells(wild) >= 2), (wild / "driver.log").read_text()[-3000:]
    process.kill()
    process.wait()
    assert cells(wild) < 12
    assert wait_for(lambda: not cell_processes(wild), 30), "cells outlive their driver"
    run(wild, "--executor", "ray", "--ray-address", cluster.address, **QUIET)
    assert results(wild / "run") == results(calm / "run") and len(results(calm / "run")) == 12


def cell_processes(folder):
    """Processes that write into the logs of a run: its cells."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "run" / "logs") in os.readlink(f"/proc/{process.pid}/fd/1"):
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_of_our_own_ends_with_its_driver(tmp_path, number):
    folder = folder_with(tmp_path / "own", 1, models=("place_slow",), epochs=200)
    process, temporary = start(folder, "--executor", "ray")
    log = folder / "run" / "logs"
    assert wait_for(lambda: sum(path.read_text().count("a step") for path in log.glob("*.log")) >= 8)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in " ".join(member.cmdline()) for member in family)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
    else:
        process.kill()
    code = process.wait(120)
    _, alive = psutil.wait_procs(family, timeout=90)
    assert not alive, f"they outlive the run: {alive}"
    if number == signal.SIGINT:
        assert code == 130 and len(list((folder / "run" / "checkpoints").glob("*.pt"))) == 1
        left = [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]  # torch's own, empty
        assert not left and not list(Path("/tmp").glob(f"medbench-ray-{process.pid}-*"))
        assert "checkpoint kept" in (folder / "driver.log").read_text()


def test_what_nodes_leave_comes_back_where_the_run_directory_is_not_shared(tmp_path, nodes):
    local, away = folder_with(tmp_path / "local", 3), folder_with(tmp_path / "away", 3)
    run(local, "--keep-weights")
    cluster = nodes(2)
    script = away / "driver.py"
    script.write_text(
        "import sys\nfrom bench.cli import main as cli\nfrom bench.runner.executors import ray\n"
        "ray.run_stamp = lambda out: (1, 1, 1)\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    env = {
        **os.environ,
        **QUIET,
        "MEDBENCH_CACHE": str(away / "cache"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    arguments = ["run", "--out", "run", "--keep-weights", "--executor", "ray", "--ray-address", cluster.address]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=away, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert results(away / "run") == results(local / "run") and len(results(local / "run")) == 6
    for pattern in ("weights/*.safetensors", "logs/*.log", "history/*.csv"):
        names = sorted(path.name for path in (local / "run").glob(pattern))
        assert names and names == sorted(path.name for path in (away / "run").glob(pattern)), pattern
    for path in (local / "run" / "weights").iterdir():
        assert path.read_bytes() == (away / "run" / "weights" / path.name).read_bytes()
    assert not list((away / "run" / "checkpoints").glob("*"))

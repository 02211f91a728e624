"""How a run ends when it is asked to: gently with a checkpoint, at once, or with its driver; nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bench.record import store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EPOCHS = 20


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a user é"
    path.mkdir()
    shutil.copy(HERE / "places_plugin.py", path / "mine.py")
    (path / "bench.toml").write_text(
        '[plugins]\npaths = ["mine.py"]\n[sweep]\nmodels = "place_slow"\ndatasets = "place_data"\nresolutions = [28]\n'
        f'recipe = "quick"\nepochs = {EPOCHS}\nkinds = ["accuracy"]\nseeds = [0, 1]\n'
        '[run]\nthreads = 1\ndevice = "cpu"\nout = "run"\n'
    )
    return path


def start(folder):
    """A run that is in the middle of its first training, its processes, and its folder for temporary files."""
    temporary, before = Path(tempfile.mkdtemp(prefix="mb-")), steps(folder)
    env = {**os.environ, "MEDBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run"], cwd=folder, env={**env, "PLACES": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # whoever runs the tests in the background may have had SIGINT ignored for all its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert wait_for(lambda: steps(folder) >= before + 8)
    return process, psutil.Process(process.pid).children(recursive=True), temporary


def steps(folder):
    """Forward passes so far: the plug-in's network prints a line at each."""
    return sum(path.read_text().count("a step of an epoch") for path in (folder / "run" / "logs").glob("*.log"))


def end(process, family, temporary):
    said, _ = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "processes outlive the run"
    # torch's cache of compiled kernels is meant to stay
    left = lambda: [path for path in temporary.iterdir() if "torchinductor" not in path.name]  # noqa: E731
    assert wait_for(lambda: not left(), 10), left()
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_asked_once_a_training_keeps_a_checkpoint_and_goes_on_from_it(folder, number):
    process, family, temporary = start(folder)
    process.send_signal(number)
    code, said = end(process, family, temporary)
    assert code == 130 and "keep a checkpoint" in said and "goes on where it stopped" in said
    (checkpoint,) = (folder / "run" / "checkpoints").iterdir()
    assert checkpoint.suffix == ".pt" and not store.read_records(folder / "run")[0]
    assert not (folder / "run" / "claims").exists() and not list((folder / "run").rglob(".*"))
    (folder / "bench.toml").write_text((folder / "bench.toml").read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    again, family, temporary = start(folder)
    assert end(again, family, temporary)[0] == 0
    (record,) = store.read_records(folder / "run")[0]
    assert record["timings"]["resumed_after_epoch"] >= 0 and record["metrics"]["epochs"] == EPOCHS
    assert not list((folder / "run" / "checkpoints").iterdir())


def test_asked_twice_it_stops_at_once(folder):
    process, family, temporary = start(folder)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    begun = time.monotonic()
    code, said = end(process, family, temporary)
    assert code == 130, said
    assert time.monotonic() - begun < 60 and not (folder / "run" / "claims").exists()


def test_a_killed_driver_leaves_nothing_running_and_no_temporary_file(folder):
    process, family, temporary = start(folder)
    process.kill()
    end(process, family, temporary)

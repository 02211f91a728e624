"""How a run ends when it is asked to: gently with a checkpoint, or at once; nothing stays behind."""

import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bench.record import store
from tests.runner.runs import PLUGIN, apart, here, wait_for

EPOCHS = 20


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a user é"
    path.mkdir()
    (path / "bench.toml").write_text(
        f'[plugins]\npaths = ["{PLUGIN}"]\n[sweep]\nmodels = "place_slow"\ndatasets = "place_data"\n'
        f'resolutions = [28]\nrecipe = "quick"\nepochs = {EPOCHS}\nkinds = ["accuracy"]\nseeds = [0, 1]\n'
        '[run]\nthreads = 1\ndevice = "cpu"\nout = "run"\n'
    )
    return path


def start(folder):
    """A run that is in the middle of its first training, its processes, and its folder for temporary files."""
    temporary = Path(tempfile.mkdtemp(prefix="mb-"))
    process = apart(folder, "run", TMPDIR=str(temporary))
    assert wait_for(lambda: steps(folder) >= 8)
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
    assert (
        code == 130
        and "stopping after the current epoch (checkpoint kept" in said
        and "run the same command again to resume" in said
    )
    (checkpoint,) = (folder / "run" / "checkpoints").iterdir()
    assert checkpoint.suffix == ".pt" and not store.read_records(folder / "run")[0]
    assert not (folder / "run" / "claims").exists() and not list((folder / "run").rglob(".*"))
    (folder / "bench.toml").write_text((folder / "bench.toml").read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    assert here(folder, "run")[0] == 0
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

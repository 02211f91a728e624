"""The Ray executor: what fits where, what users are told, what comes back from a node; and one small run for real."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.plan.plan import make_plan
from bench.record import store
from bench.runner.executors import ray as executor
from bench.runner.executors import ray_cluster, ray_worker
from bench.runner.executors.base import Event, Job
from bench.runner.executors.ray_cluster import Cluster, Shape
from bench.runner.executors.ray_worker import Said
from bench.sweep import config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def node(cpus, gpus=0, memory_gib=8, alive=True, name="a"):
    resources = {"CPU": cpus, "GPU": gpus, "memory": memory_gib * 2.0**30}
    return {"Alive": alive, "Resources": resources, "NodeManagerHostname": name, "NodeID": (name * 56)[:56]}


def cluster(*nodes, own=False):
    context = SimpleNamespace(get_node_id=lambda: "a" * 56)
    fake = SimpleNamespace(nodes=lambda: list(nodes), get_runtime_context=lambda: context, put=lambda data: data)
    return Cluster(fake, "the Ray cluster at here:1", own=own)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(2), 2 + 8 + 1),
        (Shape(2, 0.5), 4),  # two GPUs, each shared by two
        (Shape(3, 1.0), 2),
        (Shape(1, 0.0, 4.0), 2 + 4 + 1),  # by memory
        (Shape(32), 0),
    ],
)
def test_cells_are_counted_by_what_is_scarcest_on_each_node(shape, expected):
    found = cluster(node(4), node(16, gpus=2, memory_gib=16), node(2, memory_gib=4), node(64, alive=False))
    assert found.capacity(shape) == expected


def test_where_nothing_fits_the_nodes_are_named():
    found = cluster(node(4, name="small"))
    text = found.no_place(Shape(8, 0.5, 3.0))
    assert "8 CPUs (--threads), 0.5 GPU (1 / --pack), 3 GiB (run.ray_memory_gib)" in text
    assert "small: 4 CPU, 0 GPU, 8.0 GiB" in text
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    assert ray
    with pytest.raises(config.ConfigError, match=r"offers Ray no CPU.*--kinds accuracy"):
        cluster(node(0), node(8, name="b")).whole_node(Shape(1))
    with pytest.raises(config.ConfigError, match="offers Ray no GPU"):
        cluster(node(8), node(8, gpus=1, name="b")).whole_node(Shape(1, 1.0))
    whole = cluster(node(8, gpus=2)).whole_node(Shape(1, 0.5))
    assert (whole["num_cpus"], whole["num_gpus"]) == (8, 2)


def test_a_sweep_asks_for_what_its_cells_need(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    flags = {
        "sweep.models": ["resnet18"], "sweep.datasets": ["phantom_local"], "sweep.resolutions": [32],
        "sweep.kinds": ["accuracy"], "run.device": "cpu", "run.executor": "ray", "run.threads": 3,
        "run.ray_memory_gib": 2.0, "run.ray_address": "head:6379", "plugins": [str(tmp_path / "mine.py")],
    }  # fmt: skip
    loaded = config.load(flags=flags)
    made = executor.make(loaded, make_plan(loaded))
    assert made.shape == Shape(3, 0.0, 2.0) and made.address == "head:6379" and made.trains
    assert list(made.plugins.values()) == [b"x = 1\n"]
    made.close()
    with pytest.raises(config.ConfigError, match=r"did you mean 'ray'|should be 'local' or 'ray'"):
        config.load(flags={"run.executor": "rai"})


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(config.ConfigError, match=r"pip install 'medbench\[ray\]'"):
        ray_cluster.join(None, False)


def test_an_address_that_does_not_answer_is_refused_within_seconds(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        begun = time.monotonic()
        with pytest.raises(config.ConfigError, match=r"no Ray cluster answers at 127.0.0.1:\d+ within 5 s"):
            ray_cluster.join(f"127.0.0.1:{taken.getsockname()[1]}", False)
        assert time.monotonic() - begun < 60
    for wrong in ("ray://head:10001", "head", "head:"):
        with pytest.raises(config.ConfigError, match="write host:port"):
            ray_cluster.join(wrong, False)


def test_signal_handlers_stay_ours():
    import signal

    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with ray_cluster._own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("The actor died unexpectedly before finishing this task. The actor died because its node has died.", "node"),
        ("The actor died\nModuleNotFoundError: No module named 'bench'\n", "No module named 'bench'"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "process"),
        ("RuntimeError: node b has version 2 of medbench, the driver 1", "node b has version 2 of medbench, the"),
        ("", "RuntimeError"),
    ],
)
def test_reasons_are_one_line(raised, expected):
    found = ray_cluster.why_lost(RuntimeError(raised))
    assert expected in found and "\n" not in found


# --- what travels ----------------------------------------------------------------------------------------------------


def job(out, **more):
    cell = SimpleNamespace(dataset="x")
    return Job("k", cell, None, "cpu", 1, None, out, **{"plugins": (), "plugin_base": out, **more})  # type: ignore


def test_a_run_directory_is_known_by_its_file_and_not_by_its_path(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert ray_worker.run_stamp(one) is None
    one.mkdir()
    (one / "run.json").write_text("{}")
    shutil.copytree(one, two)
    os.symlink(one, tmp_path / "link")
    assert ray_worker.run_stamp(one) == ray_worker.run_stamp(tmp_path / "link") != ray_worker.run_stamp(two)


def test_files_of_a_node_are_put_in_their_place(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "k.log").write_text("first try\n")
    made = executor.RayExecutor(None, Shape(1), "cpu", True, {}, True)
    place = executor._Place(None, False, job(tmp_path))
    files = {"logs/k.log": b"second\n", "weights/k.safetensors": b"w"}
    assert made._hear(place, Said("a", Event("k", "stopped"), files)).kind == "stopped"
    assert (tmp_path / "logs" / "k.log").read_text() == "first try\nsecond\n"
    assert (tmp_path / "weights" / "k.safetensors").read_bytes() == b"w" and place.job is None
    place = executor._Place(None, False, job(tmp_path / "logs" / "k.log"))
    assert made._hear(place, Said("a", Event("k", "stopped"), files)).kind == "lost"
    made.close()


def test_a_cluster_that_gives_no_worker_three_times_ends_the_run(tmp_path):
    made = executor.RayExecutor(None, Shape(1), "cpu", True, {}, True)

    def lost(error, **known):
        place = executor._Place(None, False, job(tmp_path), **known)
        made.places.append(place)
        return made._lost(place, RuntimeError(error))

    assert lost("gone", node="a").reason == "node a: gone" and lost("gone", stopping=True).kind == "stopped"
    with pytest.raises(config.ConfigError, match="No module named 'bench'; install the same medbench there"):
        lost("x\nModuleNotFoundError: No module named 'bench'\n")
    assert lost("no room").kind == "lost"
    with pytest.raises(config.ConfigError, match="cannot run cells: no room"):
        lost("no room")
    made.close()


class Silent:
    """Stands for the local executor of a worker."""

    def __init__(self, events=()):
        self.events, self.submitted, self.cancelled = list(events), None, []

    def submit(self, job):
        self.submitted = job
        for name in ("checkpoints/k.pt", "logs/k.log", "weights/k.safetensors"):
            (job.out / name).parent.mkdir(exist_ok=True)
            (job.out / name).write_bytes(b"new")

    def wait(self, timeout_s):
        return [self.events.pop(0)] if self.events else []

    def cancel(self, ticket, gently):
        self.cancelled.append((ticket, gently))
        self.events.append(Event(ticket, "stopped"))

    def wake(self):
        pass


def worker(tmp_path, events=(), plugins=None):
    found = object.__new__(ray_worker.RayWorker)
    found.plugins, found.download, found.asked = plugins or {}, True, None
    found.sound, found.executor, found.folder = set(), Silent(events), tmp_path
    found._data = lambda job: None
    return found


def test_a_node_without_the_run_directory_gets_what_a_job_reads_and_sends_what_it_leaves(tmp_path):
    far = worker(tmp_path, [Event("k", "progress"), Event("k", "stopped")])
    inputs = {"checkpoints/k.pt": b"old", "predictions/s.npz": b"p"}
    said = far.run(job(tmp_path / "nowhere"), (1, 2, 3), inputs)
    assert next(said).node == os.uname().nodename  # before anything else, so that the driver knows
    assert next(said).event.kind == "progress"
    assert far.executor.submitted.out.parent == tmp_path
    assert (far.executor.submitted.out / "predictions" / "s.npz").read_bytes() == b"p"
    (last,) = said
    assert last.files == {name: b"new" for name in ("checkpoints/k.pt", "logs/k.log", "weights/k.safetensors")}
    assert not far.executor.submitted.out.exists()


def test_a_job_that_is_cancelled_before_it_speaks_is_cancelled(tmp_path):
    far = worker(tmp_path)
    far.cancel("k", gently=True)
    assert [said.event.kind for said in far.run(job(tmp_path), None, {})] == ["progress", "stopped"]
    assert far.executor.cancelled == [("k", True)]
    far.executor.events.append(Event("k", "stopped"))
    far.cancel("an earlier one", gently=True)
    assert len(list(far.run(job(tmp_path), None, {}))) == 2
    assert far.executor.cancelled == [("k", True)]


def test_what_a_node_cannot_do_is_lost_and_not_failed(tmp_path):
    far = worker(tmp_path)

    def no_data(job):
        raise ValueError("x at 28 pixels is not the data that the driver has; copy it to this node")

    far._data = no_data
    event = list(far.run(job(tmp_path), None, {}))[-1].event
    assert event.kind == "lost" and "copy it to this node" in event.reason


def test_plugins_are_taken_from_the_driver_unless_they_are_the_same(tmp_path):
    (tmp_path / "same.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("x = 2\n")
    far = worker(tmp_path, plugins={"same.py": b"x = 1\n", "other.py": b"x = 3\n"})
    assert far._plugin("same.py", tmp_path) == "same.py" and far._plugin("module", tmp_path) == "module"
    assert Path(far._plugin("other.py", tmp_path)).read_bytes() == b"x = 3\n"


# --- for real --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_small_sweep_runs_on_a_cluster_of_this_machine_and_nothing_stays_behind(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
    shutil.copy(HERE / "places_plugin.py", tmp_path / "mine.py")
    (tmp_path / "bench.toml").write_text(
        '[plugins]\npaths = ["mine.py"]\n[sweep]\nmodels = "place_plain"\ndatasets = "place_data"\nresolutions = [28]\n'
        'recipe = "quick"\nepochs = 1\nkinds = ["accuracy"]\nseeds = [0, 1]\n'
        '[run]\ndevice = "cpu"\nout = "run"\nexecutor = "ray"\n'  # all threads: one place, so torch is imported once
    )
    temporary = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))
    env = {**os.environ, "MEDBENCH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    env = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr == ""
    records, _ = store.read_records(tmp_path / "run")
    assert len(records) == 2 and all(record["status"] == "ok" for record in records)
    assert {record["environment"]["node"] for record in records} == {os.uname().nodename}
    left_files = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor")]  # torch's own
    assert not left_files, "temporary files are left"
    left = [process for process in psutil.process_iter() if str(temporary) in " ".join(_words(process))]
    assert not left and not (tmp_path / "run" / "claims").exists()
    shutil.rmtree(temporary)


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []

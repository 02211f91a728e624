"""Runs of real worker processes: every kind of fault, resuming, kills and Ctrl-C."""

import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import bench
from bench.cli.main import main
from bench.record import store
from tests.runner.runs import PLUGIN, ROOT, apart, here, interrupt_when, wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: a bench.toml that names a plug-in."""
    path = tmp_path_factory.mktemp("a user é")
    (path / "bench.toml").write_text(
        f'[plugins]\npaths = ["{PLUGIN}"]\n'
        '[sweep]\ndatasets = "place_data"\nresolutions = [28]\nrecipe = "quick"\nepochs = 2\n'
        "[efficiency]\nbatches = [4]\nbudget_s = 0.02\nrounds = 2\n"
        "[run]\nthreads = 1\ndownload = false\n"
    )
    return path


def finish(process):
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


ALL = ["run", "--models", "place_plain,faulty", "--out", "faulty"]


@pytest.fixture(scope="module")
def faulty_run(folder):
    """One sweep over models that fail in all ways, and what it printed; the one that hangs came first."""
    here(folder, "run", "--models", "place_hangs", "--timeout", 2, "--out", "faulty")
    code, said = here(folder, *ALL)
    return folder / "faulty", code, said


def test_every_fault_is_a_record_and_the_sweep_goes_on(faulty_run):
    out, code, said = faulty_run
    frame = store.load_records(out)
    accuracy = frame[frame.kind == "accuracy"].set_index("model")
    assert accuracy.status.to_dict() == {
        "place_plain": "ok",
        "place_raises": "failed",
        "place_dies": "failed",
        "place_out_of_memory": "oom",
        "place_hangs": "timeout",
        "place_picky": "unsupported",
    }
    assert (
        "a planted fault" in accuracy.reason["place_raises"] and "places_plugin.py" in accuracy.reason["place_raises"]
    )
    assert "SIGKILL" in accuracy.reason["place_dies"]
    assert "2 s" in accuracy.reason["place_hangs"]
    assert accuracy.reason["place_picky"] == "only at 29 pixels"
    efficiency = frame[frame.kind == "efficiency"].set_index("model")
    assert efficiency.status["place_plain"] == "ok" and efficiency.status["place_dies"] == "failed"
    assert code == 1 and "--retry" in said
    board = (out / "LEADERBOARD.md").read_text()
    for model in accuracy.index:
        assert model in board
    (raised,) = [
        r for r in store.read_records(out)[0] if r["spec"]["model"] == "place_raises" and r["kind"] == "accuracy"
    ]
    assert any("planted" in line for line in raised["log_tail"])


def test_a_good_cell_has_all_its_parts(faulty_run):
    out, _, _ = faulty_run
    (record,) = [
        r for r in store.read_records(out)[0] if (r["spec"]["model"], r["kind"]) == ("place_plain", "accuracy")
    ]
    spec = record["spec"]
    assert {k: spec[k] for k in ("dataset", "size", "resolution", "resize", "recipe", "seed")} == {
        "dataset": "place_data", "size": 28, "resolution": 28, "resize": "native", "recipe": "quick", "seed": 0,
    }  # fmt: skip
    scores = np.load(out / "predictions" / f"{record['key']}.npz", allow_pickle=False)
    assert scores["test_scores"].shape == (12, 2) and scores["val_labels"].shape == (12,)
    np.testing.assert_allclose(scores["test_scores"].sum(1), 1)
    assert (scores["test_scores"].argmax(1) == scores["test_labels"]).mean() == record["metrics"]["test_acc"]
    assert len((out / "history" / f"{record['key']}.csv").read_text().splitlines()) == 3
    assert record["environment"]["threads"] == 1 and record["environment"]["versions"]["torch"]


def test_efficiency_rounds_are_combined_and_cleared(faulty_run):
    out, _, _ = faulty_run
    (record,) = [
        r for r in store.read_records(out)[0] if (r["spec"]["model"], r["kind"]) == ("place_plain", "efficiency")
    ]
    assert record["metrics"]["params"] == 16 * 3 * 1000 + 1000
    assert record["metrics"]["throughput_images_per_s_p50"] > 0 and record["metrics"]["latency_ms_p50"] > 0
    assert not list((out / "rounds").glob("*/*"))


def test_rounds_without_their_record_are_combined_and_a_torn_round_is_measured_again(folder):
    arguments = ["run", "--models", "place_plain", "--kinds", "efficiency", "--set", "efficiency.rounds=3"]
    interrupt_when(lambda: len(list((folder / "rounds" / "rounds").glob("*/*.json"))) == 2)
    code, _ = here(folder, *arguments, "--out", "rounds")
    assert code == 130
    (kept,) = (folder / "rounds" / "rounds").iterdir()
    torn, whole = kept / "0.json", (kept / "1.json").read_bytes()
    torn.write_bytes(whole[:50])
    (kept / "2.json").write_bytes(whole)
    code, said = here(folder, *arguments, "--out", "rounds")
    assert code == 0 and "1 cell to run" in said and not kept.exists()
    (folder / "rounds" / "cells" / f"{kept.name}.json").unlink()
    kept.mkdir()
    for number in range(3):
        (kept / f"{number}.json").write_bytes(whole)
    code, said = here(folder, *arguments, "--out", "rounds")
    assert code == 0 and "0 cells to run" in said and store.read_records(folder / "rounds")[0][0]["key"] == kept.name


def stamps(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}


def test_a_second_run_does_nothing_and_a_lost_record_alone_is_done_again(folder, faulty_run):
    out, _, _ = faulty_run
    before = stamps(out)
    code, said = here(folder, *ALL)
    assert code == 1 and stamps(out) == before and "0 cells to run" in said and "cells failed" in said
    fine = store.load_records(out).query("model == 'place_plain' and kind == 'accuracy'").iloc[0]
    path = out / "cells" / f"{fine.key}.json"
    first = json.loads(path.read_text())
    path.write_bytes(path.read_bytes()[:100])
    code, said = here(folder, *ALL)
    assert "damaged" in said and "1 cell to run" in said
    again = json.loads(path.read_text())
    steady = {k: v for k, v in first["metrics"].items() if "per_s" not in k}
    assert {k: again["metrics"][k] for k in steady} == steady
    assert {k: v for k, v in stamps(out).items() if k != path.name} == {
        k: v for k, v in before.items() if k != path.name
    }


SEEDS = ["run", "--models", "place_plain", "--kinds", "accuracy", "--seeds", "0,1,2,3,4,5", "--out"]


@pytest.mark.slow  # test_chaos.py kills a driver too, and proves as much
def test_a_killed_driver_loses_at_most_the_cell_in_flight_and_leaves_nothing_behind(folder):
    out, temporary = folder / "killed", Path(tempfile.mkdtemp(prefix="mb-"))  # short: sockets have long names
    process = apart(folder, *SEEDS, "killed", TMPDIR=str(temporary))
    assert wait_for(lambda: len(stamps(out)) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "workers outlive their driver"
    # torch's cache of compiled kernels is meant to stay
    left = lambda: [path for path in temporary.iterdir() if "torchinductor" not in path.name]  # noqa: E731
    assert wait_for(lambda: not left(), 10), left()
    before = stamps(out)
    code, said = here(folder, *SEEDS, "killed")
    assert code == 0 and f"{len(before)} cells are done already" in said
    records, problems = store.read_records(out)
    assert not problems and sorted(r["spec"]["seed"] for r in records) == [0, 1, 2, 3, 4, 5]
    assert {k: v for k, v in stamps(out).items() if k in before} == before
    assert not list(out.rglob(".*")), "temporary files are left"


def test_a_second_driver_works_beside_the_first(folder):
    out = folder / "shared"
    process = apart(folder, "run", "--models", "place_hangs", "--kinds", "accuracy", "--out", "shared")
    assert wait_for(lambda: list(out.glob("logs/*.log")))
    code, _ = here(folder, *SEEDS, "shared")
    assert code == 0 and len(stamps(out)) == 6
    process.terminate()
    assert finish(process)[0] == 130 and len(stamps(out)) == 6, "the running cell leaves no record"
    assert not (out / "claims").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_its_board(folder, number):
    out = folder / f"interrupted{number}"
    interrupt_when(lambda: len(stamps(out)) >= 1, number)
    code, said = here(folder, *SEEDS, out.name)
    assert code == 130 and "run the same command again to resume" in said
    assert "place_plain" in (out / "LEADERBOARD.md").read_text()
    assert not store.read_records(out)[1]


def test_the_python_api_runs_and_returns_records(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MEDBENCH_CACHE", str(folder / "cache"))
    frame = bench.run("place_plain", "place_data", kinds=["accuracy"], out=folder / "api", seeds=[0, 1])
    assert len(frame) == 2 and set(frame.status) == {"ok"} and frame.test_auc.between(0, 1).all()
    again = bench.run("place_plain", "place_data", kinds=["accuracy"], out=folder / "api", seeds=[0, 1])
    assert frame.equals(again)


def test_a_script_without_a_main_guard_can_call_run(folder):
    script = folder / "script.py"
    script.write_text(
        "import bench\nprint(len(bench.run('place_plain', 'place_data', kinds=['accuracy'], out='guard')))\n"
    )
    env = {**os.environ, "MEDBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, script], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "1", ran.stderr
    assert "leaked" not in ran.stderr, "what libraries say at the end of the forkserver"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "resnet81"], ["--models", "'resnet18'"]),
        (["--datasets", "brestmnist"], ["--datasets", "'breastmnist'"]),
        (["--datasets", "breastmnist", "--sizes", "32"], ["--sizes", "28, 64, 128, 224"]),
        (["--recipe", "medmnits"], ["'medmnist'"]),
        (["--kinds", "speed"], ["--kinds"]),
        (["--device", "cuda:7"], ["--device cuda:7", "--device cpu"]),
        (["--set", "run.thread=1"], ["'run.threads'"]),
        (["--config", "none.toml"], ["none.toml"]),
        (["--models", "medmamba_tiny[pretrained=none.pth]"], ["none.pth"]),
    ],
)
def test_a_wrong_sweep_runs_nothing_and_says_why(folder, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    code = main(["run", "--models", "place_plain", *arguments, "--out", "wrong"])
    text = "".join(capsys.readouterr())
    assert code == 2 and not (folder / "wrong").exists()
    for part in said:
        assert part in text


def test_missing_data_is_told_before_anything_runs(folder):
    arguments = ["--models", "place_plain", "--datasets", "medmnist", "--data-root", "nowhere", "--kinds", "accuracy"]
    arguments += ["--yes"]
    code, said = here(folder, "run", *arguments, "--out", "nodata", "--verbose")
    assert code == 2 and not (folder / "nodata").exists()
    for name in ("pathmnist.npz", "organsmnist.npz", "a8b06965200029087d5bd730944a56c1", "nowhere"):
        assert name in said
    code, said = here(
        folder, "run", *arguments, "--skip-missing", "--datasets", "retinamnist,place_data", "--out", "nodata"
    )
    assert code == 0 and "retinamnist" in (folder / "nodata" / "LEADERBOARD.md").read_text()
    code, said = here(folder, "run", *arguments, "--skip-missing", "--datasets", "retinamnist", "--out", "nothing-left")
    assert code == 2 and "nothing is left to run" in said


REMOTE = """
from bench.registry import RemoteFile, dataset_info, register_dataset

@register_dataset("remote", task="binary-class", classes=("a", "b"), channels=1, sizes=(28,), n_train=24)
class Remote(type(dataset_info("place_data").open())):
    def files(self, size):
        return (RemoteFile("remote.npz", "URL", "MD5"),)
"""


def test_missing_files_are_downloaded_before_anything_runs(folder, tmp_path):
    content = b"what the server sends"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "remote.npz").write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/remote.npz"
        text = REMOTE.replace("URL", url).replace("MD5", hashlib.md5(content).hexdigest())
        (folder / "remote.py").write_text(text)
        arguments = ["run", "--models", "place_plain", "--datasets", "remote", "--kinds", "accuracy"]
        arguments += ["--set", f'plugins=["{PLUGIN}", "remote.py"]', "--data-root", "fetched", "--out", "fetched-run"]
        code, said = here(folder, *arguments, "--dry-run")
        assert code == 2 and "remote.npz" in said and not (folder / "fetched").exists()
        arguments += ["--set", "run.download=true"]
        code, said = here(folder, *arguments)
        server.shutdown()
    assert code == 0 and (folder / "fetched" / "remote.npz").read_bytes() == content, said
    (folder / "fetched" / "remote.npz").unlink()
    code, said = here(folder, *arguments)
    assert code == 2 and "The download failed: remote.npz: http://127.0.0.1" in said and "missing from fetched" in said


def test_results_path_that_is_a_file(folder):
    (folder / "file").write_text("")
    code, said = here(folder, "run", "--models", "place_plain", "--kinds", "accuracy", "--out", "file")
    assert code == 2 and "--out" in said and "Traceback" not in said


def test_leaderboard_of_no_run(folder):
    code, said = here(folder, "leaderboard", "nothing")
    assert code == 2 and "is not a run directory" in said


def test_leaderboard_again_gives_the_same_bytes(folder, faulty_run):
    out, _, _ = faulty_run
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".md", ".csv")}
    code, _ = here(folder, "leaderboard", str(out))
    assert code == 0 and before == {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".md", ".csv")}


def test_plan_json(folder):
    code, said = here(folder, "plan", "--models", "place_plain,place_picky", "--json", "--out", "planned")
    plan = json.loads(said)
    assert code == 0 and len(plan["cells"]) == 4
    assert {cell["state"] for cell in plan["cells"]} == {"to run", "unsupported"}
    assert len({cell["key"] for cell in plan["cells"]}) == 4 and not (folder / "planned").exists()

"""``bench recommend DATASET --budget``: what is trained within a time, what is dropped and why, and going on."""

import json
import os
import re
import threading
import time

import pytest

from bench.cli.judge.recommend import duration
from bench.errors import ConfigError
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.paths import run_file, search_file
from bench.report.build import read_report
from bench.runner.runner import execute
from bench.runner.search.cost import Predictor
from bench.runner.search.halving import FINALISTS, fitting, go_on, rungs, whole_way
from bench.runner.search.search import loaded_for, with_defaults
from tests.runner.runs import PLUGIN, Listener, apart, here, sweep, wait_for

MODELS = "place_plain,place_random,place_choosy,place_slow"
SMALL = ["recommend", "place_data", "--resolutions", 28, "--recipe", "quick", "--epochs", 9, "--seeds", "0,1",
         "--tune", "learning_rate=1e-4,1e-2"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bench.toml").write_text(
        f'[plugins]\npaths = ["{PLUGIN}"]\n[efficiency]\nbatches = [2]\nbudget_s = 0.01\nrounds = 1\n'
        '[run]\nthreads = 1\ndevice = "cpu"\n'
    )
    return tmp_path


def diary(out):
    return json.loads(search_file(out).read_text())


def of_kind(out, kind):
    return [record for record in store.read_records(out)[0] if record["kind"] == kind]


# --- by themselves ---------------------------------------------------------------------------------------------------


def test_rungs_and_who_goes_on():
    assert rungs(100) == [11, 33] and rungs(9) == [1, 3] and rungs(2) == [1] and rungs(1) == []
    assert [go_on(n) for n in (1, 2, 3, 4, 5, 8, 15)] == [1, 2, 2, 2, 3, 4, 8]


def test_the_whole_way_counts_the_dearest_in_every_rung():
    assert whole_way([]) == 0.0
    assert whole_way([[1.0, 2.0, 10.0]]) == 10.0, "one network needs no rung"
    assert whole_way([[1.0, 2.0, 10.0]] * FINALISTS) == 20.0
    assert whole_way([[1, 2, 10], [1, 2, 20], [3, 4, 30], [5, 6, 40]]) == (1 + 1 + 3 + 5) + (30 + 40)
    five = [[1, 2, 10]] * 3 + [[1, 2, 30]] * 2
    assert whole_way(five) == 5 + 3 * 2 + 2 * 30  # 5, then 3, then 2


def test_what_fits_is_taken_in_its_order_and_what_does_not_is_passed_over():
    costs = [[1.0, 10.0], [1.0, 50.0], [1.0, 12.0]]
    assert fitting(costs, 1000) == [0, 1, 2]
    assert fitting(costs, 30) == [0, 2]
    assert fitting(costs, 9) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("20min", 1200), ("2h", 7200), ("1h30m", 5400), ("1.5 h", 5400)]
)
def test_times(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["2", "two hours", "-2h", "0h", "2h x", ""])
def test_what_is_no_time_is_refused(tmp_path, text):
    code, said = here(tmp_path, "recommend", "breastmnist", f"--budget={text}")
    assert code == 2 and "is not a time (such as 20m" in said


def test_nothing_is_started_after_a_deadline(tmp_path):
    loaded = sweep(["place_plain"], tmp_path, seeds=(0, 1, 2))
    plan = make_plan(loaded)
    outcome = execute(loaded, plan, tmp_path, Listener(), time_is_up=lambda: True)
    assert not outcome.written and not outcome.interrupted

    def heard(label, event):
        time.sleep(0.2)

    began = time.monotonic()
    outcome = execute(loaded, plan, tmp_path, Listener(heard), time_is_up=lambda: time.monotonic() > began + 0.1)
    assert len(outcome.written) == 1, "what runs is waited for"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "nowhere"], ["nowhere is not a run directory"]),
        (["recommend", "folder:scans"], ["folder:scans is a dataset: --budget 2h trains for it"]),
        (["recommend", "nowhere", "--models", "place_plain"], ["--models", "--budget 2h"]),
        (["recommend", "place_daat", "--budget", "2h"], ["place_daat", "place_data"]),
        ([*SMALL, "--models", "place_plian", "--budget", "2h"], ["place_plian", "place_plain"]),
        ([*SMALL, "--budget", "2h", "--set", "sweep.folds=3"], ["folds"]),
        ([*SMALL, "--budget", "2h", "--set", "resolutions=[28,32]"], ["one of resolutions"]),
        ([*SMALL, "--budget", "2h", "--set", "recipe=quick,standard"], ["one recipe"]),
        ([*SMALL, "--models", "place_plain", "--budget", "1s"], ["1 s is not enough", "place_plain", "--epochs"]),
    ],
)
def test_what_cannot_be_searched_is_said_and_nothing_runs(folder, arguments, said):
    code, text = here(folder, *arguments, *(["--out", "out"] if "--budget" in arguments else []))
    assert code == 2 and all(part in text for part in said), text
    assert not (folder / "out" / "search.json").exists() and not list((folder / "out").glob("cells/*.json"))


def test_a_run_directory_takes_no_budget(folder):
    (folder / "old" / "cells").mkdir(parents=True)
    code, said = here(folder, "recommend", "old", "--budget", "2h")
    assert code == 2 and "is a run directory" in said


def test_defaults_give_way_to_what_is_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    section = with_defaults(loaded_for("place_data", {"sweep.resolutions": "28"})).sweep
    assert section.sweep.tune == {"learning_rate": [1e-4, 3e-4, 1e-3]} and section.sweep.seeds == [0, 1, 2]
    assert section.efficiency.rounds == 1 and section.run.out == "runs/recommend-place_data"
    own = with_defaults(loaded_for("folder:a/b c", {}))
    assert own.sweep.run.out.startswith("runs/reco") and own.sweep.sweep.models == ["all"]
    assert own.sweep.sweep.resolutions == own.sweep.efficiency.resolutions == [64] and "64 px" in own.note


# --- whole searches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Four networks and ample time."""
    path = tmp_path_factory.mktemp("search")
    (path / "bench.toml").write_text(
        f'[plugins]\npaths = ["{PLUGIN}"]\n[efficiency]\nbatches = [2]\nbudget_s = 0.01\nrounds = 1\n'
        '[run]\nthreads = 1\ndevice = "cpu"\n'
    )
    code, said = here(path, *SMALL, "--models", f"{MODELS},place_picky,place_raises", "--budget", "1h", "--out", "out")
    return path / "out", code, said


def test_halving_on_validation_then_full_trainings_with_all_seeds(searched):
    out, code, said = searched
    assert code == 0, said
    found = diary(out)
    start, kept = found["decided"]["rung 1 starts"], found["decided"]["rung 1 ends"]
    assert set(start) == {*MODELS.split(","), "place_raises"} and len(kept) == 3
    trials = of_kind(out, "trial")
    assert {r["spec"]["recipe_settings"]["epochs"] for r in trials} == {1, 3, 9}
    best = {
        model: max(r["metrics"]["val_auc"] for r in trials if r["spec"]["model"] == model and r["status"] == "ok"
                   and r["spec"]["recipe_settings"]["epochs"] == 1)
        for model in MODELS.split(",")
    }  # fmt: skip
    assert [best[model] for model in kept] == sorted(best.values(), reverse=True)[:3]
    finalists = found["decided"]["last rung"]
    assert len(finalists) == 2
    full = of_kind(out, "accuracy")
    assert {(r["spec"]["model"], r["spec"]["seed"]) for r in full} == {(m, s) for m in finalists for s in (0, 1)}
    assert all(r["spec"]["recipe_settings"]["epochs"] == 9 and r["metrics"]["tuned"]["chosen"] for r in full)
    assert {r["spec"]["model"] for r in of_kind(out, "efficiency")} == set(finalists)


def test_everything_that_was_dropped_is_in_the_log_with_its_reason(searched):
    out, _, said = searched
    log = "\n".join(diary(out)["log"])
    assert all(line in said for line in diary(out)["log"])
    assert "dropped place_picky: only at 29 pixels" in log
    assert re.search(r"dropped place_raises: no usable trial, .*a planted fault", log)
    assert "rungs of 1 and 3 epochs with seed 0, after each the best 50% by validation go on, 2 at least" in log
    assert "the last rung has 9 epochs and seeds 0, 1" in log and "took " in log
    stays = set(diary(out)["decided"]["last rung"])
    for model in set(MODELS.split(",")) - stays:
        assert re.search(rf"dropped .*{model} val_auc \d", log)
    assert all(re.match(r"\[\d+:\d\d\] ", line) for line in diary(out)["log"])


def test_it_ends_with_the_ordinary_recommendation(searched):
    out, _, said = searched
    code, plain = here(out.parent, "recommend", out)
    assert code == 0 and plain.split("Against it")[0] in said
    board = (out / "LEADERBOARD.md").read_text()
    assert "INCOMPLETE" not in board and "learning_rate tuned over 0.0001, 0.01" in board
    pick = re.search(r"Recommended: (\S+)", plain)[1]
    kept = {path.stem for path in (out / "weights").glob("*.safetensors")}
    assert kept == {r["key"] for r in of_kind(out, "accuracy") if r["spec"]["model"] == pick}


def test_the_same_command_again_trains_nothing(searched):
    out, _, said = searched
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    arguments = [*SMALL, "--models", f"{MODELS},place_picky,place_raises", "--budget", "1h", "--out", "out"]
    code, again = here(out.parent, *arguments)
    assert code == 0 and {path: path.stat().st_mtime_ns for path in before} == before
    assert re.findall("Recommended.*", again) == re.findall("Recommended.*", said)
    assert len(diary(out)["log"]) == again.count("\n[") + again.startswith("[")
    code, other = here(out.parent, *SMALL, "--models", "place_plain", "--budget", "1h", "--out", "out")
    assert code == 2 and "holds a search with models" in other and "another --out" in other
    search_file(out).rename(out / "aside")
    (out / "search.json").write_text("{")
    code, other = here(out.parent, *arguments)
    (out / "aside").rename(search_file(out))
    assert code == 2 and "search.json cannot be read" in other


def test_json_is_all_that_is_printed_on_standard_output(searched, capfd):
    out, _, _ = searched
    process = apart(out.parent, *SMALL, "--models", f"{MODELS},place_picky,place_raises", "--budget", "1h", "--out",
                    "out", "--json")  # fmt: skip
    text, _ = process.communicate(timeout=240)
    found = json.loads(text[text.index("{\n") :])
    assert process.returncode == 0 and found["model"] in MODELS


def test_limits_drop_networks_before_they_are_trained(folder):
    code, said = here(folder, *SMALL, "--models", "place_plain,place_slow", "--budget", "1h", "--out", "out",
                      "--max-latency-ms", 10)  # fmt: skip
    out = folder / "out"
    assert code == 0, said
    assert re.search(r"dropped place_slow: latency \d.* ms, beyond the limit", said)
    assert {r["spec"]["model"] for r in of_kind(out, "trial")} == {"place_plain"}
    code, said = here(folder, *SMALL, "--models", "place_plain", "--budget", "1h", "--out", "none",
                      "--max-latency-ms", 1e-6)  # fmt: skip
    assert code == 1 and "no network is left" in said and not of_kind(folder / "none", "trial")


def test_a_rung_that_takes_longer_than_predicted_ends_with_the_budget(folder, monkeypatch):
    monkeypatch.setattr(Predictor, "costs", lambda self, names, again=False: [[0.1, 0.1, 0.1] for _ in names])
    tune = "learning_rate=1e-4,1e-3,1e-2,1e-1"
    arguments = ["--models", "place_slow", "--epochs", 20, "--seeds", "0,1,2,3", "--tune", tune, "--out", "out"]
    code, said = here(folder, *SMALL, *arguments, "--budget", "4s")
    out, trials = folder / "out", of_kind(folder / "out", "trial")
    assert re.search(r"not started: \d+ cells? of the last rung", said)
    longest = max([0.0, *(r["timings"]["wall_s"] for r in trials)])
    assert diary(out)["spent_s"] < 4 + longest + 10, "one training at most, and the boards"
    if not of_kind(out, "accuracy"):
        assert code == 1 and "before any network was fully trained" in said
    code, said = here(folder, *SMALL, *arguments, "--budget", "1s")
    assert len(of_kind(out, "trial")) == len(trials), "nothing more without time"
    code, said = here(folder, *SMALL, *arguments, "--budget", "1h")
    assert code == 0 and len(of_kind(out, "accuracy")) == 4
    assert "INCOMPLETE" not in (out / "LEADERBOARD.md").read_text()


def begun(out, number):
    """Whether so many Records are there."""
    return out.is_dir() and len(list(out.glob("cells/*.json"))) >= number


def assert_same_search(out, other):
    """The same decisions, and the same scores to the bit."""
    steps = ("rung 1 ends", "rung 2 ends", "last rung")
    assert [diary(out)["decided"][step] for step in steps] == [diary(other)["decided"][step] for step in steps]
    scores = [sorted((r["spec"]["model"], r["spec"]["seed"], r["metrics"]["test_auc"]) for r in of_kind(o, "accuracy"))
              for o in (out, other)]  # fmt: skip
    assert scores[0] == scores[1]


def test_interrupted_it_goes_on_to_the_same_pick(folder, searched):
    arguments = [*SMALL, "--models", f"{MODELS},place_picky,place_raises", "--budget", "1h", "--out", "cut"]
    out = folder / "cut"
    waiter = threading.Thread(target=lambda: wait_for(lambda: begun(out, 3), 200) and os.kill(os.getpid(), 2))
    waiter.start()
    code, said = here(folder, *arguments)
    waiter.join()
    assert code == 130 and "run the same command again to resume" in said and begun(out, 3)
    spent = diary(out)["spent_s"]
    code, said = here(folder, *arguments)
    assert code == 0 and diary(out)["spent_s"] > spent, said
    assert_same_search(out, searched[0])


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_pick(folder, searched):
    arguments = [*SMALL, "--models", f"{MODELS},place_picky,place_raises", "--budget", "1h", "--out", "cut"]
    out = folder / "cut"
    for number in (1, 9, 17):
        process = apart(folder, *arguments)
        assert wait_for(lambda: begun(out, number), 200)  # noqa: B023
        process.kill()
        process.wait()
    code, said = here(folder, *arguments)
    assert code == 0, said
    assert_same_search(out, searched[0])


def test_frozen_features_come_first_where_weights_lie_here(folder, monkeypatch):
    torch = pytest.importorskip("torch")
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "w.safetensors")
    model = f"timm:test_resnet[pretrained={folder / 'w.safetensors'}]"
    code, said = here(folder, *SMALL, "--models", f"place_plain,{model}", "--budget", "1h", "--out", "out")
    out = folder / "out"
    assert code == 0, said
    assert "frozen features with a linear head: timm:test_resnet" in said and "no weights here of place_plain" in said
    frozen = [r for r in of_kind(out, "accuracy") if r["spec"].get("track") == "frozen"]
    assert all(r["spec"]["weights_sha256"] for r in frozen), "a network with random weights is no candidate"
    assert {r["spec"]["seed"] for r in frozen} == {0, 1} and {r["spec"]["head"] for r in frozen} == {"linear"}
    assert "best validation AUC: " in said
    preferred = json.loads(run_file(out).read_text())["preferred_protocol"]
    scores = [(r["metrics"]["val_auc"], r["spec"].get("track") == "frozen") for r in of_kind(out, "accuracy")]
    assert preferred in {row.protocol.identity for row in read_report(out)[0].rows}
    best = max(score for score, _ in scores)
    if len(ways := {way for score, way in scores if score == best}) == 1:
        assert ways == {'"track":"frozen"' in preferred}
    with pytest.raises(ConfigError):
        with_defaults(loaded_for("place_data", {"sweep.track": "frozen"}, folder / "bench.toml"))

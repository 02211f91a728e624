"""``--tune``: trials on validation decide about a number of the recipe, for every network alike."""

import json

import numpy as np
import pytest

import bench
from bench.deploy.which import members_of
from bench.explain.which import cell_of
from bench.plan.estimate import OVERHEAD_S, estimate_s
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, TrialCell, cell_key, needs, trials_of
from bench.record.paths import checkpoint_path, predictions_path, record_path, weights_path
from bench.report.build import read_report
from bench.report.compare.snapshot import take
from bench.sweep.config import ConfigError
from tests.runner.runs import PLUGIN, Listener, here, interrupt_when, run, sweep

RATES = {"learning_rate": [1e-4, 1e-2]}


def records(out, kind="accuracy"):
    return [record for record in store.read_records(out)[0] if record["kind"] == kind]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two networks, two rates, two seeds."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    outcome = run(["place_plain", "place_random"], out, seeds=(0, 1), **{"sweep.tune": RATES, "sweep.epochs": 3})
    assert not outcome.failed
    return out


def test_the_best_on_validation_is_taken_for_every_seed_and_never_by_test(tuned):
    trials = {r["key"]: r for r in records(tuned, "trial")}
    assert len(trials) == 4 and {r["spec"]["seed"] for r in trials.values()} == {0}
    assert len(records(tuned)) == 4
    for record in records(tuned):
        said = record["metrics"]["tuned"]
        tried = {line["learning_rate"]: line for line in said["tried"]}
        assert set(tried) == {1e-4, 1e-2} and said["by"] == "val_auc" and said["seed"] == 0
        for rate, line in tried.items():
            trial = trials[line["key"]]
            assert trial["spec"]["recipe_settings"]["learning_rate"] == rate
            assert trial["spec"]["model"] == record["spec"]["model"] and trial["spec"]["tried"] == ["learning_rate"]
            assert line["val_auc"] == trial["metrics"]["val_auc"] and line["status"] == "ok"
            assert line["seconds"] == trial["timings"]["wall_s"]
        best = max(tried.values(), key=lambda line: line["val_auc"])["val_auc"]
        assert tried[said["chosen"]["learning_rate"]]["val_auc"] == best
        assert said["seconds"] == pytest.approx(sum(line["seconds"] for line in said["tried"]))


def test_the_seed_that_decides_is_not_trained_again_and_others_are_with_its_value(tuned):
    for record in records(tuned):
        chosen = record["metrics"]["tuned"]["chosen"]["learning_rate"]
        (trial,) = [r for r in records(tuned, "trial") if r["spec"]["model"] == record["spec"]["model"]
                    and r["spec"]["recipe_settings"]["learning_rate"] == chosen]  # fmt: skip
        mine, its = (np.load(predictions_path(tuned, r["key"])) for r in (record, trial))
        same = np.array_equal(mine["test_scores"], its["test_scores"])
        assert same == (record["spec"]["seed"] == 0)
        history = [(tuned / "history" / f"{r['key']}.csv").read_bytes() for r in (record, trial)]
        assert (history[0] == history[1]) == same
        assert weights_path(tuned, record["key"]).is_file()


def test_a_tuned_seed_equals_an_ordinary_training_with_that_value(tuned, tmp_path):
    (other,) = [r for r in records(tuned) if r["spec"]["seed"] == 1 and r["spec"]["model"] == "place_random"]
    rate = other["metrics"]["tuned"]["chosen"]["learning_rate"]
    run(["place_random"], tmp_path, seeds=(1,), **{"recipe.learning_rate": rate, "sweep.epochs": 3})
    (plain,) = records(tmp_path)
    assert plain["key"] != other["key"]
    mine, its = (np.load(predictions_path(o, r["key"])) for o, r in ((tuned, other), (tmp_path, plain)))
    assert np.array_equal(mine["test_scores"], its["test_scores"])


def test_boards_have_one_protocol_no_trials_and_say_what_was_tried(tuned):
    report, problems = read_report(tuned)
    assert not problems and len(report.rows) == 2
    assert len({row.protocol.identity for row in report.rows}) == 1 and all(row.seeds == 2 for row in report.rows)
    assert "learning_rate tuned over 0.0001, 0.01" in report.rows[0].protocol.training
    report.write(tuned)
    board = (tuned / "LEADERBOARD.md").read_text()
    assert "INCOMPLETE" not in board and "4 trial" in board
    for record in records(tuned):
        line = next(x for x in board.splitlines() if x.startswith(f"| `{record['spec']['model']}`") and "val_auc" in x)
        assert f"`learning_rate` {record['metrics']['tuned']['chosen']['learning_rate']:g}" in line
        assert all(f"{t['learning_rate']:g}: {t['val_auc']:.3f}" in line for t in record["metrics"]["tuned"]["tried"])
    assert len(take(tuned).entries) == 4  # a baseline holds results
    assert '"kind":"trial"' not in (tuned / "report.html").read_text().replace(" ", "")


def test_a_record_gives_its_cell_back_and_trials_are_no_export(tuned):
    for record in records(tuned):
        assert cell_key(cell_of(record)) == record["key"]
        assert {cell_key(trial) for trial in trials_of(cell_of(record))} == set(needs(cell_of(record)))
    assert {r["kind"] for r in members_of(tuned, "place_plain")} == {"accuracy"}
    code, said = here(tuned.parent, "explain", tuned, records(tuned, "trial")[0]["key"])
    assert code == 2 and "trial of --tune" in said


def test_the_plan_shows_trials_and_what_they_cost(tuned, tmp_path):
    loaded = sweep(["place_plain"], tmp_path, seeds=(0, 1), **{"sweep.tune": RATES, "sweep.epochs": 50})
    cells = list(make_plan(loaded).cells.values())
    assert [type(cell) for cell in cells] == [TrialCell, TrialCell, AccuracyCell, AccuracyCell]
    seconds = [estimate_s(cell, 1, "cpu") for cell in cells]
    assert seconds[0] == seconds[1] == seconds[3] > seconds[2] == OVERHEAD_S
    arguments = ["--models", "place_plain", "--datasets", "place_data", "--kinds", "accuracy", "--resolutions", "28"]
    (tmp_path / "bench.toml").write_text(f'[plugins]\npaths = ["{PLUGIN}"]\n')
    code, said = here(tmp_path, "plan", *arguments, "--tune", "learning_rate=1e-4,1e-2")
    assert code == 0 and "trial learning_rate=0.0001" in said and "trial learning_rate=0.01" in said
    assert "tuned over learning_rate" in said and "2 trial, 1 accuracy to run" in said


def test_two_keys_are_a_grid_and_spelling_does_not_matter(tmp_path):
    one = sweep(["place_plain"], tmp_path, **{"sweep.tune": "learning_rate=1e-2,1e-4,weight_decay=0,0.1"})
    two = sweep(
        ["place_plain"], tmp_path, **{"sweep.tune": {"learning_rate": [0.0001, 0.01], "weight_decay": [0.1, 0]}}
    )
    plans = [make_plan(loaded).cells for loaded in (one, two)]
    assert plans[0].keys() == plans[1].keys() and len(plans[0]) == 5
    tried = [(c.recipe["learning_rate"], c.recipe["weight_decay"]) for c in plans[0].values() if c.kind == "trial"]
    assert tried == [(1e-4, 0.0), (1e-4, 0.1), (1e-2, 0.0), (1e-2, 0.1)]


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ("lerning_rate=1e-3,1e-4", ["lerning_rate", "not a key", "learning_rate", "--tune"]),
        ("learning_rate=1e-3", ["two values"]),
        ("learning_rate=1e-3,1e-3", ["two values"]),
        ("learning_rate=fast,slow", ["'fast' is not a number"]),
        ("learning_rate=-1,1", ["learning_rate = -1", "at least 0"]),
        ("batch_size=8.5,16", ["batch_size"]),
        ("optimizer=1,2", ["'optimizer' is not tuned"]),
        ("epochs=10,20", ["'epochs' is not tuned"]),
        ("1e-3,1e-4", ["learning_rate=1e-4"]),
        ("learning_rate=1,2,momentum=0,1,gamma=0,1", ["too many"]),
    ],
)
def test_a_wrong_search_is_named(tmp_path, tune, said):
    with pytest.raises(ConfigError) as caught:
        sweep(["place_plain"], tmp_path, **{"sweep.tune": tune})
    assert all(part in str(caught.value) for part in said), caught.value


def test_what_does_not_fit_together_is_refused_by_the_plan(tmp_path):
    with pytest.raises(ConfigError, match="also fixed"):
        make_plan(sweep(["place_plain"], tmp_path, **{"sweep.tune": RATES, "recipe.learning_rate": 1e-3}))
    with pytest.raises(ConfigError, match="warmup_epochs"):
        make_plan(sweep(["place_plain"], tmp_path, **{"sweep.tune": {"warmup_epochs": [0, 50]}}))
    with pytest.raises(ConfigError, match="not tuned"):
        weights = {"sweep.track": "frozen", "sweep.tune": RATES}
        make_plan(sweep(["resnet18[pretrained=true]"], tmp_path, **weights))


def test_a_value_in_bench_toml_is_named_with_its_line(tmp_path):
    (tmp_path / "bench.toml").write_text("[sweep]\ntune = {learning_rate = [1e-3, -1]}\n")
    code, said = here(tmp_path, "plan")
    assert code == 2 and "bench.toml, line 2" in said and "learning_rate = -1" in said


def test_a_trial_that_diverges_loses_and_if_all_do_so_does_the_cell(tmp_path):
    values = {"sweep.tune": {"learning_rate": [1e-2, 1e38]}, "sweep.epochs": 2}
    outcome = run(["place_plain"], tmp_path, seeds=(0, 1), **values)
    assert not outcome.failed
    for record in records(tmp_path):
        said = record["metrics"]["tuned"]
        assert record["status"] == "ok" and said["chosen"] == {"learning_rate": 0.01}
        assert [line["status"] for line in said["tried"]] == ["ok", "diverged"] and said["tried"][1]["val_auc"] is None
    report = read_report(tmp_path)[0]
    report.write(tmp_path)
    board = (tmp_path / "LEADERBOARD.md").read_text()
    assert "1e+38: diverged" in board and "Without a result" not in board

    run(["place_plain"], tmp_path / "all", **{"sweep.tune": {"learning_rate": [1e37, 1e38]}, "sweep.epochs": 2})
    (record,) = records(tmp_path / "all")
    assert record["status"] == "diverged" and "learning_rate=1e+37 diverged" in record["reason"]
    assert record["metrics"]["tuned"]["chosen"] is None


def test_a_failed_trial_that_is_tried_again_decides_again(tmp_path):
    run(["place_plain"], tmp_path, **{"sweep.tune": RATES})
    (cell,) = records(tmp_path)
    trials = records(tmp_path, "trial")
    before = cell["metrics"]["tuned"]["chosen"]["learning_rate"]
    best = next(r for r in trials if r["spec"]["recipe_settings"]["learning_rate"] == before)
    failed = {**best, "status": "failed", "reason": "planted", "metrics": {}}
    store.write_json(record_path(tmp_path, best["key"]), failed)
    record_path(tmp_path, cell["key"]).unlink()
    run(["place_plain"], tmp_path, **{"sweep.tune": RATES})
    assert records(tmp_path)[0]["metrics"]["tuned"]["chosen"]["learning_rate"] != before
    run(["place_plain"], tmp_path, **{"sweep.tune": RATES})
    assert records(tmp_path)[0]["metrics"]["tuned"]["chosen"]["learning_rate"] != before  # a Record is done
    run(["place_plain"], tmp_path, **{"sweep.tune": RATES, "run.retry": "failed"})
    assert records(tmp_path)[0]["metrics"]["tuned"]["chosen"]["learning_rate"] == before


def test_all_trials_failed_is_a_failed_cell_with_the_reason(tmp_path):
    outcome = run(["place_raises"], tmp_path, **{"sweep.tune": RATES})
    (record,) = records(tmp_path)
    assert outcome.failed == 3 and record["status"] == "failed" and "a planted fault" in record["reason"]
    run(["place_picky"], tmp_path / "picky", **{"sweep.tune": RATES})
    assert {r["status"] for r in store.read_records(tmp_path / "picky")[0]} == {"unsupported"}


def test_interrupted_within_a_trial_and_resumed_gives_the_same_bits(tmp_path):
    arguments = ["run", "--models", "place_slow", "--datasets", "place_data", "--resolutions", "28", "--kinds",
                 "accuracy", "--recipe", "quick", "--epochs", "15", "--seeds", "0,1", "--tune",
                 "learning_rate=1e-3,1e-2"]  # fmt: skip
    (tmp_path / "bench.toml").write_text(f'[plugins]\npaths = ["{PLUGIN}"]\n[run]\nthreads = 1\n')
    interrupt_when(lambda: any(b"epoch" in p.read_bytes() for p in (tmp_path / "cut" / "logs").glob("*.log")))
    assert here(tmp_path, *arguments, "--out", "cut")[0] == 130
    done = len(records(tmp_path / "cut", "trial"))
    assert done < 2 and not records(tmp_path / "cut")
    kept = list((tmp_path / "cut" / "checkpoints").glob("*.pt"))
    for out in ("cut", "whole"):
        code, said = here(tmp_path, *arguments, "--out", out)
        assert code == 0, said
    assert len(kept) <= 1 and not list(checkpoint_path(tmp_path / "cut", "").parent.glob("*.pt"))
    cut, whole = (
        {r["key"]: r["metrics"]["tuned"]["chosen"] for r in records(tmp_path / out)} for out in ("cut", "whole")
    )
    assert cut == whole
    for key in cut:
        one, two = (np.load(predictions_path(tmp_path / out, key)) for out in ("cut", "whole"))
        assert np.array_equal(one["test_scores"], two["test_scores"])


def test_folds_have_trials_of_their_own(tmp_path):
    run(["place_plain"], tmp_path, **{"sweep.tune": RATES, "sweep.folds": 2})
    assert len(records(tmp_path, "trial")) == 4
    for record in records(tmp_path):
        keys = {line["key"] for line in record["metrics"]["tuned"]["tried"]}
        assert {r["spec"]["fold"] for r in records(tmp_path, "trial") if r["key"] in keys} == {record["spec"]["fold"]}


def test_from_python_and_progress_shows_validation_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    frame = bench.run(
        ["place_plain"], ["place_data"], out=tmp_path / "py", plugins=[str(PLUGIN)], kinds="accuracy", recipe="quick",
        epochs=1, resolutions=[28], tune={"learning_rate": [1e-4, 1e-2]},
    )  # fmt: skip
    assert frame.kind.value_counts().to_dict() == {"trial": 2, "accuracy": 1}
    json.dumps(records(tmp_path / "py")[0])
    heard = Listener()
    run(["place_plain"], tmp_path / "b", heard, **{"sweep.tune": RATES})
    from bench.runner.progress import describe

    assert all("test" not in describe(record) for record in records(tmp_path / "b", "trial"))

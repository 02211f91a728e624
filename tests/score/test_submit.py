"""`bench submit` and `bench verify`: what is packed, what is recomputed, and every way in which a file can be wrong."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.cli.main import main
from bench.errors import StoreError
from bench.metrics.calibration import clinical, recorded
from bench.metrics.classification import classification_metrics
from bench.record import store
from bench.record.cells import spec_key
from bench.score.submit import _json, _npz, _zipped, submit
from bench.score.verify import verify

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "results" / "breast-retina"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("submit") / "ours.medbench.zip"
    submit(OURS, path, "CC-BY-4.0", "medbench")
    return path


@pytest.fixture
def foreign(tmp_path) -> Path:
    """Two models on 60 images with ids and patients, scored and packed."""
    rng = np.random.default_rng(0)
    lines = ["id,patient,sex,label,model,score"]
    for model in ("a", "b"):
        for i in range(60):
            p = np.clip(0.35 + 0.3 * (i % 2) + rng.normal(0, 0.2), 0.01, 0.99)
            lines.append(f"secret{i},Mrs {i // 2},f,{i % 2},{model},{p!r}")
    (tmp_path / "p.csv").write_text("\n".join(lines).replace("np.float64(", "").replace(")", ""))
    assert main(["score", str(tmp_path / "p.csv"), "--out", str(tmp_path / "run"), "--dataset", "ward7"]) == 0
    path = tmp_path / "f.medbench.zip"
    assert main(["submit", str(tmp_path / "run"), "--out", str(path), "--author", "me"]) == 0
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, change, restate: bool = True) -> Path:
    """A copy with other members; ``restate``: digests in submission.json are those of the changed members."""
    import hashlib

    found = members(path)
    manifest = json.loads(found.pop("submission.json"))
    change(found, manifest)
    if restate:
        manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    other = path.with_name("changed.medbench.zip")
    other.write_bytes(_zipped({"submission.json": _json(manifest), **found}))
    return other


def test_our_committed_results_verify(ours):
    found = verify(ours, [OURS])
    records = [r for r in store.read_records(OURS)[0] if r["status"] == "ok"]
    (message,) = found.problems
    assert message.startswith(f"{len(records)} results already in") and "breast-retina" in message
    assert len(found.submission.records) == len(records)
    assert found.recomputed > 10 * sum(r["kind"] == "accuracy" for r in records)
    assert any(line.startswith("speed and memory") for line in found.open)


def test_equal_runs_give_equal_files(foreign, tmp_path):
    again = tmp_path / "again.medbench.zip"
    submit(tmp_path / "run", again, "CC-BY-4.0", "me")
    assert again.read_bytes() == foreign.read_bytes()


def test_an_operating_point_is_recomputed_too(tmp_path):
    """A Record as a training of today writes it: threshold and temperature of validation beside the metrics of test."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    scores = [np.clip(0.35 + 0.3 * labels + rng.normal(0, 0.2, 80), 0.01, 0.99) for _ in range(2)]
    val, test = (np.column_stack([1 - p, p]) for p in scores)
    arrays = {"val_scores": val, "val_labels": labels, "test_scores": test, "test_labels": labels}
    metrics = {f"test_{k}": v for k, v in classification_metrics(labels, test, "binary-class").items() if k != "nll"}
    metrics |= {"classes": ["well", "ill"], "positive_class": "ill"} | recorded(clinical(val, labels, test, labels))
    spec = {"model": "resnet18", "dataset": "ward7", "seed": 0, "size": 28, "resolution": 28, "recipe": "medmnist"}
    record = {"schema": 1, "key": spec_key("accuracy", spec), "kind": "accuracy", "status": "ok", "reason": "",
              "spec": spec, "metrics": metrics, "environment": {}}  # fmt: skip
    store.write_record(tmp_path / "r", record, arrays)
    lost = record["spec"] | {"seed": 1}
    store.write_record(tmp_path / "r", record | {"spec": lost, "key": spec_key("accuracy", lost), "status": "diverged"})
    manifest = submit(tmp_path / "r", tmp_path / "o.medbench.zip", "MIT", "me")
    assert manifest["left_out"] == {"diverged": 1}
    assert not verify(tmp_path / "o.medbench.zip").problems
    metrics["temperature"] += 0.1
    store.write_record(tmp_path / "r", record, arrays)
    submit(tmp_path / "r", tmp_path / "o.medbench.zip", "MIT", "me")
    (problem,) = verify(tmp_path / "o.medbench.zip").problems
    assert "temperature is given as" in problem


def test_nothing_says_who_was_imaged(foreign):
    found = members(foreign)
    text = b"".join(data for name, data in found.items() if name.endswith("json"))
    for name, data in found.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                assert set(file.files) == {"test_scores", "test_labels", "test_patients"}
                assert file["test_patients"][:5].tolist() == ["0", "0", "1", "1", "2"]
    assert b"secret" not in text and b"Mrs" not in text
    checked = verify(foreign)
    assert not checked.problems and checked.recomputed > 20
    assert "ward7: its labels, as medbench does not know this dataset" in checked.open


def test_it_can_be_read_as_a_run(foreign, tmp_path, capsys):
    assert main(["verify", str(foreign), "--unpack", str(tmp_path / "u"), "--json", str(tmp_path / "v.json")]) == 0
    assert main(["leaderboard", str(tmp_path / "u")]) == 0
    assert "no problem found" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())[0]["problems"] == []
    first, second = (
        {r["key"]: r["metrics"] for r in store.read_records(p)[0]} for p in (tmp_path / "u", tmp_path / "run")
    )
    assert first == second
    assert main(["verify", str(foreign), "--unpack", str(tmp_path / "u")]) == 2
    assert "exists already; unpack into a new folder" in capsys.readouterr().err


def first(found: dict[str, bytes], folder: str) -> str:
    return sorted(name for name in found if name.startswith(folder))[0]


def edited_metric(found, manifest):
    name = first(found, "cells")
    record = json.loads(found[name])
    record["metrics"]["test_auc"] += 0.01
    found[name] = _json(record)


def edited_spec(found, manifest):
    name = first(found, "cells")
    record = json.loads(found[name])
    record["spec"]["model"] = "better"
    found[name] = _json(record)


def another_dataset(found, manifest):
    """A whole Record of a registered set with the wrong number of images, under its right key."""
    name, scores = first(found, "cells"), first(found, "predictions")
    record = json.loads(found.pop(name))
    record["spec"] |= {"dataset": "breastmnist", "recipe": "medmnist", "size": 28, "data_fingerprint": "made up"}
    record["key"] = spec_key("accuracy", record["spec"])
    found[f"cells/{record['key']}.json"], found[f"predictions/{record['key']}.npz"] = _json(record), found.pop(scores)


def changed_scores(found, manifest):
    name = first(found, "predictions")
    with np.load(io.BytesIO(found[name])) as file:
        arrays = dict(file)
    arrays["test_scores"] = arrays["test_scores"][::-1]
    found[name] = _npz(arrays)


def same_scores(found, manifest):
    names = sorted(name for name in found if name.startswith("predictions"))
    found[names[1]] = found[names[0]]


def without_scores(found, manifest):
    found.pop(first(found, "predictions"))


def orphan(found, manifest):
    found.pop(first(found, "cells"))


def failed(found, manifest):
    name = first(found, "cells")
    found[name] = _json(json.loads(found[name]) | {"status": "failed"})


def leaking(found, manifest):
    name = first(found, "predictions")
    with np.load(io.BytesIO(found[name])) as file:
        arrays = dict(file)
    found[name] = _npz(arrays | {"val_scores": arrays["test_scores"], "val_labels": arrays["test_labels"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited_metric, "test_auc is given as"),
        (edited_spec, "the record was edited"),
        (another_dataset, "60 test images; breastmnist has 156"),
        (another_dataset, "its test labels are not those of the official file"),
        (another_dataset, "data fingerprint made up, but breastmnist has medmnist-1-750601b1f35ba3300ea97c75c52ff8f6"),
        (changed_scores, "scores_sha256 does not match its scores"),
        (same_scores, "the same scores as"),
        (without_scores, "no scores, so its figures cannot be recomputed"),
        (orphan, "scores without a record"),
        (failed, "status failed; a submission holds only results with status ok"),
        (leaking, "validation and test scores are the same"),
        (lambda f, m: f.update({"../evil.sh": b"x"}), "only cells/<key>.json and predictions/<key>.npz belong"),
        (lambda f, m: f.update({first(f, "cells"): b"{"}), "Expecting property name"),
        (lambda f, m: f.update({first(f, "predictions"): b"x"}), "predictions/"),
        (lambda f, m: f.update({first(f, "cells"): b"{}"}), "it lacks schema"),
        (lambda f, m: f.clear(), "it holds no result"),
        (lambda f, m: m.update(licence="mine"), "licence 'mine' is none of CC-BY-4.0"),
        (lambda f, m: m.update(schema=9), "schema 9; this version of medbench reads 1"),
        (lambda f, m: m.update(author=" "), "no author"),
    ],
)
def test_what_is_wrong_is_found(foreign, change, message, capsys):
    path = rewritten(foreign, change)
    problems = verify(path).problems
    assert any(message in problem for problem in problems), problems
    assert main(["verify", str(path)]) == 1
    assert "do not accept it as it is" in capsys.readouterr().out


def test_a_changed_member_is_found_by_its_digest(foreign):
    def change(found, manifest):
        found[first(found, "cells")] += b" "
        found["cells/" + "0" * 20 + ".json"] = b"{}"
        manifest["files"]["cells/" + "1" * 20 + ".json"] = "0"

    problems = verify(rewritten(foreign, change, restate=False)).problems
    for message in (
        "its SHA-256 is not the one in submission.json",
        ": not listed in submission.json",
        "listed in submission.json, but missing",
    ):
        assert any(message in problem for problem in problems)


def test_what_is_no_submission(tmp_path, capsys):
    (tmp_path / "a.zip").write_text("no zip")
    assert main(["verify", str(tmp_path / "a.zip")]) == 2
    assert "is not a submission of `bench submit`" in capsys.readouterr().err
    (tmp_path / "b.zip").write_bytes(_zipped({"x": b""}))
    with pytest.raises(StoreError, match=r"no readable submission\.json"):
        verify(tmp_path / "b.zip")


def test_what_cannot_be_submitted(tmp_path, foreign, capsys):
    out = tmp_path / "o.medbench.zip"
    with pytest.raises(StoreError, match="is not a run directory"):
        submit(tmp_path / "none", out, "CC-BY-4.0", "me")
    with pytest.raises(StoreError, match=r"must end in \.medbench\.zip"):
        submit(OURS, tmp_path / "o.zip", "CC-BY-4.0", "me")
    with pytest.raises(StoreError, match=r"licence 'CC-BY' \(did you mean 'CC-BY-4.0'\?\)"):
        submit(OURS, out, "CC-BY", "me")
    run = tmp_path / "run"
    for path in (run / "predictions").iterdir():
        path.unlink()
    with pytest.raises(StoreError, match=r"the scores of [ab] on ward7 are missing"):
        submit(run, out, "CC-BY-4.0", "me")
    (record, _) = store.read_records(run)[0]
    spec = record["spec"] | {"dataset": "csv:/home/me/x.csv"}
    store.write_record(run, record | {"spec": spec, "key": spec_key("accuracy", spec)})
    with pytest.raises(StoreError, match="is a dataset of your own, which nobody else can check"):
        submit(run, out, "CC-BY-4.0", "me")


def test_the_workflow_runs_mains_code_on_the_files_of_a_fork():
    flow = yaml.safe_load((ROOT / ".github/workflows/submissions.yml").read_text())
    assert flow["permissions"] == {"contents": "read"} and "pull_request" in flow[True] and len(flow[True]) == 1
    steps = flow["jobs"]["verify"]["steps"]
    assert steps[0]["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert "./base" in steps[3]["run"] and "proposed" not in steps[3]["run"]
    assert "${{" not in steps[4]["run"]  # a file's name is never pasted into the script

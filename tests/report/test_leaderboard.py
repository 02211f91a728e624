"""The boards of synthetic runs: what is averaged, what is ranked, what is said, and the same bytes each time."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.report.build import FILES, Report, rebuild, write_boards
from tests.report.pages import csv, page, table

GOLDEN = Path(__file__).with_name("golden_leaderboard.md")


def test_damaged_records_are_listed(run: Any, tmp_path: Path):
    run.accuracy("resnet18", "breastmnist", 0.9, acc=0.8)
    run.write(tmp_path / "run")
    (tmp_path / "run" / "cells" / "0123456789abcdef0123.json").write_text("{")
    rebuild(tmp_path / "run", figures=False)
    text = (tmp_path / "run" / "LEADERBOARD.md").read_text()
    (line,) = [line for line in text.splitlines() if "0123456789abcdef0123" in line]
    assert line.startswith("- cells/0123456789abcdef0123.json: Expecting")  # the same wherever the run lies
    assert text.index("Records left out because they are damaged") < text.index(line)


def test_golden(full_run: Any, run_info: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest):
    """Without saved scores, so that the page holds no random numbers. Read the difference before accepting it."""
    assert page(full_run, tmp_path, run_info, scores=False) == GOLDEN.read_text()


def test_same_records_same_bytes(full_run: Any, run_info: dict[str, Any], tmp_path: Path):
    full_run.write(tmp_path)
    first = [path.read_bytes() for path in write_boards(tmp_path, full_run.records, run_info)]
    for seed in range(3):
        shuffled = [dict(reversed(list(r.items()))) for r in full_run.records * 2]
        random.Random(seed).shuffle(shuffled)
        assert [path.read_bytes() for path in write_boards(tmp_path, shuffled, run_info)] == first
    assert [path.name for path in write_boards(tmp_path, full_run.records, run_info)] == [*FILES, "report.html"]


def test_no_records(tmp_path: Path, run_info: dict[str, Any]):
    paths = write_boards(tmp_path, [], run_info)
    text = paths[0].read_text()
    assert "Nothing has been measured yet." in text
    assert run_info["command"] in text
    assert "pathmnist at 28 pixels: /data/pathmnist.npz is missing" in text
    assert [len(pd.read_csv(path)) for path in paths[1:3]] == [0, 0]
    assert "Nothing has been measured yet." in write_boards(tmp_path, [], None)[0].read_text()


def test_seeds_are_averaged_and_protocols_are_not(run: Any, tmp_path: Path):
    for seed, value in enumerate((0.80, 0.84, 0.91)):
        run.accuracy("resnet18", "breastmnist", value, acc=0.7, seed=seed)
    run.accuracy("resnet18", "breastmnist", 0.99, acc=0.7, resolution=224)
    run.accuracy("resnet18", "breastmnist", 0.98, acc=0.7, recipe={"name": "quick", "epochs": 50})
    run.accuracy("resnet18", "breastmnist", 0.97, acc=0.7, fingerprint="other file")
    text = page(run, tmp_path)
    frame = csv(tmp_path, "accuracy")
    assert len(frame) == 4
    three = frame[frame.seeds == 3].iloc[0]
    assert three.test_auc == pytest.approx(np.mean([0.80, 0.84, 0.91]))
    assert three.test_auc_sd == pytest.approx(np.std([0.80, 0.84, 0.91], ddof=1))
    assert text.count("## Accuracy: ") == 1
    assert text.count("<summary>Accuracy: ") == 2
    assert {"breastmnist (f0)", "breastmnist (other file)"} <= set(frame.dataset)
    assert "28→224 px (nearest), quick, 3 epochs" in text
    assert "28→64 px (nearest), quick, 50 epochs" in text


def test_recipes_of_one_name_are_told_apart_by_what_differs(run: Any, tmp_path: Path):
    recipe = {"name": "quick", "epochs": 3, "augment": {"flip": 0.5}, "learning_rate": 0.1}
    run.accuracy("resnet18", "breastmnist", 0.8, recipe=recipe)
    run.accuracy("resnet18", "breastmnist", 0.9, recipe={**recipe, "augment": {"flip": 0.0}})
    text = page(run, tmp_path)
    assert "augment.flip=0.5" in text
    assert "augment.flip=0.0" in text
    assert "learning_rate" not in text.split("The recipes, resolved")[0]
    other = {"name": "quick", "epochs": 3, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    run.accuracy("resnet18", "breastmnist", 0.7, recipe=other)
    assert "4 more (" in page(run, tmp_path)


def test_models_of_one_name_with_other_weights_are_two(run: Any, tmp_path: Path):
    run.accuracy("resnet18", "breastmnist", 0.8)["spec"]["weights_sha256"] = "abcdef0123456789"
    run.accuracy("resnet18", "breastmnist", 0.9, seed=1)
    assert set(csv(write_boards(tmp_path, run.records)[0].parent, "accuracy").model) == {
        "resnet18 (abcdef01)",
        "resnet18 (as built in)",
    }


def test_two_sizes_are_not_two_versions_of_a_dataset(run: Any, tmp_path: Path):
    for model in ("a", "b"):
        run.accuracy(model, "breastmnist", 0.8, size=28, fingerprint="medmnist-1-750601b1f35ba330")
        run.accuracy(model, "breastmnist", 0.9, size=64, fingerprint="medmnist-1-cc4b2d9a10b7d9fe")
    text = page(run, tmp_path)
    assert set(csv(tmp_path, "accuracy").dataset) == {"breastmnist"}
    assert "breastmnist (" not in text


def test_versions_of_a_dataset_have_labels_of_their_own(run: Any, tmp_path: Path):
    """Fingerprints of one dataset begin alike, and those of phantoms end alike too."""
    for value, noise in ((0.8, 0.01), (0.9, 0.02)):
        run.accuracy("a", "phantom_local", value, fingerprint=f"phantom-1-phantom_local-64-{noise}-scale=(0.94, 1.06)")
    run.accuracy("a", "phantom_local", 0.7, size=64, fingerprint="phantom-1-phantom_local-64-0.01-scale=(0.94, 1.06)")
    text = page(run, tmp_path)
    frame = csv(tmp_path, "accuracy")
    assert frame[frame["size"] == 28].dataset.nunique() == 2
    assert list(frame[frame["size"] == 64].dataset) == ["phantom_local"]
    assert "AUC and ACC are means over 2 variants of one dataset" in text


def test_a_plug_in_dataset_does_not_split_its_models(run: Any, tmp_path: Path):
    """Of a model's plug-in there may be two versions; a dataset's says nothing of the model."""
    run.accuracy("resnet18", "breastmnist", 0.8)
    run.accuracy("resnet18", "mine", 0.9, of={"data_plugin_sha256": 64 * "d"})
    for digest, value in (("1", 0.6), ("2", 0.7)):
        plugin = {"model_plugin_sha256": 64 * digest}
        run.accuracy("net", "breastmnist", value, of=plugin)
        run.efficiency("net", 64, speed=100 * float(digest), of=plugin)
    text = page(run, tmp_path)
    assert set(csv(tmp_path, "accuracy").model) == {"resnet18", "net (11111111)", "net (22222222)"}
    rows = {r["model"]: r["images/s"] for r in table(text, "## Accuracy: ")}
    assert rows == {"resnet18": "–", "net (11111111)": "100", "net (22222222)": "200"}
    assert [r["model"] for r in table(text, "### Inference")] == ["net (11111111)", "net (22222222)"]


def test_a_dataset_plug_in_that_changed_is_another_dataset(run: Any, tmp_path: Path):
    for digest, value in (("d", 0.6), ("e", 0.7)):
        run.accuracy("a", "mine", value, of={"data_plugin_sha256": 64 * digest})
    page(run, tmp_path)
    assert set(csv(tmp_path, "accuracy").dataset) == {"mine (f0, dddddddd)", "mine (f0, eeeeeeee)"}


def test_records_of_earlier_versions_are_the_same_rows(run: Any, tmp_path: Path):
    """Fields that came later are empty in old records; a Cell that ran under both keys counts once."""
    for seed in (0, 1):
        made = run.accuracy("a", "one", 0.8, seed=seed)
        for name in ("model_plugin_sha256", "data_plugin_sha256"):
            del made["spec"][name]
        made["spec"]["plugin_sha256"] = None
    run.accuracy("a", "one", 0.9, seed=1)["key"] = "f" * 20
    run.accuracy("a", "one", 0.7, seed=2)
    page(run, tmp_path)
    assert list(csv(tmp_path, "accuracy").seeds) == [3]


def test_ranked_over_the_largest_table_without_gaps(run: Any, tmp_path: Path):
    values = {"a": (0.9, 0.6, 0.8), "b": (0.8, 0.7, 0.7), "c": (0.7, 0.5, None), "d": (None, None, 0.99)}
    for model, row in values.items():
        for dataset, value in zip(("one", "two", "three"), row, strict=True):
            if value is not None:
                run.accuracy(model, dataset, value, acc=value - 0.1)
    run.accuracy("d", "one", status="timeout", reason="took longer than 10 s")
    text = page(run, tmp_path)
    # one and two: 3 models x 2 = 6; with three: 2 x 3 = 6, and more datasets win a draw
    rows = table(text, "## Accuracy: ")
    assert [(r["#"], r["model"], r["AUC"], r["ACC"], r["mean rank"], r["datasets"]) for r in rows] == [
        ("1", "a", "0.767", "0.667", "1.33", "3/3"),
        ("2", "b", "0.733", "0.633", "1.67", "3/3"),
        ("–", "c", "–", "–", "–", "2/3"),
        ("–", "d", "–", "–", "–", "1/3"),
    ]
    assert "Not ranked, as a result is missing: `c` and `d`." in text
    run.accuracy("e", "one", 0.5)
    run.accuracy("e", "two", 0.5)
    rows = table(page(run, tmp_path), "## Accuracy: ")
    assert [r["model"] for r in rows if r["#"] != "–"] == ["a", "b", "c", "e"]
    assert "Not counted, as too few models have results: `three`" in (tmp_path / "LEADERBOARD.md").read_text()


def test_equal_auc_shares_place_and_rank(run: Any, tmp_path: Path):
    for model, value in {"z": 0.9, "y": 0.9, "x": 0.5}.items():
        run.accuracy(model, "one", value)
    text = page(run, tmp_path)
    assert [(r["#"], r["model"], r["mean rank"]) for r in table(text, "## Accuracy: ")] == [
        ("1", "y", "1.50"), ("1", "z", "1.50"), ("3", "x", "3.00")]  # fmt: skip
    assert "`y` ranks first, shared with `z`," in text


def test_undefined_metrics_are_dashes(run: Any, tmp_path: Path):
    run.accuracy("a", "one", float("nan"), acc=0.5, test_ece=float("nan"))
    run.accuracy("b", "one", 0.6, acc=0.5, test_ece=0.1)
    run.records[1]["metrics"]["test_f1_macro"] = float("nan")  # a caller's own records need not come from disk
    run.efficiency("a", 64, speed=float("nan"), memory=None)
    text = page(run, tmp_path)
    rows = {r["model"]: r for r in table(text, "### `one`")}
    assert (rows["a"]["#"], rows["a"]["AUC"], rows["a"]["ACC"]) == ("–", "–", "0.500")
    assert rows["b"]["#"] == "1"
    assert "nan" not in text.lower().replace("bench run", "")


def test_scores_that_do_not_belong_to_the_record_are_not_used(full_run: Any, tmp_path: Path):
    full_run.write(tmp_path)
    whole = (tmp_path / "LEADERBOARD.md", write_boards(tmp_path, full_run.records))[0].read_text()
    assert whole.count("–\N{WORD JOINER}0.") > 5
    first, second, third, *_ = sorted((tmp_path / "predictions").glob("*.npz"))
    first.write_bytes(b"PK\x03\x04 torn")
    np.savez(second, test_scores=np.random.default_rng(0).random(156), test_labels=np.arange(156) % 2)
    np.savez(third, test_scores=np.array([object()]), test_labels=np.arange(3))
    text = page(full_run, tmp_path, scores=False)
    assert "Saved scores that could not be used" in text
    for path, why in ((first, "cannot be used"), (second, "its record"), (third, "cannot be used")):
        assert f"predictions/{path.name} " in text.replace("\\", "")
        assert why in text


def test_interval_needs_every_seed(full_run: Any, tmp_path: Path):
    full_run.write(tmp_path)
    record = next(r for r in full_run.records if r["spec"].get("seed") == 1 and r["spec"]["model"] == "resnet18")
    (tmp_path / "predictions" / f"{record['key']}.npz").unlink()
    rows = {r["model"]: r for r in table(page(full_run, tmp_path, scores=False), "### `breastmnist`")}
    assert rows["resnet18"]["AUC 95 %"] == "–"
    assert rows["medmamba_tiny"]["AUC 95 %"] != "–"


def test_summary_separates_only_what_the_test_images_separate(run: Any, tmp_path: Path):
    labels = (np.arange(156) < 110).astype(int)
    for model, distance, seed in (("good", 3.0, 1), ("fair", 0.8, 2), ("near", 0.75, 3)):
        scores = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(distance * labels, 1)))
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
    text = page(run, tmp_path)
    assert "`good` ranks first, significantly better than all others: AUC on `breastmnist`" in text
    assert "single seed: of these trained networks only, as training again was not measured" in text
    assert [r["significantly worse"] for r in table(text, "## Accuracy: ")] == ["leader", "yes", "yes"]
    assert "all pairs: 2 of 3 pairs differ significantly" in text
    assert "Chance is AUC 0.5, and ACC 0.705 for the most frequent answer." in text
    run.records = [r for r in run.records if r["spec"]["model"] != "good"]
    assert "but not significantly" in page(run, tmp_path, scores=False)


def test_distance_from_chance(run: Any, tmp_path: Path):
    generator = np.random.default_rng(0)
    labels = (np.arange(156) < 114).astype(int)
    for model, direction in (("right", 1.0), ("blind", 0.0), ("wrong", -1.0)):
        scores = 1 / (1 + np.exp(-generator.normal(direction * labels, 1)))
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
    words = {r["model"]: r["AUC - 0.5"].split()[-1] for r in table(page(run, tmp_path), "### `breastmnist`")}
    assert words == {"right": "clear", "blind": "unclear", "wrong": "below"}
    assert "Significantly better than chance (AUC 0.5): 1 of 3 results;" in (tmp_path / "LEADERBOARD.md").read_text()


def test_an_acc_above_the_most_frequent_answer_has_to_leave_its_interval(run: Any, tmp_path: Path):
    labels = np.repeat([1, 0], [100, 56])
    for model, of_rare in (("lucky", 3), ("good", 50)):  # all of the frequent class right, and so many of the other
        scores = np.where(labels == 1, 0.9, 0.8)
        scores[100 : 100 + of_rare] = 0.1
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
    text = page(run, tmp_path)
    assert "ACC 0.641 for the most frequent answer" in text
    assert "than always giving the most frequent answer (ACC): 1 (95 %, each by itself)." in text


def test_the_fastest_is_named_with_those_that_noise_could_put_before_it(run: Any, tmp_path: Path):
    for model, speed in (("a", 100.0), ("b", 97.0), ("c", 50.0)):
        run.efficiency(model, 64, speed=speed, noise_rel=0.05)
    top = page(run, tmp_path).split("\n## ")[0]
    assert "`a` with 100 images/s; `b` (97.0) is within the noise floor, 9.8 %." in top
    run.records[1]["metrics"]["throughput_images_per_s_p50"] = 70.0
    top = page(run, tmp_path).split("\n## ")[0]
    assert "`a` with 100 images/s; the noise floor is 9.8 %." in top


def test_unicode_and_markup_in_names(run: Any, tmp_path: Path):
    run.accuracy("timm:netz_ä|b", "Röntgen <1>_日本", 0.7, acc=0.6)
    run.accuracy("timm:netz_ä|b", "Röntgen <1>_日本", seed=1, status="failed", reason="keine Datei „x|y“")
    text = page(run, tmp_path)
    assert "| `timm:netz_ä\\|b` |" in text
    assert "### `Röntgen <1>_日本`" in text
    assert csv(tmp_path, "accuracy").iloc[0].dataset == "Röntgen <1>_日本"
    out = io.StringIO()
    Report(run.records, None, tmp_path / "predictions").print(Console(file=out, width=80))
    assert "timm:netz_ä|b" in out.getvalue()
    assert all(cell_len(line) <= 80 for line in out.getvalue().splitlines())


def test_only_efficiency(run: Any, tmp_path: Path):
    for resolution in (64, 128, 256):
        run.efficiency("resnet18", resolution, speed=1e6 / resolution**2, memory=10.0 * resolution, params=0)
    text = page(run, tmp_path)
    assert "## Accuracy" not in text
    assert "## By dataset" not in text
    (row,) = table(text, "Growth with the image")
    assert (row["time exponent"], row["memory exponent"], row["points"]) == ("1.00", "0.50", "3")
    assert "Noise floor: not measured" in text
    assert len(csv(tmp_path, "accuracy")) == 0


def test_only_accuracy(run: Any, tmp_path: Path):
    run.accuracy("resnet18", "one", 0.8, acc=0.7)
    text = page(run, tmp_path)
    assert "## Efficiency" not in text
    assert "images/s" not in text
    assert "- `resnet18` alone has a full set of results" in text
    assert len(pd.read_csv(tmp_path / "leaderboard_efficiency.csv")) == 0


def test_machines_settings_and_batches_are_never_mixed(run: Any, tmp_path: Path):
    for batch, speed in ((1, 10.0), (8, 50.0)):
        run.efficiency("a", 64, speed=speed, batch=batch)
    run.efficiency("a", 64, speed=900.0, device="cuda:0", noise_rel=0.004)
    run.efficiency("a", 64, speed=1500.0, device="cuda:0", precision="bf16")
    run.efficiency("a", 64, speed=20.0, mode="train")
    run.accuracy("a", "one", 0.8)
    text = page(run, tmp_path)
    headings = [line for line in text.splitlines() if line.startswith("### ")][:-1]
    assert headings == [
        "### Inference, fp32, eager, cuda:0 (Some GPU)",
        "### Inference, fp32, eager, cpu (Some CPU), 2 threads",
        "### Inference, bf16, eager, cuda:0 (Some GPU)",
        "### Training step, fp32, eager, cpu (Some CPU), 2 threads",
    ]
    assert [(r["batch"], r["images/s"]) for r in table(text, headings[1])] == [("1", "10.0"), ("8", "50.0")]
    assert table(text, "## Accuracy: ")[0]["images/s"] == "900"
    assert "Cost at 64 px: inference, fp32, eager, cuda:0 (Some GPU);" in text


def test_what_disturbed_a_row_and_what_was_not_counted_is_said(run: Any, tmp_path: Path):
    run.efficiency(
        "a", 64, speed=10.0, noisy=False, noisy_evidence=["round 1: another process on the GPU"], noise_rel=0.01
    )
    run.efficiency("b", 64, speed=10.0, macs_g=None, flops_error="operator aten::foo is neither counted nor free")
    text = page(run, tmp_path)
    assert [r["flags"] for r in table(text, "### Inference")] == ["disturbed", "FLOPs not counted"]
    assert "`a` at 64 px, batch 8: round 1: another process on the GPU." in text
    assert "`b` at 64 px, batch 8: FLOPs not counted: operator aten::foo is neither counted nor free." in text


def test_every_cell_without_a_result_is_listed_with_its_reason(full_run: Any, tmp_path: Path):
    rows = table(page(full_run, tmp_path), "## Without a result")
    assert {(r["model"], r["status"]) for r in rows} == {
        ("medmamba_tiny", "oom"),
        ("resnet18", "diverged"),
        ("swin_tiny", "unsupported"),
        ("vit_tiny_patch16_224", "failed"),
    }
    assert [r["cells"] for r in rows if r["status"] == "unsupported"] == ["2"]
    frame = csv(tmp_path, "accuracy")
    assert frame[frame.status == "unsupported"].reason.eq("the resolution must be a multiple of 7").all()
    assert sum(r["images/s"] == "oom" for r in table((tmp_path / "LEADERBOARD.md").read_text(), "### Inference")) == 1


def test_csv_reads_back_equal(full_run: Any, tmp_path: Path):
    full_run.write(tmp_path)
    write_boards(tmp_path, full_run.records)
    report = Report(full_run.records, {}, tmp_path / "predictions")
    frame = csv(tmp_path, "accuracy")
    assert len(frame) == len(report.rows)
    for row, (_, line) in zip(report.rows, frame.iterrows(), strict=True):
        assert (row.model, row.dataset, len(row.ok)) == (line.model, line.dataset, line.seeds)
        for metric in ("test_auc", "test_acc", "test_ece"):
            mean = row.mean(metric)
            assert (mean == line[metric]) if mean is not None else pd.isna(line[metric])
    speeds = pd.read_csv(tmp_path / "leaderboard_efficiency.csv", engine="python").set_index("key")
    for record in full_run.records:
        if record["kind"] == "efficiency" and record["status"] == "ok":
            for name, value in record["metrics"].items():
                assert isinstance(value, list) or value is None or speeds.loc[record["key"], name] == value


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_holds_the_same_and_fits(full_run: Any, run_info: dict[str, Any], tmp_path: Path, width: int):
    full_run.write(tmp_path)
    out = io.StringIO()
    Report(full_run.records, run_info, tmp_path / "predictions").print(Console(file=out, width=width))
    text = out.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    for words in (
        "vit_tiny_patch16_224",
        "unsupported",
        "Noise floor: 4.1 % in images/s",
        run_info["command"],
        "+0.4",
    ):
        assert words in text


def test_report_imports_neither_torch_nor_pandas():
    code = (
        "import sys, bench.report.build as board; board.Report([]); "
        "print([m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_long_reason_keeps_its_beginning(run: Any, tmp_path: Path):
    run.accuracy("a", "one", status="failed", reason="/" + "x" * 400)
    assert f"/{'x' * 238}…" in page(run, tmp_path)

"""``report.html`` without a browser: what is embedded, that nothing in a Record becomes markup, the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.record.store import StoreError, read_records
from bench.report.build import Report, rebuild
from bench.report.figures.draw import COLOURS
from bench.report.figures.figures import friedman_note
from bench.report.write import html, page_data
from bench.stats import ranking

HOSTILE = '</script><img src=x onerror="alert(1)"><!-- `$&{{data}}'
CURVE = "epoch,train_loss,val_loss,val_auc,val_acc,lr\n1,0.7,0.69,0.61,0.5,0.001\n2,0.5,nan,0.7123456,0.6,0.0001\n"


def page_of(run: Any, out: Path, info: dict[str, Any] | None = None) -> str:
    run.write(out)
    return page_text(Report(run.records, info, out / "predictions"), out)


def page_text(report: Report, out: Path) -> str:
    return html.page(report, report.sections, out)


def embedded(text: str) -> dict[str, Any]:
    """The document of a page as its script sees it."""
    found = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    for cell in found["cells"]:
        empty = {"spec": {}, "metrics": {}, "timings": {}, "log": "", "reason": "", "model": ""}
        cell |= {**empty, **cell, "environment": found["environments"][cell["environment"]]}
    return found


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_document_holds_the_records(full_run: Any, run_info: dict[str, Any], tmp_path: Path):
    first = next(r for r in full_run.records if r["kind"] == "accuracy")
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / f"{first['key']}.csv").write_text(CURVE)
    document = embedded(page_of(full_run, tmp_path, run_info))
    records = {r["key"]: r for r in full_run.records}
    assert {cell["key"] for cell in document["cells"]} == set(records)
    for cell in document["cells"]:
        record = records[cell["key"]]
        assert cell["status"] == record["status"] and cell["reason"] == record["reason"]
        assert cell["spec"] == record["spec"] and cell["environment"] == record["environment"]
        for name, value in record["metrics"].items():
            assert cell["metrics"][name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    curves = next(cell for cell in document["cells"] if cell["key"] == first["key"])["history"]
    assert curves["epoch"] == [1, 2] and curves["val_loss"] == [0.69, None]
    assert curves["val_auc"] == [0.61, pytest.approx(0.7123, abs=5e-5)]
    row = next(r for r in document["rows"] if r["model"] == "resnet18" and len(r["cells"]) == 2)
    both = [document["cells"][i]["metrics"]["test_auc"] for i in row["cells"]]
    assert row["auc"] == pytest.approx(np.mean(both), abs=1e-5) and row["auc_low"] < row["auc"] < row["auc_high"]


def test_calibration_bins_give_the_ece_of_sklearn_free_arithmetic(run: Any, tmp_path: Path):
    generator = np.random.default_rng(3)
    scores = generator.dirichlet(np.ones(4), 500)
    labels = generator.integers(4, size=500)
    run.accuracy("resnet18", "bloodmnist", scores=scores, labels=labels)
    (cell,) = embedded(page_of(run, tmp_path))["cells"]
    confidence, right = scores.max(1), scores.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:  # the definition, bin by bin
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    bins = cell["reliability"]
    assert sum(n for *_, n in bins) == 500
    assert sum(abs(c - r) * n for c, r, n in bins) / 500 == pytest.approx(expected, abs=1e-4)


def test_nothing_in_a_record_becomes_markup(run: Any, tmp_path: Path):
    run.accuracy(HOSTILE, HOSTILE, 0.9, acc=0.8)
    bad = run.accuracy("vit", HOSTILE, status="failed", reason=HOSTILE)
    run.efficiency(HOSTILE, 64, speed=10.0, noisy=True, noisy_evidence=[HOSTILE])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{bad['key']}.log").write_text(f"{HOSTILE}\n\u2028<script>alert(2)</script>")
    text = page_of(run, tmp_path, {"command": HOSTILE, "preset": HOSTILE, "skipped": [HOSTILE]})
    parser = Elements()
    parser.feed(text)
    assert [tag for tag, _ in parser.tags if tag in ("script", "img", "iframe", "object", "link", "base")] == [
        "script"
    ] * 2
    assert not [name for _, attributes in parser.tags for name in attributes if name.startswith("on")]
    document = embedded(text)
    assert {cell["model"] for cell in document["cells"]} == {HOSTILE, "vit"}
    failed = next(cell for cell in document["cells"] if cell["status"] == "failed")
    assert failed["reason"] == HOSTILE and failed["log"].endswith("\u2028<script>alert(2)</script>")
    assert any(HOSTILE in shown for shown in parser.texts), "the name itself is shown"


def test_only_its_own_script_may_run_and_nothing_is_loaded(full_run: Any, tmp_path: Path):
    text = page_of(full_run, tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#x27;", "'")
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script
    assert set(re.findall(r"https?://[^\s'\"]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|srcset)=|url\(|@import", text)


def test_same_run_same_bytes(full_run: Any, run_info: dict[str, Any], tmp_path: Path):
    first = page_of(full_run, tmp_path, run_info)
    for seed in range(2):
        shuffled = [dict(reversed(list(r.items()))) for r in full_run.records * 2]
        random.Random(seed).shuffle(shuffled)
        assert page_text(Report(shuffled, run_info, tmp_path / "predictions"), tmp_path) == first


def test_boards_are_plain_tables(full_run: Any, run_info: dict[str, Any], tmp_path: Path):
    parser = Elements()
    parser.feed(page_of(full_run, tmp_path, run_info))
    heads = [attributes for tag, attributes in parser.tags if tag == "th"]
    assert heads and all(attributes.get("scope") in ("col", "row") for attributes in heads)
    assert sum(tag == "h1" for tag, _ in parser.tags) == 1
    assert any("the resolution must be a multiple of 7" in shown for shown in parser.texts)


def test_an_empty_run_has_a_page(tmp_path: Path, run_info: dict[str, Any]):
    text = page_text(Report([], run_info), tmp_path)
    assert "Nothing has been measured yet." in text and embedded(text)["cells"] == []


@pytest.mark.parametrize(
    ("log", "shown"),
    [("\x1b[31mred\x1b[0m", "red"), ("10 %\r20 %\rdone\nnext", "done\nnext"), ("a\r\nb", "a\nb"), ("a\x00\x07b", "ab")],
)
def test_logs_are_text(log: str, shown: str):
    assert page_data.clean(log) == shown


def test_long_histories_and_logs_are_cut(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch):
    key = run.accuracy("resnet18", "breastmnist", 0.8)["key"]
    for folder in ("history", "logs"):
        (tmp_path / folder).mkdir()
    lines = [f"{epoch},{1 / epoch}" for epoch in range(1, 1001)]
    (tmp_path / "history" / f"{key}.csv").write_text("\n".join(["epoch,train_loss", *lines]))
    (tmp_path / "logs" / f"{key}.log").write_text("\n".join(f"line {i}" for i in range(5000)))
    (cell,) = embedded(page_of(run, tmp_path))["cells"]
    epochs = cell["history"]["epoch"]
    assert len(epochs) == page_data.MAX_EPOCHS and (epochs[0], epochs[-1]) == (1, 1000)
    assert cell["log"].startswith("… (the file has the beginning)\n") and cell["log"].endswith("line 4999")
    assert len(cell["log"]) <= page_data.LOG_CHARS + 40
    assert re.fullmatch(r"line \d+", cell["log"].splitlines()[1]), "it begins with a whole line"


def test_pictures_of_explain_are_in_the_page_while_there_is_room(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
):
    key = run.accuracy("resnet18", "breastmnist", 0.8)["key"]
    (tmp_path / "explain" / key).mkdir(parents=True)
    for name, size in (("a", 30), ("b", 80), ("c", 60)):
        (tmp_path / "explain" / key / f"{name}.png").write_bytes(bytes(size))
    monkeypatch.setattr(page_data, "ALL_PICTURE_BYTES", 100)
    (cell,) = embedded(page_of(run, tmp_path))["cells"]
    assert [(name, len(base64.b64decode(data))) for name, data in cell["pictures"]] == [("a", 30), ("b", 0), ("c", 60)]


@pytest.mark.slow
def test_two_thousand_records(tmp_path: Path, run: Any):
    """With 100 epochs and a log each; what README says of the size."""
    for i in range(2000):
        made = run.accuracy(f"model{i % 25}", f"set{i // 25 % 16}", 0.5 + (i % 997) / 2000, acc=0.7, seed=i // 400)
        made["metrics"].update(
            {f"test_metric_{j}": (i * j % 991) / 991 for j in range(20)}, test_confusion=[[5, 1], [2, i]]
        )
    (tmp_path / "history").mkdir()
    (tmp_path / "logs").mkdir()
    generator = np.random.default_rng(1)
    for record in run.records:
        values = generator.random((100, 5))
        rows = [",".join([str(i), *map(str, row)]) for i, row in enumerate(values)]
        (tmp_path / "history" / f"{record['key']}.csv").write_text(
            "\n".join(["epoch,train_loss,val_loss,val_auc,val_acc,lr", *rows])
        )
        (tmp_path / "logs" / f"{record['key']}.log").write_text("\n".join(map(str, generator.random(100))))
    text = page_text(Report(run.records, {}), tmp_path)
    assert len(embedded(text)["cells"]) == 2000 and len(text.encode()) < 7_000_000


def test_of_very_many_cells_only_the_figures_are_in_the_page(
    full_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(page_data, "MAX_DETAILED", 5)
    (tmp_path / "history").mkdir()
    for record in full_run.records:
        (tmp_path / "history" / f"{record['key']}.csv").write_text(CURVE)
    document = embedded(page_of(full_run, tmp_path))
    assert document["detailed"] is False and len(document["cells"]) == len(full_run.records)
    assert not any("history" in cell or "reliability" in cell for cell in document["cells"])
    assert any("test_confusion" in cell["metrics"] for cell in document["cells"])


def test_beyond_its_budget_the_page_has_one_seed_of_a_row_with_each_status(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(page_data, "MAX_CELLS", 5)
    for seed in range(4):
        run.accuracy("resnet18", "breastmnist", 0.8 + seed / 100, seed=seed)
    for seed in (4, 5):
        run.accuracy("resnet18", "breastmnist", 0.5, seed=seed, status="failed", reason="no memory")
    run.efficiency("resnet18", 64, speed=100.0)
    document = embedded(page_text(Report(run.records), tmp_path))
    (row,) = document["rows"]
    assert [document["cells"][i]["status"] for i in row["cells"] + row["other"]] == ["ok", "failed"]
    assert (row["seeds"], document["left_out"], len(document["cells"])) == (4, 4, 3)
    assert row["auc"] == pytest.approx(0.815)  # of all four


def test_files_that_cannot_be_read_are_left(tmp_path: Path, run: Any):
    key = run.accuracy("resnet18", "breastmnist", 0.8)["key"]
    for folder, data in (
        ("history", b"epoch\nnonsense,\xff\xfe\n"),
        ("predictions", b"no archive"),
        ("logs", b"\xff\xfe"),
    ):
        (tmp_path / folder).mkdir()
        suffix = {"history": "csv", "predictions": "npz", "logs": "log"}[folder]
        (tmp_path / folder / f"{key}.{suffix}").write_bytes(data)
    (cell,) = embedded(page_of(run, tmp_path))["cells"]
    assert "history" not in cell and "reliability" not in cell and cell["log"] == "\ufffd\ufffd"


def test_short_names_stay_distinct(run: Any):
    for model in ("vit_tiny_patch16_224", "vit_tiny_patch8_224", "swin_tiny_patch4_window7_224", "timm:convnext_tiny"):
        run.accuracy(model, "breastmnist", 0.8)
    codes = page_data.collect(Report(run.records), Path("/nowhere"))["codes"]
    assert {code["name"]: code["short"] for code in codes} == {
        "vit_tiny_patch16_224": "vit_tiny_patch16_224", "vit_tiny_patch8_224": "vit_tiny_patch8_224",
        "swin_tiny_patch4_window7_224": "swin_tiny", "timm:convnext_tiny": "convnext_tiny",
    }  # fmt: skip
    assert page_data.short("vit_tiny_patch16_224[pool=gap]") == "vit_tiny[pool=gap]"


def test_json_cannot_end_its_script():
    value = {"a": "</script>&<!--\u2028\u2029", "b": [None, True, 1.5, "é"]}
    text = html.script_json(value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_rebuild_says_what_is_no_run(tmp_path: Path):
    with pytest.raises(StoreError, match="is not a run directory: it has no cells/ and no run"):
        rebuild(tmp_path)


def test_rebuild_writes_boards_and_page(full_run: Any, tmp_path: Path):
    full_run.write(tmp_path)
    (tmp_path / "cells" / "torn.json").write_text("{")
    paths, problems = rebuild(tmp_path, figures=False)
    assert {path.name for path in paths} >= {"LEADERBOARD.md"} and (tmp_path / "report.html").is_file()
    assert len(problems) == 1 and "torn.json" in problems[0]
    assert len(read_records(tmp_path)[0]) == len(full_run.records)


# --- colours: the sRGB formulas of WCAG 2 and the colour-vision matrices of Machado et al. 2009 (severity 1) ------

MACHADO = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.clip(xyz, 0, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def themes() -> dict[str, dict[str, str]]:
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", html.asset("report.css"))
    return {theme: {name: pair[i] for name, *pair in found} for i, theme in enumerate(("light", "dark"))}


def test_page_and_pictures_agree_in_colours():
    assert tuple(themes()["light"][f"c{i}"] for i in range(7)) == COLOURS


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_seen(theme: str):
    colours = themes()[theme]
    for name in ("text", "soft", "link", "bad", "good"):
        for behind in ("page", "panel"):
            assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    for i in range(7):
        assert contrast(colours[f"c{i}"], colours["page"]) >= 3, f"c{i}"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", [None, *MACHADO])
def test_families_differ_for_colour_blind_readers(theme: str, sight: str | None):
    matrix = np.array(MACHADO[sight]) if sight else np.eye(3)
    seen = [lab(np.clip(matrix @ linear(themes()[theme][f"c{i}"]), 0, 1)) for i in range(7)]
    nearest = min(float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i])
    assert nearest > 20, "less is told by marker and dashes alone"


@pytest.mark.parametrize(("scores", "proven"), [([3.0, 2.0, 1.0], True), ([1.0, 1.0001, 1.0], False)])
def test_bars_over_datasets_prove_nothing_without_friedman(scores: list[float], proven: bool) -> None:
    rng = np.random.default_rng(0)
    test = ranking.friedman(np.asarray(scores) + rng.normal(0, 0.01, (8, 3)))
    note = friedman_note(test)
    assert (test.p < 0.05) is proven
    assert ("do not overlap, the models differ" in note) is proven


def test_the_first_screen_says_what_was_run_and_what_to_take(four: Any, tmp_path: Path):
    record = next(r for r in four.records if r["spec"]["model"] == "small" and r["kind"] == "accuracy")
    arrays = four.arrays[record["key"]]
    names = np.array([f"clinic/scan_{i}.png" for i in range(600)])
    arrays["test_names"] = names
    for one in four.records:
        if one["kind"] == "accuracy":
            one["metrics"] |= {"classes": ["benign", "malignant"], "positive_class": "malignant"}
            one["metrics"] |= {"positive_class_guessed": False, "test_sensitivity": 0.8, "test_specificity": 0.7}
    text = page_of(four, tmp_path, {"date": "2026-11-28"})
    parser = Elements()
    parser.feed(text)
    said = " ".join(" ".join(parser.texts).split())
    for fact in ("breastmnist (600 test images)", "Date 2026-11-28", "Machine Some CPU", "State complete: 16 cells"):
        assert fact in said
    assert (
        said.index("Recommended: small . AUC on")
        < said.index("sens. / spec. (malignant)")
        < said.index("Six predictions")
    )
    assert "0.80 / 0.70" in said and "significantly worse than the pick" in said
    shown = embedded(text)["decision"]["examples"]["lines"]
    scores, labels = arrays["test_scores"], arrays["test_labels"]
    sure, right = np.maximum(scores, 1 - scores), (scores > 0.5) == labels
    for of, lines in ((right, shown[:3]), (~right, shown[3:])):
        order = [i for i in np.argsort(-sure, kind="stable") if of[i]][:3]
        assert [line[0] for line in lines] == [str(names[i]) for i in order]
        assert [line[1] for line in lines] == [["benign", "malignant"][labels[i]] for i in order]
    assert text.count("<dt>AUC</dt>") == 1, "one glossary"
    assert "clinic/scan_" in said and "<img" not in text


def test_without_a_result_nothing_is_recommended(run: Any, tmp_path: Path):
    run.efficiency("a", 64, speed=1.0)
    text = page_of(run, tmp_path)
    assert "No network is recommended: no model has a test result." in text and 'decision-table"' not in text

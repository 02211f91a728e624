"""Operating points on boards: the flags, the figures in five places, decision curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_curve

from bench.cli.main import main
from bench.metrics.classification import classification_metrics
from bench.metrics.operating import Rule, net_benefit
from bench.record.store import load_records
from bench.report.build import Report
from bench.report.figures.figures import figures
from bench.report.write.csv import export_records

LABELS = np.repeat([0, 1], [40, 60])  # malignant is class 0


def fill(run: Any, patients: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two models on one set; the scores of validation and test of the better one, of class 1."""
    generator = np.random.default_rng(0)
    kept = []
    for model, sharp in (("good", 2.0), ("poor", 0.6)):
        val, test = (1 / (1 + np.exp(-generator.normal(sharp * (LABELS - 0.5), 1))) for _ in range(2))
        figures = classification_metrics(LABELS, test, "binary-class", 0)
        said = {f"test_{k}": v for k, v in figures.items() if k not in ("auc", "acc", "nll")}
        made = run.accuracy(
            model, "set0", scores=test, labels=LABELS, classes=["malignant", "normal"], positive_class="malignant",
            positive_class_guessed=False, **said,
        )  # fmt: skip
        run.arrays[made["key"]] |= {"val_scores": val, "val_labels": LABELS}
        if patients:
            run.arrays[made["key"]]["test_patients"] = np.array([f"p{i // 5}" for i in range(len(LABELS))])
        kept.append((val, test))
    return kept[0]


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The lines of the first table that has a heading, by model."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[at:]]
    found = {}
    for row in [rows[0], *rows[2:]]:
        if len(row) < 2:
            break
        found[row[0]] = row
    return found


def test_a_fixed_sensitivity_is_chosen_on_validation_and_reported_on_test(run: Any, tmp_path: Path) -> None:
    val, test = fill(run)
    run.write(tmp_path)
    main(["leaderboard", str(tmp_path), "--sensitivity", "0.95", "--prevalence", "0.01"])
    found = table((tmp_path / "LEADERBOARD.md").read_text(), "sensitivity at threshold (malignant)")
    good = dict(zip(found["model"], found["good"], strict=True))
    _, true, thresholds = roc_curve(LABELS == 0, 1 - val, drop_intermediate=False)
    at = thresholds[true >= 0.95].max()
    yes = 1 - test >= at
    sensitivity, specificity = yes[LABELS == 0].mean(), (~yes[LABELS == 1]).mean()
    assert good["threshold"] == f"{at:.3f}"
    assert good["sensitivity at threshold (malignant)"] == f"{sensitivity:.3f}"
    assert good["specificity at threshold (malignant)"] == f"{specificity:.3f}"
    ppv = sensitivity * 0.01 / (sensitivity * 0.01 + (1 - specificity) * 0.99)
    assert good["PPV"] == f"{ppv:.3f}" and good["LR+"] == f"{sensitivity / (1 - specificity):.2f}"


def test_one_sensitivity_in_five_places(run: Any, tmp_path: Path) -> None:
    _, test = fill(run)
    run.write(tmp_path)
    assert main(["leaderboard", str(tmp_path)]) == 0
    expected = recall_score(LABELS, (test > 0.5).astype(int), pos_label=0)
    record = next(r for r in run.records if r["spec"]["model"] == "good")
    assert record["metrics"]["test_sensitivity"] == expected
    (line,) = [r for r in csv.DictReader((tmp_path / "leaderboard_accuracy.csv").open()) if r["model"] == "good"]
    assert float(line["test_sensitivity"]) == expected and line["positive_class"] == "malignant"
    text = (tmp_path / "LEADERBOARD.md").read_text()
    found = table(text, "sensitivity (malignant)")
    good = dict(zip(found["model"], found["good"], strict=True))
    assert good["sensitivity (malignant)"] == f"{expected:.3f}"
    assert good["sensitivity at Youden (malignant)"] == f"{float(line['test_sensitivity_youden']):.3f}"
    assert f'"test_sensitivity":{expected}' in (tmp_path / "report.html").read_text()
    export_records(tmp_path, tmp_path / "all.csv")
    (row,) = [r for r in csv.DictReader((tmp_path / "all.csv").open()) if r["model"] == "good"]
    assert float(row["test_sensitivity"]) == expected
    frame = load_records(tmp_path)
    assert frame[frame["model"] == "good"]["test_sensitivity"].item() == expected


def test_patients_are_told_and_widen_the_interval(run: Any, tmp_path: Path) -> None:
    fill(run, patients=True)
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    text = "\n".join(str(block) for section in report.sections for block in section.blocks)
    assert "Test: 100 images of 20 patients; intervals and tests count the images of a patient together." in text
    assert "95 % by Wilson, over patients" in text and "resamples of patients" in text
    assert "With 100 images of 20 patients the test resolves a difference in AUC of" in text
    line = next(csv.DictReader((tmp_path / "leaderboard_accuracy.csv").open())) if report.write(tmp_path) else {}
    assert line["n_test_patients"] == "20"


def test_the_decision_curve_is_a_figure_and_says_what_treating_all_gains(run: Any, tmp_path: Path) -> None:
    _, test = fill(run)
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions", rule=Rule(prevalence=0.2))
    drawn = dict(figures(report, tmp_path))
    (lines,) = [figure for name, figure in drawn.items() if name.startswith("decision")]
    curves = {curve.label: curve.points for curve in lines.keywords["panels"][0]}
    assert set(curves) == {"treat all", "good", "poor"}
    chances = np.array([x for x, _ in curves["good"]])
    expected = net_benefit(1 - test, LABELS == 0, chances, 0.2)
    np.testing.assert_allclose([y for _, y in curves["good"]], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sensitivity", "95"], "'95' is not a number between 0 and 1 (such as 0.95)"),
        (["--cost", "0"], "'0' is not a number above 0"),
        (["--sensitivity", "0.9", "--specificity", "0.9"], "not allowed with argument --sensitivity"),
    ],
)
def test_wrong_rules_are_refused(flags: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["leaderboard", str(tmp_path), *flags])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_labels_have_a_table_with_macro_and_micro(run: Any, tmp_path: Path) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = np.random.default_rng(5)
    labels = (generator.random((120, 3)) < [0.5, 0.2, 0.1]).astype(int)
    scores = 1 / (1 + np.exp(-generator.normal(1.5 * labels - 1, 1)))
    area, right = roc_auc_score(labels, scores, average="macro"), ((scores > 0.5) == labels).mean()
    made = run.accuracy("net", "set0", area, acc=right, classes=["mass", "nodule", "hernia"])
    run.arrays[made["key"]] = {"test_scores": scores, "test_labels": labels, "val_scores": scores, "val_labels": labels}
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    report.write(tmp_path)
    found = table((tmp_path / "LEADERBOARD.md").read_text(), "| label |")
    heads = found["label"]
    for k, name in enumerate(("mass", "nodule", "hernia")):
        line = dict(zip(heads, found[name], strict=True))
        assert line["positive"] == str(labels[:, k].sum())
        assert line["AUC"] == f"{roc_auc_score(labels[:, k], scores[:, k]):.3f}"
        assert line["AUPRC"] == f"{average_precision_score(labels[:, k], scores[:, k]):.3f}"
    for average in ("macro", "micro"):
        line = dict(zip(heads, found[average], strict=True))
        assert line["AUC"] == f"{roc_auc_score(labels, scores, average=average):.3f}"
        assert line["AUPRC"] == f"{average_precision_score(labels, scores, average=average):.3f}"

"""The pictures of a run: which there are, the same bytes again, names as they are."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.report.build import Report
from bench.report.figures import draw
from bench.report.figures import figures as drawn
from bench.report.figures.figures import figures, slug, write_figures

CURVE = "epoch,train_loss,val_auc\n1,0.7,0.6\n2,0.5,0.7\n"


def report_of(run: Any, out: Path) -> Report:
    run.write(out)
    return Report(run.records, None, out / "predictions")


def test_every_kind_of_figure(full_run: Any, tmp_path: Path):
    (tmp_path / "history").mkdir()
    for record in full_run.records:
        if record["kind"] == "accuracy" and record["spec"]["dataset"] == "breastmnist":
            (tmp_path / "history" / f"{record['key']}.csv").write_text(CURVE)
    found = dict(figures(report_of(full_run, tmp_path), tmp_path))
    kinds = {name.split("_")[0] for name in found}
    assert kinds == {"pareto", "ranks", "scaling", "training", "confusion", "reliability"}
    assert len({name.lower() for name in found}) == len(found) and all(len(name) <= 75 for name in found)
    scatter = next(f for name, f in found.items() if name.startswith("pareto_throughput"))
    assert scatter.func is draw.scatter and scatter.keywords["x"].title == "throughput (images/s)"
    speeds = {p.label: p.x for p in scatter.keywords["points"]}
    assert speeds["resnet18"] == pytest.approx(400) and speeds["medmamba_tiny"] == pytest.approx(90)
    lines = next(f for name, f in found.items() if name.startswith("scaling_throughput"))
    assert lines.func is draw.lines
    expected = tuple((r, pytest.approx(90 / (r / 64) ** 2)) for r in (64, 128, 256))
    assert lines.keywords["panels"][0][0].points == expected
    training = next(f for name, f in found.items() if name.startswith("training"))
    assert training.keywords["panels"][0][0].points == ((1, 0.6), (2, 0.7))
    confusion = next(f for name, f in found.items() if name.startswith("confusion"))
    assert confusion.keywords["panels"][0][1].keywords["counts"] == [[50, 0], [10, 40]]


def test_a_confusion_matrix_names_its_classes() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw.confusion(axes, counts=[[5, 1], [2, 6]], classes=["malignant", "normal or benign"])
    for shown in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in shown] == ["malignant", "normal or ben…"]
    draw.confusion(axes, counts=[[5, 1], [2, 6]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]


def test_same_run_same_bytes_and_old_figures_go(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drawn, "MEASURES", drawn.MEASURES[:1])  # each figure takes a good part of a second
    for i, model in enumerate(("resnet18", "a$b$_^{c}", "模型 <&>")):  # no mathematics, no markup
        run.accuracy(model, "breastmnist", 0.7 + 0.1 * i, acc=0.7, test_confusion=[[5, 1], [2, 6]])
        run.efficiency(model, 64, speed=100.0 / (i + 1), memory=50.0)
    report = report_of(run, tmp_path)
    first = {path: path.read_bytes() for path in write_figures(report, tmp_path)}
    assert {path.suffix for path in first} == {".png", ".svg"}
    for name in ("pareto_gone.png", "scaling_gone.svg", "mine_own.png", "note.txt"):
        (tmp_path / "figures" / name).write_bytes(b"")
    again = {path: path.read_bytes() for path in write_figures(report, tmp_path)}
    assert again == first
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {p.name for p in first} | {"mine_own.png", "note.txt"}
    png = next(data for path, data in first.items() if path.name == "pareto_throughput.png")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (1080, 720)
    svg = next(data for path, data in first.items() if path.name == "pareto_throughput.svg").decode()
    assert "<dc:date>" not in svg and "<script" not in svg


def test_ranks_and_the_critical_difference(run: Any, tmp_path: Path):
    models = {"resnet18": 3.0, "vit_tiny_patch16_224": 1.0, "medmamba_tiny": 0.2}
    for i in range(6):
        for j, (model, distance) in enumerate(models.items()):
            labels = np.arange(200) % 2
            scores = 1 / (1 + np.exp(-np.random.default_rng(10 * i + j).normal(labels * distance, 1.0)))
            run.accuracy(model, f"set{i}", scores=scores, labels=labels)
    found = dict(figures(report_of(run, tmp_path), tmp_path))
    ranks, difference = found["ranks_auc"], found["difference_auc"]
    assert ranks.func is difference.func is draw.bars
    ranks, bars = (found.keywords["ranks"] for found in (ranks, difference))
    assert [bar.label for bar in ranks] == ["resnet18", "vit_tiny", "medmamba_tiny"]
    assert [(bar.x, bar.low, bar.high, bar.groups) for bar in ranks] == [
        (1, 1, 1, "a"),
        (2, 2, 2, "b"),
        (3, 3, 3, "c"),
    ]
    # Nemenyi: 2.343 (Demsar 2006, table 5a, three models) times the square root of 3 * 4 / (6 * 6 datasets)
    assert bars[0].high - bars[0].low == pytest.approx(2.343 * (12 / 36) ** 0.5, abs=2e-3)
    assert [bar.x for bar in bars] == [1, 2, 3]
    assert set(draw.render(difference)) == {"png", "svg"}


@pytest.mark.parametrize("n", [1, 30])
def test_names_at_the_ends_of_lines_do_not_touch(n: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [draw.Curve(f"model{i}", i, ((1.0, 0.5), (2.0, 0.5 + i / 1000))) for i in range(n)]
    canvas = Figure(layout="constrained")
    FigureCanvasAgg(canvas)
    axis = draw.Axis("epoch")
    draw.lines(canvas, title="t", note="", axes=[(axis, axis)], panels=[curves])
    heights = sorted(text.xyann[1] for text in canvas.axes[0].texts)
    assert len(heights) == n and heights[0] >= -1e-9 and heights[-1] <= 1 + 1e-9
    gaps = [b - a for a, b in pairwise(heights)]
    assert not gaps or max(gaps) - min(gaps) < 0.02 or min(gaps) > 0.02


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["pareto", "flops", "28→32 px (nearest), quick"], "pareto_flops_28-32-px-nearest-quick"),
        (["training", "folder:../My Data/x"], "training_folder-..-my-data-x"),
        (["confusion", "", "模型"], "confusion"),
    ],
)
def test_slug(parts: list[str], name: str):
    assert slug(parts) == name


def test_an_empty_run_has_no_figures(tmp_path: Path, run: Any):
    assert write_figures(report_of(run, tmp_path), tmp_path) == []

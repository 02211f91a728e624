"""How small a lesion a model finds: AUC by diameter on the phantom, against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench import registry
from bench.datasets.phantoms import describe
from bench.report.build import Report
from bench.report.clinical.lesions import lesion_blocks, lesion_curve, sizes_of, smallest_found
from bench.report.figures.figures import figures
from bench.stats.separation import Estimate

COUNT = 400


def made(run: Any, out: Path, dataset: str = f"phantom_small[train={COUNT}]", fingerprint: str = "") -> Report:
    """Two models: one sees what is larger than 8 % of the image, the other nothing; two seeds."""
    scene = describe("phantom_small", "test", COUNT)
    of = {"data_fingerprint": fingerprint or registry.dataset_info(dataset).open().fingerprint(64, None)}
    for model, reach in (("keen", 0.08), ("blind", 9.0)):
        for seed in range(2):
            noise = np.random.default_rng(seed + int(reach)).normal(size=COUNT)
            scores = 1 / (1 + np.exp(-(noise + 4 * (scene["lesion_diameter"] > reach))))
            run.accuracy(model, dataset, seed=seed, size=64, scores=scores, labels=scene["label"], of=of)
    return Report(run.write(out) and run.records, {}, out / "predictions")


def test_each_size_against_all_without_a_lesion(run: Any, tmp_path: Path) -> None:
    report = made(run, tmp_path)
    rows = {row.model: row for row in report.rows}
    sizes = sizes_of(rows["keen"])
    diameters = describe("phantom_small", "test", COUNT)["lesion_diameter"]
    lesions = np.sort(diameters[diameters > 0])
    assert [size.lesions for size in sizes] == [len(part) for part in np.array_split(lesions, 5)]
    assert [size.low for size in sizes] == pytest.approx([64 * part[0] for part in np.array_split(lesions, 5)])
    curve = lesion_curve(rows["keen"])
    for size, (middle, value) in zip(sizes, curve, strict=True):
        chosen = (diameters == 0) | ((64 * diameters >= size.low) & (64 * diameters <= size.high))
        assert chosen.sum() == size.lesions + (diameters == 0).sum() and size.low < middle < size.high
        seeds = [run.arrays[r["key"]]["test_scores"][chosen] for r in rows["keen"].ok]
        assert value == pytest.approx(np.mean([roc_auc_score(diameters[chosen] > 0, own) for own in seeds]))
    text, table = lesion_blocks(report.rows)
    assert "lesions of each size" in text.text  # type: ignore[union-attr]
    found = {line[0]: line[1] for line in table.rows}  # type: ignore[union-attr]
    assert found["blind"] == "none" and 3 < float(found["keen"].split()[0]) < 8
    page = (report.write(tmp_path) and tmp_path / "LEADERBOARD.md").read_text()
    assert "AUC by the diameter of the lesion, in pixels as fed" in page
    drawn = [name for name, _ in figures(report, tmp_path)]
    assert [name for name in drawn if name.startswith("lesions")] == [f"lesions_phantom-small-train-{COUNT}"]


def test_other_data_and_other_versions_have_no_such_table(run: Any, tmp_path: Path) -> None:
    (row, *_) = made(run, tmp_path / "a", fingerprint="phantom-0-phantom_small-64").rows
    assert row.evidence and sizes_of(row) == []
    run.records.clear()
    (row, *_) = made(run, tmp_path / "b", dataset="breastmnist", fingerprint="f").rows
    assert sizes_of(row) == [] and lesion_blocks([row]) == []


def test_a_size_counts_only_with_all_larger_ones(run: Any, tmp_path: Path) -> None:
    sizes = sizes_of(made(run, tmp_path).rows[0])
    low, high = Estimate(0.52, 1e-3, 1e-8, 1e-3), Estimate(0.9, 1e-4, 1e-10, 1e-4)
    assert smallest_found(sizes, [high] * 5).startswith(f"{sizes[0].low:.2g}")
    assert smallest_found(sizes, [high, low, high, high, high]).startswith(f"{sizes[2].low:.2g}")
    assert smallest_found(sizes, [high] * 4 + [low]) == "none"

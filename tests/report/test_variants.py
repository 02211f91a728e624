"""Other splits of the same images are one dataset; datasets of other native sizes are ranked together by rank alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from bench.report.build import Report, write_boards
from bench.report.names import origin
from bench.report.standings import Overall
from bench.stats.separation import Sample, contrast, estimates, same_images, same_images_contrast

LABELS = (np.arange(200) < 80).astype(int)
SPLITS = [f"csv:/data/cxr.csv[label=icu,seed={seed}]" for seed in range(5)]


def fill(run: Any, datasets: list[str], seed: int = 0, **of: Any) -> None:
    for d, dataset in enumerate(datasets):
        for m, (model, distance) in enumerate((("a", 2.5), ("b", 1.5), ("c", 0.5))):
            noise = np.random.default_rng([seed, d, m]).normal(size=200)
            run.accuracy(model, dataset, scores=expit(distance * (LABELS - 0.5) + noise), labels=LABELS, **of)


def board_of(run: Any, out: Path) -> tuple[Overall, str]:
    path = write_boards(run.write(out), run.records)[0]
    (board,) = Report(run.records, {}, out / "predictions").boards
    return board, path.read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("breastmnist", "breastmnist"),
        ("pad_ufes_20[split=author]", "pad_ufes_20"),
        ("csv:/data/cxr.csv[label=icu,seed=2]", "csv:/data/cxr.csv"),
        ("csv:/data/cxr.csv[label=view]", "csv:/data/cxr.csv"),
        ("folder:/data/cxr", "folder:/data/cxr"),
        ("hf:owner/sets[derma,seed=1]", "hf:owner/sets derma"),  # another configuration is another set
    ],
)
def test_origins(name: str, expected: str):
    assert origin(name) == expected


def test_five_splits_of_one_table_are_one_dataset(run: Any, tmp_path: Path):
    fill(run, SPLITS)
    board, text = board_of(run, tmp_path)
    assert (len(board.counted), board.independent) == (5, 1)
    assert board.significance.friedman is None
    assert "mean AUC over 5 variants of one dataset" in text and "over 5 datasets" not in text
    assert "which share images: they count as one dataset, and their errors do not average out" in text
    assert "this table has 1 dataset and 3 models; variants of one dataset count as one." in text
    first = board.ranked[0]
    own = [row.evidence.estimates["auc"].variance for row in first.rows.values() if row.evidence]
    assert first.estimate is not None
    assert first.estimate.variance == pytest.approx(np.mean(np.sqrt(own)) ** 2)  # not divided by five


def test_variants_weigh_as_much_as_the_dataset_beside_them(run: Any, tmp_path: Path):
    fill(run, [*SPLITS[:2], "breastmnist"])
    board, text = board_of(run, tmp_path)
    assert "mean AUC over 2 datasets in 3 variants" in text
    best = board.ranked[0]
    values = {row.origin: [] for row in best.rows.values()}
    for row in best.rows.values():
        values[row.origin].append(row.mean("test_auc"))
    assert best.score == pytest.approx(np.mean([np.mean(own) for own in values.values()]))


def test_what_errs_alike_does_not_average_out():
    one, two = (estimates([Sample(v, np.zeros(4))], np.zeros(4))[0] for v in ((0.8, 0.9), (0.6, 0.64)))
    both = same_images([one, two])
    assert both.value == pytest.approx(0.735)
    assert both.variance == pytest.approx(((0.1 / 2 + 0.04 / 2) / 2) ** 2)  # the mean of the two standard errors
    assert both.variance**2 / both.moments == pytest.approx(1.0)  # degrees of freedom of either
    pair = contrast([Sample(v, np.zeros(4)) for v in ((0.8, 0.9), (0.7, 0.8))], np.zeros(4))
    same = same_images_contrast([pair, pair])
    np.testing.assert_allclose(same.p_values(), pair.p_values())
    np.testing.assert_allclose(same.training, pair.training)


def test_own_images_beside_the_benchmarks_share_an_overview_of_ranks(run: Any, tmp_path: Path):
    fill(run, ["breastmnist", "retinamnist"], size=28, resolution=64)
    fill(run, SPLITS[:2], seed=7, size=64, resolution=64)
    text = write_boards(run.write(tmp_path), run.records)[0].read_text()
    part = text.split("## Ranks over native sizes: fed at 64 px, quick, 3 epochs, fp32")[1].split("\n## ")[0]
    assert "are of different native sizes, all fed at 64 px. So only the ranks by AUC are averaged" in part
    assert "here are 3 datasets and 3 models." in part  # two splits of one table are one
    head, _, *lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    own = [f"cxr\\[label=icu,seed={seed}\\], 64 px" for seed in (0, 1)]
    assert head == ["model", "mean rank", "breastmnist, 28 px", *own, "retinamnist, 28 px"]
    for _, mean, *ranks in lines:
        a, b, c, d = map(float, ranks)
        assert float(mean) == pytest.approx((a + (b + c) / 2 + d) / 3, abs=5e-3)


def test_one_dataset_of_two_sizes_is_no_overview(run: Any, tmp_path: Path):
    for size in (28, 64):
        fill(run, ["breastmnist"], size=size, resolution=64)
    assert "Ranks over native sizes" not in write_boards(run.write(tmp_path), run.records)[0].read_text()

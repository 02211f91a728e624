"""Boards of very many Records: what is done once, and (slow) the CPU time of 100,000."""

import resource
from pathlib import Path
from typing import Any

import pytest

from bench.report import build, rows
from bench.report.build import Report
from bench.report.rows import Figures
from bench.report.sections import how_made


def test_sections_are_made_once_for_markdown_html_and_terminal(
    full_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from rich.console import Console

    made = []
    true = build.summary
    monkeypatch.setattr(build, "summary", lambda *given: made.append(1) or true(*given))
    report = Report(full_run.records)
    report.write(tmp_path)
    report.print(Console(file=(tmp_path / "terminal.txt").open("w"), width=100))
    assert len(made) == 1


def test_what_seeds_share_is_looked_at_once(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for model in ("resnet18", "vit"):
        for seed in range(20):
            run.accuracy(model, "breastmnist", 0.7 + seed / 100, seed=seed)
    looked, flattened, averaged = [], [], []
    identity, flat, figures = rows._identity, how_made._flat, Figures.of
    monkeypatch.setattr(rows, "_identity", lambda *asked: looked.append(1) or identity(*asked))
    monkeypatch.setattr(how_made, "_flat", lambda fields: flattened.append(1) or flat(fields))
    monkeypatch.setattr(Figures, "of", lambda values: averaged.append(1) or figures(values))
    Report(run.records).write(tmp_path)
    names = {name for record in run.records for name in record["metrics"]}
    assert len(looked) == 4  # two a row, not one a seed
    assert len(flattened) <= 2  # the recipe and the environment
    assert len(averaged) <= 2 * (len(names) + 20)  # one a row and metric, whoever asks


def test_figures_are_those_of_numpy():
    import numpy as np

    generator = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 8, 9, 50, 129, 1000):
        values = [float(v) for v in generator.normal(0.8, 0.1, n)]
        found = Figures.of(values)
        assert found.values == tuple(values) and found.mean == np.mean(values)
        assert found.spread == (np.std(values, ddof=1) if n > 1 else None)
    assert Figures.of([]) == ((), None, None)


def test_of_equal_keys_the_same_record_stays_whatever_the_order(run: Any):
    first = run.accuracy("resnet18", "breastmnist", 0.7)
    second = {**first, "metrics": {**first["metrics"], "test_auc": 0.9}}
    assert rows.unique([first, second]) == rows.unique([second, first]) == [second]


@pytest.mark.slow
def test_boards_of_100_000_records_take_less_than_30_seconds(run: Any, tmp_path: Path):
    """CPU time of everything but reading the files (which takes 5 s); 13 s on two cores of an EPYC."""
    base = run.accuracy("resnet18", "breastmnist", 0.8)
    records = [
        {
            **base,
            "key": f"{i:020x}",
            "spec": {**base["spec"], "seed": i % 50, "dataset": f"data_{i // 50 % 20}", "model": f"model_{i // 1000}"},
            "metrics": {**base["metrics"], "test_auc": 0.5 + i % 997 / 2000, "test_acc": 0.5 + i % 499 / 1000},
            "environment": {**base["environment"]},
        }
        for i in range(100_000)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = Report(records, {}, tmp_path / "predictions")
    paths = report.write(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 25
    assert len(report.rows) == 2000
    assert max(path.stat().st_size for path in paths) < 20_000_000

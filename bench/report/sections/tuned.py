"""What ``--tune`` tried, what validation took for each model, and what that cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.record.cells import few_labels, tuned_over
from bench.record.types import Metrics, Record, Spec
from bench.report.blocks import MODEL, Block, Column, Details, Table, Text
from bench.report.rows import tuned_text
from bench.report.words import MISSING, fixed, listed, name, natural


def tuned_blocks(records: Iterable[Record]) -> list[Block]:
    """A sentence and a table of the tuned settings; nothing where nothing was tuned.

    Seeds of one training share its trials, so they are one line; folds and draws of labels have trials of their own.
    """
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    searches: set[str] = set()
    edges = False
    for record in records:
        tuned = record["metrics"].get("tuned")
        if record["kind"] != "accuracy" or not tuned:
            continue
        spec, over = record["spec"], tuned_over(record["spec"]["recipe_settings"])
        searches.add(tuned_text(over))
        taken = ", ".join(_taken(key, value, over) for key, value in (tuned["chosen"] or {}).items())
        edges |= "*" in taken
        tried = ", ".join(_tried(trial, over, tuned["by"]) for trial in tuned["tried"])
        cell = str(spec["model"]), str(spec["dataset"]), _setting(spec)
        rows[*cell, tried] = (*cell, taken or "none", f"{tried} ({tuned['by']})", fixed(tuned["seconds"], 0))
    if not rows:
        return []
    columns = (
        MODEL, Column("dataset", left=True, code=True), Column("setting", left=True, drop=1),
        Column("taken", left=True), Column("tried: validation score", left=True, wrap=True), Column("trials s", drop=2),
    )  # fmt: skip
    lines = tuple(rows[key] for key in sorted(rows, key=lambda key: [natural(text) for text in key]))
    how = (
        f"Chosen on validation, for every model from the same values: {listed(sorted(searches))}. One seed decides, "
        "the others are trained with what it chose. Trials are no rows of the tables."
    )
    edge = [Text("* the smallest or largest value that was tried: a better one may lie beyond it.")] if edges else []
    return [Text(how), Details("What was tried and taken", (Table(columns, lines), *edge))]


def _taken(key: str, value: float, over: Mapping[str, list[float]]) -> str:
    return f"{name(key)} {value:g}" + "*" * (value in (over[key][0], over[key][-1]))


def _tried(trial: Metrics, over: Iterable[str], by: str) -> str:
    score = trial.get(by)
    said = fixed(score) if score is not None else str(trial["status"]) if trial["status"] != "ok" else MISSING
    return f"{' x '.join(f'{trial[key]:g}' for key in over)}: {said}"


def _setting(spec: Spec) -> str:
    fold = f"fold {spec['fold'] + 1}" if spec.get("fold") is not None else ""
    few = f"{few_labels(spec)}, draw {spec.get('draw') or 0}" if few_labels(spec) else ""
    track = str(spec.get("track") or "")
    return ", ".join(filter(None, (f"{spec['resolution']} px, {spec['recipe']}", track, fold, few)))

"""How a run was made: command, recipes, what ``--tune`` tried and what validation took, and the environments."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from bench.record.cells import few_labels, tuned_over
from bench.record.types import Environment, Metrics, Record, RunInfo, Spec
from bench.report.blocks import MODEL, Block, Bullets, Code, Column, Details, Section, Table, Text
from bench.report.rows import tuned_text
from bench.report.words import MISSING, counted, fixed, listed, name, natural

T = TypeVar("T")
MAX_VALUES = 4  # of a fact of the environment


def made_by(records: Sequence[Record], run_info: RunInfo) -> list[Section]:
    """The section; none where nothing is known."""
    blocks: list[Block] = []
    if command := run_info.get("command"):
        preset = f" (preset {run_info['preset']})" if run_info.get("preset") else ""
        blocks += [Text(f"Made by{preset}:"), Code(str(command))]
    if notes := run_info.get("notes"):
        blocks += [Text("Of the files with scores:"), Bullets(tuple(map(str, notes)))]
    if records:
        done = sum(r["status"] == "ok" for r in records)
        kinds = Counter(str(r["kind"]) for r in records)
        each = ", ".join(f"{kinds[kind]} {kind}" for kind in dict.fromkeys(("accuracy", "efficiency", *sorted(kinds))))
        blocks.append(
            Text(
                f"{counted(len(records), 'record')} ({each}), {done} with a result. The tables leave digits out; the "
                "CSV files beside this page have all of them."
            )
        )
    blocks += [*_recipes(records), *_tuned(records)]
    found = {kind: _environment(r for r in records if r["kind"] == kind) for kind in ("accuracy", "efficiency")}
    if found["accuracy"] == found["efficiency"]:
        found = {"everything": found["accuracy"]}
    for kind, lines in found.items():
        if lines:
            blocks.append(Details(f"{kind.capitalize()} was measured with", (Bullets(lines),)))
    return [Section("How this was made", blocks)] if blocks else []


def _recipes(records: Iterable[Record]) -> list[Block]:
    """The resolved settings of each recipe that was used."""
    used: dict[str, str] = {}
    both = ((r["spec"].get("recipe"), r["spec"].get("recipe_settings")) for r in records if r["kind"] != "trial")
    for recipe, settings in _distinct(both):
        if settings:
            flat = ", ".join(f"{key} {value}" for key, value in sorted(_flat(settings).items()) if key != "name")
            used[flat] = str(recipe or settings.get("name") or "recipe")
    lines = tuple(f"{name(used[flat])}: {flat}" for flat in sorted(used, key=lambda f: (natural(used[f]), f)))
    return (
        [Details("The recipe, resolved" if len(lines) == 1 else "The recipes, resolved", (Bullets(lines),))]
        if lines
        else []
    )


def _environment(records: Iterable[Record]) -> tuple[str, ...]:
    """One line for each fact of the environments of Records that ran, with all its values."""
    values: dict[str, set[str]] = defaultdict(set)
    for environment in _distinct(r["environment"] for r in records if r["status"] != "unsupported"):
        for key, value in _flat(environment).items():
            values[key].add(value)
    lines = []
    for key, found in sorted(values.items()):
        first, *_, last = [*sorted(found), max(found)]
        many = f"{len(found)} different values, {first} to {last}"
        lines.append(f"{key}: {', '.join(sorted(found)) if len(found) <= MAX_VALUES else many}")
    return tuple(lines)


def _distinct(values: Iterable[T]) -> Iterable[T]:
    """Values that differ as JSON: thousands of Records share one environment."""
    return {json.dumps(value, default=str): value for value in values}.values()


def _flat(environment: Environment) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            flat[key] = ", ".join(f"{k} {v}" for k, v in sorted(value.items()) if v is not None)
        elif isinstance(value, (list, tuple)):
            flat[key] = json.dumps(value, sort_keys=True, ensure_ascii=False)
        elif value is not None:
            flat[key] = str(value)
    return {key: value for key, value in flat.items() if value}


# --- tuned settings --------------------------------------------------------------------------------------------


def _tuned(records: Iterable[Record]) -> list[Block]:
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

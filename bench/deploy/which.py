"""Which networks of a run are exported: one Cell, or the folds that belong together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.deploy.bundle import DeployError
from bench.explain.which import find_cells
from bench.record import store
from bench.record.paths import require_run, weights_path
from bench.record.store import Record
from bench.registry import display_name
from bench.report.build import read_report
from bench.report.recommend import Limits, Recommendation, RecommendError, recommend
from bench.report.sections.summary import headline
from bench.report.standings import Overall, ReportData

# What two trainings of one network differ in.
_OF_ONE_TRAINING = {"seed", "fold", "draw"}


def members_of(out: Path, wanted: str = "", dataset: str = "") -> list[Record]:
    """The Records to export: of a key or its beginning, or of a model's name; without either, the recommended model.

    Of several settings it is the one whose weights were kept. Of several seeds it is the one with the highest AUC on
    validation, so that test decides nothing. All folds of that seed belong together.

    Raises:
        DeployError: nothing fits, or several settings do and have weights.
        StoreError: no run directory, or the weights were not kept.
    """
    require_run(out)
    every = _accuracy(out)
    records = [r for r in every if not dataset or dataset in (r["spec"]["dataset"], _shown(r))]
    if wanted and len(found := [r for r in records if r["key"].startswith(wanted)]) == 1:
        return _with_weights(out, found, every)
    name, among = (wanted, None) if wanted else _recommended(out, records, dataset)
    fitting = [r for r in records if r["spec"]["model"] == name and r["status"] == "ok"]
    fitting = [r for r in fitting if among is None or r["key"] in among]
    if not fitting:
        models = ", ".join(sorted({r["spec"]["model"] for r in records if r["status"] == "ok"})) or "none"
        where = f" on {dataset}" if dataset else ""
        raise DeployError(f"{out} has no finished cell {name!r}{where}; give a key or a model: {models}")
    groups: dict[str, list[Record]] = {}
    for record in fitting:
        rest = {key: value for key, value in record["spec"].items() if key not in _OF_ONE_TRAINING}
        rest.pop("data_fingerprint", None)
        groups.setdefault(repr(sorted(rest.items(), key=str)), []).append(record)
    kept = {k: own for k, own in groups.items() if any(weights_path(out, r["key"]).is_file() for r in own)}
    groups = kept or dict([next(iter(groups.items()))])  # of none it is said how to keep them
    if len(groups) > 1:
        lines = "\n  ".join(described(group[0]) for group in groups.values())
        raise DeployError(
            f"{name} was trained in {len(groups)} settings; give --dataset, or the key of one:\n  {lines}"
        )
    (group,) = groups.values()
    best = max(group, key=lambda r: (_val_auc(r), -r["spec"]["seed"]))
    seed = best["spec"]["seed"]
    if best["spec"].get("fold") is None:
        return _with_weights(out, [best], every)
    folds = sorted((r for r in group if r["spec"]["seed"] == seed), key=lambda r: r["spec"]["fold"])
    if len(folds) != best["spec"]["folds"]:
        raise DeployError(f"{name}, seed {seed}: {len(folds)} of {best['spec']['folds']} folds are done; run it again")
    return _with_weights(out, folds, every)


def _with_weights(out: Path, chosen: Sequence[Record], every: Sequence[Record]) -> list[Record]:
    """The chosen ones, if their weights were kept; a vote among neighbours has none."""
    spec = chosen[0]["spec"]
    if k := spec["recipe_settings"].get("neighbours"):
        same = {**spec, "recipe": "linear", "head": "linear", "recipe_settings": {}}
        other = [r["key"] for r in every if {**r["spec"], "recipe_settings": {}} == same and r["status"] == "ok"]
        instead = (
            f"bench export-model {shlex.quote(str(out))} {other[0][:8]}" if other else "run it with --heads linear"
        )
        raise DeployError(
            f"{keys(chosen)}: the head {spec['head']} asks the {k} nearest training images, so it is no network and "
            f"would need their features wherever it goes; take the linear head of the same features: {instead}"
        )
    return find_cells(out, [record["key"] for record in chosen], heads=True)


def _accuracy(out: Path) -> list[Record]:
    paths = sorted(path for path in (out / "cells").glob("*.json") if not path.name.startswith("."))
    return [record for path in paths if (record := store.read_record(path))["kind"] == "accuracy"]


def recommended(
    report: ReportData, boards: Sequence[Overall], limits: Limits | None = None
) -> tuple[Recommendation, list[Record]]:
    """What is recommended from some of a run's boards, and the Records behind it, under the protocol that it is for.

    Raises:
        RecommendError: there is nothing to recommend from.
    """
    board = headline(boards)
    if board is None:
        raise RecommendError("no model has a test result")
    found = recommend(report, limits, board)
    picks = [s for s in board.ranked if s.model == found.model]
    return found, [record for pick in picks for row in pick.rows.values() for record in row.ok]


def _recommended(out: Path, records: Sequence[Record], dataset: str) -> tuple[str, set[str]]:
    """The spec's name of the recommended model, and the keys behind it, from the boards with any of some Records."""
    report, among = read_report(out)[0], {record["key"] for record in records}
    boards = [
        b for b in report.boards if any(r["key"] in among for s in b.ranked for row in s.rows.values() for r in row.ok)
    ]
    if not boards:
        there = ", ".join(sorted({_shown(record) for record in _accuracy(out)})) or "none"
        raise DeployError(f"{out} has no result{f' on {dataset}' if dataset else ''}; datasets: {there}")
    found, chosen = recommended(report, boards)
    if not chosen:
        raise DeployError(f"{out}: {found.why}")
    return chosen[0]["spec"]["model"], {record["key"] for record in chosen}


def _shown(record: Record) -> str:
    return display_name(record["spec"]["dataset"])


def _val_auc(record: Record) -> float:
    value = record["metrics"].get("val_auc")
    return float(value) if value is not None else -1.0


def described(record: Record) -> str:
    """``3f2a91c0 resnet18 on scans, 64->64 px, recipe standard, seed 0``."""
    spec = record["spec"]
    parts = [f"{record['key'][:8]} {spec['model']} on {_shown(record)}, {spec['size']}->{spec['resolution']} px"]
    parts += [f"recipe {spec['recipe']}", f"seed {spec['seed']}"]
    return ", ".join([*parts, *(f"{key} {spec[key]}" for key in ("track", "head", "shots") if spec.get(key))])


def keys(records: Sequence[Record]) -> str:
    """``3f2a91c0, 77b1e2d4``."""
    return ", ".join(record["key"][:8] for record in records)

"""Tables and JSON of what there is (models, datasets) and of what a sweep means (a Plan). Torch-free."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.errors import say
from bench.plan.base import Plan
from bench.plan.estimate import bundled_notes, cost_of, estimate_s, long_time, size
from bench.plan.memory import memory_bytes
from bench.record import store
from bench.record.cells import Cell, cell_label
from bench.registry import ModelInfo, Registry
from bench.registry.registry import Info

WIDE = 130  # columns of a terminal that shows all of the datasets' counts and sizes
SHOWN_CELLS = 40
OWN = "folder:PATH, csv:PATH[image=COLUMN,label=COLUMN,patient=COLUMN,split=COLUMN], hf:NAME[config], npz:PATH"
MAX_NAMED = 4  # models or resolutions that share a reason


def models_json(names: Collection[str] | None = None) -> list[dict[str, object]]:
    """Information on every registered model, or of those named."""
    stands_for = {word: registry.models.expand(word) for word in registry.models.aliases()}
    fields = (
        "name", "family", "group", "summary", "paper", "licence", "params", "macs_g_224", "counted_macs_g_224",
        "published_note", "origin",
    )  # fmt: skip
    return [
        {
            **{field: getattr(info, field) for field in fields},
            "in_all": info.name in stands_for["all"],
            "options": {key: asdict(option) for key, option in (info.options or {}).items()},
            "words": sorted(word for word, members in stands_for.items() if info.name in members),
        }
        for info in _chosen(registry.models, names)
    ]


def datasets_json(names: Collection[str] | None = None) -> list[dict[str, object]]:
    """Information on every registered dataset, or of those named."""
    fields = (
        "name", "task", "classes", "channels", "sizes", "bundled", "varied", "n_train", "n_val", "n_test", "modality",
        "summary", "licence", "citation", "source", "groups", "mirror_safe", "traps", "origin",
    )  # fmt: skip
    chosen = _chosen(registry.datasets, names)
    return [store.plain({field: getattr(info, field) for field in fields}) for info in chosen]


def _chosen(known: Registry[Info], names: Collection[str] | None) -> list[Info]:
    return [info for info in known.values() if names is None or info.name in names]


def _table(*columns: str, right: Collection[str] = (), wrapped: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != wrapped)
    return table


def print_models(console: Console, names: Collection[str] | None = None) -> None:
    """Print the models by family; of all, also the words that stand for several, of those named, their options."""
    numbers = ("params\n10^6", "GMACs\ncounted", "GMACs\npaper")
    table = _table("model", *numbers, "what it is", right=numbers, wrapped="what it is")
    chosen = _chosen(registry.models, names)
    families = list(dict.fromkeys(info.family for info in chosen))
    titles = {"main": "", "extra": "further models, by name only", "ablation": "parameter-matched ablations"}
    for group, title in titles.items():
        members = sorted((info for info in chosen if info.group == group), key=lambda info: families.index(info.family))
        if title and members:
            table.add_section()
            table.add_row(f"[dim]{title}[/dim]")
        for _, sizes in groupby(members, key=lambda info: info.family):
            for info in sizes:
                macs = [f"{g:.2f}" if g else "" for g in (info.counted_macs_g_224, info.macs_g_224)]
                params = f"{info.params / 1e6:.1f}" if info.params else ""
                table.add_row(info.name, params, *macs, escape(re.split(r" \(|;", info.summary)[0]))
            table.add_section()
    console.print(table)
    if names is not None:
        _print_options(console, chosen)
        return
    words = Table(box=None, pad_edge=False, show_header=False, title="\nwords for several", title_justify="left")
    for word, patterns in sorted(registry.models.aliases().items()):
        words.add_row(word, escape(", ".join(patterns)) if word != "all" else "every size of the five families")
    words.add_row("timm:NAME", "any model of timm")
    console.print(words)
    say(console, "\nOptions, such as medmamba_tiny[branch=ssm]: bench list models medmamba")


def _print_options(console: Console, chosen: Sequence[ModelInfo]) -> None:
    """Print what can stand in brackets behind the models, once for each family."""
    first = {info.family: info for info in reversed(chosen) if info.options and info.group == "main"}
    for info in reversed(first.values()):
        title = f"\n{info.family}: options in brackets, as {escape(f'{info.name}[key=value]')}"
        table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
        for key, option in (info.options or {}).items():
            choices = "|".join(str(choice).lower() for choice in option.choices) or str(option.default)
            table.add_row(escape(f"{key}={choices}"), escape(option.help))
        console.print(table)


def print_datasets(console: Console, names: Collection[str] | None = None) -> None:
    """Print the datasets, or those named, with their size and task; of all, also the words that stand for several.

    A terminal of less than 130 columns gets totals and ranges instead of every count and size.
    """
    wide = console.width >= WIDE
    channels, images, sizes = ("channels", "train/val/test", "sizes, px") if wide else ("ch", "images", "px")
    right = ("classes", channels, *([] if wide else [images]))
    table = _table("dataset", "task", "classes", channels, images, sizes, "licence", right=right, wrapped="licence")
    table.padding = (0, 2 if wide else 1, 0, 0)
    for info in _chosen(registry.datasets, names):
        splits = (info.n_train, info.n_val, info.n_test)
        if wide:
            counts = "/".join("?" if n is None else f"{n:,}" for n in splits)
            sides = ", ".join(map(str, info.sizes)) or ("any (resized)" if info.varied else "any (made on the spot)")
        else:
            counts = "?" if None in splits else f"{sum(n or 0 for n in splits):,}"
            sides = "–".join(str(s) for s in dict.fromkeys((min(info.sizes), max(info.sizes)))) if info.sizes else "any"
        task = info.task if wide else info.task.removesuffix("-regression")
        licence = info.licence if wide else info.licence.partition(" (")[0]
        table.add_row(info.name, task, str(len(info.classes)), str(info.channels), counts, sides, licence)
    console.print(table)
    if names is None:
        bundled = [f"{info.name} at {side} px" for info in registry.datasets.values() for side in info.bundled]
        lines = [f"{word}: {', '.join(patterns)}" for word, patterns in sorted(registry.datasets.aliases().items())]
        lines += [f"bundled (no download): {', '.join(bundled)}", f"your own images: {OWN}"]
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False, style="dim")


def print_plan(plan: Plan, out: Path, console: Console, keep_weights: bool = False) -> None:
    """Print the Cells, what is unsupported and why, missing files, and what it costs: time, disk, memory."""
    from bench.data.files import missing_message
    from bench.plan.look_ahead import plan_lines

    tell = partial(say, console)
    done = _statuses(out)
    todo = {key: cell for key, cell in plan.cells.items() if key not in plan.unsupported}
    for key, cell in list(todo.items())[:SHOWN_CELLS]:
        cost = f"{long_time(estimate_s(cell, plan.threads, plan.device))}, {size(memory_bytes(cell))}"
        tell(f"{key[:8]}  {cell.kind:<10}  {cell_label(cell)}  [{done.get(key) or cost}]")
    if len(todo) > SHOWN_CELLS:
        tell(f"... and {len(todo) - SHOWN_CELLS} more (--json lists all)")
    total = cost_of(plan, done, keep_weights)
    left = Counter(cell.kind for key, cell in todo.items() if key not in done)
    lines = [
        *(f"unsupported: {line}" for line in _unsupported_lines(plan)),
        *(f"left out: {line}" for line in plan.skipped),
        *plan_lines(plan, out),
        *([] if plan.runnable else [missing_message(plan.problems)]),
        *bundled_notes(plan),
        f"{', '.join(f'{count} {kind}' for kind, count in left.items()) or 'nothing'} to run on {plan.device} with "
        f"{plan.threads} threads, {len(todo) - left.total()} done, {len(plan.unsupported)} unsupported",
        *(f"memory: {line}" for line in total.too_large),
        f"total: {total}",
    ]
    for line in lines:
        tell(line)


def _statuses(out: Path) -> dict[str, str]:
    """Status of each Cell that has a readable Record in a run directory."""
    return {record["key"]: record["status"] for record in store.read_records(out)[0]}


def _unsupported_lines(plan: Plan) -> list[str]:
    """One line a reason: which models at which resolutions, and how many Cells where there are several."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for key, reason in plan.unsupported.items():
        groups[reason].append(plan.cells[key])
    lines = []
    for reason, cells in groups.items():
        models, sides = list(dict.fromkeys(c.model for c in cells)), sorted({c.resolution for c in cells})
        who = ", ".join(models) if len(models) <= MAX_NAMED else f"{len(models)} models"
        where = ", ".join(map(str, sides)) if len(sides) <= MAX_NAMED else f"{sides[0]} to {sides[-1]}"
        lines.append(f"{who} at {where} px: {reason}" + (f" ({len(cells)} cells)" if len(cells) > 1 else ""))
    return lines


def plan_json(plan: Plan, out: Path) -> dict[str, object]:
    """The plan as plain data: every Cell with its key, spec, state and estimate."""
    done = _statuses(out)
    cost = cost_of(plan, done)
    states = {key: "done" if status == "ok" else status for key, status in done.items()}
    states |= dict.fromkeys(plan.unsupported, "unsupported")

    return {
        "out": str(out),
        "device": plan.device,
        "threads": plan.threads,
        "cells": [
            {
                "key": key,
                "kind": cell.kind,
                "label": cell_label(cell),
                "state": states.get(key, "to run"),
                "reason": plan.unsupported.get(key, ""),
                "estimate_s": round(estimate_s(cell, plan.threads, plan.device), 1),
                "memory_bytes": memory_bytes(cell),
                "spec": store.plain(cell.spec()),
            }
            for key, cell in plan.cells.items()
        ],
        "total": {
            "seconds": round(cost.seconds),
            "disk_bytes": cost.disk,
            "memory_bytes": cost.memory[0],
            "device_bytes": cost.memory[1],
        },
        "missing": [] if plan.runnable else [str(problem) for problem in plan.problems],
        "skipped": plan.skipped,
    }

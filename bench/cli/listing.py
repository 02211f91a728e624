"""Tables and JSON of what there is (models, datasets) and of what a sweep means (a Plan). Torch-free."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.plan.base import Plan
from bench.plan.estimate import bundled_notes, cost_of, estimate_s, size
from bench.plan.memory import memory_bytes
from bench.record import store
from bench.record.cells import Cell, cell_label
from bench.registry import ModelInfo, Registry
from bench.runner.progress import clock

WIDE = 130  # columns of a terminal that shows all of the datasets' counts and sizes
SHOWN_CELLS = 40
MAX_NAMED = 4  # models or resolutions that share a reason


def models_json(names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Information on every registered model, or of those named."""
    words = registry.models.aliases()
    return [
        {
            "name": info.name,
            "family": info.family,
            "group": info.group,
            "in_all": info.name in registry.models.expand("all"),
            "summary": info.summary,
            "paper": info.paper,
            "licence": info.licence,
            "params": info.params,
            "macs_g_224": info.macs_g_224,
            "counted_macs_g_224": info.counted_macs_g_224,
            "published_note": info.published_note,
            "options": {
                key: {"default": option.default, "choices": list(option.choices), "help": option.help}
                for key, option in (info.options or {}).items()
            },
            "words": sorted(word for word in words if info.name in registry.models.expand(word)),
            "origin": info.origin,
        }
        for info in _chosen(registry.models, names)
    ]


def datasets_json(names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Information on every registered dataset, or of those named."""
    fields = (
        "name",
        "task",
        "classes",
        "channels",
        "sizes",
        "bundled",
        "varied",
        "n_train",
        "n_val",
        "n_test",
        "modality",
        "summary",
    )
    more = ("licence", "citation", "source", "groups", "mirror_safe", "traps", "origin")
    return [
        store.plain({name: getattr(info, name) for name in fields + more}) for info in _chosen(registry.datasets, names)
    ]


def _million(count: int | None) -> str:
    return f"{count / 1e6:.1f}" if count else ""


def _chosen(known: Registry[Any], names: Collection[str] | None) -> list[Any]:
    return [info for info in known.values() if names is None or info.name in names]


def print_models(console: Console, names: Collection[str] | None = None) -> None:
    """Print the models by family, or those named; of all, also the words that stand for several."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("params\n10^6", justify="right")
    table.add_column("GMACs\ncounted", justify="right")
    table.add_column("GMACs\npaper", justify="right")
    table.add_column("what it is")
    groups = {
        "main": "",
        "extra": "further models, by name only",
        "ablation": "parameter-matched ablations",
    }
    for group, title in groups.items():
        families: dict[str, list[ModelInfo]] = {}
        for info in _chosen(registry.models, names):
            if info.group == group:
                families.setdefault(info.family, []).append(info)
        if title and families:
            table.add_section()
            table.add_row(f"[dim]{title}[/dim]")
        for members in families.values():
            for info in members:
                macs = [f"{g:.2f}" if g else "" for g in (info.counted_macs_g_224, info.macs_g_224)]
                table.add_row(info.name, _million(info.params), *macs, escape(re.split(r" \(|;", info.summary)[0]))
            table.add_section()
    console.print(table)
    options = [info for info in _chosen(registry.models, names) if info.options and info.group == "main"]
    for family in dict.fromkeys(info.family for info in options):
        first = next(info for info in options if info.family == family)
        assert first.options
        console.print(f"\n[bold]{family}[/bold]: options in brackets, as {first.name}\\[key=value]", highlight=False)
        for key, option in first.options.items():
            choices = "|".join(str(choice).lower() for choice in option.choices) or str(option.default)
            console.print(f"  {key}={choices}", markup=False, highlight=False, end="  ")
            console.print(option.help, style="dim", highlight=False)
    if names is not None:
        return
    console.print("\n[bold]words[/bold]", highlight=False)
    for word, patterns in sorted(registry.models.aliases().items()):
        listed = ", ".join(patterns) if word != "all" else "every size of the five families"
        console.print(f"  {word}: {listed}", markup=False, highlight=False)
    console.print("  timm:<name>: any model of timm", markup=False, highlight=False)


def print_datasets(console: Console, names: Collection[str] | None = None) -> None:
    """Print the datasets, or those named, with their size and task; of all, also the words that stand for several.

    A terminal of less than 130 columns gets totals and ranges instead of every count and size.
    """
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("dataset", no_wrap=True)
    table.add_column("task", no_wrap=True)
    table.add_column("classes", justify="right", no_wrap=True)
    table.add_column("channels" if wide else "ch", justify="right", no_wrap=True)
    table.add_column("train/val/test" if wide else "images", justify="left" if wide else "right", no_wrap=True)
    table.add_column("sizes, px" if wide else "px", no_wrap=True)
    table.add_column("licence")
    for info in _chosen(registry.datasets, names):
        splits = (info.n_train, info.n_val, info.n_test)
        if wide:
            counts = "/".join("?" if n is None else f"{n:,}" for n in splits)
            sizes = ", ".join(map(str, info.sizes)) or ("any (resized)" if info.varied else "any (made on the spot)")
        else:
            counts = "?" if None in splits else f"{sum(n or 0 for n in splits):,}"
            sizes = "–".join(str(s) for s in dict.fromkeys((min(info.sizes), max(info.sizes)))) if info.sizes else "any"
        task = info.task if wide else info.task.removesuffix("-regression")
        licence = info.licence if wide else info.licence.partition(" (")[0]
        table.add_row(info.name, task, str(len(info.classes)), str(info.channels), counts, sizes, licence)
    console.print(table)
    if names is not None:
        return
    for word, patterns in sorted(registry.datasets.aliases().items()):
        console.print(f"  {word}: {', '.join(patterns)}", markup=False, highlight=False, style="dim")
    bundled = [f"{info.name} at {side} px" for info in registry.datasets.values() for side in info.bundled]
    console.print(f"  bundled (no download): {', '.join(bundled)}", markup=False, highlight=False, style="dim")
    own = "folder:PATH, csv:PATH[image=COLUMN,label=COLUMN,patient=COLUMN,split=COLUMN], hf:NAME[config], npz:PATH"
    console.print(f"  your own images: {own}", markup=False, highlight=False, style="dim")


def print_plan(plan: Plan, out: Path, console: Console, keep_weights: bool = False) -> None:
    """Print the Cells, what is unsupported and why, missing files, and what it costs: time, disk, memory."""
    done = _statuses(out)
    todo = {key: cell for key, cell in plan.cells.items() if key not in plan.unsupported}
    shown = list(todo.items())[:SHOWN_CELLS]
    for key, cell in shown:
        cost = f"{clock(estimate_s(cell, plan.threads, plan.device))}, {size(memory_bytes(cell))}"
        state = done.get(key) or cost
        line = f"{key[:8]}  {cell.kind:<10}  {cell_label(cell)}  [{state}]"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(todo) > len(shown):
        console.print(f"... and {len(todo) - len(shown)} more (--json lists all)", highlight=False)
    for line in _unsupported_lines(plan):
        console.print(f"unsupported: {line}", markup=False, highlight=False)
    for line in plan.skipped:
        console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    from bench.plan.look_ahead import plan_lines

    for line in plan_lines(plan, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not plan.runnable:
        from bench.data.files import missing_message

        console.print(missing_message(plan.problems), markup=False, highlight=False, soft_wrap=True)
    for line in bundled_notes(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    left = [cell for key, cell in todo.items() if key not in done]
    kinds = Counter(cell.kind for cell in left)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"
    console.print(
        f"{counts} to run on {plan.device} with {plan.threads} threads, {len(todo) - len(left)} done, "
        f"{len(plan.unsupported)} unsupported",
        highlight=False,
    )
    total = cost_of(plan, done, keep_weights)
    for line in total.too_large:
        console.print(f"memory: {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"total: {total}", highlight=False, soft_wrap=True)


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


def plan_json(plan: Plan, out: Path) -> dict[str, Any]:
    """The plan as plain data: every Cell with its key, spec, state and estimate."""
    done = _statuses(out)
    cost = cost_of(plan, done)

    def state(key: str) -> str:
        if key in plan.unsupported:
            return "unsupported"
        status = done.get(key)
        return {None: "to run", "ok": "done"}.get(status, str(status))

    return {
        "out": str(out),
        "device": plan.device,
        "threads": plan.threads,
        "cells": [
            {
                "key": key,
                "kind": cell.kind,
                "label": cell_label(cell),
                "state": state(key),
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

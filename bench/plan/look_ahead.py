"""Before anything is trained: decode what will be trained on, say what is wrong with it, refuse it if asked to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bench import registry
from bench.data.cache import decode_bar, looked_at, open_entry
from bench.data.files import DataError
from bench.data.look import Looked, all_findings
from bench.errors import say
from bench.plan.base import Plan
from bench.record.cells import AccuracyCell
from bench.registry import Finding
from bench.sweep.config import ConfigError, Loaded

SHOWN = 8  # findings of a dataset


def look_ahead(loaded: Loaded, plan: Plan, out: Path, console: Console) -> None:
    """Decode the datasets of all Cells without a Record, in this process, and print what was found.

    What cannot be decoded is left to the Cells, whose Records will say so.

    Raises:
        ConfigError: images or patients are in two splits, and ``--leaks refuse`` was asked for.
    """
    leaks = []
    for line in plan.remarks:
        say(console, line)
    for cell in _to_train(plan, out):
        info = registry.dataset_info(cell.dataset)
        looked = Looked()
        with contextlib.suppress(DataError), decode_bar() as told:
            entry = open_entry(
                info, cell.size, plan.data_root, resize=cell.resize, progress=told, fingerprint=cell.data_fingerprint
            )
            looked = entry.looked
        found = all_findings(info, looked)
        for line in lines(cell, found):
            say(console, line)
        leaks += [f"{cell.dataset}: {finding.text}" for finding in found if finding.severity == "leak"]
    if leaks and loaded.sweep.sweep.leaks == "refuse":
        raise ConfigError(f"{loaded.origin('sweep.leaks')}: refused, since {'; '.join(leaks)}")


def plan_lines(plan: Plan, out: Path) -> list[str]:
    """What is known of the datasets of a plan without decoding anything."""
    found = list(plan.remarks)
    for cell in _to_train(plan, out):
        info = registry.dataset_info(cell.dataset)
        looked = looked_at(info, cell.size, cell.data_fingerprint, cell.resize) or Looked()
        found += lines(cell, all_findings(info, looked))
    return found


def _to_train(plan: Plan, out: Path) -> Iterator[AccuracyCell]:
    """One Cell for each dataset, size and resize rule that something is still to be trained on."""
    seen = set()
    for key, cell in plan.cells.items():
        if not isinstance(cell, AccuracyCell) or key in plan.unsupported or cell.data_fingerprint == "missing":
            continue
        way = (cell.dataset, cell.size, cell.resize)
        if way not in seen and not (out / "cells" / f"{key}.json").is_file():
            seen.add(way)
            yield cell


def lines(cell: AccuracyCell, findings: list[Finding]) -> list[str]:
    """``data of NAME:`` and a line for each finding, ``- leak: 8 images of train ...``, the worst first."""
    if not findings:
        return []
    order = ("leak", "warning", "note")
    findings = sorted(findings, key=lambda finding: order.index(finding.severity))
    shown = [f"- {f.severity}: {f.text}{_examples(f)}" for f in findings[:SHOWN]]
    more = len(findings) - SHOWN
    return [f"data of {cell.dataset}:", *shown, *([f"- {more} more: `bench inspect` lists all"] if more > 0 else [])]


def _examples(finding: Finding) -> str:
    shown = finding.examples[:2]
    return f" ({'; '.join(shown)}{' ...' if len(finding.examples) > len(shown) else ''})" if shown else ""

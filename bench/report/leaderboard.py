"""The leaderboard of a run: ``LEADERBOARD.md`` and two CSV files, and the same tables in the terminal.

Everything is a function of the Records and the scores saved beside them: same Records, same bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.accuracy import dataset_sections, overall, overall_section
from bench.report.efficiency import cost_beside, efficiency_sections
from bench.report.export import accuracy_csv, efficiency_csv
from bench.report.render import markdown, terminal
from bench.report.results import Record, accuracy_rows, add_evidence, unique
from bench.report.settings import batch_text
from bench.report.summary import skipped_datasets, summary
from bench.report.tables import (
    Block,
    Bullets,
    Code,
    Column,
    Section,
    Table,
    Text,
    counted,
    natural,
    rows_of,
)
from bench.store import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

FILES = ("LEADERBOARD.md", "leaderboard_accuracy.csv", "leaderboard_efficiency.csv")
MAX_REASON = 240
MAX_CELLS_NAMED = 6


def write_boards(out: Path, records: Iterable[Record], run_info: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``LEADERBOARD.md``, ``leaderboard_accuracy.csv`` and ``leaderboard_efficiency.csv`` into ``out``.

    Args:
        out: the run directory; saved scores are read from ``out/predictions`` where there are any.
        records: as :func:`bench.store.read_records` gives them, in any order.
        run_info: ``command``, ``preset``, ``skipped`` and ``sweep`` of the run (``run.json``); may be empty.

    Returns:
        The files written.

    Raises:
        StoreError: ``out`` cannot be written.
    """
    return Report(records, run_info, out / "predictions").write(out)


def print_board(
    records: Iterable[Record],
    run_info: Mapping[str, Any] | None,
    console: Console,
    predictions: Path | None = None,
) -> None:
    """Print the leaderboard; columns that a narrow terminal has no room for are named below each table.

    Args:
        records: as for :func:`write_boards`.
        run_info: as for :func:`write_boards`.
        console: its width decides what is shown; plain text where it is not a terminal.
        predictions: the run's ``predictions`` folder, for the intervals.
    """
    Report(records, run_info, predictions).print(console)


class Report:
    """Everything the boards show, computed once: to write and print one, make a Report and do both with it."""

    def __init__(
        self, records: Iterable[Record], run_info: Mapping[str, Any] | None = None, predictions: Path | None = None
    ) -> None:
        self.records = unique(records)
        self.run_info = run_info or {}
        self.rows = accuracy_rows(self.records)
        self.problems = sorted(set(add_evidence(self.rows, predictions))) if predictions else []
        self.boards = overall(self.rows)

    def write(self, out: Path) -> list[Path]:
        """Write the three files into ``out``; see :func:`write_boards`."""
        texts = (markdown(self.sections()), accuracy_csv(self.rows, self.boards), efficiency_csv(self.records))
        paths = [out / name for name in FILES]
        for path, text in zip(paths, texts, strict=True):
            atomic_write(path, text.encode())
        return paths

    def print(self, console: Console) -> None:
        """Print the report; see :func:`print_board`."""
        terminal(self.sections(), console)

    def sections(self) -> list[Section]:
        """The report from top to bottom."""
        skipped = skipped_datasets(self.run_info)
        lines = summary(self.boards, self.rows, self.records, skipped)
        sections = [Section("Leaderboard", [Bullets(lines)], level=1)]
        for board in self.boards:
            cost, note = cost_beside(self.records, board.protocol.resolution)
            sections.append(overall_section(board, cost, note))
        if self.rows:
            sections += [Section("By dataset"), *dataset_sections(self.rows)]
        if efficiency := efficiency_sections(self.records):
            sections += [Section("Efficiency"), *efficiency]
        sections += _without_result(self.records, skipped, self.problems)
        sections += _made_by(self.records, self.run_info)
        return sections


# --- what is missing -------------------------------------------------------------------------------------------


def _without_result(
    records: Iterable[Record], skipped: Sequence[tuple[str, str]], problems: Sequence[str]
) -> list[Section]:
    """Every Cell that has no result, with its reason; equal reasons of one model together."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for record in records:
        if record["status"] != "ok":
            reason = " ".join(str(record["reason"] or "no reason was recorded").split())
            groups[record["spec"]["model"], record["status"], reason].append(_where(record))
    blocks: list[Block] = []
    if groups:
        columns = (
            Column("model", left=True, code=True), Column("status", left=True), Column("cells", drop=2),
            Column("where", left=True, drop=1, wrap=True), Column("reason", left=True, wrap=True),
        )  # fmt: skip
        lines = [
            (model, status, str(len(cells)), _shortened(cells), _cut(reason))
            for (model, status, reason), cells in sorted(groups.items(), key=lambda g: (natural(g[0][0]), g[0]))
        ]
        blocks.append(Table(columns, rows_of(lines)))
    if skipped:
        blocks.append(Text("Datasets left out:"))
        blocks.append(Bullets(tuple(f"{dataset}: {reason}" if reason else dataset for dataset, reason in skipped)))
    if problems:
        blocks.append(Text("Saved scores that could not be used (their rows have no interval):"))
        blocks.append(Bullets(tuple(problems)))
    return [Section("Without a result", blocks)] if blocks else []


def _where(record: Record) -> str:
    spec = record["spec"]
    if record["kind"] == "accuracy":
        return f"{spec.get('dataset')} {spec.get('size')}→{spec.get('resolution')} px, seed {spec.get('seed')}"
    compiled = ", compiled" if spec.get("compile") else ""
    return (
        f"{spec.get('mode')} at {spec.get('resolution')} px, batch {batch_text(record)}, {spec.get('precision')}"
        f"{compiled}, {spec.get('device')}"
    )


def _shortened(cells: Sequence[str]) -> str:
    more = len(cells) - MAX_CELLS_NAMED
    return "; ".join(cells[:MAX_CELLS_NAMED]) + (f"; {more} more" if more > 0 else "")


def _cut(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"


# --- how it was made -------------------------------------------------------------------------------------------


def _made_by(records: Sequence[Record], run_info: Mapping[str, Any]) -> list[Section]:
    blocks: list[Block] = []
    if command := run_info.get("command"):
        preset = f" (preset {run_info['preset']})" if run_info.get("preset") else ""
        blocks += [Text(f"Made by{preset}:"), Code(str(command))]
    if records:
        done = sum(r["status"] == "ok" for r in records)
        kinds = {kind: sum(r["kind"] == kind for r in records) for kind in ("accuracy", "efficiency")}
        blocks.append(
            Text(
                f"{counted(len(records), 'record')} ({kinds['accuracy']} accuracy, {kinds['efficiency']} efficiency), "
                f"{done} with a result. The tables leave digits out; the CSV files beside this page have all of them."
            )
        )
    found = {kind: environment_lines(r for r in records if r["kind"] == kind) for kind in ("accuracy", "efficiency")}
    if found["accuracy"] == found["efficiency"]:
        found = {"everything": found["accuracy"]}
    for kind, lines in found.items():
        if lines:
            blocks += [Text(f"{kind.capitalize()} was measured with:"), Bullets(lines)]
    return [Section("How this was made", blocks)] if blocks else []


def environment_lines(records: Iterable[Record]) -> tuple[str, ...]:
    """One line for each fact of the environments of Records that ran; where they differ, all values with counts."""
    values: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        if record["status"] == "unsupported":  # decided in the plan, ran nowhere
            continue
        for key, value in _flat(record["environment"]).items():
            values[key][value] += 1
    lines = []
    for key in sorted(values):
        found = sorted(values[key].items())
        if len(found) == 1:
            lines.append(f"{key}: {found[0][0]}")
        elif len(found) <= 4:
            lines.append(f"{key}: " + ", ".join(f"{value} ({counted(n, 'cell')})" for value, n in found))
        else:
            lines.append(f"{key}: {len(found)} different values, {found[0][0]} to {found[-1][0]}")
    return tuple(lines)


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            flat[key] = ", ".join(f"{k} {v}" for k, v in sorted(value.items()) if v is not None)
        elif isinstance(value, (list, tuple)):
            flat[key] = json.dumps(value, sort_keys=True, ensure_ascii=False)
        elif value is not None:
            flat[key] = str(value)
    return {key: value for key, value in flat.items() if value}

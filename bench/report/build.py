"""The leaderboard of a run: ``LEADERBOARD.md`` and two CSV files, ``report.html``, and the same tables in the terminal.

Everything is a function of the Records and the scores saved beside them: same Records, same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.metrics.operating import YOUDEN, Rule
from bench.metrics.registry import RANKING, TESTED, defined
from bench.record.paths import require_run
from bench.record.store import atomic_write
from bench.record.types import Record, RunInfo
from bench.report.blocks import MODEL, Block, Bullets, Code, Column, Details, Section, Table, Text
from bench.report.clinical.checklist import checklist
from bench.report.clinical.shortcuts import shortcut_warnings
from bench.report.evidence import add_evidence
from bench.report.figures.figures import write_figures
from bench.report.names import with_short_names
from bench.report.recommend import Recommendation, recommend
from bench.report.rows import accuracy_rows, read_run_directory, unique
from bench.report.sections.about_data import data_warnings, issues_of_targets, with_known_issues
from bench.report.sections.accuracy import overall_section
from bench.report.sections.comparisons import ablation_section, resolution_section, transfer_section
from bench.report.sections.efficiency import cost_beside, efficiency_sections
from bench.report.sections.how_made import made_by
from bench.report.sections.native_sizes import native_size_sections
from bench.report.sections.per_dataset import dataset_sections
from bench.report.sections.published import published_section
from bench.report.sections.summary import headline, incomplete, skipped_datasets, summary
from bench.report.sections.tracks import few_labels_section, tracks_section
from bench.report.settings import cell_in_words
from bench.report.significance import significance
from bench.report.speeds import without_unusable
from bench.report.standings import Overall, ReportData, overall
from bench.report.words import counted, name, natural, some
from bench.report.write.csv import accuracy_csv, efficiency_csv
from bench.report.write.html import write_html
from bench.report.write.render import markdown, terminal

if TYPE_CHECKING:
    from rich.console import Console

FILES = ("LEADERBOARD.md", "leaderboard_accuracy.csv", "leaderboard_efficiency.csv")
MAX_REASON = 240
MAX_CELLS_NAMED = 6
MAX_OPEN_ROWS = 24  # of an efficiency table; a longer one is folded away


def write_boards(out: Path, records: Iterable[Record], run_info: RunInfo | None = None) -> list[Path]:
    """Write ``LEADERBOARD.md``, ``leaderboard_accuracy.csv`` and ``leaderboard_efficiency.csv`` into ``out``.

    Args:
        out: the run directory; saved scores are read from ``out/predictions`` where there are any.
        records: as :func:`bench.record.store.read_records` gives them, in any order.
        run_info: what ``run.json`` says: ``command``, ``preset``, ``skipped``, ``datasets``; may be empty.

    Returns:
        The files written.

    Raises:
        StoreError: ``out`` cannot be written.
    """
    return Report(records, run_info, out / "predictions").write(out)


def rebuild(
    out: Path, figures: bool = True, rule: Rule = YOUDEN, guideline: str | None = None
) -> tuple[list[Path], list[str]]:
    """Write a run's boards, its ``report.html`` and, if asked, ``figures/`` and ``CHECKLIST.md``.

    Args:
        out: the run directory.
        figures: whether to draw them.
        rule: how operating points are chosen.
        guideline: of :data:`bench.report.clinical.checklist.GUIDELINES`, or None.

    Returns:
        The files written, and one message for each Record that could not be read.

    Raises:
        StoreError: ``out`` is not a run directory, or cannot be written.
    """
    report, problems = read_report(out, rule)
    paths = report.write(out)
    if guideline:
        paths.append(out / "CHECKLIST.md")
        atomic_write(paths[-1], checklist(report, guideline).encode())
    if figures:
        paths += write_figures(report, out)
    return paths, problems


def read_report(out: Path, rule: Rule = YOUDEN) -> tuple[Report, list[str]]:
    """Compute the boards of a run directory; also one message for each Record that could not be read.

    Raises:
        StoreError: ``out`` is not a run directory.
    """
    require_run(out)
    records, info, problems = read_run_directory(out)
    return Report(records, info, out / "predictions", problems, rule), problems


class Report(ReportData):
    """Everything the boards show, computed once: to write and print one, make a Report and do both with it."""

    def __init__(
        self,
        records: Iterable[Record],
        run_info: RunInfo | None = None,
        predictions: Path | None = None,
        damaged: Iterable[str] = (),
        rule: Rule = YOUDEN,
    ) -> None:
        self.rule = rule
        self.damaged = [f"cells/{problem.rpartition('/cells/')[2]}" for problem in damaged]
        shown, self.run_info, origins = with_short_names(unique(records), run_info or {})
        self.measured = shown  # with speeds that no table shows
        self.records = [without_unusable(record) for record in shown]
        self.rows = accuracy_rows(self.records, origins)
        self.problems = sorted(set(add_evidence(self.rows, predictions))) if predictions else []
        self.metrics = defined(self.records)
        self.boards = overall(self.rows, RANKING, [m for m in TESTED if m != RANKING] + list(self.metrics))
        for board in self.boards:
            board.preferred = board.protocol.identity == self.run_info.get("preferred_protocol")
            board.significance = significance(board, TESTED)

    def write(self, out: Path) -> list[Path]:
        """Write the three files into ``out``; see :func:`write_boards`."""
        texts = (markdown(self.sections), accuracy_csv(self.rows, self.boards), efficiency_csv(self.measured))
        paths = [out / file for file in FILES]
        for path, text in zip(paths, texts, strict=True):
            atomic_write(path, text.encode())
        return [*paths, write_html(self, self.sections, out)]

    def print(self, console: Console) -> None:
        """Print every table; columns that a narrow terminal has no room for are named below each."""
        terminal(self.sections, console)

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """Which network to take, without limits of cost; None where no model has a result."""
        return recommend(self) if headline(self.boards) else None

    @cached_property
    def sections(self) -> list[Section]:
        """The report from top to bottom."""
        skipped = skipped_datasets(self.run_info)
        pick = self.recommendation.lines() if self.recommendation else ()
        warnings = shortcut_warnings(self.rows)
        said = summary(self.boards, self.rows, self.records, skipped)
        lines = (*warnings, *pick, *said, *data_warnings(self.records))
        sections = [Section("Leaderboard", [*self._incomplete(), Bullets(lines)], level=1)]
        sections += self._accuracy()
        if found := published_section(self.rows):
            sections.append(found)
        if efficiency := efficiency_sections(self.records):
            sections += [Section("Efficiency"), *(_folded(s, i == 0) for i, s in enumerate(efficiency))]
        if self.rows:
            datasets = with_known_issues(dataset_sections(self.rows, self.boards, self.rule), self.run_info)
            sections += [Section("By dataset"), *datasets]
        sections += _without_result(self.records, skipped, self.problems, self.damaged)
        sections += made_by(self.records, self.run_info)
        return sections

    def _incomplete(self) -> list[Block]:
        line, commands = incomplete(self.run_info, self.records)
        if not line:
            return []
        again = "This command goes" if len(commands) == 1 else "These commands go"
        return [Text(f"{line}. {again} on where the run stopped:"), Code("\n".join(commands))]

    def _accuracy(self) -> list[Section]:
        """The table with most in it first and open, with what it costs; other protocols folded away."""
        first = headline(self.boards)
        sections: list[Section] = []
        others: list[Block] = []
        for board in sorted(self.boards, key=lambda b: b is not first):
            cost, note = cost_beside(self.records, board.protocol.resolution)
            found = overall_section(board, cost, note)
            if board is first or len(self.boards) == 1:
                sections.append(found)
            else:
                others.append(Details(f"{found.title}: {_best(board)}", tuple(found.blocks)))
        if others:
            sections.append(Section("Accuracy under other protocols", others))
        sections += native_size_sections(self.boards)
        sections += [s for s in (tracks_section(self.rows, self.records), few_labels_section(self.records)) if s]
        if by_pixels := resolution_section(self.rows):
            sections.append(by_pixels)
        sections += self._of_plugins()
        for board in self.boards:
            cost, _ = cost_beside(self.records, board.protocol.resolution)
            sections += [s for s in (ablation_section(board, cost),) if s]
        if moved := transfer_section(self.records):
            moved.blocks.extend(issues_of_targets(self.records, self.run_info))
            sections.append(moved)
        return sections

    def _of_plugins(self) -> Iterator[Section]:
        """The models ranked by each metric of a plug-in, with tie groups over trainings, for each protocol."""
        for metric in self.metrics:
            for board in overall(self.rows, metric):
                if board.ranked:
                    board.significance = significance(board, (metric,))
                    found = overall_section(board, {}, "")
                    yield Section(found.title.replace("Accuracy", metric.label, 1), found.blocks)


def _best(board: Overall) -> str:
    if not board.ranked:
        return f"no test {board.metric.label}"
    best, metric = board.ranked[0], board.metric
    first = f"first {name(best.model)} with {metric.label} {metric.shown(best.score)}"
    return f"{counted(len(board.ranked), 'model')}, {first}"


def _folded(section: Section, first: bool) -> Section:
    """Fold the tables of a setting away; of the first the table of cost and its noise floor stay open, if short."""
    cost = section.blocks[0]
    rows = len(cost.rows) if isinstance(cost, Table) else 0
    open_ = 2 if first and rows <= MAX_OPEN_ROWS else 0
    line = "Growth with the image and notes" if open_ else f"Tables and notes ({counted(rows, 'row')})"
    rest = tuple(section.blocks[open_:])
    return Section(section.title, [*section.blocks[:open_], *([Details(line, rest)] if rest else [])], section.level)


# --- what is missing -------------------------------------------------------------------------------------------


def _without_result(
    records: Iterable[Record], skipped: Sequence[tuple[str, str]], problems: Sequence[str], damaged: Sequence[str]
) -> list[Section]:
    """Every Cell that has no result, with its reason; equal reasons of one model together."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for record in records:
        if record["status"] != "ok" and record["kind"] != "trial":  # what a trial came to, its Cell says
            reason = " ".join(str(record["reason"] or "no reason was recorded").split())
            reason = reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 1]}…"
            where = cell_in_words(record["kind"], record["spec"], model=False)
            groups[record["spec"]["model"], record["status"], reason].append(where)
    blocks: list[Block] = []
    if groups:
        columns = (
            MODEL, Column("status", left=True), Column("cells", drop=2),
            Column("where", left=True, drop=1, wrap=True), Column("reason", left=True, wrap=True),
        )  # fmt: skip
        lines = [
            (model, status, str(len(cells)), "; ".join(some(cells, MAX_CELLS_NAMED)), reason)
            for (model, status, reason), cells in sorted(groups.items(), key=lambda g: (natural(g[0][0]), g[0]))
        ]
        blocks.append(Table(columns, lines))
    if skipped:
        blocks.append(Text("Datasets left out:"))
        blocks.append(Bullets(tuple(f"{dataset}: {reason}" if reason else dataset for dataset, reason in skipped)))
    if damaged:
        blocks.append(Text("Records left out because they are damaged (run the command again to repeat their cells):"))
        blocks.append(Bullets(tuple(damaged)))
    if problems:
        blocks.append(Text("Saved scores that could not be used (their rows have no interval):"))
        blocks.append(Bullets(tuple(problems)))
    return [Section("Without a result", blocks)] if blocks else []

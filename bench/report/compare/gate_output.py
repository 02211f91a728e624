"""What the regression check says: in the terminal, as Markdown for GitHub, JUnit XML for CI, and JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from bench.errors import say
from bench.metrics.registry import TESTED
from bench.record import store
from bench.record.cells import ONE_THREAD
from bench.record.types import Fields
from bench.report.blocks import Block, Bullets, Column, Section, Table, Text
from bench.report.compare import snapshot as baselines
from bench.report.compare.gate import (
    BROKEN,
    FINE,
    INCOMPARABLE,
    INCOMPLETE,
    REGRESSION,
    CheckFinding,
    CheckOutcome,
    CheckResult,
    Options,
    check,
)
from bench.report.words import counted, grouped, listed
from bench.report.write.render import markdown, terminal

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
WORDS = {
    FINE: "nothing got worse",
    REGRESSION: "regression",
    BROKEN: "broken input",
    INCOMPARABLE: "nothing could be compared",
    INCOMPLETE: "cells failed or absent",
}
SHOWN = (CheckOutcome.REGRESSION, CheckOutcome.FAILED, CheckOutcome.ABSENT, CheckOutcome.CHANGED, CheckOutcome.BETTER)
MAX_ROWS = 200  # GitHub cuts a summary at 1 MiB
# XML 1.0 has no way to write these, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def run_check(
    run: Path,
    baseline: Path,
    options: Options,
    console: Console,
    *,
    json_path: Path | None = None,
    junit_path: Path | None = None,
    summary_path: Path | None = None,
) -> int:
    """Compare a run with a baseline file, print and write what was found; return the exit code.

    Args:
        run: the run directory.
        baseline: of ``bench baseline``.
        options: what counts.
        console: prints the table.
        json_path: where to write all findings.
        junit_path: where to write them for a CI system.
        summary_path: a Markdown file to append to (``$GITHUB_STEP_SUMMARY``).

    Raises:
        StoreError: the baseline or a run cannot be read, or an output cannot be written.
    """
    before = baselines.read(baseline)
    verdict = check(before, baselines.take(run, before.max_images), options)
    found = sections(verdict)
    terminal(found, console)
    if json_path:
        store.write_json(json_path, to_json(verdict))
    if junit_path:
        store.atomic_write(junit_path, junit(verdict))
    if summary_path:
        append(summary_path, markdown(found))
    return verdict.exit_code


def append(path: Path, text: str) -> None:
    """Add to a step summary. Raises StoreError where that cannot be."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise store.StoreError(f"cannot write {path}: {error.strerror}; unset GITHUB_STEP_SUMMARY") from error


def sections(verdict: CheckResult) -> list[Section]:
    """The verdict as a page: what it comes to, what got worse, what could not be compared."""
    shown = [f for outcome in SHOWN for f in verdict.findings if f.outcome == outcome]
    blocks: list[Block] = [Text(_summary(verdict))]
    if shown:
        rows = [(f.outcome.value, f"{f.cell}: {f.check}", f.before, f.now, f.message) for f in shown[:MAX_ROWS]]
        columns = (
            Column("outcome", left=True), Column("what", left=True, wrap=True), Column("baseline", drop=2),
            Column("now", drop=1), Column("why", left=True, wrap=True),
        )  # fmt: skip
        blocks.append(Table(columns, rows))
    more = [f"{len(shown) - MAX_ROWS} more are in the JSON"] if len(shown) > MAX_ROWS else []
    if lines := [*verdict.problems, *more, *_grouped(verdict.findings), *verdict.notes]:
        blocks.append(Bullets(tuple(lines)))
    code = verdict.exit_code
    return [Section(f"Regression check: {WORDS[code]} (exit code {code})", blocks)]


def _summary(verdict: CheckResult) -> str:
    parts = [f"{n} {outcome}" for outcome in CheckOutcome if (n := verdict.count(outcome))]
    checks = counted(len(verdict.findings), "check")
    options, labels = verdict.options, listed([metric.label for metric in TESTED], "or")
    return (
        f"{checks}: {listed(parts) or 'nothing to compare'}. {counted(verdict.tests, 'test')} at a family-wise level "
        f"of {options.alpha:.0%} (Holm), one-sided; what counts begins at {options.min_accuracy:g} {labels}, "
        f"{options.min_speed:.0%} speed, {options.min_memory:.0%} memory, or the noise where that is more."
    )


def _grouped(findings: Sequence[CheckFinding]) -> list[str]:
    """One line for all checks that were not made for one reason."""
    untested = (CheckOutcome.FEW, CheckOutcome.OTHER, CheckOutcome.NOTHING, CheckOutcome.ALLOWED)
    groups = grouped((f for f in findings if f.outcome in untested), lambda f: (f.outcome, f.check, f.kin or f.message))
    lines = []
    for (_, what, _), members in groups.items():
        one, message = members[0].cell, members[0].message
        which = one if len(members) == 1 else f"{one} and {counted(len(members) - 1, 'more cell')}"
        lines.append(f"{what} of {which}: {message}")
    return lines


def to_json(verdict: CheckResult) -> Fields:
    """All of it, for programs."""
    return {
        "schema": SCHEMA,
        "exit_code": verdict.exit_code,
        "verdict": WORDS[verdict.exit_code],
        "options": asdict(verdict.options),
        "tests": verdict.tests,
        "counts": {outcome.value: verdict.count(outcome) for outcome in CheckOutcome},
        "problems": verdict.problems,
        "notes": verdict.notes,
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def junit(verdict: CheckResult) -> bytes:
    """JUnit XML: a suite per kind of Cell, a case a check; regressions fail, lost Cells are errors, others skipped."""
    suites = ElementTree.Element("testsuites", name="bench check")
    totals: Counter[str] = Counter()
    for kind, members in grouped(verdict.findings, lambda finding: finding.kind).items():
        suite = ElementTree.SubElement(suites, "testsuite", name=kind)
        _count(suite, Counter(_case(suite, finding) for finding in members), totals)
    if verdict.problems:
        suite = ElementTree.SubElement(suites, "testsuite", name="input")
        for number, problem in enumerate(verdict.problems, start=1):
            case = ElementTree.SubElement(suite, "testcase", classname="input", name=f"file {number}")
            ElementTree.SubElement(case, "error", type="broken input", message=_xml(problem))
        _count(suite, Counter(errors=len(verdict.problems)), totals)
    for name, value in totals.items():
        suites.set(name, str(value))
    ElementTree.indent(suites)
    text: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _count(suite: ElementTree.Element, counts: Counter[str], totals: Counter[str]) -> None:
    counts["tests"] = counts.total()
    for name in ("tests", "failures", "errors", "skipped"):
        suite.set(name, str(counts[name]))
        totals[name] += counts[name]


def _case(suite: ElementTree.Element, finding: CheckFinding) -> str:
    """Add a test case; return which count it belongs to."""
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(finding.cell), name=finding.check)
    message = _xml(finding.message)
    if finding.outcome == CheckOutcome.REGRESSION:
        text = f"{finding.message}\nbaseline {finding.before}, now {finding.now}"
        ElementTree.SubElement(case, "failure", type="regression", message=message).text = _xml(text)
        return "failures"
    if finding.outcome in (CheckOutcome.FAILED, CheckOutcome.ABSENT):
        ElementTree.SubElement(case, "error", type=finding.outcome.value, message=message)
        return "errors"
    if finding.outcome in (CheckOutcome.FINE, CheckOutcome.BETTER, CheckOutcome.CHANGED):
        return ""
    ElementTree.SubElement(case, "skipped", message=message)
    return "skipped"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def run_baseline(run: Path, out: Path, console: Console, *, allow_incomplete: bool = False) -> int:
    """Write the baseline file of a run and say what is in it; return 0.

    Raises:
        StoreError: the run cannot be read, is damaged or has no result, or the file cannot be written; or Cells of its
            sweep have no Record, which would make every later check silent on them, and that is not allowed.
    """
    snapshot = baselines.take(run)
    absent = len(snapshot.unrecorded)
    if absent and not allow_incomplete:
        raise baselines.BaselineError(
            f"no baseline: {counted(absent, 'cell')} of the sweep {'has' if absent == 1 else 'have'} no record, and no "
            "check could miss them; run its command to the end, or say --allow-incomplete"
        )
    size = baselines.write(snapshot, out)
    good = [entry for entry in snapshot.entries if entry.status == "ok"]
    without = len(snapshot.entries) - len(good)
    rounds = [len(entry.speed) for entry in good if entry.speed]
    lines = [f"{out}: {counted(len(good), 'cell')}, {size / 1024:,.0f} KiB"]
    if absent:
        lines.append(f"{counted(absent, 'cell')} of the sweep without a record: no check will miss them")
    if without:
        lines.append(f"{counted(without, 'cell')} without a result: nothing of them can get worse")
    if busy := sum(bool(entry.busy) and entry.relative_in != ONE_THREAD for entry in good):
        whose = "its" if busy == 1 else "their"
        lines.append(f"{counted(busy, 'cell')} measured while the machine was busy: {whose} speed will not be compared")
    if rounds and min(rounds) < 6:
        lines.append(f"{min(rounds)} rounds per cell: speed needs 6 on each side; set efficiency.rounds")
    for line in lines:
        say(console, line)
    return 0

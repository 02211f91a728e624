"""Boards as their readers see them: the page of a run, a part of it, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.build import write_boards


def page(run: Any, out: Path, info: dict[str, Any] | None = None, scores: bool = True) -> str:
    """``LEADERBOARD.md`` of a run, with its saved scores or without."""
    if scores:
        run.write(out)
    return write_boards(out, run.records, info)[0].read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return text.split(f"\n{heading}", 1)[1].split("\n## ")[0]


def lines_of(text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = [line.replace("\N{WORD JOINER}", "") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The first table below ``heading``, a line a dictionary."""
    below = text.split(heading, 1)[1] if heading else text
    head, *rows = lines_of("| " + ("\n" + below).split("\n| ", 1)[1].split("\n\n", 1)[0])
    return [dict(zip(head, row, strict=True)) for row in rows]


def csv(out: Path, kind: str) -> pd.DataFrame:
    """The CSV file of ``accuracy`` or ``efficiency``."""
    return pd.read_csv(out / f"leaderboard_{kind}.csv", engine="python")

"""``report.html``: one file that works offline, with everything of a run in it.

The boards stand in it as plain tables, readable without a script; sorting, figures and the pages of the cells are made
by its own script from the document embedded as JSON. Whatever comes from Records is escaped here or set as text there.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from bench.record.store import atomic_write, plain
from bench.report.blocks import Block, Bullets, Code, Details, Section, Table
from bench.report.standings import ReportData
from bench.report.words import known
from bench.report.write.decision import decision, decision_html, examples_section
from bench.report.write.page_data import Document, collect

NAME = "report.html"
SCRIPTS = ("core.js", "chart.js", "tables.js", "decision.js", "figures.js", "cell.js", "main.js")
DIGITS, CURVE_DIGITS = 6, 4  # significant, of numbers in the page; Records have all
CURVES = ("history", "reliability", "calibrated")
_CODE = re.compile(r"`([^`]*)`")
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")


def write_html(report: ReportData, sections: Sequence[Section], out: Path) -> Path:
    """Write ``report.html`` into the run directory ``out``; return its path. Same run, same bytes.

    Args:
        report: what the page shows.
        sections: the boards, the summary first.
        out: the run directory.

    Raises:
        StoreError: ``out`` cannot be written.
    """
    path = out / NAME
    atomic_write(path, page(report, sections, out).encode())
    return path


def page(report: ReportData, sections: Sequence[Section], out: Path) -> str:
    """Return the whole page."""
    style = asset("report.css")
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "})();\n"
    # The policy lets nothing run or load but what stands here, whatever a Record may hold.
    policy = (
        f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    first = decision(report, out)
    title = f"medbench: {first['title']}"
    parts = {
        "policy": html.escape(policy),
        "title": html.escape(title),
        "style": style,
        "decision": decision_html(first),
        "examples": boards_html(examples_section(first)),
        "summary": boards_html([_summary(first, sections)]),
        "boards": boards_html(sections[1:]),
        "data": page_json({**collect(report, out), "decision": first}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))


def _summary(first: Document, sections: Sequence[Section]) -> Section:
    """The first section without its title and the two lines that stand above already."""
    said = (first.get("line"), first.get("against"))
    blocks = sections[0].blocks if sections else []
    return Section("", [
        Bullets(tuple(item for item in block.items if item not in said)) if isinstance(block, Bullets) else block
        for block in blocks
    ])  # fmt: skip


def asset(name: str) -> str:
    """A file of ``assets/``."""
    return resources.files("bench.report.write").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- the boards as plain tables --------------------------------------------------------------------------------


def boards_html(sections: Iterable[Section]) -> str:
    """Sections of a report as HTML. Everything in them is escaped."""
    parts = []
    for section in sections:
        level = min(section.level + 1, 6)  # the page's own title is the only h1
        parts += [f"<h{level}>{_inline(section.title)}</h{level}>"] if section.title else []
        parts += [_block(block, section.title) for block in section.blocks]
    return "\n".join(parts)


def _block(block: Block, title: str) -> str:
    if isinstance(block, Table):
        return _table(block, title)
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Code):
        return f'<pre tabindex="0"><code>{html.escape(block.text)}</code></pre>'
    if isinstance(block, Details):
        inner = "".join(_block(part, title) for part in block.blocks)
        return f"<details><summary>{_inline(block.summary)}</summary>{inner}</details>"
    return f"<p>{_inline(block.text)}</p>"


def _inline(text: str) -> str:
    """Escaped text; what stands between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", html.escape(text))


def _table(table: Table, title: str) -> str:
    heads = "".join(
        f'<th scope="col"{"" if column.left else _NUMERIC}>{_inline(column.name)}</th>' for column in table.columns
    )
    first = next((i for i, column in enumerate(table.columns) if column.code), None)
    lines = "".join(f"<tr>{_cells(row, table, first)}</tr>" for row in table.rows)
    caption = html.escape(title.replace("`", ""), quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table class="board">'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


_NUMERIC = ' class="n"'


def _cells(row: Sequence[str], table: Table, first: int | None) -> str:
    cells = []
    for i, (text, column) in enumerate(zip(row, table.columns, strict=True)):
        shown = html.escape(text)
        shown = f"<code>{shown}</code>" if column.code and text else shown
        kind = "" if column.left else _NUMERIC
        value = "" if column.left else _value(text)
        cells.append(f'<th scope="row"{kind}>{shown}</th>' if i == first else f"<td{kind}{value}>{shown}</td>")
    return "".join(cells)


def _value(text: str) -> str:
    """The number a cell is sorted by, where its text alone would not say it."""
    match = _NUMBER.search(text)
    if match is None or match[0] == text:
        return ""
    value = float(match[0].replace(",", ""))
    return f' data-v="{value:g}"' if known(value) else ""


# --- the document as JSON inside the page ------------------------------------------------------------------------


def page_json(document: Document) -> str:
    """The document for the page; environments, which most cells share, stand once each under ``environments``."""
    environments: dict[str, int] = {}
    cells = []
    for cell in document["cells"]:
        place = environments.setdefault(json.dumps(rounded(cell["environment"]), sort_keys=True), len(environments))
        found = {
            name: rounded(value, CURVE_DIGITS if name in CURVES else DIGITS)
            for name, value in cell.items()
            if value not in ("", None, [], {})
        }
        cells.append({**found, "environment": place})
    rest = {name: rounded(value) for name, value in document.items() if name != "cells"}
    shared = [json.loads(text) for text in environments]
    return script_json({**rest, "cells": cells, "environments": shared})


def rounded(value: object, digits: int = DIGITS) -> object:
    """What JSON can hold: floats of ``digits`` significant digits (Records have all), whole ones as integers."""
    if value is None or isinstance(value, (str, int)):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, dict):
        return {str(name): rounded(item, digits) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    simple = plain(value)  # of numpy, tuples and the like
    return value if simple is value else rounded(simple, digits)


def script_json(value: object) -> str:
    """JSON that is safe inside a script element: no character in it can end the element or begin markup."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

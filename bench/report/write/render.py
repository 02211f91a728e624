"""Draw a report: as Markdown that GitHub shows well, or in a terminal of any width."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.report.blocks import Block, Bullets, Code, Column, Details, Section, Table
from bench.report.words import name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

_DASH = re.compile("(?<=\\d)\N{EN DASH}(?=\\d)")
_CODE = re.compile(r"(`[^`]*`)")


def markdown(sections: Iterable[Section]) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    parts = []
    for section in sections:
        parts.append(f"{'#' * section.level} {_escape(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_escape(item)}" for item in block.items)
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
        return f"{fence}\n{block.text}\n{fence}"
    if isinstance(block, Details):
        inner = "\n\n".join(_block(part) for part in block.blocks)
        return f"<details>\n<summary>{_html(block.summary)}</summary>\n\n{inner}\n\n</details>"
    return _escape(block.text)


def _html(text: str) -> str:
    """Text within a tag, where Markdown is not read: names in backticks become code."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _CODE.sub(lambda found: f"<code>{found.group()[1:-1]}</code>", text)


def _table(table: Table) -> str:
    lines = [_row(column.name for column in table.columns)]
    lines.append("|" + "|".join(":---" if column.left else "---:" for column in table.columns) + "|")
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        lines.append(_row(name(cell) if column.code and cell else _unbroken(cell, column) for cell, column in pairs))
    return "\n".join(lines)


def _unbroken(cell: str, column: Column) -> str:
    """Keep an interval on one line: without a word joiner GitHub breaks it after its dash."""
    return cell if column.left else _DASH.sub("\N{EN DASH}\N{WORD JOINER}", cell)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    """Like :func:`_inline`, for text that begins a line."""
    escaped = _inline(text)
    return f"\\{escaped}" if re.match(r"(#+|[+>-])(\s|$)", escaped) else escaped


def _inline(text: str) -> str:
    """Keep data from being read as markup: everything outside backticks is literal, on one line."""
    text = " ".join(text.split())
    parts = _CODE.split(text)
    parts[::2] = [
        re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", re.sub(r"([\\*<\[\]$~`])", r"\\\1", part)).replace("&", "&amp;")
        for part in parts[::2]
    ]
    return "".join(parts)


def terminal(sections: Iterable[Section], console: Console) -> None:
    """Print the report; tables lose their least important columns where the terminal is narrow."""
    for section in sections:
        console.print()
        console.print(_spans(section.title, "bold" if section.level > 2 else "bold cyan"))
        _print_blocks(section.blocks, console)


def _print_blocks(blocks: Iterable[Block], console: Console) -> None:
    from rich.text import Text as RichText

    for block in blocks:
        if isinstance(block, Table):
            _print_table(block, console)
        elif isinstance(block, Bullets):
            for item in block.items:
                console.print(_indented(item), soft_wrap=False)
        elif isinstance(block, Code):
            console.print(RichText(block.text), soft_wrap=True)
        elif isinstance(block, Details):
            console.print(_spans(block.summary, "dim"))
            _print_blocks(block.blocks, console)
        else:
            console.print(_spans(block.text))


def _spans(text: str, style: str = "") -> RichText:
    from rich.text import Text as RichText

    spans = RichText(style=style)
    for part in _CODE.split(" ".join(text.split())):
        spans.append(part.strip("`") if part.startswith("`") else part, "bold" if part.startswith("`") else "")
    return spans


def _indented(item: str) -> RichTable:
    from rich.table import Table as RichTable

    grid = RichTable.grid(padding=(0, 1))
    grid.add_row("-", _spans(item))
    return grid


def _print_table(table: Table, console: Console) -> None:
    shown, left_out = fit(table, console.width)
    console.print(_rich_table(shown, console.is_terminal))
    if left_out:
        console.print(f"(no room for: {', '.join(left_out)})", style="dim", markup=False, highlight=False)


_WRAPPED_WIDTH = 28  # what a column of long text asks for; it takes more where there is room


def _widths(table: Table) -> list[int]:
    from rich.cells import cell_len

    widths = []
    for i, column in enumerate(table.columns):
        words = max((cell_len(word) for word in column.name.split()), default=1)
        cells = max((cell_len(row[i]) for row in table.rows), default=1)
        widths.append(max(words, min(cells, _WRAPPED_WIDTH) if column.wrap else cells))
    return widths


def fit(table: Table, width: int) -> tuple[Table, list[str]]:
    """Drop the least important columns until the table fits; return it and the headings dropped."""
    widths = _widths(table)
    kept = list(range(len(table.columns)))
    while sum(widths[i] + 3 for i in kept) + 1 > width:
        worst = max(kept, key=lambda i: (table.columns[i].drop, i))
        if not table.columns[worst].drop:
            break
        kept.remove(worst)
    left_out = [column.name for i, column in enumerate(table.columns) if i not in kept]
    return table.only(kept), left_out


def _rich_table(table: Table, is_terminal: bool) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    drawn = RichTable(box=box.SIMPLE_HEAD if is_terminal else box.MARKDOWN, pad_edge=not is_terminal, padding=(0, 1))
    for column, width in zip(table.columns, _widths(table), strict=True):
        drawn.add_column(
            # Headings are broken by hand: a column of numbers is never to be broken or cut by rich.
            RichText("\n".join(textwrap.wrap(column.name, max(width, 1), break_long_words=False))),
            justify="left" if column.left else "right",
            overflow="fold",
            no_wrap=not (column.code or column.wrap),
            style="bold" if column.code else "",
            vertical="top",
        )
    for row in table.rows:
        drawn.add_row(*(RichText(cell) for cell in row))
    return drawn

"""How numbers and tables are written."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.report.blocks import Bullets, Code, Column, Section, Table, Text
from bench.report.words import fixed, listed, natural, significant, span
from bench.report.write.render import markdown, terminal

NAME = "swin_tiny_patch4_window7_224[branch=ssm]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (9.994, "9.99"), (9.999, "10.0"), (99.96, "100"), (123.4, "123"), (12345.6, "12,346"),
     (0, "0"), (None, "–"), (float("nan"), "–"), (float("inf"), "–"), (1, "1.00")],
)  # fmt: skip
def test_significant_figures(value: float | None, text: str):
    assert significant(value) == text


def test_small_pieces():
    assert fixed(None) == "–"
    assert span(0.1, None) == "–"
    assert span(-0.01, 0.02) == "-0.010 to 0.020"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert sorted(["resnet10", "resnet9", "Ünet"], key=natural) == ["resnet9", "resnet10", "Ünet"]


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        Table((Column("a"), Column("b")), (("1",),))


def test_markdown_is_read_as_what_was_meant():
    from markdown_it import MarkdownIt

    evil = "a|b <script> *x* [link](http://x) `code` _y_ $z$ line\nbreak"
    table = Table((Column("model", left=True, code=True), Column("why", left=True)), (("n|m`e", evil),))
    page = markdown([Section("# T", [table, Text("# not a heading"), Bullets(("- a",)), Code("x ```` y")], level=1)])
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    kinds = [t.type for t in tokens]
    assert kinds.count("heading_open") == 1
    assert kinds.count("td_open") == 2
    assert kinds.count("bullet_list_open") == 1
    assert [t.content for t in tokens if t.type == "fence"] == ["x ```` y\n"]
    inline = [t for t in tokens if t.type == "inline"]
    assert not {"html_inline", "link_open", "em_open"} & {c.type for t in inline for c in t.children or ()}
    cell = next(t for t in inline if "script" in t.content)
    assert "".join(c.content for c in cell.children or ()) == " ".join(evil.replace("`code`", "code").split())


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("width", [40, 80, 140])
def test_every_width_shows_whole_names_and_no_line_is_too_long(width: int, is_terminal: bool):
    columns = (Column("#"), Column("model", left=True, code=True), Column("AUC"), Column("AUC 95 %", drop=2),
               Column("images per second", drop=1), Column("reason", left=True, wrap=True, drop=3))  # fmt: skip
    rows = (("1", NAME, "0.912", "0.871–0.940", "1,234", "a long reason that has to be wrapped somewhere " * 3),)
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None)
    terminal(
        [Section("A `name` in a title", [Table(columns, rows), Text("words " * 40), Bullets(("x " * 60,))])], console
    )
    text = out.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "0.912" in text
    assert "…" not in text
    if width > 60:
        assert NAME in text
    assert ("no room for" in text) == (width < 140)
    if not is_terminal:
        assert "\x1b" not in text


def test_columns_of_nothing_are_left_out_but_never_the_essential_ones():
    table = Table((Column("a"), Column("b", drop=1)), (("–", "–"),))
    assert [c.name for c in table.without_empty().columns] == ["a"]

"""The end of a run on one screen: the answer, one table, what is not significant, what failed, and what to do next.

Nothing here is longer than :data:`LINES` or wider than the terminal; everything else is in the files.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

from bench.record.store import planned
from bench.record.types import Record, RunInfo
from bench.report.blocks import MODEL, Column, Columns, Table, tabled
from bench.report.build import Report
from bench.report.recommend import recommend
from bench.report.rows import code_of
from bench.report.sections.efficiency import cost_beside, unusable_line
from bench.report.sections.growth import metric
from bench.report.sections.summary import headline, incomplete, skipped_datasets, within_noise
from bench.report.settings import by_setting
from bench.report.speeds import NORMAL_95, noise_floor
from bench.report.standings import Overall, Standing, is_worse
from bench.report.words import counted, listed, percent, significant, span
from bench.report.write.page_data import short

if TYPE_CHECKING:
    from rich.console import Console

LINES = 24  # of 25: the last is the prompt
MIN_ROWS = 7  # rows that the table has before the sentences around it are cut
MAX_COMMAND = 3  # lines of the command that helps now
MAX_NAMED = 4  # datasets
MIN_WIDTH = 40
MIN_NAME = 12
SPEED = "throughput_images_per_s_p50"
_UNTIDY = ("failed", "timeout", "diverged", "oom", "unsupported")  # the worst first


class Line(NamedTuple):
    """One line of the screen and its style, as rich names it."""

    text: str
    style: str = ""


class _Shown(NamedTuple):
    """What the screen shows: the answer and what speaks against it, a caption and its table, and notes below it."""

    answer: str
    against: str = ""
    caption: str = ""
    table: Table | None = None
    notes: tuple[str, ...] = ()


def print_screen(report: Report, out: Path, console: Console, keys: Collection[str] = ()) -> None:
    """Print :func:`screen`; what the terminal's encoding lacks becomes a question mark."""
    from rich.text import Text

    for line in screen(report, out, console.width, keys):
        text = line.text.encode(console.encoding, "replace").decode(console.encoding)
        console.print(Text(text, line.style), soft_wrap=True, highlight=False)


def screen(report: Report, out: Path, width: int = 80, keys: Collection[str] = ()) -> list[Line]:
    """Say in at most :data:`LINES` lines what a run has found.

    Args:
        report: everything of the run directory.
        out: the run directory, as the user named it.
        width: columns of the terminal; less than 40 are taken for 40.
        keys: Cells of what was just run: of several protocols or settings theirs is shown; by default of all.

    Returns:
        Lines without line ends. Only a path or a command may be wider than ``width``: the terminal breaks it, and it
        can still be copied.
    """
    width = max(width, MIN_WIDTH)
    shown = _accuracy(report, keys) or _efficiency(report, keys) or _Shown("Nothing has a result yet.")
    warning, unfinished = incomplete(report.run_info, report.records, keys)
    below = [*shown.notes, unusable_line(report.records), _failures(report.records), _left_out(report.run_info)]
    if moved := sum(r["kind"] == "transfer" for r in report.records):
        below.append(f"Transfer to other datasets: {counted(moved, 'result')} in LEADERBOARD.md.")
    files = [(f"{name}: ", str(out / file)) for name, file in (("Report", "report.html"), ("Tables", "LEADERBOARD.md"))]
    end = [_printable(label + path) for label, path in files]
    end += _next(report, out, unfinished, width)
    for most in (3, 2, 1):  # lines of a sentence
        top = [Line(f"{warning}.", "bold red")] if warning else []
        top += [Line(text, "bold") for text in _wrapped(shown.answer, width, 3)]
        top += [Line(text) for text in _wrapped(shown.against, width, max(most, 2))]
        caption = [Line(text, "dim") for text in _wrapped(shown.caption, width, min(most, 2))]
        notes = [Line(text) for note in below for text in _wrapped(note, width, most)]
        fixed_lines = len(top) + len(caption) + len(notes) + _height(end, width) + 4  # blanks and heading
        rows = len(shown.table.rows) if shown.table else 0
        if fixed_lines + min(rows, MIN_ROWS) <= LINES:
            break
    table = _table(shown.table, width, LINES - fixed_lines) if shown.table else []
    parts = [part for part in (top, [*caption, *table], notes, [Line(text) for text in end]) if part]
    return parts[0] + [line for part in parts[1:] for line in (Line(""), *part)]


def _printable(text: str) -> str:
    """Without control characters: names and reasons come from Records."""
    return "".join(c if c.isprintable() else " " for c in text)


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Lines of whole words; what does not fit ``most`` lines is cut."""
    lines: list[str] = []
    for word in _printable(text).replace("`", "").replace(" %", "\u00a0%").split(" "):  # no line begins with %
        if lines and cell_len(lines[-1]) + cell_len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, width)
    if len(lines) > most:
        lines[most - 1 :] = [set_cell_size(lines[most - 1], min(cell_len(lines[most - 1]), width - 2)).rstrip() + " …"]
    return [line.replace("\u00a0", " ") for line in lines if line]


def _height(lines: Iterable[str], width: int) -> int:
    """Lines of the terminal that these take."""
    return sum(max(1, ceil(cell_len(line) / width)) for line in lines)


# --- accuracy ----------------------------------------------------------------------------------------------------


def _accuracy(report: Report, keys: Collection[str]) -> _Shown | None:
    """The models of one protocol; None where no accuracy Cell of ``keys`` has a result."""
    ran = {row.protocol.identity for row in report.rows if any(r["key"] in keys for r in (*row.ok, *row.other))}
    boards = [board for board in report.boards if not keys or board.protocol.identity in ran]
    board = headline(boards)
    if board is None:
        return None
    cost, note = cost_beside(report.records, board.protocol.resolution)
    leader, shown = board.significance.leader, board.shown[:1]
    unusable = {code_of(r["spec"]) for r in report.records if "images/s" in r["metrics"].get("unusable", ())}

    def costs(key: str, factor: float = 1.0) -> Callable[[Standing], str]:
        return lambda s: significant(value * factor if (value := cost.get(s.code, {}).get(key)) is not None else None)

    def speed(s: Standing) -> str:
        known = cost.get(s.code, {}).get("throughput") is not None
        return "unusable" if s.code in unusable and not known else costs("throughput")(s)

    def score(s: Standing) -> str:
        return f"{board.metric.shown(s.score)}{f' {span(*s.interval)}' if s.estimate else ''}"

    columns: Columns[Standing] = [
        (MODEL, lambda s: s.model),
        (Column(f"{board.metric.heading} and 95 %"), score),
        *((Column(one.heading, drop=3), lambda s, one=one: one.shown(s.means.get(one.name))) for one in shown),
        (Column("params", drop=4), costs("params", 1e-6)),
        (Column("GMACs", drop=5), costs("macs_g")),
        (Column("images/s", drop=1), speed),
        (Column("memory", drop=6), costs("memory_mib")),
        (Column("worse", left=True, drop=2), lambda s: is_worse(leader, s.model)),
    ]
    setting = note.split("; 3 channels")[0]  # the rest is in LEADERBOARD.md
    scale = f"Params in millions, memory in MiB. {setting}."
    notes = (scale,) if any(cost.get(s.code) for s in board.standings) else ()
    elsewhere = _elsewhere(sum(bool(b.ranked) for b in report.boards) - 1, "protocol")
    pick, against = recommend(report, board=board).lines()
    return _Shown(pick, against, f"{_where(board)}{elsewhere}:", tabled(columns, board.standings), notes)


def _where(board: Overall) -> str:
    n, every = len(board.counted), len(board.datasets)
    named = f" ({', '.join(board.counted)})" if n <= MAX_NAMED else ""
    of = f" of {every}" if n < every else ""
    over = f"On {board.counted[0]}{' alone' if of else ''}"
    if n > 1:
        over = f"Mean {board.over}{of}{named}" if board.independent < n else f"Mean over {n}{of} datasets{named}"
    shared = ", which the ranked models share" if of else ""
    return f"{over}{shared}, {board.protocol.pixels}, {board.protocol.training}, {board.trained}"


def _elsewhere(more: int, what: str) -> str:
    return f" ({counted(more, f'more {what}')} in LEADERBOARD.md)" if more > 0 else ""


# --- efficiency alone ----------------------------------------------------------------------------------------------


_COST: Columns[Record] = [
    (MODEL, lambda r: r["label"]),
    (Column("params", drop=4), lambda r: significant(_of(r, "params", 1e-6))),
    (Column("GMACs", drop=3), lambda r: significant(_of(r, "macs_g"))),
    (Column("images/s"), lambda r: _speed(r, "images/s", SPEED) if r["status"] == "ok" else str(r["status"])),
    (Column("noise", drop=2), lambda r: percent(_of(r, "noise_rel", NORMAL_95))),
    (Column("on GPU", drop=5), lambda r: _speed(r, "device images/s", "device_images_per_s_p50")),
    (Column("latency ms", drop=1), lambda r: _speed(r, "latency", "latency_ms_p50")),
    (Column("memory", drop=2), lambda r: significant(_of(r, "peak_memory_mib"))),
]


def _efficiency(report: Report, keys: Collection[str]) -> _Shown | None:
    """The models of one setting at one resolution and batch, the fastest first."""
    tables = by_setting(r for r in report.records if not keys or r["key"] in keys)
    if not tables:
        return None
    setting, members = next(iter(tables.items()))
    places = Counter((int(r["spec"]["resolution"]), int(r["spec"].get("batch") or 0)) for r in members)
    pixels, batch = place = max(places, key=lambda p: (places[p], p))
    shown = [r for r in members if (int(r["spec"]["resolution"]), int(r["spec"].get("batch") or 0)) == place]
    speeds = {r["label"]: s for r in shown if (s := _of(r, SPEED))}
    shown.sort(key=lambda r: -speeds.get(r["label"], 0.0))
    answer = f"No model has a usable speed at {pixels} px."
    if speeds:
        first = max(speeds, key=lambda label: speeds[label])
        rest = within_noise(speeds, first, noise_floor(members)) if len(speeds) > 1 else ""
        fastest = "Fastest" if len(speeds) > 1 else "Speed"
        answer = f"{fastest} at {pixels} px: {first} with {significant(speeds[first])} images/s{rest}."
    size = f"batch {batch}" if batch else "the largest batch that fits"
    elsewhere = _elsewhere(sum(map(len, tables.values())) - len(shown), "row")
    note = "Params in millions, memory in MiB; noise: two runs differ by less (95 %)."
    table = tabled(_COST, shown)
    return _Shown(answer, "", f"At {pixels} px, {size}: {setting}{elsewhere}:", table, (note,))


def _of(record: Record, name: str, factor: float = 1.0) -> float | None:
    value = metric(record, name)
    return None if value is None else value * factor


def _speed(record: Record, speed: str, name: str) -> str:
    return "unusable" if speed in record["metrics"].get("unusable", ()) else significant(_of(record, name))


# --- the table -----------------------------------------------------------------------------------------------------


def _table(table: Table, width: int, room: int) -> list[Line]:
    """Heading and as many rows as there is room for; columns go where the terminal is too narrow for them."""
    rows = table.rows if len(table.rows) <= room else table.rows[: max(room - 1, 1)]
    rows = tuple(tuple(map(_printable, row)) for row in rows)
    kept = list(range(len(table.columns)))
    widths = [max(cell_len(table.columns[i].name), *(cell_len(row[i]) for row in rows)) for i in kept]

    def room_for_names() -> int:
        return min(widths[0], width - sum(widths[i] + 1 for i in kept[1:]))

    while room_for_names() < min(MIN_NAME, widths[0]) and (droppable := [i for i in kept if table.columns[i].drop]):
        kept.remove(max(droppable, key=lambda i: table.columns[i].drop))
    names = shortened([row[0] for row in rows], room_for_names())
    widths[0] = max(len(text) for text in (*names, table.columns[0].name))

    def line(cells: Sequence[str]) -> str:
        blanks = {i: " " * (widths[i] - cell_len(cells[i])) for i in kept}
        shown = (cells[i] + blanks[i] if table.columns[i].left else blanks[i] + cells[i] for i in kept)
        return " ".join(shown).rstrip()

    lines = [Line(line([column.name for column in table.columns]), "bold")]
    lines += [Line(line([name, *row[1:]])) for name, row in zip(names, rows, strict=True)]
    more = len(table.rows) - len(rows)
    return [*lines, Line(f"… and {more} more in LEADERBOARD.md", "dim")] if more else lines


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most ``width`` characters, all different.

    Of those that do not fit library, patch and window size go first, then the middle; equal ones are numbered.
    """
    brief = [name if len(name) <= width else short(name) for name in names]
    head, tail = width // 2, (width - 1) // 2
    brief = [text if len(text) <= width else f"{text[:head]}…{text[len(text) - tail :]}" for text in brief]
    numbers = [f"~{number}" * (brief.count(text) > 1) for number, text in enumerate(brief, start=1)]
    return [text[: width - len(number)] + number for text, number in zip(brief, numbers, strict=True)]


# --- below it ------------------------------------------------------------------------------------------------------


def _failures(records: Iterable[Record]) -> str:
    """How many Cells have no result, and the worst one with its reason."""
    records = [r for r in records if r["kind"] != "trial"]
    without = [r for r in records if r["status"] != "ok"]
    if not without:
        return ""
    statuses = Counter(str(r["status"]) for r in without)
    kinds = listed([f"{statuses[status]} {status}" for status in _UNTIDY if status in statuses])
    worst = min(without, key=lambda r: _UNTIDY.index(r["status"]))
    spec, reason = worst["spec"], " ".join(str(worst["reason"] or "no reason was recorded").split())
    at = spec.get("dataset") or f"{spec.get('mode')} at {spec.get('resolution')} px"
    return f"No result: {len(without)} of {counted(len(records), 'cell')} ({kinds}). {spec['model']}, {at}: {reason}"


def _left_out(run_info: RunInfo) -> str:
    datasets = [dataset for dataset, _ in skipped_datasets(run_info)]
    return f"Left out, as files are missing or damaged: {listed(datasets)}." if datasets else ""


def _next(report: Report, out: Path, unfinished: Sequence[str], width: int) -> list[str]:
    """One command that helps now: finish, retry, measure again, or read on."""
    failed = {r["key"] for r in report.records if r["status"] in ("failed", "timeout")}
    noisy = {r["key"] for r in report.records if r["metrics"].get("unusable")}
    board = f"bench leaderboard {shlex.quote(str(out))} --print"
    command, otherwise = board, ""
    if unfinished:
        command, otherwise = unfinished[-1], "repeat its command (at the top of LEADERBOARD.md) to go on"
    elif failed or noisy:
        flag = f"--retry {'failed,timeout' if failed else 'noisy'}"
        command = _command(report.run_info, failed or noisy).removesuffix(f" {flag}")
        command, otherwise = f"{command} {flag}", f"repeat the command with {flag}"
    line = _printable(f"Next: {command}")
    if command != board and (not command.startswith("bench ") or _height([line], width) > MAX_COMMAND):
        return _wrapped(f"Next: {otherwise}", width, MAX_COMMAND)
    return [line]


def _command(run_info: RunInfo, keys: Collection[str]) -> str:
    """The last command that planned one of these Cells."""
    commands = str(run_info.get("command") or "").splitlines()
    asked = [command for command in commands if not planned(run_info, command).isdisjoint(keys)]
    return (asked or commands or [""])[-1]

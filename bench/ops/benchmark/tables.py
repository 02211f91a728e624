"""Tables of `bench ops` for a terminal, from the plain rows of `run.run`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.ops.benchmark.cases import Row


def tables(rows: Sequence[Row]) -> Group:
    """Ceilings, the check, and one table of times for each pass."""
    parts: list[Table | Text] = [_ceilings(row) for row in rows if row["kind"] == "ceilings"]
    checks = [row for row in rows if row["kind"] == "check"]
    if checks:
        parts += [_check_table(checks), *_failures(checks)]
    times = [row for row in rows if row["kind"] == "time"]
    for one in dict.fromkeys(row["pass"] for row in times):
        of_pass = [row for row in times if row["pass"] == one]
        parts += [_time_table(one, of_pass), *_left_out(of_pass)]
    return Group(*parts)


def _ceilings(row: Row) -> Text:
    threads = f", {row['threads']} threads" if row["device"] == "cpu" else ""
    return Text(
        f"{row['device_name']}{threads}, torch {row['torch']}, {row['dtype']}; models run on {row['chosen_backend']} "
        f"({row['chosen_because']})\nceilings measured now: copy {row['copy_bytes_per_s'] / 1e9:,.1f} GB/s (read + "
        f"write), {row['exp_per_s'] / 1e9:,.2f} G exponentials/s"
    )


def _check_table(rows: list[Row]) -> Table:
    title = "Errors against float64 (rel. to max) and as multiples of the PyTorch backend's in the same type"
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    for name in ("backend", "forward", "gradients", "x fwd", "x grad", ""):
        table.add_column(name, justify="left" if name == "backend" else "right", no_wrap=True)
    for row in rows:
        outcome = "[green]ok[/]" if row["ok"] else "[red]FAIL[/]"
        table.add_row(row["case"], row["backend"], f"{row['error_forward']:.1e}", f"{row['error_gradients']:.1e}",
                      f"{row['ratio_forward']:.1f}", f"{row['ratio_gradients']:.1f}", outcome)  # fmt: skip
    return table


def _failures(rows: list[Row]) -> list[Text]:
    return [Text(f"{row['backend']}, {row['case']}: {', '.join(row['failures'])}") for row in rows if not row["ok"]]


def _short(row: Row) -> str:
    return f"{row['model']} s{row['stage']} {row['size']} px b{row['batch']}"


def _left_out(rows: list[Row]) -> list[Text]:
    """Why a backend has no figure."""
    missing = [row for row in rows if row["status"] != "ok"]
    return [Text(f"{_short(row)}, {row['backend']}: {row['status']}, {row['reason']}", style="dim") for row in missing]


def _time_table(one: str, rows: list[Row]) -> Table:
    table = Table(title=f"{one}: one block's core", title_justify="left")
    table.add_column("case", no_wrap=True)
    columns = ("backend", "ms", "G updates/s", "GB/s", "of floor", "floor by", "peak MiB", "saved MiB", "eager ms")
    for name in columns:
        table.add_column(name, justify="left" if name in ("backend", "floor by") else "right", no_wrap=True)
    before = None
    for row in rows:
        case = _short(row)
        shown = case if case != before else ""
        if before and shown:
            table.add_section()
        before = case
        if row["status"] != "ok":
            table.add_row(shown, row["backend"], Text(row["status"], style="dim"))
            continue
        table.add_row(shown, row["backend"], f"{row['ms']:.3f}", f"{row['updates_per_s'] / 1e9:.3f}",
                      f"{row['bytes_per_s'] / 1e9:.1f}", f"{row['fraction_of_floor']:.1%}", row["floor_by"],
                      f"{row['peak_bytes'] / 2**20:.1f}", f"{row['saved_bytes'] / 2**20:.1f}",
                      f"{row['eager_ms']:.3f}")  # fmt: skip
    return table

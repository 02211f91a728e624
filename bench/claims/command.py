"""``bench claims`` from a table to a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.claims.figures import Figure, bundled, named, read_figures
from bench.claims.judge import PHI, Claim, judge, measure
from bench.claims.page import page, to_json
from bench.errors import DataError
from bench.record import store
from bench.registry import nearest
from bench.report.write.render import markdown, terminal

if TYPE_CHECKING:
    from rich.console import Console

# The question asked of the bundled figures: MedMamba's own table against the baselines that MedMNIST published.
MODEL, OVER = "MedMamba (variant unstated)", "MedMNIST v2*2D table*"


def run_claims(
    path: Path | None,
    model: str | None = None,
    over: str | None = None,
    *,
    phi: tuple[float, float] | None = None,
    measured: Sequence[Path] = (),
    noise: float = 0.0,
    out: Path | None = None,
    json_path: Path | None = None,
    console: Console | None = None,
) -> list[Claim]:
    """Judge the claims of a table; see :func:`bench.claims.judge.judge`.

    Raises:
        DataError: the table cannot be read, or no row is of the models named.
        StoreError: a run or a file to write.
    """
    rows = read_figures(path or bundled())
    proposed, others = _sides(rows, path, model or (None if path else MODEL), over or (None if path else OVER))
    claims = judge(proposed, others, phi or PHI, measure(measured), noise)
    if not claims:
        raise DataError(
            f"{path or 'the published figures'}: the models have no dataset in common, so there is nothing to compare"
        )
    section = page(claims, path.name if path else "published_results.csv")
    if console:
        terminal([section], console)
    if out:
        store.atomic_write(out, markdown([section]).encode())
    if json_path:
        store.write_json(json_path, to_json(claims))
    return claims


def _sides(
    rows: list[Figure], path: Path | None, model: str | None, over: str | None
) -> tuple[list[Figure], list[Figure]]:
    proposed = named(rows, model) if model else [row for row in rows if row.proposed]
    if not proposed:
        known = sorted({row.model for row in rows})
        if model:
            raise DataError(f"{path or 'the published figures'}: no model {model!r}{nearest(model, known)}")
        raise DataError(
            f"{path}: no row says which model is claimed better; add --model NAME, or a column `proposed` with yes"
        )
    others = named(rows, over) if over else [r for r in rows if r.model not in {p.model for p in proposed}]
    if not others:
        raise DataError(
            f"{path or 'the published figures'}: no other model{f' {over!r}' if over else ''} to compare with"
        )
    return proposed, others

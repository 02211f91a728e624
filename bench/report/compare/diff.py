"""In what the nearest of several Cells differs from a wanted one: why two runs have no Cell in common. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.compare.snapshot import SnapshotCell
from bench.report.rows import flattened
from bench.report.words import grouped

MAX_NAMED = 3
MAX_TRACED = 20  # cells of which the nearest is looked for
SAME = (
    "model",
    "dataset",
    "mode",
    "seed",
)  # a Cell of another of these is another Cell, not the same one set otherwise


def nearly(only: Sequence[SnapshotCell], others: Sequence[SnapshotCell], where: str, of_models: bool) -> list[str]:
    """In what settings Cells of one side differ from the nearest of the other, as lines for people.

    Args:
        only: Cells that only the first side has.
        others: those that only the second has.
        where: the second side's name.
        of_models: two models are compared, so that they may differ in that.
    """
    cells = grouped(only[:MAX_TRACED], lambda entry: differences(entry, others, of_models))
    cells.pop("", None)
    return [
        f"{where} has {found[0].title()}{' and more' if len(found) > 1 else ''} with {apart}"
        for apart, found in list(cells.items())[:MAX_NAMED]
    ]


def differences(wanted: SnapshotCell, others: Sequence[SnapshotCell], of_models: bool = False) -> str:
    """``resolution 32 instead of 64, recipe_settings.epochs 2 instead of 3``; "" where there is nothing near.

    Args:
        wanted: the Cell that is missed.
        others: Cells that nothing else asks for.
        of_models: the model may be another, and is not named.
    """
    same = [name for name in SAME if not (of_models and name == "model")]
    flat = flattened(wanted.identity)
    best: list[str] | None = None
    for entry in others:
        has = flattened(entry.identity)
        if entry.kind != wanted.kind or any(has.get(k) != flat.get(k) for k in same):
            continue
        fields = [k for k in sorted({*flat, *has}) if flat.get(k) != has.get(k) and not (of_models and k == "model")]
        apart = [f"{k} {has.get(k)} instead of {flat.get(k)}" for k in fields]
        if best is None or len(apart) < len(best):
            best = apart
    if best is None:
        return ""
    more = f" and {len(best) - MAX_NAMED} more" if len(best) > MAX_NAMED else ""
    return ", ".join(best[:MAX_NAMED]) + more

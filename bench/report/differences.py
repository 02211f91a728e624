"""In what the nearest of several Cells differs from a wanted one: why two runs have no Cell in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.baseline import Entry

MAX_NAMED = 3
SAME = (
    "model",
    "dataset",
    "mode",
    "seed",
)  # a Cell of another of these is another Cell, not the same one set otherwise


def differences(wanted: Entry, others: Sequence[Entry], same: Sequence[str] = SAME) -> str:
    """``resolution 32 instead of 64, recipe_settings.epochs 2 instead of 3``; "" where there is nothing near.

    Args:
        wanted: the Cell that is missed.
        others: Cells that nothing else asks for.
        same: fields that must agree.
    """
    flat = flattened(wanted.identity)
    best: list[str] | None = None
    for entry in others:
        has = flattened(entry.identity)
        if entry.kind != wanted.kind or any(has.get(k) != flat.get(k) for k in same):
            continue
        apart = [
            f"{k} {has.get(k)} instead of {flat.get(k)}" for k in sorted({*flat, *has}) if flat.get(k) != has.get(k)
        ]
        if best is None or len(apart) < len(best):
            best = apart
    if best is None:
        return ""
    more = f" and {len(best) - MAX_NAMED} more" if len(best) > MAX_NAMED else ""
    return ", ".join(best[:MAX_NAMED]) + more


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``outer.inner`` -> value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flattened(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat

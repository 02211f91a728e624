"""How names, numbers and lists are written, sorted and grouped on every page."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeGuard, TypeVar

from bench.registry import counted as counted

MISSING = "–"
T = TypeVar("T")
K = TypeVar("K")


def name(text: object) -> str:
    """Set a name as code within a sentence."""
    return "`" + str(text).replace("`", "'") + "`"


def listed(items: Iterable[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def some(items: Sequence[str], most: int) -> list[str]:
    """The first items, and how many more there are."""
    return [*items[:most], f"{len(items) - most} more"] if len(items) > most else list(items)


def known(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (not None, NaN, a bool or text)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figure(metrics: Mapping[str, object], name: str) -> float | None:
    """A metric, or None where it is absent or no finite number."""
    value = metrics.get(name)
    return float(value) if known(value) else None


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of decimals, or a dash."""
    return f"{value:.{digits}f}" if value is not None and known(value) else MISSING


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}" if value is not None and known(value) else MISSING


def significant(value: float | None, digits: int = 3) -> str:
    """A positive quantity with ``digits`` significant figures; whole numbers from 100 up, thousands separated."""
    if value is None or not known(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if round(abs(value), decimals) >= 10 ** (math.floor(math.log10(abs(value))) + 1):  # 9.999 is 10.0, not 10.00
        decimals = max(0, decimals - 1)
    return f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """A share in percent, two figures, or a dash."""
    return MISSING if share is None else f"{significant(100 * share, 2)} %"


def span(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, or a dash."""
    if low is None or high is None or not known(low) or not known(high):
        return MISSING
    return f"{low:.{digits}f} to {high:.{digits}f}" if low < 0 else f"{low:.{digits}f}–{high:.{digits}f}"


def p_text(p: float | None) -> str:
    """``0.034``, ``< 0.001``, or a dash."""
    return MISSING if p is None or not known(float(p)) else "< 0.001" if p < 0.001 else fixed(float(p))


@functools.lru_cache(maxsize=1 << 14)  # the same few names are sorted over and over
def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``resnet9`` before ``resnet10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by what a key says of them, in the order in which they come."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def differing(flats: Collection[Mapping[str, object]]) -> list[str]:
    """The keys in which flat mappings differ, sorted; one that is absent is like None."""
    keys = sorted({key for flat in flats for key in flat})
    return [key for key in keys if len({repr(flat.get(key)) for flat in flats}) > 1]

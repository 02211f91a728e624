"""The document of a run as compact JSON: names once, equal values once, six significant digits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bench.record.store import plain
from bench.report.write.page_data import Document

DIGITS, CURVE_DIGITS = 6, 4
_POOLED = 40  # text longer than this stands once


class _Pool:
    """Values that stand once each, and their numbers in order of their first use."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.values)
            self.values.append(value)
        return self._places[text]


def pack(document: Document) -> Document:
    """Replace the cells' dictionaries by ``[shape, value, ...]`` and repeated values by ``{"$": place}``.

    Returns:
        The document with ``shapes`` (lists of names) and ``pool`` (values) beside the rest.
    """
    shapes, pool = _Pool(), _Pool()
    packed = rounded({name: value for name, value in document.items() if name != "cells"})
    packed["cells"] = [_cell(cell, shapes, pool) for cell in document["cells"]]
    return {**packed, "shapes": shapes.values, "pool": pool.values}


def _cell(cell: Mapping[str, Any], shapes: _Pool, pool: _Pool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in cell.items():
        if name in ("spec", "metrics", "timings"):
            found[name] = _shaped(rounded(value), shapes, pool)
        elif name in ("history", "reliability", "calibrated"):
            if value:
                digits = CURVE_DIGITS
                curves = rounded(value, digits)
                found[name] = _shaped(curves, shapes, None) if isinstance(curves, Mapping) else curves
        elif name == "pictures":
            found.update({name: value} if value else {})
        elif value not in ("", None):
            found[name] = _pooled(rounded(value), pool)
    return found


def _shaped(mapping: Mapping[str, Any], shapes: _Pool, pool: _Pool | None) -> list[Any]:
    names = sorted(mapping)
    values = [mapping[name] if pool is None else _pooled(mapping[name], pool) for name in names]
    return [shapes.place(names), *values]


def _pooled(value: Any, pool: _Pool) -> Any:
    if isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > _POOLED):
        return {"$": pool.place(value)}
    return value


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """What JSON can hold: floats of ``digits`` significant digits (Records have all), whole ones as integers."""
    kind = type(value)
    if value is None or kind is str or kind is int or kind is bool:
        return value
    if kind is float:
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if kind is dict:
        return {str(name): rounded(item, digits) for name, item in value.items()}
    if kind is list:
        return [rounded(item, digits) for item in value]
    simple = plain(value)  # of numpy, tuples and the like
    return value if simple is value else rounded(simple, digits)


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: no character in it can end the element or begin markup."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

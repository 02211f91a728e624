"""The document of a run as JSON inside a page: six significant digits, nothing that is empty, safe in a script."""

from __future__ import annotations

import json
import math
from typing import Any

from bench.record.store import plain
from bench.report.write.page_data import Document

DIGITS, CURVE_DIGITS = 6, 4
CURVES = ("history", "reliability", "calibrated")


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
    rest = rounded({name: value for name, value in document.items() if name != "cells"})
    return script_json({**rest, "cells": cells, "environments": [json.loads(text) for text in environments]})


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


def script_json(value: object) -> str:
    """JSON that is safe inside a script element: no character in it can end the element or begin markup."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

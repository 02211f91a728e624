"""The flags of ``bench ops``: lists are separated by commas, as everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.ops.benchmark.cases import DIMS

MODELS = ("medmamba", "vmamba")
SMALLEST = 4 * 2 ** (len(DIMS) - 1)  # below it the last stage has no pixel


def _numbers(text: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",") if item]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write whole numbers, as 64,224") from None


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        items = [item for item in text.split(",") if item]
        for item in items:
            if known and item not in known:
                raise argparse.ArgumentTypeError(f"{item!r} is none of {', '.join(known)}")
        return items

    return names


def parse(arguments: Sequence[str] | None, dtypes: Sequence[str]) -> dict[str, Any]:
    """Parse the flags into the keywords of :func:`bench.ops.benchmark.run.run`, and ``json``."""
    parser = argparse.ArgumentParser(prog="bench ops", description="check and time the selective scan's backends")
    add = parser.add_argument
    add("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    add("--models", type=_names(MODELS), default=list(MODELS), help=f"default {','.join(MODELS)}")
    add("--resolutions", type=_numbers, default=[64, 224, 512], help="sides of the input, pixels (default 64,224,512)")
    add("--batches", type=_numbers, help="images (default: 1 on a CPU; 1,64,128 on a GPU)")
    add("--backends", type=_names(()), help="default: all that can run here")
    add("--dtype", default="float32", choices=list(dtypes))
    add("--seconds-per-case", type=float, default=1.0)
    add("--no-check", dest="check", action="store_false", help="time only")
    add("--json", type=Path, help="write the rows to this file as well")
    found, rest = parser.parse_known_args(arguments)
    if rest:
        lists = "" if rest[0].startswith("-") else "; lists are separated by commas, as 64,224"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{lists}")
    if (smallest := min(found.resolutions)) < SMALLEST:
        parser.error(f"--resolutions {smallest}: the last stage has no pixel below {SMALLEST}")
    return vars(found)

"""The flags of ``bench ops``: lists are separated by commas, as everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODELS = ("medmamba", "vmamba")


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


def _sizes(text: str) -> None:
    """Answer the flag of an earlier version."""
    raise argparse.ArgumentTypeError("sizes are those of datasets; for the sides of the input write --resolutions")


def parse(arguments: Sequence[str] | None, dtypes: Sequence[str], passes: Sequence[str]) -> dict[str, Any]:
    """Parse the flags into the keywords of :func:`bench.ops.benchmark.run.run`, and ``json``."""
    parser = argparse.ArgumentParser(prog="bench ops", description="check and time the selective scan's backends")
    add = parser.add_argument
    add("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    add("--models", type=_names(MODELS), default=list(MODELS), help=f"default {','.join(MODELS)}")
    add("--stages", type=_numbers, default=[1, 2, 3, 4], help="default 1,2,3,4")
    add(
        "--resolutions", type=_numbers, default=[64, 224, 512], dest="sizes", metavar="RESOLUTIONS",
        help="sides of the input in pixels (default 64,224,512)",
    )  # fmt: skip
    add("--sizes", type=_sizes, dest="_sizes", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--batches", type=_numbers, help="images (default: 1 on a CPU; 1,64,128 on a GPU)")
    add("--backends", type=_names(()), help="default: all that can run here")
    add("--dtype", default="float32", choices=list(dtypes))
    add("--passes", type=_names(passes), default=list(passes), help=f"default {','.join(passes)}")
    add("--seconds-per-case", type=float, default=1.0)
    add("--call-limit-s", type=float, default=2.5, help="skip a backend where one call takes longer")
    add("--no-check", dest="check", action="store_false", help="time only")
    add("--json", type=Path, help="write the rows to this file as well")
    found, rest = parser.parse_known_args(arguments)
    if rest:
        lists = "" if rest[0].startswith("-") else "; lists are separated by commas, as 64,224"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{lists}")
    options = vars(found)
    least = 4 * 2 ** (max(options["stages"]) - 1)
    if (smallest := min(options["sizes"])) < least:
        parser.error(f"--resolutions {smallest}: stage {max(options['stages'])} has no pixel below {least}")
    return options

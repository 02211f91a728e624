"""``bench recommend``: which network of a run to take, under limits of cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    from rich.console import Console

    from bench.report.recommend import Recommendation

_TIMES = {"k": 1e3, "m": 1e6, "g": 1e9}


def add(commands: Any) -> None:
    """Add the command."""
    text = "say which network of a run to take: the cheapest that is not significantly worse than the best"
    parser = flags.command(commands, "recommend", _recommend, text)
    parser.add_argument("directory", type=Path, metavar="RUN")
    parser.add_argument("--max-latency-ms", type=positive, metavar="MS", help="latency of one image (median)")
    parser.add_argument("--min-images-per-s", type=positive, metavar="N", help="throughput at the batch of the board")
    parser.add_argument("--max-memory-mib", type=positive, metavar="MIB", help="peak memory of inference")
    parser.add_argument("--max-params", type=positive, metavar="N", help="parameters: 5000000, 5M")
    parser.add_argument("--device", default="", help="where the cost was measured: cpu, cuda, cuda:N")
    flags.add_json(parser)


def positive(text: str) -> float:
    """A number above 0, also as ``5M`` or ``500k``."""
    factor = _TIMES.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 (such as 5, 2.5, 500k, 5M)")
    return value


def _recommend(options: argparse.Namespace) -> int:
    from bench import api

    found = api.recommend(
        options.directory,
        max_latency_ms=options.max_latency_ms,
        min_images_per_s=options.min_images_per_s,
        max_memory_mib=options.max_memory_mib,
        max_params=options.max_params,
        device=options.device,
    )
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        _print(found, flags.console())
    return 0 if found.model else flags.FAILED


def _print(found: Recommendation, console: Console) -> None:
    from rich.text import Text

    def say(label: str, text: str) -> None:
        console.print(Text.assemble((label, "bold"), " ", text.replace("`", "")), soft_wrap=not console.is_terminal)

    if found.model is None:
        say("No recommendation:", f"{found.why}.")
        for miss in found.misses:
            say("Nearest:", miss)
    else:
        say("Recommended:", found.model)
        say("Why:", f"{found.why}.")
        say("Runner-up:", found.runner_up or "none")
        say("Not significantly worse than the best:", ", ".join(found.not_significantly_worse) or "not tested")
        say("To be sure:", found.resolve.get("text") or "no other model is left to compare with")
    for warning in found.warnings:
        say("Against it:" if found.model else "Note:", warning)

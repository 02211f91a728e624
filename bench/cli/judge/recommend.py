"""``bench recommend``: which network to take, from a finished run, or after a search within a budget."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import flags
from bench.cli.boards import positive

if TYPE_CHECKING:
    from rich.console import Console

    from bench.report.recommend import Limits, Recommendation

SEARCHED = (
    "--models", "--sizes", "--resolutions", "--resize", "--seeds", "--recipe", "--tune", "--epochs", "--data-root",
    "--out", "--threads", "--pack",
)  # fmt: skip
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def add(commands: flags.Commands) -> None:
    """Add the command."""
    text = "recommend a network: the cheapest one that is not significantly worse than the best"
    parser = flags.command(
        commands, "recommend", _recommend, text,
        epilog="With --budget the networks are trained first, by successive halving on validation; what was dropped is "
        "logged with its reason; the same command goes on after an interruption (docs/methodology.md).",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN|DATASET", help="a run directory; with --budget a dataset, as of bench run")
    parser.add_argument(
        "--max-latency-ms", type=positive, metavar="MS", help="limit on the median latency of one image"
    )
    parser.add_argument("--min-images-per-s", type=positive, metavar="N", help="limit on the throughput")
    parser.add_argument("--max-memory-mib", type=positive, metavar="MIB", help="limit on the peak memory of inference")
    parser.add_argument("--max-params", type=positive, metavar="N", help="limit on the parameters, such as 5M")
    parser.add_argument("--device", default="", help="device of speed and memory (and training): cpu, cuda, cuda:N")
    flags.add_json(parser)
    group = parser.add_argument_group("search", "what is trained first")
    group.add_argument("--budget", type=duration, metavar="TIME", help="time that it may take: 20m, 2h, 1h30m")
    flags.add_config(group)
    flags.add_some(group, SEARCHED)
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any other key of bench.toml"
    )


def duration(text: str) -> float:
    """Parse ``90s``, ``20m``, ``2h``, ``1h30m`` or ``1d`` as seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text.strip().lower())
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(f"{number}{unit}" for number, unit in parts) != re.sub(r"\s", "", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time (such as 20m, 2h or 1h30m)")
    return seconds


def _recommend(options: argparse.Namespace) -> int:
    from bench.report.recommend import Limits

    limits = Limits(
        options.max_latency_ms, options.min_images_per_s, options.max_memory_mib, options.max_params, options.device
    )
    if options.budget:
        return _search(options, limits)
    from bench import registry
    from bench.errors import ConfigError
    from bench.registry.names import is_source
    from bench.report.build import read_report
    from bench.report.recommend import recommend

    if is_source(options.run) or options.run in registry.datasets:
        raise ConfigError(f"{options.run} is a dataset: --budget 2h trains for it; without it name a run directory")
    given = [flag for flag in SEARCHED if getattr(options, flags.SWEEP_FLAGS[flag][0]) is not None]
    if given or options.sets:
        raise ConfigError(f"{(given or ['--set'])[0]} says what to train, which needs --budget, such as --budget 2h")
    return _said(recommend(read_report(Path(options.run).expanduser())[0], limits), options)


def _search(options: argparse.Namespace, limits: Limits) -> int:
    from rich.console import Console

    from bench.errors import ConfigError
    from bench.record.paths import is_run
    from bench.runner.search.search import Interrupted, loaded_for, search

    if is_run(Path(options.run)):
        raise ConfigError(
            f"{options.run} is a run directory; --budget trains for a dataset, such as folder:{options.run}"
        )
    loaded = loaded_for(options.run, flags.swept(options), options.config, options.sets, options.device)
    console = Console(stderr=True) if options.json else flags.console()
    try:
        found = search(loaded, options.budget, limits, console, options.command_line)
    except Interrupted:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return flags.INTERRUPTED
    if found.recommendation is None:
        print(f"bench: no network is left; {found.out}/search.json says why each was dropped", file=sys.stderr)
        return flags.FAILED
    code = _said(found.recommendation, options)
    if not options.json:
        print(f"Report: {found.out / 'report.html'}\nLog of the search: {found.out / 'search.json'}")
    return code


def _said(found: Recommendation, options: argparse.Namespace) -> int:
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

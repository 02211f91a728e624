"""The command ``bench``: registers the commands and calls the one that is asked for.

Shells complete it after ``eval "$(register-python-argcomplete bench)"`` (bash, zsh; fish: ``--shell fish``).
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence

import bench
from bench.cli import boards, doctor, fetch, flags, gate, inspect, instruments, run
from bench.cli import list as listing
from bench.cli.judge import claims, recommend, score, submit
from bench.cli.trained import deploy, explain
from bench.errors import ELSEWHERE, PLACE_FAULTS, BenchError, say

COMMANDS = (
    run,
    listing,
    fetch,
    inspect,
    recommend,
    boards,
    gate,
    score,
    claims,
    submit,
    explain,
    deploy,
    doctor,
    instruments,
)

# Packages that the core lacks, by the extra that brings them: a command that needs one says what to install.
EXTRAS = {
    **dict.fromkeys(("pandas", "matplotlib", "pyarrow"), "score"),
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "fvcore", "medmnist", "datasets", "safetensors", "requests", "PIL", "pynvml"),
        "train",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal without UTF-8 cannot show is no reason to stop
    parser = make_parser()
    if not argv and "_ARGCOMPLETE" not in os.environ:
        parser.print_help(sys.stderr)
        return flags.USAGE
    if "_ARGCOMPLETE" in os.environ:
        from argcomplete import autocomplete

        autocomplete(parser)  # answers the shell and ends
    options, rest = parser.parse_known_args(argv)
    if getattr(options, "own_flags", False):
        options.arguments = rest
    elif rest:
        options.parser.refuse(rest)
    options.command_line = shlex.join(["bench", *argv])
    try:
        return int(options.handler(options))
    except BrokenPipeError:  # the reader of our output has gone: `bench list models | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return flags.INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        complain(f"bench: this needs {error.name}: pip install 'medbench[{extra}]'")
        return flags.USAGE
    except OSError as error:
        if error.errno in PLACE_FAULTS:
            complain(f"bench: cannot write {error.filename or 'a file'}: {error.strerror}; {ELSEWHERE}")
        elif isinstance(error, PermissionError) and error.filename:
            complain(f"bench: {error.filename}: {error.strerror}; change its permissions, or name another")
        else:
            raise
        return flags.USAGE
    except BenchError as error:
        complain(f"bench: {error}")
        if error.details:
            verbose = getattr(options, "verbose", False)
            complain(f"\n{error.details}" if verbose else "Links and MD5 sums: add --verbose")
        return flags.USAGE


def complain(text: str) -> None:
    """Print an error; in a terminal it is broken between words."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr)
        return
    from rich.console import Console

    say(Console(stderr=True), text)


def make_parser() -> flags.Parser:
    """The parser of all commands; imports none of what they need to run."""
    parser = flags.Parser(
        prog="bench",
        description="Benchmark architectures on medical images: accuracy, FLOPs, speed and memory, measured together.",
        epilog="examples:\n"
        "  bench run                                             the preset quick: two minutes, no download\n"
        "  bench run --models all --datasets medmnist            every model on MedMNIST\n"
        "  bench plan --models resnet,medmamba_tiny[branch=ssm] --datasets breastmnist\n"
        "  bench list models\n"
        "  bench recommend runs/quick --max-latency-ms 10        which model to use\n"
        "  bench recommend folder:scans --budget 2h              train what is worth it first, then recommend\n"
        "  bench leaderboard runs/quick                          rebuild the leaderboard of a run\n"
        'shell completion (bash, zsh): eval "$(register-python-argcomplete bench)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medbench {bench.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for command in COMMANDS:
        command.add(commands)
    return parser

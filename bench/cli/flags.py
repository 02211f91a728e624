"""Flags that commands share, and what they stand for; light, since every ``bench --help`` imports it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

    from bench.sweep.config import Loaded, Sweep

# Exit codes: 0 fine; 1 cells failed, or doctor misses something; 2 usage, configuration or data; 130 interrupted.
FAILED, USAGE, INTERRUPTED = 1, 2, 130
MOST_LISTED = 8  # choices that are listed beside a suggestion

# By their files: the module that reads them would cost every `bench --help` its imports.
RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "sweep" / "recipes").glob("*.toml"))
SWEEP_FLAGS = {
    "--models": ("sweep.models", "comma-separated names, name[key=value], families, all, ablations, globs, timm:NAME"),
    "--datasets": ("sweep.datasets", "comma-separated names, all, medmnist, phantoms, globs; or your images: a path, "
                   "hf:NAME, folder:PATH, csv:PATH[image=..,label=..]"),
    "--sizes": ("sweep.sizes", "image sizes of the datasets, in pixels: 28,64,128,224"),
    "--resolutions": ("sweep.resolutions", "resolutions fed to the models, in accuracy and efficiency cells: 64,224"),
    "--resize": ("sweep.resize", "from size to resolution: auto, native, nearest, bilinear, bicubic or pad"),
    "--seeds": ("sweep.seeds", "seeds of the accuracy cells: 0,1,2"),
    "--recipe": ("sweep.recipe", f"one of {', '.join(RECIPES)}, or a TOML file; several are compared"),
    "--track": ("sweep.track", "frozen (features and a head), finetune, scratch (default: as the models are named)"),
    "--heads": ("sweep.heads", "heads on frozen features: knn11,knn20,linear (default), medmnistplus, eva"),
    "--finetune-recipe": ("sweep.finetune_recipe", "recipe of the track finetune (default: finetune)"),
    "--shots": ("sweep.shots", "also train with this many labelled images per class: 1,5,10"),
    "--label-fraction": ("sweep.label_fraction", "fractions of the labels to train with: .01,.1,1 (default: 1)"),
    "--draws": ("sweep.draws", "number of random draws of few labels (default: 5)"),
    "--tune": ("sweep.tune", "one or two recipe settings to choose on validation, for every model: "
               "learning_rate=1e-4,3e-4,1e-3"),
    "--epochs": ("sweep.epochs", "number of epochs, instead of the recipe's"),
    "--device": ("run.device", "auto, cpu, cuda or cuda:N"),
    "--kinds": ("sweep.kinds", "accuracy,efficiency"),
    "--data-root": ("run.data_root", "folder of the dataset files"),
    "--out": ("run.out", "run directory; an existing one is resumed (default: runs/PRESET or runs/CONFIG)"),
    "--threads": ("run.threads", "CPU threads per worker"),
    "--pack": ("run.pack", "trainings to run at once on a GPU, or the CPU: a number or auto (default)"),
    "--timeout": ("run.timeout_s", "seconds after which a cell, or a round of an efficiency cell, is ended as timeout"),
    "--executor": ("run.executor", "local (this machine) or ray (a Ray cluster, see docs/clusters.md)"),
    "--ray-address": ("run.ray_address", "auto or host:port of a cluster (default: start one on this machine)"),
    "--leaks": ("sweep.leaks", "images or patients in two splits: warn (default), refuse or drop (from train, val)"),
    "--folds": ("sweep.folds", "cross-validate in K folds, stratified and by patient"),
    "--retry": ("run.retry", "cells to run again: failed,timeout,oom,diverged, or noisy (speeds that did not repeat)"),
}  # fmt: skip


GROUPS = {  # of SWEEP_FLAGS, in `bench run --help`
    "what to train and measure": (
        "--models", "--datasets", "--sizes", "--resolutions", "--resize", "--recipe", "--epochs", "--tune", "--seeds",
        "--kinds",
    ),
    "data": ("--data-root", "--leaks", "--folds"),
    "pretrained weights, few labels": (
        "--track", "--heads", "--finetune-recipe", "--shots", "--label-fraction", "--draws",
    ),
    "machine": ("--device", "--threads", "--pack", "--timeout", "--executor", "--ray-address"),
    "run directory": ("--out", "--retry"),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser that suggests the closest choice, of commands and flags too."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            close = _closest(str(value), choices)
            listed = "" if close and len(choices) > MOST_LISTED else f" (choose from {', '.join(choices)})"
            raise argparse.ArgumentError(action, f"invalid choice {value!r}{close}{listed}")

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """End with the arguments that no flag takes."""
        flags = self._option_string_actions
        said = " ".join(f"{text}{_closest(text, flags) if text.startswith('-') else ''}" for text in arguments)
        first, hint = arguments[0], ""
        if "--datasets" in flags and (":" in first or os.path.exists(first)):
            hint = f"; data are named by --datasets {first}"
        elif not first.startswith("-"):
            hint = "; lists are separated by commas, as 64,224"
        self.exit(USAGE, f"{self.prog}: error: unrecognized arguments: {said}{hint}; see `{self.prog} --help`\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _closest(text: str, candidates: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(text.partition("=")[0], list(candidates), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def command(
    commands: Commands,
    name: str,
    handler: Callable[[argparse.Namespace], int],
    text: str,
    *,
    epilog: str | None = None,
    formatter: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    add_help: bool = True,
) -> Parser:
    """Add a command whose parsed options ``handler`` turns into an exit code; return its parser."""
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=formatter,
        add_help=add_help,
    )  # fmt: skip
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def complete_names(action: argparse.Action, flag: str) -> None:
    """Let the shell complete the names of ``--models`` or ``--datasets``, the last of a list too."""
    if flag not in ("--models", "--datasets"):
        return

    def names(prefix: str, **_: object) -> list[str]:
        from bench import registry

        known = registry.models if flag == "--models" else registry.datasets
        before, comma, _last = prefix.rpartition(",")
        return [f"{before}{comma}{name}" for name in known]

    action.completer = names  # type: ignore[attr-defined]


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add ``--config``."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file to read instead of ./bench.toml")


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root``; :func:`data_root` reads it."""
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder of the dataset files (default: see bench.toml, else the user's data folder)",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add ``-v``: an error's details, too."""
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show details of errors, such as links and MD5 sums of files"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` without a file: machine-readable output instead of tables."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add every flag that describes a sweep; :func:`loaded` reads them."""
    parser.usage = f"{parser.prog} [options]"
    parser.epilog = f"example: {parser.prog} --models resnet18,medmamba_tiny --datasets folder:scans --resolutions 64"
    add_config(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="quick (default if no models or datasets are named), standard or paper",
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for title, group in groups.items():
        add_some(group, GROUPS[title])
    groups["what to train and measure"].add_argument(
        "--transfer", action="append", metavar="SOURCE:TARGET[,TARGET]", dest="sweep.transfer",
        help="also evaluate models trained on SOURCE on other datasets, over shared classes; repeatable",
    )  # fmt: skip
    groups["run directory"].add_argument(
        "--keep-weights", action="store_true", help="keep the weights of all models (default: of the recommended one)"
    )
    groups["data"].add_argument(
        "--skip-missing", action="store_true", help="leave out datasets whose files are missing"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="set any key of bench.toml; repeatable",
    )
    add_verbose(parser)


def add_some(parser: argparse._ActionsContainer, some: Iterable[str]) -> None:
    """Add some of :data:`SWEEP_FLAGS`; :func:`swept` reads them."""
    for flag in some:
        key, text = SWEEP_FLAGS[flag]
        added = parser.add_argument(flag, dest=key, metavar=flag.rpartition("-")[2].upper(), help=text)
        complete_names(added, flag)


def swept(options: argparse.Namespace) -> dict[str, object]:
    """What those of :data:`SWEEP_FLAGS` say that a command has."""
    found = {key: getattr(options, key, None) for key, _ in SWEEP_FLAGS.values()}
    return {**found, "efficiency.resolutions": found["sweep.resolutions"]}


def loaded(options: argparse.Namespace) -> Loaded:
    """Read the configuration and the flags of :func:`add_sweep` over it."""
    from bench.sweep import config

    flags = swept(options)
    flags["sweep.transfer"] = getattr(options, "sweep.transfer")
    flags["run.skip_missing"] = True if options.skip_missing else None
    flags["run.keep_weights"] = True if options.keep_weights else None
    return config.with_own_defaults(config.load(options.config, options.preset, flags, options.sets))


def configured(options: argparse.Namespace) -> Sweep:
    """Read the configuration and load its plug-ins."""
    from bench import registry
    from bench.sweep import config

    read = config.load(options.config)
    registry.load_plugins(read.sweep.plugins, read.base)
    return read.sweep


def data_root(options: argparse.Namespace) -> Path | None:
    """Load the configuration and its plug-ins; the folder of ``--data-root``, or of the configuration."""
    sweep = configured(options)
    named = options.data_root or sweep.run.data_root
    return Path(named).expanduser() if named else None


def console() -> Console:
    """A rich console on standard output."""
    from rich.console import Console

    return Console()


def device(text: str) -> str:
    """Parse the name of a device of torch."""
    if text not in ("cpu", "cuda") and not (text.startswith("cuda:") and text[5:].isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: write cpu, cuda or cuda:N")
    return text


def share(text: str) -> float:
    """Parse a number from 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number between 0 and 1, as 0.05")
    return value


def count(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1")
    return int(text)

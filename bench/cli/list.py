"""``bench list``: models and datasets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: flags.Commands) -> None:
    """Add the command."""
    listing = flags.command(commands, "list", _list, "list models or datasets")
    listing.add_argument("what", choices=["models", "datasets"], help="what to list")
    listing.add_argument("pattern", nargs="?", default="*", help="name, family, group or glob, such as '*mamba*'")
    flags.add_json(listing)
    flags.add_config(listing)


def _list(options: argparse.Namespace) -> int:
    from bench import registry
    from bench.cli import listing

    flags.configured(options)
    models = options.what == "models"
    known = registry.models if models else registry.datasets
    names = None if options.pattern == "*" else {name.partition("[")[0] for name in known.expand(options.pattern)}
    if options.json:
        found = listing.models_json(names) if models else listing.datasets_json(names)
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show = listing.print_models if models else listing.print_datasets
        show(flags.console(), names)
    return 0

"""``bench list``: models and datasets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command."""
    listing = flags.command(commands, "list", _list, "list models or datasets")
    listing.add_argument("what", choices=["models", "datasets"])
    flags.add_json(listing)
    flags.add_config(listing)


def _list(options: argparse.Namespace) -> int:
    from bench.cli.listing import datasets_json, models_json, print_datasets, print_models

    flags.configured(options)
    if options.json:
        print(json.dumps(models_json() if options.what == "models" else datasets_json(), indent=1, ensure_ascii=False))
    elif options.what == "models":
        print_models(flags.console())
    else:
        print_datasets(flags.console())
    return 0

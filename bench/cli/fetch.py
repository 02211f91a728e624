"""``bench fetch``: download dataset files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command."""
    fetch = flags.command(commands, "fetch", _fetch, "download dataset files, resumed and verified")
    datasets = fetch.add_argument("--datasets", required=True, help="medmnist, globs, names; comma-separated")
    flags.complete_names(datasets, "--datasets")
    fetch.add_argument("--sizes", help="comma-separated side lengths (default: those of bench.toml, else 28)")
    flags.add_data_root(fetch)
    flags.add_config(fetch)
    flags.add_verbose(fetch)


def _fetch(options: argparse.Namespace) -> int:
    from bench import registry
    from bench.data.files import fetch_datasets
    from bench.runner.progress import fetch_bars
    from bench.sweep import config

    sweep, root = flags.configured(options), flags.data_root(options)
    try:
        sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else sweep.sweep.sizes
    except ValueError:
        raise config.ConfigError(f"--sizes {options.sizes}: write side lengths in pixels, as 28,64") from None
    with fetch_bars(flags.console()) as progress:
        paths = fetch_datasets(registry.split_names(options.datasets), sizes, root, progress)
    print("\n".join(f"verified: {path}" for path in paths) or "nothing to fetch: these datasets need none, or have it")
    return 0

"""``bench fetch``: download files of datasets, and pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: flags.Commands) -> None:
    """Add the command."""
    fetch = flags.command(commands, "fetch", _fetch, "download and verify dataset files or pretrained weights")
    what = fetch.add_mutually_exclusive_group(required=True)
    datasets = what.add_argument("--datasets", help="comma-separated names, groups (medmnist) or globs")
    what.add_argument(
        "--weights",
        metavar="NAMES",
        help="comma-separated timm models; tf_efficientnet_lite0 to lite2 need no access to the hub",
    )
    flags.complete_names(datasets, "--datasets")
    fetch.add_argument("--sizes", help="comma-separated image sizes in pixels (default: those in bench.toml, else 28)")
    flags.add_data_root(fetch)
    flags.add_config(fetch)
    flags.add_verbose(fetch)


def _fetch(options: argparse.Namespace) -> int:
    from bench import registry
    from bench.data.files import fetch_datasets
    from bench.runner.progress import fetch_bars
    from bench.sweep import config

    if options.weights:
        return _fetch_weights(registry.split_names(options.weights))
    sweep, root = flags.configured(options), flags.data_root(options)
    try:
        sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else sweep.sweep.sizes
    except ValueError:
        raise config.ConfigError(f"--sizes {options.sizes}: write side lengths in pixels, as 28,64") from None
    with fetch_bars(flags.console()) as progress:
        paths = fetch_datasets(registry.split_names(options.datasets), sizes, root, progress)
    print("\n".join(f"verified: {path}" for path in paths) or "nothing to fetch: these datasets need none, or have it")
    return 0


def _fetch_weights(names: list[str]) -> int:
    from bench import registry
    from bench.data.weights import fetch_weights, file_sha256

    for name in names:
        path = fetch_weights(name)
        spelt = name if name in registry.models else f"timm:{name.removeprefix('timm:')}"
        print(f"verified: {path}\n  SHA-256 {file_sha256(str(path))}\n  to use it: {spelt}[pretrained=true]")
    return 0

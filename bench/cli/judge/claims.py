"""``bench claims``: published tables judged."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add the command."""
    claims = flags.command(
        commands, "claims", _claims, "check claims in published tables: which improvements can the test set support",
        epilog="Without a file: MedMamba against the baselines of MedMNIST, from the figures that come with medbench.",
    )  # fmt: skip
    claims.add_argument(
        "csv",
        nargs="?",
        type=Path,
        help="table with columns dataset, model, acc, auc, n_test, proposed, ... (default: MedMamba's)",
    )
    claims.add_argument(
        "--model", metavar="NAME", help="model that is claimed to be better (default: see column proposed)"
    )
    claims.add_argument("--over", metavar="NAMES", help="models or papers to compare it with (default: all other rows)")
    claims.add_argument(
        "--phi", type=_range, metavar="LOW,HIGH", help="assumed correlation of the errors (default: 0.2,0.8)"
    )
    claims.add_argument("--measured", type=Path, action="append", default=[], metavar="RUN",
                        help="run directory in which to measure the correlation instead; repeatable")  # fmt: skip
    claims.add_argument("--seed-noise", type=flags.share, default=0.0, metavar="SD",
                        help="standard deviation over trainings, for rows that give none (default: 0)")  # fmt: skip
    claims.add_argument("--out", type=Path, metavar="FILE", help="write the page as Markdown")
    claims.add_argument("--json", type=Path, metavar="FILE", help="write all claims as JSON")


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: two numbers, as 0.2,0.8") from None
    if not -1 < low <= high < 1:
        raise argparse.ArgumentTypeError(f"{text}: from low to high, between -1 and 1")
    return low, high


def _claims(options: argparse.Namespace) -> int:
    from bench.claims.command import run_claims

    run_claims(
        options.csv, options.model, options.over, phi=options.phi, measured=options.measured, noise=options.seed_noise,
        out=options.out, json_path=options.json, console=flags.console(),
    )  # fmt: skip
    return 0

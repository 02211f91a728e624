"""``bench ops`` and ``bench profile``: instruments beside the sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: flags.Commands) -> None:
    """Add both commands."""
    text = "check and time the selective-scan backends"
    # It parses its own flags, --help included: it also runs as `python -m bench.ops.benchmark.run`.
    ops = flags.command(commands, "ops", _ops, text, add_help=False)
    ops.set_defaults(own_flags=True)

    text = "show where a model spends its time, by stage and by operator"
    profile = flags.command(commands, "profile", _profile, text)
    profile.add_argument("model", metavar="MODEL", help="a name, as for `bench run`")
    profile.add_argument(
        "--resolution", type=int, default=224, metavar="PX", help="image size in pixels (default: 224)"
    )
    profile.add_argument("--batch", type=int, help="images per step (default: 1, with --train 8)")
    profile.add_argument("--device", type=flags.device, default="cpu", help="cpu or cuda:N (default cpu)")
    profile.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help="default: fp32")
    profile.add_argument("--train", action="store_true", help="profile a training step instead of a forward pass")
    profile.add_argument("--compile", action="store_true", help="also time a compiled step")
    profile.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    profile.add_argument("--picture", type=Path, metavar="FILE", help="write a flame graph (PNG)")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace (JSON)")
    flags.add_json(profile)
    flags.add_config(profile)


def _ops(options: argparse.Namespace) -> int:
    from bench.ops.benchmark.run import main as ops_main

    return int(ops_main(options.arguments))


def _profile(options: argparse.Namespace) -> int:
    from bench.machine.threads import set_omp_wait_policy

    flags.configured(options)
    set_omp_wait_policy()  # as in the efficiency cells; read when torch is imported
    from bench.cli.profile import main as profile_main

    return int(profile_main(options))

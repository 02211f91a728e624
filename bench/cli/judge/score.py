"""``bench score``: predictions of any origin, judged as our own runs are; imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add the command."""
    score = flags.command(
        commands, "score", _score, "evaluate predictions from any source: intervals, paired tests, a leaderboard",
        epilog="A file has one row per image: an id, a label, and scores (probabilities or logits; p_class0, p_class1, "
        "class names, or one column for two classes). CSV, Parquet, npz, npy, JSON; docs/score.md.",
    )  # fmt: skip
    score.add_argument(
        "files", nargs="+", metavar="FILE", help="FILE, NAME=FILE or NAME:SEED=FILE, one per model or seed"
    )
    score.add_argument("--labels", type=Path, metavar="FILE", help="labels of the test images, if the files have none")
    score.add_argument("--out", type=Path, metavar="DIR", help="run directory to write (default: runs/score)")
    score.add_argument(
        "--json", type=Path, metavar="FILE", help="write models and pairs with intervals and p values as JSON"
    )
    score.add_argument("--dataset", default="", metavar="NAME", help="name of the test set, such as breastmnist")
    score.add_argument("--classes", default="", metavar="A,B", help="class names in the order of the scores")
    score.add_argument("--positive", default="", metavar="NAME", help="positive class, such as malignant")
    score.add_argument("--ordinal", action="store_true", help="classes are grades; adds kappa and MAE")
    score.add_argument("--beside", type=Path, action="append", default=[], metavar="RUN",
                       help="run directory whose models were tested on the same images; repeatable")  # fmt: skip
    score.add_argument("--single-precision", action="store_true",
                       help="compute softmax in single precision, to reproduce published figures")  # fmt: skip


def _score(options: argparse.Namespace) -> int:
    from bench.score.judge import score

    classes = [name.strip() for name in options.classes.split(",") if name.strip()]
    score(
        options.files, options.labels, out=options.out or Path("runs/score"), json_path=options.json,
        dataset=options.dataset, classes=classes, ordinal=options.ordinal, beside=options.beside,
        single=options.single_precision, positive=options.positive, console=flags.console(),
        command=options.command_line,
    )  # fmt: skip
    return 0

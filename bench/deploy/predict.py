"""``scores.csv``: what a loaded model says of images, one row each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from bench.deploy.bundle import Bundle
from bench.deploy.loaded import Prediction
from bench.record.files import atomic_write

OWN = ("path", "decision", "warning")


def columns(bundle: Bundle) -> list[str]:
    """The first line: path, each class, each class calibrated, decision, warning."""
    named = [f"class {name}" if name in OWN else name for name in bundle.classes]
    return ["path", *named, *(f"{name}_calibrated" for name in named), "decision", "warning"]


def write_scores(path: Path, bundle: Bundle, predictions: Sequence[Prediction]) -> None:
    """Write one row per image; every digit of a probability, nothing where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(bundle))
    for one in predictions:
        numbers = [repr(v[name]) if v else "" for v in (one.probabilities, one.calibrated) for name in bundle.classes]
        writer.writerow([one.path, *numbers, one.decision, "; ".join(one.warnings)])
    atomic_write(path, text.getvalue().encode("utf-8", "surrogateescape"))


def summary(predictions: Sequence[Prediction]) -> list[str]:
    """Lines for people: how many of which decision, how many with a warning, and the first of these."""
    counts: dict[str, int] = {}
    for one in predictions:
        counts[one.decision or "none"] = counts.get(one.decision or "none", 0) + bool(one.probabilities)
    lines = [", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "no image could be scored"]
    failed = [one for one in predictions if not one.probabilities]
    warned = [one for one in predictions if one.warnings and one.probabilities]
    if failed:
        lines.append(f"{len(failed):,} not scored, as {failed[0].warnings[0].removeprefix('not scored: ')}")
    if warned:
        lines.append(f"{len(warned):,} unlike the training images, as {warned[0].path}: {warned[0].warnings[0]}")
    return lines

"""Published figures beside ours, from ``data/published_results.csv``: what they say, where from, and what differs.

The file is a hand-made collection of figures that papers and repositories state, each row with its source. A row is
"of the same protocol" only where nothing in :func:`differences` speaks against it; others are marked with what does.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bench.metrics.registry import ACC, AUC
from bench.report.blocks import (
    MISSING,
    Block,
    Bullets,
    Column,
    Details,
    Section,
    Table,
    Text,
    counted,
    fixed,
    known,
    natural,
    rows_of,
    signed,
)
from bench.report.rows import Protocol, Row
from bench.report.stats.bootstrap import t_interval

FILE = "published_results.csv"
MAX_ROWS = 3  # published rows of another protocol beside one of ours: those that differ least

# Published name -> our model, and how the two differ.
_MODELS: Mapping[str, tuple[str, str]] = {
    "ResNet-18": ("resnet18", ""),
    "ResNet-18 (28)": ("resnet18", "a stem for small images"),
    "ResNet-18 (224)": ("resnet18", ""),
    "ResNet-50 (28)": ("resnet50", "a stem for small images"),
    "ResNet-50 (224)": ("resnet50", ""),
    "ResNet50": ("resnet50", ""),
    "ResNet50 (third-party rerun)": ("resnet50", "a third party's rerun"),
    "ViT-B/16": ("vit_base_patch16_224", ""),
    "ViT-Tiny": ("vit_tiny_patch16_224", ""),
    "VMamba-T(p8)": ("vmamba_tiny", "patches of 8 px"),
    "MedMamba-T": ("medmamba_tiny", ""),
    "MedMamba-S": ("medmamba_small", ""),
    "MedMamba-B": ("medmamba_base", ""),
    "MedMamba-T (third-party rerun)": ("medmamba_tiny", "a third party's rerun"),
    "MedMamba-S (third-party rerun)": ("medmamba_small", "a third party's rerun"),
    "MedMamba-B (third-party rerun)": ("medmamba_base", "a third party's rerun"),
    "MedMamba (variant unstated)": ("medmamba_tiny", "the variant is not stated"),
    "MedMamba (May 2024 README)": ("medmamba_tiny", "the variant is not stated"),
    "MedMamba (first version)": ("medmamba_tiny", "an earlier design of the block"),
}
# Part of a source -> what was done differently there.
_SOURCES: tuple[tuple[str, str], ...] = (
    ("checkpoint chosen on test set", "checkpoint chosen on the test set"),
    ("VALIDATION split", "figures of the validation split"),
    ("quotes published baselines", "quoted second-hand"),
    ("second-hand", "quoted second-hand"),
    ("docs quoting", "quoted second-hand"),
    ("column of the authors' values", "quoted second-hand"),
    ("without retraining", "transferred without retraining"),
    ("superseded block", "an earlier design of the block"),
)
# Part of a source -> recipes that are its procedure, with their epochs.
_RECIPES: tuple[tuple[str, Mapping[str, int]], ...] = (
    ("MedMNIST v2", {"medmnist": 100}),
    ("YubiaoYue/MedMamba", {"medmamba-paper": 100, "medmamba-repo": 100}),
    ("arXiv 2403.03849", {"medmamba-paper": 100, "medmamba-repo": 100}),
)


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the file; ``auc`` and ``acc`` in [0, 1] or None."""

    dataset: str
    resolution: str
    model: str
    pretrained: str
    auc: float | None
    acc: float | None
    source: str


@cache
def published() -> tuple[Published, ...]:
    """All rows of the file, in its order."""
    text = resources.files("bench.report").joinpath("data", FILE).read_text(encoding="utf-8")
    return tuple(
        Published(
            line["dataset"].strip().lower(), line["resolution"].strip(), line["model"].strip(),
            line["pretrained"].strip(), _number(line["auc"]), _number(line["acc"]), line["source"].strip(),
        )
        for line in csv.DictReader(text.splitlines())
    )  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def fed(resolution: str) -> tuple[int, int, str] | None:
    """Size, resolution and resize rule of a published row: ``28 (zero-padded to 224)`` -> (28, 224, "pad")."""
    numbers = [int(n) for n in re.findall(r"\d+", resolution.replace("MedMNIST+", ""))]
    if "x" in resolution or not numbers:  # volumes
        return None
    if len(numbers) == 1:
        return numbers[0], numbers[0], ""
    rule = "pad" if "pad" in resolution else "nearest" if "nearest" in resolution else ""
    return numbers[0], numbers[1], rule


def _pixels(theirs: tuple[int, int, str]) -> str:
    size, pixels, rule = theirs
    return f"{size} px" if size == pixels else f"{size}→{pixels} px{f' ({rule})' if rule else ''}"


def differences(row: Row, other: Published) -> list[str]:
    """What sets the protocol of a published row apart from ours, in words; empty where nothing known does."""
    found = [_MODELS[other.model][1], *_fed_differences(row.protocol, other.resolution)]
    ours = bool(row.ok and row.ok[0]["spec"].get("weights_sha256")) or "pretrained=" in row.model
    if other.pretrained == "":
        found.append("whether pretrained is not stated")
    elif (other.pretrained == "yes") != ours:
        found.append("pretrained there" if other.pretrained == "yes" else "trained from scratch there")
    found += [words for part, words in _SOURCES if part in other.source]
    if other.dataset.startswith("organ") and "pre-v2.2.4" in other.source:
        found.append("an earlier split of the data")
    found.append(_recipe_difference(row.protocol, other.source))
    return list(dict.fromkeys(words for words in found if words))


def _fed_differences(ours: Protocol, resolution: str) -> list[str]:
    theirs = fed(resolution)
    if theirs is None:
        return [f"fed {resolution}"]
    size, pixels, rule = theirs
    if (ours.size, ours.resolution) != (size, pixels):
        return [f"fed {_pixels(theirs)}"]
    if size == pixels or rule == ours.resize:
        return []
    return [f"resized by {rule}" if rule else "the resize rule is not stated"]


def _recipe_difference(ours: Protocol, source: str) -> str:
    for part, recipes in _RECIPES:
        if part in source:
            if ours.recipe not in recipes:
                return f"our recipe is {ours.recipe}"
            full = recipes[ours.recipe]
            return "" if ours.epochs == full else f"we trained {ours.epochs} epochs of {full}"
    return "a training procedure of their own"


@dataclass(frozen=True, slots=True)
class _Pair:
    row: Row
    other: Published
    differs: tuple[str, ...]


def _pairs(rows: Iterable[Row]) -> list[_Pair]:
    """For each of our rows: the published ones of its model, or of those of another protocol the nearest few."""
    found = []
    for row in rows:
        if row.mean(AUC.field) is None:
            continue
        base, dataset = re.split(r"[\[ ]", row.model)[0], row.dataset.partition(" ")[0]
        same = [p for p in published() if p.dataset == dataset and _MODELS.get(p.model, ("",))[0] == base]
        all_ = sorted((_Pair(row, p, tuple(differences(row, p))) for p in same), key=lambda q: len(q.differs))
        equal = [pair for pair in all_ if not pair.differs]
        found += equal or all_[:MAX_ROWS]
    return found


def published_section(rows: Sequence[Row]) -> Section | None:
    """Published figures beside ours; None where none is of a model and dataset of this run."""
    pairs = _pairs(rows)
    if not pairs:
        return None
    sources = sorted({pair.other.source for pair in pairs}, key=natural)
    equal = [pair for pair in pairs if not pair.differs]
    other = [pair for pair in pairs if pair.differs]
    blocks: list[Block] = []
    if equal:
        blocks += [
            Text(
                "Of the same protocol, as far as it is published. Inside: whether the figure lies in our 95 % interval "
                "over trainings (Student's); the test images are the same."
            ),
            _table(equal, sources),
        ]
    else:
        blocks.append(
            Text("No published figure is of the protocol of this run; those of others are no yardstick for it.")
        )
    if other:
        line = f"{counted(len(other), 'published figure')} of another protocol, each with what differs"
        blocks.append(Details(line, (_table(other, sources),)))
    numbered = tuple(f"[{i}] {source}" for i, source in enumerate(sources, start=1))
    blocks.append(Details(f"{counted(len(sources), 'source')}", (Bullets(numbered),)))
    return Section("Published figures beside ours", blocks)


def _table(pairs: Sequence[_Pair], sources: Sequence[str]) -> Table:
    columns = (
        Column("dataset", left=True, code=True), Column("model", left=True, code=True), Column("AUC ours"),
        Column("published"), Column("difference"), Column("inside", left=True, drop=2), Column("ACC ours", drop=4),
        Column("published ACC", drop=4), Column("ACC difference", drop=4), Column("source", drop=6),
        Column("published as", left=True, drop=5), Column("what differs", left=True, wrap=True, drop=1),
        Column("ours fed", left=True, drop=3),
    )  # fmt: skip
    several = len({pair.row.protocol.pixels for pair in pairs}) > 1
    lines = [_line(pair, sources.index(pair.other.source) + 1, several) for pair in pairs]
    return Table(columns, rows_of(lines)).without_empty()


def _line(pair: _Pair, source: int, several: bool) -> tuple[str, ...]:
    row, other = pair.row, pair.other
    area, right = row.mean(AUC.field), row.mean(ACC.field)
    inside = MISSING
    if other.auc is not None and not pair.differs:
        low, high = t_interval(row.values(AUC.field))
        inside = MISSING if not known(low) else "yes" if low <= other.auc <= high else "no"
    return (
        row.dataset, row.model, fixed(area), fixed(other.auc),
        signed(area - other.auc if area is not None and other.auc is not None else None), inside, fixed(right),
        fixed(other.acc), signed(right - other.acc if right is not None and other.acc is not None else None),
        f"[{source}]", other.model, "; ".join(pair.differs), row.protocol.pixels if several else "",
    )  # fmt: skip

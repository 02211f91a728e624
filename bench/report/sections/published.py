"""Published figures beside ours, from ``data/published_results.csv``: what they say, where from, and what differs.

The file is a hand-made collection of figures that papers and repositories state, each row with its source, our model of
that name (``ours``), what was done otherwise there (``differs``) and which of our recipes is its procedure, with the
epochs (``recipes``). A row is "of the same protocol" only where nothing in :func:`differences` speaks against it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bench.metrics.registry import ACC, AUC
from bench.report.blocks import MODEL, Block, Bullets, Column, Columns, Details, Section, Table, Text, tabled
from bench.report.rows import Row
from bench.report.words import MISSING, counted, fixed, known, natural, signed
from bench.stats.bootstrap import t_interval

FILE = "published_results.csv"
MAX_ROWS = 3  # published rows of another protocol beside one of ours: those that differ least


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the file; ``auc`` and ``acc`` in [0, 1] or None, ``size`` and ``resolution`` 0 for volumes."""

    dataset: str
    size: int
    resolution: int
    resize: str
    ours: str
    model: str
    pretrained: str
    auc: float | None
    acc: float | None
    differs: tuple[str, ...]
    recipes: Mapping[str, int]
    source: str


@cache
def published() -> tuple[Published, ...]:
    """All rows of the file, in its order."""
    text = resources.files("bench.report").joinpath("data", FILE).read_text(encoding="utf-8")
    return tuple(
        Published(
            line["dataset"], int(line["size"] or 0), int(line["resolution"] or 0), line["resize"], line["ours"],
            line["model"], line["pretrained"], _number(line["auc"]), _number(line["acc"]),
            tuple(filter(None, line["differs"].split("; "))),
            {name: int(epochs) for name, epochs in (item.split("=") for item in line["recipes"].split())},
            line["source"],
        )
        for line in csv.DictReader(text.splitlines())
    )  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text else None


def differences(row: Row, other: Published) -> list[str]:
    """What sets the protocol of a published row apart from ours, in words; empty where nothing known does."""
    found, ours = list(other.differs), row.protocol
    if (ours.size, ours.resolution) != (other.size, other.resolution):
        found += [f"fed {_pixels(other)}"] if other.size else []
    elif other.size != other.resolution and other.resize != ours.resize:
        found.append(f"resized by {other.resize}" if other.resize else "the resize rule is not stated")
    pretrained = bool(row.ok and row.ok[0]["spec"].get("weights_sha256")) or "pretrained=" in row.model
    if other.pretrained == "":
        found.append("whether pretrained is not stated")
    elif (other.pretrained == "yes") != pretrained:
        found.append("pretrained there" if other.pretrained == "yes" else "trained from scratch there")
    full = other.recipes.get(ours.recipe)
    if not other.recipes:
        found.append("a training procedure of their own")
    elif full is None:
        found.append(f"our recipe is {ours.recipe}")
    elif ours.epochs != full:
        found.append(f"we trained {ours.epochs} epochs of {full}")
    return found


def _pixels(other: Published) -> str:
    rule = f" ({other.resize})" if other.resize else ""
    return f"{other.size} px" if other.size == other.resolution else f"{other.size}→{other.resolution} px{rule}"


@dataclass(frozen=True, slots=True)
class _Pair:
    row: Row
    other: Published
    differs: tuple[str, ...]


def _pairs(rows: Iterable[Row]) -> list[_Pair]:
    """For each of our rows: the published ones of its model, or of those of another protocol the nearest few."""
    found = []
    for row in rows:
        if row.mean(AUC.field) is None or not row.protocol.resolution:  # of others' scores the protocol is unknown
            continue
        base, dataset = re.split(r"[\[ ]", row.model)[0], row.dataset.partition(" ")[0]
        same = [p for p in published() if p.dataset == dataset and p.ours == base]
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
                "Of the same protocol, as far as it is published. Inside: whether the published figure lies in our "
                "95 % interval over trainings (Student's); the test images are the same."
            ),
            _table(equal, sources),
        ]
    else:
        blocks.append(Text("No published result uses this protocol."))
    if other:
        line = f"{counted(len(other), 'published figure')} of another protocol, each with what differs"
        blocks.append(Details(line, (_table(other, sources),)))
    numbered = tuple(f"[{i}] {source}" for i, source in enumerate(sources, start=1))
    blocks.append(Details(f"{counted(len(sources), 'source')}", (Bullets(numbered),)))
    return Section("Published figures beside ours", blocks)


def _table(pairs: Sequence[_Pair], sources: Sequence[str]) -> Table:
    several = len({pair.row.protocol.pixels for pair in pairs}) > 1
    columns: Columns[_Pair] = [
        (Column("dataset", left=True, code=True), lambda q: q.row.dataset),
        (MODEL, lambda q: q.row.model),
        (Column("AUC ours"), lambda q: fixed(q.row.mean(AUC.field))),
        (Column("published"), lambda q: fixed(q.other.auc)),
        (Column("difference"), lambda q: _less(q.row.mean(AUC.field), q.other.auc)),
        (Column("inside", left=True, drop=2), _inside),
        (Column("ACC ours", drop=4), lambda q: fixed(q.row.mean(ACC.field))),
        (Column("published ACC", drop=4), lambda q: fixed(q.other.acc)),
        (Column("ACC difference", drop=4), lambda q: _less(q.row.mean(ACC.field), q.other.acc)),
        (Column("source", drop=6), lambda q: f"[{sources.index(q.other.source) + 1}]"),
        (Column("published as", left=True, drop=5), lambda q: q.other.model),
        (Column("what differs", left=True, wrap=True, drop=1), lambda q: "; ".join(q.differs)),
        (Column("ours fed", left=True, drop=3), lambda q: q.row.protocol.pixels if several else ""),
    ]
    return tabled(columns, pairs)


def _less(ours: float | None, theirs: float | None) -> str:
    return signed(ours - theirs if ours is not None and theirs is not None else None)


def _inside(pair: _Pair) -> str:
    """Whether a figure of our protocol lies in our interval over trainings."""
    low, high = t_interval(pair.row.values(AUC.field))
    if pair.other.auc is None or pair.differs or not known(low):
        return MISSING
    return "yes" if low <= pair.other.auc <= high else "no"

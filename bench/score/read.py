"""``NAME:SEED=FILE`` arguments and ``--labels`` to one test set with all its models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import registry
from bench.errors import DataError
from bench.score.align import BINARY, ORDINAL, TestSet, Truth, align
from bench.score.files import BARE, bundled, read_columns
from bench.score.roles import ONE_EACH, Predictions, plain, texts, understand
from bench.score.ties import single_precision, ties

# MedMNIST's evaluator: {flag}{_size}_{split}_[AUC]0.867_[ACC]0.808@{run}.csv
_EVALUATOR = re.compile(r"(?P<flag>[a-z]+mnist(?:3d)?)(?:_\d+)?_(?P<split>train|val|test).*@(?P<run>.+)")
_ENDS = re.compile(
    r"[_-]?(?:test|y)?[_-]?(?:preds?|predictions?|scores?|probs?|probabilities|logits|outputs?|test)$", re.IGNORECASE
)
_SEED = re.compile(r"^(?P<name>.*?)[_-]?(?:seed|run|s)[_-]?(?P<seed>\d+)$", re.IGNORECASE)


def read(
    arguments: Sequence[str],
    labels: Path | None = None,
    *,
    dataset: str = "",
    classes: Sequence[str] = (),
    ordinal: bool = False,
    single: bool = False,
    positive: str = "",
) -> tuple[str, TestSet]:
    """Read predictions and check that they are of one test set.

    Args:
        arguments: ``FILE``, ``NAME=FILE`` or ``NAME:SEED=FILE``.
        labels: a file with labels, and ids if the predictions have them.
        dataset: name of the test set; a registered dataset's gives classes and task.
        classes: names in the order of the scores' columns.
        ordinal: the classes are grades.
        positive: of two classes the one that sensitivity is of; else what the dataset declares, else a guess.
        single: put probabilities through a single-precision softmax, to reproduce figures that were computed so.

    Returns:
        The name of the dataset, and the test set.

    Raises:
        DataError: a file cannot be used; the message says which, why, and what to do.
    """
    notes: list[str] = []
    parts: list[Predictions] = []
    flags = set()
    for argument in arguments:
        name, seed, path = _split(argument)
        flag, stem, found_seed = _from_name(path)
        flags |= {flag} - {""}
        parts += understand(read_columns(path), name or stem, seed if seed is not None else found_seed, notes)
        _share(parts[0], parts[-1])
    if len(flags) > 1:
        raise DataError(f"the files are of {' and '.join(sorted(flags))}; score one test set at a time")
    dataset = dataset or next(iter(flags), "")
    truth = _truth(labels) if labels else _bundled(dataset, parts)
    facts = registry.datasets[dataset] if dataset in list(registry.datasets) else None
    if facts is not None and not classes and len(facts.classes) == parts[0].scores.shape[1]:
        classes = facts.classes if all(c.isdecimal() for p in parts for c in p.columns) else ()
    found = align(parts, truth, classes, ordinal or bool(facts and facts.task == ORDINAL), notes)
    declared = facts.positive if facts is not None and found.task == BINARY else ""
    found.positive = positive or (declared if declared in found.classes else found.positive)
    if positive and (found.task != BINARY or positive not in found.classes):
        raise DataError(f"--positive {positive!r} is none of two classes; they are {', '.join(found.classes)}")
    for scored in found.models:
        who = f"{scored.model}, seed {scored.seed}"
        if sentence := ties(scored.scores, found.labels).sentence(who):
            notes.append(sentence)
        if single and found.labels.ndim == 1:
            scored.scores = single_precision(scored.scores)
    _same_scores(found)
    return dataset or "scores", found


def _share(first: Predictions, part: Predictions) -> None:
    """Equal ids and labels are kept once: a hundred files of one test set have the same."""
    if part is not first and first.ids is not None and part.ids is not None and np.array_equal(part.ids, first.ids):
        part.ids = first.ids
    if part is not first and first.labels is not None and part.labels is not None:
        part.labels = first.labels if np.array_equal(part.labels, first.labels) else part.labels


def _split(argument: str) -> tuple[str, int | None, Path]:
    """``NAME:SEED=FILE``; a path that has ``=`` in it and exists is a path."""
    before, equals, after = argument.partition("=")
    if not equals or Path(argument).is_file():
        return "", None, Path(argument)
    name, colon, seed = before.rpartition(":")
    if not colon:
        return before, None, Path(after)
    if not seed.isdecimal():
        raise DataError(f"{argument}: the seed {seed!r} is not a whole number; write NAME:SEED=FILE")
    return name, int(seed), Path(after)


def _from_name(path: Path) -> tuple[str, str, int | None]:
    """MedMNIST's flag, model and seed from the name of a file."""
    stem, flag = path.stem, ""
    if match := _EVALUATOR.fullmatch(stem):
        if match["split"] != "test":
            raise DataError(f"{path}: these are scores of the split {match['split']}; score those of test")
        flag, stem = match["flag"], match["run"]
    stem = _ENDS.sub("", stem) or stem
    seed = None
    if match := _SEED.fullmatch(stem):
        stem, seed = match["name"], int(match["seed"])
    return flag, stem or path.resolve().parent.name, seed


def _truth(path: Path) -> Truth:
    """Labels from a file of their own."""
    file = read_columns(path)
    by_role = {role: [n for n in file.values if plain(n) in names] for role, names in ONE_EACH.items()}
    ids = texts(file.values[by_role["id"][0]]) if by_role["id"] else None
    if by_role["label"]:
        labels = file.values[by_role["label"][0]]
    elif BARE in file.values:
        labels = file.values[BARE]
    else:
        rest = [n for n, v in file.values.items() if n not in {c for names in by_role.values() for c in names}]
        if file.headless and len(rest) == 2:
            ids, rest = texts(file.values[rest[0]]), rest[1:]
        several = [n for n in rest if file.values[n].dtype.kind != "U"]
        if not rest or (len(rest) > 1 and len(several) < len(rest)):
            raise DataError(f"{path}: no column of labels among {', '.join(file.values)}; call it label or y_true")
        labels = file.values[rest[0]] if len(rest) == 1 else np.column_stack([file.values[n] for n in several])
    return Truth(labels, ids, path)


def _bundled(dataset: str, parts: Sequence[Predictions]) -> Truth | None:
    """The official test labels of a set that comes with medbench, for files without labels."""
    if any(p.labels is not None for p in parts) or not dataset:
        return None
    if path := bundled(dataset):
        return Truth(read_columns(path).values["labels"], None, path)
    raise DataError(f"the scores have no labels; give --labels with MedMNIST's file of it: --labels {dataset}.npz")


def _same_scores(found: TestSet) -> None:
    """Say which models have the very same scores: a file that was given twice, or a copy."""
    seen: dict[bytes, str] = {}
    for scored in found.models:
        who = f"{scored.model}, seed {scored.seed}"
        first = seen.setdefault(scored.scores.tobytes(), who)
        if first != who:
            found.notes.append(f"{who} has the same scores as {first}: are they two trainings?")

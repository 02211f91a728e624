"""What the columns of a file mean: id, label, scores, model, seed, fold, patient, group, by the names in use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.errors import DataError
from bench.metrics.one_vs_rest import Array
from bench.score.files import BARE, Columns


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


DECISIONS = _names(
    "y_pred ypred pred preds prediction predictions predicted predicted_label predicted_class pred_label pred_class "
    "yhat y_hat"
)
ONE_EACH: Mapping[str, frozenset[str]] = {
    "id": _names(
        "id ids image image_id image_name image_path case case_id exam_id study_id file filename file_name "
        "name names path sample sample_id uid uuid key"
    ),
    "label": _names(
        "label labels y_true ytrue y y_test target targets true truth true_label ground_truth groundtruth gt class "
        "reference reference_label diagnosis dx y_true_flat"
    ),
    "model": _names("model model_name method network architecture algorithm classifier"),
    "seed": _names("seed random_seed run repeat trial"),
    "fold": _names("fold cv_fold split_fold"),
    "patient": _names("patient patients patient_id patientid subject subject_id participant"),
    "split": _names("split subset partition"),
}
COUNTERS = frozenset({"", "index", "idx", "unnamed:_0"})  # pandas writes its index under no name
_SCORE = re.compile(
    r"(?P<kind>p|prob|probs|proba|probas|probability|probabilities|score|scores|y_score|y_scores|yscore|y_prob|y_probs|"
    r"y_proba|y_pred_proba|pred_proba|pred_prob|confidence|softmax|sigmoid|logit|logits|output|outputs|decision_function|"
    r"pred|preds|prediction|predictions|y_pred|y_hat|class)(?:_class|_label|class)?(?:_(?P<name>.+)|(?P<number>\d+))?"
)
_LABEL_OF = re.compile(r"(?:label|labels|true|y_true|target|gt|truth)_(?P<name>.+)")
_GROUP = re.compile(r"(?:test_)?group_(?P<name>.+)|(?P<plain>group|sex|gender|site|scanner|device|hospital|age_group)")
_SUM_TOLERANCE = 0.01


@dataclass(slots=True)
class Predictions:
    """One model's scores on one test set, as its file says them.

    Attributes:
        path: the file.
        model: name; empty where neither the command nor the file says it.
        seed: of the training.
        scores: (N, C) float64, as written.
        columns: name of each column of ``scores``, without ``p_`` and the like; a number where that is all there is.
        labels: (N,) or (N, L) as written, numbers or texts; None where the file has none.
        ids: (N,) texts; None where the file has none.
        patients: (N,) texts or None.
        groups: column name to (N,) texts.
        folds: number of folds whose images are put together here; 0 where the file has no folds.
    """

    path: Path
    model: str
    seed: int
    scores: Array
    columns: tuple[str, ...]
    labels: Array | None
    ids: Array | None
    patients: Array | None = None
    groups: dict[str, Array] = field(default_factory=dict)
    folds: int = 0


@dataclass(slots=True)
class _Found:
    one: dict[str, str] = field(default_factory=dict)  # role -> column
    labels: list[str] = field(default_factory=list)  # of a multi-label task
    scores: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind -> (column, class)
    groups: dict[str, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)  # numbers of rows: an id where there is no other
    rest: list[str] = field(default_factory=list)


def plain(name: str) -> str:
    """A column's name in lower case with ``_`` for blanks, dots and dashes."""
    return re.sub(r"[\s.\-]+", "_", name.strip()).lower()


def texts(values: Array) -> Array:
    """Values as texts; whole numbers without a point, so that ``1`` and ``1.0`` are one id."""
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.round(values)).all():
        values = values.astype(np.int64)
    return values.astype(str)


def understand(file: Columns, model: str, seed: int | None, notes: list[str]) -> list[Predictions]:
    """Split a file into the scores of each model and seed in it.

    Args:
        file: its columns.
        model: name given on the command line; counts where the file has no column ``model``.
        seed: the same of the seed.
        notes: gets a line for whatever had to be guessed or was left out.

    Raises:
        DataError: there are no scores, or a column can be meant in two ways.
    """
    if file.headless:
        return [_headless(file, model, seed)]
    found = _sorted_columns(file)
    scores = _scores(file, found, notes)
    used = {*found.one.values(), *found.labels, *found.groups.values(), *scores.used}
    if unused := [name for name in file.values if name not in used]:
        notes.append(f"{file.path.name}: columns not used: {', '.join(unused)}")
    rows = _test_rows(file, found, notes)
    labels = _labels(file, found)
    ids, patients, folds, models, seeds = (
        texts(file.values[found.one[role]])[rows] if role in found.one else None
        for role in ("id", "patient", "fold", "model", "seed")
    )
    models = np.full(len(rows), model) if models is None else models
    seeds = np.full(len(rows), str(seed or 0)) if seeds is None else seeds
    parts = []
    for key in dict.fromkeys(zip(models.tolist(), seeds.tolist(), strict=True)):
        here = np.flatnonzero((models == key[0]) & (seeds == key[1]))
        at = rows[here]
        parts.append(
            Predictions(
                file.path, key[0], _seed(file, key[1]), scores.values[at], scores.classes,
                None if labels is None else labels[at], None if ids is None else ids[here],
                None if patients is None else patients[here],
                {name: texts(file.values[column])[at] for name, column in found.groups.items()},
                0 if folds is None else len(np.unique(folds[here])),
            )
        )  # fmt: skip
    return parts


def _seed(file: Columns, text: str) -> int:
    match = re.fullmatch(r"[^\d]*(\d+)", text)  # seed0, run-1, 42
    if match is None:
        raise DataError(f"{file.path}: the seed {text!r} is not a whole number")
    return int(match[1])


def _test_rows(file: Columns, found: _Found, notes: list[str]) -> Array:
    """The rows of the test split; all where no column says splits."""
    everything = np.arange(len(next(iter(file.values.values()))))
    if "split" not in found.one:
        return everything
    split = np.char.lower(texts(file.values[found.one["split"]]))
    if len(np.unique(split)) < 2:
        return everything
    rows = np.flatnonzero(split == "test")
    if not len(rows):
        names = ", ".join(np.unique(split).tolist())
        raise DataError(f"{file.path}: column {found.one['split']!r} has {names}, but no 'test' to be scored")
    notes.append(f"{file.path.name}: {len(rows):,} rows of the split test of {len(split):,}")
    return rows


def _sorted_columns(file: Columns) -> _Found:
    found = _Found()
    for name, values in file.values.items():
        key = plain(name)
        role = next((role for role, names in ONE_EACH.items() if key in names), None)
        if key in COUNTERS:
            found.counters.append(name)
        elif role and not (role == "label" and values.ndim == 2):
            if role == "id" and "id" in found.one:
                continue  # a second name of the image; the first is taken, and this one is said to be unused
            if role in found.one:
                raise DataError(
                    f"{file.path}: the {role} is both {found.one[role]!r} and {name!r}; keep or rename one of them"
                )
            found.one[role] = name
        elif role == "label":
            found.labels = [name]
        elif (match := _LABEL_OF.fullmatch(key)) and values.ndim == 1 and values.dtype.kind != "U":
            found.labels.append(name)
        elif match := _GROUP.fullmatch(key):
            found.groups[match["name"] or match["plain"]] = name
        elif key in DECISIONS and values.ndim == 1:
            found.decisions.append(name)
        elif (match := _SCORE.fullmatch(key)) and values.dtype.kind == "U" and match["kind"] != "class":
            raise DataError(
                f"{file.path}: column {name!r} holds scores as text, first {str(values.flat[0])!r}; write numbers with "
                "a point"
            )
        elif match and values.dtype.kind != "U":
            same = len(key) == len(name)  # then the class keeps its capitals
            given = (name[match.start("name") :] if same else match["name"]) if match["name"] else match["number"]
            found.scores.setdefault(match["kind"], []).append((name, given or ""))
        else:
            found.rest.append(name)
    if found.counters:
        found.one.setdefault("id", found.counters[0])
    if len(found.labels) == 1 and "label" not in found.one and file.values[found.labels[0]].ndim == 1:
        found.one["label"] = found.labels.pop()  # true_0 alone
    return found


def _labels(file: Columns, found: _Found) -> Array | None:
    if "label" in found.one:
        return file.values[found.one["label"]]
    if not found.labels:
        return None
    return np.column_stack([file.values[name] for name in found.labels])


@dataclass(frozen=True, slots=True)
class _Scores:
    """The score columns of a file, the class that each stands for, and their values (N, C)."""

    used: tuple[str, ...]
    classes: tuple[str, ...]
    values: Array


def _scores(file: Columns, found: _Found, notes: list[str]) -> _Scores:
    if len(found.scores) > 1:
        kinds = [k for k in found.scores if k.startswith("logit")] or list(found.scores)
        kind = max(kinds, key=lambda k: len(found.scores[k]))
        left = [c for k, pairs in found.scores.items() if k != kind for c, _ in pairs]
        taken = ", ".join(c for c, _ in found.scores[kind])
        notes.append(f"{file.path.name}: the scores are {taken}, not {', '.join(left)}")
        found.scores = {kind: found.scores[kind]}
    if found.scores:
        (pairs,) = found.scores.values()
        return _stacked(file, pairs)
    numeric = [n for n in found.rest if file.values[n].dtype.kind != "U" and file.values[n].ndim == 1]
    # `bench predict` writes each class a second time; the first is what the run's own scores are.
    numeric = [n for n in numeric if f"{n}_calibrated" in numeric] or numeric
    if named := _by_class_name(file, found, numeric):
        return _stacked(file, [(name, name) for name in named])
    fractions = [
        n for n in found.decisions
        if file.values[n].dtype.kind == "f" and (file.values[n] != np.round(file.values[n])).any()
    ]  # fmt: skip
    if len(fractions) == 1:  # Keras and others call a probability y_pred
        return _stacked(file, [(fractions[0], "")])
    if found.decisions:
        raise DataError(
            f"{file.path}: {found.decisions[0]!r} holds decisions, and no column holds scores. Intervals and AUC need "
            "the model's probability or logit of each class: columns such as p_class0, p_class1, or score"
        )
    raise DataError(
        f"{file.path}: no column of scores among {', '.join(file.values)}. Call them p_class0, p_class1, ..., "
        "p_<class name>, the class names alone, or score (one column for two classes)"
    )


def _by_class_name(file: Columns, found: _Found, numeric: Iterable[str]) -> list[str]:
    """Columns that are called like the classes: as the labels say, or since each row adds up to one."""
    numeric = list(numeric)
    labels = _labels(file, found)
    if labels is not None and labels.dtype.kind == "U" and labels.ndim == 1:
        by_name = {plain(name): name for name in numeric}
        if {plain(v) for v in np.unique(labels).tolist()} <= set(by_name):
            others = [n for n in numeric if plain(n) not in {plain(v) for v in np.unique(labels).tolist()}]
            known = [n for n in numeric if n not in others]
            total = np.sum([file.values[n] for n in known], axis=0)
            return known if np.abs(total - 1).max() <= _SUM_TOLERANCE else numeric
    if len(numeric) > 1 and np.abs(np.sum([file.values[n] for n in numeric], axis=0) - 1).max() <= _SUM_TOLERANCE:
        return numeric
    if found.labels and len(numeric) == len(found.labels):
        return numeric
    return []


def _stacked(file: Columns, pairs: Iterable[tuple[str, str]]) -> _Scores:
    pairs = list(pairs)
    blocks = [file.values[name].reshape(len(file.values[name]), -1).astype(np.float64) for name, _ in pairs]
    values = np.concatenate(blocks, axis=1)
    classes = tuple(given for _, given in pairs)
    if len(classes) != values.shape[1] or classes == ("",):  # one array of all columns, or one column without a class
        classes = tuple(map(str, range(values.shape[1])))
    return _Scores(tuple(name for name, _ in pairs), classes, values)


def _headless(file: Columns, model: str, seed: int | None) -> Predictions:
    """MedMNIST's evaluator writes index and scores without names; an npy file is scores alone."""
    if BARE in file.values:
        values = file.values[BARE]
        block, ids = values.reshape(len(values), -1).astype(np.float64), None
    else:
        block, ids = np.column_stack(list(file.values.values())).astype(np.float64), None
        first = block[:, 0]
        if block.shape[1] > 1 and np.array_equal(np.sort(first), np.arange(len(first))):
            block, ids = block[:, 1:], texts(first)
    return Predictions(file.path, model, seed or 0, block, tuple(map(str, range(block.shape[1]))), None, ids)

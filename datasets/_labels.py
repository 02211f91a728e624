"""From what a source writes as labels to classes and numbers: nothing is guessed, what is ambiguous is refused.

A refusal names rows and the option that answers it:

    labels=split:SEP | whole | rows   cells of several labels: split them (``comma`` for a comma), take each as one
                                      class, or gather the rows of one image
    order=none<mild<severe            the classes in their order; without it only numbers have one
    missing=ignore | class | zero     rows without a label: leave them out; "unknown" is a class; a blank finding is 0
    uncertain=ignore | zero | one     findings marked -1
    spelling=merge | keep             Benign and benign are one class, or two
    task=multi-label | ordinal | ...  what the labels are, where it does not follow
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.datasets import _splits
from bench.registry import Finding, counted

Array = np.ndarray

BLANK = frozenset(("", "nan", "na", "n/a", "<na>", "#n/a", "null", "nat"))
_NO_ANSWER = frozenset(("?", "-", "--", ".", "none", "unknown", "unk", "n.a.", "missing", "undefined", "unlabeled"))
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "-1": -1, "-1.0": -1}
MOST_CLASSES = 1000


@dataclass(slots=True)
class Labels:
    """What was read.

    Attributes:
        values: int64 (N,), or (N, L) in {0, 1}; rows that are left out hold anything.
        keep: bool (N,).
    """

    classes: list[str]
    values: Array
    keep: Array
    task: str
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reading:
    """A column of labels being read: what it is called, how its rows are named in messages, and the options."""

    column: str
    at: Callable[[Sequence[int]], str]
    options: Mapping[str, str]
    deliberate: bool = False  # a person named folders so: "unknown" is a class, and is told
    known: Sequence[str] = ()  # classes in the source's own order

    def refuse(self, rows: Iterable[int], said: str) -> None:
        """Raise ValueError naming the rows, if there are any."""
        if bad := list(rows):
            raise ValueError(f"{self.at(bad)}: {said}")

    @property
    def order(self) -> list[str]:
        """The classes in their order, where it is given."""
        return [word.strip() for word in self.options.get("order", "").split("<") if word.strip()]


def read(values: Sequence[object], reading: Reading) -> Labels:
    """Read one column: of texts, or of lists of texts.

    Raises:
        ValueError: no label, or labels that can be meant in several ways; the message has the options.
    """
    lists = [value for value in values if isinstance(value, list)]
    texts = [str(value).strip() for value in values]
    if all(re.fullmatch(r"\[.*\]", text) for text in texts) and reading.options.get("labels") != "whole":
        lists = lists or [_python_list(text) for text in texts]
    if lists and len(lists) == len(values):
        parts = [[str(part).strip() for part in value] for value in lists]
        return _several(_positions(parts), np.ones(len(values), bool), reading, [])
    keep, findings = _answered(texts, reading)
    rows = np.flatnonzero(keep).tolist()
    if separator := _separator([texts[i] for i in rows], rows, reading):
        parts = [[part.strip() for part in value.split(separator) if part.strip()] for value in texts]
        said = f"column {reading.column!r} is split at {separator!r}: each part is a label (override with labels=whole)"
        if "labels" not in reading.options:
            findings.append(Finding(said, sum(separator in texts[i] for i in rows), severity="note"))
        return _several(parts, keep, reading, findings)
    texts = whole_numbers(texts, keep)
    texts = _spelt(texts, keep, reading, findings)
    classes = _ordered({texts[i] for i in rows}, reading)
    many = len(rows)
    if len(classes) < 2:
        raise ValueError(f"column {reading.column!r} holds one class only, {next(iter(classes), '')!r}")
    if len(classes) > MOST_CLASSES or len(classes) * 2 > many > 20:
        raise ValueError(
            f"column {reading.column!r} holds {len(classes)} different values in {many} rows; too many for classes"
        )
    index = {name: i for i, name in enumerate(classes)}
    numbers = np.asarray([index.get(value, 0) for value in texts], np.int64)
    task = reading.options.get("task") or ("binary-class" if len(classes) == 2 else "multi-class")
    return Labels(classes, numbers, keep, "ordinal-regression" if task.startswith("ordinal") else task, findings)


def _positions(values: list[list[str]]) -> list[list[str]]:
    """Turn lists of 0 and 1, one for each label, into lists of labels; numbers of labels would not repeat in a list."""
    binary = all(_BINARY.get(part.casefold(), -1) >= 0 for value in values for part in value)
    if not binary or len({len(value) for value in values}) > 1 or not any(len(set(v)) < len(v) for v in values):
        return values
    return [[str(at) for at, part in enumerate(value) if _BINARY[part.casefold()]] for value in values]


def _python_list(value: str) -> list[object]:
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = [part.strip(" '\"") for part in value[1:-1].split(",") if part.strip()]
    return list(found)


# --- rows without a label --------------------------------------------------------------------------------------


def _answered(values: Sequence[str], reading: Reading) -> tuple[Array, list[Finding]]:
    """Which rows have a label."""
    named = {word.casefold() for word in reading.order}
    low = [value.casefold() for value in values]
    blank = [i for i, value in enumerate(low) if value in BLANK and value not in named]
    words = [i for i, value in enumerate(low) if value in _NO_ANSWER and value not in named]
    numbers = [number for number in map(number_of, set(values)) if number is not None]
    if sum(number < 0 for number in numbers) == sum(number == -1 for number in numbers) and "-1" not in named:
        least = {value for value in set(values) if number_of(value) == -1 and len(set(numbers)) > 2}
        words += [i for i, value in enumerate(values) if value in least]
    how, column = reading.options.get("missing", ""), reading.column
    if not how:
        reading.refuse(blank, f"no label in column {column!r}; missing=ignore leaves such rows out")
        found = _splits.listed(sorted({values[i] for i in words})) if words else ""
        if words and not reading.deliberate:
            said = f"{found} in column {column!r} may mean that there is no label; set missing=ignore to leave such"
            reading.refuse(words, f"{said} rows out, or missing=class if it is a class")
        if words:
            said = f"{found} counts as a class; by its name it may be none (missing=ignore leaves it out)"
            return np.ones(len(values), bool), [Finding(said, len(words))]
    left = blank if how == "class" else sorted({*blank, *words})
    if how == "class":
        reading.refuse(blank, f"no label in column {column!r}: a blank is no name of a class; set missing=ignore")
    keep = np.ones(len(values), bool)
    keep[left] = False
    said = f"{counted(len(left), 'row')} left out: no label"
    return keep, [Finding(said, len(left), (reading.at(left),))] if left else []


def number_of(text: str) -> float | None:
    """Read a number, with a decimal point or comma; None for other text, and for nan and inf."""
    match = re.fullmatch(r"[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?", text.strip())
    return float(text.strip().replace(",", ".")) if match else None


def whole_numbers(values: Sequence[str], keep: Array) -> list[str]:
    """Write ``1.0`` as ``1`` where all values are whole numbers: pandas turns a column with gaps into floats."""
    whole = {}
    for value in {value for value, kept in zip(values, keep, strict=True) if kept}:
        number = None if re.match(r"0\d", value) else number_of(value)  # "007" is a name
        if number is None or not number.is_integer():
            return list(values)
        whole[value] = str(int(number))
    return [whole.get(value, value) for value in values]


# --- several labels in a cell ----------------------------------------------------------------------------------


def _separator(values: Sequence[str], rows: Sequence[int], reading: Reading) -> str:
    """What cells are to be split at, or "": as told, or where every part is also a label of its own."""
    how = reading.options.get("labels", "")
    if how.startswith("split:"):
        named = {"comma": ",", "space": " ", "tab": "\t", "bar": "|"}
        return named.get(how[6:], how[6:])
    if how == "whole" or reading.deliberate or reading.order or reading.options.get("task", "").startswith("ordinal"):
        return ""
    alone = set(values)
    for separator in "|;,":
        cells = [i for i, value in enumerate(values) if separator in value.strip(separator)]
        if not cells:
            continue
        parts = [[part.strip() for part in values[i].split(separator)] for i in cells]
        if all(part in alone for cell in parts for part in cell):
            return separator
        if separator == "," and not any(part in alone for cell in parts for part in cell):
            continue  # a name with a comma in it
        name = "comma" if separator == "," else separator
        said = f"{values[cells[0]]!r} in column {reading.column!r} may be one label or several; set"
        reading.refuse([rows[i] for i in cells], f"{said} labels=split:{name}, or labels=whole if it is one")
    return ""


def _several(values: list[list[str]], keep: Array, reading: Reading, findings: list[Finding]) -> Labels:
    """Lists of labels to findings (N, L)."""
    flat = [part for value, kept in zip(values, keep, strict=True) if kept for part in value]
    spelt = _spelt(flat, np.ones(len(flat), bool), reading, findings)
    spelling = dict(zip(flat, whole_numbers(spelt, np.ones(len(spelt), bool)), strict=True))
    classes = _ordered(set(spelling.values()), reading)
    if len(classes) < 2 or len(classes) > MOST_CLASSES:
        raise ValueError(f"column {reading.column!r} holds {len(classes)} different labels; too many for classes")
    index = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(values), len(classes)), np.int64)
    for row in np.flatnonzero(keep).tolist():
        labels[row, [index[spelling[part]] for part in values[row]]] = 1
    return Labels(classes, labels, keep, "multi-label", findings)


# --- names of classes ------------------------------------------------------------------------------------------


def spelling_key(text: str) -> str:
    """What two spellings of one name share: no case, no invisible characters, one form of letters and blanks."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Cc"))
    return " ".join(seen.replace("_", " ").casefold().split())


def _spelt(values: Sequence[str], keep: Array, reading: Reading, findings: list[Finding]) -> list[str]:
    """One spelling a class, by option; two that differ in case or invisible characters only are refused without."""
    how = reading.options.get("spelling", "")
    count = Counter(value for value, kept in zip(values, keep, strict=True) if kept)
    groups: dict[str, list[str]] = defaultdict(list)
    for value in sorted(count):
        groups[spelling_key(value)].append(value)
    several = [names for names in groups.values() if len(names) > 1]
    if not several or how == "keep":
        return list(values)
    shown = "; ".join(" = ".join(ascii(n) if ascii(n) != repr(n) else repr(n) for n in names) for names in several[:3])
    if how != "merge":
        raise ValueError(
            f"column {reading.column!r} spells classes in several ways ({shown}); set spelling=merge if they are one "
            "class each, or spelling=keep if they differ"
        )
    chosen = {name: max(names, key=lambda n: (count[n], n)) for names in several for name in names}
    changed = sum(count[name] for name, kept in chosen.items() if name != kept)
    findings.append(Finding(f"spellings of one class are merged: {shown}", changed, severity="note"))
    return [chosen.get(value, value) for value in values]


def _ordered(found: set[str], reading: Reading) -> list[str]:
    """Classes in the order given; numbers by value; other names, whose order says nothing, alphabetically."""
    if order := reading.order:
        if unknown := sorted(found - set(order), key=_splits.natural):
            raise ValueError(f"order={reading.options['order']} lacks {_splits.listed(unknown)} of {reading.column!r}")
        if absent := [name for name in order if name not in found]:
            raise ValueError(f"order={reading.options['order']}: column {reading.column!r} has no {absent[0]!r}")
        return order
    ordinal = reading.options.get("task", "").startswith("ordinal")
    if found <= set(reading.known) and not ordinal:
        return [name for name in reading.known if name in found]
    numbers = {name: number_of(name) for name in found}
    if all(number is not None for number in numbers.values()):
        return sorted(found, key=lambda name: (numbers[name], name))
    names = sorted(found, key=_splits.natural)
    if ordinal:
        raise ValueError(
            f"column {reading.column!r} has grades that are not numbers ({_splits.listed(names, 8)}); give their order "
            f"from least to most: order={'<'.join(names)}"
        )
    return names


# --- columns of 0 and 1 ----------------------------------------------------------------------------------------


def read_columns(names: Sequence[str], columns: Sequence[Sequence[object]], reading: Reading) -> Labels:
    """Read columns of 0 and 1, each a finding; where every row has exactly one 1 they are classes.

    Raises:
        ValueError: a cell is neither; for blanks and -1 the message has the options.
    """
    how, gaps = reading.options.get("uncertain", ""), reading.options.get("missing", "")
    count = len(columns[0])
    labels, keep = np.zeros((count, len(names)), np.int64), np.ones(count, bool)
    blanks = uncertain = 0
    for at, (name, column) in enumerate(zip(names, columns, strict=True)):
        cells = [str(value).strip().casefold() for value in column]
        empty = [i for i, cell in enumerate(cells) if cell in (*BLANK, "none")]
        doubt = [i for i, cell in enumerate(cells) if _BINARY.get(cell) == -1]
        if not (gaps or how):
            said = "missing=zero (not mentioned is 0) or missing=ignore (leave the rows out)"
            reading.refuse(empty, f"no label in column {name!r}; set {said}")
        wrong = (i for i, cell in enumerate(cells) if cell not in (*_BINARY, *BLANK, "none"))
        reading.refuse(wrong, f"column {name!r} should hold 0 and 1 only")
        if not how:
            said = "uncertain=zero, uncertain=one, or uncertain=ignore (leave the rows out)"
            reading.refuse(doubt, f"column {name!r} should hold 0 and 1 only; for -1 set {said}")
        labels[:, at] = [max(_BINARY.get(cell, 0), 0) for cell in cells]
        labels[doubt, at] = int(how == "one")
        keep[doubt if how == "ignore" else []] = False
        keep[empty if gaps == "ignore" else []] = False
        blanks, uncertain = blanks + len(empty), uncertain + len(doubt)
    findings = []
    if blanks and gaps != "ignore":
        findings.append(Finding(f"blank cells counted as 0: {blanks:,}", blanks))
    if uncertain and how != "ignore":
        findings.append(Finding(f"uncertain cells (-1) counted as {how}: {uncertain:,}", uncertain))
    if left := int((~keep).sum()):
        findings.append(Finding(f"{counted(left, 'row')} left out: blank or uncertain findings", left))
    single = len(names) > 1 and bool((labels[keep].sum(axis=1) == 1).all()) and bool(keep.any())
    if single and reading.options.get("task") != "multi-label":
        said = "every row has exactly one 1, so the columns are classes (override with task=multi-label)"
        task = "binary-class" if len(names) == 2 else "multi-class"
        return Labels(list(names), labels.argmax(axis=1), keep, task, [*findings, Finding(said, severity="note")])
    return Labels(list(names), labels, keep, "multi-label", findings)

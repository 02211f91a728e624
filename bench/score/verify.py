"""``bench verify``: recompute what a submission states from its scores, and say what cannot be verified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench import registry
from bench.errors import BenchError
from bench.metrics.calibration import clinical, recorded
from bench.metrics.classification import classification_metrics
from bench.metrics.one_vs_rest import Array
from bench.record import store
from bench.record.paths import is_run
from bench.record.positive import positive_class
from bench.record.types import Metrics, Record
from bench.report.evidence import UNREADABLE, read_saved
from bench.report.words import counted
from bench.score.files import bundled, read_columns
from bench.score.open_submission import Submission, open_submission
from bench.score.run import digest, fingerprint_of
from bench.score.submit import ENDING, is_foreign

TOLERANCE = 1e-6
LEAK_WORDS = ("leak", "also in", "two splits", "share", "same picture", "repeated")


@dataclass(slots=True)
class Verified:
    """What a check of a submission found.

    Attributes:
        recomputed: how many figures were recomputed and agree.
        problems: what is wrong; none if the submission can be taken.
        notes: what a reader should know of the data, as leaks that the Records state.
        open: what cannot be verified, as sentences.
    """

    path: Path
    submission: Submission
    recomputed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def verify(path: Path, against: Sequence[Path] = ()) -> Verified:
    """Check a submission.

    Args:
        path: a file of ``bench submit``.
        against: folders with run directories or other submissions, in which its results must not be already.

    Raises:
        StoreError: it is not a submission.
    """
    submission = open_submission(path)
    found = Verified(path, submission, problems=list(submission.problems))
    for key, record in sorted(submission.records.items()):
        who = _who(record)
        if record["status"] != "ok":
            found.problems.append(f"{who}: status {record['status']}; a submission holds only results with status ok")
        elif record["kind"] == "accuracy":
            _check_scores(found, who, record, submission.arrays.get(key))
    if orphans := set(submission.arrays) - set(submission.records):
        found.problems.append(f"scores without a record: {', '.join(sorted(orphans))}")
    if not submission.records:
        found.problems.append("it holds no result")
    _check_copies(found)
    _check_against(found, against)
    found.open += _open(submission.records.values())
    return found


def _who(record: Record) -> str:
    spec = record["spec"]
    on, seed = (
        f"{word}{spec[name]}" if name in spec else "" for word, name in ((" on ", "dataset"), (", seed ", "seed"))
    )
    return f"{spec.get('model')}{on}{seed} ({record['key'][:8]})"


def _check_scores(found: Verified, who: str, record: Record, arrays: Mapping[str, Array] | None) -> None:
    if not arrays or not {"test_scores", "test_labels"} <= set(arrays):
        found.problems.append(f"{who}: no scores, so its figures cannot be recomputed")
        return
    scores, labels = arrays["test_scores"], arrays["test_labels"]
    task = task_of(record, labels)
    positive = positive_class(record)
    number = positive.number if positive else 1
    older = positive is not None and "positive_class" not in record["metrics"]
    for split, given, truth in (("test", scores, labels), ("val", arrays.get("val_scores"), arrays.get("val_labels"))):
        if given is None or truth is None or not len(given):
            continue
        try:
            figures = classification_metrics(truth, given, task, 1 if older else number)
        except ValueError as error:
            found.problems.append(f"{who}: {split} scores cannot be used: {error}")
            continue
        figures["loss"] = figures.pop("nll")
        _compare(found, who, {f"{split}_{name}": value for name, value in figures.items()}, record["metrics"])
    if not {"val_scores", "val_labels"} - set(arrays) and len(arrays["val_scores"]):
        try:
            chosen = recorded(clinical(arrays["val_scores"], arrays["val_labels"], scores, labels, number))
        except ValueError as error:
            found.problems.append(f"{who}: the operating point cannot be recomputed: {error}")
        else:
            _compare(found, who, chosen, record["metrics"])
    if "val_scores" in arrays and np.array_equal(arrays["val_scores"], scores):
        found.problems.append(f"{who}: validation and test scores are the same")
    for name in ("test_auc", "test_acc"):
        if name not in record["metrics"]:
            found.problems.append(f"{who}: {name} is missing")
    _check_test_set(found, who, record, labels)
    if record["metrics"].get("scores_sha256") not in (None, digest(scores)):
        found.problems.append(f"{who}: scores_sha256 does not match its scores")
    for finding in (record.get("data") or record["metrics"].get("data") or {}).get("findings", []):
        text = str(finding.get("text", ""))
        if any(word in text.lower() for word in LEAK_WORDS):
            _once(found.notes, f"{record['spec']['dataset']}: {text}")


def task_of(record: Record, labels: Array) -> str:
    """The task of a Record, from its labels and from which metrics it states."""
    if np.ndim(labels) == 2 and np.shape(labels)[1] > 1:
        return "multi-label"
    metrics = record["metrics"]
    if "test_mae" in metrics:
        return "ordinal-regression"
    confusion = metrics.get("test_confusion")
    return "binary-class" if confusion is None or len(confusion) == 2 else "multi-class"


def _compare(found: Verified, who: str, figures: Metrics, stated: Metrics) -> None:
    for name, value in figures.items():
        said = stated.get(name, figures)
        if said is figures:
            continue  # a metric that its version did not have
        if name.endswith("confusion"):
            agrees, shown = said == value, "another table than its scores give"
        elif said is None or not isinstance(said, (int, float)):
            agrees, shown = said is None and not math.isfinite(value), repr(said)
        else:
            agrees, shown = abs(said - value) <= TOLERANCE, f"{said:.6f}"
        if agrees:
            found.recomputed += 1
        else:
            given = "" if name.endswith("confusion") else f", its scores give {value:.6f}"
            found.problems.append(f"{who}: {name} is given as {shown}{given}")


def _check_test_set(found: Verified, who: str, record: Record, labels: Array) -> None:
    """Fingerprint and labels against what is known of the dataset."""
    spec = record["spec"]
    dataset, stated = str(spec["dataset"]), str(spec.get("data_fingerprint", ""))
    name = dataset.partition("[")[0]
    if is_foreign(record) and stated != fingerprint_of(labels, None):
        _once(found.open, f"{dataset}: its fingerprint, which depends on image ids that are not in the file")
    if name not in list(registry.datasets):
        _once(found.open, f"{dataset}: its labels, as medbench does not know this dataset")
        return
    info = registry.datasets[name]
    if info.n_test and dataset == name and len(labels) != info.n_test:
        found.problems.append(f"{who}: {len(labels):,} test images; {name} has {info.n_test:,}")
    path = bundled(name)
    if path and not np.array_equal(np.reshape(labels, -1), np.reshape(read_columns(path).values["labels"], -1)):
        found.problems.append(f"{who}: its test labels are not those of the official file")
    if is_foreign(record):
        return
    try:
        right = info.open().fingerprint(int(spec.get("size") or 0), None)
    except (BenchError, ValueError, OSError, KeyError, TypeError, ImportError):
        _once(found.open, f"{name}: its fingerprint, as the dataset's package or files are not on this machine")
        return
    if dataset == name and right != stated:
        found.problems.append(f"{who}: data fingerprint {stated}, but {name} has {right}")


def _once(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)


def _check_copies(found: Verified) -> None:
    """Two results with the same scores are one."""
    seen: dict[str, str] = {}
    for key, arrays in sorted(found.submission.arrays.items()):
        if key in found.submission.records and "test_scores" in arrays:
            who = _who(found.submission.records[key])
            first = seen.setdefault(digest(arrays["test_scores"]), who)
            if first != who:
                found.problems.append(f"{who}: the same scores as {first}")


def _check_against(found: Verified, folders: Sequence[Path]) -> None:
    own = {digest(a["test_scores"]): k for k, a in found.submission.arrays.items() if "test_scores" in a}
    for where, keys, digests in _known(folders, found.path):
        if both := sorted(set(keys) & set(found.submission.records)):
            found.problems.append(f"{counted(len(both), 'result')} already in {where}, first {both[0]}")
        elif same := [own[d] for d in digests if d in own]:
            found.problems.append(f"{_who(found.submission.records[same[0]])}: its scores are already in {where}")


def _known(folders: Sequence[Path], but: Path) -> Iterable[tuple[Path, list[str], list[str]]]:
    """Each run and submission in ``folders`` with its keys and digests of scores."""
    for folder in folders:
        for path in sorted({folder, *folder.rglob("*")} if folder.is_dir() else {folder}):
            if path.is_dir() and is_run(path):
                files = sorted((path / "predictions").glob("*.npz"))
                keys = [p.stem for p in (path / "cells").glob("*.json")]
                yield path, keys, [d for f in files if (d := _digest_of(f))]
            elif path.name.endswith(ENDING) and path.resolve() != but.resolve():
                other = open_submission(path)
                scores = (a["test_scores"] for a in other.arrays.values() if "test_scores" in a)
                yield path, list(other.records), [digest(s) for s in scores]


def _digest_of(path: Path) -> str:
    try:
        return digest(read_saved(path).scores)
    except UNREADABLE:
        return ""


def _open(records: Iterable[Record]) -> list[str]:
    """What no file can prove."""
    records = list(records)
    found = []
    if any(r["kind"] == "accuracy" for r in records):
        found.append("that the scores come from the stated training, and that nothing was chosen on the test split")
    if any(r["kind"] == "efficiency" for r in records):
        found.append("speed and memory, which were measured on another machine")
    if any(r["spec"].get("model_plugin_sha256") or r["spec"].get("data_plugin_sha256") for r in records):
        found.append("models or datasets of plug-ins, whose code is not in the file")
    if any(r["spec"].get("weights_sha256") for r in records):
        found.append("what data the pretrained weights were trained on")
    if foreign := sum(is_foreign(r) for r in records):
        found.append(f"how {counted(foreign, 'result')} not trained by medbench came about: data, recipe, seeds")
    return found


def unpack(found: Verified, out: Path) -> None:
    """Write what a verified submission holds as a run directory, whose leaderboard `bench leaderboard` makes.

    Raises:
        StoreError: it has problems, or ``out`` cannot be written or is there already.
    """
    if found.problems:
        raise store.StoreError(f"{found.path} has problems; nothing was unpacked")
    if out.exists():
        raise store.StoreError(f"{out} exists already; unpack into a new folder, then use `bench merge`")
    store.prepare(out)
    for key, record in found.submission.records.items():
        store.write_record(out, record, found.submission.arrays.get(key))
    about = found.submission.manifest
    info = {"schema": store.SCHEMA, "command": f"bench verify {found.path.name}", "preset": None, "scored": True,
            "submission": {k: about.get(k) for k in ("author", "licence", "note", "medbench")}}  # fmt: skip
    store.write_json(out / "run.json", info)

"""What a comparison needs of a run, in one compact form: taken from its directory, or read from a baseline file.

A baseline is JSON with one line per Cell, so that git shows which Cells changed. It holds the Cells' identities, the
exact figures, the throughput of each round, the memory of each run, and the test scores (``baseline_scores``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import TESTED, Metric, defined, definitions
from bench.record import store
from bench.record.cells import ONE_THREAD
from bench.record.paths import predictions_path, require_run
from bench.record.types import Fields, Metrics, Record, Spec
from bench.report.compare.scores import MAX_IMAGES, Scores, from_text, pack_scores, to_text
from bench.report.evidence import UNREADABLE, recorded_otherwise
from bench.report.rows import flattened, read_run_directory
from bench.report.settings import by_setting, cell_in_words
from bench.report.speeds import with_relative_speeds
from bench.report.words import counted, grouped, known, natural

SCHEMA = 1
EXACT = ("params", "macs_g", "train_macs_g")
SHOWN = (*(metric.field for metric in TESTED), "throughput_images_per_s_p50", "latency_ms_p50")
# Fields of a spec that say on what, or by which version, a Cell ran, and not what was asked. A comparison is there to
# find what a changed plug-in, library or kernel did; the machine is compared on its own.
NOT_ASKED = frozenset({
    "hardware", "threads", "device", "versions", "backend", "kernels", "budget_s", "rounds", "omp_wait_policy",
    "source_key", "model_plugin_sha256", "data_plugin_sha256", "plugin_sha256", "weights_sha256",
})  # fmt: skip
# Flags of a record that say others used the machine, and not that the code is slow. "noisy" is not among them: it is
# the spread of the rounds, which the noise floor holds already, and excusing it would pass code of unsteady speed. Nor
# is "throttled": heavier code alone brings a GPU to its power limit.
BUSY = frozenset({"other processes", "not warm", "steal", "shared GPU"})
_SCORES = ("_scores", "_labels")  # the arrays of saved predictions that are compared
MAX_EVIDENCE = 2  # sentences kept of it
MAX_NAMED = 3
MAX_TRACED = 20  # cells of which the nearest is looked for
SAME = ("model", "dataset", "mode", "seed")  # a Cell of another of these is another Cell, not the same set otherwise

Machine = tuple[str, str, int]
ArrayInfo = list[str | list[int]]  # dtype and shape


class BaselineError(store.StoreError):
    """A baseline file or a run cannot be compared; the message names the file and what to do."""


@dataclass(slots=True)
class SnapshotCell:
    """One Cell as a comparison sees it.

    Attributes:
        kind: ``accuracy``, ``transfer`` or ``efficiency``.
        identity: what was asked: the spec without ``NOT_ASKED`` and without empty fields.
        machine: device (``cpu``, ``cuda``), its name, threads.
        exact: those of ``EXACT`` that are known.
        shown: those of ``SHOWN`` that are known.
        speed: images/s of each round.
        reference: the model whose speed in the same rounds ``relative`` is the ratio to; "" where there is none.
        relative: the speed over the reference's, of each round.
        relative_in: ``ONE_THREAD`` where those speeds are of processor time, "" where they are images/s.
        memory: peak MiB; several numbers in baselines of earlier versions.
        noisy: its own rounds lay too far apart.
        flags: as ``noisy``, ``other processes``.
        evidence: a few sentences on those of ``BUSY``.
        arrays: name -> [dtype, shape] of each array of saved predictions.
    """

    kind: str
    identity: Fields
    machine: Machine
    status: str
    reason: str = ""
    exact: dict[str, float] = field(default_factory=dict)
    shown: dict[str, float] = field(default_factory=dict)
    speed: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    noisy: bool = False
    arrays: dict[str, ArrayInfo] = field(default_factory=dict)
    scores: Scores | None = None
    flags: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    reference: str = ""
    relative: list[float] = field(default_factory=list)
    relative_in: str = ""

    @property
    def busy(self) -> list[str]:
        """The flags that say that others used the machine."""
        return [flag for flag in self.flags if flag in BUSY]

    def beside(self, other: SnapshotCell) -> bool:
        """Whether both have a speed relative to the same reference, measured in the same way."""
        ours, theirs = ((entry.reference, entry.relative_in) for entry in (self, other))
        return bool(self.reference) and ours == theirs

    def steady(self, other: SnapshotCell) -> bool:
        """Whether their speeds can be compared although others used the machine: processor time hardly notices."""
        return self.beside(other) and self.relative_in == ONE_THREAD

    @property
    def asked(self) -> str:
        """``identity`` and kind as one text: equal where two Cells ask the same."""
        return canonical([self.kind, self.identity])

    @property
    def row(self) -> str:
        """The same without the seed."""
        return canonical([self.kind, {k: v for k, v in self.identity.items() if k != "seed"}])

    def title(self, seed: bool = True, model: bool = True) -> str:
        """The Cell in words."""
        return cell_in_words(self.kind, self.identity, seed=seed, model=model)

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: kind, dataset, model, size."""
        has = self.identity.get
        numbers = tuple(has(name) or 0 for name in ("size", "resolution", "batch", "seed"))
        return self.kind, natural(str(has("dataset", ""))), natural(str(has("model", ""))), numbers, self.asked


@dataclass(slots=True)
class Snapshot:
    """A run, or a baseline file, in the compact form.

    Attributes:
        about: where it comes from, for people: commands and versions.
        problems: damaged files that were found; what they hold is missing.
        unrecorded: keys of Cells that the run's commands planned and that have no Record; not part of the file.
        metrics: what plug-ins defined.
    """

    entries: list[SnapshotCell]
    about: Fields = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    max_images: int = MAX_IMAGES
    unrecorded: list[str] = field(default_factory=list)
    metrics: tuple[Metric, ...] = ()

    @property
    def machines(self) -> list[Machine]:
        """Those that efficiency was measured on."""
        return sorted({e.machine for e in self.entries if e.kind == "efficiency" and e.status == "ok"})


def canonical(value: object) -> str:
    """JSON in one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def shown_machine(machine: Machine) -> str:
    """``cpu (AMD EPYC, 2 threads)``."""
    device, hardware, threads = machine
    return f"{device} ({hardware}, {counted(threads, 'thread')})"


# --- why two runs have no Cell in common ---------------------------------------------------------------------


def nearly(only: Sequence[SnapshotCell], others: Sequence[SnapshotCell], where: str, of_models: bool) -> list[str]:
    """In what settings Cells of one side differ from the nearest of the other, as lines for people.

    Args:
        only: Cells that only the first side has.
        others: those that only the second has.
        where: the second side's name.
        of_models: two models are compared, so that they may differ in that.
    """
    cells = grouped(only[:MAX_TRACED], lambda entry: differences(entry, others, of_models))
    cells.pop("", None)
    return [
        f"{where} has {found[0].title()}{' and more' if len(found) > 1 else ''} with {apart}"
        for apart, found in list(cells.items())[:MAX_NAMED]
    ]


def differences(wanted: SnapshotCell, others: Sequence[SnapshotCell], of_models: bool = False) -> str:
    """``resolution 32 instead of 64, recipe_settings.epochs 2 instead of 3``; "" where there is nothing near.

    Args:
        wanted: the Cell that is missed.
        others: Cells that nothing else asks for.
        of_models: the model may be another, and is not named.
    """
    same = [name for name in SAME if not (of_models and name == "model")]
    flat = flattened(wanted.identity)
    best: list[str] | None = None
    for entry in others:
        has = flattened(entry.identity)
        if entry.kind != wanted.kind or any(has.get(k) != flat.get(k) for k in same):
            continue
        fields = [k for k in sorted({*flat, *has}) if flat.get(k) != has.get(k) and not (of_models and k == "model")]
        apart = [f"{k} {has.get(k)} instead of {flat.get(k)}" for k in fields]
        if best is None or len(apart) < len(best):
            best = apart
    if best is None:
        return ""
    more = f" and {len(best) - MAX_NAMED} more" if len(best) > MAX_NAMED else ""
    return ", ".join(best[:MAX_NAMED]) + more


# --- from a run -------------------------------------------------------------------------------------------------


def take(run: Path, max_images: int = MAX_IMAGES) -> Snapshot:
    """Read a run; where it holds a Cell of several versions of the libraries, the newest counts.

    Args:
        run: the run directory.
        max_images: of a larger test set a fixed part is kept.

    Raises:
        BaselineError: it is not a run directory.
    """
    require_run(run, BaselineError)
    records, info, problems = read_run_directory(run)
    results = [record for record in records if record["kind"] != "trial"]
    found: dict[tuple[str, str], Record] = {}
    others = [record for record in results if record["kind"] != "efficiency"]
    for record in sorted([*_relative_speeds(results), *others], key=_versions):
        machine = canonical(_machine(record)) if record["kind"] == "efficiency" else ""
        found[canonical([record["kind"], _identity(record["spec"])]), machine] = record
    metrics = defined(results)
    shown = (*SHOWN, *(metric.field for metric in metrics))
    entries = [_entry(record, run, max_images, shown, problems) for record in found.values()]
    entries.sort(key=lambda e: (e.order, e.machine))
    versions = {k: v for r in results for k, v in sorted(r["environment"].get("versions", {}).items())}
    about = {"commands": [str(info.get("command", run))], "versions": versions}
    unrecorded = sorted(store.planned(info) - {record["key"] for record in records})
    return Snapshot(entries, about, problems, max_images, unrecorded, metrics)


def _versions(record: Record) -> tuple[object, ...]:
    return tuple((k, natural(str(v))) for k, v in sorted(record["spec"].get("versions", {}).items()))


def _relative_speeds(records: Sequence[Record]) -> Iterable[Record]:
    """The efficiency Records of a run, with their speeds relative to the reference of their table."""
    for members in by_setting(records).values():
        measured, reference = with_relative_speeds(members)
        for record in measured:
            own: Metrics = {"relative_to": reference} if record["label"] != reference else {"relative_speed_rounds": []}
            yield {**record, "metrics": {**record["metrics"], **own}}


def _identity(spec: Spec) -> Fields:
    return {k: v for k, v in spec.items() if k not in NOT_ASKED and v is not None}


def _machine(record: Record) -> Machine:
    facts = {**record["environment"], **{k: v for k, v in record["spec"].items() if k in NOT_ASKED}}
    device = str(facts.get("device", "")).partition(":")[0]
    return device, str(facts.get("hardware", "")), int(facts.get("threads") or 0)


def _entry(record: Record, run: Path, max_images: int, shown: Sequence[str], problems: list[str]) -> SnapshotCell:
    metrics, kind = record["metrics"], record["kind"]
    entry = SnapshotCell(
        kind, _identity(record["spec"]), _machine(record), record["status"], str(record["reason"] or "")
    )
    if entry.status != "ok":
        return entry
    entry.exact = {name: metrics[name] for name in EXACT if known(metrics.get(name))}
    entry.shown = {name: float(f"{metrics[name]:.7g}") for name in shown if known(metrics.get(name))}
    entry.noisy = bool(metrics.get("noisy"))
    entry.flags = sorted(map(str, metrics.get("flags") or ()))
    if entry.busy:
        told = map(str, metrics.get("noisy_evidence") or ())
        entry.evidence = [text for text in told if text.startswith("round ")][:MAX_EVIDENCE]  # not "rounds of"
    entry.speed = _positive(metrics.get("throughput_images_per_s_rounds") or ())
    entry.reference, entry.relative_in = str(metrics.get("relative_to", "")), str(metrics.get("relative_in", ""))
    entry.relative = _positive(metrics.get("relative_speed_rounds") or ()) if entry.reference else []
    if entry.identity.get("batch") != 0:  # the largest batch fills the memory, whatever there is
        entry.memory = _positive([metrics.get("peak_memory_mib")])
    if kind != "efficiency":
        _add_scores(entry, record, predictions_path(run, record["key"]), max_images, problems)
    return entry


def _positive(values: Iterable[object]) -> list[float]:
    """What was measured, to six digits."""
    return [float(f"{value:.6g}") for value in values if known(value) and value > 0]


def _add_scores(entry: SnapshotCell, record: Record, path: Path, max_images: int, problems: list[str]) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in sorted(file.files) if name.endswith(_SCORES)}
        entry.arrays = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
        if not {"test_scores", "test_labels"} <= set(arrays):
            return  # the comparison of the arrays' names says so
        scores, labels = arrays["test_scores"], arrays["test_labels"]
        if differs := recorded_otherwise(record, scores, labels):
            raise ValueError(f"its scores give {differs}")
        entry.scores = pack_scores(str(entry.identity.get("dataset")), scores, labels, max_images)
    except FileNotFoundError:
        problems.append(f"{path}: the record says ok, its predictions are missing; copy predictions/ with cells/")
    except UNREADABLE as error:
        problems.append(f"{path}: {error}; run this cell again")


# --- the file --------------------------------------------------------------------------------------------------


def _numbers(found: Fields) -> dict[str, float]:
    return {str(name): value for name, value in found.items() if known(value)}


def _texts(found: Iterable[object]) -> list[str]:
    return list(map(str, found))


# The fields that a file has where they are not empty, and how each is read.
_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "reason": str, "exact": _numbers, "shown": _numbers, "speed": _positive, "reference": str, "relative": _positive,
    "relative_in": str, "memory": _positive, "noisy": bool, "arrays": dict, "flags": _texts, "evidence": _texts,
}  # fmt: skip


def to_bytes(snapshot: Snapshot) -> bytes:
    """The baseline file: JSON, one line per Cell, the same bytes for the same content."""
    recipes: Fields = {}
    test_sets: Fields = {}
    lines = []
    for entry in snapshot.entries:
        identity = dict(entry.identity)
        if "recipe_settings" in identity:
            digest = hashlib.sha256(canonical(identity["recipe_settings"]).encode()).hexdigest()[:12]
            recipes[digest] = identity["recipe_settings"]
            identity["recipe_settings"] = digest
        line: Fields = {"kind": entry.kind, "asked": identity, "machine": entry.machine, "status": entry.status}
        line |= {name: value for name in _FIELDS if (value := getattr(entry, name))}
        if scores := entry.scores:
            test_sets[scores.test_set] = {"images": scores.images, "labels": to_text(scores.labels.astype(np.int16))}
            line["test_set"] = scores.test_set
            line["scores"] = to_text(scores.log_odds)
        lines.append(json.dumps(line, allow_nan=False, ensure_ascii=False))
    head = {
        "medbench_baseline": SCHEMA, "about": snapshot.about, "max_images": snapshot.max_images, "recipes": recipes,
        "test_sets": test_sets, **definitions(snapshot.metrics),
    }  # fmt: skip
    text = ",\n".join(
        f'"{key}": {json.dumps(value, sort_keys=True, ensure_ascii=False)}' for key, value in head.items()
    )
    return ("{" + text + ',\n"cells": [\n' + ",\n".join(lines) + "\n]}\n").encode()


def write(snapshot: Snapshot, path: Path) -> int:
    """Write the baseline file; return its size in bytes.

    Raises:
        BaselineError: there is no Cell with a result, or files of the run were damaged.
    """
    if snapshot.problems:
        raise BaselineError("\n  ".join(["no baseline of a damaged run:", *snapshot.problems]))
    if not any(entry.status == "ok" for entry in snapshot.entries):
        raise BaselineError("no baseline: the run has no cell with a result")
    data = to_bytes(snapshot)
    store.atomic_write(path, data)
    return len(data)


def read(path: Path) -> Snapshot:
    """Read a baseline file.

    Raises:
        BaselineError: it is missing, damaged or of another schema.
    """
    again = f"make it with `bench baseline RUN --out {path}`"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BaselineError(f"{path}: there is no such baseline; {again}") from error
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: {error}; {again}") from error
    if not isinstance(content, dict) or "medbench_baseline" not in content:
        raise BaselineError(f"{path}: this is not a baseline file; {again}")
    if content["medbench_baseline"] != SCHEMA:
        raise BaselineError(f"{path}: its schema is {content['medbench_baseline']!r}, ours {SCHEMA}; {again}")
    try:
        sets = {key: (int(v["images"]), from_text(v["labels"])) for key, v in content["test_sets"].items()}
        entries = [_read_entry(cell, content["recipes"], sets) for cell in content["cells"]]
        metrics = defined([{"metrics": content}])
        return Snapshot(entries, dict(content["about"]), [], int(content["max_images"]), metrics=metrics)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BaselineError(f"{path}: damaged ({type(error).__name__}: {error}); {again}") from error


def _read_entry(cell: Fields, recipes: Fields, sets: Mapping[str, tuple[int, Array]]) -> SnapshotCell:
    identity = dict(cell["asked"])
    if "recipe_settings" in identity:
        identity["recipe_settings"] = recipes[identity["recipe_settings"]]
    device, hardware, threads = cell["machine"]
    if cell["status"] not in store.STATUSES:
        raise ValueError(f"status {cell['status']!r}")

    entry = SnapshotCell(
        str(cell["kind"]), identity, (str(device), str(hardware), int(threads)), cell["status"],
        **{name: read_(cell[name]) for name, read_ in _FIELDS.items() if name in cell},
    )  # fmt: skip
    if "scores" in cell:
        images, labels = sets[cell["test_set"]]
        scores = from_text(cell["scores"])
        if len(scores) != len(labels) or scores.ndim != 2:
            raise ValueError(f"{entry.title()}: {scores.shape} scores for {len(labels)} labels")
        entry.scores = Scores(scores, labels.astype(np.int64), str(cell["test_set"]), images)
    return entry

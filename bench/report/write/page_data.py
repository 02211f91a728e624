"""What ``report.html`` embeds: Records, histories, logs and saved scores as dictionaries, lists, numbers and text."""

from __future__ import annotations

import base64
import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.metrics.calibration import Reliability, reliability, rescaled
from bench.metrics.registry import METRICS, RANKING, TESTED
from bench.record.types import Fields, Record
from bench.report.evidence import UNREADABLE, read_saved
from bench.report.rows import Code, Row, code_of, family_of
from bench.report.sections.summary import headline
from bench.report.settings import by_setting
from bench.report.standings import ReportData
from bench.report.words import known, natural

Document = Fields


class Measure(NamedTuple):
    """What a model costs: how it is named, its metric, factor, whether more is better, and where it is read.

    ``source``: in an efficiency Cell, or in the trainings ("row": a field of the document's rows).
    """

    id: str
    column: str
    label: str
    unit: str
    metric: str
    factor: float = 1
    more: bool = False
    source: str = "cell"


MEASURES = (
    Measure("throughput", "images/s", "throughput", "images/s", "throughput_images_per_s_p50", more=True),
    Measure("device", "device images/s", "throughput of the device", "images/s, launches aside",
            "device_images_per_s_p50", more=True),
    Measure("latency", "latency ms", "latency p50", "ms", "latency_ms_p50"),
    Measure("flops", "GMACs", "FLOPs", "GMACs per image; 1 MAC = 2 FLOPs", "macs_g"),
    Measure("params", "params M", "parameters", "M", "params", 1e-6),
    Measure("memory", "memory MiB", "peak memory", "MiB", "peak_memory_mib"),
    Measure("energy", "J/image (est.)", "energy (est.)", "J per image", "energy_j_per_image"),
    Measure("train_speed", "training images/s", "training speed", "images/s, training", "train_images_per_s",
            more=True, source="row"),
)  # fmt: skip
CURVES = ("train_loss", "val_loss", *(f"val_{metric.name}" for metric in TESTED), "lr")
MAX_EPOCHS, ALL_EPOCHS = 300, 40_000  # points of one history, and of all together
LOG_CHARS, LOG_CHARS_BAD, ALL_LOG_CHARS = 2_000, 8_000, 1_000_000  # of a Cell with and without a result; of all
MAX_DETAILED = 6_000  # Cells; of more the page has neither curves nor logs nor calibration, and says so
MAX_CELLS = 20_000  # of more the page has of each row one Cell a status, and says so
ALL_PICTURE_BYTES = 4_000_000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PATCH = re.compile(r"_patch\d+(_window\d+)?(_\d+)?(?=\[|$| )")


def collect(report: ReportData, out: Path) -> Document:
    """Gather everything of a run.

    Args:
        report: its Records, rows and boards.
        out: the run directory; ``history/``, ``logs/``, ``predictions/`` and ``explain/`` are read where they
            are there.

    Returns:
        ``codes`` (models: name, short name, family), ``protocols`` (and which of them comes
        ``first``), ``settings``, ``measures``, ``cells`` (one each Record, but for those ``left_out``) and ``rows``
        (one each model, dataset and protocol); the latter refer to the others by index.
    """
    results = [record for record in report.records if record["kind"] != "trial"]
    records = results if len(results) <= MAX_CELLS else _one_a_status(report)
    codes = _Codes(report.records)
    settings, of_setting = _settings(report.records)
    cells = [_cell(record, codes, of_setting) for record in records]
    places = {record["key"]: i for i, record in enumerate(records)}
    protocols, of_protocol = _protocols(report, codes)
    metrics = _metrics(report)
    detailed = len(report.records) <= MAX_DETAILED
    rows = [_row(row, codes, of_protocol[row.protocol.identity], places, metrics) for row in report.rows]
    if detailed:
        pairs = (pair for row in report.rows for pair in zip(row.ok, row.clinical, strict=False))
        _add_files(cells, out, {record["key"]: clinic.temperature for record, clinic in pairs})
    else:
        for cell in cells:
            kept = {"test_confusion", "classes"}
            cell["metrics"] = {k: v for k, v in cell["metrics"].items() if known(v) or k in kept}
            cell["timings"], cell["log"] = {}, "" if cell["status"] == "ok" else clean(cell["log"])[-LOG_CHARS:]
    first = headline(report.boards)
    return {
        "codes": codes.entries, "protocols": protocols, "settings": settings, "cells": cells, "rows": rows,
        "measures": [measure._asdict() for measure in MEASURES], "metrics": metrics, "detailed": detailed,
        "first": report.boards.index(first) if first else 0, "left_out": len(results) - len(records),
    }  # fmt: skip


def _one_a_status(report: ReportData) -> list[Record]:
    """Of each row the first seed with each status, and every Cell that is no accuracy Cell."""
    kept = {
        first["key"]
        for row in report.rows
        for first in {record["status"]: record for record in reversed([*row.ok, *row.other])}.values()
    }
    return [r for r in report.records if r["kind"] not in ("accuracy", "trial") or r["key"] in kept]


class _Codes:
    """Models by what their speed depends on, numbered in natural order; short names stay distinct."""

    def __init__(self, records: Iterable[Record]) -> None:
        found = {code_of(record["spec"]): family_of(record) for record in records}
        ordered = sorted(found, key=lambda c: (natural(c[0]), c[0], c[1] or ""))
        self.places: dict[Code, int] = {code: i for i, code in enumerate(ordered)}
        shorts: dict[str, int] = defaultdict(int)
        for name, _ in ordered:
            shorts[short(name)] += 1
        self.entries = [
            {"name": name, "short": short(name) if shorts[short(name)] == 1 else name, "family": found[name, digest]}
            for name, digest in ordered
        ]

    def of(self, record: Record) -> int:
        return self.places[code_of(record["spec"])]


def short(model: str) -> str:
    """A model's name as a figure labels it: without library, patch and window size."""
    return _PATCH.sub("", model.removeprefix("timm:"))


def _settings(records: Iterable[Record]) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Titles of the efficiency tables, and for a Record's key its table and the name of its model there."""
    titles: list[str] = []
    found: dict[str, tuple[int, str]] = {}
    for key, members in by_setting(records).items():
        found.update({record["key"]: (len(titles), record["label"]) for record in members})
        titles.append(str(key))
    return titles, found


def _protocols(report: ReportData, codes: _Codes) -> tuple[list[Document], dict[str, int]]:
    protocols = []
    for board in report.boards:
        standings = []
        for s in board.standings:
            low, high = s.interval
            standings.append({
                "model": s.model, "code": codes.places[s.code], "place": s.place,
                **{m.name: s.means.get(m.name) for m in (board.metric, *board.shown)},
                f"{board.metric.name}_low": low, f"{board.metric.name}_high": high,
            })  # fmt: skip
        protocols.append({
            "label": f"{board.protocol.pixels}, {board.protocol.training}", "resolution": board.protocol.resolution,
            "counted": list(board.counted), "over": board.over.replace("`", ""), "standings": standings,
        })  # fmt: skip
    return protocols, {board.protocol.identity: i for i, board in enumerate(report.boards)}


def _metrics(report: ReportData) -> list[Document]:
    """The metrics of the page, the one that ranks first."""
    averaged = [RANKING, *(m for m in TESTED if m != RANKING), *report.metrics]
    others = [m for m in METRICS.values() if m not in averaged and not m.compute]
    return [
        {"name": m.name, "label": m.heading, "tested": m in TESTED, "averaged": m in averaged}
        for m in averaged + others
    ]


def _row(row: Row, codes: _Codes, protocol: int, places: Mapping[str, int], metrics: Sequence[Document]) -> Document:
    found: Document = {
        "model": row.model, "code": codes.places[row.code], "dataset": row.dataset, "protocol": protocol,
        "cells": [places[r["key"]] for r in row.ok if r["key"] in places],
        "other": [places[r["key"]] for r in row.other if r["key"] in places], "seeds": row.seeds,
    }  # fmt: skip
    found.update({m["name"]: row.mean(f"test_{m['name']}") for m in metrics})
    found.update({name: row.mean(name) for name in ("params", "train_images_per_s")})
    for metric in TESTED:
        found[f"{metric.name}_sd"] = row.spread(metric.field)
        if row.evidence:
            found[f"{metric.name}_low"], found[f"{metric.name}_high"] = row.evidence.interval(metric)
    return found


def _cell(record: Record, codes: _Codes, of_setting: Mapping[str, tuple[int, str]]) -> Document:
    setting, label = of_setting.get(record["key"], (None, str(record["spec"]["model"])))
    return {
        "key": record["key"], "kind": record["kind"], "status": record["status"], "reason": str(record["reason"] or ""),
        "model": label, "code": codes.of(record), "setting": setting, "spec": record["spec"],
        "metrics": record["metrics"], "timings": record.get("timings") or {}, "environment": record["environment"],
        "log": "\n".join(str(line) for line in record.get("log_tail") or ()),
    }  # fmt: skip


# --- the files beside the Records ------------------------------------------------------------------------------


def _add_files(cells: Sequence[Document], out: Path, temperatures: Mapping[str, float]) -> None:
    """Add ``history`` (columns), ``log`` (its end) and ``reliability`` (bins); a file that cannot be read is left."""
    histories = {path.stem for path in (out / "history").glob("*.csv")}
    limit = max(25, min(MAX_EPOCHS, ALL_EPOCHS // max(len(histories), 1)))
    share, room = ALL_LOG_CHARS // max(len(cells), 1), ALL_PICTURE_BYTES
    for cell in cells:
        if cell["key"] in histories:
            cell["history"] = history(out / "history" / f"{cell['key']}.csv", limit)
        most = min(LOG_CHARS, share) if cell["status"] == "ok" else min(LOG_CHARS_BAD, 4 * share)
        text = _tail(out / "logs" / f"{cell['key']}.log", most)
        cell["log"] = text or clean(cell["log"])[-most:]
        cell["pictures"], room = _pictures(out / "explain" / cell["key"], room)
        if cell["status"] == "ok" and cell["kind"] != "efficiency":
            found = reliability_of(out / "predictions" / f"{cell['key']}.npz", temperatures.get(cell["key"]))
            cell.update(found, temperature=temperatures.get(cell["key"]))


def _pictures(folder: Path, room: int) -> tuple[list[list[str]], int]:
    """Name and data of each PNG of a Cell (``bench explain``), while there is room; then the name alone."""
    found = []
    for path in sorted(folder.glob("*.png")):
        try:
            fits = path.stat().st_size <= room
            data = path.read_bytes() if fits else b""
        except OSError:
            continue
        room -= len(data)
        found.append([path.stem, base64.b64encode(data).decode()])
    return found, room


def history(path: Path, limit: int) -> dict[str, list[float | None]]:
    """Read the curves of a training, at most ``limit`` epochs of them, evenly spaced; first and last are kept."""
    try:
        head, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    except OSError:
        return {}
    if len(lines) > limit:
        lines = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, limit).round().astype(int))]
    rows = list(csv.DictReader([head, *lines]))
    found = {"epoch": [_number(row.get("epoch")) for row in rows]}
    for name in CURVES:
        values = [_number(row.get(name)) for row in rows]
        if any(value is not None for value in values):
            found[name] = values
    return found if len(found) > 1 else {}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if known(value) else None


def _tail(path: Path, most: int) -> str:
    """The last ``most`` characters of a log, from the start of a line."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read()
    except OSError:
        return ""
    text = clean(data.decode("utf-8", errors="replace"))
    return text if size <= most else "… (the file has the beginning)\n" + text.partition("\n")[2]


def clean(log: str) -> str:
    """A log as text: without terminal escapes, of a progress line only its last state."""
    lines = [line.rsplit("\r", 1)[-1] for line in log.replace("\r\n", "\n").split("\n")]
    return _ESCAPES.sub("", "\n".join(lines)).strip("\n")


def reliability_of(path: Path, temperature: float | None) -> dict[str, list[list[float]]]:
    """Bins of confidence as the model gives it and, where validation found a temperature, after scaling."""
    try:
        saved = read_saved(path)
        found = {"reliability": bins_of(reliability(saved.scores, saved.labels))}
        if temperature is not None and known(temperature):
            scaled = rescaled(saved.scores, saved.labels, temperature)
            found["calibrated"] = bins_of(reliability(scaled, saved.labels))
        return found
    except UNREADABLE:
        return {}


def bins_of(diagram: Reliability) -> list[list[float]]:
    """``[mean confidence, share that is right, answers]`` of each bin that is not empty, in ascending order."""
    return [
        [float(diagram.confidence[i]), float(diagram.right[i]), int(diagram.count[i])]
        for i in np.flatnonzero(diagram.count)
    ]

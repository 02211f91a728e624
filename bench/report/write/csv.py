"""Figures for other programs: the boards' two CSV files, and every Record as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.metrics.registry import TESTED
from bench.record.paths import require_run
from bench.record.store import StoreError, atomic_write, plain
from bench.record.types import Fields, Record
from bench.report.rows import Row, flattened, read_run_directory, unique
from bench.report.settings import setting
from bench.report.standings import Overall
from bench.report.words import known

# Bounds come from resampling: further digits would only record the arithmetic of one machine.
_BOUND_DECIMALS = 6


def accuracy_csv(rows: Iterable[Row], boards: Iterable[Overall]) -> str:
    """One row for each model, dataset and protocol: means and standard deviations over seeds, bounds, what failed."""
    places = {(b.protocol.identity, s.model): s for b in boards for s in b.standings}
    lines = []
    rows = list(rows)
    names = set().union(*(r["metrics"] for row in rows for r in row.ok))
    metrics = sorted(m for m in names if any(row.values(m) for row in rows))
    for row in rows:
        standing = places[row.protocol.identity, row.model]
        line: Fields = {
            "model": row.model,
            "dataset": row.dataset,
            "size": row.protocol.size,
            "resolution": row.protocol.resolution,
            "resize": row.protocol.resize,
            "recipe": row.protocol.recipe,
            "recipe_variant": row.protocol.variant,
            "epochs": row.protocol.epochs,
            "precision": row.protocol.precision,
            "status": " ".join(sorted({r["status"] for r in [*row.ok, *row.other]})),
            "reason": "; ".join(sorted({str(r["reason"]) for r in row.other if r["reason"]})),
            "seeds": row.seeds,
            "folds": row.folds or None,
            "seeds_without_result": len(row.other),
            "n_test": row.n_test,
            "n_test_patients": row.evidence.n_patients if row.evidence else None,
            "positive_class": row.positive.name if row.positive else None,
            "overall_place": standing.place,
            "overall_mean_rank": standing.mean_rank,
            **_evidence(row),
        }
        for metric in metrics:
            line[metric] = row.mean(metric)
            line[f"{metric}_sd"] = row.spread(metric)
        line["keys"] = " ".join(sorted(r["key"] for r in [*row.ok, *row.other]))
        lines.append(line)
    return _write(lines, ["model", "dataset", "status"])


def _evidence(row: Row) -> dict[str, float | None]:
    if not row.evidence:
        return {**{f"{m.field}_{end}": None for m in TESTED for end in ("low", "high")}, "majority_acc": None}
    bounds = {
        f"{m.field}_{end}": round(bound, _BOUND_DECIMALS)
        for m in TESTED
        for end, bound in zip(("low", "high"), row.evidence.interval(m), strict=True)
    }
    return {**bounds, "majority_acc": round(row.evidence.majority, _BOUND_DECIMALS)}


def efficiency_csv(records: Iterable[Record]) -> str:
    """One row for each efficiency Record: what was measured, on what, and every figure."""
    records = [r for r in records if r["kind"] == "efficiency"]
    metrics = sorted(
        {m for r in records for m, v in r["metrics"].items() if isinstance(v, (str, bool, list)) or known(v)}
    )
    lines = []
    for record in records:
        spec, where = record["spec"], setting(record)
        line: Fields = {
            "model": spec["model"],
            "model_plugin_sha256": spec.get("model_plugin_sha256"),
            "resolution": spec.get("resolution"),
            "batch": spec.get("batch"),
            "precision": where.precision,
            "compile": where.compiled,
            "mode": where.mode,
            "device": where.device,
            "hardware": where.hardware,
            "threads": spec.get("threads"),
            "backend": spec.get("backend"),
            "versions": ", ".join(f"{k} {v}" for k, v in sorted((spec.get("versions") or {}).items())),
            "omp_wait_policy": spec.get("omp_wait_policy"),
            "budget_s": spec.get("budget_s"),
            "rounds_planned": spec.get("rounds"),
            "status": record["status"],
            "reason": record["reason"],
        }
        line.update({m: record["metrics"].get(m) for m in metrics if m not in line})
        line["key"] = record["key"]
        lines.append(line)
    return _write(lines, ["model", "resolution", "status"])


def _write(lines: Sequence[Fields], headings: Sequence[str]) -> str:
    """CSV text; floats as the shortest digits that read back as the same number, nothing for what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else list(headings), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: _cell(v) for k, v in line.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and not known(value)):
        return ""
    if isinstance(value, list):  # numbers, or sentences
        return ("; " if any(isinstance(v, str) for v in value) else " ").join(str(_cell(v)) for v in value)
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value.split()) if isinstance(value, str) else value


# --- every Record ----------------------------------------------------------------------------------------------

FORMATS = (".csv", ".json", ".parquet")


def export_records(out: Path, target: Path) -> tuple[int, list[str]]:
    """Write the Records of a run as one table: a row a Record, nested fields as ``recipe_settings.learning_rate``.

    Args:
        out: the run directory.
        target: the file; ``.csv``, ``.json`` (a list of objects) or ``.parquet`` (needs pyarrow).

    Returns:
        The number of rows, and one message for each Record that could not be read.

    Raises:
        StoreError: another suffix, no run, no pyarrow, or a file that cannot be written.
    """
    if target.suffix.lower() not in FORMATS:
        raise StoreError(f"{target}: name a file that ends in {', '.join(FORMATS)}")
    require_run(out)
    records, _, problems = read_run_directory(out)
    rows = [flat(record) for record in unique(records)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    leading = [name for name in ("key", "kind", "status", "reason") if name in names]
    names = leading + sorted(name for name in names if name not in leading)
    if target.suffix.lower() == ".csv":
        data = _write([{name: _simple(row.get(name)) for name in names} for row in rows], ["key", "kind", "status"])
        atomic_write(target, data.encode())
    elif target.suffix.lower() == ".json":
        lines = ",\n".join(json.dumps(plain(row), sort_keys=True, ensure_ascii=False) for row in rows)
        atomic_write(target, f"[\n{lines}\n]\n".encode())
    else:
        atomic_write(target, _parquet(rows, names, target))
    return len(rows), problems


def flat(record: Record) -> Fields:
    """One row of a Record: fields of its spec and metrics by name, those of the rest as ``environment.hardware``.

    Of two equal names the metric's is prefixed ``metric_``, as :func:`bench.record.store.flatten` does.
    """
    row = {name: record[name] for name in ("key", "kind", "status", "reason")} | flattened(record["spec"])
    row |= {f"metric_{k}" if k in row else k: v for k, v in flattened(record["metrics"]).items()}
    return row | flattened({"environment": record["environment"] or {}, "timings": record.get("timings") or {}})


def _simple(value: object) -> object:
    """A list as JSON, since a table's field holds one value."""
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, list) else value


def _parquet(rows: Sequence[Fields], names: Sequence[str], target: Path) -> bytes:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise StoreError(f"{target}: Parquet needs pyarrow (pip install pyarrow); or name a .csv or .json") from error
    columns = {}
    for name in names:
        values = [_simple(row.get(name)) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [float(value) if isinstance(value, (int, float)) else None for value in values]
        elif len(kinds) > 1:  # a field that is a number here and text there
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values) if kinds else pa.nulls(len(values), pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()

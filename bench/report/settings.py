"""What must be equal for two speeds to stand in one table, and how a table says where it differs from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.record.types import Fields, Record, Spec
from bench.report.rows import labels
from bench.report.words import differing, grouped, natural

LARGEST = 0  # as a Cell's batch: the largest that fits
# Everything else in a spec is part of the setting, known to this program or not.
_OF_THE_ROW = {"model", "model_plugin_sha256", "plugin_sha256", "resolution", "batch"}
_NAMED = {"hardware", "device", "threads", "precision", "compile", "mode"}
Details = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What must be equal for two speeds to stand in one table (the batch is a column).

    Attributes:
        details: scan backend, versions, rounds and so on, as names and texts.
        variant: those of ``details`` that tell this table from one that is otherwise the same.
    """

    hardware: str
    device: str
    threads: int
    precision: str
    compiled: bool
    mode: str
    details: Details = ()
    variant: str = ""

    def __str__(self) -> str:
        where = f"{self.device} ({self.hardware})" if self.hardware and self.hardware != self.device else self.device
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads and self.device == "cpu" else ""
        compiled = "compiled" if self.compiled else "eager"
        mode = {"infer": "inference", "train": "training step"}.get(self.mode, self.mode)
        parts = (mode, self.precision, compiled, where, threads, self.variant)
        return ", ".join(part for part in parts if part)


def setting(record: Record) -> Setting:
    """The table that an efficiency Record belongs to, before it is set apart from others."""
    spec = record["spec"]
    return Setting(
        hardware=str(spec.get("hardware") or record["environment"].get("hardware") or ""),
        device=str(spec.get("device") or ""),
        threads=int(spec.get("threads") or 0),
        precision=str(spec.get("precision") or ""),
        compiled=bool(spec.get("compile")),
        mode=str(spec.get("mode") or ""),
        details=_details({k: v for k, v in spec.items() if k not in _OF_THE_ROW | _NAMED}),
    )


def _details(fields: Fields) -> Details:
    flat = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": str(item) for name, item in value.items() if item is not None})
        elif value is not None and value != "":
            flat[key] = str(value)
    return tuple(sorted(flat.items()))


def by_setting(records: Iterable[Record]) -> dict[Setting, list[Record]]:
    """Efficiency Records by table: inference, eager, fp32 first; in a table by model, pixels, batch.

    Each has the model's name as ``label``: with its plug-in's digest where there are two of one name.
    """
    timed = [r for r in records if r["kind"] == "efficiency"]
    names = labels(timed, "model", ("model_plugin_sha256", "plugin_sha256"))
    named: list[Record] = [{**record, "label": names[record["key"]]} for record in timed]
    groups = grouped(sorted(named, key=row_order), setting)
    variants = _variants(groups)
    groups = {replace(key, variant=variants[key]): members for key, members in groups.items()}
    # Of tables that are otherwise the same, the one with the newest libraries or the most rounds comes first.
    newest = sorted(groups, key=lambda s: (natural(s.variant), s.details), reverse=True)
    return {key: groups[key] for key in sorted(newest, key=_order)}


def row_order(record: Record) -> tuple[object, ...]:
    """Sort key of Records that :func:`by_setting` gave."""
    spec, label = record["spec"], record["label"]
    return natural(label), label, spec.get("resolution") or 0, spec.get("batch") or 0, record["key"]


def _order(s: Setting) -> tuple[object, ...]:
    precision = {"fp32": 0, "tf32": 1, "bf16": 2}.get(s.precision, 3)
    plain = str(replace(s, variant=""))
    return s.mode != "infer", s.compiled, precision, s.precision, not s.device.startswith("cuda"), plain


def _variants(settings: Iterable[Setting]) -> dict[Setting, str]:
    """For each setting, in words: the details in which those of one title differ."""
    same = grouped(settings, lambda s: replace(s, details=()))
    found = {}
    for members in same.values():
        all_details = {s: dict(s.details) for s in members}
        keys = differing(all_details.values())
        for s in members:
            found[s] = ", ".join(_worded(key, all_details[s].get(key)) for key in keys)
    return found


def _worded(key: str, value: str | None) -> str:
    if key.startswith("versions."):
        library = key.partition(".")[2]
        return f"{library} {value}" if value else f"without {library}"
    if value is None:
        return f"{key} not recorded"
    if key == "rounds":
        return f"{value} round{'s' * (value != '1')}"
    return {"backend": f"scan backend {value}", "budget_s": f"{value} s a pass"}.get(key, f"{key} {value}")


def batch_text(record: Record) -> str:
    """The batch; of the largest that fits, which one it was."""
    batch = record["spec"].get("batch")
    if batch != LARGEST:
        return str(batch if batch is not None else "")
    found = record["metrics"].get("largest_batch")
    return f"largest ({found})" if found else "largest"


def cell_in_words(kind: str, spec: Spec, *, seed: bool = True, model: bool = True) -> str:
    """``resnet18 on breastmnist (28→64 px, seed 0)``, or how it was timed."""
    has = spec.get
    name = f"{has('model')} " if model else ""
    if kind == "efficiency":
        parts = [f"batch {has('batch') or 'largest'}", has("precision"), has("mode"), "compiled" * bool(has("compile"))]
        return f"{name}at {has('resolution')} px, {', '.join(str(part) for part in (*parts, has('device')) if part)}"
    pixels = f"{has('size')}→{has('resolution')} px" if has("resolution") else "scores from files"
    source = f" from {has('source')}" if has("source") else ""
    seeds = f", seed {has('seed')}" if seed and has("seed") is not None else ""
    return f"{name}on {has('dataset')}{source} ({pixels}{seeds})"

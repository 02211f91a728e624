"""Short names of a user's own datasets on boards: ``cxr``, not ``csv:/data/cxr.csv[image=file,label=finding]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.record.types import Record, RunInfo
from bench.registry import datasets, display_names

_FIELDS = ("dataset", "source")  # of a spec; the second is a transfer's


def with_short_names(records: Sequence[Record], run_info: RunInfo) -> tuple[list[Record], RunInfo]:
    """The same Records and ``run.json`` under the names that people see; what was asked stands in ``spelt``."""
    about = run_info.get("datasets")
    about = about if isinstance(about, Mapping) else {}
    names = {str(r["spec"][field]) for r in records for field in _FIELDS if r["spec"].get(field)} | set(about)
    shown = {name: text for name, text in display_names(names, list(datasets)).items() if text != name}
    if not shown:
        return list(records), run_info
    renamed = [_renamed(record, shown) for record in records]
    facts = {shown.get(n, n): {**f, "spelt": n} if n in shown else f for n, f in about.items()}
    return renamed, {**run_info, "datasets": facts}


def _renamed(record: Record, shown: Mapping[str, str]) -> Record:
    changed = {field: shown[name] for field in _FIELDS if (name := str(record["spec"].get(field))) in shown}
    return {**record, "spec": {**record["spec"], **changed}} if changed else record

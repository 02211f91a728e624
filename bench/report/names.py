"""Short names of a user's own datasets on boards: ``cxr``, not ``csv:/data/cxr.csv[image=file,label=finding]``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.record.types import Record, RunInfo
from bench.registry import datasets, display_names, parse_source
from bench.registry.names import is_source

_FIELDS = ("dataset", "source")  # of a spec; the second is a transfer's


def origin(name: str) -> str:
    """Where a dataset's images come from: two of one origin are variants (another split, other labels), not two sets.

    Args:
        name: as it was asked for, ``csv:/data/cxr.csv[seed=2]`` or ``pad_ufes_20[split=author]``.
    """
    if not is_source(name):
        return re.split(r"[\[ ]", name)[0]
    source = parse_source(name)
    return f"{source.scheme}:{source.place} {source.config}".rstrip()


def with_short_names(records: Sequence[Record], run_info: RunInfo) -> tuple[list[Record], RunInfo, dict[str, str]]:
    """The same Records and ``run.json`` under the names that people see; what was asked stands in ``spelt``.

    Returns:
        Records, ``run.json``, and the :func:`origin` of each name.
    """
    about = run_info.get("datasets")
    about = about if isinstance(about, Mapping) else {}
    names = {str(r["spec"][field]) for r in records for field in _FIELDS if r["spec"].get(field)} | set(about)
    shown = {name: text for name, text in display_names(names, list(datasets)).items() if text != name}
    origins = {shown.get(name, name): origin(name) for name in names}
    if not shown:
        return list(records), run_info, origins
    renamed = [_renamed(record, shown) for record in records]
    facts = {shown.get(n, n): {**f, "spelt": n} if n in shown else f for n, f in about.items()}
    return renamed, {**run_info, "datasets": facts}, origins


def _renamed(record: Record, shown: Mapping[str, str]) -> Record:
    changed = {field: shown[name] for field in _FIELDS if (name := str(record["spec"].get(field))) in shown}
    return {**record, "spec": {**record["spec"], **changed}} if changed else record

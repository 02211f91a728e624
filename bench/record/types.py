"""What a run directory holds, as types. A Record's spec and metrics are open: Cells and plug-ins add fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

Fields = dict[str, Any]  # plain data as JSON has it, by name
Recipe = Mapping[str, Any]  # a resolved recipe: settings by name (bench.sweep.recipes)
Spec = Mapping[str, Any]  # what a Cell was asked (bench.record.cells)
Metrics = Mapping[str, Any]  # what it found: figures, texts, lists, None where undefined
Environment = Mapping[str, Any]  # where it ran: device, hardware, threads, versions


class DataFinding(TypedDict):
    """Something that was noticed about a dataset (bench.registry.Finding)."""

    text: str
    count: int
    examples: list[str]
    severity: str


class DataInfo(TypedDict, total=False):
    """What a Record says about its dataset."""

    findings: list[DataFinding]


class Record(TypedDict):
    """The result of one Cell, ``cells/<key>.json``."""

    schema: int
    key: str
    kind: str
    status: str
    reason: str
    family: NotRequired[str]
    spec: Spec
    metrics: Metrics
    environment: Environment
    data: NotRequired[DataInfo]
    timings: NotRequired[Mapping[str, float]]
    log_tail: NotRequired[list[str]]
    label: NotRequired[str]  # of a Record in a table of efficiency: its model, with its plug-in where two share a name


class RunInfo(TypedDict, total=False):
    """``run.json``: what was asked."""

    schema: int
    command: str
    preset: str | None
    date: str  # of the last command, YYYY-MM-DD
    sweep: Fields
    skipped: list[str | Fields]  # datasets that were left out: ``name: reason``, or mappings in older runs
    datasets: Mapping[str, Fields]  # what the plan knew of each
    planned: Mapping[str, list[str]]  # command to keys of its Cells
    scored: bool  # by `bench score`: nothing was trained here
    notes: list[str]  # of `bench score`: what was found out about the files, or guessed
    preferred_protocol: str  # that a search chose on validation, as Protocol.identity

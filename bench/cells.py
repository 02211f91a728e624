"""Cells, the units of work, and what a worker is given and returns. Torch-free plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Raised when the way a Cell is computed changes, so that old records are not taken for new ones.
ACCURACY_PROTOCOL = 1
EFFICIENCY_PROTOCOL = 3


@dataclass(frozen=True, slots=True)
class AccuracyCell:
    """Train one model on one dataset with one seed, choose on validation, report the test split once.

    ``recipe`` is the resolved recipe (its ``name`` included); fingerprints make a changed file another Cell.
    """

    model: str
    dataset: str
    size: int
    resolution: int
    resize: str
    recipe: Mapping[str, Any]
    seed: int
    precision: str
    data_fingerprint: str
    weights_sha256: str | None = None
    model_plugin_sha256: str | None = None
    data_plugin_sha256: str | None = None
    protocol: int = ACCURACY_PROTOCOL

    kind = "accuracy"

    def spec(self) -> dict[str, Any]:
        """The Cell as plain data; ``recipe`` is its name and ``recipe_settings`` all of it."""
        return {**asdict(self), "recipe": self.recipe["name"], "recipe_settings": dict(self.recipe)}


@dataclass(frozen=True, slots=True)
class EfficiencyCell:
    """Measure one model at one resolution, batch, precision and mode on one device (3 channels, 1,000 classes).

    What the figures depend on beyond that (hardware, threads, scan backend, library versions) is part of it.
    """

    model: str
    resolution: int
    batch: int
    precision: str
    compile: bool
    mode: str
    device: str
    hardware: str
    threads: int
    backend: str
    versions: Mapping[str, str]
    budget_s: float
    rounds: int
    omp_wait_policy: str = ""
    model_plugin_sha256: str | None = None
    protocol: int = EFFICIENCY_PROTOCOL

    kind = "efficiency"

    def spec(self) -> dict[str, Any]:
        """The Cell as plain data."""
        return asdict(self)


Cell = AccuracyCell | EfficiencyCell


def cell_key(cell: Cell) -> str:
    """Return the 20 hex digits that identify a Cell: a hash of everything that decides its result."""
    text = json.dumps([cell.kind, cell.spec()], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def cell_label(cell: Cell) -> str:
    """One line for people: what the Cell does."""
    if isinstance(cell, AccuracyCell):
        return f"{cell.model} on {cell.dataset} ({cell.size}->{cell.resolution} px, seed {cell.seed})"
    how = f"{cell.precision}, {cell.mode}{', compiled' if cell.compile else ''} on {cell.device}"
    return f"{cell.model} at {cell.resolution} px, batch {cell.batch}, {how}"


@dataclass(frozen=True, slots=True)
class Context:
    """Where and with what a worker executes a Cell."""

    device: str
    threads: int
    data_root: Path | None
    cache_dir: Path | None
    out: Path
    progress: Callable[[dict[str, Any]], None]
    time_limit_s: float | None = None


@dataclass(slots=True)
class Result:
    """What a worker found out. ``arrays`` go to ``predictions/<key>.npz``, ``history`` to ``history/<key>.csv``."""

    metrics: dict[str, Any]
    status: str = "ok"
    reason: str = ""
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] | None = None

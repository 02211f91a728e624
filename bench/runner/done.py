"""Which Cells are done, by the Records on disk: those found, those written now, those of other drivers. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import StoreError
from bench.record import store
from bench.record.cells import EfficiencyCell, cell_key
from bench.record.paths import record_path
from bench.record.store import Record, Stamp
from bench.runner.executors.base import Job
from bench.runner.jobs import combined, read_round


@dataclass(slots=True)
class Done:
    """What is done in a run directory.

    Attributes:
        out: the run directory.
        statuses: key -> status of what is done, Cells of other sweeps in the same directory included.
        replaced: key -> stamp of Records that are there and are to be replaced.
        written: Records that this run wrote.
        found: how many of the Plan's Cells others did, before this run or meanwhile.
    """

    out: Path
    statuses: dict[str, str]
    replaced: dict[str, Stamp]
    written: list[Record] = field(default_factory=list)
    found: int = 0

    def add(self, record: Record) -> None:
        """Note a Record that was written now."""
        self.statuses[record["key"]] = record["status"]
        self.written.append(record)

    def has(self, job: Job) -> bool:
        """Whether a job need not run any more: its Cell ended in an earlier round, or another driver was faster."""
        keys = [job.key, *map(cell_key, job.more)]
        if all(key in self.statuses or self._done_elsewhere(key) for key in keys):
            return True
        if job.round is None or read_round(self.out, job.key, job.round) is None:
            return False
        assert isinstance(job.cell, EfficiencyCell)
        if record := combined(self.out, job.key, job.cell):
            self.add(record)
        return True

    def _done_elsewhere(self, key: str) -> bool:
        """Whether another driver has written the Cell's Record since we read what is there."""
        path = record_path(self.out, key)
        stamp = store.stamp_of(path)
        if stamp is None or stamp == self.replaced.get(key):
            return False
        try:
            self.statuses[key] = store.read_record(path)["status"]
        except StoreError:
            return False  # damaged: it is written anew
        self.found += 1
        return True

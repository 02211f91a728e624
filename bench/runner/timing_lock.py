"""The lock on timing: among the drivers of one run directory, one times, and nothing runs beside it.

One driver at a time times the Cells of one kind of hardware, all of them, so that their rounds stay interleaved and on
one machine. On its machine other drivers start nothing meanwhile, and it waits for what they have started.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections.abc import Collection
from pathlib import Path

from bench.plan.base import Plan
from bench.record.cells import EfficiencyCell
from bench.runner.leases import Leases


class TimingLock:
    """One driver's right to time, and its duty to be quiet while another does.

    Attributes:
        name: the lease on timing this hardware.
        held: whether this driver has the right to time.
        waits: whether the last answer was "not now" because of another driver.
    """

    def __init__(self, leases: Leases, plan: Plan) -> None:
        self.leases = leases
        hardware = sorted({cell.hardware for cell in plan.cells.values() if isinstance(cell, EfficiencyCell)})
        self.name = f"timing-{_digest(', '.join(hardware))}"
        machine = _digest(_machine())
        self._quiet = f"quiet-{machine}"
        self._others = f"busy-{machine}-"
        self._busy = self._others + secrets.token_hex(4)
        self.held = self.waits = False

    def enter(self, running: Collection[str]) -> bool:
        """Ask to time. True: start as soon as nothing of your own (``running``) runs; start nothing else."""
        if self.held and self.leases.lost(self.name):
            self.leave()
        if not self.held and self.leases.take(self.name) is not None:
            self.held = True
        # Quiet is taken before others are looked at, as they look for it after they said that they are busy.
        quiet = self.held and self.leases.take(self._quiet) is not None
        if not running:
            self.stop_work()
        self.waits = not quiet or bool(self.leases.others(self._others))
        return not self.waits

    def leave(self) -> None:
        """There is nothing more to time."""
        if self.held:
            self.leases.release(self._quiet)
            self.leases.release(self.name)
            self.held = False

    def may_work(self) -> bool:
        """Ask to run something that is not timed."""
        self.leases.take(self._busy)
        self.waits = self.leases.holder(self._quiet) is not None
        return not self.waits

    def stop_work(self) -> None:
        """Nothing of ours runs."""
        self.leases.release(self._busy)


def _machine() -> str:
    """This machine until its next boot, the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

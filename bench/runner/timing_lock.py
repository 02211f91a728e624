"""Quiet for what is timed: among the drivers of one run directory, one times, and nothing runs beside it.

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
from bench.runner.leases import Claims


class QuietRoom:
    """One driver's right to time, and its duty to be quiet while another does.

    Attributes:
        name: the claim on timing this hardware.
        inside: whether this driver has the right to time.
        waits: whether the last answer was "not now" because of another driver.
    """

    def __init__(self, claims: Claims, plan: Plan) -> None:
        self.claims = claims
        hardware = sorted({cell.hardware for cell in plan.cells.values() if isinstance(cell, EfficiencyCell)})
        self.name = f"timing-{_digest(', '.join(hardware))}"
        machine = _digest(_machine())
        self._quiet = f"quiet-{machine}"
        self._others = f"busy-{machine}-"
        self._busy = self._others + secrets.token_hex(4)
        self.inside = self.waits = False

    def enter(self, running: Collection[str]) -> bool:
        """Ask to time. True: start as soon as nothing of your own (``running``) runs; start nothing else."""
        if self.inside and self.claims.lost(self.name):
            self.leave()
        if not self.inside and self.claims.take(self.name) is not None:
            self.inside = True
        # Quiet is taken before others are looked at, as they look for it after they said that they are busy.
        quiet = self.inside and self.claims.take(self._quiet) is not None
        if not running:
            self.stop_work()
        self.waits = not quiet or bool(self.claims.others(self._others))
        return not self.waits

    def leave(self) -> None:
        """There is nothing more to time."""
        if self.inside:
            self.claims.release(self._quiet)
            self.claims.release(self.name)
            self.inside = False

    def may_work(self) -> bool:
        """Ask to run something that is not timed."""
        self.claims.take(self._busy)
        self.waits = self.claims.holder(self._quiet) is not None
        return not self.waits

    def stop_work(self) -> None:
        """Nothing of ours runs."""
        self.claims.release(self._busy)


def _machine() -> str:
    """This machine until its next boot, the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

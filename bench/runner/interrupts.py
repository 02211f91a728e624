"""Ctrl-C, SIGTERM (a scheduler's preemption) and SIGHUP: the first asks a run to stop, the second ends it at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

GRACE_S = 25.0  # after SIGTERM: schedulers kill after 30 s


class Interrupts:
    """Takes the signals while it is entered.

    Attributes:
        wake: called at the first signal, from the handler; until it is set, the first signal ends the run at once.
        asked: whether there was a signal.
        ending: everything is being given back: further signals are ignored, since that must not be cut short.
        deadline: monotonic time at which everything has to end; None after Ctrl-C, which leaves all the time needed.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        self.asked = self.ending = False
        self.deadline: float | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Interrupts:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup wants SIGHUP ignored
                    self._before[number] = signal.signal(number, self._take)
        except ValueError:  # not in the main thread: the caller handles signals
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.ending:
            return
        if self.asked or self.wake is None:
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True
        if number != signal.SIGINT:
            self.deadline = time.monotonic() + GRACE_S
        self.wake()

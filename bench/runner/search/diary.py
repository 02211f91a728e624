"""What a search has decided so far, in ``RUN/search.json``: it goes on from there after an interruption.

A decision that depends on the clock is taken once: whoever goes on finds it here, and its reasons in the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bench.errors import ConfigError
from bench.record.paths import search_file
from bench.record.store import Record, write_json
from bench.record.types import Fields
from bench.runner.progress import Observer

T = TypeVar("T")


class Diary:
    """The log and the decisions of a search, and the time it has taken over all its sessions.

    Args:
        out: the run directory.
        asked: what decides about it; the same as before, or it is another search.
        budget_s: seconds that it may take in all.
        show: prints a line for people.

    Raises:
        ConfigError: ``out`` holds another search.
    """

    def __init__(self, out: Path, asked: Fields, budget_s: float, show: Callable[[str], None]) -> None:
        self.out, self.budget_s, self.show = out, budget_s, show
        self.before_s, self.began = 0.0, time.monotonic()
        self.log: list[str] = []
        self.decided: Fields = {}
        self.asked = json.loads(json.dumps(asked))
        try:
            found = json.loads(search_file(out).read_bytes())
            before, self.before_s = found["asked"], float(found["spent_s"])
            self.log, self.decided = list(found["log"]), dict(found["decided"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{search_file(out)} cannot be read ({error}); name another --out") from error
        if apart := [key for key in self.asked if before.get(key) != self.asked[key]]:
            key = apart[0]
            raise ConfigError(
                f"{out} holds a search with {key} {before.get(key)}, not {self.asked[key]}; name another --out"
            )
        for line in self.log:
            show(line)

    @property
    def spent_s(self) -> float:
        """Seconds of this and earlier sessions."""
        return self.before_s + time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - self.spent_s

    def say(self, text: str) -> None:
        """Log a line, with the time since the search began."""
        minutes, seconds = divmod(int(self.spent_s), 60)
        self.log.append(f"[{minutes}:{seconds:02d}] {text}")
        self.show(self.log[-1])

    def once(self, name: str, decide: Callable[[], T]) -> T:
        """What was decided under ``name``; decided and stored now if it was not. The value is plain data."""
        if name not in self.decided:
            self.decided[name] = decide()
            self.save()
        found: T = self.decided[name]
        return found

    def save(self) -> None:
        """Write it to the run directory. Raises StoreError."""
        said = {"asked": self.asked, "budget_s": self.budget_s, "spent_s": round(self.spent_s, 1)}
        write_json(search_file(self.out), {**said, "decided": self.decided, "log": self.log})


class Saving(Observer):
    """Shows a run of a search; whenever a job ends, the time that was spent is stored and ``ended`` is called."""

    def __init__(self, console: Console, diary: Diary, ended: Callable[[], None]) -> None:
        super().__init__(console)
        self._diary, self._ended = diary, ended

    def finish(self, label: str, record: Record | None, seconds: float, said: str = "round done") -> None:
        """A job ended."""
        super().finish(label, record, seconds, said)
        self._diary.save()
        self._ended()

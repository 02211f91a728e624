"""Work on the images of a set in several processes, in order, with only a few chunks in memory at a time."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, cast

from bench.data.files import DataError

MOST_PROCESSES = 32
_WATCH_S = 1.0

Done = TypeVar("Done")


def processor_count() -> int:
    """Return the number of cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def in_order(
    work: Callable[[int, int], Done], chunks: Sequence[tuple[int, int]], parallel: bool = True
) -> Iterator[Done]:
    """Yield ``work(start, stop)`` of each chunk in their order, worked on a few ahead of who reads them.

    Args:
        work: what is done to a chunk; it need not be picklable, what it returns must be.
        chunks: (start, stop) of each.
        parallel: ``False`` works in this process (starting others would take longer).

    Raises:
        DataError: a process died. What ``work`` raises comes through as it is.
    """
    processes = min(processor_count(), MOST_PROCESSES, len(chunks))
    if not parallel or processes < 2:
        for start, stop in chunks:
            yield work(start, stop)
        return
    with _pool(processes, work) as (pool, call):
        waiting: deque[Future[Done]] = deque()
        rest = iter(chunks)
        waiting.extend(pool.submit(call, *chunk) for chunk in itertools.islice(rest, 2 * processes))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(call, *chunk) for chunk in itertools.islice(rest, 1))
            yield done


@contextlib.contextmanager
def _pool(processes: int, work: Callable[[int, int], Done]) -> Iterator[tuple[Executor, Callable[[int, int], Done]]]:
    """Give an executor and the function to submit: forked processes on Linux, else threads (decoders free the GIL).

    Forked, because what reads an image may live in a plug-in or a notebook, which a fresh process would not know, and
    may be a large object, which would be sent along with every chunk. The children only decode, resize and hash: they
    touch neither torch nor CUDA.
    """
    if sys.platform != "linux":
        with ThreadPoolExecutor(processes, "decode") as threads:
            yield threads, work
        return
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings(), _allowed_children():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ProcessPoolExecutor(processes, context, _adopt, (work, os.getpid()))
        try:
            yield pool, cast("Callable[[int, int], Done]", _call)
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes images died (killed for want of memory, or a decoder crashed on a file)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _allowed_children() -> Iterator[None]:
    """Let a worker, which is a daemon so that it ends with its driver, have children (which end with it)."""
    config: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.get("daemon")
    config["daemon"] = False
    try:
        yield
    finally:
        config["daemon"] = daemon


_work: Callable[[int, int], object] | None = None


def _adopt(work: Callable[[int, int], object], parent: int) -> None:
    """Start a child: remember the work, and end when the parent is gone, however it died."""
    global _work
    _work = work

    def watch() -> None:
        never = threading.Event()
        while os.getppid() == parent:
            never.wait(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _call(start: int, stop: int) -> object:
    assert _work is not None
    return _work(start, stop)

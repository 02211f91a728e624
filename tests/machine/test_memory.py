"""Memory figures: a fake allocator and planted allocations of known size, each in a process of its own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import multiprocessing
import resource
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.machine import hardware, memory
from bench.machine.memory import MIB, CudaMeter, RssMeter, peak_of


@pytest.fixture(autouse=True)
def _keep_limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pages(mib: int) -> mmap.mmap:
    """Memory in use, straight from the kernel: what malloc was told earlier decides nothing about it."""
    held = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, mib * MIB, mmap.PAGESIZE):
        held[page] = 1
    return held


def planted(connection, exact: bool, transient: int, leak: int, keep_freed: bool) -> None:
    libc = ctypes.CDLL(None)
    if keep_freed and hasattr(libc, "mallopt"):  # as training asks of malloc, and a fork inherits
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        np.ones(300 * MIB // 8)  # the heap has this much now to serve from without asking the kernel
    meter = RssMeter(exact)
    held = []

    def work() -> None:
        first = pages(transient)
        time.sleep(0.1)  # a sampler sees what lasts longer than its interval, on a busy machine too
        first.close()
        for _ in range(3):
            held.append(pages(leak))

    connection.send(peak_of(work, meter))


def in_fresh_process(exact: bool, transient: int, leak: int, keep_freed: bool = False) -> dict:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=planted, args=(sender, exact, transient, leak, keep_freed))
    process.start()
    found = receiver.recv()
    process.join()
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_a_transient_peak_is_seen_after_it_is_gone(exact: bool) -> None:
    found = in_fresh_process(exact, 200, 1)
    assert found["peak_memory_mib"] == pytest.approx(200, abs=8)
    assert found["rss_method"] == ("kernel high-water mark" if exact else "sampled every 2 ms")


@pytest.mark.parametrize("keep_freed", [False, True])
def test_a_planted_leak_shows(keep_freed: bool) -> None:
    without, leaking = (in_fresh_process(True, 50, leak, keep_freed) for leak in (1, 60))
    assert without["peak_memory_mib"] == pytest.approx(50, abs=8)
    assert leaking["peak_memory_mib"] == pytest.approx(180, abs=8)


class FakeCuda:
    """A caching allocator with known answers: reserved grows in blocks of 2 MiB and is kept until emptied."""

    def __init__(self) -> None:
        self.now = self.top = self.reserved = self.reserved_top = 0

    def allocate(self, size: int) -> None:
        self.now += size
        self.top = max(self.top, self.now)
        self.reserved = max(self.reserved, -(-self.now // (2 * MIB)) * 2 * MIB)
        self.reserved_top = max(self.reserved_top, self.reserved)

    def synchronize(self, device: str) -> None:
        pass

    def empty_cache(self) -> None:
        self.reserved = -(-self.now // (2 * MIB)) * 2 * MIB

    def reset_peak_memory_stats(self, device: str) -> None:
        self.top, self.reserved_top = self.now, self.reserved

    def max_memory_allocated(self, device: str) -> int:
        return self.top

    def max_memory_reserved(self, device: str) -> int:
        return self.reserved_top


def test_cuda_peaks_count_the_model_and_forget_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, context, stranger = FakeCuda(), 400 * MIB, 1000 * MIB
    monkeypatch.setattr(torch, "cuda", cuda)
    used = iter([stranger, stranger + context + 112 * MIB])
    monkeypatch.setattr(hardware, "device_memory_used", lambda device: next(used))
    meter = CudaMeter("cuda:0")
    cuda.allocate(100 * MIB)  # the model
    cuda.allocate(700 * MIB)  # what the algorithm search of the first step takes and returns
    cuda.now -= 700 * MIB

    def step() -> None:
        cuda.allocate(11 * MIB)
        cuda.now -= 11 * MIB

    assert peak_of(step, meter) == {
        "peak_memory_mib": 111,
        "peak_allocated_mib": 111,
        "peak_reserved_mib": 112,
        "peak_device_mib": 512,
    }


def test_without_nvml_there_is_no_device_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", FakeCuda())
    monkeypatch.setattr(hardware, "device_memory_used", lambda device: None)
    assert "peak_device_mib" not in peak_of(lambda: None, CudaMeter("cuda:0"))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: BaseException, is_memory: bool) -> None:
    assert memory.is_out_of_memory(error) is is_memory


def test_with_a_cap_the_cpu_raises_like_a_gpu() -> None:
    memory.cap_data()
    with pytest.raises(RuntimeError) as caught:
        torch.empty(memory.available() * 2, dtype=torch.uint8).fill_(1)
    assert memory.is_out_of_memory(caught.value)

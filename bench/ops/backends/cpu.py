"""The compiled CPU backend: `scan_cpu.cpp` through ctypes (compiled at first use, see `cpu_build`).

The kernel computes in float32 on channels-last data; here tensors are converted, outputs allocated and partial sums
added in a fixed order: the same bits on every run. Nor do they depend on the number of threads, except the last bits of
the gradient of proj (B, C) where the runs of images do not divide evenly among the threads.

Threads are those of torch's own OpenMP: they are awake between two operators, while a second pool would fight them
for the cores. Without them (macOS, or after a fork of a process that has used them) a call starts its own.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.backends.cpu_build import BuildError, load_library
from bench.ops.problems import ImageScan, SequenceScan

NAME = "cpu"
CHUNK = 64  # steps between two saved states; CHUNK and PAD as in scan_cpu.cpp
PAD = 16
# Runs of images that have gradients of parameters of their own: on small grids one an image costs more than the scan.
# At least PARTS runs, and no more than RUN images in one: threads take whole runs.
PARTS, RUN = 8, 8


class _Problem(ctypes.Structure):
    """Mirrors `struct Problem` of scan_cpu.cpp: counts, then pointers, all of 8 bytes."""

    # fmt: off
    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "batch", "height", "width", "pixel_channels", "stream_channels", "stream_offset", "streams", "states",
            "rank", "softplus", "split", "parts", "groups", "threads",
        )),
        *((name, ctypes.c_void_p) for name in (
            "directions", "x", "proj", "delta", "dt_weight", "decay", "dt_bias", "skip", "y", "carry", "grad_y",
            "grad_x", "grad_proj", "grad_delta", "grad_parameters", "run_parallel",
        )),
    )
    # fmt: on


# ---- the library and its threads -----------------------------------------------------------------------------------


@cache
def _library() -> ctypes.CDLL:
    library = load_library()
    library.medbench_scan_problem_size.restype = ctypes.c_int64
    library.medbench_scan_blocks.restype = ctypes.c_int64
    library.medbench_scan_blocks.argtypes = [ctypes.c_int64]
    library.medbench_scan.argtypes = [ctypes.POINTER(_Problem), ctypes.c_int]
    size = library.medbench_scan_problem_size()
    if size != ctypes.sizeof(_Problem):
        raise BuildError(f"the kernel's arguments take {size} bytes, not {ctypes.sizeof(_Problem)}: please report it")
    return library


@cache
def unavailable(device_type: str) -> str | None:
    """None on a CPU with a C++ compiler or a compiled kernel in the cache, else the reason. May compile (a second)."""
    if device_type != "cpu":
        return "runs on the CPU only"
    if ctypes.sizeof(ctypes.c_void_p) != 8 or os.name != "posix":
        return "needs a 64-bit Linux or macOS"
    try:
        _library()
    except BuildError as error:
        return str(error)
    return None


@cache
def _torch_threads() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch itself has loaded, or None."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                function = ctypes.CDLL(str(path)).GOMP_parallel  # found among what the library depends on
            except (OSError, AttributeError):
                continue
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


class _Pool:
    """Whether torch's threads may be used: they do not survive a fork, and a child that waits for them hangs."""

    used = False
    lost = False


def _after_fork() -> None:
    _Pool.lost = _Pool.lost or _Pool.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _call(backward: bool, directions: Sequence[int], tensors: dict[str, Tensor | None], **counts: int) -> None:
    """Fill in the arguments and run the kernel (ctypes releases the interpreter lock meanwhile)."""
    problem = _Problem(**counts, threads=torch.get_num_threads())
    order = (ctypes.c_int64 * len(directions))(*directions)
    problem.directions = ctypes.addressof(order)
    for name, tensor in tensors.items():
        setattr(problem, name, None if tensor is None else tensor.data_ptr())
    if problem.threads > 1 and not _Pool.lost:
        _Pool.used = True
        problem.run_parallel = _torch_threads()
    if _library().medbench_scan(ctypes.byref(problem), int(backward)):
        raise MemoryError("the selective scan could not allocate its working memory")


def _own(t: Tensor) -> Tensor:
    """A contiguous copy, also where a view would do: outputs of an operator may not share memory."""
    return t.clone(memory_format=torch.contiguous_format)


@cache
def _even_groups(tasks: int, blocks: int, threads: int) -> int:
    """Into how many parts to divide the blocks of each task: the fewest that keep all threads busy to within 15 %."""
    rounds = {parts: -(-tasks * parts // threads) * -(-blocks // parts) for parts in range(1, blocks + 1)}
    return next(parts for parts in rounds if rounds[parts] <= 1.15 * min(rounds.values()))


def _ordered_sum(parts: Tensor) -> Tensor:
    """Sum over the first axis, first to last."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def exp_rate() -> float:
    """Exponentials a second of the kernel's polynomial on torch's number of threads, from one loop of about 20 ms."""
    function = _library().medbench_exp_loop
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    pool = None if _Pool.lost else _torch_threads()
    _Pool.used = True
    begin = time.perf_counter()
    count = int(function(100_000, torch.get_num_threads(), pool))
    return count / (time.perf_counter() - begin)


# ---- streams: what both forms become -------------------------------------------------------------------------------


class _Scan:
    """One problem in the kernel's terms: an image x (b,h,w,c), one stream a direction or a group of channels.

    proj: (b,h,w,streams,rank+2n). Parameters are listed stream by stream: dt_weight (c',rank), dt_bias (c'),
    decay (c',n), skip (c'), with c' = streams * channels of a stream. delta (b,h,w,c) stands for a raw step size.
    """

    def __init__(
        self,
        x: Tensor,
        proj: Tensor,
        delta: Tensor | None,
        dt_weight: Tensor | None,
        dt_bias: Tensor | None,
        decay: Tensor,
        skip: Tensor | None,
        directions: Sequence[int],
        softplus: bool,
        shared: bool,
    ) -> None:
        b, h, w, c = x.shape
        self.directions = directions
        self.streams, self.states = len(directions), decay.shape[-1]
        self.channels = c if shared else c // self.streams
        self.shared = shared  # every stream scans all channels, otherwise each its own
        self.rank = proj.shape[-1] - 2 * self.states
        self.blocks = int(_library().medbench_scan_blocks(self.channels))
        self.counts = {
            "batch": b,
            "height": h,
            "width": w,
            "pixel_channels": c,
            "stream_channels": self.channels,
            "stream_offset": 0 if shared else self.channels,
            "streams": self.streams,
            "states": self.states,
            "rank": self.rank,
            "softplus": int(softplus),
        }
        self.padded = -(-self.channels // PAD) * PAD
        self.tensors = {
            "x": x,
            "proj": proj,
            "delta": delta,
            "dt_weight": None if dt_weight is None else self._by_row(dt_weight),
            "dt_bias": dt_bias,
            "decay": self._by_row(decay),
            "skip": skip,
        }
        self.tensors = {k: None if t is None else t.float().contiguous() for k, t in self.tensors.items()}

    def _by_row(self, parameters: Tensor) -> Tensor:
        """Parameters of the channels (c',m) as the kernel reads them, channels last: (streams,m,padded)."""
        rows = parameters.float().reshape(self.streams, self.channels, -1).transpose(1, 2)
        return F.pad(rows, (0, self.padded - self.channels))

    def _division(self, parts: int) -> tuple[bool, int]:
        """Whether streams are tasks of their own, and the groups the blocks of channels are divided into.

        Both cost memory: streams that share channels one more image each, groups (backwards) one more gradient of proj
        each. So there are no more tasks than the threads need; with as many runs of images there is one a run.
        """
        threads = torch.get_num_threads()
        split = self.streams > 1 and (not self.shared or parts * self.blocks < threads)
        return split, _even_groups(parts * (self.streams if split else 1), self.blocks, threads)

    def _images(self, split: bool) -> Tensor:
        """Float32 memory for an output of x's shape; one a stream where streams are split and share channels."""
        x = self.tensors["x"]
        assert x is not None
        return x.new_empty((self.streams if split and self.shared else 1, *x.shape))

    def forward(self, carry: Tensor | None) -> Tensor:
        """The output, float32."""
        parts = max(self.counts["batch"], 1)
        split, groups = self._division(parts)
        y = self._images(split)
        if y.numel():
            tensors = {**self.tensors, "y": y, "carry": carry}
            _call(False, self.directions, tensors, split=int(split), parts=parts, groups=groups, **self.counts)
        return _ordered_sum(y)

    def backward(self, grad_y: Tensor, carry: Tensor) -> dict[str, Tensor]:
        """Gradients in float32, by the names of the arguments; those of parameters stream by stream."""
        b, h, w, _ = grad_y.shape
        parts = min(max(b, 1), max(PARTS, b // RUN))
        split, groups = self._division(parts)
        grad_x = self._images(split)
        grad_proj = grad_x.new_empty(groups, b, h, w, self.streams, self.rank + 2 * self.states)
        grad_delta = None if self.tensors["delta"] is None else grad_x.new_empty(grad_y.shape)
        grad_parameters = grad_x.new_zeros(parts, self.streams, self.rank + self.states + 2, self.padded)
        if grad_x.numel():
            outputs = {
                "grad_x": grad_x,
                "grad_proj": grad_proj,
                "grad_delta": grad_delta,
                "grad_parameters": grad_parameters,
            }
            tensors = {**self.tensors, **outputs, "grad_y": grad_y.float().contiguous(), "carry": carry}
            _call(True, self.directions, tensors, split=int(split), parts=parts, groups=groups, **self.counts)
        parameters = grad_parameters.sum(0)[..., : self.channels]
        dt_weight, decay, bias, skip = parameters.split([self.rank, self.states, 1, 1], 1)
        grads = {
            "x": _ordered_sum(grad_x),
            "proj": _ordered_sum(grad_proj),
            "dt_weight": _own(dt_weight.transpose(1, 2)),
            "decay": _own(decay.transpose(1, 2)),
            "bias": _own(bias.squeeze(1)),
            "skip": _own(skip.squeeze(1)),
        }
        return grads if grad_delta is None else {**grads, "delta": grad_delta}


# ---- four directions over an image ---------------------------------------------------------------------------------


def cross_scan_carry_shape(b: int, h: int, w: int, d: int, n: int, r: int, k: int) -> tuple[int, ...]:
    """Shape of the saved states: one a chunk, channels padded to whole vectors."""
    return (b, k, (h * w + CHUNK - 1) // CHUNK, n, (d + PAD - 1) // PAD * PAD)


def cross_scan_forward(scan: ImageScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan an image (b,h,w,d) in every direction and add the results; see `bench.ops.cross_selective_scan`."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    kernel = _Scan(x, proj, None, dt_weight, dt_bias, A, D, directions, True, shared=True)
    b, h, w, d = x.shape
    shape = cross_scan_carry_shape(b, h, w, d, A.shape[-1], kernel.rank, len(directions))
    carry = x.new_empty(shape if save else (0,), dtype=torch.float32)
    return kernel.forward(carry if save else None).to(x.dtype), carry


def cross_scan_backward(
    grad_y: Tensor, scan: ImageScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, proj, dt_weight, dt_bias, A, D, in this order."""
    x, proj, dt_weight, dt_bias, A, D, directions = scan
    kernel = _Scan(x, proj, None, dt_weight, dt_bias, A, D, directions, True, shared=True)
    g = kernel.backward(grad_y, carry)
    return g["x"].to(x.dtype), g["proj"].to(proj.dtype), g["dt_weight"], g["bias"], g["decay"], g["skip"]


# ---- sequences -----------------------------------------------------------------------------------------------------


def selective_scan_carry_shape(b: int, d: int, length: int, n: int, g: int) -> tuple[int, ...]:
    """Shape of the saved states: one a chunk, the channels of a group padded to whole vectors."""
    return (b, g, (length + CHUNK - 1) // CHUNK, n, (d // g + PAD - 1) // PAD * PAD)


def _channels_last(t: Tensor) -> Tensor:
    """(b,d,l) as an image of height 1, (b,1,l,d)."""
    return t.transpose(1, 2).unsqueeze(1)


def _sequence_scan(scan: SequenceScan) -> _Scan:
    u, delta, A, B, C, D, bias, softplus = scan
    proj = torch.cat([B, C], 2).permute(0, 3, 1, 2).unsqueeze(1)  # (b,1,l,g,2n)
    directions = [0] * B.shape[1]
    return _Scan(_channels_last(u), proj, _channels_last(delta), None, bias, A, D, directions, softplus, shared=False)


def selective_scan_forward(scan: SequenceScan, save: bool) -> tuple[Tensor, Tensor]:
    """Scan sequences (b,d,l); see `bench.ops.selective_scan`. Returns the output and the saved states."""
    kernel = _sequence_scan(scan)
    b, d, length = scan.u.shape
    shape = selective_scan_carry_shape(b, d, length, scan.A.shape[1], scan.B.shape[1])
    carry = scan.u.new_empty(shape if save else (0,), dtype=torch.float32)
    out = kernel.forward(carry if save else None)
    return _own(out.squeeze(1).transpose(1, 2)).to(scan.u.dtype), carry


def selective_scan_backward(
    grad_out: Tensor, scan: SequenceScan, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to u, delta, A, B, C, D, delta_bias, in this order."""
    kernel = _sequence_scan(scan)
    g = kernel.backward(_channels_last(grad_out), carry)
    grad_b, grad_c = g["proj"].squeeze(1).permute(0, 2, 3, 1).chunk(2, 2)  # (b,g,n,l) each

    def sequence(t: Tensor) -> Tensor:
        return _own(t.squeeze(1).transpose(1, 2))

    return (
        sequence(g["x"]).to(scan.u.dtype),
        sequence(g["delta"]).to(scan.delta.dtype),
        g["decay"].flatten(0, 1),
        _own(grad_b).to(scan.B.dtype),
        _own(grad_c).to(scan.C.dtype),
        None if scan.D is None else g["skip"].flatten(),
        None if scan.delta_bias is None else g["bias"].flatten(),
    )

"""Which backend runs a scan: found once per device type, and overridable for tests and comparisons.

A backend is a module with the functions listed in `Backend`. Order of preference: on CUDA Triton, then PyTorch; on the
CPU the compiled kernel, then PyTorch. The kernel of mamba-ssm runs only when asked for: it is the comparison.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

from bench.ops.problems import ImageScan, SequenceScan

ENVIRONMENT = "MEDBENCH_SCAN_BACKEND"
MODULES = {
    "triton": "bench.ops.backends.triton.scan",
    "cpu": "bench.ops.backends.cpu",
    "mamba-ssm": "bench.ops.backends.mamba_ssm",
    "reference": "bench.ops.backends.reference",
}
PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}

_log = logging.getLogger(__name__)
_override: str | None = None  # a plain global: torch.compile guards on it, so a change recompiles


class Backend(Protocol):
    """What a backend module provides; shapes and argument orders are those of the operators in `library.py`."""

    NAME: str

    def unavailable(self, device_type: str) -> str | None:
        """None where the backend can run on the device type, otherwise the reason in one line."""

    def selective_scan_carry_shape(self, b: int, d: int, length: int, n: int, g: int) -> tuple[int, ...]:
        """Shape of the float32 tensor a forward keeps for its backward."""

    def cross_scan_carry_shape(self, b: int, h: int, w: int, d: int, n: int, r: int, k: int) -> tuple[int, ...]:
        """Shape of the float32 tensor a forward keeps for its backward."""

    def selective_scan_forward(self, scan: SequenceScan, save: bool) -> tuple[Tensor, Tensor]:
        """Output and carry (empty unless save)."""

    def selective_scan_backward(
        self, grad_out: Tensor, scan: SequenceScan, carry: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Gradients of u, delta, A, B, C, D, delta_bias."""

    def cross_scan_forward(self, scan: ImageScan, save: bool) -> tuple[Tensor, Tensor]:
        """Merged output and carry (empty unless save)."""

    def cross_scan_backward(
        self, grad_y: Tensor, scan: ImageScan, carry: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, proj, dt_weight, dt_bias, A, D."""


def backend_module(name: str) -> Backend:
    """The module of a backend. Raises ValueError for an unknown name."""
    if name not in MODULES:
        raise ValueError(f"unknown scan backend {name!r}; the backends are {', '.join(sorted(MODULES))}")
    return cast(Backend, import_module(MODULES[name]))


@cache
def why_unavailable(name: str, device_type: str) -> str | None:
    """None if the backend runs on this kind of device in this process, otherwise the reason in one line."""
    try:
        module = backend_module(name)
    except ImportError as error:
        return f"cannot be imported ({error})"
    return module.unavailable(device_type)


@cache
def _preferred(device_type: str) -> str:
    """First choice that runs; once a process, a line is logged when the slow fall-back has to do."""
    reasons: list[str] = []
    for name in PREFERENCE.get(device_type, ("reference",)):
        reason = why_unavailable(name, device_type)
        if reason is None:
            if reasons:
                _log.warning("selective scan on %s: plain PyTorch, many times slower (%s)", device_type, reasons[0])
            return name
        reasons.append(f"{name}: {reason}")
    return "reference"


@torch.compiler.assume_constant_result  # the answer is a constant of the process: torch.compile need not trace it
def resolve(device_type: str, double: bool, requested: str | None) -> str:
    """Name the backend to run.

    Args:
        device_type: "cpu", "cuda", ...
        double: The tensors are float64; only PyTorch computes in it, unless a backend is requested.
        requested: A backend by name, or None for the environment variable MEDBENCH_SCAN_BACKEND, then the preference.

    Raises:
        ValueError: If the requested backend does not exist or cannot run here.
    """
    asked_by = "backend=" if requested else ENVIRONMENT
    requested = requested or os.environ.get(ENVIRONMENT) or None
    if requested is None:
        return "reference" if double else _preferred(device_type)
    if requested not in MODULES:
        backend_module(requested)  # raises, naming the backends
    reason = why_unavailable(requested, device_type)
    if reason is not None:
        raise ValueError(f"scan backend {requested!r} ({asked_by}) cannot run on {device_type}: {reason}")
    return requested


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every scan inside the block on one backend (None: the preference); for tests and comparisons.

    Raises:
        ValueError: If there is no backend of that name.
    """
    global _override
    if name is not None and name not in MODULES:
        backend_module(name)
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def overridden() -> str | None:
    """The backend named by the innermost `use_backend`, if any."""
    return _override


def chosen_backend(device: str | torch.device = "cpu") -> str:
    """Name of the backend that scans of ordinary precision run on, on this device."""
    name: str = resolve(torch.device(device).type, False, _override)
    return name


def backend_report(device: str | torch.device = "cpu") -> list[tuple[str, bool, str]]:
    """What `bench doctor` prints: (backend, available, reason), the chosen one first.

    The reason says why a backend cannot run, or, where it can, why it is or is not the one that runs.
    """
    device_type = torch.device(device).type
    chosen = chosen_backend(device_type)
    forced = _override or os.environ.get(ENVIRONMENT)
    rows: list[tuple[str, bool, str]] = []
    for name in MODULES:
        reason = why_unavailable(name, device_type)
        if name == chosen:
            text = f"in use: set by {ENVIRONMENT} or use_backend" if forced else f"in use: preferred on {device_type}"
            rows.insert(0, (name, True, text))
        elif reason is not None:
            rows.append((name, False, reason))
        else:
            rows.append((name, True, f"available as backend={name!r}"))
    if chosen == "reference" and not forced:
        rows[0] = (chosen, True, f"in use: no faster backend runs on {device_type}")
    return rows

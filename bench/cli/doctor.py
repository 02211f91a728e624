"""``bench doctor``: check what this machine has and what that means for a run for a run."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.cli import flags

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

OK, NOTE, BAD = "ok", "note", "missing"


class Check(NamedTuple):
    """One line: what was looked for, ``ok``, ``note`` or ``missing``, what was found, what it means."""

    what: str
    state: str
    found: str
    meaning: str


def add(commands: flags.Commands) -> None:
    """Add the command."""
    doctor = flags.command(commands, "doctor", _doctor, "check what this machine has and what that means for a run")
    flags.add_data_root(doctor)
    flags.add_config(doctor)
    flags.add_json(doctor)


def _doctor(options: argparse.Namespace) -> int:
    checks = examine(flags.data_root(options))
    if options.json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        print_checks(checks, flags.console())
    return flags.FAILED if any(check.state == BAD for check in checks) else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(data_root: Path | None = None) -> list[Check]:
    """Look at everything a run depends on."""
    torch_found = _torch()
    needs_torch = [] if torch_found.state == BAD else [*_cuda(), *_scan_backends()]
    checks = [_python(), torch_found, *needs_torch, _mamba_ssm(), _compiler(), _memory()]
    return [*checks, _data(data_root), _cache(), *_libraries()]


def _python() -> Check:
    state = OK if sys.version_info >= (3, 11) else BAD
    return Check("Python", state, f"{platform.python_version()} at {sys.executable}", "3.11 or later is required")


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        return Check("torch", BAD, str(error), "to train and measure: pip install 'medbench[train]'")
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count != 1)}, {torch.backends.cpu.get_cpu_capability()}"
    return Check("torch", OK, f"{torch.__version__}, {threads}", "builds and trains the models")


def _cuda() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
        return [Check("CUDA", NOTE, f"no device ({built})", "--device auto uses the CPU")]
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        found.append(Check(f"CUDA device {index}", OK, text, f"--device cuda:{index}"))
    return found


SCANS = {
    "cpu": "compiled scan kernel for MedMamba and VMamba",
    "triton": "fused scan kernel for CUDA",
    "reference": "pure PyTorch fallback, several times slower",
    "mamba-ssm": "public CUDA kernel, for comparisons only",
}


def _scan_backends() -> list[Check]:
    import torch

    from bench.ops import backend_report, chosen_backend

    return [
        Check(
            f"scan on {device}: {name}",
            OK if available and name == chosen_backend(device) else NOTE,
            reason,
            SCANS.get(name, ""),
        )
        for device in (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
        for name, available, reason in backend_report(device)
    ]


def _mamba_ssm() -> Check:
    version = _version("mamba-ssm")
    if version is None:
        return Check("mamba-ssm", NOTE, "not installed", "optional: compares kernels on CUDA")
    if importlib.util.find_spec("selective_scan_cuda"):
        return Check("mamba-ssm", OK, f"{version}, with its mamba-1 kernel", "kernels can be compared")
    hint = "to compare kernels, rebuild it with MAMBA_KEEP_CUDA_BUILD=TRUE and --no-build-isolation"
    return Check("mamba-ssm", NOTE, f"{version}, without its mamba-1 kernel", hint)


def _compiler() -> Check:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if path := shutil.which(name):
            return Check("C++ compiler", OK, path, "compiles the CPU scan kernel on first use, then cached")
    return Check("C++ compiler", NOTE, "none", "scans fall back to PyTorch; install g++ or clang++")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free; {os.cpu_count()} cores"
    state = OK if memory.available > 4 * 2**30 else NOTE
    return Check("memory", state, text, "the largest CPU cells need about 8 GiB")


def _data(data_root: Path | None) -> Check:
    from bench.data.files import default_root

    root = data_root or default_root()
    if files := sorted(root.glob("*.npz")):
        free = shutil.disk_usage(root).free / 2**30
        return Check("data root", OK, f"{root}: {len(files)} files, {free:.0f} GiB free", "checksums are verified")
    hint = "download with `bench fetch --datasets medmnist`; phantoms and breastmnist at 28 px need no files"
    return Check("data root", NOTE, f"{root}: no .npz files", hint)


def _cache() -> Check:
    from bench.record.paths import default_cache_dir

    path = default_cache_dir()
    parent = next(p for p in (path, *path.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return Check("cache", OK, str(path), "decoded datasets and compiled kernels; set MEDBENCH_CACHE to move it")
    return Check("cache", BAD, f"{path} cannot be written", "set MEDBENCH_CACHE to a writable folder")


def _libraries() -> list[Check]:
    found = {name: _version(name) for name in ("timm", "torchvision", "fvcore", "medmnist", "datasets")}
    checks = [Check(name, OK if version else BAD, version or "not installed", "") for name, version in found.items()]
    triton = _version("triton")
    meaning = "required for the fused scan kernel on CUDA"
    return [*checks, Check("triton", OK if triton else NOTE, triton or "not installed", meaning)]


def print_checks(checks: list[Check], console: Console) -> None:
    """Print the checks as a table."""
    from rich.table import Table
    from rich.text import Text

    styles = {OK: "green", NOTE: "yellow", BAD: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "", "found", "what it means"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(*(Text(cell, styles[check.state] if cell is check.state else "") for cell in check))
    console.print(table)

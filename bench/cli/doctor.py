"""``bench doctor``: what this machine has, and what that means for a run."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

OK, NOTE, BAD = "ok", "note", "missing"


class Finding(NamedTuple):
    """One line: what was looked for, ``ok``, ``note`` or ``missing``, what was found, what it means."""

    what: str
    state: str
    found: str
    meaning: str


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(data_root: Path | None = None) -> list[Finding]:
    """Look at everything a run depends on."""
    torch_found = _torch()
    needs_torch = [] if torch_found.state == BAD else [*_cuda(), *_scan_backends()]
    findings = [_python(), torch_found, *needs_torch, _mamba_ssm(), _compiler(), _memory()]
    return [*findings, _data(data_root), _cache(), *_libraries()]


def _python() -> Finding:
    state = OK if sys.version_info >= (3, 11) else BAD
    return Finding("Python", state, f"{platform.python_version()} at {sys.executable}", "3.11 or later is needed")


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        return Finding("torch", BAD, str(error), "nothing can be measured; install it with `pip install medbench`")
    threads = f"{torch.get_num_threads()} threads, {_cpu_capability()}"
    return Finding("torch", OK, f"{torch.__version__}, {threads}", "models are built and trained with it")


def _cpu_capability() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _cuda() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
        return [Finding("CUDA", NOTE, f"no device ({built})", "runs on the CPU: --device cpu is what auto means here")]
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        found.append(Finding(f"CUDA device {index}", OK, text, f"--device cuda:{index}"))
    return found


def _scan_backends() -> list[Finding]:
    import torch

    from bench.ops import backend_report, chosen_backend

    found = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        chosen = chosen_backend(device)
        for name, available, reason in backend_report(device):
            state = OK if available and name == chosen else NOTE
            found.append(Finding(f"scan on {device}: {name}", state, reason, _scan_meaning(name)))
    return found


def _scan_meaning(name: str) -> str:
    meanings = {
        "cpu": "compiled kernel for MedMamba and VMamba on the CPU",
        "triton": "fused kernel on CUDA",
        "reference": "plain PyTorch: works everywhere, several times slower",
        "mamba-ssm": "the public kernel, for comparison only",
    }
    return meanings.get(name, "")


def _mamba_ssm() -> Finding:
    version = _version("mamba-ssm")
    if version is None:
        return Finding("mamba-ssm", NOTE, "not installed", "not needed; an extra for comparing kernels on CUDA")
    kernel = importlib.util.find_spec("selective_scan_cuda") is not None
    text = f"{version}, " + ("with" if kernel else "without") + " its mamba-1 kernel"
    hint = (
        "comparison possible"
        if kernel
        else "build it with MAMBA_KEEP_CUDA_BUILD=TRUE and no build isolation to compare"
    )
    return Finding("mamba-ssm", OK if kernel else NOTE, text, hint)


def _compiler() -> Finding:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if path := shutil.which(name):
            return Finding("C++ compiler", OK, path, "builds the CPU scan kernel at first use, then it is cached")
    return Finding(
        "C++ compiler", NOTE, "none", "scans run in plain PyTorch; install g++ or clang++ for the fast kernel"
    )


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free; {os.cpu_count()} cores"
    state = OK if memory.available > 4 * 2**30 else NOTE
    return Finding("memory", state, text, "the largest CPU cells need about 8 GiB")


def _data(data_root: Path | None) -> Finding:
    from bench.data.files import default_root

    root = (data_root or default_root()).expanduser()
    files = sorted(root.glob("*.npz")) if root.is_dir() else []
    if not files:
        return Finding(
            "data root",
            NOTE,
            f"{root}: no .npz files",
            "`bench fetch --datasets medmnist` fills it; phantoms need none, breastmnist at 28 px is bundled",
        )
    free = shutil.disk_usage(root).free / 2**30
    return Finding(
        "data root", OK, f"{root}: {len(files)} files, {free:.0f} GiB free", "verified when a run first reads them"
    )


def _cache() -> Finding:
    from bench.data.cache import default_cache_dir

    path = default_cache_dir()
    parent = next(p for p in (path, *path.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return Finding("cache", OK, str(path), "decoded datasets and compiled kernels; MEDBENCH_CACHE moves it")
    return Finding("cache", BAD, f"{path} cannot be written", "set MEDBENCH_CACHE to a writable folder")


def _libraries() -> list[Finding]:
    needed = ("timm", "torchvision", "fvcore", "medmnist", "datasets", "triton")
    meanings = {"triton": "needed for the fused kernel on CUDA"}
    found = []
    for name in needed:
        version = _version(name)
        optional = name in meanings
        state = OK if version else (NOTE if optional else BAD)
        found.append(Finding(name, state, version or "not installed", meanings.get(name, "")))
    return found


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table."""
    styles = {OK: "green", NOTE: "yellow", BAD: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "", "found", "what it means"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        style = styles[finding.state]
        table.add_row(escape(finding.what), Text(finding.state, style), escape(finding.found), escape(finding.meaning))
    console.print(table)

"""What ``torch.compile`` needs of this machine, without torch: a compiler and Python's headers, on a GPU Triton."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib import util
from pathlib import Path


def why_not_compiled(device: str) -> str | None:
    """Say why Cells on ``device`` (``cpu`` or ``cuda:N``) cannot be compiled; None where they can.

    On a CPU TorchInductor writes C++, on a GPU Triton writes kernels and a launcher in C; both link with Python.
    """
    if device == "cpu":
        language, variable = "C++", "CXX"
        usual = ["clang++"] if sys.platform == "darwin" else ["g++"]
    else:
        if util.find_spec("triton") is None:
            return "torch.compile needs Triton on a GPU: pip install triton"
        language, variable, usual = "C", "CC", ["gcc", "clang"]
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([chosen] if chosen else usual)):
        found = f"{variable} = {chosen} is no program" if chosen else f"there is no {' or '.join(usual)}"
        return f"torch.compile needs a {language} compiler, and {found}: install one or set {variable}"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.is_file():
        return f"torch.compile needs Python's headers, and there is no {headers}: install python3-dev"
    return None

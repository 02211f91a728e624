"""The command `bench` itself: what it imports, what it answers."""

import subprocess
import sys

HEAVY = {"torch", "numpy", "rich", "pydantic", "requests", "timm"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bench.cli.main import make_parser\nmake_parser().format_help()\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Who may import whom (CONTRIBUTING.md, "Rooms"), read from the source text."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A room may import itself and these; everything else of ours is out of bounds. `registry` stands for what knows
# nothing of the rest: the registries, the cells and the downloads.
BASE = {"bench.registry", "bench.plan.cells"}
ALLOWED = {
    "models": {"bench.ops", "bench.registry", "bench.models"},
    "datasets": {"bench.ops", "bench.registry", "bench.datasets"},
    "bench.ops": {"bench.ops"},
    "bench.report": {"bench.report", "bench.record.store"},
    "bench.training": BASE | {"bench.training", "bench.measure", "bench.data.files", "bench.data.download"},
    "bench.measure": BASE | {"bench.measure", "bench.ops", "bench.models", "bench.training.devices"},
    "bench.explain": BASE
    | {"bench.explain", "bench.training", "bench.measure", "bench.data.files", "bench.record.store"},
    "bench.record.store": set(),
    # The registry is made of these; the built-in facts are imported by name at first look-up.
    "bench.registry": {
        "bench.registry.info",
        "bench.registry.names",
        "bench.registry.plugins",
        "bench.models",
        "bench.datasets",
    },
    "bench.registry.names": {"bench.registry.info"},
    "bench.registry.plugins": {"bench.registry.info"},
    "bench.registry.info": set(),
}


def room_of(path: Path) -> str | None:
    """Return the room a file belongs to, if it is one with bounds."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in ALLOWED:
            return name
    return None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "bench"}


FILES = sorted(path for folder in ("bench", "models", "datasets") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    found = imports(path)
    if path.name not in ("cli.py", "__main__.py"):
        assert not any(name.startswith("bench.cli.main") for name in found), "nobody imports the command"
    room = room_of(path)
    if room is None:
        return
    for name in found:
        assert any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[room]), (
            f"{path.relative_to(ROOT)} ({room}) imports {name}"
        )


def test_the_checker_sees_a_forbidden_import(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from bench import store\nimport bench.cli.main\nfrom . import other\nimport numpy\n")
    assert imports(source) == {"bench.record.store", "bench.cli.main"}

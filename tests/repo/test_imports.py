"""Who may import whom, read from the source text: layers, no circles, rooms of a size one can find one's way in."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each room with what it is for and the rooms it may use, lowest first. Late imports and imports for types count too.
# `bench` is the package itself (lazy public names, the version); its loose modules are rooms of their own.
ROOMS: dict[str, tuple[str, str]] = {
    "bench": ("public names, imported at first use", "bench.api machine"),
    "bench.errors": ("BenchError and its kinds", ""),
    "machine": ("this computer: processors, GPUs, memory, compiler", "errors"),
    "ops": ("selective scan: operators, FLOP formulas, backends", "errors machine"),
    "registry": ("names to facts of models and datasets; plug-ins; torch-free", "errors"),
    "metrics": ("every metric and calibration, for training and for boards", "errors registry"),
    "record": ("the run directory: Cells, Records, paths, atomic writing", "errors registry metrics"),
    "models": ("one file per family", "errors registry ops"),
    "datasets": ("one file per source", "errors registry record"),
    "data": ("files to uint8 arrays: download, checksums, decoded cache, folds", "errors datasets registry record"),
    "sweep": ("bench.toml, presets and flags to a validated Sweep", "errors registry"),
    "measure": ("efficiency Cells: time, memory, energy, FLOPs", "errors machine ops registry record"),
    "train": ("accuracy Cells: loop, recipes, checkpoints", "errors machine data metrics record registry sweep"),
    "plan": ("Sweep to Cells; torch-free", "errors machine data record registry sweep"),
    "explain": ("where a trained network looks", "errors data record registry train"),
    "stats": ("the tests behind every claim: pure functions, numpy in", "errors metrics"),
    "report": ("Records to pages, gate; never torch", "errors metrics record registry stats"),
    "claims": ("published tables judged", "errors metrics record registry report stats"),
    "score": ("scores of any origin to a run directory", "errors machine metrics record registry stats report"),
    "deploy": (
        "trained networks outside of a run: export, ONNX, predict",
        "errors data datasets explain machine metrics ops plan record registry report stats train",
    ),
    "runner": (
        "Plan to Records: order, leases, workers",
        "errors machine metrics ops registry record data measure train plan sweep models report deploy",
    ),
    "bench.api": ("the Python API", "errors registry record data sweep plan runner report deploy"),
    "cli": (
        "parses, prints, decides nothing",
        "bench bench.api errors machine metrics ops registry record data sweep measure train plan explain stats report"
        " runner score claims deploy",
    ),
    "bench.__main__": ("python -m bench", "cli"),
}


def modules() -> dict[str, Path]:
    """Dotted name to file, of the three packages; models and datasets are part of bench."""
    found = {}
    for folder in ("bench", "models", "datasets"):
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name if folder == "bench" else f"bench.{name}"] = path
    return found


MODULES = modules()


def imports(source: str, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a source text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError("relative import: write the whole name")
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    return found


GRAPH = {name: imports(path.read_text(), MODULES) - {name} for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """`bench.stats.paired` stands in `report`; `bench.api` is a room of its own."""
    parts = module.split(".")
    if len(parts) == 1 or (len(parts) == 2 and not (ROOT / "bench" / parts[1]).is_dir() and parts[1] not in ROOMS):
        return module
    return parts[1]


def used(room: str) -> set[str]:
    return {name if name.startswith("bench") or name != "errors" else "bench.errors" for name in ROOMS[room][1].split()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_what_it_may(module: str) -> None:
    room = room_of(module)
    assert room in ROOMS, f"{module}: a room without a line in ROOMS"
    beyond = {name for name in GRAPH[module] if room_of(name) not in used(room) | {room}}
    assert not beyond, f"{module} ({room}: {ROOMS[room][0]}) imports {', '.join(sorted(beyond))}"


def test_no_module_reaches_itself_through_others() -> None:
    assert not circles(GRAPH)


def test_rooms_form_layers() -> None:
    graph = {room: used(room) for room in ROOMS}
    assert not circles(graph)
    assert all(other in ROOMS for others in graph.values() for other in others)


def test_rooms_stay_small() -> None:
    """At most 8 modules beside bench's folders, at most 14 in a folder: one can find one's way."""
    folders: dict[Path, int] = {}
    for name, path in MODULES.items():
        if path.name != "__init__.py" and name.startswith("bench"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert folders[ROOT / "bench"] <= 8
    assert not {folder.name: count for folder, count in folders.items() if count > 14}


def test_functions_can_be_read_at_a_glance() -> None:
    """At most 60 lines (ruff holds the complexity); the Triton kernels are one function each by nature."""
    long = [
        f"{path.relative_to(ROOT)}: {node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for path in MODULES.values()
        if "triton" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert not long


def test_the_checker_sees_what_it_forbids() -> None:
    known = {"bench": ROOT, "bench.a": ROOT, "bench.b": ROOT, "bench.b.c": ROOT}
    late = "import numpy\nfrom bench import a\ndef f():\n    from bench.b.c import x\n"
    assert imports(late, known) == {"bench.a", "bench.b.c"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []

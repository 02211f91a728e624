"""The compiled CPU kernel: threads, forks, narrower vectors, and everything that can go wrong with its cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.ops import cross_selective_scan
from bench.ops.backends import cpu, cpu_build
from bench.ops.problems import ImageScan

_spec = importlib.util.spec_from_file_location("scan_cases", Path(__file__).with_name("scan_cases.py"))
assert _spec and _spec.loader
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

ROOT = Path(__file__).parents[2]
needs_kernel = pytest.mark.skipif(cpu.unavailable("cpu") is not None, reason=str(cpu.unavailable("cpu")))
pytestmark = needs_kernel

# Prints the backend in use, why, and the errors of small scans and of their gradients against the float64 reference.
PROGRAM = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import scan_cases
from bench.ops import backend_report, cross_selective_scan
def run(states, dtype, backend):
    inputs = {{k: t.to(dtype).requires_grad_() for k, t in scan_cases.cross_inputs(2, 9, 8, 37, states, 3).items()}}
    y = cross_selective_scan(**inputs, backend=backend)
    y.backward(torch.ones_like(y))
    return y.detach(), inputs["x_proj_weight"].grad
def errors(states):
    found, truth = run(states, torch.float32, None), run(states, torch.float64, "reference")
    return [scan_cases.rel_to_max(*pair) for pair in zip(found, truth)]
name, _, reason = backend_report("cpu")[0]
print(name, *("%.1e" % max(pair) for pair in zip(errors(1), errors(16))), "|", *backend_report("cpu"))
"""


def start(environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[str, str, str]:
    """Backend name, everything printed, everything on stderr; the errors must be small."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    name, forward, backward = out.split()[:3]
    assert float(forward) <= 2e-6 and float(backward) <= 1e-5, out
    return name, out, err


# ---- results -------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("own_threads", [False, True], ids=["torch's threads", "own threads"])
def test_same_bits_on_any_number_of_threads(own_threads: bool, threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where directions become tasks of their own, and blocks of channels (9 threads are more than 4 scans).

    Only where the batch does not divide among the threads may the projection's gradient differ in its last bits: it is
    then summed over parts of the channels.
    """
    monkeypatch.setattr(cpu._Pool, "lost", own_threads)
    for b, h, w, d, n, r in ((1, 13, 11, 40, 16, 3), (3, 6, 5, 33, 1, 2), (20, 3, 4, 16, 5, 2)):
        p = cases.cross_inputs(b, h, w, d, n, r)
        tensors = [p["x"], torch.randn(b, h, w, 4, r + 2 * n), *(p[k] for k in ("dt_proj_weight", "dt_bias", "A", "D"))]
        runs = []
        for count in (1, 1, 2, 3, 9):
            threads(count)
            scan = ImageScan(*tensors, [0, 1, 2, 3])
            y, carry = cpu.cross_scan_forward(scan, True)
            runs.append((y, *cpu.cross_scan_backward(torch.cos(y), scan, carry)))
            for i, (wanted, found) in enumerate(zip(runs[0], runs[-1], strict=True)):
                if i == 2 and b % count:
                    torch.testing.assert_close(found, wanted)
                else:
                    assert torch.equal(found, wanted), (i, count)


@pytest.mark.parametrize(("tasks", "blocks", "threads", "parts"), [
    (1, 6, 1, 1),  # one thread: nothing to divide
    (1, 6, 2, 2),  # two threads and one image: half the channels each
    (2, 6, 2, 1),  # an image each
    (65, 6, 2, 1),  # one odd image in 65 is not worth another copy of a gradient
    (3, 6, 2, 2),  # one odd image in 3 is
    (1, 6, 4, 3),  # three threads of two blocks are as quick as four
    (1, 2, 16, 2),  # never more parts than blocks
])  # fmt: skip
def test_channels_are_divided_only_where_threads_would_idle(tasks: int, blocks: int, threads: int, parts: int) -> None:
    assert cpu._even_groups(tasks, blocks, threads) == parts


def test_fork_after_use_does_not_hang() -> None:
    """The threads of the parent do not exist in the child; whoever waits for them waits forever.

    The child runs the kernel alone: PyTorch's own operators may hang there, which nobody outside PyTorch can cure.
    """
    program = f"""
import os, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import scan_cases
from bench.ops.backends import cpu
from bench.ops.problems import ImageScan
torch.set_num_threads(2)
p = scan_cases.cross_inputs(1, 9, 8, 37, 4, 3)
t = [p["x"], torch.ones(1, 9, 8, 4, 11), p["dt_proj_weight"], p["dt_bias"], p["A"], p["D"]]
scan = ImageScan(*t, [0, 1, 2, 3])
wanted = cpu.cross_scan_forward(scan, False)[0].numpy()
if os.fork() == 0:
    same = (cpu.cross_scan_forward(scan, False)[0].numpy() == wanted).all()
    os._exit(0 if same else 1)
assert os.wait()[1] == 0
print("both done")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert "both done" in done.stdout, done.stderr


def test_empty_batch() -> None:
    inputs = cases.cross_inputs(0, 4, 4, 16, 4, 2)
    assert cross_selective_scan(**inputs, backend="cpu").shape == (0, 4, 4, 16)


# ---- building and the cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["-mno-avx512f", "-march=x86-64"])
def test_narrower_vectors_give_the_same_answers(flags: str, tmp_path: Path) -> None:
    """AVX2 (8 lanes) and SSE2 (4 lanes, as on arm64)."""
    if "x86" not in os.uname().machine:
        pytest.skip("flags of x86")
    environment = {"MEDBENCH_CACHE": str(tmp_path), "MEDBENCH_CXXFLAGS": flags}
    assert finish(start(environment))[0] == "cpu"


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    environment = {"MEDBENCH_CACHE": str(tmp_path)}
    processes = [start(environment) for _ in range(3)]
    assert [finish(process)[0] for process in processes] == ["cpu"] * 3
    assert len(list((tmp_path / "ops").glob("*.so"))) == 1
    assert not list((tmp_path / "ops").glob("build-*"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "no digest"])
def test_damaged_library_is_compiled_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path))
    first = cpu_build.load_library()
    path = Path(first._name)
    assert path.parent == tmp_path / "ops"
    whole = path.read_bytes()
    path.unlink()  # the loaded file itself stays mapped: damage a copy
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"x" * 100)
    if damage == "no digest":
        path.write_bytes(whole)
        path.with_suffix(".sha256").unlink()
    again = cpu_build.load_library()
    assert again.medbench_scan_problem_size() > 0
    assert path.with_suffix(".sha256").read_text().strip() == cpu_build._digest(path)


def test_changed_sources_flags_or_compiler_change_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = cpu_build.find_compiler()
    keys = {cpu_build.build_key(compiler, ()), cpu_build.build_key(compiler, ("-O1",))}
    monkeypatch.setattr(cpu_build, "cpu_features", lambda: "another CPU")
    keys.add(cpu_build.build_key(compiler, ()))
    monkeypatch.setattr(cpu_build, "SOURCES", cpu_build.SOURCES[:1])
    keys.add(cpu_build.build_key(compiler, ()))
    monkeypatch.setattr(cpu_build, "_output_of", lambda *command: "version 99")
    keys.add(cpu_build.build_key(compiler, ()))
    assert len(keys) == 5


def test_without_a_compiler_the_plain_backend_runs_and_one_line_says_so(tmp_path: Path) -> None:
    environment = {"MEDBENCH_CACHE": str(tmp_path), "CXX": "/nonexistent/c++"}
    name, out, err = finish(start(environment))
    assert name == "reference"
    assert "no C++ compiler (/nonexistent/c++ not found); install g++ or clang++" in out
    assert err.count("plain PyTorch, many times slower") == 1


def test_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'error: out of cheese' >&2\nexit 1\n")
    broken.chmod(0o755)
    name, out, _ = finish(start({"MEDBENCH_CACHE": str(tmp_path), "CXX": str(broken)}))
    assert name == "reference" and "failed on the scan kernel: error: out of cheese" in out


def test_what_a_killed_compiler_leaves_lies_in_the_cache_and_goes(tmp_path: Path) -> None:
    killed = tmp_path / "killed-c++"
    killed.write_text('#!/bin/sh\ntouch "$TMPDIR/cc-remains.s"\nkill -9 $PPID\n')
    killed.chmod(0o755)
    temporary, ops = tmp_path / "tmp", tmp_path / "ops"
    temporary.mkdir()
    ops.mkdir()
    code = (
        "import sys; from pathlib import Path; from bench.ops.backends import cpu_build; "
        "cpu_build._compile(sys.argv[1], (), 'k', Path(sys.argv[2]))"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", code, str(killed), str(ops / "scan-k.so")], env=environment, check=False)
    assert not list(temporary.iterdir()) and list(ops.glob("build-*/cc-remains.s"))
    cpu_build._compile(cpu_build.find_compiler(), (), "k", ops / "scan-k.so")
    assert not list(ops.glob("build-*"))


def test_unwritable_cache_falls_back_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be: nothing can be created below it, even as root")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("MEDBENCH_CACHE", str(blocked))
    monkeypatch.setattr(cpu_build.tempfile, "gettempdir", lambda: str(temporary))
    library = cpu_build.load_library()
    assert Path(library._name).is_relative_to(temporary)
    shutil.rmtree(temporary)
    temporary.write_text("now this one too")
    with pytest.raises(cpu_build.BuildError, match=r"no place for the compiled kernel .*set MEDBENCH_CACHE"):
        cpu_build.load_library()


def test_a_folder_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert not cpu_build._usable(shared)
    shared.chmod(0o700)
    assert cpu_build._usable(shared)

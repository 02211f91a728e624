"""The Triton kernels compiled without a GPU, read as machine code: registers, spills, instructions a state update.

Counted for MedMamba's first stage (16 states, step sizes of rank 3), float32. A loop's count is all its instructions,
whatever they do, over the state updates that one warp's pass through it makes for one thread.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bench.ops.backends.triton import backward, layout, scan, sums, walks  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
STATES, RANK = 16, 3
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*?);")
COMMON: dict[str, Any] = {
    "R": RANK, "N": STATES, "CB": scan.CHANNELS, "K": layout.CARRY_EVERY, "DIRECT": False,
    "SOFTPLUS": True, "HAS_BIAS": True,
}  # fmt: skip
FORWARD = COMMON | {"NP": STATES, "T": scan.WALK_TILE, "HAS_D": False, "END": False}
BACKWARD = COMMON | {"T": scan.TILE}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "forward": (walks.walk_forward, FORWARD),
    "long walk": (walks.walk_forward, FORWARD | {"R": 6, "T": scan.LONG_WALK_TILE}),
    "refine": (backward.refine_states, BACKWARD),
    "backward": (backward.scan_backward, BACKWARD | {"HAS_D": False}),
}
# Arguments that are multiples of 16 in MedMamba and VMamba, which Triton then knows.
ALIGNED = ("d", "xb", "xk", "xs", "yb", "yk", "ys")
INTEGERS = (*ALIGNED, "L", "span", "chunks", "nseg", "nchunk", "k", "pb", "pk", "ps", "batch_k", "resume", "save")


class Compiled:
    """A kernel's machine code: (address, operation, operands) and what it needs."""

    def __init__(self, name: str, capability: int, folder: Path) -> None:
        kernel, constants = KERNELS[name]
        types = {n: "i32" if n in INTEGERS else "*fp32" for n in kernel.arg_names} | {"order": "*i32"}
        types |= dict.fromkeys(constants, "constexpr")
        aligned = [i for i, n in enumerate(kernel.arg_names) if types[n].startswith("*") or n in ALIGNED]
        source = ASTSource(
            fn=kernel, signature=types, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
        )
        binary = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1, "maxnreg": scan.REGISTERS}
        )
        file = folder / f"{name}.cubin"
        file.write_bytes(binary.asm["cubin"])
        found = re.search(r"REG:(\d+) STACK:(\d+)", self._tool("-res-usage", file))
        assert found
        self.registers, self.stack = map(int, found.groups())
        lines = map(INSTRUCTION.match, self._tool("-sass", file).splitlines())
        self.code = [(int(m[1], 16), m[2], m[3]) for m in lines if m]

    @staticmethod
    def _tool(option: str, file: Path) -> str:
        done = subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def main_loop(self) -> list[str]:
        """The operations of the innermost loop with the most exponentials."""
        loops = []
        for address, operation, operands in self.code:
            target = re.search(r"0x([0-9a-f]+)", operands)
            if operation.startswith("BRA") and target and int(target[1], 16) < address:
                start = int(target[1], 16)
                loops.append([o for a, o, _ in self.code if start <= a <= address])
        inner = min(len(loop) for loop in loops if any(o.startswith("MUFU.EX2") for o in loop))
        return next(loop for loop in loops if len(loop) == inner)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Compiled]:
    folder = tmp_path_factory.mktemp("cubins")
    # sm_90 for the counts that are compared with the public kernel's; sm_80 is the oldest supported. The long walk
    # needs the most registers: tiles of 16 positions, weights of rank 6 (MedMamba's second stage).
    wanted = [("forward", 90), ("refine", 90), ("backward", 90), ("long walk", 90), ("forward", 80), ("backward", 80)]
    return {(name, arch): Compiled(name, arch, folder) for name, arch in wanted}


def test_hardly_anything_spills(compiled: dict[tuple[str, int], Compiled]) -> None:
    """12 warps fit into a multiprocessor; what is spilt for it is little of the innermost loop."""
    for key, kernel in compiled.items():
        loop = kernel.main_loop()
        spills = sum(o.startswith(("LDL", "STL")) for o in loop)
        print(key, kernel.registers, "registers,", kernel.stack, "bytes of stack,", spills, "of", len(loop))
        assert kernel.registers <= scan.REGISTERS
        assert spills <= 0.05 * len(loop), key


@pytest.mark.parametrize(
    ("name", "updates", "limit"),
    [
        # One pass through the forward's loop does everything for T positions: loads, step-size projection, softplus,
        # states, outputs. The issue asked for 7; 6.3 are arithmetic. The public kernel: 33.8.
        ("forward", scan.WALK_TILE * STATES, 9.2),
        ("refine", scan.TILE, 6.5),
        # The loop over states; what is done once for all states of T positions lies outside. The public kernel: 76.7.
        ("backward", scan.TILE, 20.0),
    ],
)
def test_instructions_a_state_update(
    compiled: dict[tuple[str, int], Compiled], name: str, updates: int, limit: float
) -> None:
    loop = compiled[name, 90].main_loop()
    count = len(loop) / updates
    print(f"{name}: {len(loop)} instructions for {updates} updates, {count:.2f} each")
    assert count <= limit
    assert not [o for o in loop if o.startswith(("ATOM", "RED"))]


def test_backward_evaluates_each_exponential_once(compiled: dict[tuple[str, int], Compiled]) -> None:
    loop = compiled["backward", 90].main_loop()
    assert sum(o.startswith("MUFU.EX2") for o in loop) == scan.TILE


def test_sizes_make_no_variants() -> None:
    """Triton compiles anew for each integer that is 1 or a multiple of 16, and takes a 1 for a constant of Python.

    On an H100 a network at one more resolution compiled for a minute, and MedMamba at 32 pixels and batch 1, whose
    last map is one pixel, failed: "'int' object has no attribute 'to'".
    """
    kernels = [
        found
        for module in (walks, backward, sums)
        for name, found in vars(module).items()
        if isinstance(found, triton.runtime.JITFunction) and found.fn.__module__ == module.__name__
        if name != "load_decay"  # a part of others, never launched
    ]
    assert len(kernels) == 8
    free = {"rows", "L", "span", "chunks", "nseg", "nchunk", "k", "pb", "pk", "ps", "batch_k", "ncb", "resume", "save"}
    for kernel in kernels:
        specialised = {p.name for p in kernel.params if p.name in free and not p.do_not_specialize}
        # Reordering and adding up gain by knowing where a sequence begins; they compile in a fraction of a second.
        assert specialised <= ({"L"} if kernel.fn.__name__ in ("order_bc", "merge_bc") else set()), kernel.fn.__name__


def test_training_and_evaluation_share_the_forward() -> None:
    """On an H200 the first evaluation after training compiled for 8.4 s what differed in one store."""
    parameters = {p.name: p for p in walks.walk_forward.params}
    for name in ("save", "resume"):
        assert parameters[name].do_not_specialize and not parameters[name].is_constexpr
    constants = {p.name for p in walks.walk_forward.params if p.is_constexpr}
    assert constants == set(FORWARD)

"""Runs the Triton backend under TRITON_INTERPRET=1 and prints its errors as JSON; started by test_triton_scan.py.

A process of its own: the variable decides how Triton's functions are made when they are imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ops import ConvAct, NormGate, add_shuffled, cross_selective_scan, selective_scan, use_backend
from bench.ops.backends.triton import layout


def beside(name: str) -> Any:
    """A module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = beside("scan_cases")

# Gradients take the interpreter long. These have each path once: with and without D, bias and softplus, one position,
# padded states, groups, tails; of the others only an output is computed, but with --long.
WHOLE = ("b3g1d5n7l1", "b2g1d6n4l17_raw", "x_raw_large_b1g1d3n4l20")
CUT = ("b2g2d4n3l33_mixed", "b1g1d3n5l65_noD_raw")
PREFIX = 37

# batch, height, width, channels, states, rank: one pixel, primes, tails of blocks and tiles, one state, high rank
# What a GPU runs for bfloat16: several states and one, step sizes of fused and of high rank, tails of blocks and tiles
LANES = [(1, 3, 6, 20, 4, 3), (1, 3, 6, 33, 1, 9), (1, 3, 6, 5, 1, 2)]
CROSS = [(1, 1, 1, 5, 1, 1), (1, 3, 5, 6, 3, 2), (1, 2, 9, 33, 1, 6), (1, 1, 37, 3, 2, 1), (1, 4, 4, 7, 4, 9)]


def run_fixture(name: str, backend: str) -> dict[str, float]:
    case = cases.load_case(name)
    inputs = {k: case[k].clone().requires_grad_() for k in cases.INPUTS if k in case}
    out = selective_scan(**inputs, delta_softplus=bool(case["delta_softplus"]), backend=backend)
    out.backward(case["grad_out"])
    found = {"out": out.detach()} | {f"grad_{k}": t.grad for k, t in inputs.items()}
    return {k: cases.rel_to_max(t, case[k]) for k, t in found.items()}


def begin_of_fixture(name: str) -> dict[str, float]:
    """The output over the first positions: whole chunks and a tail. No output depends on what follows it."""
    case = cases.load_case(name)
    inputs = {k: case[k] for k in cases.INPUTS if k in case}
    inputs |= {k: inputs[k][..., :PREFIX].contiguous() for k in ("u", "delta", "B", "C")}
    out = selective_scan(**inputs, delta_softplus=bool(case["delta_softplus"]), backend="triton")
    return {"out": cases.rel_to_max(out, case["out"][..., :PREFIX])}


def cross(inputs: dict[str, Tensor], grad: Tensor, backend: str | None, directions: tuple[int, ...]) -> list[Tensor]:
    leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
    if backend is None:
        y = cases.naive_cross(*leaves.values(), directions)
    else:
        y = cross_selective_scan(**leaves, directions=directions, backend=backend)
    y.backward(grad.to(y.dtype))
    return [y.detach().cpu(), *(t.grad.cpu() for t in leaves.values())]


def cross_errors(
    sizes: tuple[int, ...], dtype: torch.dtype, directions: tuple[int, ...] = (0, 1, 2, 3), device: str = "cpu"
) -> dict[str, list[float]]:
    """By tensor: the errors of Triton and of the PyTorch backend against float64, both in dtype."""
    inputs = {k: t.to(dtype) for k, t in cases.cross_inputs(*sizes, k=len(directions)).items()}
    grad = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth = cross({k: t.double() for k, t in inputs.items()}, grad.double(), None, directions)
    inputs, grad = {k: t.to(device) for k, t in inputs.items()}, grad.to(device)
    mine, plain = (cross(inputs, grad, b, directions) for b in ("triton", "reference"))
    names = ("y", *cases.CROSS_NAMES)
    rows = zip(names, mine, plain, truth, strict=True)
    return {n: [cases.rel_to_max(a, t), cases.rel_to_max(b, t)] for n, a, b, t in rows}


def cut_fixture(name: str) -> dict[str, float]:
    """A fixture with every sequence cut into segments of one chunk."""
    before = layout.processors
    layout.processors = lambda device: 1 << 20
    try:
        return run_fixture(name, "triton")
    finally:
        layout.processors = before


def fused_errors(
    call: Callable[..., Tensor], parameters: Sequence[Tensor], inputs: Sequence[Tensor], half: bool = False
) -> list[list[float]]:
    """Of the result and every gradient: errors against float64, of the fused operator and of PyTorch's."""
    found = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), (None, torch.float64)):
        for p in parameters:
            p.data, p.grad = p.data.to(dtype), None
        leaves = [t.to(dtype, copy=True)[..., t.shape[-1] // 2 if half else 0 :].requires_grad_() for t in inputs]
        with use_backend(backend):
            y = call(*leaves)
        y.backward(torch.sin(torch.arange(y.numel(), dtype=dtype, device=y.device)).view_as(y))
        found.append([y.detach(), *(t.grad for t in (*leaves, *parameters))])
    return [[cases.rel_to_max(a, t), cases.rel_to_max(b, t)] for a, b, t in zip(*found, strict=True)]


def fused(device: str = "cpu") -> dict[str, list[list[float]]]:
    """Norms of rows that are apart (halves of an even width), tails of tiles, a gate; activations; the shuffle."""
    torch.manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    results = {}
    for d, gated in ((74, False), (37, True), (5, True)):
        norm = NormGate(d // 2 if d % 2 == 0 else d).to(device)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        x = [randn(2, 11, 7, d) for _ in range(2 if gated else 1)]
        results[f"norm {d}"] = fused_errors(norm, [norm.weight, norm.bias], x, half=d % 2 == 0)
    for silu in (True, False):
        conv = ConvAct(5, 5, 3, silu=silu, padding=1, groups=5).to(device)
        results[f"conv {silu}"] = fused_errors(conv, [conv.weight, conv.bias], [randn(2, 4, 6, 5)])
    odd = [randn(2, 3, 3, 6), randn(2, 3, 3, 3), randn(2, 3, 3, 3)]
    results["shuffle"] = fused_errors(add_shuffled, [], odd)
    return results


def patch_once() -> None:
    """Let the interpreter replace its language once a module: done at each call of a function it is a third of all."""
    from triton.runtime import interpreter

    seen: set[str] = set()

    def call(self: Any, *args: Any, **named: Any) -> Any:
        if self.fn.__module__ not in seen:
            seen.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **named)

    interpreter.InterpretedFunction.__call__ = call


def main() -> None:
    torch.set_num_threads(1)
    patch_once()
    if "--long" in sys.argv:
        print(json.dumps({"fixtures": {n: run_fixture(n, "triton") for n in cases.case_names() if n not in WHOLE}}))
        return
    results = {
        "fixtures": {n: run_fixture(n, "triton") if n in WHOLE else begin_of_fixture(n) for n in cases.case_names()},
        "cut": {n: cut_fixture(n) for n in CUT},
        "cross": {str(s): cross_errors(s, torch.float32) for s in CROSS},
        "fused": fused(),
        "directions": {str(i): cross_errors((1, 3, 4, 2, 2, 1), torch.float32, i) for i in ((3,), (1, 2))},
    }
    emulation = beside("lanes_emulated")
    with emulation.rounding():
        results["half"] = {str(t)[6:]: cross_errors((1, 3, 5, 6, 3, 2), t) for t in (torch.bfloat16, torch.float16)}
        with emulation.emulated():
            results["lanes"] = {str(s): cross_errors(s, torch.bfloat16) for s in LANES}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""MACs and FLOPs of one forward pass, by two independent counters that must agree.

fvcore traces the model and counts by JIT operator; torch's FlopCounterMode watches the dispatcher. Each is blind where
the other sees (fvcore has no formula for fused attention, torch for custom autograd functions), so both run, both
get the formulas they lack, and a disagreement above 0.5 % or an operator that nobody counts is an error.

Units: one MAC is one multiply-add; FLOPs are 2 per MAC. ``macs_g`` holds convolutions, matrix products, attention and
scans only. Norms and elementwise work are reported beside it in operations, never added to it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from bench.measure import flop_ops

if TYPE_CHECKING:
    import torch

FORMULA_VERSION = 1  # raise when any formula or category changes: figures of different versions are not comparable
TOLERANCE = 0.005


class FlopsError(RuntimeError):
    """An operator is unknown to the counters, or the two counters disagree."""


def count(model: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Count one forward pass of ``model`` in evaluation mode.

    Args:
        model: any module that maps one image tensor to one output; it is left as it was.
        shape: input shape (1, channels, height, width); counts are per call, so use batch 1 for counts per image.

    Returns:
        ``macs_g``, ``flops_g`` (10^9; 2 FLOPs per MAC), ``macs_by_operator``, ``params``, ``activations_m`` (10^6
        elements written by the counted operators; attention as its two products), ``norm_ops_g``,
        ``elementwise_ops_g``, ``counted_operators``, ``zero_cost_operators``, ``uncounted_operators`` (always empty on
        return), ``flops_formula_version``, ``macs_g_torch``, ``macs_disagreement_rel``.

    Raises:
        FlopsError: an operator is neither counted nor reviewed as zero-cost, or the counters differ by over 0.5 %.
    """
    training = model.training
    model.eval()
    try:
        with _no_fused_encoder():
            traced = count_fvcore(model, shape)
            dispatched = count_torch(model, shape)
    finally:
        model.train(training)
    unknown = traced["unknown"] + dispatched["unknown"]
    if unknown:
        raise FlopsError(
            f"{flop_ops.operator_list(unknown)}: neither counted nor on the reviewed zero-cost list. Give it a formula "
            "with torch.utils.flop_counter.register_flop_formula (a torch.library operator; an autograd.Function must "
            "become one), or add it to bench/measure/flop_ops.py if it multiplies nothing"
        )
    macs, other = traced["macs"], dispatched["macs"]
    difference = abs(macs - other) / max(macs, other, 1)
    if difference > TOLERANCE:
        raise FlopsError(
            f"fvcore counts {macs:,} MACs and torch {other:,} ({difference:.2%} apart, allowed {TOLERANCE:.1%}); "
            f"by operator: fvcore {dict(traced['by_operator'])}, torch {dict(dispatched['by_operator'])}"
        )
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs_g": macs / 1e9,
        "flops_g": 2 * macs / 1e9,
        "activations_m": traced["activations"] / 1e6,
        "norm_ops_g": traced["norm_ops"] / 1e9,
        "elementwise_ops_g": dispatched["elementwise_ops"] / 1e9,
        "macs_by_operator": dict(traced["by_operator"]),
        "counted_operators": sorted(traced["by_operator"]),
        "zero_cost_operators": dict(sorted(dispatched["zero_cost"].items())),
        "uncounted_operators": [],
        "flops_formula_version": FORMULA_VERSION,
        "macs_g_torch": other / 1e9,
        "macs_disagreement_rel": difference,
    }


# ---- fvcore -------------------------------------------------------------------------------------------------------


def analyse(model: torch.nn.Module, shape: tuple[int, ...]) -> tuple[Any, Counter[str]]:
    """Return fvcore's analysis with every handle we have, and a counter of elements written per MAC operator.

    The second is filled while the first is evaluated, so that one trace gives both.
    """
    import torch
    from fvcore.nn import FlopCountAnalysis

    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = parameter.dtype if parameter is not None else torch.float32
    analysis = FlopCountAnalysis(model, (torch.zeros(shape, device=device, dtype=dtype),))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**fvcore_handles())
    written: Counter[str] = Counter()
    for name, handle in list(analysis._op_handles.items()):
        if name.partition("::")[2] not in flop_ops.FVCORE_NORMS | flop_ops.FVCORE_ELEMENTWISE:
            analysis.set_op_handle(name, _counting_elements(name, handle, written))
    return analysis, written


def _counting_elements(name: str, handle: flop_ops.Handle, written: Counter[str]) -> flop_ops.Handle:
    def wrapped(inputs: list[Any], outputs: list[Any]) -> Any:
        if name == "aten::scaled_dot_product_attention":
            written[name] += flop_ops.attention_activations(*map(flop_ops.shape_of, inputs[:3]))
        else:
            written[name] += prod(flop_ops.shape_of(outputs[0]))
        return handle(inputs, outputs)

    return wrapped


def fvcore_handles() -> dict[str, flop_ops.Handle]:
    """All handles beyond fvcore's own: ours, the scans', and every formula registered with torch for a custom op."""
    from torch.utils.flop_counter import flop_registry

    from bench.ops.flops import fvcore_handles as scan_handles

    handles = dict(flop_ops.EXTRA_HANDLES)
    for packet, formula in flop_registry.items():
        name = getattr(packet, "_qualified_op_name", "")
        if name and not name.startswith("aten::"):
            handles[name] = flop_ops.handle_from_formula(formula)
    return handles | scan_handles()


def count_fvcore(model: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Count with fvcore: ``macs``, ``by_operator``, ``norm_ops``, ``activations`` and ``unknown`` operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis, written = analyse(model, shape)
        counts = {name: int(n) for name, n in analysis.by_operator().items()}
    macs = {n: c for n, c in counts.items() if n not in flop_ops.FVCORE_NORMS | flop_ops.FVCORE_ELEMENTWISE}
    unsupported = analysis.unsupported_ops()
    return {
        "macs": sum(macs.values()),
        "by_operator": macs,
        "norm_ops": sum(n for name, n in counts.items() if name in flop_ops.FVCORE_NORMS),
        "activations": sum(written.values()),
        "unknown": Counter({name: n for name, n in unsupported.items() if flop_ops.category(name) is None}),
    }


# ---- torch ----------------------------------------------------------------------------------------------------------


def count_torch(model: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Count with FlopCounterMode on the meta device (no memory, no arithmetic), or on real tensors if it cannot."""
    try:
        return _dispatch(on_meta(model), shape, "meta")
    except (NotImplementedError, RuntimeError) as error:
        logging.getLogger(__name__).debug("counting on real tensors, the meta device cannot: %s", error)
    parameter = next(model.parameters(), None)
    return _dispatch(model, shape, str(parameter.device) if parameter is not None else "cpu")


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """Copy the module tree with every parameter and buffer on the meta device; the weights are not copied."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def _dispatch(model: torch.nn.Module, shape: tuple[int, ...], device: str) -> dict[str, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    import bench.ops  # registers the scan operators and their formulas  # noqa: F401
    from bench.measure.op_recorder import OperatorRecorder

    lacking = lacking_formulas()
    parameter = next(model.parameters(), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    image = torch.zeros(shape, device=device, dtype=dtype)
    seen = OperatorRecorder()
    with seen, FlopCounterMode(display=False, custom_mapping=lacking) as mode:
        model(image)
    by_operator = {str(k).replace("aten.", ""): v // 2 for k, v in mode.get_flop_counts().get("Global", {}).items()}
    counted = {*flop_registry, *lacking}
    elementwise, zero_cost, unknown = 0, Counter[str](), Counter[str]()
    for packet, calls in seen.calls.items():
        if packet in counted:
            continue
        name = packet._qualified_op_name
        kind = flop_ops.category(name)
        if kind is None:
            unknown[name] += calls
            continue
        zero_cost[name] += calls
        if kind in ("elementwise", "pooling"):
            elementwise += seen.written[packet]
        elif kind == "reduction":
            elementwise += seen.read[packet]
    return {
        "macs": sum(by_operator.values()),
        "by_operator": by_operator,
        "elementwise_ops": elementwise,
        "zero_cost": zero_cost,
        "unknown": unknown,
    }


def lacking_formulas() -> dict[Any, Any]:
    """Torch before 2.15 counts attention on the CPU as nothing (pytorch#195460)."""
    import torch
    from torch.utils.flop_counter import flop_registry

    packet = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return {} if packet in flop_registry else {packet: _attention_flops}


def count_training(model: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """MACs of a forward and backward pass an image, by torch's counter; recomputation inside an operator included.

    Args:
        model: any module that maps one image tensor to one output.
        shape: (channels, height, width) of an image. Two images are pushed through, because batch norm cannot be
            trained on a single value a channel.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import bench.ops  # registers the scan operators and their formulas  # noqa: F401

    copied = on_meta(model).train()
    with FlopCounterMode(display=False, custom_mapping=lacking_formulas()) as mode:
        copied(torch.zeros(2, *shape, device="meta")).sum().backward()
    return float(mode.get_total_flops()) / 2 / 2


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * flop_ops.attention_macs(query, key, value)


@contextlib.contextmanager
def _no_fused_encoder() -> Iterator[None]:
    """Switch off the fused transformer-encoder path, one opaque operator that both counters read as nothing."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

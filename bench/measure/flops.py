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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import bench.ops  # noqa: F401  (registers the scan operators and their formulas)
from bench.measure import flop_ops
from bench.measure.op_recorder import OperatorRecorder
from bench.ops.flops import fvcore_handles as scan_handles
from bench.record.types import Fields

FORMULA_VERSION = 1  # raise when any formula or category changes: figures of different versions are not comparable
TOLERANCE = 0.005


class FlopsError(RuntimeError):
    """An operator is unknown to the counters, or the two counters disagree."""


@dataclass(slots=True)
class Counted:
    """What one counter saw: MACs by operator, ``unknown`` operators with their calls, work beside the MACs."""

    by_operator: dict[str, int]
    unknown: Counter[str]
    zero_cost: Counter[str] = field(default_factory=Counter)
    norm_ops: int = 0
    elementwise_ops: int = 0
    activations: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of all operators."""
        return sum(self.by_operator.values())


def count(model: nn.Module, shape: tuple[int, ...]) -> Fields:
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
    if unknown := traced.unknown + dispatched.unknown:
        names = (f"{name} ({'once' if n == 1 else f'{n} times'})" for name, n in sorted(unknown.items()))
        raise FlopsError(
            f"{', '.join(names)}: neither counted nor on the reviewed zero-cost list. Give it a formula "
            "with torch.utils.flop_counter.register_flop_formula (a torch.library operator; an autograd.Function must "
            "become one), or add it to bench/measure/flop_ops.py if it multiplies nothing"
        )
    macs, other = traced.macs, dispatched.macs
    difference = abs(macs - other) / max(macs, other, 1)
    if difference > TOLERANCE:
        raise FlopsError(
            f"fvcore counts {macs:,} MACs and torch {other:,} ({difference:.2%} apart, allowed {TOLERANCE:.1%}); "
            f"by operator: fvcore {traced.by_operator}, torch {dispatched.by_operator}"
        )
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs_g": macs / 1e9,
        "flops_g": 2 * macs / 1e9,
        "activations_m": traced.activations / 1e6,
        "norm_ops_g": traced.norm_ops / 1e9,
        "elementwise_ops_g": dispatched.elementwise_ops / 1e9,
        "macs_by_operator": traced.by_operator,
        "counted_operators": sorted(traced.by_operator),
        "zero_cost_operators": dict(sorted(dispatched.zero_cost.items())),
        "uncounted_operators": [],
        "flops_formula_version": FORMULA_VERSION,
        "macs_g_torch": other / 1e9,
        "macs_disagreement_rel": difference,
    }


def count_fvcore(model: nn.Module, shape: tuple[int, ...]) -> Counted:
    """Count with fvcore and every handle we have; one trace gives the elements written by each operator as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, and the tracer's remarks
        return _traced(model, shape)


def _traced(model: nn.Module, shape: tuple[int, ...]) -> Counted:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, (_blank(model, shape, _device(model)),))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    formulas = {getattr(packet, "_qualified_op_name", ""): formula for packet, formula in flop_registry.items()}
    custom = {name: flop_ops.handle_from_formula(formula) for name, formula in formulas.items() if "aten::" not in name}
    custom.pop("", None)
    analysis.set_op_handle(**flop_ops.EXTRA_HANDLES | custom | scan_handles())
    written: Counter[str] = Counter()
    for name, handle in list(analysis._op_handles.items()):
        if name.partition("::")[2] not in flop_ops.FVCORE_BESIDE:
            analysis.set_op_handle(name, _counting_elements(name, handle, written))
    counts = {name: int(n) for name, n in analysis.by_operator().items()}
    unsupported = analysis.unsupported_ops()
    return Counted(
        {name: n for name, n in counts.items() if name not in flop_ops.FVCORE_BESIDE},
        Counter({name: n for name, n in unsupported.items() if flop_ops.category(name) is None}),
        norm_ops=sum(n for name, n in counts.items() if name in flop_ops.FVCORE_NORMS),
        activations=sum(written.values()),
    )


def _counting_elements(name: str, handle: flop_ops.Handle, written: Counter[str]) -> flop_ops.Handle:
    def wrapped(inputs: flop_ops.Values, outputs: flop_ops.Values) -> int:
        if name == "aten::scaled_dot_product_attention":
            written[name] += flop_ops.attention_activations(*map(flop_ops.shape_of, inputs[:3]))
        else:
            written[name] += prod(flop_ops.shape_of(outputs[0]))
        return handle(inputs, outputs)

    return wrapped


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _blank(model: nn.Module, shape: tuple[int, ...], device: torch.device | str) -> torch.Tensor:
    return torch.zeros(shape, device=device, dtype=next((p.dtype for p in model.parameters()), torch.float32))


def count_torch(model: nn.Module, shape: tuple[int, ...]) -> Counted:
    """Count with FlopCounterMode on the meta device (no memory, no arithmetic), or on real tensors if it cannot."""
    try:
        return _dispatch(on_meta(model), _blank(model, shape, "meta"))
    except (NotImplementedError, RuntimeError) as error:
        logging.getLogger(__name__).debug("counting on real tensors, the meta device cannot: %s", error)
    return _dispatch(model, _blank(model, shape, _device(model)))


def on_meta(model: nn.Module) -> nn.Module:
    """Copy the module tree with every parameter and buffer on the meta device; the weights are not copied."""
    memo: dict[int, object] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def _dispatch(model: nn.Module, image: torch.Tensor) -> Counted:
    lacking = lacking_formulas()
    seen = OperatorRecorder()
    with seen, FlopCounterMode(display=False, custom_mapping=lacking) as mode:
        model(image)
    by_operator = {str(k).replace("aten.", ""): v // 2 for k, v in mode.get_flop_counts().get("Global", {}).items()}
    found = Counted(by_operator, Counter())
    for packet, calls in seen.calls.items():
        if packet in flop_registry or packet in lacking:
            continue
        name = packet._qualified_op_name
        kind = flop_ops.category(name)
        (found.unknown if kind is None else found.zero_cost)[name] += calls
        if kind in ("elementwise", "pooling"):
            found.elementwise_ops += seen.written[packet]
        elif kind == "reduction":
            found.elementwise_ops += seen.read[packet]
    return found


def lacking_formulas() -> dict[OpOverloadPacket, Callable[..., int]]:
    """Torch before 2.15 counts attention on the CPU as nothing (pytorch#195460)."""
    packet = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return {} if packet in flop_registry else {packet: _attention_flops}


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    return 2 * flop_ops.attention_macs(query, key, value)


def count_training(model: nn.Module, shape: tuple[int, ...]) -> float:
    """MACs of a forward and backward pass an image, by torch's counter; recomputation inside an operator included.

    Args:
        model: any module that maps one image tensor to one output.
        shape: (channels, height, width) of an image. Two images are pushed through, because batch norm cannot be
            trained on a single value a channel.
    """
    copied = on_meta(model).train()
    with FlopCounterMode(display=False, custom_mapping=lacking_formulas()) as mode:
        copied(torch.zeros(2, *shape, device="meta")).sum().backward()
    return float(mode.get_total_flops()) / 2 / 2


@contextlib.contextmanager
def _no_fused_encoder() -> Iterator[None]:
    """Switch off the fused transformer-encoder path, one opaque operator that both counters read as nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

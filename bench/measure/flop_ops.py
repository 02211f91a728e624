"""Which operators cost multiply-adds, which are reviewed as costing none, and the handles fvcore lacks.

One MAC is one multiply-add. An operator is *counted* (it has a formula), *zero-cost* (it stands in one of the lists
below, after a look at what it does), or unknown; unknown is an error in :mod:`bench.measure.flops`, never a silent
zero. Names are those of ATen without overload and without the trailing underscore of the in-place form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

Value = Any  # of a traced graph: torch._C.Value, whose type torch does not state
Values = list[Value]  # inputs or outputs of a node
Handle = Callable[[Values, Values], int]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Moves, renames or makes data; computes nothing.
MOVEMENT = _names(
    """
    Int ScalarImplicit _assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense _reshape_alias
    _reshape_copy _to_copy _unsafe_index _unsafe_view alias alpha_dropout arange as_strided assert_async
    atleast_1d bernoulli broadcast_tensors broadcast_to cat channel_shuffle chunk clone col2im concat
    concatenate constant_pad_nd contiguous copy detach diagonal dim dropout empty empty_like empty_permuted
    empty_strided expand expand_as eye feature_dropout fill flatten flip full full_like gather im2col index
    index_put index_select is_nonzero item lift_fresh linspace masked_fill masked_select meshgrid moveaxis
    movedim narrow native_channel_shuffle new_empty new_empty_strided new_full new_ones new_zeros normal numel
    numpy_T ones ones_like pad permute pixel_shuffle pixel_unshuffle rand rand_like randint randn randn_like
    randperm reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad2d reshape reshape_as
    resize resolve_conj resolve_neg roll rot90 scalar_tensor scatter select select_scatter set_ size slice
    slice_scatter split split_with_sizes squeeze stack swapaxes sym_size t take tensor_split tile to transpose
    tril triu type_as unbind unflatten unfold uniform unsafe_chunk unsafe_split unsqueeze view view_as
    view_as_complex view_as_real zero zeros zeros_like
    """
)
# One operation an element of the output (exp, division and GELU are one each): shown apart from MACs.
ELEMENTWISE = _names(
    """
    __and__ __iand__ __ior__ __or__ __rsub__ _conj _log_sigmoid_forward _log_softmax _prelu_kernel _safe_softmax
    _softmax abs add addcdiv addcmul atan2 bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max
    clamp_min clip complex cos cosh cross_entropy_loss cumsum div divide elu eq erf exp exp2 expm1 floor
    floor_divide fmod ge gelu glu greater gt hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le
    leaky_relu lerp less log log10 log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logit
    lt masked_fill_ maximum minimum mish mul multiply native_dropout ne neg negative nll_loss nll_loss2d_forward
    nll_loss_forward nll_loss_nd not_equal polar pow prelu reciprocal relu relu6 remainder round rrelu rsqrt
    rsub selu sigmoid sign silu sin sinh softmax softmin softplus softshrink softsign sqrt square sub subtract
    tan tanh threshold true_divide trunc where
    """
)
# One operation an element of the input.
REDUCTION = _names(
    """
    _standard_gamma all amax amin any argmax argmin argsort count_nonzero cummax cumprod frobenius_norm
    linalg_vector_norm logsumexp max mean median min nansum norm prod sort std std_mean sum topk var var_mean
    """
)
# Counted by fvcore as 1 to 5 operations an element; shown apart from MACs.
NORMALISATION = _names(
    """
    _batch_norm_impl_index _batch_norm_no_update _batch_norm_with_update _fused_rms_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    _weight_norm _weight_norm_interface batch_norm cudnn_batch_norm group_norm instance_norm layer_norm
    local_response_norm miopen_batch_norm native_batch_norm native_group_norm native_layer_norm normalize
    rms_norm weight_norm
    """
)
# Windows of additions or comparisons, and interpolation: no weights, shown as elementwise.
POOLING = _names(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d affine_grid_generator
    avg_pool1d avg_pool2d avg_pool3d embedding fractional_max_pool2d grid_sampler grid_sampler_2d max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_trilinear3d
    """
)
ZERO_COST: dict[str, str] = {
    **dict.fromkeys(MOVEMENT, "movement"),
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
    **dict.fromkeys(REDUCTION, "reduction"),
    **dict.fromkeys(NORMALISATION, "normalisation"),
    **dict.fromkeys(POOLING, "pooling"),
}
# fvcore's own handles that give no MACs: reported as norm or elementwise operations.
FVCORE_NORMS = frozenset({"batch_norm", "group_norm", "layer_norm", "instance_norm"})
FVCORE_BESIDE = FVCORE_NORMS | {"adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "grid_sampler"}


def category(name: str) -> str | None:
    """Return the reviewed category of a zero-cost operator such as ``aten::add_``, or None if it is not reviewed."""
    space, _, base = name.replace("::", ".").partition(".")
    if space not in ("aten", "prims", "profiler", "prim"):
        return None
    base = base.partition(".")[0]
    return ZERO_COST.get(base) or ZERO_COST.get(base.rstrip("_") if not base.startswith("__") else base)


# ---- formulas: pure functions of shapes --------------------------------------------------------------------------


def attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """MACs of softmax(Q K^T) V: query (..., S, D), key (..., T, D), value (..., T, E); masks save nothing here."""
    *batch, s, d = query
    return prod(batch) * s * key[-2] * (d + value[-1])


def attention_activations(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Elements of the scores and of the output: what two matrix products would have written."""
    *batch, s, _ = query
    return prod(batch) * s * (key[-2] + value[-1])


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """MACs of an einsum contracted pair by pair from the left, as torch does without opt_einsum.

    A pair costs the product of the sizes of all its letters. A single operand (trace, transpose, sum) costs none.
    """
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation:
        terms, right = _spell_ellipsis(terms, right, shapes)
    size = {letter: n for term, shape in zip(terms, shapes, strict=True) for letter, n in zip(term, shape, strict=True)}
    total, current = 0, set(terms[0])
    for index, term in enumerate(terms[1:], start=2):
        joined = current | set(term)
        total += prod(size[letter] for letter in joined)
        needed = set(right).union(*map(set, terms[index:])) if index < len(terms) else set(right)
        current = joined & needed
    return total


def _spell_ellipsis(terms: list[str], right: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """Write ``...`` out as upper-case letters from the right, one for each dimension that it stands for."""
    spare = [c for c in "ZYXWVUTSRQ" if not any(c in t for t in terms)]
    extra = [len(s) - len(t.replace("...", "")) if "..." in t else 0 for t, s in zip(terms, shapes, strict=True)]
    spelt = [
        t.replace("...", "".join(reversed(spare[:n]))) if "..." in t else t for t, n in zip(terms, extra, strict=True)
    ]
    return spelt, right.replace("...", "".join(reversed(spare[: max(extra)])))


# ---- handles for fvcore -------------------------------------------------------------------------------------------


def shape_of(value: Value) -> list[int]:
    """Shape of a traced value; empty for what is no tensor."""
    return list(value.type().sizes()) if value.isCompleteTensor() else []


def _attention(inputs: Values, outputs: Values) -> int:
    return attention_macs(*map(shape_of, inputs[:3]))


def _matmul(inputs: Values, outputs: Values) -> int:
    """With broadcasting: every output element sums over the inner dimension."""
    return prod(shape_of(outputs[0])) * shape_of(inputs[0])[-1]


def _einsum(inputs: Values, outputs: Values) -> int:
    return einsum_macs(inputs[0].toIValue(), [shape_of(v) for v in inputs[1].node().inputs()])


def _added_product(inputs: Values, outputs: Values) -> int:
    return prod(shape_of(outputs[0])) * shape_of(inputs[1])[-1]


def _summed_batch_product(inputs: Values, outputs: Values) -> int:
    a, b = shape_of(inputs[1]), shape_of(inputs[2])
    return prod(a) * b[-1]


def _bilinear(inputs: Values, outputs: Values) -> int:
    return prod(shape_of(outputs[0])) * prod(shape_of(inputs[2])[1:])


def _convolution_by_name(inputs: Values, outputs: Values) -> int:
    weight, out = shape_of(inputs[1]), shape_of(outputs[0])
    return prod(out) * prod(weight[1:])


def _recurrent(inputs: Values, outputs: Values) -> int:
    """Every weight matrix meets every position once; ``inputs[2]`` (or 3 for an LSTM) lists weights and biases."""
    positions = prod(shape_of(inputs[0])[:2])
    lists = [v.node().inputs() for v in inputs[1:4] if v.node().kind() == "prim::ListConstruct"]
    weights = [shape_of(v) for v in lists[-1]]
    return positions * sum(prod(w) for w in weights if len(w) == 2)


EXTRA_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::matmul": _matmul,
    "aten::einsum": _einsum,
    "aten::baddbmm": _added_product,
    "aten::addmv": _added_product,
    "aten::addbmm": _summed_batch_product,
    "aten::mv": _matmul,
    "aten::dot": _matmul,
    "aten::bilinear": _bilinear,
    "aten::_convolution_mode": _convolution_by_name,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::rnn_relu": _recurrent,
}


def handle_from_formula(formula: Callable[..., int]) -> Handle:
    """Make an fvcore handle (1 per MAC) of a formula registered with torch's counter (2 per MAC)."""

    def handle(inputs: Values, outputs: Values) -> int:
        shapes = [shape_of(v) for v in outputs]
        given = [tuple(shape_of(v)) if v.isCompleteTensor() else v.toIValue() for v in inputs]
        return formula(*given, out_val=shapes[0] if len(shapes) == 1 else shapes) // 2

    return handle

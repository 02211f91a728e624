"""Loading weights from local files into our models: strictly, and never by running a pickle's code.

A public checkpoint is a state dict under other names. ``translate`` maps names and shapes by a family's rules and
refuses anything that does not fit; ``load_pretrained`` reads the file and allows the two changes that fine-tuning
needs: another number of classes (the head stays fresh) and another number of image channels (timm's rule).
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

__all__ = ["fit_ends", "load_pretrained", "read_checkpoint", "rename", "translate"]

# Wrappers that training scripts put around a state dict, looked for in this order.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "network", "weights")
# Prefixes that they, and torch's own wrappers, put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
_COUNTERS = ("total_ops", "total_params")  # what thop leaves in a model
_SHOWN = 5

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
StateDict = dict[str, Tensor]


def rename(key: str, rules: Rules) -> str:
    """Apply every rule (pattern, replacement) to a public key, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _bare(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Drop prefixes that stand before every name, and what operation counters have left."""
    found = {key: value for key, value in state_dict.items() if key.rpartition(".")[2] not in _COUNTERS}
    while prefix := next((p for p in _PREFIXES if found and all(key.startswith(p) for key in found)), ""):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _readings(state_dict: StateDict) -> list[StateDict]:
    """What a checkpoint may mean: all of it, or only the part under one prefix (beside a loss's own weights)."""
    found = [_bare(state_dict)]
    for prefix in _PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in found[0].items() if key.startswith(prefix)}
        if 0 < len(part) < len(found[0]):
            found.append(_bare(part))
    return found


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def translate(state_dict: Mapping[str, Tensor], model: nn.Module, rules: Rules) -> StateDict:
    """Map a public state dict, or our own, onto ``model``'s keys and shapes.

    Raises:
        ValueError: naming keys that are missing, that the model does not know, or whose shapes do not fit. Names
            are those of ``state_dict`` where it has them, else the model's.
    """
    expected = model.state_dict()
    given = _bare(state_dict)
    ours = {key if key in expected else rename(key, rules): key for key in given}
    problems = []
    if odd := [public for key, public in ours.items() if key not in expected]:
        problems.append(f"keys that {type(model).__name__} does not have: {_listed(odd)}")
    if missing := [key for key in expected if key not in ours]:
        problems.append(f"missing keys: {_listed(missing)}")
    found: StateDict = {}
    wrong = []
    for key in expected.keys() & ours.keys():
        value, shape = given[ours[key]], expected[key].shape
        # Public scans keep (k*d,n) and (k*d) where ours keep (k,d,n) and (k,d): the same memory.
        if key.endswith((".A_log", ".D")) and value.dim() == len(shape) - 1 and value.numel() == shape.numel():
            value = value.reshape(shape)
        if value.shape != shape:
            wrong.append(f"{ours[key]} is {tuple(value.shape)}, the model's {tuple(shape)}")
        found[key] = value
    if wrong:
        problems.append(f"shapes: {_listed(sorted(wrong))}")
    if problems:
        raise ValueError("the checkpoint does not fit the model; " + "; ".join(problems))
    return found


def read_checkpoint(path: str | Path) -> StateDict:
    """Read a state dict from .safetensors, or from a .pth / .pt file that holds only tensors and plain data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a pickle would need more than ``weights_only=True`` allows, or there is no state dict in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path} is no safetensors file: {_first_line(error)}") from error
    try:
        with torch.serialization.safe_globals(_PLAIN):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is refused: {_why_refused(path, error)}") from error
    while isinstance(content, dict):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"checkpoint {path} holds no state dict (names to tensors), at its top or under {_WRAPPERS}")
    return content


# Plain data that training scripts put beside the weights: safe to make, they hold what they are given.
_PLAIN: list[Any] = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
_SCALAR = np.float64(0).__reduce__()[0]  # numpy's own maker of single numbers
_PLAIN += [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]


def _why_refused(path: Path, error: Exception) -> str:
    """Say which code the pickle asks for, and what to do instead."""
    try:
        with torch.serialization.safe_globals(_PLAIN):
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no checkpoint at all, or one of an old form
        asked = []
    if asked:
        return (
            f"beside tensors it holds objects of code ({_listed(sorted(asked))}), and a pickle can run any; where it "
            "was made, save the weights alone: torch.save(model.state_dict(), ...) or safetensors"
        )
    return (
        f"it is not a file of tensors and plain data ({_first_line(error)}). A pickle can run any code; if you trust "
        "its source, convert it to .safetensors outside this tool"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fit_ends(state_dict: StateDict, model: nn.Module, classifiers: Sequence[str], stems: Sequence[str]) -> StateDict:
    """Adapt what fine-tuning changes: a classifier for other classes stays fresh, a stem for other channels is folded.

    A stem's weights for 3 channels are summed for 1 (timm's rule), so that a grey image gives what its three equal
    channels would give.

    Args:
        state_dict: Weights under public or own names.
        model: The network, with ``in_chans`` and timm's ``pretrained_cfg["classifier"]``.
        classifiers: Names under which ``state_dict`` may hold the classifier.
        stems: Names under which it may hold the first convolution.
    """
    fresh = model.state_dict()
    own: str = model.pretrained_cfg["classifier"]  # type: ignore[index, assignment]
    fitted = {}
    for key, value in state_dict.items():
        module, _, leaf = key.rpartition(".")
        if module in classifiers:
            if f"{own}.{leaf}" not in fresh:  # a model without classifier takes none
                continue
            head = fresh[f"{own}.{leaf}"]
            value = value if value.shape == head.shape else head
        elif module in stems and value.dim() == 4 and value.shape[1] == 3:
            value = adapt_input_conv(int(model.in_chans), value)  # type: ignore[arg-type]
        fitted[key] = value
    if classifiers and not any(key.rpartition(".")[0] in classifiers for key in state_dict):
        fitted |= {key: fresh[key] for key in (f"{own}.weight", f"{own}.bias") if key in fresh}
    return fitted


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    filter_fn: Callable[[StateDict, nn.Module], StateDict],
    classifiers: Sequence[str],
    stems: Sequence[str],
) -> None:
    """Load a checkpoint file into ``model``: strictly, after :func:`fit_ends`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: naming the file and what in it does not fit; see :func:`read_checkpoint` and :func:`translate`.
    """
    content = read_checkpoint(path)
    classifier = str(model.pretrained_cfg["classifier"])  # type: ignore[index]
    head = model.state_dict().get(f"{classifier}.weight")
    before = None if head is None else head.clone()
    refused: Exception | None = None
    for part in _readings(content):
        try:
            fitted = filter_fn(fit_ends(part, model, classifiers, stems), model)
            model.load_state_dict(translate(fitted, model, ()))
            break
        except (ValueError, RuntimeError) as error:
            refused = refused or error
    else:
        said = " ".join(str(refused).split())
        raise ValueError(f"checkpoint {path}: {said}") from refused
    if len(part) < len(content):
        print(f"checkpoint {path}: {len(content) - len(part)} of its {len(content)} tensors are no part of the model")
    if before is not None and torch.equal(before, model.state_dict()[f"{classifier}.weight"]):
        print(f"checkpoint {path}: it has no classifier of {len(before)} classes; the model's starts fresh")

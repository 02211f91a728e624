"""Cross-dataset transfer: which classes of two datasets meet, and what is evaluated where. Torch-free.

``SOURCE:TARGET[,TARGET]`` asks how a model trained on SOURCE does on the test splits of other sets. A score is made
over the shared classes: those of the target which the model has learnt, under whatever name. Where names differ, a
map says so: built in for some pairs (:data:`MAPS`, either direction), else a section of bench.toml::

    [transfer."pneumoniamnist:folder:wards"]
    normal = "clear"                      # class of the source = class of the target
    pneumonia = ["bacterial", "viral"]    # or several, taken together

Images of target classes that are not in the map are left out, and the model's answers are renormalised over those that
are. Two datasets with the same class names need no map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from bench.record.cells import AccuracyCell, Cell, SharedClass, TransferCell, TrialCell
from bench.record.paths import weights_path
from bench.registry import DatasetInfo, nearest, split_names

Map = Mapping[str, str | Collection[str]]

# Only what names or definitions make certain. PAD-UFES-20 files Bowen's disease, HAM10000's "intraepithelial
# carcinoma", under SCC, so SCC stays out; seborrheic keratoses are the larger part of "benign keratosis-like lesions".
MAPS: Mapping[tuple[str, str], Map] = {
    ("pneumoniamnist", "cpn_xray"): {"normal": "normal", "pneumonia": "pneumonia"},
    ("dermamnist", "pad_ufes_20"): {
        "actinic keratoses and intraepithelial carcinoma": ("ACK", "actinic keratosis"),
        "basal cell carcinoma": ("BCC", "basal cell carcinoma"),
        "benign keratosis-like lesions": ("SEK", "seborrheic keratosis"),
        "melanoma": ("MEL", "melanoma"),
        "melanocytic nevi": ("NEV", "nevus"),
    },
}
SCHEMES = ("folder", "csv", "hf")


class TransferError(ValueError):
    """A transfer that cannot be; the message says why and what to write."""


def parse(text: str) -> tuple[str, list[str]]:
    """Split ``SOURCE:TARGET[,TARGET]``; either may be a scheme as ``folder:PATH``."""
    path = r"(?:[^:\[\]]|\[[^\]]*\])+"
    match = re.fullmatch(rf"\s*((?:(?:{'|'.join(SCHEMES)}):)?{path}):(.+)", text)
    targets = split_names(match[2]) if match else []
    if not match or not targets:
        raise TransferError(
            f"transfer {text!r}: write SOURCE:TARGET or SOURCE:TARGET,TARGET, as organamnist:organcmnist"
        )
    return match[1].strip(), targets


def shared_classes(
    source: DatasetInfo, target: DatasetInfo, own: Map | None = None, where: str = ""
) -> tuple[SharedClass, ...]:
    """Decide which classes of two datasets meet.

    Args:
        source: what was trained on.
        target: what is looked at.
        own: the user's map, source class -> target class or classes.
        where: the place of that map, for messages.

    Returns:
        The shared classes, in the source's order, at least two; for a multi-label task at least one.

    Raises:
        TransferError: no map is known, or one that does not fit the classes.
    """
    pair = f"{source.name}:{target.name}"
    if (source.task == "multi-label") != (target.task == "multi-label"):
        raise TransferError(f"transfer {pair}: {source.task} answers cannot be scored as {target.task}")
    if own is not None:
        found = _read(own, source, target, where or f"the map of {pair}")
    elif (source.name, target.name) in MAPS:
        found = _read(_spelt(MAPS[source.name, target.name], target), source, target, f"the built-in map of {pair}")
    elif (target.name, source.name) in MAPS:
        turned = _read(_spelt(MAPS[target.name, source.name], source), target, source, f"the built-in map of {pair}")
        found = tuple(SharedClass(name, there, here) for name, here, there in turned)
    elif {_plain(name) for name in source.classes} == {_plain(name) for name in target.classes}:
        found = _read({name: name for name in source.classes}, source, target, f"the classes of {pair}")
    else:
        raise TransferError(
            f"transfer {pair}: their classes differ ({_quoted(source.classes)}; {_quoted(target.classes)}); say in "
            f'bench.toml which meet: a section [transfer."{pair}"] with lines "class of {source.name}" = "class of '
            f'{target.name}"'
        )
    if len(found) < (1 if source.task == "multi-label" else 2):
        raise TransferError(f"transfer {pair}: fewer than two classes meet, so there is nothing to tell apart")
    return found


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)  # a name may hold commas


def _plain(name: str) -> str:
    """A class name without case and punctuation: ``NORMAL`` and ``normal`` are one."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


def _spelt(built_in: Map, target: DatasetInfo) -> Map:
    """Of the spellings that a built-in map allows, keep the one that the target uses."""
    known = {_plain(name) for name in target.classes}
    return {
        name: [spelling for spelling in ([value] if isinstance(value, str) else value) if _plain(spelling) in known][:1]
        for name, value in built_in.items()
    }


def _read(given: Map, source: DatasetInfo, target: DatasetInfo, where: str) -> tuple[SharedClass, ...]:
    """Check a map against the classes; source classes with the same targets are one shared class."""
    together: dict[tuple[str, ...], list[str]] = {}
    for left, right in given.items():
        names = [right] if isinstance(right, str) else list(right)
        if not names:
            raise TransferError(f"{where}: {left!r} meets no class of {target.name}")
        here = _class(left, source, where)
        there = tuple(sorted({_class(name, target, where) for name in names}, key=target.classes.index))
        together.setdefault(there, []).append(here)
    seen: dict[str, tuple[str, ...]] = {}
    for there in together:
        for name in there:
            if name in seen:
                raise TransferError(
                    f"{where}: {target.name}'s class {name!r} stands in two sets: {seen[name]} and {there}"
                )
            seen[name] = there
    found = [SharedClass(" + ".join(here), tuple(here), there) for there, here in together.items()]
    return tuple(sorted(found, key=lambda shared: source.classes.index(shared.source[0])))


def _class(name: str, info: DatasetInfo, where: str) -> str:
    for known in info.classes:
        if _plain(known) == _plain(name):
            return known
    raise TransferError(
        f"{where}: {info.name} has no class {name!r}{nearest(name, info.classes)}; it has {_quoted(info.classes)}"
    )


def target_size(target: DatasetInfo, source: AccuracyCell) -> int:
    """Choose the size of the target's images: the source's where it exists, else the nearest larger one."""
    if not target.sizes:
        return source.resolution
    larger = [size for size in target.sizes if size >= source.size]
    return min(larger) if larger else max(target.sizes)


def kept_weights(cells: Mapping[str, Cell], done: Collection[str], keep_all: bool) -> set[str]:
    """Keys whose weights have to lie on disk: of all trainings if ``keep_all``, else of those that a transfer needs.

    Trials are no results, so nobody wants theirs.
    """
    if keep_all:
        return {key for key, cell in cells.items() if isinstance(cell, AccuracyCell) and keeps_weights(cell)}
    return {cell.source_key for key, cell in cells.items() if key not in done and isinstance(cell, TransferCell)}


def keeps_weights(cell: AccuracyCell) -> bool:
    """Whether a Cell makes weights that somebody may want; a vote among neighbours has none."""
    return "neighbours" not in cell.recipe and not isinstance(cell, TrialCell)


def to_train_again(finished: Collection[str], kept: Collection[str], out: Path) -> list[str]:
    """Keys of Cells that are done, but whose weights are wanted and were not kept."""
    return sorted(key for key in set(finished) & set(kept) if not weights_path(out, key).is_file())

"""Information on models and datasets: plain data, torch-free, and what a dataset adapter gives.

:mod:`bench.registry` maps names to them and is where everybody imports them from.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bench.errors import RegistryError as RegistryError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

OptionValue = bool | int | float | str | None  # of a model, as written in brackets
TASKS = ("multi-class", "binary-class", "multi-label", "ordinal-regression")


def nearest(name: str, candidates: Iterable[str], label: str = "did you mean") -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" ({label} {close[0]!r}?)" if close else ""


def counted(n: int, singular: str, plural: str = "") -> str:
    """``1 cell``, ``2 cells``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def resolve(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """Import ``"module:attribute"``; anything else is what it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return resolved


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a model that a variant ``name[key=value]`` may set."""

    default: OptionValue
    choices: tuple[OptionValue, ...] = ()
    help: str = ""


def _runs_everywhere(resolution: int, options: Mapping[str, OptionValue]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known about a model without building it.

    Attributes:
        params: published or exact parameter count at 1,000 classes and 3 channels.
        macs_g_224: published multiply-adds (10^9, one image, 224 x 224), as its paper counts them.
        counted_macs_g_224: the same as this tool counts them, with every product and the scan.
        unsupported: ``(resolution, options) -> reason or None``; decides in the plan what cannot run.
        options: keywords a variant may set. ``None`` accepts any keyword (passed on to the builder).
        group: ``main`` models make up ``all``; parameter-matched ``ablation`` and ``extra`` models are reached by name.
        builder: ``(num_classes, in_chans, img_size, **options) -> nn.Module``, or its ``"module:attribute"``.
        plugin_file: the file that registered it when it is not built in; its bytes enter the Cell's key.
        weights_config: what the hub says of the weights of a ``timm:hf-hub:`` model, in the form of timm's entries.
    """

    name: str
    family: str
    builder: str | Callable[..., Any]
    summary: str = ""
    paper: str = ""
    licence: str = ""
    params: int | None = None
    macs_g_224: float | None = None
    counted_macs_g_224: float | None = None
    published_note: str = ""
    group: str = "main"
    options: Mapping[str, Option] | None = field(default_factory=dict)
    unsupported: Callable[[int, Mapping[str, OptionValue]], str | None] = _runs_everywhere
    origin: str = ""
    plugin_file: str | None = None
    weights_config: Any = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The aliases that hold this model: its family, for a main one."""
        return (self.family,) if self.group == "main" else ()

    def build(self, num_classes: int, in_chans: int, img_size: int, **options: object) -> nn.Module:
        """Import the builder if needed and build the network."""
        build = resolve(self.builder)
        model: nn.Module = build(num_classes=num_classes, in_chans=in_chans, img_size=img_size, **options)
        return model


class RemoteFile(NamedTuple):
    """A file a dataset needs on disk; ``bundled`` is the copy inside the package, where there is one."""

    name: str
    url: str
    md5: str
    size_bytes: int | None = None
    bundled: Path | None = None

    def locate(self, root: Path) -> Path:
        """Return the path under ``root``, or the bundled copy where ``root`` has no such file."""
        path = root / self.name
        return self.bundled if self.bundled and not path.exists() else path


class Split(NamedTuple):
    """One split: ``images`` uint8 (N, H, W, C); ``labels`` int64 (N,), or (N, L) in {0, 1} for multi-label."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class LazySplit:
    """One split whose images are decoded one by one, each in its own size.

    The cache resizes them to the size asked for by the Cell's resize rule, in several processes.

    Attributes:
        labels: as in :class:`Split`; their number is the number of images.
        read: gives image ``i`` as uint8 (H, W, C), C as in the dataset's info. It is pickled, so it is a function of a
            module, a ``functools.partial`` of one, or an object with ``__call__``. Raises ValueError or OSError naming
            the file.
        names: of each image: its path relative to the data root, for messages and the split file.
        groups: what must not be torn apart by a split (patient, lesion), or "" where unknown.
        columns: what else the source's table says of each image (sex, age, view), by column.
    """

    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    names: Sequence[str] = ()
    groups: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """One split read block by block in its order, so that it never lies in memory as a whole.

    Attributes:
        labels: as in :class:`Split`.
        blocks: starts a new pass; gives uint8 (n, size, size, C), any n > 0 a block.
        names, groups: as in :class:`LazySplit`.
    """

    labels: np.ndarray
    blocks: Callable[[], Iterator[np.ndarray]]
    names: Sequence[str] = ()
    groups: Sequence[str] = ()


class Adapter(Protocol):
    """Locates, verifies and decodes one source. Constructed with its ``DatasetInfo``."""

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        """Files needed under the data root for images of ``size`` pixels; empty if nothing is read from disk."""

    def fingerprint(self, size: int, root: Path | None) -> str:
        """A string that changes whenever the decoded data would; reads no images where checksums are published."""

    def load(self, size: int, root: Path | None) -> Mapping[str, Split | LazySplit | BlockSplit]:
        """Give the splits ``train``, ``val`` and ``test``: decoded, or in a form that decodes them piece by piece."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noticed about a dataset's files, rows or pixels that a reader of a score should know.

    Attributes:
        text: one sentence, with the count.
        count: how many images, rows or patients it is about; 0 where it is about the whole.
        examples: names or lines of some of them.
        severity: ``leak`` (test images or patients are known from training), ``warning`` or ``note``.
    """

    text: str
    count: int = 0
    examples: tuple[str, ...] = ()
    severity: str = "warning"


class SplitByImage(Finding):
    """Splits were drawn without regard to patients, whose images may lie on both sides."""


class Positive(NamedTuple):
    """The class of a two-class task that a sensitivity is of: its name, its number, and whether that is a guess."""

    name: str
    number: int
    guessed: bool


_NEGATIVE = re.compile(
    r"(no|non|not|without)([ _-].*)?|no[nt]?(tumou?r|cancer|disease|finding|lesion|polyp|nodule|covid|pneumonia)\w*|0|"
    r"false|normal|negative|neg|healthy|uninfected|unaffected|controls?|benign|absent|none|clear",
    re.I,
)


def positive_of(task: str, classes: Sequence[str], declared: str = "") -> Positive | None:
    """The positive class of a two-class task; None for other tasks.

    Where it is not declared, it is the one beside a class that is named as negatives are (``no_icu``, ``normal``), else
    the last.
    """
    if task != "binary-class" or len(classes) != 2:
        return None
    if declared in classes:
        return Positive(declared, classes.index(declared), False)
    negative = [bool(_NEGATIVE.fullmatch(name)) for name in classes]
    negative[1] |= classes[1].lower() in (f"no{classes[0]}".lower(), f"non{classes[0]}".lower())
    index = 0 if negative == [False, True] else 1
    return Positive(classes[index], index, True)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known about a dataset without reading it.

    Attributes:
        sizes: side lengths in pixels it exists in; empty if images are made at whatever resolution is asked for.
        varied: images have sizes of their own; they are brought to the resolution when they are decoded, by the
            Cell's resize rule (``sizes`` is empty then).
        bundled: those of ``sizes`` whose file ships inside the package.
        least_size: of images that are made, the smallest side they can be made at.
        mirror_safe: a left-right flip keeps every label (false for left/right organs, for example).
        traps: known defects that a reader of a score should know.
        findings: what a look at a source's names and headers has found; ``traps`` repeats the texts.
        adapter: the :class:`Adapter` class, or its ``"module:attribute"``.
        positive: of a two-class task, the class that is looked for (malignant); "" where it is guessed.
        columns: what else its table says of each image, kept with the predictions.
        subgroups: those of ``columns`` by which results are also reported.
        variant: ``"module:function"`` from this info and the options in brackets behind the name (key to text) to the
            info of that variant; "" where the dataset has no options.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    channels: int
    adapter: str | Callable[[DatasetInfo], Adapter]
    sizes: tuple[int, ...] = ()
    varied: bool = False
    bundled: tuple[int, ...] = ()
    least_size: int = 0
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    modality: str = ""
    summary: str = ""
    licence: str = ""
    citation: str = ""
    source: str = ""
    groups: tuple[str, ...] = ()
    mirror_safe: bool = False
    traps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    positive: str = ""
    columns: tuple[str, ...] = ()
    subgroups: tuple[str, ...] = ()
    variant: str = ""
    origin: str = ""
    plugin_file: str | None = None

    @property
    def positive_class(self) -> Positive | None:
        """The class that sensitivity is of; None but for two classes."""
        return positive_of(self.task, self.classes, self.positive)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise RegistryError(f"dataset {self.name!r}: task {self.task!r} is none of {', '.join(TASKS)}")
        if self.positive and (self.task != "binary-class" or self.positive not in self.classes):
            classes = ", ".join(self.classes)
            raise RegistryError(
                f"dataset {self.name!r}: positive={self.positive} is none of two classes; its classes are {classes}"
                + nearest(self.positive, self.classes)
            )
        if self.varied and self.sizes:
            raise RegistryError(f"dataset {self.name!r}: images of varied size have no list of sizes")

    def open(self) -> Adapter:
        """Import the adapter if needed and construct it."""
        adapter: Adapter = resolve(self.adapter)(self)
        return adapter

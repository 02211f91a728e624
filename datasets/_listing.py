"""What every source of single images comes down to: a list of names, labels, patients and splits, and a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import _images, _splits
from bench.datasets._archives import Member, Tree
from bench.registry import DatasetInfo, LazySplit, RegistryError, SourceName, nearest

Array = np.ndarray[Any, Any]

_HEADERS = 64  # images that are asked whether they are gray
_COMMON = ("channels", "mirror", "seed")


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a source.

    Attributes:
        names: of each image: its path relative to the source.
        labels: int64 (N,), or (N, L) in {0, 1}.
        splits: 0, 1 or 2 for train, val and test.
        groups: patient or lesion of each image, or "".
        traps: what was noticed on the way and a reader of a score should know.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Array
    splits: Array
    groups: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()

    def split(self, read: Callable[[Array], Callable[[int], Array]]) -> dict[str, LazySplit]:
        """Give the three splits; ``read`` makes a reader of the images with these indices."""
        made = {}
        for index, name in enumerate(_splits.SPLITS):
            members = np.flatnonzero(self.splits == index)
            groups = tuple(self.groups[i] for i in members) if self.groups else ()
            made[name] = LazySplit(self.labels[members], read(members), tuple(self.names[i] for i in members), groups)
        return made


@dataclass(frozen=True, slots=True)
class FileReader:
    """Decodes image ``i`` of some files; pickled into the processes that decode."""

    folder: str
    names: tuple[str, ...]
    channels: int
    mix: bool = False

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        name = self.names[index]
        pixels: Array = _images.decode(Path(self.folder, name), name, self.channels, self.mix)
        return pixels


@dataclass(frozen=True, slots=True)
class MemberReader:
    """Decodes image ``i`` of some members of a tree, which it keeps open where it was made."""

    members: tuple[Member, ...]
    channels: int
    mix: bool = False
    tree: Tree | None = field(default=None, compare=False)

    def __call__(self, index: int) -> Array:
        """Return image ``index``, uint8 (H, W, channels)."""
        member = self.members[index]
        pixels: Array = _images.decode(member.read(), member.path, self.channels, self.mix)
        return pixels

    def __reduce__(self) -> tuple[Any, ...]:
        return MemberReader, (self.members, self.channels, self.mix)


def channels_of(sources: Sequence[Any], opened: Callable[[Any], tuple[Path | bytes, str]]) -> int:
    """Return 1 if a sample of ``sources``, evenly spread, says in its headers that it is gray, else 3."""
    step = max(1, len(sources) // _HEADERS)
    found: int = _images.channels_of(opened(source) for source in sources[::step])
    return found


# --- names and facts -------------------------------------------------------------------------------------------


def checked_options(source: SourceName, known: Iterable[str]) -> dict[str, str]:
    """Return the options of a source's name.

    Raises:
        RegistryError: one is unknown, with the nearest right one, or has an impossible value.
    """
    have = (*known, *_COMMON)
    options = dict(source.options)
    for key, value in options.items():
        said = f"dataset {str(source)!r}: {key}={value}"
        if key not in have:
            raise RegistryError(f"{said}: no such option{nearest(key, have)}; options: {', '.join(have)}")
        if key == "channels" and value not in ("1", "3"):
            raise RegistryError(f"{said}: channels are 1 or 3")
        if key == "mirror" and value not in ("true", "false"):
            raise RegistryError(f"{said}: write true if a left-right flip keeps every label, else false")
        if key == "seed" and not value.isdecimal():
            raise RegistryError(f"{said}: a seed is a whole number")
    return options


def info_of(
    source: SourceName, listing: Listing, channels: int, adapter: str, summary: str, task: str = ""
) -> DatasetInfo:
    """Write down what is known of a listed source."""
    count = [int((listing.splits == index).sum()) for index in range(3)]
    if not task:
        task = "multi-label" if listing.labels.ndim == 2 else task_of(listing.classes)
    options = dict(source.options)
    return DatasetInfo(
        name=str(source),
        task=task,
        classes=listing.classes,
        channels=int(options.get("channels", channels)),
        adapter=adapter,
        varied=True,
        n_train=count[0],
        n_val=count[1],
        n_test=count[2],
        summary=summary,
        source=source.place,
        mirror_safe=options.get("mirror") == "true",
        traps=listing.traps,
    )


def task_of(classes: Sequence[str]) -> str:
    """Name the task of images that are each of one class."""
    return "binary-class" if len(classes) == 2 else "multi-class"


def made_here(names: Sequence[str], grouped: bool) -> str:
    """Say that splits were made here, as a trap."""
    how = "by patient" if grouped else "image by image: images of one patient, if there are any, may lie on both sides"
    which = "the splits were" if len(names) == 3 else f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
    return f"{which} made by medbench, {how}"


def same_as_planned(info: DatasetInfo, found: Mapping[str, Any]) -> None:
    """Refuse a source that is no longer what its facts say.

    Raises:
        ValueError: naming what changed.
    """
    for key, value in found.items():
        if getattr(info, key) != value:
            raise ValueError(f"{info.name}: its {key} were {getattr(info, key)} and are {value} now; run again")

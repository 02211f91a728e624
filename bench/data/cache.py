"""One decoded cache for every source, so that all train equally fast and the loop knows one form.

An entry (:mod:`bench.data.cache_entry`) is named by dataset, size, the fingerprint, the resize rule where images
have sizes of their own, and the cache's format. Making one takes little memory however large the set
(:mod:`bench.data.decode`).
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import registry
from bench.data import cache_entry as entries
from bench.data.cache_entry import AnySplit, Entry, Members
from bench.data.files import DataError, MissingFilesError, default_root, preflight
from bench.data.look import SPLITS, Looked
from bench.record.files import replacing
from bench.record.paths import default_cache_dir
from bench.registry import DatasetInfo, Split

Progress = Callable[[dict[str, object]], None]  # events as a worker's Context takes them
MOST_CLASSES = 8  # that a printed dataset names


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """A dataset: its info and its three splits.

    Attributes:
        splits: ``train``, ``val``, ``test``; images uint8 (N, H, W, C), memory-mapped and read-only; labels int64
            (N,), or (N, L) in {0, 1} for multi-label.
        fingerprint: changes whenever the data would.
        folder: where the decoded arrays lie.
    """

    info: DatasetInfo
    size: int
    splits: Mapping[str, Split]
    fingerprint: str
    folder: Path

    def __repr__(self) -> str:
        info = self.info
        side = f", {self.size} px" if self.size else ""
        head = f"{registry.display_name(info.name)}: {info.task}, {len(info.classes)} classes{side}"
        lines = [
            f"  {name:<5}  images uint8 {s.images.shape}, labels {s.labels.shape}" for name, s in self.splits.items()
        ]
        shown = ", ".join(info.classes[:MOST_CLASSES]) + (", ..." if len(info.classes) > MOST_CLASSES else "")
        return "\n".join([head, *lines, f"  classes: {shown}"])

    @property
    def train(self) -> Split:
        """The images to learn from."""
        return self.splits["train"]

    @property
    def val(self) -> Split:
        """The images to choose a model by."""
        return self.splits["val"]

    @property
    def test(self) -> Split:
        """The images to report on, once."""
        return self.splits["test"]

    def members(self, split: str) -> Members:
        """Names and groups (patients) of a split's images; empty where the source has none."""
        return entries.members(self.folder).get(split, Members((), ()))


def load_dataset(
    name: str,
    size: int = 28,
    root: str | Path | None = None,
    cache_dir: str | Path | None = None,
    *,
    resize: str = "bilinear",
    progress: Progress | None = None,
) -> LoadedDataset:
    """Open a dataset by name.

    Args:
        name: as ``bench list datasets`` shows it, or a source: ``folder:PATH``, ``csv:PATH[...]``, ``hf:NAME``.
        size: side length in pixels; one the dataset exists in, or any for generated ones and images of any size.
        root: folder of its files; ``None`` is :func:`bench.data.files.default_root`.
        cache_dir: folder of decoded arrays; ``None`` is :func:`default_cache_dir`.
        resize: how images of any size are brought to ``size``; other sets are left as they are.
        progress: told how far decoding is; ``None`` draws a bar where there is a terminal.

    Raises:
        RegistryError: an unknown name.
        DataError: a file is missing or damaged, or holds something else than the info says.
    """
    info = registry.dataset_info(name, refresh=True)
    folder = Path(cache_dir) if cache_dir else None
    with decode_bar() if progress is None else contextlib.nullcontext(progress) as told:
        entry = open_entry(info, size, Path(root) if root else None, folder, resize=resize, progress=told)
    return LoadedDataset(info, size, entry.splits, entry.fingerprint, entry.folder)


def open_entry(
    info: DatasetInfo,
    size: int,
    root: Path | None = None,
    cache_dir: Path | None = None,
    *,
    resize: str = "native",
    progress: Progress | None = None,
    fingerprint: str | None = None,
) -> Entry:
    """Return the decoded entry of ``info`` at ``size`` pixels, decoding the source at first use.

    Processes may call this at the same time: one decodes, the others wait. A damaged entry is made anew.

    Args:
        info: of the dataset.
        size: side length in pixels.
        root: folder of its files.
        cache_dir: folder of decoded arrays.
        resize: the rule for images of any size (:mod:`bench.data.decode`); without effect on other sets.
        progress: called with ``{"phase": "decoding 3,200 of 100,000 images"}`` and the like.
        fingerprint: what the data are expected to be.

    Raises:
        DataError: the source is missing or damaged (:class:`~bench.data.files.MissingFilesError`, listing the files),
            does not hold what the info says, is not what ``fingerprint`` says, or the cache cannot be written.
    """
    if info.sizes and size not in info.sizes:
        raise DataError(f"{info.name} has no size {size}; it exists in {', '.join(map(str, info.sizes))} pixels")
    folder = cache_dir or default_cache_dir()

    def tell(phase: str, **counts: int) -> None:
        if progress:
            progress({"phase": phase, **counts})

    def decoded(done: int, total: int) -> None:
        tell(f"decoding {done:,} of {total:,} images", decoded=done, decode_total=total)

    try:
        found = info.open().fingerprint(size, Path(root or default_root()))
        if fingerprint is not None and found != fingerprint:
            raise DataError(f"{info.name}: the data changed after the run was planned; run again")
        identity = entries.identity_of(info, size, found, resize)
        place = folder / "decoded" / entries.entry_name(identity)
        entry = entries.read(place, identity)
        if entry is None:
            with entries.only_one(place, lambda: tell("waiting for the images, which another process decodes")):
                entry = entries.read(place, identity)  # another process may have been faster
                if entry is None:
                    entries.write(place, identity, info, load_splits(info, size, root), decoded)
                    entry = entries.read(place, identity)
    except OSError as error:
        raise DataError(
            f"{info.name}: cannot use the cache of decoded images in {folder}: {error.strerror or error}; "
            "set MEDBENCH_CACHE to a folder with room that you may write to"
        ) from error
    if entry is None:
        raise DataError(f"{info.name}: what was just written to {place} reads back damaged; is the disk in order?")
    return entry


def looked_at(
    info: DatasetInfo, size: int, fingerprint: str, resize: str, cache_dir: Path | None = None
) -> Looked | None:
    """What was noticed when a dataset was decoded; None if it has not been. Reads the entry's manifest only."""
    identity = entries.identity_of(info, size, fingerprint, resize)
    place = (cache_dir or default_cache_dir()) / "decoded" / entries.entry_name(identity) / "manifest.json"
    try:
        return Looked.of_json(json.loads(place.read_text(encoding="utf-8"))["look"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_splits(info: DatasetInfo, size: int, root: Path | None) -> dict[str, AnySplit]:
    """Verify the files of a source and let its adapter give the splits, decoded or not.

    Raises:
        DataError: a file is missing or damaged, or the adapter cannot use it.
    """
    if problems := preflight([(info, size)], root, fresh=True):
        raise MissingFilesError(problems)
    try:
        splits = info.open().load(size, Path(root or default_root()))
    except (ValueError, OSError) as error:
        raise DataError(f"{info.name} at {size} pixels: {error}") from error
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        raise DataError(f"{info.name}: the adapter gave no split {', '.join(missing)}")
    return {name: splits[name] for name in SPLITS}


@contextlib.contextmanager
def decode_bar() -> Iterator[Progress]:
    """Draw a bar while images are decoded, where somebody looks (standard error is a terminal)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("decoding images", total=None, visible=False)

        def told(event: dict[str, object]) -> None:
            if "decoded" in event:
                done, total = int(str(event["decoded"])), int(str(event["decode_total"]))
                bars.update(task, completed=done, total=total, visible=True)

        yield told


def write_split_file(info: DatasetInfo, entry: Entry, folder: Path) -> Path | None:
    """Put the table of who is in which split (name, label, split, group) into a run's folder, once.

    It is ``<dataset>.csv``; if another table of that name is there (the data changed between two sweeps into one run),
    the entry's own name is used. Nothing is written for sources whose images have no names.

    Returns:
        The file, or None.
    """
    source = entry.folder / entries.MEMBERS
    if not source.is_file():
        return None
    for name in (registry.file_stem(info.name), entry.folder.name):
        target = folder / f"{name}.csv"
        if not target.exists():
            with replacing(target) as part:
                shutil.copyfile(source, part)
            return target
        if filecmp.cmp(source, target, shallow=False):
            return target
    return target

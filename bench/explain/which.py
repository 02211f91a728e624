"""Which Cells of a run can be explained: trainings that ended well and whose weights were kept."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import registry
from bench.record import store
from bench.record.cells import LATER_SETTINGS, AccuracyCell, cell_key, track_of
from bench.record.paths import record_path, require_run, weights_path
from bench.record.store import Record, StoreError
from bench.record.types import Fields
from bench.registry import RegistryError


def find_cells(out: Path, wanted: Sequence[str], heads: bool = False) -> list[Record]:
    """Find the Records of keys or their beginnings; ``all`` is every training whose weights were kept.

    Args:
        out: the run.
        wanted: the keys.
        heads: whether heads on frozen features will do.

    Raises:
        StoreError: no such run or Cell, several Cells begin so, or its weights do not lie there.
    """
    require_run(out)
    keys = sorted(path.stem for path in (out / "cells").glob("*.json") if not path.name.startswith("."))
    if not wanted:
        raise StoreError(f"name a cell of {out}: {_some(out, _kept(out, keys, heads))}")
    if list(wanted) == ["all"]:
        if not (kept := _kept(out, keys, heads)):
            raise StoreError(f"{out}: no weights were kept; {_how_to_keep(out)}")
        return kept
    found: dict[str, Record] = {}
    for beginning in wanted:
        matches = [key for key in keys if key.startswith(beginning)] if beginning else []
        if not matches:
            raise StoreError(f"{out} has no cell {beginning!r}; {_some(out, _kept(out, keys, heads))}")
        if len(matches) > 1:
            first = ", ".join(matches[:5])
            raise StoreError(f"{beginning!r} is ambiguous: it matches {len(matches)} cells of {out} ({first})")
        record = store.read_record(record_path(out, matches[0]))
        _check(out, record, heads)
        found[record["key"]] = record
    return list(found.values())


@contextlib.contextmanager
def where_it_ran(out: Path) -> Iterator[Path | None]:
    """Load a run's plug-ins and stand in the folder it was started in: its sources may be relative to that.

    Yields:
        The run's data root, if it named one and it is there.
    """
    info = store.read_run(out)
    sweep = info.get("sweep") or {}
    if base := info.get("plugin_base"):  # not in runs of earlier versions: theirs come from the configuration alone
        with contextlib.suppress(RegistryError):  # a plug-in that has gone matters only if its name is looked up
            registry.load_plugins(sweep.get("plugins") or [], Path(base))
    folder = Path(info.get("folder") or ".")
    with contextlib.chdir(folder if folder.is_dir() else "."):
        root = (sweep.get("run") or {}).get("data_root")
        yield Path(root) if root and Path(root).is_dir() else None


def _kept(out: Path, keys: Sequence[str], heads: bool) -> list[Record]:
    """Those whose weights lie there."""
    found = [store.read_record(record_path(out, key)) for key in keys if weights_path(out, key).is_file()]
    return [record for record in found if heads or track_of(record["spec"]) != "frozen"]


def _check(out: Path, record: Record, heads: bool) -> None:
    key, spec = record["key"], record["spec"]
    what = f"cell {key} ({spec['model']})"
    if record["kind"] == "transfer":
        raise StoreError(f"{what} is a transfer cell and trains nothing; explain its source, {spec['source_key']}")
    if record["kind"] == "trial":
        raise StoreError(f"{what} was a trial of --tune; explain the cell of {spec['model']} that it decided about")
    if record["kind"] != "accuracy":
        raise StoreError(f"{what} is an {record['kind']} cell and trains nothing")
    if record["status"] != "ok":
        raise StoreError(f"{what} has status {record['status']}: no trained network")
    if track_of(spec) == "frozen" and not heads:
        raise StoreError(
            f"{what} is a head on frozen features and trained no network; name one of track finetune or scratch"
        )
    if not weights_path(out, key).is_file():
        raise StoreError(
            f"missing {weights_path(out, key)}: the weights of {what} were not kept; {_how_to_keep(out, key)}"
        )


def _some(out: Path, kept: Sequence[Record]) -> str:
    if not kept:
        return f"no weights were kept; {_how_to_keep(out)}"
    names = []
    for record in kept[:8]:
        key, spec = record["key"], record["spec"]
        names.append(f"{key[:8]} {spec['model']} on {spec['dataset']} at {spec['resolution']} px, seed {spec['seed']}")
    more = f"\n  and {len(kept) - 8} more" if len(kept) > 8 else ""
    return "these have weights:\n  " + "\n  ".join(names) + more + "\n  (or `all`)"


def _how_to_keep(out: Path, key: str = "") -> str:
    """The command that trains a Cell again, this time keeping its weights; without a key all that trained."""
    info = store.read_run(out)
    planned = info.get("planned") or {}
    commands = [line for line in str(info.get("command", "")).splitlines() if line.startswith("bench run")]
    commands = [line for line in commands if key in planned.get(line, ())][-1:] or commands
    if not commands:
        return f"run the same sweep again with --keep-weights --out {shlex.quote(str(out))}"
    said = [_keeping(line, out, info) for line in commands]
    if len(said) == 1:
        return f"to train again and keep them: {said[0]}"
    return "\n  ".join(("to train again and keep them, one of:", *said))


def _keeping(command: str, out: Path, info: Fields) -> str:
    """A recorded command with --keep-weights, and with --out where it wrote to another place than this."""
    words, out = shlex.split(command), out.resolve()
    place = (info.get("sweep") or {}).get("run", {}).get("out")
    if "--out" in words[:-1]:
        place = words[words.index("--out") + 1]
    more = [] if "--keep-weights" in words else ["--keep-weights"]
    if not place or (Path(info.get("folder") or ".") / place).resolve() != out:
        more += ["--out", shlex.quote(os.path.relpath(out) if out.is_relative_to(Path.cwd()) else str(out))]
    return " ".join([command, *more])


def cell_of(record: Record) -> AccuracyCell:
    """Rebuild a Cell from its Record.

    Raises:
        StoreError: it would not be the same Cell: another version wrote it.
    """
    spec = dict(record["spec"])
    spec["recipe"] = {**LATER_SETTINGS, **spec.pop("recipe_settings")}
    if spec.get("normalisation"):
        mean, std = spec["normalisation"]
        spec["normalisation"] = (tuple(mean), tuple(std))
    spec.setdefault("track", track_of(spec))
    try:
        cell = AccuracyCell(**spec)
        same = cell_key(cell) == record["key"]
    except (TypeError, KeyError) as error:
        raise StoreError(f"cell {record['key']}: its record does not say how it was trained ({error})") from error
    if not same:
        raise StoreError(
            f"cell {record['key']}: trained by a version that trains differently; train it again with this one"
        )
    return cell

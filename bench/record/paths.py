"""Every path of a run directory, and where caches lie.

RUN/run.json                        what was asked: command, sweep, datasets left out
RUN/search.json                     of ``bench recommend DATASET --budget 2h``: what it decided, when and why
RUN/cells/<key>.json                one Record a Cell
RUN/predictions/<key>.npz           val_scores, val_labels, test_scores, test_labels of an accuracy Cell
                                    and, where the source has them, val_/test_names, _patients, test_group_<column>
RUN/history/<key>.csv               one row an epoch
RUN/weights/<key>.safetensors       of the chosen epoch, where they are kept
RUN/splits/<dataset>.csv            who is in which split, of sets whose split is ours
RUN/explain/<key>/                  what ``bench explain`` drew
RUN/logs/<key>.log                  what the worker printed
RUN/rounds/<key>/<n>.json           raw samples of an efficiency Cell whose rounds are not all done
RUN/checkpoints/<key>.pt            of a training that is not done
RUN/claims/                         leases of drivers (:mod:`bench.runner.leases`); gone when none runs
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import StoreError


def default_cache_dir() -> Path:
    """Where what can be made again is kept: ``$MEDBENCH_CACHE``, else the user's cache folder."""
    if named := os.environ.get("MEDBENCH_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("medbench", appauthor=False))


def run_file(out: Path) -> Path:
    """What was asked of a run."""
    return out / "run.json"


def search_file(out: Path) -> Path:
    """What a search within a budget decided."""
    return out / "search.json"


def record_path(out: Path, key: str) -> Path:
    """A Cell's Record."""
    return out / "cells" / f"{key}.json"


def predictions_path(out: Path, key: str) -> Path:
    """The scores of an accuracy Cell."""
    return out / "predictions" / f"{key}.npz"


def history_path(out: Path, key: str) -> Path:
    """The epochs of a training."""
    return out / "history" / f"{key}.csv"


def weights_path(out: Path, key: str) -> Path:
    """The trained weights of a Cell."""
    return out / "weights" / f"{key}.safetensors"


def splits_folder(out: Path) -> Path:
    """The tables of who is in which split."""
    return out / "splits"


def log_path(out: Path, key: str) -> Path:
    """What a Cell's worker printed."""
    return out / "logs" / f"{key}.log"


def rounds_folder(out: Path, key: str) -> Path:
    """The rounds of an efficiency Cell."""
    return out / "rounds" / key


def round_path(out: Path, key: str, number: int) -> Path:
    """The raw samples of one round."""
    return rounds_folder(out, key) / f"{number}.json"


def checkpoint_path(out: Path, key: str) -> Path:
    """A training that is not done."""
    return out / "checkpoints" / f"{key}.pt"


def leases_folder(out: Path) -> Path:
    """The leases of drivers; the folder's name on disk is from before they were called so."""
    return out / "claims"


# What killed drivers and workers may leave half-written files in.
WRITTEN = ("cells", "predictions", "history", "weights", "splits", "checkpoints", "rounds/*")
# Folders whose files do not go with a Record when runs are merged.
NOT_COMPANIONS = {"cells", "rounds", "claims", "checkpoints"}


def is_run(out: Path) -> bool:
    """Whether a folder is a run directory."""
    return (out / "cells").is_dir() or run_file(out).is_file()


def require_run(out: Path, error: type[StoreError] = StoreError) -> None:
    """Raise ``error`` if a folder is not a run directory."""
    if not is_run(out):
        raise error(
            f"{out} is not a run directory: it has no cells/ and no run.json; give the --out of an earlier `bench run`"
        )

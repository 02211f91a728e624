"""Cells, the units of work, and what a worker is given and returns. Torch-free plain data."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.record.types import Fields, Recipe, Spec
from bench.registry import display_name

if TYPE_CHECKING:
    from bench.metrics.one_vs_rest import Array

# Raised when the way a Cell is computed changes, so that old records are not taken for new ones.
ACCURACY_PROTOCOL = 1
EFFICIENCY_PROTOCOL = 3
TRANSFER_PROTOCOL = 1

# Settings of a recipe that came later, with the value under which a training is what it was before them: with it they
# are left out of the key, so that no record of an unchanged training is lost.
LATER_SETTINGS: Mapping[str, object] = {
    "layer_decay": 1.0, "compile": "none", "normalisation": "weights", "head_rate": 1.0, "frozen_layers": 0.0,
    "zero_head": False,
}  # fmt: skip
# The same for fields of an accuracy Cell: a Record without one has this value.
LATER_FIELDS: Mapping[str, object] = {
    "normalisation": None, "leaks": "warn", "track": "scratch", "head": None, "shots": None, "label_fraction": 1.0,
    "draw": 0, "fold": None, "folds": None,
}  # fmt: skip
_NEVER = object()


@dataclass(frozen=True, slots=True)
class AccuracyCell:
    """Train one model on one dataset with one seed, choose on validation, report the test split once.

    ``recipe`` is the resolved recipe (its ``name`` included); fingerprints make a changed file another Cell.
    ``normalisation`` is the mean and standard deviation of each channel that pretrained weights expect, if they do.
    ``leaks="drop"``: images of train and val that a later split has are not trained or chosen on. ``head`` is what a
    frozen network's features are given to. ``shots`` a class, or ``label_fraction`` of train, are drawn by hash for the
    ``draw``-th time. ``fold`` (from 0) of ``folds`` is the test split.

    A setting of the recipe may be ``{"tuned_over": [values], "seed": seed}``: each value is tried in a training of its
    own with that seed (:func:`trials_of`), and validation decides which one this Cell is trained with.
    """

    model: str
    dataset: str
    size: int
    resolution: int
    resize: str
    recipe: Recipe
    seed: int
    precision: str
    data_fingerprint: str
    weights_sha256: str | None = None
    model_plugin_sha256: str | None = None
    data_plugin_sha256: str | None = None
    protocol: int = ACCURACY_PROTOCOL
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    leaks: str = "warn"
    track: str = "scratch"
    head: str | None = None
    shots: int | None = None
    label_fraction: float = 1.0
    draw: int = 0
    fold: int | None = None
    folds: int | None = None

    kind = "accuracy"

    def spec(self) -> Fields:
        """The Cell as plain data; ``recipe`` is its name, ``recipe_settings`` all but later additions not used.

        ``track`` stands in it only where the weights do not say it (:func:`track_of`): two spellings of one training
        are one Cell.
        """
        settings = {key: value for key, value in self.recipe.items() if LATER_SETTINGS.get(key, _NEVER) != value}
        given = {key: value for key, value in asdict(self).items() if LATER_FIELDS.get(key, _NEVER) != value}
        if self.track == track_of({"weights_sha256": self.weights_sha256}):
            given.pop("track", None)
        return {**given, "recipe": self.recipe["name"], "recipe_settings": settings}


@dataclass(frozen=True, slots=True)
class TrialCell(AccuracyCell):
    """A training that decides about the settings ``tried`` of others by its validation score; no row of a board."""

    tried: tuple[str, ...] = ()

    kind = "trial"


SPEED_REFERENCE = "resnet18"  # what other models' speeds are relative to
ONE_THREAD = "processor time of one thread"  # what those of a CPU are measured in


@dataclass(frozen=True, slots=True)
class EfficiencyCell:
    """Measure one model at one resolution, batch, precision and mode on one device (3 channels, 1,000 classes).

    What the figures depend on beyond that (hardware, threads, scan backend, the
    ``kernels``' sources, library versions) is part of it. medbench's own version is not.
    """

    model: str
    resolution: int
    batch: int
    precision: str
    compile: bool
    mode: str
    device: str
    hardware: str
    threads: int
    backend: str
    versions: Mapping[str, str]
    budget_s: float
    rounds: int
    omp_wait_policy: str = ""
    kernels: str = ""
    model_plugin_sha256: str | None = None
    protocol: int = EFFICIENCY_PROTOCOL

    kind = "efficiency"

    def spec(self) -> Fields:
        """The Cell as plain data."""
        return asdict(self)


class SharedClass(NamedTuple):
    """A class that two datasets share: what each calls it. Several names on one side are taken together."""

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TransferCell:
    """Evaluate what an accuracy Cell trained on the test split of another dataset, over the shared classes.

    ``size`` and ``resize`` are the target's; everything else about the model is the source Cell's.
    """

    source: AccuracyCell
    dataset: str
    size: int
    resize: str
    shared_classes: tuple[SharedClass, ...]
    shares_patients: bool
    data_fingerprint: str
    data_plugin_sha256: str | None = None
    protocol: int = TRANSFER_PROTOCOL

    kind = "transfer"

    @property
    def model(self) -> str:
        """The model that was trained."""
        return self.source.model

    @property
    def resolution(self) -> int:
        """What it is fed, pixels."""
        return self.source.resolution

    @property
    def source_key(self) -> str:
        """The Cell whose weights and scores this one needs."""
        return cell_key(self.source)

    def spec(self) -> Fields:
        """The Cell as plain data; ``source`` is the dataset that was trained on, ``dataset`` the one looked at."""
        own = asdict(self)
        del own["source"], own["shared_classes"]
        taken = ("model", "resolution", "seed", "precision")
        return {
            **own,
            **{name: getattr(self.source, name) for name in taken},
            "recipe": self.source.recipe["name"],
            "source": self.source.dataset,
            "source_size": self.source.size,
            "source_key": self.source_key,
            "label_map": {name: [list(source), list(target)] for name, source, target in self.shared_classes},
        }


Cell = AccuracyCell | EfficiencyCell | TransferCell


def tuned_over(recipe: Recipe) -> dict[str, list[float]]:
    """The settings of a recipe that validation chooses, with the values that are tried."""
    tuned = ((key, value) for key, value in recipe.items() if isinstance(value, Mapping))
    return {key: value["tuned_over"] for key, value in tuned if "tuned_over" in value}


def tuning_seed(recipe: Recipe) -> int | None:
    """The seed of the trials; None where nothing is tuned."""
    return next((int(recipe[key]["seed"]) for key in tuned_over(recipe)), None)


def trials_of(cell: AccuracyCell) -> list[TrialCell]:
    """The trainings that decide about a tuned Cell: one for each value, or pair of values, in their order."""
    over, seed = tuned_over(cell.recipe), tuning_seed(cell.recipe)
    if seed is None:
        return []
    plain = TrialCell(**{each.name: getattr(cell, each.name) for each in fields(cell)}, tried=tuple(over))
    tried = (dict(zip(over, values, strict=True)) for values in itertools.product(*over.values()))
    return [replace(plain, seed=seed, recipe={**cell.recipe, **values}) for values in tried]


def needs(cell: Cell) -> tuple[str, ...]:
    """Keys of the Cells whose Records (of a transfer: scores and weights) must be there before this one can run."""
    if isinstance(cell, TransferCell):
        return (cell.source_key,)
    return tuple(map(cell_key, trials_of(cell))) if isinstance(cell, AccuracyCell) else ()


def track_of(spec: Spec) -> str:
    """The track of an accuracy Cell's spec; where it says none, what starts from weights is fine-tuned."""
    return str(spec.get("track") or ("finetune" if spec.get("weights_sha256") else "scratch"))


def is_control(spec: Spec) -> bool:
    """Whether a Cell is of the random network that stands beside each frozen pretrained one: compared, never chosen."""
    return track_of(spec) == "frozen" and not spec.get("weights_sha256")


def few_labels(spec: Spec) -> str:
    """``10 shots`` or ``5 % of labels``; "" where all labels are used."""
    if shots := spec.get("shots"):
        return f"{shots} shot{'s' * (shots != 1)}"
    fraction = spec.get("label_fraction", 1.0)
    return "" if fraction == 1.0 else f"{100 * fraction:g} % of labels"


def features_key(cell: AccuracyCell) -> str:
    """Names the features that a frozen Cell is computed from: all of it but head, labels and, with weights, seed."""
    spec = {**cell.spec(), "fed": [cell.recipe[key] for key in ("as_rgb", "mean", "std")]}
    of_the_head = {"head", "shots", "label_fraction", "draw", "recipe", "recipe_settings"}
    of_the_head |= {"seed"} if cell.weights_sha256 else set()
    return spec_key("features", {key: value for key, value in spec.items() if key not in of_the_head})


def cell_key(cell: Cell) -> str:
    """Return the 20 hex digits that identify a Cell: a hash of everything that decides its result."""
    return spec_key(cell.kind, cell.spec())


def spec_key(kind: str, spec: Spec) -> str:
    """Return the key of a Cell from its spec, as a Record has it."""
    text = json.dumps([kind, spec], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def cell_label(cell: Cell) -> str:
    """One line for people: what the Cell does."""
    if isinstance(cell, AccuracyCell):
        few = few_labels(cell.spec())
        fold = f"fold {cell.fold + 1} of {cell.folds}" if cell.fold is not None else ""
        head = f"frozen, {cell.head}" if cell.head else ""
        parts = (f"{cell.size}->{cell.resolution} px", f"seed {cell.seed}", fold, head)
        tuned = f"tuned over {' x '.join(tuned_over(cell.recipe))}" if tuning_seed(cell.recipe) is not None else ""
        shown = ", ".join(filter(None, (*parts, f"{few}, draw {cell.draw}" if few else "", tuned)))
        if isinstance(cell, TrialCell):
            shown += ", trial " + ", ".join(f"{key}={cell.recipe[key]:g}" for key in cell.tried)
        return f"{cell.model} on {display_name(cell.dataset)} ({shown})"
    if isinstance(cell, TransferCell):
        route = f"{display_name(cell.source.dataset)} to {display_name(cell.dataset)}"
        return f"{cell.model} from {route} ({cell.size}->{cell.resolution} px, seed {cell.source.seed})"
    how = f"{cell.precision}, {cell.mode}{', compiled' if cell.compile else ''} on {cell.device}"
    return f"{cell.model} at {cell.resolution} px, batch {cell.batch}, {how}"


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """Work was ended on request; what was done is in a checkpoint."""


class MustRunAlone(Exception):  # noqa: N818 - no fault of the Cell
    """A training would change those that share its process: it is run again in one of its own."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True, slots=True)
class Context:
    """Where and with what a worker executes a Cell."""

    device: str
    threads: int
    data_root: Path | None
    cache_dir: Path | None
    out: Path
    progress: Callable[[Fields], None]
    time_limit_s: float | None = None
    keep_weights: bool = False
    stop: Callable[[], bool] = never


@dataclass(slots=True)
class Result:
    """What a worker found out. ``arrays`` go to ``predictions/<key>.npz``, ``history`` to ``history/<key>.csv``."""

    metrics: Fields
    status: str = "ok"
    reason: str = ""
    arrays: dict[str, Array] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    history: list[Fields] | None = None

"""Records -> rows: the seeds of one protocol put together, different protocols kept apart."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from bench import registry
from bench.metrics.calibration import Clinical
from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import Metric
from bench.record import store
from bench.record.cells import few_labels, is_control, track_of, tuned_over
from bench.record.positive import positive_class, with_positive
from bench.record.types import Fields, Record, RunInfo, Spec
from bench.registry import Positive
from bench.report.words import counted, differing, grouped, known, natural
from bench.stats.separation import Estimate, Sample

Code = tuple[str, str | None]  # a model's name and its plug-in's digest: what its speed depends on, unlike its weights

# What makes two runs of one model on one dataset two different models or datasets, beside the protocol. Older records
# have one ``plugin_sha256`` of both files: it is taken for the model's, so that no two of them become one.
_OF_THE_MODEL = ("weights_sha256", "model_plugin_sha256", "plugin_sha256")
_OF_THE_DATA = ("data_fingerprint", "data_plugin_sha256")
TRACKS = {"scratch": "", "finetune": "fine-tuning, ", "frozen": "frozen features, "}  # before a recipe or a head
MAX_DETAIL = 12  # a longer fingerprint that is no digest is shown as the digest of itself
MAX_SETTINGS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a figure came about, but for model, dataset and seed: only rows of one protocol are compared.

    ``fed`` is ``identity`` without the images' native size: what rows have in common that are ranked together.
    """

    identity: str
    size: int
    resolution: int
    resize: str
    precision: str
    recipe: str
    epochs: int | None
    variant: str = ""
    fed: str = ""

    @property
    def pixels(self) -> str:
        """``28→64 px (nearest)``, or ``64 px`` where images are fed as they are; in words for scores of others."""
        if not self.resolution:
            return "scores from files"
        if self.size == self.resolution:
            return f"{self.resolution} px"
        return f"{self.size}→{self.resolution} px ({self.resize})"

    @property
    def training(self) -> str:
        """Recipe, epochs, precision, and the setting that sets it apart from a recipe of the same name."""
        length = counted(self.epochs, "epoch") if self.epochs is not None else ""
        parts = [self.recipe, length, self.precision, self.variant]
        return ", ".join(part for part in parts if part)

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key."""
        return (self.size, self.resolution, self.resize, natural(self.recipe), self.epochs or 0, self.identity)


@dataclass(slots=True)
class Evidence:
    """What the saved scores of a row's seeds say of the metrics that are tested over images.

    Attributes:
        samples: metric to its value with each image's influence on it, for comparisons.
        estimates: metric to its mean with its variance over test images and trainings.
        majority: ACC of the most frequent answer.
        test_set: two rows of one test set are compared image by image.
        labels: of the test set.
        patients: (N,) number of each image's patient, where some have several images.
        files: the saved scores: of each seed one, or one a fold.
        columns: what the source's table says of each test image, (N,) text, by column.
    """

    samples: dict[str, Sample]
    estimates: dict[str, Estimate]
    n_test: int
    majority: float
    test_set: str
    labels: Array
    patients: Array | None = None
    files: tuple[tuple[Path, ...], ...] = ()
    columns: Mapping[str, Array] = field(default_factory=dict)

    @property
    def n_patients(self) -> int | None:
        """Of the test images; None where no patient has several, or patients are not known."""
        return None if self.patients is None else len(np.unique(self.patients))

    @property
    def images(self) -> str:
        """``48 images of 20 patients``."""
        n = self.n_patients
        return counted(self.n_test, "image") + (f" of {counted(n, 'patient')}" if n else "")

    def interval(self, metric: Metric) -> tuple[float, float]:
        """95 % interval of a metric over test images and trainings."""
        return self.estimates[metric.name].interval()


class Figures(NamedTuple):
    """One metric over the seeds of a row."""

    values: tuple[float, ...]
    mean: float | None
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figures:
        """The same numbers as np.mean and np.std(ddof=1), at a third of their cost for a few values."""
        if not values:
            return cls((), None, None)
        array, n = np.array(values, dtype=np.float64), len(values)
        mean = np.add.reduce(array) / n
        off = array - mean
        spread = float(np.sqrt(np.add.reduce(off * off) / (n - 1))) if n > 1 else None
        return cls(tuple(array.tolist()), float(mean), spread)


@dataclass(slots=True)
class Row:
    """One model on one dataset under one protocol, over its seeds; they are all there before it is asked."""

    model: str
    dataset: str
    protocol: Protocol
    ok: list[Record] = field(default_factory=list)
    other: list[Record] = field(default_factory=list)
    evidence: Evidence | None = None
    clinical: list[Clinical] = field(default_factory=list)  # one a seed; empty without saved validation scores
    code: Code = ("", None)
    origin: str = ""  # of the images: datasets of one origin are variants of one another
    control: bool = False  # a frozen network with random weights: no candidate
    _figures: dict[str, Figures] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def scored(self) -> Evidence:
        """Its evidence. Raises ValueError for a row without saved scores."""
        if self.evidence is None:
            raise ValueError(f"{self.model} on {self.dataset}: there are no saved scores")
        return self.evidence

    def values(self, metric: str) -> tuple[float, ...]:
        """The metric of each seed that has it, by seed."""
        return self._of(metric).values

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None if no seed has it."""
        return self._of(metric).mean

    def spread(self, metric: str) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single seed."""
        return self._of(metric).spread

    def _of(self, metric: str) -> Figures:
        if metric not in self._figures:
            self._figures[metric] = Figures.of(self._by_seed(metric))
        return self._figures[metric]

    def _by_seed(self, metric: str) -> list[float]:
        """The metric of each training, or of cross-validation the mean over folds of each seed that has all of them."""
        if not self.folds:
            return [v for r in self.ok if known(v := r["metrics"].get(metric))]
        found = [r for r in self.ok if known(r["metrics"].get(metric))]
        seeds = grouped(found, lambda r: r["spec"].get("seed")).values()
        return [float(np.mean([r["metrics"][metric] for r in own])) for own in seeds if len(own) == self.folds]

    @property
    def seeds(self) -> int:
        """Seeds with a result; of cross-validation each has several folds."""
        return len({str(r["spec"].get("seed")) for r in self.ok})

    @property
    def folds(self) -> int:
        """Of cross-validation; 0 where a published or drawn test split is scored."""
        return next((int(r["spec"].get("folds") or 0) for r in self.ok), 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the scores; empty where a Record is too old to say them."""
        return next((tuple(map(str, names)) for r in self.ok if (names := r["metrics"].get("classes"))), ())

    @property
    def positive(self) -> Positive | None:
        """The class that sensitivity is of, where there are two."""
        return next((found for r in self.ok if (found := positive_class(r))), None)

    @property
    def n_test(self) -> int | None:
        """Images in the test split, from the confusion matrix or the saved scores."""
        if self.evidence:
            return self.evidence.n_test
        for record in self.ok:
            metrics = record["metrics"]
            if known(n := metrics.get("n_test", metrics.get("test_n"))):
                return int(n)
            if confusion := metrics.get("test_confusion"):
                # multi-label: one 2 x 2 table a label, each over all images
                return int(np.sum(confusion[0] if isinstance(confusion[0][0], list) else confusion))
        return None


def read_run_directory(out: Path) -> tuple[list[Record], RunInfo, list[str]]:
    """The Records and ``run.json`` of a run, and one message for each Record that could not be read."""
    records, problems = store.read_records(out)
    return records, cast("RunInfo", store.read_run(out)), problems


def unique(records: Iterable[Record]) -> list[Record]:
    """Records in an order of their own, each key once, with the class that their sensitivity is of."""
    found: dict[str, Record] = {}
    for record in map(with_positive, records):
        other = found.setdefault(record["key"], record)
        if other is not record and _canonical(record) > _canonical(other):
            found[record["key"]] = record
    return sorted(found.values(), key=_record_order)


def _record_order(record: Record) -> tuple[object, ...]:
    return record["kind"], _spec_order(record["spec"]), record["key"]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _spec_order(spec: Spec) -> tuple[object, ...]:
    numbers = tuple(spec.get(name) or 0 for name in ("size", "resolution", "batch", "seed", "fold"))
    words = tuple(str(spec.get(name, "")) for name in ("device", "precision", "mode", "compile"))
    return natural(str(spec.get("dataset", ""))), natural(str(spec.get("model", ""))), numbers, words


def accuracy_rows(records: Iterable[Record], origins: Mapping[str, str] | None = None) -> list[Row]:
    """Group accuracy Records by all of their spec but the seed; sorted by dataset, protocol, model.

    Args:
        records: of any kind.
        origins: dataset -> where its images come from (:func:`bench.report.names.with_short_names`).
    """
    # Few labels are learning curves (sections/tracks.py).
    whole = (r for r in records if r["kind"] == "accuracy" and not few_labels(r["spec"]))
    groups = grouped(whole, lambda r: _canonical({k: v for k, v in r["spec"].items() if k not in ("seed", "fold")}))
    firsts = [members[0] for members in groups.values()]  # seeds share all that a row is known by
    models = labels(firsts, "model", _OF_THE_MODEL)
    # A fingerprint holds the size: only two of one size are two versions of the data.
    datasets = labels(firsts, "dataset", _OF_THE_DATA, ("size",))
    variants = _recipe_variants(firsts)
    placed = [(models[own[0]["key"]], datasets[own[0]["key"]], _protocol(own[0]["spec"], variants), own)
              for own in groups.values()]  # fmt: skip
    rows = []
    for (model, dataset, _), parts in grouped(placed, lambda one: (*one[:2], one[2].identity)).items():
        _, _, protocol, members = parts[0]
        spec = members[0]["spec"]
        known_as = str(spec["dataset"])
        origin = (origins or {}).get(known_as, known_as)
        control = is_control(spec)
        shown = f"{model} (random weights)" if control else model
        row = Row(shown, dataset, protocol, code=code_of(spec), origin=origin, control=control)
        for record in _one_a_seed(record for *_, own in parts for record in own):
            (row.ok if record["status"] == "ok" else row.other).append(record)
        rows.append(row)
    return sorted(rows, key=lambda r: (natural(r.dataset), r.protocol.order, natural(r.model), r.model))


def code_of(spec: Spec) -> Code:
    """The model and the plug-in it comes from, of either kind of Cell."""
    return str(spec["model"]), spec.get("model_plugin_sha256")


def family_of(record: Record) -> str:
    """The family that a Record's model was registered in; for Records from before they said it, the registry's."""
    return str(record.get("family") or registry.family_of(str(record["spec"]["model"])))


def _one_a_seed(records: Iterable[Record]) -> list[Record]:
    """Leave out what says the same again: a Cell whose key an earlier version of the program computed otherwise."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=_record_order):
        seed = _canonical([record["spec"].get(name) for name in ("seed", "fold")])
        if seed not in found or (found[seed]["status"] != "ok" and record["status"] == "ok"):
            found[seed] = record
    return list(found.values())


def labels(
    records: Iterable[Record], name: str, details: tuple[str, ...], within: tuple[str, ...] = ()
) -> dict[str, str]:
    """Key of each Record -> the name of its model or dataset, with what tells two of one name apart where there are.

    Args:
        records: Cells of one kind.
        name: the field of the spec with the name.
        details: fields in which versions of one name differ.
        within: fields in which two must agree to be versions of one another.
    """
    versions: dict[str, set[str]] = defaultdict(set)
    own: dict[str, tuple[str, str, str]] = {}
    for record in records:
        spec = record["spec"]
        detail, group = _canonical([spec.get(d) for d in details]), _canonical([spec.get(f) for f in (name, *within)])
        versions[group].add(detail)
        own[record["key"]] = (str(spec[name]), group, detail)
    found = {}
    for key, (text, group, detail) in own.items():
        shown = [_short(str(value)) for value in json.loads(detail) if value]
        found[key] = f"{text} ({', '.join(shown) or 'as built in'})" if len(versions[group]) > 1 else text
    return found


def _short(detail: str) -> str:
    """The beginning of a digest; of other long text its digest, for fingerprints of one dataset begin alike."""
    if len(detail) <= MAX_DETAIL:
        return detail
    if all(c in "0123456789abcdef" for c in detail):
        return detail[:8]
    return hashlib.sha256(detail.encode()).hexdigest()[:8]


def _recipe_variants(records: Iterable[Record]) -> dict[str, str]:
    """For each recipe's settings: the ones in which recipes of one name and length differ, as ``key=value``."""
    same: dict[tuple[str, int | None], dict[str, Fields]] = defaultdict(dict)
    for record in records:
        settings = record["spec"].get("recipe_settings") or {}
        same[record["spec"].get("recipe", ""), settings.get("epochs")][_canonical(settings)] = settings
    variants = {}
    for group in same.values():
        flat = {
            identity: flattened({k: v for k, v in settings.items() if k not in tuned_over(settings)})
            for identity, settings in group.items()
        }
        keys = differing(flat.values())
        for identity, settings in flat.items():
            tuned = tuned_over(group[identity])  # those are said in any case
            shown = [f"{k}={settings.get(k)}" for k in keys if k not in tuned]
            if len(shown) > MAX_SETTINGS_NAMED:
                digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
                shown[MAX_SETTINGS_NAMED:] = [f"{len(shown) - MAX_SETTINGS_NAMED} more ({digest})"]
            variants[identity] = ", ".join(shown)
    return variants


def flattened(settings: Spec, prefix: str = "") -> Fields:
    """Nested settings as ``outer.inner`` -> value."""
    flat: Fields = {}
    for key, value in settings.items():
        flat.update(flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _identity(spec: Spec, *but: str) -> str:
    """All of a spec that two comparable rows share; a field that a Record lacks is like one that is empty."""
    apart = {"seed", "fold", "model", "dataset", "track", *_OF_THE_MODEL, *_OF_THE_DATA, *but}
    track = {} if track_of(spec) == "scratch" else {"track": track_of(spec)}
    return _canonical({**{k: v for k, v in spec.items() if k not in apart and v is not None}, **track})


def tuned_text(over: Mapping[str, Iterable[float]]) -> str:
    """``learning_rate tuned over 0.0001, 0.0003, 0.001``."""
    return "; ".join(f"{key} tuned over {', '.join(f'{value:g}' for value in values)}" for key, values in over.items())


def _protocol(spec: Spec, variants: Mapping[str, str]) -> Protocol:
    settings = spec.get("recipe_settings") or {}
    parts = [tuned_text(tuned_over(settings)), variants.get(_canonical(settings), "")]
    parts += ["repeated images dropped"] if spec.get("leaks") == "drop" else []
    parts += [f"{folds} folds"] if (folds := spec.get("folds")) else []
    return Protocol(
        identity=_identity(spec),
        size=spec.get("size") or 0,
        resolution=spec.get("resolution") or 0,
        resize=spec.get("resize") or "",
        precision=spec.get("precision") or "",
        recipe=f"{TRACKS[track_of(spec)]}{spec.get('recipe') or ''}",
        epochs=settings.get("epochs"),
        variant=", ".join(filter(None, parts)),
        fed=_identity(spec, "size", "resize"),
    )

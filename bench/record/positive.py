"""Of which class the sensitivity of a two-class Record is, also where an older Record does not say."""

from __future__ import annotations

from bench import registry
from bench.record.types import Record
from bench.registry import Positive, RegistryError, positive_of


def positive_class(record: Record) -> Positive | None:
    """The positive class of an accuracy or transfer Record; None but for two classes with known names."""
    metrics, spec = record["metrics"], record["spec"]
    classes = [str(name) for name in metrics.get("classes") or ()]
    if len(classes) != 2 or metrics.get("test_sensitivity", metrics) is metrics:
        return None  # several classes, several labels, or no result
    if (name := metrics.get("positive_class")) in classes:
        return Positive(str(name), classes.index(str(name)), bool(metrics.get("positive_class_guessed")))
    return positive_of("binary-class", classes, _declared(str(spec.get("source") or spec.get("dataset"))))


def _declared(dataset: str) -> str:
    """What a published set declares; sources are not read again."""
    try:
        return str(registry.datasets[dataset.partition("[")[0]].positive)
    except (RegistryError, KeyError):
        return ""


def with_positive(record: Record) -> Record:
    """A Record that says its positive class.

    Before ``positive_class`` was recorded, ``test_sensitivity`` was that of class 1. Of two classes the sensitivity of
    one is the specificity of the other, so an older Record is read with the two exchanged where that was the wrong one.
    """
    metrics = record["metrics"]
    found = None if "positive_class" in metrics else positive_class(record)
    if found is None:
        return record
    said = {**metrics, "positive_class": found.name, "positive_class_guessed": found.guessed}
    if found.number == 0:
        names = ("test_sensitivity", "test_specificity")
        said |= dict(zip(names, (metrics.get(name) for name in reversed(names)), strict=True))
    return {**record, "metrics": said}

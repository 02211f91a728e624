"""The positive class: declared, guessed, and what its figures are, against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, recall_score

from bench import registry
from bench.metrics.calibration import clinical, recorded
from bench.metrics.classification import classification_metrics
from bench.record.positive import with_positive
from bench.registry import RegistryError, positive_of


@pytest.mark.parametrize(
    ("classes", "declared", "found"),
    [
        (("icu", "no_icu"), "", ("icu", 0, True)),
        (("malignant", "normal"), "", ("malignant", 0, True)),
        (("ap", "pa"), "", ("pa", 1, True)),
        (("glioma", "notumor"), "", ("glioma", 0, True)),
        (("DR", "nodr"), "", ("DR", 0, True)),
        (("Parasitized", "Uninfected"), "", ("Parasitized", 0, True)),
        (("mass", "nodule"), "", ("nodule", 1, True)),
        (("normal", "benign"), "", ("benign", 1, True)),
        (("0", "1"), "", ("1", 1, True)),
        (("icu", "no_icu"), "no_icu", ("no_icu", 1, False)),
    ],
)
def test_a_class_named_as_negatives_are_is_not_the_positive_one(
    classes: tuple[str, str], declared: str, found: tuple[str, int, bool]
) -> None:
    assert positive_of("binary-class", classes, declared) == found
    assert positive_of("multi-class", (*classes, "other")) is None


def test_published_sets_declare_the_clinical_class() -> None:
    for name in registry.datasets:
        info = registry.datasets[name]
        if info.task == "binary-class" and info.plugin_file is None:  # other tests load plug-ins
            assert info.positive_class is not None and not info.positive_class.guessed, name
    assert registry.datasets["breastmnist"].positive == "malignant"
    assert registry.datasets["pneumoniamnist"].positive == "pneumonia"


def test_a_positive_class_that_is_none_of_two_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(RegistryError, match=r"positive=malignat is none of two classes.*did you mean 'malignant'"):
        replace(registry.datasets["breastmnist"], positive="malignat")
    with pytest.raises(RegistryError, match="none of two classes"):
        replace(registry.datasets["bloodmnist"], positive="platelet")


@pytest.mark.parametrize("positive", [0, 1])
def test_sensitivity_and_average_precision_are_scikit_learns_of_that_class(positive: int) -> None:
    generator = np.random.default_rng(positive)
    labels = generator.integers(0, 2, 200)
    ones = np.clip(generator.normal(0.4 + 0.2 * labels, 0.3), 0, 1).round(2)  # with ties
    scores = np.stack([1 - ones, ones], axis=1)
    found = classification_metrics(labels, scores, "binary-class", positive)
    predicted = (ones > 0.5).astype(int)
    assert found["sensitivity"] == recall_score(labels, predicted, pos_label=positive)
    assert found["specificity"] == recall_score(labels, predicted, pos_label=1 - positive)
    column = ones if positive else 1 - ones
    assert found["auprc"] == pytest.approx(average_precision_score(labels == positive, column), abs=1e-15)
    assert found["auc"] == classification_metrics(labels, scores, "binary-class")["auc"]


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_average_precision_of_several_is_scikit_learns_macro_average(task: str) -> None:
    generator = np.random.default_rng(1)
    scores = generator.random((150, 4))
    truth = generator.integers(0, 2, (150, 4)) if task == "multi-label" else np.eye(4, dtype=int)[np.arange(150) % 4]
    labels = truth if task == "multi-label" else truth.argmax(1)
    scores /= 1 if task == "multi-label" else scores.sum(1, keepdims=True)
    expected = average_precision_score(truth, scores, average="macro")
    assert classification_metrics(labels, scores, task)["auprc"] == pytest.approx(expected, abs=1e-15)


def test_the_operating_point_of_class_0_is_the_mirror_of_class_1() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 300)
    scores = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99)
    zero = recorded(clinical(scores, labels, scores, labels, positive=0))
    flipped = recorded(clinical(1 - scores, 1 - labels, 1 - scores, 1 - labels))
    assert zero == pytest.approx(flipped)


def old_record(**metrics: Any) -> dict[str, Any]:
    figures = {"classes": ["malignant", "normal, benign"], "test_sensitivity": 0.9, "test_specificity": 0.5}
    return {"kind": "accuracy", "spec": {"dataset": "breastmnist"}, "metrics": {**figures, **metrics}}


def test_an_older_record_is_read_with_the_sensitivity_of_the_positive_class() -> None:
    found = with_positive(old_record())["metrics"]
    assert (found["test_sensitivity"], found["test_specificity"]) == (0.5, 0.9)
    assert (found["positive_class"], found["positive_class_guessed"]) == ("malignant", False)
    now = old_record(positive_class="malignant", positive_class_guessed=False)
    assert with_positive(now) is now
    several = {"kind": "accuracy", "spec": {"dataset": "x"}, "metrics": {"classes": ["a", "b", "c"], "test_acc": 0.5}}
    assert with_positive(several) is several

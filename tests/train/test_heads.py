"""Heads on frozen features against scikit-learn, and few labels drawn as they should be."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from bench.registry import Split
from bench.sweep import heads as settings
from bench.sweep import recipes
from bench.train.draws import drawn
from bench.train.frozen import heads

CPU = torch.device("cpu")
TASKS = ["binary-class", "multi-class", "ordinal-regression", "multi-label"]


def made(task: str, n: int = 180, width: int = 12, seed: int = 0) -> tuple[Split, Split, Split]:
    """Features whose directions say something of their labels: train, val, test."""
    rng = np.random.default_rng(seed)
    classes = 2 if task == "binary-class" else 3
    if task == "multi-label":
        labels = rng.integers(0, 2, (n, classes))
        x = labels @ rng.normal(size=(classes, width)) + 2 * rng.normal(size=(n, width))
    else:
        labels = rng.integers(0, classes, n)
        x = rng.normal(size=(classes, width))[labels] + 1.5 * rng.normal(size=(n, width))
    x = (x * rng.uniform(0.1, 30, width) + 5).astype(np.float32)
    return tuple(Split(x[i::3], labels[i::3].astype(np.int64)) for i in range(3))  # type: ignore[return-value]


def fitted(head: str, task: str, parts: Any, shots: int | None = None, **changes: Any) -> heads.Fitted:
    train, val, test = parts
    how = {**settings.resolve(head, recipes.resolve("quick")), **changes}
    n = 2 if task == "binary-class" else 3
    return heads.fit(how, heads.Problem(train, val, test, task, n, CPU), 0, shots)


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_vote_as_those_of_scikit_learn(task: str) -> None:
    parts = made(task)
    train, _, test = parts
    theirs = (
        KNeighborsClassifier(11, metric="cosine", algorithm="brute")
        .fit(train.images.astype(np.float64), train.labels)
        .predict_proba(test.images.astype(np.float64))
    )
    if task == "multi-label":
        theirs = np.stack([p[:, 1] for p in theirs], axis=1)
    np.testing.assert_allclose(fitted("knn11", task, parts).test_scores, theirs, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("width", [12, 90])  # fewer and more features than images
def test_the_linear_probe_is_scikit_learns_optimum(task: str, width: int) -> None:
    parts = made(task, width=width)
    train, _, test = parts
    for c in (1e-3, 1.0):
        ours = fitted("linear", task, parts, inverse_regularisation=[c]).test_scores
        scaler = StandardScaler().fit(train.images.astype(np.float64))
        x, asked = (scaler.transform(part.images.astype(np.float64)) for part in (train, test))

        def theirs(labels: Any) -> Any:
            return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x, labels).predict_proba(asked)  # noqa: B023

        if task == "multi-label":
            expected = np.stack([theirs(column)[:, 1] for column in train.labels.T], axis=1)
        else:
            expected = theirs(train.labels)
        np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("head", ["linear", "medmnistplus"])
@pytest.mark.parametrize("lacking", [False, True])
def test_its_layer_gives_its_probabilities(task: str, head: str, lacking: bool) -> None:
    """Also where nobody in train has a class or a label, and where there are fewer images than features."""
    train, val, test = made(task, width=90)
    if lacking:
        there = train.labels[:, 0] == 0 if task == "multi-label" else train.labels != 1
        train = Split(train.images[there], train.labels[there])
    found = fitted(head, task, (train, val, test))
    assert found.layer is not None
    logits = torch.from_numpy(test.images).double() @ found.layer["weight"].T + found.layer["bias"]
    scores = logits.sigmoid() if task == "multi-label" else logits.softmax(1)
    np.testing.assert_allclose(scores.numpy(), found.test_scores, atol=1e-5)
    assert fitted("knn11", task, (train, val, test)).layer is None


def test_regularisation_is_chosen_on_validation() -> None:
    parts = made("multi-class", n=120, width=60)
    found = fitted("linear", "multi-class", parts)
    losses = {}
    for c in settings.HEADS["linear"]["inverse_regularisation"]:
        scores = fitted("linear", "multi-class", parts, inverse_regularisation=[c]).val_scores
        losses[c] = -np.log(scores[np.arange(len(scores)), parts[1].labels]).mean()
    assert found.chosen == {"inverse_regularisation": min(losses, key=losses.__getitem__)}


@pytest.mark.parametrize("head", ["knn20", "linear"])
def test_shuffled_labels_give_chance(head: str) -> None:
    areas = []
    for seed in range(12):
        train, val, test = made("binary-class", n=600, seed=seed)
        mixed = np.random.default_rng(seed).permutation(train.labels)
        scores = fitted(head, "binary-class", (Split(train.images, mixed), val, test)).test_scores
        areas.append(roc_auc_score(test.labels, scores[:, 1]))
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / np.sqrt(12) + 1e-9
    assert abs(np.mean(areas) - 0.5) < 0.08


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("head", ["medmnistplus", "eva"])
def test_published_probes_learn_every_task(head: str, task: str) -> None:
    parts = made(task)
    parts = tuple(Split((p.images - 5) / 10, p.labels) for p in parts)
    found = fitted(head, task, parts, learning_rate=3e-2, **({"steps": 60} if head == "eva" else {}))
    truth = parts[2].labels if task == "multi-label" else np.eye(found.test_scores.shape[1])[parts[2].labels]
    assert roc_auc_score(truth, found.test_scores) > 0.7
    assert found.best_epoch == 1 or found.history
    if task != "multi-label":
        np.testing.assert_allclose(found.test_scores.sum(1), 1, atol=1e-6)


def test_a_class_without_labels_gets_nothing_and_a_sole_one_everything() -> None:
    train, val, test = made("multi-class")
    two = Split(train.images[train.labels < 2], train.labels[train.labels < 2])
    scores = fitted("linear", "multi-class", (two, val, test)).test_scores
    assert (scores[:, 2] == 0).all() and np.allclose(scores.sum(1), 1)
    one = Split(train.images[train.labels == 1], train.labels[train.labels == 1])
    assert (fitted("linear", "multi-class", (one, val, test)).test_scores == [0, 1, 0]).all()


def test_few_shots_ask_no_more_neighbours_than_a_class_has() -> None:
    parts = made("binary-class")
    assert fitted("knn11", "binary-class", parts, shots=5).chosen == {"neighbours": 5}
    assert fitted("knn11", "binary-class", parts).chosen == {"neighbours": 11}


# --- few labels ------------------------------------------------------------------------------------------------


def test_shots_are_stratified_nested_and_another_each_draw() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 4])
    ten, five = (set(drawn(labels, split="train", draw=0, shots=k).tolist()) for k in (10, 5))
    assert np.bincount(labels[sorted(ten)]).tolist() == [10, 10, 4]  # of the rarest all there are
    assert five < ten
    assert set(drawn(labels, split="train", draw=1, shots=10).tolist()) != ten
    assert set(drawn(labels, split="val", draw=0, shots=10).tolist()) != ten


def test_an_image_is_drawn_by_its_name_not_by_its_row() -> None:
    labels = np.arange(60) % 2
    names = [f"{i}.png" for i in range(60)]
    rows = drawn(labels, split="train", draw=3, shots=4, names=names)
    turned = drawn(labels[::-1], split="train", draw=3, shots=4, names=names[::-1])
    assert {names[i] for i in rows} == {names[::-1][i] for i in turned}


def test_shots_spread_over_patients_and_fractions_take_whole_ones() -> None:
    patients = [f"p{i // 6}" for i in range(120)]  # 20 patients of 6 images
    labels = np.array([(i // 6) % 2 for i in range(120)])
    shots = drawn(labels, split="train", draw=0, shots=8, patients=patients)
    assert len({patients[i] for i in shots}) == 16
    tenth = drawn(labels, split="train", draw=0, fraction=0.2, patients=patients)
    assert sorted(len([i for i in tenth if patients[i] == p]) for p in {patients[i] for i in tenth}) == [6, 6, 6, 6]


def test_fractions_keep_the_mix_and_at_least_one_of_each() -> None:
    labels = np.repeat([0, 1], [900, 12])
    rows = drawn(labels, split="train", draw=0, fraction=0.01)
    assert np.bincount(labels[rows]).tolist() == [9, 1]
    assert (drawn(labels, split="train", draw=5, fraction=1.0) == np.arange(912)).all()


def test_labels_of_several_findings() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 4)) < [0.5, 0.2, 0.1, 0.02]).astype(np.int64)
    rows = drawn(labels, split="train", draw=0, shots=5)
    assert (labels[rows].sum(0) >= np.minimum(5, labels.sum(0))).all()
    assert len(rows) <= 5 * 5

"""Heads on frozen features: nearest neighbours, logistic regression, and probes trained by gradient descent.

Each returns probabilities (N, C) in float64: classes, or labels of their own for multi-label. An ordinal task is
answered as classes, as everywhere in this program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from bench.metrics import classification
from bench.metrics.one_vs_rest import Array
from bench.record.types import Fields, Recipe
from bench.train import rng
from bench.train.optim import LearningRates, Loss, learning_rate, make_optimizer
from bench.train.pipeline import batch_bounds

GRADIENT_TOLERANCE = 1e-6  # of the mean loss
MOST_ITERATIONS = 2_000
MOST_ROWS = 200  # of a probe's history
WORSE_IN_A_ROW = 2  # values of C, from strong to weak, after which the path ends


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features float32 (N, D) and labels int64 (N,), or (N, L)."""

    features: Array
    labels: Array


@dataclass(slots=True)
class Fitted:
    """What a head gives: probabilities of validation and test, its history, and what was chosen."""

    val_scores: Array
    test_scores: Array
    chosen: Fields = field(default_factory=dict)
    history: list[Fields] = field(default_factory=list)
    best_epoch: int = 0


def fit(
    settings: Recipe,
    train: Labelled,
    val: Labelled,
    test: Array,
    *,
    task: str,
    n_classes: int,
    seed: int,
    shots: int | None,
    device: torch.device,
) -> Fitted:
    """Fit the head that ``settings`` (:func:`bench.sweep.heads.resolve`) describe, and score ``val`` and ``test``."""
    if "neighbours" in settings:
        k = min(settings["neighbours"], len(train.labels), shots or len(train.labels))
        scores = [nearest_votes(train, part, k, task, n_classes, device) for part in (val.features, test)]
        return Fitted(scores[0], scores[1], {"neighbours": k})
    if "inverse_regularisation" in settings:
        return linear(train, val, test, settings["inverse_regularisation"], task, n_classes, device)
    return probe(settings, train, val, test, task, n_classes, seed, device)


# --- nearest neighbours ----------------------------------------------------------------------------------------


def nearest_votes(train: Labelled, asked: Array, k: int, task: str, n_classes: int, device: torch.device) -> Array:
    """The share of the ``k`` nearest training images, by cosine similarity, that have each class or label."""
    known = _unit(torch.from_numpy(train.features).to(device))
    labels = torch.from_numpy(train.labels).to(device)
    votes = labels.double() if task == "multi-label" else F.one_hot(labels, n_classes).double()
    found = []
    for part in torch.from_numpy(asked).split(2048):
        near = (_unit(part.to(device)) @ known.T).topk(k, dim=1).indices
        found.append(votes[near].mean(1).cpu())
    return torch.cat(found).numpy()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.double(), dim=1)


# --- logistic regression ---------------------------------------------------------------------------------------


def linear(
    train: Labelled, val: Labelled, test: Array, grid: list[float], task: str, n_classes: int, device: torch.device
) -> Fitted:
    """L2-regularised logistic regression on standardised features, C chosen by the loss on validation.

    The objective is scikit-learn's, ``C * sum(losses) + |W|^2 / 2``, the intercept free: one vector for two classes,
    one a class for more, one a label for multi-label. Minimised by L-BFGS (Liu and Nocedal 1989) in float64, from
    strong to weak regularisation, each from the last one's optimum. A class that nobody in ``train`` has gets 0, a
    label that everybody or nobody has its share.
    """
    space = _Space(train.features, device)
    x, x_val, x_test = (space.reduced(part) for part in (train.features, val.features, test))
    problem = _problem(task, train.labels, n_classes)
    best: tuple[float, float, Array] | None = None
    weights = np.zeros((x.shape[1] + 1, problem.targets.shape[1]))
    worse = 0
    targets = torch.from_numpy(problem.targets).to(device)
    for c in sorted(grid):
        weights = _optimum(x, targets, c, weights, problem.softmax)
        scores = problem.scores(_affine(x_val, weights))
        loss = classification.negative_log_likelihood(val.labels, scores, task)
        if best is None or loss < best[0]:
            best, worse = (loss, c, weights), 0
        elif (worse := worse + 1) >= WORSE_IN_A_ROW:
            break
    assert best is not None
    _, c, weights = best
    of_val, of_test = (problem.scores(_affine(part, weights)) for part in (x_val, x_test))
    return Fitted(of_val, of_test, {"inverse_regularisation": c})


class _Space:
    """Standardised features, in the span of the training images where those are fewer than the features.

    The optimum lies in that span, whose coordinates are fewer: an exact short cut.
    """

    def __init__(self, features: Array, device: torch.device) -> None:
        x = torch.from_numpy(features).to(device).double()
        self.mean, std = x.mean(0), x.std(0, correction=0)
        self.std = torch.where(std > 0, std, 1.0)
        self.device, self.basis = device, None
        if x.shape[0] < x.shape[1]:
            self.basis = torch.linalg.svd(self.standardised(features), full_matrices=False).Vh.T

    def standardised(self, features: Array) -> torch.Tensor:
        return (torch.from_numpy(features).to(self.device).double() - self.mean) / self.std

    def reduced(self, features: Array) -> torch.Tensor:
        x = self.standardised(features)
        return x if self.basis is None else x @ self.basis


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is fitted: ``targets`` (N, K) of softmax or K logistic losses; ``fixed`` probabilities of all else."""

    targets: Array
    softmax: bool
    columns: list[int]
    fixed: Array
    paired: bool

    def scores(self, logits: torch.Tensor) -> Array:
        """Probabilities (n, C) of logits (n, K)."""
        given = (torch.softmax(logits, 1) if self.softmax else torch.sigmoid(logits)).cpu().numpy()
        found = np.tile(self.fixed, (len(given), 1))
        if self.paired:
            given = np.concatenate([1 - given, given], axis=1)
        found[:, self.columns] = given
        return found


def _problem(task: str, labels: Array, n_classes: int) -> _Problem:
    if task == "multi-label":
        share = labels.mean(0)
        open_ = np.flatnonzero((share > 0) & (share < 1)).tolist()
        return _Problem(labels[:, open_].astype(np.float64), False, open_, share.astype(np.float64), False)
    present = np.unique(labels).tolist()
    fixed = np.zeros(n_classes)
    if len(present) == 1:
        fixed[present] = 1.0
        return _Problem(np.zeros((len(labels), 0)), False, [], fixed, False)
    if len(present) == 2:
        return _Problem((labels == present[1])[:, None].astype(np.float64), False, present, fixed, True)
    return _Problem((labels[:, None] == np.array(present)).astype(np.float64), True, present, fixed, False)


def _affine(x: torch.Tensor, weights: Array) -> torch.Tensor:
    w = torch.from_numpy(weights).to(x.device)
    return x @ w[:-1] + w[-1]


def _optimum(x: torch.Tensor, targets: torch.Tensor, c: float, start: Array, softmax: bool) -> Array:
    """Minimise the mean loss + |W|^2 / (2 C N) from ``start`` (D + 1, K); the last row is the intercept."""
    n, shape = len(x), start.shape
    if not shape[1]:
        return start
    strength = 1.0 / (c * n)

    def objective(flat: Array) -> tuple[float, Array]:
        w = torch.from_numpy(flat.reshape(shape)).to(x.device)
        logits = x @ w[:-1] + w[-1]
        if softmax:
            losses = torch.logsumexp(logits, 1) - (logits * targets).sum(1)
            off = torch.softmax(logits, 1) - targets
        else:
            losses = (F.softplus(logits) - logits * targets).sum(1)
            off = torch.sigmoid(logits) - targets
        gradient = torch.cat([x.T @ off / n + strength * w[:-1], off.sum(0, keepdim=True) / n])
        value = losses.mean() + 0.5 * strength * (w[:-1] ** 2).sum()
        return float(value), gradient.cpu().numpy().reshape(-1)

    options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 1e-13}
    found = minimize(objective, start.reshape(-1), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


# --- published probes ------------------------------------------------------------------------------------------


def probe(
    settings: Recipe,
    train: Labelled,
    val: Labelled,
    test: Array,
    task: str,
    n_classes: int,
    seed: int,
    device: torch.device,
) -> Fitted:
    """One linear layer trained by gradient descent as ``settings`` say; the epoch is chosen on validation."""
    torch.manual_seed(rng.torch_seed(seed, rng.WEIGHTS))
    x, x_val, x_test = (torch.from_numpy(part).to(device) for part in (train.features, val.features, test))
    labels = torch.from_numpy(train.labels).to(device)
    n, size = len(labels), settings["batch_size"]
    bounds = batch_bounds(n, size)
    epochs = settings["epochs"] if "epochs" in settings else math.ceil(settings["steps"] / len(bounds))
    patience = settings.get("patience_epochs") or max(1, math.ceil(settings["patience_share"] * epochs))
    recipe = {**settings, "epochs": epochs}
    layer = nn.Linear(x.shape[1], n_classes).to(device)
    optimizer = make_optimizer(layer, recipe)
    rates = LearningRates(optimizer, device)
    loss = Loss(task, {"label_smoothing": 0.0, "class_weights": "none"}, train.labels, n_classes, device)
    fitted, best = Fitted(np.empty(0), np.empty(0)), -math.inf
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    for epoch in range(epochs):
        order = torch.from_numpy(rng.order(n, seed, epoch)).to(device)
        for number, (first, last) in enumerate(bounds):
            rates.set(learning_rate(recipe, epoch * len(bounds) + number, len(bounds)))
            chosen = order[first:last]
            optimizer.zero_grad(set_to_none=True)
            loss(layer(x[chosen]), labels[chosen]).mean().backward()
            optimizer.step()
        value = _selected(settings["select"], val.labels, _probabilities(layer, x_val, task), task)
        if epoch % max(1, epochs // MOST_ROWS) == 0:
            fitted.history.append({"epoch": epoch + 1, settings["select"]: value if math.isfinite(value) else None})
        if value > best or not epoch:
            best, fitted.best_epoch = value, epoch + 1
            kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        elif epoch + 1 - fitted.best_epoch >= patience:
            break
    layer.load_state_dict(kept)
    fitted.val_scores, fitted.test_scores = (_probabilities(layer, part, task) for part in (x_val, x_test))
    return fitted


def _selected(rule: str, labels: Array, scores: Array, task: str) -> float:
    """What an epoch is chosen by; undefined values are the worst."""
    measure = classification.auc if rule == "val_auc" else classification.accuracy
    value = float(measure(labels, scores, task))
    return value if math.isfinite(value) else -math.inf


def _probabilities(layer: nn.Linear, x: torch.Tensor, task: str) -> Array:
    with torch.inference_mode():
        logits = layer(x).double()
        return (torch.sigmoid(logits) if task == "multi-label" else torch.softmax(logits, 1)).cpu().numpy()

"""Heads on frozen features: nearest neighbours, logistic regression, and probes trained by gradient descent.

Each returns probabilities (N, C) in float64: classes, or labels of their own for multi-label. An ordinal task is
answered as classes, as everywhere in this program. All but neighbours come down to one linear layer on the features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from bench.metrics import classification
from bench.metrics.one_vs_rest import Array
from bench.record.types import Fields, Recipe
from bench.registry import Split
from bench.train import rng
from bench.train.loop import Outcome
from bench.train.optim import LearningRates, Loss, learning_rate, make_optimizer
from bench.train.pipeline import batch_bounds

GRADIENT_TOLERANCE = 1e-6  # of the mean loss
MOST_ITERATIONS = 2_000
MOST_ROWS = 200  # of a probe's history
WORSE_IN_A_ROW = 2  # values of C, from strong to weak, after which the path ends
NEVER = 1e4  # a logit of this size is a probability of 0 or 1
Layer = dict[str, torch.Tensor]


class Problem(NamedTuple):
    """What a head is fitted to: features float32 (N, D) in place of images, labels int64 (N,), or (N, L)."""

    train: Split
    val: Split
    test: Split
    task: str
    n_classes: int
    device: torch.device

    def features(self) -> list[torch.Tensor]:
        """Of train, val and test, on the device."""
        return [torch.from_numpy(part.images).to(self.device) for part in (self.train, self.val, self.test)]

    def labels(self) -> torch.Tensor:
        """Of train, on the device."""
        return torch.from_numpy(self.train.labels).to(self.device)


@dataclass(slots=True)
class Fitted(Outcome):
    """What a head gives.

    Attributes:
        chosen: what it settled on.
        layer: ``weight`` (C, D) and ``bias`` (C,), float64, whose logits of features give its probabilities (softmax,
            or a sigmoid each for multi-label); None of neighbours.
    """

    chosen: Fields = field(default_factory=dict)
    layer: Layer | None = None


def fit(settings: Recipe, problem: Problem, seed: int, shots: int | None) -> Fitted:
    """Fit the head that ``settings`` (:func:`bench.sweep.heads.resolve`) describe, and score validation and test."""
    if "neighbours" in settings:
        return nearest(problem, min(settings["neighbours"], shots or len(problem.train.labels)))
    if "inverse_regularisation" in settings:
        return linear(problem, settings["inverse_regularisation"])
    return probe(settings, problem, seed)


# --- nearest neighbours ----------------------------------------------------------------------------------------


def nearest(problem: Problem, k: int) -> Fitted:
    """The share of the ``k`` nearest training images, by cosine similarity, that have each class or label."""
    k = min(k, len(problem.train.labels))
    known, *asked = (F.normalize(part.double(), dim=1) for part in problem.features())
    labels = problem.labels()
    votes = labels.double() if problem.task == "multi-label" else F.one_hot(labels, problem.n_classes).double()
    of_val, of_test = (
        torch.cat([votes[(some @ known.T).topk(k, dim=1).indices].mean(1).cpu() for some in part.split(2048)]).numpy()
        for part in asked
    )
    return Fitted(val_scores=of_val, test_scores=of_test, chosen={"neighbours": k})


# --- logistic regression ---------------------------------------------------------------------------------------


def linear(problem: Problem, grid: list[float]) -> Fitted:
    """L2-regularised logistic regression on standardised features, C chosen by the loss on validation.

    The objective is scikit-learn's, ``C * sum(losses) + |W|^2 / 2``, the intercept free: one vector for two classes,
    one a class for more, one a label for multi-label. Minimised by L-BFGS (Liu and Nocedal 1989) in float64, from
    strong to weak regularisation, each from the last one's optimum. A class that nobody in ``train`` has gets 0, a
    label that everybody or nobody has its share.
    """
    (x, x_val, x_test), frame = _reduced(problem.features())
    targets_of = _targets(problem.task, problem.train.labels, problem.n_classes)
    best: tuple[float, float, Array] | None = None
    weights = np.zeros((x.shape[1] + 1, targets_of.values.shape[1]))
    worse = 0
    targets = torch.from_numpy(targets_of.values).to(problem.device)
    for c in sorted(grid):
        weights = _optimum(x, targets, c, weights, targets_of.softmax)
        scores = targets_of.scores(_affine(x_val, weights))
        loss = classification.negative_log_likelihood(problem.val.labels, scores, problem.task)
        if best is None or loss < best[0]:
            best, worse = (loss, c, weights), 0
        elif (worse := worse + 1) >= WORSE_IN_A_ROW:
            break
    assert best is not None
    _, c, weights = best
    of_val, of_test = (targets_of.scores(_affine(part, weights)) for part in (x_val, x_test))
    layer = targets_of.layer(*frame.layer(torch.from_numpy(weights)))
    return Fitted(val_scores=of_val, test_scores=of_test, chosen={"inverse_regularisation": c}, layer=layer)


class _Frame(NamedTuple):
    """How features (N, D) were brought into the coordinates that are fitted in: ``(x - mean) / std @ basis``."""

    mean: torch.Tensor
    std: torch.Tensor
    basis: torch.Tensor | None

    def layer(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (d + 1, K) in those coordinates, as weight (K, D) and bias (K,) of the features themselves."""
        inner = weights[:-1] if self.basis is None else self.basis @ weights[:-1]
        inner = inner / self.std[:, None]
        return inner.T, weights[-1] - self.mean @ inner


def _reduced(parts: list[torch.Tensor]) -> tuple[list[torch.Tensor], _Frame]:
    """Standardised features, in the span of the training images where those are fewer than the features.

    The optimum lies in that span, whose coordinates are fewer: an exact short cut.
    """
    x = parts[0].double()
    std = x.std(0, correction=0)
    mean, std = x.mean(0), torch.where(std > 0, std, 1.0)
    parts = [(part.double() - mean) / std for part in parts]
    if x.shape[0] >= x.shape[1]:
        return parts, _Frame(mean.cpu(), std.cpu(), None)
    basis = torch.linalg.svd(parts[0], full_matrices=False).Vh.T
    return [part @ basis for part in parts], _Frame(mean.cpu(), std.cpu(), basis.cpu())


@dataclass(frozen=True, slots=True)
class _Targets:
    """What is fitted: ``values`` (N, K) of softmax or K logistic losses; ``fixed`` probabilities of all else."""

    values: Array
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

    def layer(self, weight: torch.Tensor, bias: torch.Tensor) -> Layer:
        """The layer of all C logits, of that of the K fitted ones: weight (K, D) and bias (K,)."""
        fixed = torch.from_numpy(self.fixed)
        whole = {"weight": weight.new_zeros(len(fixed), weight.shape[1]), "bias": fixed.logit().clamp(-NEVER, NEVER)}
        if self.paired:  # one logit of two classes: it is that of the second, and the first has 0
            weight, bias = (torch.cat([torch.zeros_like(part), part]) for part in (weight, bias))
        whole["weight"][self.columns], whole["bias"][self.columns] = weight, bias
        return whole


def _targets(task: str, labels: Array, n_classes: int) -> _Targets:
    if task == "multi-label":
        share = labels.mean(0)
        open_ = np.flatnonzero((share > 0) & (share < 1)).tolist()
        return _Targets(labels[:, open_].astype(np.float64), False, open_, share.astype(np.float64), False)
    present = np.unique(labels).tolist()
    fixed = np.zeros(n_classes)
    if len(present) == 1:
        fixed[present] = 1.0
        return _Targets(np.zeros((len(labels), 0)), False, [], fixed, False)
    if len(present) == 2:
        return _Targets((labels == present[1])[:, None].astype(np.float64), False, present, fixed, True)
    return _Targets((labels[:, None] == np.array(present)).astype(np.float64), True, present, fixed, False)


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


def probe(settings: Recipe, problem: Problem, seed: int) -> Fitted:
    """One linear layer trained by gradient descent as ``settings`` say; the epoch is chosen on validation."""
    torch.manual_seed(rng.torch_seed(seed, rng.WEIGHTS))
    (x, x_val, x_test), labels = problem.features(), problem.labels()
    task, n_classes, device = problem[3:]
    n, size = len(labels), settings["batch_size"]
    bounds = batch_bounds(n, size)
    epochs = settings["epochs"] if "epochs" in settings else math.ceil(settings["steps"] / len(bounds))
    patience = settings.get("patience_epochs") or max(1, math.ceil(settings["patience_share"] * epochs))
    recipe = {**settings, "epochs": epochs}
    layer = nn.Linear(x.shape[1], n_classes).to(device)
    optimizer = make_optimizer(layer, recipe)
    rates = LearningRates(optimizer, device)
    loss = Loss(task, {"label_smoothing": 0.0, "class_weights": "none"}, problem.train.labels, n_classes, device)
    fitted, best = Fitted(), -math.inf
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    for epoch in range(epochs):
        order = torch.from_numpy(rng.order(n, seed, epoch)).to(device)
        for number, (first, last) in enumerate(bounds):
            rates.set(learning_rate(recipe, epoch * len(bounds) + number, len(bounds)))
            chosen = order[first:last]
            optimizer.zero_grad(set_to_none=True)
            loss(layer(x[chosen]), labels[chosen]).mean().backward()
            optimizer.step()
        value = _selected(settings["select"], problem.val.labels, _probabilities(layer, x_val, task), task)
        if epoch % max(1, epochs // MOST_ROWS) == 0:
            fitted.history.append({"epoch": epoch + 1, settings["select"]: value if math.isfinite(value) else None})
        if value > best or not epoch:
            best, fitted.best_epoch = value, epoch + 1
            kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        elif epoch + 1 - fitted.best_epoch >= patience:
            break
    layer.load_state_dict(kept)
    fitted.val_scores, fitted.test_scores = (_probabilities(layer, part, task) for part in (x_val, x_test))
    fitted.layer = {name: tensor.double().cpu() for name, tensor in kept.items()}
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

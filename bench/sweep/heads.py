"""Heads on frozen features: what is fitted, with which settings, and where they come from. Torch-free.

``knn11``, ``knn20`` and ``linear`` are exact and depend on no seed. ``medmnistplus`` and ``eva`` are published probes,
trained by gradient descent.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.sweep import recipes
from bench.sweep.recipes import Settings

EXACT = ("knn11", "knn20", "linear")  # these depend on no seed, and are the default

HEADS: Mapping[str, Settings] = {
    # Votes of the k nearest training images by cosine similarity. k = 11 as MedMNIST+ (Doerrich et al. 2024,
    # arXiv:2404.15786), 20 as DINO (Caron et al. 2021).
    "knn11": {"neighbours": 11},
    "knn20": {"neighbours": 20},
    # L2-regularised logistic regression on standardised features; C of scikit-learn's form, chosen on validation.
    "linear": {"inverse_regularisation": [10.0**power for power in range(-6, 3)]},
    # MedMNIST+ (as above): one linear layer, AdamW 1e-4, cosine, at most 100 epochs, patience 5, batch 64.
    "medmnistplus": {"epochs": 100, "batch_size": 64, "learning_rate": 1e-4, "patience_epochs": 5, "select": "val_auc"},
    # eva (kaiko.ai, docs/leaderboards.md): AdamW 3e-4, cosine, batch 256, 12,500 steps, stops after a fifth of them
    # without a better validation score.
    "eva": {"steps": 12_500, "batch_size": 256, "learning_rate": 3e-4, "patience_share": 0.2, "select": "val_acc"},
}

OF_THE_INPUT = ("as_rgb", "mean", "std", "eval_batch_size")


def resolve(head: str, recipe: Settings) -> Settings:
    """The settings of a Cell with frozen features: those of the head, and how a recipe feeds images.

    Args:
        head: one of :data:`HEADS`.
        recipe: as :func:`bench.sweep.recipes.resolve` returns it.
    """
    fed = {key: recipe[key] for key in OF_THE_INPUT}
    trained = {}
    if "batch_size" in HEADS[head]:
        plain = recipes.Recipe.model_validate({}).model_dump()
        used = ("optimizer", "betas", "weight_decay", "decay_norm_and_bias", "warmup_epochs", "final_lr_ratio")
        trained = {
            **{key: plain[key] for key in used},
            "weight_decay": 0.01,
            "schedule": "cosine",
            "layer_decay": 1.0,
            "head_rate": 1.0,
        }
    return {"name": head, **fed, **trained, **HEADS[head]}

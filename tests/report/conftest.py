"""Synthetic runs: records as the runner writes them, and the scores beside them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench.record import store

RECIPE = {"name": "quick", "epochs": 3, "learning_rate": 0.001, "batch_size": 64}
MACHINE = {
    "device": "cpu",
    "hardware": "Some CPU",
    "threads": 2,
    "python": "3.11.2",
    "versions": {"torch": "2.15.0", "timm": "1.0.20"},
}


def key_of(kind: str, spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([kind, spec], sort_keys=True).encode()).hexdigest()[:20]


def record(
    kind: str, spec: dict[str, Any], metrics: dict[str, Any], status: str = "ok", reason: str = ""
) -> store.Record:
    made = {
        "schema": store.SCHEMA,
        "key": key_of(kind, spec),
        "kind": kind,
        "status": status,
        "reason": reason,
        "family": re.findall(r"[a-z]+|^", spec["model"])[0],  # as these models would be registered
        "spec": spec,
        "metrics": store.plain(metrics),
        "environment": MACHINE if status != "unsupported" else {"device": "cpu", "threads": 2},
        "timings": {"wall_s": 1.0},
        "log_tail": [],
    }
    assert store.invalid(made) is None
    return made


class Run:
    """Collects records; ``write`` lays them out as a run directory. ``of`` are fields of a spec other than usual."""

    def __init__(self) -> None:
        self.records: list[store.Record] = []
        self.arrays: dict[str, dict[str, np.ndarray]] = {}

    def accuracy(
        self,
        model: str,
        dataset: str,
        auc: float | None = None,
        *,
        acc: float | None = None,
        seed: int = 0,
        size: int = 28,
        resolution: int = 64,
        recipe: dict[str, Any] | None = None,
        status: str = "ok",
        reason: str = "",
        fingerprint: str = "f0",
        scores: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        of: dict[str, Any] | None = None,
        **metrics: Any,
    ) -> store.Record:
        recipe = recipe or RECIPE
        spec = {
            "model": model,
            "dataset": dataset,
            "size": size,
            "resolution": resolution,
            "resize": "native" if size == resolution else "nearest",
            "recipe": recipe["name"],
            "recipe_settings": recipe,
            "seed": seed,
            "precision": "fp32",
            "data_fingerprint": fingerprint,
            "weights_sha256": None,
            "model_plugin_sha256": None,
            "data_plugin_sha256": None,
            "protocol": 1,
            **(of or {}),
        }
        if scores is not None:
            auc, acc = official(scores, labels)
        found = {"test_auc": auc, "test_acc": acc, **metrics} if status == "ok" else {}
        made = record("accuracy", spec, found, status, reason)
        if scores is not None:
            self.arrays[made["key"]] = {"test_scores": scores, "test_labels": labels}
        self.records.append(made)
        return made

    def efficiency(
        self,
        model: str,
        resolution: int,
        *,
        speed: float | None = None,
        memory: float | None = None,
        batch: int = 8,
        mode: str = "infer",
        precision: str = "fp32",
        device: str = "cpu",
        status: str = "ok",
        reason: str = "",
        of: dict[str, Any] | None = None,
        **metrics: Any,
    ) -> store.Record:
        spec = {
            "model": model,
            "resolution": resolution,
            "batch": batch,
            "precision": precision,
            "compile": False,
            "mode": mode,
            "device": device,
            "hardware": "Some CPU" if device == "cpu" else "Some GPU",
            "threads": 2,
            "backend": "cpu",
            "versions": {"torch": "2.15.0"},
            "budget_s": 1.0,
            "rounds": 3,
            "omp_wait_policy": "PASSIVE",
            "model_plugin_sha256": None,
            "protocol": 2,
            **(of or {}),
        }
        found = (
            {"throughput_images_per_s_p50": speed, "peak_memory_mib": memory, **metrics} if status == "ok" else metrics
        )
        made = record("efficiency", spec, found, status, reason)
        self.records.append(made)
        return made

    def write(self, out: Path) -> Path:
        for made in self.records:
            store.write_record(out, made, self.arrays.get(made["key"]))
        return out


def official(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """AUC and ACC as MedMNIST's evaluator computes them, by scikit-learn."""
    if scores.ndim == 1:
        return float(roc_auc_score(labels, scores)), float(((scores > 0.5) == labels).mean())
    areas = [roc_auc_score(labels == k, scores[:, k]) for k in range(scores.shape[1])]
    return float(np.mean(areas)), float((scores.argmax(1) == labels).mean())


def class_scores(n: int, classes: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax scores of ``classes`` unequal classes, the right one's logit raised by ``distance``."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) ** 1.5 / n**1.5 * classes).astype(np.int64)
    logits = generator.normal(size=(n, classes)) + distance * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def binary_scores(n: int, distance: float, seed: int, positives: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two normal distributions ``distance`` apart, through the logistic function; labels 0 and 1."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) < positives * n).astype(np.int64)
    return 1 / (1 + np.exp(-generator.normal(labels * distance, 1.0))), labels


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def full_run() -> Run:
    """Everything that can be in a run: seeds, protocols, saved scores, failures of every kind, two devices."""
    run = Run()
    for i, (model, distance) in enumerate({"resnet18": 1.6, "vit_tiny_patch16_224": 0.9, "medmamba_tiny": 1.5}.items()):
        for seed in (0, 1):
            scores, labels = binary_scores(156, distance, 10 * i + seed)
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels,
                         test_balanced_acc=0.6, test_f1_macro=0.61, test_mcc=0.2, test_ece=0.05)  # fmt: skip
        run.accuracy(model, "phantom_local", 0.99 - 0.1 * i, acc=0.9, size=64, test_confusion=[[50, 0], [10, 40]])
    for i, model in enumerate(("resnet18", "medmamba_tiny")):
        scores, labels = class_scores(400, 5, 0.8, 50 + i)
        run.accuracy(model, "retinamnist", scores=scores, labels=labels)
    run.accuracy("vit_tiny_patch16_224", "retinamnist", status="failed", reason="RuntimeError: a | b <c>\nsecond line")
    run.accuracy("resnet18", "breastmnist", 0.95, acc=0.9, recipe={**RECIPE, "learning_rate": 0.01})
    for dataset in ("breastmnist", "retinamnist"):
        run.accuracy("swin_tiny", dataset, status="unsupported", reason="the resolution must be a multiple of 7")
    run.accuracy("resnet18", "bloodmnist", status="diverged", reason="the loss was NaN in epoch 2")
    for model, speed, power in (("resnet18", 400, 1.0), ("vit_tiny_patch16_224", 700, 1.5), ("medmamba_tiny", 90, 1.0)):
        for resolution in (64, 128, 256):
            growth = (resolution / 64) ** (2 * power)
            run.efficiency(
                model,
                resolution,
                speed=speed / growth,
                memory=4 * 11_689_512 / 2**20 + 50 * growth,  # weights and activations
                params=11_689_512,
                macs_g=0.15 * growth,
                throughput_images_per_s_p10=0.97 * speed / growth,
                throughput_images_per_s_p90=1.02 * speed / growth,
                latency_ms_p50=3.2 * growth,
                latency_ms_p90=3.4 * growth,
                latency_ms_p99=4.0 * growth,
                noise_rel=0.051 if (noisy := resolution == 256 and model == "resnet18") else 0.012 + resolution / 1e5,
                noisy=noisy,
                noisy_evidence=["rounds of 20, 23, 21 ms a step", "GPU hot"] if noisy else [],
            )
    run.efficiency("medmamba_tiny", 512, status="oom", reason="5.2 GiB did not fit")
    run.efficiency("resnet18", 64, mode="train", speed=120.0, memory=400.0, forward_ms_p50=20.0, backward_ms_p50=41.5)
    return run


@pytest.fixture
def run_info() -> dict[str, Any]:
    return {
        "command": "bench run --models all --datasets breastmnist,retinamnist,phantom_local",
        "preset": "quick",
        "skipped": ["pathmnist at 28 pixels: /data/pathmnist.npz is missing"],
        "sweep": {},
    }


@pytest.fixture
def frozen(run: Run) -> Run:
    """Frozen features of ``net`` and ``other``, and beside each the same with random weights: best and cheapest."""
    for place, (model, distance, ms) in enumerate(
        (
            ("net[pretrained=true]", 2.0, 20.0),
            ("net", 2.1, 1.0),
            ("other[pretrained=true]", 1.9, 10.0),
            ("other", 0.3, 9.0),
        )
    ):
        for seed in range(3):
            generator = np.random.default_rng(seed)
            labels = np.arange(600) % 2
            logits = generator.normal(size=600) + np.random.default_rng(100 + 10 * place + seed).normal(0, 0.3, 600)
            scores = 1 / (1 + np.exp(-(logits + distance * labels)))
            weights = "ab" * 32 if "pretrained" in model else None
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels, recipe={"name": "linear"},
                         of={"track": "frozen", "head": "linear", "weights_sha256": weights})  # fmt: skip
        run.efficiency(model, 64, speed=1000 / ms, memory=10 * ms, batch=16, latency_ms_p50=ms, macs_g=ms / 100,
                       params=int(ms * 1e6), latency_noise_rel=0.01)  # fmt: skip
    return run


@pytest.fixture
def four(run: Run) -> Run:
    """``large`` is best, ``small`` and ``middle`` hardly worse and cheaper, ``bad`` cheapest and far worse; 3 seeds."""
    for place, (model, distance, ms) in enumerate(
        (("large", 2.2, 40.0), ("middle", 2.1, 20.0), ("small", 2.05, 10.0), ("bad", 0.3, 1.0))
    ):
        for seed in range(3):
            generator = np.random.default_rng(seed)  # images that are hard are so for every model
            labels = np.arange(600) % 2
            logits = generator.normal(size=600) + np.random.default_rng(100 + 10 * place + seed).normal(0, 0.3, 600)
            scores = 1 / (1 + np.exp(-(logits + distance * labels)))
            run.accuracy(model, "breastmnist", seed=seed, scores=scores, labels=labels)
        run.efficiency(model, 64, speed=1000 / ms, memory=10 * ms, batch=16, latency_ms_p50=ms, macs_g=ms / 100,
                       params=int(ms * 1e6), latency_noise_rel=0.01)  # fmt: skip
    return run

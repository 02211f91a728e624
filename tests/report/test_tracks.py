"""Boards of several tracks: kept apart, set side by side, and learning curves over few labels."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from bench.record.store import read_records
from bench.registry.names import bare_model
from bench.report.build import rebuild
from bench.report.sections.tracks import learning_curves

WEIGHTS = {"source": "/w/net.safetensors", "sha256": "ab" * 32, "licence": "cc-by-nc-4.0", "trained_on": "ImageNet-1k"}


def two_classes(n: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, 2) of two normal distributions ``distance`` apart, and labels."""
    labels = (np.arange(n) < 0.7 * n).astype(np.int64)
    one = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(labels * distance, 1.0)))
    return np.stack([1 - one, one], axis=1), labels


def add(run: Any, track: str, distance: float, *, weights: bool, head: str = "", **of: Any) -> list[float]:
    """Two seeds on one test set; returns their AUC by scikit-learn."""
    name = "timm:net[pretrained=/w/net.safetensors]" if weights else "timm:net"
    areas = []
    for seed in (0, 1):
        scores, labels = two_classes(400, distance, seed + int(10 * distance))
        spec = {"weights_sha256": WEIGHTS["sha256"] if weights else None, **of}
        spec |= {"track": "frozen", "head": head} if track == "frozen" else {}
        recipe = {"name": head or track, "epochs": 3}
        more = {"weights": WEIGHTS} if weights else {}
        run.accuracy(
            name, "breastmnist", seed=seed, scores=scores, labels=labels, recipe=recipe, of=spec,
            labelled_train=of.get("shots", 273) * 2, **more,
        )  # fmt: skip
        areas.append(roc_auc_score(labels, scores[:, 1]))
    return areas


def page(run: Any, out: Path) -> str:
    run.write(out)
    rebuild(out, figures=False)
    return (out / "LEADERBOARD.md").read_text()


def test_tracks_stand_side_by_side_with_what_pretraining_buys(run: Any, tmp_path: Path) -> None:
    frozen = add(run, "frozen", 2.5, weights=True, head="linear")
    random = add(run, "frozen", 0.6, weights=False, head="linear")
    tuned = add(run, "finetune", 1.5, weights=True)
    scratch = add(run, "scratch", 1.5, weights=False)
    text = page(run, tmp_path)
    table = text.partition("## What pretraining buys")[2]
    for way, areas in (
        ("frozen, linear", frozen), ("frozen, random weights, linear", random),
        ("fine-tuned, finetune", tuned), ("scratch, scratch", scratch),
    ):  # fmt: skip
        assert f"| `timm:net` | {way} | {np.mean(areas):.3f} |" in table
    gain = np.mean(frozen) - np.mean(random)
    assert f"| frozen, linear | frozen, random weights, linear | {gain:+.3f} |" in table
    assert "1 / 0 of 1" in table
    assert "| fine-tuned, finetune | scratch, scratch |" in table
    assert "frozen, random weights, linear | scratch" not in table  # only what has weights is compared
    assert "net.safetensors, cc-by-nc-4.0, not for commercial use, trained on ImageNet-1k" in table
    assert "frozen features, linear" in text  # a board of its own
    assert "fine-tuning, finetune" in text


def test_weights_are_no_ablation_and_without_them_there_is_no_section(run: Any, tmp_path: Path) -> None:
    add(run, "scratch", 1.0, weights=False)
    assert "pretraining buys" not in page(run, tmp_path)


def test_few_labels_are_curves_and_no_rows(run: Any, tmp_path: Path) -> None:
    whole = add(run, "frozen", 2.0, weights=True, head="linear")
    far = (1.0, 1.2, 1.4)
    given = [add(run, "frozen", d, weights=True, head="linear", shots=5, draw=n) for n, d in enumerate(far)]
    draws = [np.mean(areas) for areas in given]
    text = page(run, tmp_path)
    expected = f"| {np.mean(draws):.3f} ± {np.std(draws, ddof=1):.3f} | {np.mean(whole):.3f} |"
    assert "5 shots (10 images) | all (546 images)" in text
    assert expected in text
    csv = (tmp_path / "leaderboard_accuracy.csv").read_text().splitlines()
    assert len(csv) == 2  # the heading and the row with all labels
    (curve,) = learning_curves(read_records(tmp_path)[0])
    assert [(point[0], point[1], point[4]) for point in curve.points] == [("5 shots", 10, 3), ("all", 546, 1)]


def test_names_without_their_weights() -> None:
    for text, bare in (
        ("resnet18[pretrained=true]", "resnet18"), ("timm:vit.dino[pretrained=/a/b.pt]", "timm:vit"),
        ("medmamba_tiny[branch=ssm,pretrained=w]", "medmamba_tiny[branch=ssm]"),
        ("timm:hf-hub:a/b.c[pretrained=true]", "timm:hf-hub:a/b.c"), ("resnet18", "resnet18"),
    ):  # fmt: skip
        assert bare_model(text) == bare

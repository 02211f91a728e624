"""Accuracy cells from end to end, on made-up datasets and a tiny model registered as a plug-in would be."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medmnist.evaluator import getACC, getAUC
from torch import nn

from bench import registry
from bench.errors import ConfigError
from bench.record.cells import AccuracyCell, Context, Result
from bench.registry import RemoteFile, Split, register_dataset, register_model
from bench.sweep.recipes import resolve
from bench.train.accuracy import run_accuracy
from bench.train.loop import Trainer

TASKS = {"binary-class": 2, "multi-class": 3, "ordinal-regression": 4, "multi-label": 3}
CALLS: list[tuple[int, int, int]] = []


def accuracy_test_net(num_classes: int, in_chans: int, img_size: int, **options: Any) -> nn.Module:
    CALLS.append((num_classes, in_chans, img_size))
    body = nn.Sequential(nn.Conv2d(in_chans, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, num_classes))


class Made:
    """Brightness in one corner tells the class; written as adapters are."""

    def __init__(self, info: registry.DatasetInfo) -> None:
        self.info = info

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        return f"made-1-{self.info.name}-{size}"

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        return {
            name: self._split(size, seed, n)
            for seed, (name, n) in enumerate({"train": 65, "val": 30, "test": 41}.items())
        }

    def _split(self, size: int, seed: int, n: int) -> Split:
        rng, classes = np.random.default_rng(seed), TASKS[self.info.task]
        multi = self.info.task == "multi-label"
        labels = rng.integers(0, 2, (n, classes)) if multi else rng.integers(0, classes, n)
        images = rng.integers(0, 100, (n, size, size, self.info.channels))
        images[:, : size // 2, : size // 2] += 40 * labels.reshape(n, -1)[:, :1, None, None]
        return Split(images.astype(np.uint8), labels.astype(np.int64))


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Register for this module only: other tests look at all that is registered."""
    names = [f"accuracy-test-{task}" for task in TASKS]
    register_model(family="test", unsupported=lambda resolution, options: "too large" if resolution > 64 else None)(
        accuracy_test_net
    )
    for name, (task, n) in zip(names, TASKS.items(), strict=True):
        register_dataset(name, task=task, classes=tuple("abcd"[:n]), channels=1, mirror_safe=False)(Made)
    yield
    del registry.models._info["accuracy_test_net"]
    for name in names:
        del registry.datasets._info[name]


def cell(task: str = "binary-class", **changes: Any) -> AccuracyCell:
    recipe = resolve("quick", overrides={"epochs": 3, "batch_size": 16, **changes.pop("recipe", {})})
    given = {
        "size": 16,
        "resolution": 16,
        "resize": "native",
        "seed": 0,
        "precision": "fp32",
        **changes,
    }
    dataset = f"accuracy-test-{task}"
    given.setdefault("data_fingerprint", f"made-1-{dataset}-{given['size']}")
    return AccuracyCell(model="accuracy_test_net", dataset=dataset, recipe=recipe, **given)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def execute(what: AccuracyCell, events: list[dict[str, Any]] | None = None) -> Result:
        progress = (lambda event: None) if events is None else events.append
        context = Context(
            device="cpu",
            threads=torch.get_num_threads(),
            data_root=None,
            cache_dir=tmp_path,
            out=tmp_path,
            progress=progress,
        )
        return run_accuracy(what, context)

    yield execute
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("task", TASKS)
def test_a_cell_reports_what_the_official_evaluator_reads_off_its_scores(run: Any, task: str) -> None:
    result = run(cell(task))
    arrays, metrics = result.arrays, result.metrics
    assert result.status == "ok" and set(arrays) == {"val_scores", "val_labels", "test_scores", "test_labels"}
    assert arrays["test_scores"].shape == (41, TASKS[task]) and arrays["test_scores"].dtype == np.float64
    official = "multi-label, binary-class" if task == "multi-label" else task
    for split in ("val", "test"):
        labels, scores = arrays[f"{split}_labels"], arrays[f"{split}_scores"]
        assert metrics[f"{split}_acc"] == getACC(labels, scores, official)
        assert metrics[f"{split}_auc"] == getAUC(labels, scores, official)
    promised = (
        "acc auc balanced_acc f1_macro mcc precision_macro sensitivity_macro specificity_macro ece brier confusion loss"
    )
    assert {f"test_{name}" for name in promised.split()} <= set(metrics)
    assert (metrics["epochs"], len(result.history)) == (3, 3) and 1 <= metrics["best_epoch"] <= 3
    assert len(metrics["classes"]) == len(metrics["test_confusion"])
    assert metrics["params"] == 8 * (3 * 25 + 1) + 16 + 33 * TASKS[task] and metrics["train_images_per_s"] > 0
    json.dumps([metrics, result.timings, result.history], allow_nan=False)


def test_what_validation_said_at_the_chosen_epoch_is_what_is_reported(run: Any) -> None:
    result = run(cell())
    chosen = result.history[result.metrics["best_epoch"] - 1]
    for name in ("val_acc", "val_auc", "val_loss"):  # an epoch's are computed without scikit-learn
        assert chosen[name] == pytest.approx(result.metrics[name], rel=1e-12)


def test_the_same_cell_gives_the_same_bits_and_another_seed_does_not(run: Any) -> None:
    first, second, other = run(cell()), run(cell()), run(cell(seed=1))
    for name in first.arrays:
        assert np.array_equal(first.arrays[name], second.arrays[name])
    assert first.metrics | {"train_images_per_s": 0} == second.metrics | {"train_images_per_s": 0}
    assert not np.array_equal(first.arrays["test_scores"], other.arrays["test_scores"])


def test_the_model_is_built_for_the_classes_channels_and_resolution(run: Any) -> None:
    CALLS.clear()
    run(cell("multi-class", resolution=32, resize="nearest"))
    run(cell("multi-class", recipe={"as_rgb": False}))
    assert CALLS == [(3, 3, 32), (3, 1, 16)]


@pytest.mark.parametrize(
    ("extra", "said"), [(1, r"\(2, 2\) \(images, num_classes\), found \(2, 3\)"), (None, "found list")]
)
def test_a_network_of_other_outputs_than_classes_is_refused(
    run: Any, monkeypatch: pytest.MonkeyPatch, extra: int | None, said: str
) -> None:
    def wrong(num_classes: int, in_chans: int, img_size: int) -> nn.Module:
        net = accuracy_test_net(num_classes + (extra or 0), in_chans, img_size)
        if extra is None:
            net.forward = lambda images: [images]  # type: ignore[assignment,method-assign]
        return net

    changed = replace(registry.models["accuracy_test_net"], builder=wrong)
    monkeypatch.setitem(registry.models._info, "accuracy_test_net", changed)
    with pytest.raises(ConfigError, match=said):
        run(cell())


def test_a_network_that_ends_in_softmax_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(num_classes: int, in_chans: int, img_size: int) -> nn.Module:
        return nn.Sequential(accuracy_test_net(num_classes, in_chans, img_size), nn.Softmax(1))

    changed = replace(registry.models["accuracy_test_net"], builder=wrong)
    monkeypatch.setitem(registry.models._info, "accuracy_test_net", changed)
    with pytest.raises(ConfigError, match=r"gives probabilities .* return logits, without softmax"):
        run(cell())


def test_flips_follow_the_dataset(run: Any) -> None:
    assert run(cell(recipe={"flip": 0.5})).metrics["flipped"] is False  # its adapter says that a mirror changes labels


def test_a_resolution_the_model_cannot_take_is_unsupported(run: Any) -> None:
    result = run(cell(resolution=128, resize="nearest"))
    assert (result.status, result.reason) == ("unsupported", "too large")


def test_divergence_is_a_result_with_history_and_without_scores(run: Any) -> None:
    wild = {"learning_rate": 1e30, "optimizer": "sgd", "gradient_clip": 0.0, "warmup_epochs": 0.0}
    result = run(cell(recipe=wild))
    assert result.status == "diverged" and "epoch" in result.reason and result.history
    assert not result.arrays and "test_auc" not in result.metrics


def test_an_operation_without_a_deterministic_form_is_measured_and_reported(run: Any, monkeypatch: Any) -> None:
    assert run(cell()).metrics["deterministic"] is True
    asked: list[bool] = []

    def forward(trainer: Any, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            asked.append(True)
            raise RuntimeError("put_ does not have a deterministic implementation")
        return original(trainer, model, images)

    original = Trainer.forward
    monkeypatch.setattr(Trainer, "forward", forward)
    result = run(cell())
    assert result.status == "ok" and result.metrics["deterministic"] is False and asked == [True]


def test_progress_goes_through_its_phases(run: Any) -> None:
    events: list[dict[str, Any]] = []
    run(cell(), events)
    phases = [event["phase"] for event in events]
    assert "decoding 136 of 136 images" in phases
    phases = [phase for phase in phases if not phase.startswith("decoding")]
    assert (
        phases[:2] == ["load", "build"] and phases[-1] == "eval" and set(phases) <= {"load", "build", "train", "eval"}
    )


def test_an_undefined_metric_is_none(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_class(self: Made, size: int, root: Path | None) -> dict[str, Split]:
        return {name: Split(s.images, np.zeros_like(s.labels)) for name, s in original(self, size, root).items()}

    original = Made.load
    monkeypatch.setattr(Made, "load", one_class)
    result = run(cell())
    assert result.status == "ok" and result.metrics["test_auc"] is None and result.metrics["test_acc"] >= 0
    assert result.metrics["best_epoch"] == 1


def test_an_unknown_dataset_is_named(run: Any) -> None:
    with pytest.raises(registry.RegistryError, match="unknown dataset 'breastmnit'"):
        run(replace(cell(), dataset="breastmnit"))


def test_predictions_keep_names_patients_and_columns(run: Any, tmp_path: Path) -> None:
    """Each row of the saved scores is the image of its name: its label, patient and columns are the table's."""
    from PIL import Image

    rng, rows = np.random.default_rng(0), {}
    (tmp_path / "img").mkdir()
    for i in range(90):
        rows[f"img/{i}.png"] = (("no_icu", "icu")[i // 3 % 2], f"p{i // 3}", "FM"[i // 6 % 2])
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(tmp_path / f"img/{i}.png")
    lines = ["image,label,patient,sex", *(",".join((name, *row)) for name, row in rows.items())]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    name = f"csv:{tmp_path}/t.csv[patient=patient,group=sex]"
    info = registry.dataset_info(name)
    made = AccuracyCell(
        **{
            **{f: getattr(cell(), f) for f in ("model", "size", "resolution", "recipe", "seed", "precision")},
            "dataset": name, "resize": "bilinear", "data_fingerprint": info.open().fingerprint(16, None),
        }
    )  # fmt: skip
    result = run(made)
    assert result.metrics["positive_class"] == "icu" and result.metrics["positive_class_guessed"] is True
    assert result.metrics["subgroups"] == ["sex"]
    arrays = result.arrays
    for split in ("val", "test"):
        named = [rows[str(image)] for image in arrays[f"{split}_names"]]
        assert [("icu", "no_icu")[label] for label in arrays[f"{split}_labels"]] == [row[0] for row in named]
        assert arrays[f"{split}_patients"].tolist() == [row[1] for row in named]
    assert arrays["test_group_sex"].tolist() == [row[2] for row in named]
    assert len(arrays["test_names"]) == len(arrays["test_scores"]) > 0
    icu = arrays["test_labels"] == 0
    assert result.metrics["test_sensitivity"] == (arrays["test_scores"][icu, 0] >= 0.5).mean()
    assert result.metrics["test_sensitivity_youden"] == pytest.approx(
        (1 - arrays["test_scores"][icu, 1] >= result.metrics["threshold_youden"]).mean()
    )

"""The training loop against a plain PyTorch loop, torch's schedulers and closed forms; and what must never happen."""

import contextlib
import copy
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from bench.record.cells import Stopped
from bench.registry.layout import prefers_channels_last
from bench.sweep.recipes import resolve
from bench.train import rng as streams
from bench.train.checkpoint import Checkpoint
from bench.train.loop import Outcome, Splits, Trainer, micro_batches
from bench.train.optim import Loss, freeze, learning_rate, make_optimizer, parameter_groups, zero_head
from bench.train.pipeline import Pipeline

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution, a norm, dropout and a head."""

    def __init__(self, classes: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.drop = nn.Dropout(0.2) if norm else nn.Identity()
        self.head = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


class Spy(Pipeline):
    """Writes down when it is read."""

    def __init__(self, *args: Any, log: list[str], name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log, self.name = log, name

    def train_batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.log.append(f"train {epoch}" + (f" from {first}" if first else ""))
        return super().train_batches(seed, epoch, first)

    def eval_batches(self) -> Iterator[torch.Tensor]:
        self.log.append(self.name)
        return super().eval_batches()


def make_splits(
    recipe: dict[str, Any], task: str = "binary-class", log: list[str] | None = None, n: int = 40
) -> Splits:
    made = []
    for number, name in enumerate(Splits._fields):
        rng = np.random.default_rng(number)
        labels = rng.integers(0, 2, (n, 3)) if task == "multi-label" else rng.integers(0, 2, n)
        bright = labels.reshape(n, -1)[:, 0] * 60
        pixels = (rng.integers(0, 120, (n, 16, 16, 1)) + bright[:, None, None, None]).astype(np.uint8)
        settings = {"resolution": 16, "resize": "native", "device": CPU, "mirror_safe": True}
        made.append(Spy(pixels, labels, recipe, log=log if log is not None else [], name=name, **settings))
    return Splits(*made)


def train(
    recipe: dict[str, Any],
    seed: int = 0,
    task: str = "binary-class",
    splits: Splits | None = None,
    net: nn.Module | None = None,
) -> tuple[Outcome, nn.Module]:
    torch.manual_seed(seed)
    classes = 3 if task == "multi-label" else 2
    model = net or Net(classes)
    splits = splits or make_splits(recipe, task)
    return Trainer(model, splits, recipe, task=task, n_classes=classes, seed=seed).fit(), model


AUGMENTED = {"batch_size": 8, "epochs": 3, "crop_scale": [0.5, 1.0], "flip": 0.5, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    "extra", [{}, {"ema_decay": 0.9}, {"micro_batch_size": 3}, {"optimizer": "sgd", "gradient_clip": 1.0}]
)
def test_the_same_cell_gives_the_same_bits(extra: dict[str, Any]) -> None:
    recipe = resolve("standard", **AUGMENTED | extra)
    (first, model), (second, again), (other, _) = train(recipe), train(recipe), train(recipe, seed=1)
    timing = ("seconds", "images_per_s", "eval_seconds", "data_seconds")
    assert [{k: v for k, v in row.items() if k not in timing} for row in first.history] == [
        {k: v for k, v in row.items() if k not in timing} for row in second.history
    ]
    assert np.array_equal(first.test_scores, second.test_scores) and np.array_equal(first.val_scores, second.val_scores)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not np.array_equal(first.test_scores, other.test_scores)


def test_the_test_split_is_read_once_and_after_everything_else() -> None:
    log: list[str] = []
    recipe = resolve("standard", **AUGMENTED)
    train(recipe, splits=make_splits(recipe, log=log))
    assert log == ["train 0", "val", "train 1", "val", "train 2", "val", "val", "test"]


def test_training_equals_a_plain_pytorch_loop() -> None:
    recipe = resolve("medmnist", epochs=4, batch_size=8)
    recipe["select"] = "last"
    splits = make_splits(recipe)
    outcome, model = train(recipe, splits=splits, net=_fresh())
    plain = _fresh()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe["milestones"], gamma=0.1)
    pixels = (splits.train.images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    for epoch in range(4):
        assert outcome.history[epoch]["lr"] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        for index in torch.from_numpy(streams.order(40, 0, epoch)).split(8):
            optimizer.zero_grad()
            F.cross_entropy(plain(pixels[index].expand(-1, 3, -1, -1)), splits.train.labels[index]).backward()
            optimizer.step()
        scheduler.step()
    for mine, reference in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression", "binary-class", "multi-label"])
def test_every_task_trains_and_gives_probabilities(task: str) -> None:
    outcome, _ = train(resolve("quick", epochs=6, batch_size=8, learning_rate=3e-2), task=task)
    scores = outcome.test_scores
    assert outcome.status == "ok" and scores is not None and scores.dtype == np.float64
    assert scores.shape == (40, 3 if task == "multi-label" else 2) and scores.min() >= 0 and scores.max() <= 1
    if task != "multi-label":
        assert np.allclose(scores.sum(1), 1, atol=1e-12)
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    expected = {
        "epoch",
        "train_loss",
        "val_loss",
        "val_auc",
        "val_acc",
        "lr",
        "seconds",
        "images_per_s",
        "eval_seconds",
        "data_seconds",
    }
    assert set(outcome.history[0]) == expected


@pytest.mark.parametrize(("rule", "sign"), [("val_auc", 1), ("val_acc", 1), ("val_loss", -1), ("last", 0)])
def test_the_epoch_is_chosen_by_the_rule_and_its_weights_are_restored(rule: str, sign: int) -> None:
    recipe = resolve("quick", epochs=6, batch_size=8, learning_rate=0.2, schedule="constant", select=rule, flip=0.0)
    splits = make_splits(recipe)
    outcome, model = train(recipe, splits=splits)
    values = [sign * row[rule] for row in outcome.history] if sign else list(range(6))
    assert outcome.best_epoch == values.index(max(values)) + 1  # the earliest of equals
    model.eval()
    with torch.no_grad():
        again = torch.softmax(model(next(splits.test.eval_batches())).double(), 1).numpy()
    assert np.array_equal(again, outcome.test_scores)


def test_early_stopping_waits_as_long_as_the_recipe_says() -> None:
    recipe = resolve("quick", epochs=50, batch_size=8, early_stopping_patience=2, select="val_acc", learning_rate=0.0)
    outcome, _ = train(recipe, net=Net(norm=False))
    assert (outcome.best_epoch, len(outcome.history)) == (1, 3)  # nothing changes after the first epoch


def test_a_loss_that_is_no_number_ends_as_diverged_with_its_history() -> None:
    recipe = resolve(
        "quick", epochs=5, batch_size=8, gradient_clip=0.0, optimizer="sgd", learning_rate=1e25, warmup_epochs=0
    )
    log: list[str] = []
    outcome, _ = train(recipe, splits=make_splits(recipe, log=log), net=Net(norm=False))
    assert outcome.status == "diverged" and "epoch 1" in outcome.reason
    assert [row["epoch"] for row in outcome.history] == [1]
    assert outcome.test_scores is None and "test" not in log


def test_scores_that_are_no_numbers_end_as_diverged() -> None:
    class Broken(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits if self.training else logits / 0.0 * 0.0

    outcome, _ = train(resolve("quick", epochs=2, batch_size=8), net=Broken())
    assert outcome.status == "diverged" and "validation scores are not finite after epoch 1" in outcome.reason
    assert len(outcome.history) == 1


def test_gradient_accumulation_changes_nothing_without_batch_statistics() -> None:
    whole, parts = (resolve("medmnist", epochs=2, batch_size=8, micro_batch_size=m) for m in (0, 3))
    (a, _), (b, _) = train(whole, net=_fresh()), train(parts, net=_fresh())
    assert np.allclose(a.test_scores, b.test_scores, atol=1e-5)
    assert a.history[-1]["train_loss"] == pytest.approx(b.history[-1]["train_loss"], rel=1e-5)


def _fresh() -> nn.Module:
    torch.manual_seed(5)
    return Net(norm=False)


def test_micro_batches_are_small_enough_and_never_of_one_image() -> None:
    assert [micro_batches(8, 0), micro_batches(8, 4), micro_batches(8, 3), micro_batches(3, 2)] == [1, 2, 3, 1]
    for n in range(2, 50):
        for size in range(2, 20):
            assert min(len(part) for part in torch.zeros(n).tensor_split(micro_batches(n, size))) >= 2


def test_the_moving_average_is_what_is_evaluated() -> None:
    recipe = resolve(
        "quick",
        epochs=1,
        batch_size=40,
        ema_decay=0.75,
        select="last",
        learning_rate=0.1,
        schedule="constant",
        warmup_epochs=0,
    )
    one_step, _ = train(recipe, net=_fresh())
    plain, model = train({**recipe, "ema_decay": 0.0}, net=_fresh())
    assert np.allclose(one_step.test_scores, plain.test_scores, atol=1e-7)  # the average starts at the first weights
    two = {**recipe, "epochs": 2}
    averaged, _ = train(two, net=_fresh())
    last, final = train({**two, "ema_decay": 0.0}, net=_fresh())
    expected = Net(norm=False)
    pairs = zip(model.state_dict().items(), final.state_dict().values(), strict=True)
    expected.load_state_dict({name: 0.75 * first + 0.25 * second for (name, first), second in pairs})
    with torch.no_grad():
        scores = torch.softmax(expected(next(make_splits(two).test.eval_batches())), 1).numpy()
    assert np.allclose(averaged.test_scores, scores, atol=1e-6) and not np.allclose(scores, last.test_scores, atol=1e-6)


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9}, {"optimizer": "sgd"}, {"early_stopping_patience": 1}])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, extra: dict[str, Any], killed_after: int) -> None:
    recipe = resolve("standard", **AUGMENTED | {"epochs": 4} | extra)
    straight, _ = train(recipe)
    checkpoint = Checkpoint(tmp_path / "checkpoints" / "x.pt", "x", every_s=0.0)

    class Killed(BaseException):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event.get("epoch", 0) > killed_after:
            raise Killed

    def trainer(**more: Any) -> Trainer:
        torch.manual_seed(0)
        return Trainer(Net(), make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0, **more)

    with contextlib.suppress(Killed):
        trainer(checkpoint=checkpoint, progress=kill).fit()
    stopped_early = extra.get("early_stopping_patience") and len(straight.history) <= killed_after
    assert checkpoint.path.exists() or stopped_early
    torch.manual_seed(99)
    resumed = trainer(checkpoint=checkpoint).fit()
    assert np.array_equal(resumed.test_scores, straight.test_scores)
    assert (resumed.best_epoch, len(resumed.history)) == (straight.best_epoch, len(straight.history))
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in straight.history]


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "optimizer": "sgd"}])
def test_a_training_stopped_within_an_epoch_goes_on_to_the_same_bits(tmp_path: Path, extra: dict[str, Any]) -> None:
    recipe = resolve("standard", **AUGMENTED | extra)
    straight, model = train(recipe)
    checkpoint = Checkpoint(tmp_path / "x.pt", "x", every_s=1e9, worth_s=1e9)
    log: list[str] = []

    def trainer(asked: Iterator[int] | None, net: nn.Module) -> Trainer:
        splits = make_splits(recipe, log=log)
        stop = (lambda: next(asked, 0) == 1) if asked else (lambda: False)
        return Trainer(net, splits, recipe, task="binary-class", n_classes=2, seed=0, checkpoint=checkpoint, stop=stop)

    torch.manual_seed(0)
    with pytest.raises(Stopped, match="in epoch 2, after step 3 of 5"):
        trainer(iter([0] * 7 + [1]), Net()).fit()  # asked after each of 4 steps, after the epoch, after each step
    other = Net()
    resumed = trainer(None, other).fit()
    assert log == ["train 0", "val", "train 1", "train 1 from 3", "val", "train 2", "val", "val", "test"]
    assert np.array_equal(resumed.test_scores, straight.test_scores)
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in straight.history]
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))


def test_a_kill_between_the_last_epoch_and_the_record_repeats_no_epoch(tmp_path: Path) -> None:
    recipe = resolve("standard", **AUGMENTED | {"epochs": 2})
    checkpoint = Checkpoint(tmp_path / "x.pt", "x", worth_s=0.0)
    log: list[str] = []

    def trainer() -> Trainer:
        splits = make_splits(recipe, log=log)
        return Trainer(Net(), splits, recipe, task="binary-class", n_classes=2, seed=0, checkpoint=checkpoint)

    first = trainer().fit()
    log.clear()
    again = trainer().fit()  # the driver was killed before it wrote the Record, or it would have removed the file
    assert log == ["val", "test"]
    assert np.array_equal(again.test_scores, first.test_scores) and again.history == first.history


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = resolve("quick", epochs=2, batch_size=8)
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(tmp_path / "file" / "x.pt", "x", every_s=0.0, worth_s=0.0)
    outcome = Trainer(
        Net(), make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0, checkpoint=checkpoint
    ).fit()
    assert outcome.status == "ok" and "could not be written" in capsys.readouterr().out


def test_waiting_for_data_is_timed() -> None:
    class Slow(Spy):
        def eval_batches(self) -> Iterator[torch.Tensor]:
            return super().eval_batches()

        def train_batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in super().train_batches(seed, epoch, first):
                time.sleep(0.02)
                yield batch

    recipe = resolve("quick", epochs=1, batch_size=8)
    splits = make_splits(recipe)
    slow = Slow(
        splits.train.images.numpy(), splits.train.labels.numpy(), recipe,
        resolution=16, resize="native", device=CPU, log=[], name="train",
    )  # fmt: skip
    outcome, _ = train(recipe, splits=splits._replace(train=slow))
    assert outcome.timings["data_s"] >= 5 * 0.02 and 0 < outcome.timings["data_share"] <= 1
    assert outcome.history[0]["data_seconds"] == outcome.timings["data_s"]


def test_a_damaged_or_foreign_checkpoint_is_not_used(tmp_path: Path) -> None:
    recipe = resolve("quick", epochs=2, batch_size=8)
    path = tmp_path / "x.pt"
    make = functools.partial(
        Trainer, splits=make_splits(recipe), recipe=recipe, task="binary-class", n_classes=2, seed=0
    )
    Checkpoint(path, "another").save(make(Net()).state_dict())
    assert Checkpoint(path, "mine").load() is None and Checkpoint(path, "another").load()
    path.write_bytes(path.read_bytes()[:1000])
    assert Checkpoint(path, "another").load() is None
    assert make(Net(), checkpoint=Checkpoint(path, "mine")).fit().status == "ok"


def test_progress_tells_epoch_loss_and_speed() -> None:
    events: list[dict[str, Any]] = []
    recipe = resolve("quick", epochs=2, batch_size=8)
    Trainer(Net(), make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0, progress=events.append).fit()
    ends = [event for event in events if "loss" in event]
    assert [(e["epoch"], e["epochs"]) for e in ends] == [(1, 2), (2, 2)]
    assert all(e["images_per_s"] > 0 and np.isfinite(e["loss"]) for e in ends)


def test_bf16_autocast_is_close_and_an_unknown_precision_is_refused() -> None:
    recipe = resolve("quick", epochs=2, batch_size=8)
    found = [
        Trainer(_fresh(), make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0, precision=p).fit()
        for p in ("fp32", "bf16")
    ]
    assert not np.array_equal(found[0].test_scores, found[1].test_scores)
    assert np.allclose(found[0].test_scores, found[1].test_scores, atol=0.02)
    with pytest.raises(ValueError, match="fp32 or bf16"):
        Trainer(Net(), make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0, precision="fp16")


# --- schedule, loss, optimizer ---------------------------------------------------------------------------------


def test_the_step_schedule_equals_multistep() -> None:
    recipe = resolve("medmnist", epochs=20)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 15], gamma=0.1)
    for epoch in range(20):
        for step in range(7):
            assert learning_rate(recipe, epoch * 7 + step, 7) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_cosine_equals_torchs_after_a_linear_warm_up() -> None:
    recipe = resolve(
        "standard", epochs=10, overrides={"warmup_epochs": 2.0, "learning_rate": 0.1, "final_lr_ratio": 0.01}
    )
    rates = [learning_rate(recipe, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.01 * (k + 1) for k in range(10)])
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.001)
    for rate in rates[10:]:
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert learning_rate(recipe, 50, 5) == pytest.approx(0.001)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate(resolve("medmamba-repo"), step, 10) for step in (0, 1, 999)} == {1e-4}


def test_losses_equal_torchs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    smooth = resolve("standard", label_smoothing=0.1)
    found = Loss("multi-class", smooth, labels.numpy(), 4, CPU)(logits, labels)
    assert found.mean() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-6)
    many = torch.randint(0, 2, (9, 4))
    found = Loss("multi-label", smooth, many.numpy(), 4, CPU)(logits, many)
    assert found.mean() == pytest.approx(F.binary_cross_entropy_with_logits(logits, many.float()).item(), rel=1e-6)


def test_balanced_weights_make_every_class_count_alike() -> None:
    labels = np.array([0] * 6 + [1] * 2)
    weighted = resolve("standard", class_weights="balanced", label_smoothing=0.0)
    found = Loss("binary-class", weighted, labels, 3, CPU)(torch.zeros(8, 3), torch.from_numpy(labels))
    assert found[:6].sum() == pytest.approx(found[6:].sum().item())
    assert found.tolist() == pytest.approx([np.log(3) * 8 / 18] * 6 + [np.log(3) * 8 / 6] * 2)
    positives = Loss("multi-label", weighted, np.array([[1, 0], [0, 0], [0, 0], [0, 0]]), 2, CPU)
    assert positives.weights is not None and positives.weights.tolist() == [3.0, 0.0]


def test_weight_decay_spares_what_the_recipe_and_the_model_say() -> None:
    class Marked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.state = nn.Parameter(torch.zeros(2, 2))
            self.state._no_weight_decay = True  # type: ignore[attr-defined]
            self.position = nn.Parameter(torch.zeros(2, 2))

        def no_weight_decay(self) -> set[str]:
            return {"position"}

    model = Marked()
    decayed, spared = parameter_groups(model, resolve("standard"))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (resolve("standard")["weight_decay"], 0.0)
    assert {id(p) for p in decayed["params"]} == {id(model.conv.weight), id(model.head.weight)}
    (everything,) = parameter_groups(model, resolve("medmamba-paper"))
    assert len(everything["params"]) == len(list(model.parameters()))


def test_layer_decay_slows_lower_blocks_as_beit_does() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
            self.head = nn.Linear(2, 2)

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    model = Deep()
    groups = parameter_groups(model, resolve("standard", layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layers = [model.stem, *model.blocks, model.head]
    assert [scale[id(layer.weight)] for layer in layers] == [0.125, 0.25, 0.5, 1.0]  # 0.5 ** (depth of the head - own)
    assert all(scale[id(layer.bias)] == scale[id(layer.weight)] for layer in layers)
    assert all(decay[id(layer.bias)] == 0 and decay[id(layer.weight)] == 0.05 for layer in layers)
    assert all(
        g["weight_decay"] == 0.05
        for g in parameter_groups(model, resolve("medmnist", layer_decay=0.5, weight_decay=0.05))
    )


def test_the_schedule_is_scaled_group_by_group() -> None:
    recipe = resolve("finetune", epochs=1, batch_size=40, warmup_epochs=0, schedule="constant")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=2)
    trainer = Trainer(model, make_splits(recipe), recipe, task="binary-class", n_classes=2, seed=0)
    outcome = trainer.fit()
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    peak = recipe["learning_rate"]
    assert max(rates) == pytest.approx(peak) and min(rates) < 0.75 * peak and outcome.history[0]["lr"] == peak


def test_the_recipe_says_how_the_step_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    plain, _ = train(resolve("quick", epochs=1, batch_size=8))
    for how in ("default", "cuda-graphs"):
        outcome, _ = train(resolve("quick", epochs=1, batch_size=8, compile=how))
        assert np.array_equal(outcome.test_scores, plain.test_scores)
    assert [(how["dynamic"], how["mode"]) for how in asked] == [(False, None), (False, "reduce-overhead")]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training() -> None:
    recipe = resolve("medmnist", epochs=2, batch_size=8)
    plain, _ = train(recipe, net=_fresh())
    fast, _ = train({**recipe, "compile": "default"}, net=_fresh())
    assert np.allclose(plain.test_scores, fast.test_scores, atol=1e-5)


def test_convolutional_networks_are_laid_out_channels_last() -> None:
    assert prefers_channels_last(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 2)))
    assert not prefers_channels_last(nn.Sequential(nn.Conv2d(3, 64, 16), nn.Linear(1024, 1024)))
    assert not prefers_channels_last(nn.Conv2d(64, 64, 3, groups=64))


def test_a_new_head_starts_at_zero() -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2).eval()
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    zero_head(model)
    assert torch.equal(model(images).softmax(1), torch.full((4, 2), 0.5))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"classifier.weight"}  # the bias was zero before


def test_first_layers_stay_and_the_head_is_faster() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = freeze(model, 0.5)
    assert 0 < kept < sum(p.numel() for p in model.parameters())
    recipe = resolve("standard", head_rate=10.0, warmup_epochs=0)
    optimizer = make_optimizer(model, recipe)
    scales = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    assert {scales[id(p)] for p in model.get_classifier().parameters()} == {10.0}
    assert set(scales.values()) == {1.0, 10.0}
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    stays = {name for name in before if torch.equal(before[name], after[name])}
    assert {"conv1.0.weight", "bn1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= stays
    assert not {"fc.weight", "layer4.0.conv1.weight", "layer4.0.bn1.running_mean"} & stays
    assert sum(p.numel() for n, p in model.named_parameters() if n in stays) == kept

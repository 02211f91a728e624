"""Transfer: which classes meet, what their scores are (by hand and by scikit-learn), and what a wrong map gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from bench import registry
from bench.plan import class_maps
from bench.plan.plan import make_plan
from bench.record.cells import AccuracyCell, Context, SharedClass, TransferCell, cell_key, needs
from bench.registry import DatasetInfo, RemoteFile, Split, register_dataset
from bench.registry.shared_patients import shares_patients
from bench.sweep import config
from bench.sweep.config import ConfigError
from bench.sweep.recipes import resolve
from bench.train.accuracy import run_accuracy
from bench.train.transfer import over_shared_classes, run_transfer, shared_task

CLASSES = {"here": ("cyst", "clear", "mass"), "there": ("Clear", "tumour", "nodule", "other")}
OWN = {"clear": "clear", "mass": ["tumour", "nodule"]}


class Made:
    """The brightness of the image tells the class; one scanner is darker."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        return ()

    def fingerprint(self, size: int, root: Path | None) -> str:
        return f"made-{self.info.name}-{size}"

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        made, n_classes = {}, len(self.info.classes)
        for seed, (name, n) in enumerate({"train": 60, "val": 30, "test": 40}.items()):
            rng = np.random.default_rng(seed)
            labels = rng.integers(0, n_classes, n)
            images = rng.integers(0, 90, (n, size, size, 1)) + 50 * labels[:, None, None, None]
            made[name] = Split(images.astype(np.uint8), labels.astype(np.int64))
        return made


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    names = [f"transfer-test-{name}" for name in CLASSES]
    for name, classes in zip(names, CLASSES.values(), strict=True):
        register_dataset(name, task="multi-class", classes=classes, channels=1)(Made)
    yield
    for name in names:
        del registry.datasets._info[name]


HERE, THERE = "transfer-test-here", "transfer-test-there"


def info(name: str, classes: tuple[str, ...], task: str = "multi-class") -> DatasetInfo:
    return DatasetInfo(name, task, classes, 1, "x:y")


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:b", ("a", ["b"])),
        ("organamnist:organcmnist, organsmnist", ("organamnist", ["organcmnist", "organsmnist"])),
        ("folder:/x/y:cpn_xray", ("folder:/x/y", ["cpn_xray"])),
        ("a:folder:/x/y,b", ("a", ["folder:/x/y", "b"])),
        ("csv:/d.csv[image=a,label=b]:hf:me/set[c]", ("csv:/d.csv[image=a,label=b]", ["hf:me/set[c]"])),
    ],
)
def test_source_and_targets_are_told_apart(text: str, expected: tuple[str, list[str]]) -> None:
    assert class_maps.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a", "a:", ":b"])
def test_what_is_no_transfer_says_how_to_write_one(text: str) -> None:
    with pytest.raises(class_maps.TransferError, match="write SOURCE:TARGET"):
        class_maps.parse(text)


def test_equal_classes_meet_whatever_their_case_and_order() -> None:
    found = class_maps.shared_classes(info("a", ("NORMAL", "late_stage")), info("b", ("late stage", "normal")))
    assert found == (
        SharedClass("NORMAL", ("NORMAL",), ("normal",)),
        SharedClass("late_stage", ("late_stage",), ("late stage",)),
    )


def test_organ_sets_meet_in_all_classes_and_share_patients() -> None:
    a, c = (registry.datasets[f"organ{view}mnist"] for view in "ac")
    assert [m.name for m in class_maps.shared_classes(a, c)] == list(a.classes)
    assert shares_patients("organamnist", "organsmnist")
    assert not shares_patients("organamnist", "pneumoniamnist")


def test_built_in_maps_name_classes_that_exist_and_work_both_ways() -> None:
    pneumonia = registry.datasets["pneumoniamnist"]
    cpn = registry.datasets["cpn_xray"]
    met = class_maps.shared_classes(pneumonia, cpn)
    assert met == (
        SharedClass("normal", ("normal",), ("NORMAL",)),
        SharedClass("pneumonia", ("pneumonia",), ("PNEUMONIA",)),
    )
    back = class_maps.shared_classes(cpn, pneumonia)
    assert [(m.source, m.target) for m in back] == [(m.target, m.source) for m in met]
    derma = registry.datasets["dermamnist"]
    met = class_maps.shared_classes(derma, registry.datasets["pad_ufes_20"])
    assert [m.target[0] for m in met] == ["ACK", "BCC", "SEK", "MEL", "NEV"]  # Bowen's, under SCC, stays out


def test_the_users_map_takes_classes_together() -> None:
    found = class_maps.shared_classes(registry.datasets[HERE], registry.datasets[THERE], OWN, "bench.toml")
    assert found == (SharedClass("clear", ("clear",), ("Clear",)), SharedClass("mass", ("mass",), ("tumour", "nodule")))
    both = {"cyst": "other", "mass": "other", "clear": "clear"}
    found = class_maps.shared_classes(registry.datasets[HERE], registry.datasets[THERE], both)
    assert [m.source for m in found] == [("cyst", "mass"), ("clear",)] and found[0].name == "cyst + mass"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (None, r"their classes differ .* \[transfer\.\"transfer-test-here:transfer-test-there\"\]"),
        (
            {"cleer": "clear", "mass": "tumour"},
            r"bench.toml: transfer-test-here has no class 'cleer' \(did you mean 'clear'",
        ),
        ({"clear": "clear", "mass": "tumor"}, r"transfer-test-there has no class 'tumor' \(did you mean 'tumour'"),
        ({"clear": "clear"}, "fewer than two classes meet"),
        ({"clear": ["clear", "other"], "mass": ["tumour", "other"]}, "'other' stands in two sets"),
        ({"clear": [], "mass": "tumour"}, "'clear' meets no class"),
    ],
)
def test_a_map_that_does_not_fit_says_why(own: Any, message: str) -> None:
    with pytest.raises(class_maps.TransferError, match=message):
        class_maps.shared_classes(registry.datasets[HERE], registry.datasets[THERE], own, "bench.toml")


def test_tasks_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(class_maps.TransferError, match="multi-label answers cannot be scored as multi-class"):
        class_maps.shared_classes(info("a", ("x", "y"), "multi-label"), info("b", ("x", "y")))


# --- scores ----------------------------------------------------------------------------------------------------


def test_scores_are_summed_and_renormalised_over_what_meets() -> None:
    answered, labelled = info("a", ("p", "q", "r", "s")), info("b", ("Q", "P", "Z"))
    scores = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1], [0.0, 0.0, 0.0, 1.0]])
    labels, found = over_shared_classes(
        np.array([1, 0, 1]), scores, [("p", "r"), ("q",)], [("P",), ("Q",)], answered, labelled
    )
    assert labels.tolist() == [0, 1, 0]
    assert np.allclose(found, [[0.4 / 0.6, 0.2 / 0.6], [0.8 / 0.9, 0.1 / 0.9], [0.5, 0.5]])
    labels, found = over_shared_classes(
        np.array([2, 0, 2]), scores, [("p",), ("q",)], [("P",), ("Q",)], answered, labelled
    )
    assert labels.tolist() == [1] and np.allclose(found, [[0.5 / 0.6, 0.1 / 0.6]])  # class Z is left out


def test_labels_of_a_multi_label_set_stand_for_themselves() -> None:
    answered = info("a", ("p", "q", "r"), "multi-label")
    labels, found = over_shared_classes(
        np.array([[1, 0, 0], [0, 0, 1]]), np.array([[0.9, 0.2, 0.4], [0.1, 0.3, 0.8]]),
        [("p",), ("q", "r")], [("p",), ("q", "r")], answered, answered,
    )  # fmt: skip
    assert labels.tolist() == [[1, 0], [0, 1]] and found.tolist() == [[0.9, 0.4], [0.1, 0.8]]


def test_how_meetings_are_scored() -> None:
    grades, classes = info("a", ("0", "1", "2"), "ordinal-regression"), info("b", ("0", "1", "2"))
    three = tuple(SharedClass(n, (n,), (n,)) for n in "012")
    assert shared_task(grades, grades, three) == "ordinal-regression"
    assert (
        shared_task(grades, classes, three) == "multi-class"
        and shared_task(classes, classes, three[:2]) == "binary-class"
    )


# --- a cell ----------------------------------------------------------------------------------------------------


def source_cell(**changes: Any) -> AccuracyCell:
    given: dict[str, Any] = {
        "model": "timm:test_resnet", "dataset": HERE, "size": 32, "resolution": 32, "resize": "native",
        "recipe": resolve("quick", epochs=2, batch_size=16), "seed": 0, "precision": "fp32",
        "data_fingerprint": f"made-{HERE}-32",
    }  # fmt: skip
    return AccuracyCell(**{**given, **changes})


def transfer_cell(source: AccuracyCell) -> TransferCell:
    met = class_maps.shared_classes(registry.datasets[HERE], registry.datasets[THERE], OWN)
    return TransferCell(source, THERE, source.size, "native", met, False, f"made-{THERE}-{source.size}")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    yield Context("cpu", torch.get_num_threads(), None, tmp_path, tmp_path, lambda event: None, keep_weights=True)
    torch.use_deterministic_algorithms(False)


def _keep(context: Context, cell: AccuracyCell, arrays: dict[str, Any]) -> None:
    (context.out / "predictions").mkdir()
    np.savez(context.out / "predictions" / f"{cell_key(cell)}.npz", **arrays)


def test_a_trained_cell_is_evaluated_on_another_set(context: Context) -> None:
    source = source_cell()
    trained = run_accuracy(source, context)
    _keep(context, source, trained.arrays)
    cell = transfer_cell(source)
    result = run_transfer(cell, context)
    labels, scores, metrics = result.arrays["test_labels"], result.arrays["test_scores"], result.metrics
    theirs = Made(registry.datasets[THERE]).load(32, None)["test"].labels
    assert metrics["n_left_out"] == (theirs == 3).sum() and metrics["n_test"] == (theirs != 3).sum() == len(labels)
    assert metrics["test_auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert metrics["test_acc"] == accuracy_score(labels, scores[:, 1] > 0.5)
    own, truth = trained.arrays["test_scores"], trained.arrays["test_labels"]
    met = truth > 0
    reference = roc_auc_score(truth[met] == 2, own[met, 2] / own[met, 1:].sum(1))
    assert metrics["source_test_auc"] == pytest.approx(reference)
    assert metrics["drop_auc"] == pytest.approx(reference - metrics["test_auc"])
    assert needs(cell) == (cell_key(source),) and cell.spec()["label_map"]["mass"] == [["mass"], ["tumour", "nodule"]]


def test_weights_and_scores_that_are_not_there_say_what_to_do(context: Context) -> None:
    cell = transfer_cell(source_cell())
    with pytest.raises(FileNotFoundError, match="were not kept; run again with --keep-weights"):
        run_transfer(cell, context)
    run_accuracy(source_cell(), context)
    with pytest.raises(ValueError, match=r"no scores of the source .* remove .*cells/.*\.json and run again"):
        run_transfer(cell, context)
    path = context.out / "weights" / f"{cell.source_key}.safetensors"
    other = transfer_cell(source_cell(seed=1))
    path.rename(path.with_name(f"{other.source_key}.safetensors"))
    with pytest.raises(ValueError, match=f"holds the weights of {cell.source_key}, not of {other.source_key}"):
        run_transfer(other, context)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged"):
        run_transfer(cell, context)


# --- the plan --------------------------------------------------------------------------------------------------


def plan_of(tmp_path: Path, text: str = "", /, **flags: Any) -> Any:
    (tmp_path / "bench.toml").write_text(text)
    given = {"sweep.models": ["resnet18"], "sweep.datasets": ["phantom_local"], "sweep.resolutions": [32], **flags}
    return make_plan(
        config.load(tmp_path / "bench.toml", None, {"run.device": "cpu", "sweep.kinds": ["accuracy"], **given})
    )


def test_a_transfer_trains_its_source_and_comes_after_it(tmp_path: Path) -> None:
    asked = {"sweep.transfer": ["phantom_global:phantom_global_shifted"], "sweep.seeds": [0, 1]}
    plan = plan_of(tmp_path, **asked)
    kinds = [(cell.kind, cell.dataset) for cell in plan.cells.values()]
    trained = [("accuracy", "phantom_local")] * 2 + [("accuracy", "phantom_global")] * 2
    assert kinds == trained + [("transfer", "phantom_global_shifted")] * 2


def test_two_sets_without_common_classes_need_a_map(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--transfer: transfer phantom_global:phantom_local: their classes differ"):
        plan_of(tmp_path, **{"sweep.transfer": ["phantom_global:phantom_local"]})
    text = '[transfer."phantom_global:phantom_local"]\nlevel = "granular"\noffset = "reticular"\n'
    plan = plan_of(tmp_path, text, **{"sweep.transfer": ["phantom_global:phantom_local"]})
    (cell,) = (c for c in plan.cells.values() if isinstance(c, TransferCell))
    assert [m.target for m in cell.shared_classes] == [("granular",), ("reticular",)]
    assert cell.source_key in plan.cells and list(plan.cells).index(cell.source_key) < list(plan.cells).index(
        cell_key(cell)
    )
    wrong = text.replace("level", "levle")
    with pytest.raises(ConfigError, match=r"has no class 'levle' \(did you mean 'level'"):
        plan_of(tmp_path, wrong, **{"sweep.transfer": ["phantom_global:phantom_local"]})


def test_a_transfer_without_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add accuracy to --kinds"):
        plan_of(
            tmp_path, **{"sweep.transfer": ["phantom_global:phantom_global_shifted"], "sweep.kinds": ["efficiency"]}
        )
    with pytest.raises(ConfigError, match="--transfer: transfer 'phantom_global': write SOURCE:TARGET"):
        plan_of(tmp_path, **{"sweep.transfer": ["phantom_global"]})
    with pytest.raises(ConfigError, match="--transfer: unknown dataset 'phantom_globl'"):
        plan_of(tmp_path, **{"sweep.transfer": ["phantom_globl:phantom_local"]})
    with pytest.raises(ConfigError, match="'phantom_local:phantom_local': source and target are one dataset"):
        plan_of(tmp_path, **{"sweep.transfer": ["phantom_local:phantom_local"]})
    with pytest.raises(ConfigError, match='"granular, level", "granular, offset"'):  # names that hold commas
        plan_of(tmp_path, **{"sweep.transfer": ["phantom_local:phantom_mixed"]})


def test_transfers_change_no_key_of_what_is_trained(tmp_path: Path) -> None:
    alone = plan_of(tmp_path, **{"sweep.datasets": ["phantom_global"]})
    with_transfer = plan_of(
        tmp_path, **{"sweep.datasets": ["phantom_global"], "sweep.transfer": ["phantom_global:phantom_global_shifted"]}
    )
    assert set(alone.cells) < set(with_transfer.cells)
    kept = class_maps.kept_weights(with_transfer.cells, [], keep_all=False)
    assert kept == set(alone.cells)
    done = [key for key, cell in with_transfer.cells.items() if cell.kind == "transfer"]
    assert class_maps.kept_weights(with_transfer.cells, done, False) == set()  # nobody needs them any more
    assert class_maps.kept_weights(with_transfer.cells, done, True) == set(alone.cells)
    assert class_maps.to_train_again(alone.cells, kept, tmp_path) == sorted(alone.cells)

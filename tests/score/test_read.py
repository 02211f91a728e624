"""Predictions as people write them: columns, formats, and every kind of bad file with its message."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench.errors import DataError
from bench.score.read import read
from bench.score.ties import single_precision, ties

N = 40
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 2
P = np.clip(0.3 + 0.4 * LABELS + RNG.normal(0, 0.2, N), 0.01, 0.99)
IDS = [f"case{i:02d}" for i in range(N)]


def table(path: Path, /, **columns) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def scores(path: str, **keywords) -> np.ndarray:
    return read([path], **keywords)[1].models[0].scores[:, 1]


@pytest.mark.parametrize(
    "columns",
    [
        {"id": IDS, "label": LABELS, "score": P},
        {"case_id": IDS, "y_true": LABELS, "y_score": P},
        {"Image Name": IDS, "Target": LABELS, "Prob_0": 1 - P, "Prob_1": P},
        {"index": range(N), "y_true": LABELS, "p_class0": 1 - P, "p_class1": P},
        {"filename": IDS, "ground_truth": LABELS, "probability": P, "prediction": (P > 0.5).astype(int)},
        {"study_id": IDS, "label": LABELS, "logit_0": np.zeros(N), "logit_1": np.log(P / (1 - P)), "p_1": P},
        {"id": IDS, "label": np.where(LABELS, "sick", "well"), "well": 1 - P, "sick": P},
        {"id": IDS, "dx": np.where(LABELS, "sick", "well"), "p_well": 1 - P, "p_sick": P, "age": range(N)},
        {"path": IDS, "well": 1 - P, "sick": P, "well_calibrated": (1 - P) / 2, "sick_calibrated": 1 - (1 - P) / 2,
         "decision": np.where(P > 0.5, "sick", "well"), "warning": [""] * N, "label": LABELS},  # bench predict
        {"id": IDS, "label": 2 * LABELS - 1, "decision_function": np.log(P / (1 - P)) * 1.0},
        {"id": IDS, "true_0": LABELS, "score_0": P},  # MedMNIST's save_results
        {"y_true": LABELS, "y_pred": P},  # Keras
        {"": range(N), "filename": IDS, "label": LABELS == 1, "y_score_0": 1 - P, "y_score_1": P},  # pandas' index
        {"index": range(N), "image": IDS, "path": IDS, "label": LABELS, "y_prob": P, "seed": ["seed3"] * N},
    ],
)  # fmt: skip
def test_columns_as_people_name_them(tmp_path, columns):
    path = table(tmp_path / "a.csv", **columns)
    assert scores(path) == pytest.approx(P, abs=1e-12)
    _, found = read([path])
    assert found.labels.tolist() == LABELS.tolist() and found.task == "binary-class"


def test_every_format_gives_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    columns = {"id": IDS, "label": LABELS.tolist(), "score": P.tolist()}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", probs=np.column_stack([1 - P, P]), labels=LABELS[:, None], ids=np.array(IDS))
    (tmp_path / "a.json").write_text(json.dumps(columns))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    np.save(tmp_path / "a.npy", P)
    np.save(tmp_path / "y.npy", LABELS)
    for name in ("a.parquet", "a.npz", "a.json", "b.json"):
        assert scores(str(tmp_path / name)) == pytest.approx(P, abs=1e-15), name
    assert scores(str(tmp_path / "a.npy"), labels=tmp_path / "y.npy") == pytest.approx(P, abs=1e-15)


def test_labels_of_their_own_file_and_other_separators(tmp_path):
    order = np.random.default_rng(5).permutation(N)
    table(tmp_path / "y.csv", image_id=np.array(IDS)[order], diagnosis=np.where(LABELS, "sick", "well")[order])
    path = tmp_path / "p.tsv"
    path.write_text("case_id\tsick\n" + "".join(f"{i}\t{p!r}\n" for i, p in zip(IDS, P.tolist(), strict=True)))
    with pytest.raises(DataError, match=r"no column of scores among case_id, sick"):
        read([str(path)], labels=tmp_path / "y.csv")
    path.write_text(path.read_text().replace("sick", "p_sick"))
    _, found = read([str(path)], labels=tmp_path / "y.csv", classes=["well", "sick"], positive="sick")
    back = np.argsort(order)
    assert found.labels[back].tolist() == LABELS.tolist() and found.positive == "sick"
    assert found.models[0].scores[back, 1] == pytest.approx(P)
    semicolons = tmp_path / "s.csv"
    lines = [f"{i};{y};{p!r}\n" for i, y, p in zip(IDS, LABELS, P.tolist(), strict=True)]
    semicolons.write_text("id;label;score\n" + "".join(lines))
    assert scores(str(semicolons)) == pytest.approx(P)
    np.savez(tmp_path / "medmnist.npz", train_images=np.zeros((9, 2, 2), np.uint8), train_labels=np.zeros((9, 1)),
             test_images=np.zeros((N, 2, 2), np.uint8), test_labels=LABELS[:, None])  # fmt: skip
    np.save(tmp_path / "q.npy", np.column_stack([1 - P, P]))
    _, found = read([str(tmp_path / "q.npy")], labels=tmp_path / "medmnist.npz")
    assert found.labels.tolist() == LABELS.tolist()
    with pytest.raises(DataError, match="--positive 'x' is none of two classes; they are 0, 1"):
        read([str(tmp_path / "q.npy")], labels=tmp_path / "medmnist.npz", positive="x")


def test_medmnists_evaluator_writes_no_labels(tmp_path):
    """The evaluator's own file, against its own figures; BreastMNIST's labels come with the package."""
    pandas = pytest.importorskip("pandas")
    from bench.metrics.classification import classification_metrics

    p = np.random.default_rng(1).random(156)
    path = tmp_path / "breastmnist_test_[AUC]0.500_[ACC]0.500@resnet18_2.csv"
    pandas.DataFrame(np.column_stack([1 - p, p])).sample(frac=1, random_state=0).to_csv(path, header=None)
    dataset, found = read([str(path)])
    assert dataset == "breastmnist" and found.models[0].model == "resnet18_2"
    assert found.classes == ("malignant", "normal, benign")
    assert found.models[0].scores[:, 1] == pytest.approx(p)
    assert classification_metrics(found.labels, found.models[0].scores, found.task)["auc_classes"] == 1
    octmnist = tmp_path / "octmnist_test_x@1.csv"
    pandas.DataFrame(np.full((4, 4), 0.25)).to_csv(octmnist, header=None)
    with pytest.raises(DataError, match=r"give --labels with MedMNIST's file of it: --labels octmnist.npz"):
        read([str(octmnist)])


def test_images_are_matched_by_id(tmp_path):
    order = np.random.default_rng(2).permutation(N)
    a = table(tmp_path / "a.csv", id=IDS, label=LABELS, score=P)
    b = table(tmp_path / "b.csv", id=np.array(IDS)[order], score=P[order])
    _, found = read([f"x={a}", f"y:3={b}"])
    assert found.models[1].scores == pytest.approx(found.models[0].scores)
    assert [(m.model, m.seed) for m in found.models] == [("x", 0), ("y", 3)]
    assert "y, seed 3 has the same scores as x, seed 0: are they two trainings?" in found.notes


def test_models_seeds_folds_patients_and_groups_from_columns(tmp_path):
    two = {"id": IDS * 2, "label": [*LABELS] * 2, "score": [*P, *P[::-1]], "model": ["m"] * N + ["k"] * N}
    path = table(tmp_path / "a.csv", **two, seed=[1] * N + [2] * N, patient_id=[i // 4 for i in range(N)] * 2,
                 sex=["f", "m"] * N, fold=[0] * N + [1] * N)  # fmt: skip
    _, found = read([path])
    assert [(m.model, m.seed) for m in found.models] == [("m", 1), ("k", 2)]
    assert found.patients is not None and found.patients[4] == "1" and found.groups["sex"][1] == "m"
    seeds = [tmp_path / "net_seed1.csv", tmp_path / "net_seed20.csv", tmp_path / "seed3.csv"]
    _, found = read([table(s, id=IDS, label=LABELS, score=P + i * 1e-3) for i, s in enumerate(seeds)])
    assert [(m.model, m.seed) for m in found.models] == [("net", 1), ("net", 20), (tmp_path.name, 3)]


def test_multi_label_and_ordinal(tmp_path):
    targets, given = RNG.integers(0, 2, (N, 3)), RNG.random((N, 3))
    names = ("effusion", "mass", "nodule")
    path = table(tmp_path / "m.csv", id=IDS, **{f"label_{n}": targets[:, i] for i, n in enumerate(names)},
                 **{f"p_{n}": given[:, i] for i, n in enumerate(names)})  # fmt: skip
    _, found = read([path])
    assert found.task == "multi-label" and found.classes == names
    assert found.models[0].scores == pytest.approx(given) and found.labels.tolist() == targets.tolist()
    grades = RNG.integers(1, 6, N)
    p = RNG.dirichlet(np.ones(5), N)
    path = table(tmp_path / "o.csv", id=IDS, grade=grades, label=grades, **{f"p{i}": p[:, i] for i in range(5)})
    _, found = read([path], ordinal=True)
    assert found.task == "ordinal-regression" and found.labels.tolist() == (grades - 1).tolist()


GOOD = {"id": IDS, "label": LABELS, "score": P}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": IDS, "label": LABELS}, r"no column of scores among id, label\. Call them p_class0"),
        ({"id": IDS, "score": P}, r"no file has labels; add a column 'label', or give --labels FILE"),
        (GOOD | {"y_true": LABELS}, r"the label is both 'label' and 'y_true'; keep or rename one"),
        (GOOD | {"id": ["x", "x", *IDS[2:]]}, r"1 id in more than one row: x; write one row per image"),
        (GOOD | {"score": [np.nan, *P[1:]]}, r"1 image without a finite score, first in row 0"),
        (GOOD | {"score": 100 * np.asarray(P)}, r"scores from [\d.]+ to [\d.]+ look like percent; divide them by 100"),
        (
            {"id": IDS, "label": LABELS, "p0": 100 - 100 * np.asarray(P), "p1": 100 * np.asarray(P)},
            "look like percent; divide them by 100",
        ),
        (GOOD | {"label": ["", *LABELS[1:]]}, r"1 image without a label; leave them out"),
        (GOOD | {"label": [1] * N}, r"all 40 images have the label 1; two classes are needed"),
        (GOOD | {"label": LABELS + 0.5}, r"label 0.5 is not a whole number"),
        (GOOD | {"label": np.arange(N) % 3}, r"one column of scores, but 3 different labels"),
        ({"id": IDS, "label": LABELS, "p0": P, "p1": P}, r"\d+ images with probabilities that do not add up"),
        ({"id": IDS, "label": np.arange(N) % 3, "p0": 1 - P, "p1": P}, r"labels go from 0 to 2, but there are scores"),
        ({"id": IDS, "label": np.where(LABELS, "a", "b"), "p0": 1 - P, "p1": P}, r"are numbered; add --classes"),
        ({"id": IDS, "label": np.where(LABELS, "a", "b"), "score": P}, r"add --classes NEGATIVE,POSITIVE"),
        ({"id": IDS, "label": np.where(LABELS, "sick", "helthy"), "p_healthy": 1 - P, "p_sick": P},
         r"label 'helthy' has no column of scores \(did you mean 'healthy'\?\)"),
        ({"id": IDS, "label": LABELS, "y_pred": (P > 0.5).astype(int)}, r"'y_pred' holds decisions, and no column"),
        (GOOD | {"split": ["train"] * 20 + ["val"] * 20}, r"column 'split' has train, val, but no 'test'"),
        (GOOD | {"score": [f"{p:.3f}".replace(".", ",") for p in P]}, r"'score' holds scores as text, first '0,"),
        (GOOD | {"seed": ["one"] * N}, r"the seed 'one' is not a whole number"),
    ],
)  # fmt: skip
def test_bad_columns(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read([table(tmp_path / "bad.csv", **columns)])


def test_files_that_are_not_of_one_test_set(tmp_path):
    a = table(tmp_path / "a.csv", **GOOD)
    other = table(tmp_path / "b.csv", **(GOOD | {"id": [*IDS[:-2], "new1", "new2"]}))
    with pytest.raises(DataError, match=r"b\.csv: 2 ids of .*a\.csv are missing \(case38, case39\); 2 ids are not in"):
        read([a, other])
    flipped = table(tmp_path / "c.csv", **(GOOD | {"label": [1 - LABELS[0], *LABELS[1:]]}))
    with pytest.raises(
        DataError, match=r"c\.csv: 1 of 40 labels differ from those in .*a\.csv, first that of case00; the files are"
    ):
        read([a, flipped])
    short = table(tmp_path / "d.csv", label=LABELS[:-1], score=P[:-1])
    with pytest.raises(DataError, match=r"d\.csv: 39 rows, but .*a\.csv has labels of 40 images"):
        read([a, short])
    with pytest.raises(DataError, match=r"model 'a', seed 0 is in .* too; write NAME:SEED=FILE"):
        read([a, f"a={a}"])
    wide = table(tmp_path / "e.csv", id=IDS, label=LABELS, p0=1 - P, p1=P, p2=P * 0)
    with pytest.raises(DataError, match=r"columns of scores, other files have 3"):
        read([a, wide])


def test_bad_files(tmp_path):
    def refused(path: Path, message: str, content: str | bytes = b"") -> None:
        if content:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message):
            read([str(path)])

    refused(tmp_path / "none.csv", "there is no such file")
    refused(tmp_path / "a.xlsx", r"unknown file type \.xlsx; use one of \.csv", "x")
    refused(tmp_path / "b.csv", "it has no rows", "id,label,score\n")
    refused(tmp_path / "c.csv", r"line 3: 2 cells, but 3 columns", "id,label,score\na,1,0.5\nb,0\n")
    refused(tmp_path / "d.csv", "more than one column is called score", "id,label,score,score\na,1,0.5,0.5\n")
    refused(tmp_path / "e.json", "cannot be read as json: Expecting", "{")
    refused(tmp_path / "f.json", "write a list of rows", "[1, 2]")
    refused(
        tmp_path / "g.json", "row 1: its keys are id, the first row's id, label", '[{"id": 1, "label": 1}, {"id": 2}]'
    )
    refused(tmp_path / "h.json", "'score' is not a list with a value for each image", '{"score": 1}')
    refused(tmp_path / "i.npz", "cannot be read as npz", b"PK\x03\x04 damaged")
    np.savez(tmp_path / "j.npz", probs=np.zeros((3, 2)), labels=np.zeros(4))
    refused(tmp_path / "j.npz", "different lengths: probs 3, labels 4")
    np.save(tmp_path / "k.npy", np.array([object()]), allow_pickle=True)
    refused(tmp_path / "k.npy", "cannot be read as npy: Object arrays")
    refused(tmp_path / "l.parquet", "cannot be read as parquet", "no parquet")
    refused(tmp_path / "breastmnist_val_x@1.csv", "scores of the split val; score those of test", "0,0.5,0.5\n")
    refused(tmp_path / "m.csv", "cannot be read as csv: 'utf-8' codec", b"id,label,score\n\xff\xfe,1,0.5\n")


def test_ties_by_saturation_are_counted_and_bounded():
    labels = np.array([0, 0, 1, 1])
    p = np.array([0.2, 1.0, 1.0, 1.0])
    found = ties(np.column_stack([1 - p, p]), labels)
    # pairs: 0.2 < 1, 0.2 < 1, tied, tied
    assert (found.pairs, found.saturated, found.auc, found.low, found.high) == (2, 2, 0.75, 0.5, 1.0)
    assert "the AUC 0.7500 could be 0.5000 to 1.0000" in found.sentence("x")
    # P(class 0) keeps the digits that P(class 1) has lost
    q = np.array([0.8, 3e-18, 2e-18, 1e-18])
    assert ties(np.column_stack([q, 1 - q]), labels).complement == 1.0
    assert ties(np.column_stack([0.8 - p / 2, 0.2 + p / 2]), labels).sentence("x") == ""


def test_single_precision_is_that_of_float32_arithmetic():
    logits = np.random.default_rng(0).normal(0, 3, (500, 4))
    exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    narrow = np.exp(logits.astype(np.float32))
    narrow /= narrow.sum(1, keepdims=True)
    assert single_precision(exact) == pytest.approx(narrow.astype(np.float64), rel=1e-5)
    assert (single_precision(exact) == single_precision(exact).astype(np.float32)).all()

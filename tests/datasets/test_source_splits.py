"""Splits made here: shares, groups, strata and their permanence; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bench.datasets import _splits
from bench.datasets._splits import SplitError, by_count, complete, make, quotas


def keys(count: int) -> list[str]:
    return [f"image {i}.png" for i in range(count)]


def shares(splits: np.ndarray, members: np.ndarray) -> list[int]:
    return np.bincount(splits[members], minlength=3).tolist()


def test_single_images_are_dealt_out_exactly_by_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    splits = make(labels, keys(160))
    assert [shares(splits, labels == c) for c in range(3)] == [[70, 10, 20], [35, 5, 10], [7, 1, 2]]


def test_the_split_is_of_names_not_of_their_order() -> None:
    labels = np.repeat([0, 1], [40, 60])
    order = np.random.default_rng(0).permutation(100)
    names = keys(100)
    straight = make(labels, names)
    mixed = make(labels[order], [names[i] for i in order])
    assert np.array_equal(straight[order], mixed)
    assert not np.array_equal(straight, make(labels, names, seed=1))


def test_this_split_is_the_one_of_yesterday() -> None:
    """A changed split is another data set: raise ``_splits.VERSION`` then."""
    labels = np.tile([0, 1], 10)
    assert _splits.VERSION == 1
    from hashlib import sha256

    zeros = sorted(range(0, 20, 2), key=lambda i: sha256(f"0 i image {i}.png".encode()).digest())
    splits = make(labels, keys(20))
    assert [i for i in zeros if splits[i] == 0] == zeros[:7]
    assert [i for i in zeros if splits[i] == 2] == zeros[8:]


def test_groups_stay_whole_and_classes_keep_their_shares() -> None:
    rng = np.random.default_rng(1)
    patient = rng.integers(0, 300, 2_000)  # about seven images each
    habit = rng.integers(0, 4, 300)
    labels = np.where(rng.random(2_000) < 0.7, habit[patient], rng.integers(0, 4, 2_000))
    groups = [f"p{p}" for p in patient]
    splits = make(labels, keys(2_000), groups, (0.6, 0.1, 0.3))
    assert _splits.torn(groups, splits) == 0
    for label in range(4):
        found = np.asarray(shares(splits, labels == label)) / (labels == label).sum()
        assert np.abs(found - [0.6, 0.1, 0.3]).max() < 0.02


def test_a_few_large_patients_do_not_spoil_the_shares() -> None:
    groups = [f"p{g}" for g, size in enumerate([40, 30, 20, *[2] * 55]) for _ in range(size)]
    labels = np.arange(200) % 2
    splits = make(labels, keys(200), groups)
    assert _splits.torn(groups, splits) == 0
    assert np.abs(np.bincount(splits, minlength=3) - [140, 20, 40]).max() <= 4


def test_images_without_a_patient_are_their_own() -> None:
    groups = ["a", "a", *[""] * 98]
    splits = make(np.arange(100) % 2, keys(100), groups)
    assert splits[0] == splits[1]
    assert np.abs(np.bincount(splits) - [70, 10, 20]).max() <= 2


def test_findings_are_stratified_each() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((3_000, 4)) < [0.5, 0.2, 0.05, 0.02]).astype(np.int64)
    groups = [f"p{p}" for p in rng.integers(0, 1_500, 3_000)]
    splits = make(labels, keys(3_000), groups)
    assert _splits.torn(groups, splits) == 0
    for finding in range(4):
        found = np.bincount(splits[labels[:, finding] == 1], minlength=3) / labels[:, finding].sum()
        assert np.abs(found - [0.7, 0.1, 0.2]).max() < 0.04


@pytest.mark.parametrize("patients", [False, True])
def test_common_findings_are_as_frequent_in_each_split(patients: bool) -> None:
    """Images with several findings must not gather in train, which would change the prevalence of val and test."""
    rng = np.random.default_rng(0)
    labels = (rng.random((1200, 3)) < (0.5, 0.4, 0.1)).astype(np.int64)
    groups = [f"p{i // 3}" for i in range(len(labels))] if patients else ()
    chosen = make(labels, [f"i{i}" for i in range(len(labels))], groups)
    for split, share in enumerate((0.7, 0.1, 0.2)):
        assert abs(np.mean(chosen == split) - share) < 0.015
        assert np.abs(labels[chosen == split].mean(axis=0) - labels.mean(axis=0)).max() < 0.06
        assert abs((labels[chosen == split].sum(axis=1) == 0).mean() - (labels.sum(axis=1) == 0).mean()) < 0.06


def test_three_images_of_a_class_are_enough_and_two_are_not() -> None:
    assert sorted(make(np.array([0, 0, 0, 1, 1, 1]), keys(6))) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(
        SplitError, match=r"class 'rare' has 2 images, too few to give val a share; 3 images are needed"
    ):
        make(np.repeat([0, 1], [50, 2]), keys(52), classes=("common", "rare"))
    with pytest.raises(
        SplitError, match=r"class 'rare' has 9 images of 1 patient, too few to give val a share; 3 patients are"
    ):
        make(np.repeat([0, 1], [50, 9]), keys(59), [*keys(50), *["one"] * 9], classes=("common", "rare"))


def test_by_count_gives_the_papers_numbers() -> None:
    kvasir = np.repeat(np.arange(8), 500)
    splits = by_count(kvasir, keys(4_000), (2_408, 392, 1_200))
    assert np.bincount(splits).tolist() == [2_408, 392, 1_200]
    assert [shares(splits, kvasir == c) for c in range(8)] == [[301, 49, 150]] * 8
    cpn = np.repeat([0, 1, 2], [1_626, 1_802, 1_800])
    assert np.bincount(by_count(cpn, keys(5_228), (3_140, 521, 1_567))).tolist() == [3_140, 521, 1_567]
    assert np.bincount(by_count(cpn[::10], keys(523), (3_140, 521, 1_567))).sum() == 523


@pytest.mark.parametrize(
    "total, fractions, expected",
    [
        (10, (0.7, 0.1, 0.2), [7, 1, 2]),
        (3, (0.7, 0.1, 0.2), [1, 1, 1]),
        (5, (0.9, 0.1, 0.0), [4, 1, 0]),
        (1, (7, 1, 2), [1, 0, 0]),
    ],
)
def test_quotas(total: int, fractions: tuple[float, ...], expected: list[int]) -> None:
    assert quotas(total, fractions) == expected


def test_what_a_published_split_lacks_comes_from_train() -> None:
    labels = np.arange(200) % 2
    published = np.repeat([0, 2], [150, 50])
    groups = [f"p{i // 5}" for i in range(200)]
    splits, taken = complete(published, labels, keys(200), groups)
    assert taken == ("val",)
    assert np.array_equal(splits == 2, published == 2)
    assert shares(splits, published == 0) == [135, 15, 0]
    assert _splits.torn(groups, splits) == 0
    splits, taken = complete(np.zeros(200, np.int64), labels, keys(200), ())
    assert taken == ("val", "test")
    assert np.bincount(splits).tolist() == [140, 20, 40]


def test_a_class_missing_in_a_split() -> None:
    with pytest.raises(SplitError, match=r"set: no test image is of class 'b'; no score could be given for it"):
        _splits.check_classes(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), ("a", "b"), "set")
    with pytest.raises(SplitError, match="set: there are no val images"):
        _splits.check_classes(np.array([0, 0, 2, 2]), np.array([0, 1, 0, 1]), ("a", "b"), "set")


def test_words_and_orders() -> None:
    assert [_splits.split_of(w) for w in ("Training", "valid", "DEV", " test ", "rest")] == [
        "train",
        "val",
        "val",
        "test",
        None,
    ]
    assert sorted(["stage 10", "stage 2", "Stage 1", "a"], key=_splits.natural) == [
        "a",
        "Stage 1",
        "stage 2",
        "stage 10",
    ]
    assert _splits.listed([3, 4, 9, 12, 15]) == "3, 4, 9 and 2 more"
    assert _splits.listed(["a", "b"]) == "'a' and 'b'"
    assert _splits.listed(["a"]) == "'a'"

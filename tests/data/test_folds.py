"""Folds: every image is tested once, patients stay whole, classes are shared out, and nothing depends on the order."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data.cache_entry import Members
from bench.data.files import DataError
from bench.data.folds import fold_of_all
from bench.registry import Split


def made(n: int = 240, patients: bool = True) -> tuple[dict[str, Split], dict[str, Members | None]]:
    """Images whose pixel is their number; patients of 1 to 5 images, a quarter of them ill."""
    generator = np.random.default_rng(0)
    owner = np.sort(generator.integers(0, n // 3, n))
    labels = (owner % 4 == 0).astype(np.int64)
    parts = dict(zip(("train", "val", "test"), np.split(generator.permutation(n), [160, 190]), strict=True))
    data, who = {}, {}
    for name, rows in parts.items():
        data[name] = Split(rows.astype(np.uint8)[:, None, None, None], labels[rows])
        names, groups = tuple(f"{i}.png" for i in rows), tuple(f"p{owner[i]}" for i in rows)
        who[name] = Members(names, groups, {"sex": tuple("FM"[owner[i] % 2] for i in rows)}) if patients else None
    return data, who


@pytest.mark.parametrize("patients", [True, False])
def test_every_image_is_tested_once_and_patients_stay_whole(patients: bool) -> None:
    data, who = made(patients=patients)
    tested = []
    for fold in range(5):
        splits, persons = fold_of_all(data, who, fold, 5)
        images = {name: split.images.reshape(-1).tolist() for name, split in splits.items()}
        assert sorted(i for own in images.values() for i in own) == list(range(240))
        tested += images["test"]
        for name, split in splits.items():
            assert 0.15 < split.labels.mean() < 0.35, (fold, name)
            if patients:
                said = persons[name]
                assert said is not None and said.names == tuple(f"{i}.png" for i in images[name])
        if patients:
            owners = [set(said.groups) for said in persons.values() if said]
            assert sum(map(len, owners)) == len(set().union(*owners))
        assert 38 <= len(images["test"]) <= 58 and 15 <= len(images["val"]) <= 35
    assert sorted(tested) == list(range(240))


def test_folds_do_not_depend_on_the_order_of_the_images() -> None:
    data, who = made()
    turned = {name: Split(split.images[::-1], split.labels[::-1]) for name, split in data.items()}
    back = {name: said.at(np.arange(len(said.names))[::-1]) for name, said in who.items() if said}
    for fold in range(3):
        one, two = fold_of_all(data, who, fold, 3)[0], fold_of_all(turned, back, fold, 3)[0]
        for name in one:
            assert sorted(one[name].images.reshape(-1)) == sorted(two[name].images.reshape(-1))


def test_too_few_patients_for_the_folds_are_told() -> None:
    data, who = made(n=30)
    with pytest.raises(DataError, match=r"fold 1 of 60: \d+ patients or images cannot be dealt out to 60 folds"):
        fold_of_all(data, who, 0, 60)
    rare = {n: Split(s.images, np.where(s.images.reshape(-1) == 3, 1, 0).astype(np.int64)) for n, s in data.items()}
    with pytest.raises(DataError, match=r"fold .*would lack a class; ask for fewer folds|too few to give"):
        for fold in range(5):
            fold_of_all(rare, who, fold, 5)

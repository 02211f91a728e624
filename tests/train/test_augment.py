"""Augmentation against torchvision: the same distribution of crops, the same pixels for the same crop."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from bench.sweep.recipes import resolve
from bench.train import augment
from bench.train import rng as streams
from bench.train.pipeline import Pipeline

RECIPE = resolve("medmamba-repo")


def drawn_by_torchvision(n: int, size: int, scale: list[float], ratio: list[float]) -> np.ndarray:
    torch.manual_seed(0)
    blank = torch.zeros(1, size, size)
    return np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(n)])


@pytest.mark.parametrize(
    ("scale", "ratio"), [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.8, 1.0], [0.9, 1 / 0.9]), ([0.9, 1.0], [2.0, 3.0])]
)
def test_crops_are_distributed_as_torchvisions(scale: list[float], ratio: list[float]) -> None:
    n, size = 6000, 224
    ours = augment.random_boxes(
        streams.uniforms(0, streams.AUGMENT, 0, n, augment.COLUMNS)[:, :-1], size, size, scale, ratio
    )
    theirs = drawn_by_torchvision(n, size, scale, ratio)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 1e-3
    assert ours.min() >= 0 and (ours[:, 0] + ours[:, 2]).max() <= size and (ours[:, 1] + ours[:, 3]).max() <= size


@pytest.mark.parametrize(("size", "resolution"), [(64, 64), (28, 56)])
def test_pixels_equal_torchvisions_resized_crop(size: int, resolution: int) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (24, size, size, 3), dtype=np.uint8)
    source = Pipeline(
        pixels,
        np.arange(24),
        RECIPE,
        resolution=resolution,
        resize="nearest",
        device=torch.device("cpu"),
        mirror_safe=True,
    )
    plan = augment.draw(24, resolution, RECIPE, mirror_safe=True, seed=0, epoch=0)
    assert plan is not None and 0 < plan.flips.sum() < 24
    found = source.preprocess(torch.from_numpy(pixels), plan)
    upright = source.preprocess(torch.from_numpy(pixels), None)
    for got, whole, box, flip in zip(found, upright, plan.boxes.tolist(), plan.flips.tolist(), strict=True):
        wanted = TF.resized_crop(whole, *box, [resolution, resolution], antialias=True)
        assert torch.allclose(got, TF.hflip(wanted) if flip else wanted, atol=2e-5)


def test_pixel_statistics_over_an_epoch_match_torchvisions() -> None:
    rng = np.random.default_rng(2)
    ramp = np.linspace(0, 255, 32)
    pixels = (ramp[None, :, None, None] * 0.5 + rng.uniform(0, 127, (3000, 32, 32, 1))).astype(np.uint8)
    source = Pipeline(
        pixels, np.arange(3000), RECIPE, resolution=32, resize="native", device=torch.device("cpu"), mirror_safe=True
    )
    ours = torch.cat([x for x, _ in source.train_batches(0, 0)])[:, 0]
    torch.manual_seed(1)
    crop = RandomResizedCrop(32, antialias=True)
    plain = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    theirs = torch.stack([crop(x) for x in plain])[:, 0]
    standard_error = ours.mean((1, 2)).std() / 3000**0.5
    assert abs(ours.mean() - theirs.mean()) < 5 * standard_error
    assert ours.std() == pytest.approx(float(theirs.std()), rel=0.02)
    assert torch.allclose(ours.mean((0, 2)), theirs.mean((0, 2)), atol=0.05)  # row by row


def test_a_flip_needs_a_dataset_that_allows_it() -> None:
    only_flips = resolve("quick", flip=1.0)
    assert augment.draw(10, 28, only_flips, mirror_safe=False, seed=0, epoch=0) is None
    safe = augment.draw(10, 28, only_flips, mirror_safe=True, seed=0, epoch=0)
    assert safe is not None and safe.flips.all()
    crops = augment.draw(1000, 28, RECIPE, mirror_safe=False, seed=0, epoch=0)
    assert crops is not None and not crops.flips.any()
    assert augment.flips_allowed(RECIPE, True) and not augment.flips_allowed(RECIPE, False)


def test_flips_come_half_of_the_time_and_differ_between_epochs() -> None:
    first, second = (augment.draw(4000, 28, RECIPE, mirror_safe=True, seed=0, epoch=e) for e in (0, 1))
    assert first is not None and second is not None
    assert abs(first.flips.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs((first.flips == second.flips).float().mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_a_flip_alone_mirrors_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
    recipe = resolve("quick", flip=1.0)
    for resize, resolution in (("native", 28), ("nearest", 56), ("pad", 64)):
        source = Pipeline(
            pixels,
            np.arange(4),
            recipe,
            resolution=resolution,
            resize=resize,
            device=torch.device("cpu"),
            mirror_safe=True,
        )
        (found,) = (x[y.argsort()] for x, y in source.train_batches(0, 0))
        (plain,) = source.eval_batches()
        assert torch.allclose(found, plain.flip(-1), atol=1e-6)


def test_recipes_without_augmentation_draw_nothing() -> None:
    assert augment.draw(10, 28, resolve("medmnist"), mirror_safe=True, seed=0, epoch=0) is None

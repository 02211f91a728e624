"""The phantoms isolate what they claim to: shown by linear models, by matched filters, and by what was drawn."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import registry
from bench.datasets import phantoms
from bench.datasets.phantoms import Acquisition, describe, generate

N = 2000  # images to fit on, and as many others to test on: an AUC at chance has a standard error of 0.013
QUESTIONS = ("phantom_local", "phantom_global", "phantom_mixed")


# --- what simple models see ------------------------------------------------------------------------------------


def histogram(index: np.ndarray, bins: int) -> np.ndarray:
    return np.stack([np.bincount(image.ravel(), minlength=bins) for image in index]) / index[0].size


def binary_patterns(images: np.ndarray) -> np.ndarray:
    """Histogram of 3 x 3 local binary patterns (Ojala et al., 2002)."""
    size = images.shape[1]
    x = images.astype(np.int16)
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    centre = x[:, 1:-1, 1:-1]
    code = sum(
        (x[:, a : size - 2 + a, b : size - 2 + b] >= centre).astype(np.int64) << bit
        for bit, (a, b) in enumerate(around)
    )
    return histogram(code, 256)


def coherence(images: np.ndarray, fine: float, window: float) -> np.ndarray:
    """Joint histogram of the structure tensor's coherence and energy in small windows; lengths in 28ths of a side."""
    x, unit = images / 255.0, images.shape[1] / 28
    down, across = (ndimage.gaussian_filter(x, (0, fine * unit, fine * unit), order=o) for o in ((0, 1, 0), (0, 0, 1)))
    a, b, c = (
        ndimage.gaussian_filter(p, (0, window * unit, window * unit)) for p in (across**2, down**2, across * down)
    )
    energy = a + b
    coherent = np.hypot(a - b, 2 * c) / (energy + 1e-9)
    return histogram(
        np.minimum((coherent * 8).astype(int), 7) + 8 * np.digitize(energy, [1e-4, 1e-3, 3e-3, 1e-2, 3e-2]), 48
    )


def bag(images: np.ndarray) -> np.ndarray:
    """Counts of local descriptors; where they were found is forgotten. None sees more than a fifth of the side."""
    tensors = [coherence(images, fine, window) for fine, window in ((0.5, 0.6), (0.5, 1.0), (0.8, 0.8))]
    return np.concatenate([*tensors, binary_patterns(images), histogram(images // 8, 32)], axis=1)


def intensities(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1) / 255.0
    return np.concatenate([flat.mean(1)[:, None], flat.std(1)[:, None], histogram(images // 8, 32)], axis=1)


def pixels(images: np.ndarray) -> np.ndarray:
    step = images.shape[1] // 28
    return images[:, ::step, ::step].reshape(len(images), -1) / 255.0


def linear_aucs(features, sets) -> dict[str, float]:
    """Fit a linear model to each question; return its AUC on other images."""
    (train_images, train), (test_images, test) = sets["train"], sets["test"]
    fitted, tested = features(train_images), features(test_images)
    aucs = {}
    for question in train:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        model.fit(fitted, train[question])
        aucs[question] = roc_auc_score(test[question], model.decision_function(tested))
    return aucs


def nodule_heights(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find one nodule in each lung by a matched filter (a disc less the ring around it); heights in -1..1."""
    size = images.shape[1]
    radius = 0.115 * size / 2
    span = np.arange(-int(2 * radius) - 1, int(2 * radius) + 2)
    distance = np.hypot(span[:, None], span[None, :])
    disc, ring = distance <= radius, (distance > 1.2 * radius) & (distance <= 1.8 * radius)
    answer = ndimage.correlate(images / 255.0, (disc / disc.sum() - ring / ring.sum())[None])
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    rows = np.abs(centres) < 0.52
    found = []
    for low, high in ((-0.6, -0.27), (0.27, 0.6)):
        columns = (centres > low) & (centres < high)
        found.append(centres[rows][answer[:, rows][:, :, columns].max(2).argmax(1)])
    return found[0], found[1]


@pytest.fixture(scope="module", params=[28, pytest.param(64, marks=pytest.mark.slow)])
def sets(request):
    made = {}
    for split in ("train", "test"):
        images, local = generate("phantom_local", split, N, request.param)
        made[split] = images[..., 0], {"local": local, "global": describe("phantom_global", split, N)["label"]}
    return made


def test_a_bag_of_local_descriptors_tells_texture_and_not_relation(sets):
    aucs = linear_aucs(bag, sets)
    assert aucs["local"] >= 0.95
    assert 0.45 <= aucs["global"] <= 0.55


@pytest.mark.parametrize("features", [pixels, intensities])
def test_pixels_and_intensities_are_at_chance(sets, features):
    aucs = linear_aucs(features, sets)
    assert 0.45 <= aucs["local"] <= 0.55 and 0.45 <= aucs["global"] <= 0.55


def test_who_knows_the_structures_tells_the_relation_from_the_pixels(sets):
    images, labels = sets["test"]
    left, right = nodule_heights(images)
    assert roc_auc_score(labels["global"], np.abs(left - right)) >= 0.99
    for height in (left, right):  # one nodule alone tells nothing
        assert 0.45 <= roc_auc_score(labels["global"], height) <= 0.55


def test_either_height_has_one_distribution_in_both_classes():
    scene = describe("phantom_global", "any", 20_000)
    level = scene["label"] == 0
    for name in ("left_y", "right_y", "left_x", "right_x"):
        assert stats.ks_2samp(scene[name][level], scene[name][~level]).pvalue > 0.01
    apart = np.abs(scene["left_y"] - scene["right_y"])
    assert apart[level].max() <= 0.05 and apart[~level].min() >= 0.45 - 0.1
    assert (scene["right_x"] - scene["left_x"]).min() >= 0.7  # of 2: no window of a third of the side holds both


def test_both_textures_have_one_variance_and_one_frequency():
    size = 56
    scene = phantoms._Scene.of("phantom_local", "any", 0, 1000, phantoms.STANDARD)
    texture = phantoms._texture(scene, size)
    spectrum = np.abs(np.fft.fft2(texture)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size, 1 / size), np.fft.fftfreq(size, 1 / size)))
    inside = (frequency > 5.5) & (frequency < 9.5)
    for reticular in (0, 1):
        chosen = scene.texture == reticular
        assert texture[chosen].std() == pytest.approx(1, abs=0.02)
        assert stats.kurtosis(texture[chosen].ravel()) == pytest.approx(0, abs=0.1)  # of a normal distribution
        assert spectrum[chosen][:, inside].sum() / spectrum[chosen].sum() > 0.9


def test_three_questions_about_the_same_images():
    made = {kind: generate(kind, "train", 40, 28) for kind in QUESTIONS}
    for kind in QUESTIONS[1:]:
        np.testing.assert_array_equal(made[kind].images, made["phantom_local"].images)
    pairs = 2 * made["phantom_local"].labels + made["phantom_global"].labels
    np.testing.assert_array_equal(made["phantom_mixed"].labels, pairs)
    classes = registry.datasets["phantom_mixed"].classes
    assert classes[0b10] == "reticular, level" and classes[0b01] == "granular, offset"


# --- the small lesion ------------------------------------------------------------------------------------------


def test_lesions_lie_where_and_as_large_as_described():
    size, count = 128, 400
    scene = describe("phantom_small", "any", count)
    seen = phantoms._Scene.of("phantom_small", "any", 0, count, phantoms.STANDARD)
    u, v = phantoms._body_frame(seen.pose, size)
    disc = phantoms._shape(seen.discs[0], u, v)
    present = scene["label"] == 1
    assert (disc[~present] < 0.01).all()
    area = disc.sum((1, 2)) / size**2 / seen.pose["scale"] ** 2
    # Not yet the edge's softness: the area within a radius r of the half-width is pi r^2 / 4 of the image.
    expected = np.pi * scene["lesion_diameter"] ** 2 / 4
    large = present & (scene["lesion_diameter"] > 0.08)
    np.testing.assert_allclose(area[large], expected[large], rtol=0.1)
    assert (scene["lesion_diameter"][~present] == 0).all() and (scene["lesion_contrast"][~present] == 0).all()
    assert scene["lesion_diameter"][present].min() >= 0.04 and scene["lesion_diameter"].max() <= 0.2
    assert scene["lesion_contrast"][present].min() >= 0.06 and scene["lesion_contrast"].max() <= 0.24


def test_lesions_are_as_faint_as_described():
    """The same scene with its lesion taken out: the difference is the lesion, of the stated contrast."""
    size, count = 128, 200
    plain = Acquisition(noise=(0, 0), contrast=(1, 1))
    scene = phantoms._Scene.of("phantom_small", "any", 0, count, plain)
    scene.exposure["gamma"] = np.ones(count)
    with_lesion = phantoms._render(scene, size).astype(float)
    (disc,) = scene.discs
    scene.discs = (disc._replace(contrast=np.zeros(count)),)
    lesion = (with_lesion - phantoms._render(scene, size)) / 255
    np.testing.assert_allclose(
        lesion.max((1, 2)), disc.contrast, atol=0.012
    )  # 8 bits, and the soft edge of the smallest
    assert lesion.min() > -0.005


# --- determinism and the adapter -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", phantoms.KINDS)
def test_an_image_does_not_depend_on_how_many_are_made(kind, monkeypatch):
    images, labels = generate(kind, "train", 30, 28)
    fewer = generate(kind, "train", 7, 28)
    np.testing.assert_array_equal(fewer.images, images[:7])
    np.testing.assert_array_equal(fewer.labels, labels[:7])
    monkeypatch.setattr(phantoms, "_PIXELS_AT_ONCE", 28 * 28 * 4)
    np.testing.assert_array_equal(generate(kind, "train", 30, 28).images, images)


def digest(kind: str) -> str:
    split = generate(kind, "train", 8, 28)
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()[:16]


# Of version 1, made on x86-64 with numpy 2.4. Another value means: other images, so VERSION has to be raised.
KNOWN = {"phantom_mixed": "6562821e55830f4b", "phantom_small": "78ab603fe76f0471"}


def test_other_processes_make_the_same_bytes_and_so_did_this_version_always():
    code = (
        "import hashlib; from bench.datasets.phantoms import generate\n"
        "for kind in ('phantom_mixed', 'phantom_small'):\n"
        "    s = generate(kind, 'train', 8, 28)\n"
        "    print(hashlib.sha256(s.images.tobytes() + s.labels.tobytes()).hexdigest()[:16])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert phantoms.VERSION == 1
    assert done.stdout.split() == [digest(kind) for kind in KNOWN] == list(KNOWN.values())


def test_no_image_repeats_within_or_across_splits():
    seen = [
        image.tobytes()
        for kind in ("phantom_global", "phantom_small")
        for split in ("train", "val", "test")
        for image in generate(kind, split, 200, 28).images
    ]
    assert len(set(seen)) == len(seen)
    labels = [generate("phantom_global", split, 200, 28).labels.tobytes() for split in ("train", "val", "test")]
    assert len(set(labels)) == 3


@pytest.mark.parametrize("kind", ["phantom_global", "phantom_small"])
def test_a_scene_is_the_same_at_every_resolution(kind):
    quiet = Acquisition(noise=(0, 0))
    small, large = (generate(kind, "any", 20, size, quiet).images[..., 0] / 255.0 for size in (56, 224))
    np.testing.assert_allclose(large.reshape(20, 56, 4, 56, 4).mean((2, 4)), small, atol=0.15)
    assert np.abs(large.reshape(20, 56, 4, 56, 4).mean((2, 4)) - small).mean() < 0.01


def test_mirror_images_are_as_likely():
    mean = generate("phantom_mixed", "any", 2000, 28).images[..., 0].mean(0)
    assert np.abs(mean - mean[:, ::-1]).max() < 6  # of 255; a heart on one side would make 40


def test_another_acquisition_images_the_same_scenes():
    twin = Acquisition(noise=(0.06, 0.08), contrast=(0.6, 0.7), scale=(0.8, 0.85))
    ours, theirs = generate("phantom_mixed", "test", 50, 28), generate("phantom_mixed", "test", 50, 28, twin)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert theirs.images.std() < ours.images.std()


@pytest.mark.parametrize("name", registry.datasets.expand("phantoms"))
def test_adapter_gives_what_the_facts_say(name):
    info = registry.datasets[name]
    adapter = info.open()
    assert adapter.files(28) == ()
    splits = adapter.load(28, None)
    for split, count in (("train", info.n_train), ("val", info.n_val), ("test", info.n_test)):
        images, labels = splits[split]
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
        share = np.bincount(labels, minlength=len(info.classes)) / count
        assert np.abs(share - 1 / len(info.classes)).max() < 0.08
        assert images.reshape(count, -1).std(1).min() > 20  # nothing blank


def test_fingerprint_tells_what_decides_the_content(monkeypatch):
    info = registry.datasets["phantom_local"]
    larger = replace(info, name="phantom_local_10k", n_train=10_000).open()
    prints = {info.open().fingerprint(28, None), info.open().fingerprint(64, None), larger.fingerprint(28, None)}
    prints.add(registry.datasets["phantom_global"].open().fingerprint(28, None))
    monkeypatch.setattr(phantoms, "VERSION", 99)
    prints.add(info.open().fingerprint(28, None))
    monkeypatch.setattr(phantoms.Phantom, "acquisition", Acquisition(noise=(0, 0)))
    prints.add(info.open().fingerprint(28, None))
    assert len(prints) == 6


def test_wrong_names_and_sizes_are_told():
    with pytest.raises(ValueError, match="phantom_local at 16 pixels: its texture needs 28 or more"):
        generate("phantom_local", "train", 1, 16)
    with pytest.raises(ValueError, match="unknown phantom 'phantom_huge'; there are phantom_local"):
        describe("phantom_huge", "train", 1)
    with pytest.raises(ValueError, match="'breastmnist' names no phantom"):
        phantoms.Phantom(registry.datasets["breastmnist"])
    assert generate("phantom_small", "train", 0, 28).images.shape == (0, 28, 28, 1)


def test_fewer_images_are_the_first_ones():
    few = registry.dataset_info("phantom_local[train=40]")
    whole = registry.dataset_info("phantom_local").open().load(32, None)
    splits = few.open().load(32, None)
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 40, "val": 10, "test": 40}
    assert all((split.images == whole[name].images[: len(split.labels)]).all() for name, split in splits.items())
    assert few.open().fingerprint(32, None) != registry.dataset_info("phantom_local").open().fingerprint(32, None)
    for wrong in ("train=4", "train=x", "size=40", "train=40,val=3"):
        with pytest.raises(registry.RegistryError, match="train=N"):
            registry.dataset_info(f"phantom_local[{wrong}]")

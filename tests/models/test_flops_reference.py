"""Multiply-adds of our networks against tests/fixtures/flops.json (counted outside this project)."""

from __future__ import annotations

import json

import pytest
import torch

from bench.measure.flops import count_fvcore, count_torch
from bench.registry import models

SIZES = (64, 128, 224, 384, 512)


@pytest.fixture(scope="module")
def reference(parity):
    return json.loads((parity.FIXTURES / "flops.json").read_text())


def build(name, classes, device="meta"):
    with torch.device(device):
        return models[name].build(num_classes=classes, in_chans=3, img_size=224).eval()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_medmamba_equals_the_analytic_count(reference, size):
    model = build(f"medmamba_{size}", 6)
    for pixels in SIZES if size == "tiny" else (64, 224):
        expected = reference["medmamba"][size]["sizes"][str(pixels)]["analytic"]["total_mac"]
        assert count_torch(model, (1, 3, pixels, pixels)).macs == expected


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_vmamba_equals_convolutions_and_products_plus_the_scan(reference, size):
    # The scan: 2 MACs a state and step and 1 a channel and step, one state: 3 b d L over four directions. The
    # reference's 9BLDN + BDL counts 10 for the same b d L.
    entry = reference["vmamba"][size]["sizes"]["224"]
    scan = 3 * entry["scan_9BLDN"] // 10
    assert count_torch(build(f"vmamba_{size}", 1000), (1, 3, 224, 224)).macs == entry["conv_linear_macs"] + scan


@pytest.mark.parametrize("name", list(models))
def test_the_stored_count_is_the_counters(name):
    counted = count_torch(build(name, 1000), (1, 3, 224, 224)).macs
    assert models[name].counted_macs_g_224 == round(counted / 1e9, 3)


@pytest.mark.parametrize(
    ("family", "name", "classes", "pixels"),
    [("medmamba", "medmamba_tiny", 6, 64), ("vmamba", "vmamba_tiny", 1000, 64)],
)
def test_fvcore_counts_the_same(reference, family, name, classes, pixels):
    model = build(name, classes, "cpu")
    counted = count_fvcore(model, (1, 3, pixels, pixels)).macs
    assert counted == count_torch(model, (1, 3, pixels, pixels)).macs
    if family == "medmamba":
        assert counted == reference["medmamba"]["tiny"]["sizes"]["64"]["analytic"]["total_mac"]


def test_growth_is_linear_in_pixels():
    model = build("medmamba_tiny", 0)
    small, large = (count_torch(model, (1, 3, side, side)).macs for side in (64, 1024))
    assert large == 256 * small


@pytest.mark.parametrize("batch", [1, 3])
def test_images_are_counted_one_by_one(batch):
    model = build("medmamba_tiny", 6)
    assert count_torch(model, (batch, 3, 64, 64)).macs == batch * count_torch(model, (1, 3, 64, 64)).macs

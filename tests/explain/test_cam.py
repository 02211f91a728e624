"""Class-activation maps of networks made by hand, and which images are shown."""

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.explain.cam import choose, class_maps
from bench.explain.stages import StageOutput, find_stages
from bench.registry import RegistryError

SPOTS = [(2, 3), (13, 9), (7, 7)]


class Detector(nn.Module):
    """Channel 0 passes a red spot, channel 1 a green one; class c is the mean of channel c."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.features, self.head, self.channels_last = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2), channels_last
        self.output_fmt = "NHWC" if channels_last else "NCHW"
        self.grid = nn.Identity()
        self.feature_info = [{"module": "grid", "num_chs": 2, "reduction": 1}]
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:2].reshape(2, 3, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = self.grid(x.permute(0, 2, 3, 1) if self.channels_last else x)
        return self.head(x.mean((1, 2) if self.channels_last else (2, 3)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_map_points_to_the_planted_spot_of_its_class(channels_last: bool) -> None:
    images = torch.zeros(3, 3, 16, 16)
    for i, (row, column) in enumerate(SPOTS):
        images[i, 0, row, column] = 1.0
        images[i, 1, 15 - row, 15 - column] = 1.0
    model = Detector(channels_last)
    stage = find_stages(model, images)[-1]
    red, green = (class_maps(model, images, [number] * 3, stage) for number in (0, 1))
    for i, (row, column) in enumerate(SPOTS):
        assert np.unravel_index(red[i].argmax(), (16, 16)) == (row, column)
        assert np.unravel_index(green[i].argmax(), (16, 16)) == (15 - row, 15 - column)
        assert np.count_nonzero(red[i]) == np.count_nonzero(green[i]) == 1
        assert red[i].max() == pytest.approx(1.0, abs=1e-5)


def test_behind_pooling_and_a_linear_layer_it_is_each_cells_share_of_the_score() -> None:
    torch.manual_seed(0)
    body, head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 3)
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images = torch.randn(2, 3, 8, 8)
    found = class_maps(model, images, [2, 0], StageOutput("0", (8, 8)))
    with torch.no_grad():
        shares = torch.einsum("bchw,bc->bhw", body(images), head.weight[[2, 0]]).clamp(min=0).numpy()
    for one, share in zip(found, shares, strict=True):
        np.testing.assert_allclose(one, (share - share.min()) / share.max(), atol=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    model = Detector(False)
    class_maps(model, torch.ones(1, 3, 4, 4), [0], StageOutput("grid", (4, 4)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.grid._forward_hooks


def test_the_most_certain_right_and_wrong_images_of_each_class() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55], [0.95, 0.05]])
    labels = np.array([0, 0, 0, 1, 0, 1])
    found = [(c.group, c.right, c.image, c.predicted, c.score) for c in choose(scores, labels, "binary-class", 2)]
    assert found == [
        (0, True, 0, 0, 0.9), (0, True, 2, 0, 0.7), (0, False, 4, 1, 0.55),
        (1, True, 3, 1, 0.8), (1, False, 5, 0, 0.95),
    ]  # fmt: skip


def test_of_several_labels_each_is_asked_about() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.8], [0.1, 0.1]])
    labels = np.array([[1, 1], [1, 0], [0, 0]])
    found = [(c.group, c.right, c.image, c.present) for c in choose(scores, labels, "multi-label", 3)]
    assert found == [(0, True, 0, True), (0, False, 1, True), (1, False, 0, True), (1, False, 1, False)]


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("pytorch_grad_cam"):
            raise ImportError("no such library")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RegistryError, match=r"need the library grad-cam .*pip install 'medbench\[explain\]'"):
        class_maps(Detector(False), torch.ones(1, 3, 4, 4), [0], StageOutput("grid", (4, 4)))

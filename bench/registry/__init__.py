"""Names to info of models and datasets, their variants, and plug-ins; torch-free.

The public names of this room; everything else is an import from one of its modules.
"""

from bench.registry.info import (
    TASKS,
    Adapter,
    BlockSplit,
    DatasetInfo,
    LazySplit,
    ModelFacts,
    Option,
    RegistryError,
    RemoteFile,
    Split,
    nearest,
)
from bench.registry.names import ModelSpec, SourceName, file_stem, parse_source, split_names
from bench.registry.registry import (
    SCHEMES,
    Registry,
    add_builtin,
    check_options,
    dataset_facts,
    datasets,
    expand_datasets,
    expand_models,
    load_plugins,
    model_facts,
    models,
    parse_model,
    register_dataset,
    register_model,
)

__all__ = [
    "SCHEMES",
    "TASKS",
    "Adapter",
    "BlockSplit",
    "DatasetInfo",
    "LazySplit",
    "ModelFacts",
    "ModelSpec",
    "Option",
    "Registry",
    "RegistryError",
    "RemoteFile",
    "SourceName",
    "Split",
    "add_builtin",
    "check_options",
    "dataset_facts",
    "datasets",
    "expand_datasets",
    "expand_models",
    "file_stem",
    "load_plugins",
    "model_facts",
    "models",
    "nearest",
    "parse_model",
    "parse_source",
    "register_dataset",
    "register_model",
    "split_names",
]

"""Names to info of models and datasets, their variants, and plug-ins; torch-free.

The public names of this room; everything else is an import from one of its modules.
"""

from bench.registry.info import (
    TASKS as TASKS,
)
from bench.registry.info import (
    Adapter as Adapter,
)
from bench.registry.info import (
    BlockSplit as BlockSplit,
)
from bench.registry.info import (
    DatasetInfo as DatasetInfo,
)
from bench.registry.info import (
    Finding as Finding,
)
from bench.registry.info import (
    LazySplit as LazySplit,
)
from bench.registry.info import (
    ModelInfo as ModelInfo,
)
from bench.registry.info import (
    Option as Option,
)
from bench.registry.info import (
    Positive as Positive,
)
from bench.registry.info import (
    RegistryError as RegistryError,
)
from bench.registry.info import (
    RemoteFile as RemoteFile,
)
from bench.registry.info import (
    Split as Split,
)
from bench.registry.info import (
    SplitByImage as SplitByImage,
)
from bench.registry.info import (
    counted as counted,
)
from bench.registry.info import (
    nearest as nearest,
)
from bench.registry.info import (
    positive_of as positive_of,
)
from bench.registry.names import (
    ModelSpec as ModelSpec,
)
from bench.registry.names import (
    SourceName as SourceName,
)
from bench.registry.names import (
    display_names as display_names,
)
from bench.registry.names import (
    file_stem as file_stem,
)
from bench.registry.names import (
    legible as legible,
)
from bench.registry.names import (
    parse_source as parse_source,
)
from bench.registry.names import (
    split_names as split_names,
)
from bench.registry.registry import (
    SCHEMES as SCHEMES,
)
from bench.registry.registry import (
    Registry as Registry,
)
from bench.registry.registry import (
    check_options as check_options,
)
from bench.registry.registry import (
    dataset_info as dataset_info,
)
from bench.registry.registry import (
    datasets as datasets,
)
from bench.registry.registry import (
    display_name as display_name,
)
from bench.registry.registry import (
    expand_datasets as expand_datasets,
)
from bench.registry.registry import (
    expand_models as expand_models,
)
from bench.registry.registry import (
    family_of as family_of,
)
from bench.registry.registry import (
    is_own_data as is_own_data,
)
from bench.registry.registry import (
    load_plugins as load_plugins,
)
from bench.registry.registry import (
    model_info as model_info,
)
from bench.registry.registry import (
    models as models,
)
from bench.registry.registry import (
    parse_model as parse_model,
)
from bench.registry.registry import (
    register_dataset as register_dataset,
)
from bench.registry.registry import (
    register_model as register_model,
)

"""medbench: which architecture for which medical images, measured.

The public Python API; everything heavy is imported at first use, so ``import bench`` imports no torch.

    >>> import bench
    >>> model = bench.create_model("medmamba_tiny", num_classes=5, in_chans=1, img_size=64)
    >>> records = bench.run(models="resnet", datasets="phantoms", preset="quick")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.machine.versions import VERSION

__version__ = VERSION

# ``models/`` and ``datasets/`` lie beside this package in a checkout and inside it in a wheel. They carry no
# ``__init__.py``: as namespace portions they lose to the installed Hugging Face ``datasets``, so a checkout
# first on ``sys.path`` never shadows that library.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "bench.toml").is_file() and (_checkout / "models").is_dir():
    __path__.append(str(_checkout))
del _checkout

if TYPE_CHECKING:
    from bench.api import (
        create_model,
        list_datasets,
        list_models,
        load_dataset,
        load_model,
        load_records,
        recommend,
        run,
    )

__all__ = [
    "__version__", "create_model", "list_datasets", "list_models", "load_dataset", "load_model", "load_records",
    "recommend", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

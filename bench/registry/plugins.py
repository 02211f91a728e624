"""Imports the user's plug-ins: Python files, modules, and entry points of installed packages."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.registry.info import RegistryError

ENTRY_POINT_GROUP = "medbench"

_plugin_file: str | None = None  # set while a plug-in is imported, so that what it registers knows its file


def plugin_being_imported() -> str | None:
    """The plug-in file that is being imported, or None."""
    return _plugin_file


def load(plugins: Sequence[str], base: Path, forget: Callable[[str], None]) -> None:
    """Import the user's Python files (relative to ``base``) or modules, and installed entry points.

    Args:
        plugins: file names that end in ``.py``, or module names.
        base: the folder of the configuration that names them.
        forget: drops what a file registered, before it is imported again.

    Raises:
        RegistryError: naming the plug-in, and the exception it raised.
    """
    global _plugin_file
    for plugin in plugins:
        path = base / plugin
        is_file = plugin.endswith(".py")
        if is_file and not path.is_file():
            raise RegistryError(f"plug-in {plugin!r}: there is no file {path}")
        try:
            if is_file:
                _plugin_file = str(path.resolve())
                _import_file(path.resolve(), forget)
            else:
                if str(base) not in sys.path:
                    sys.path.append(str(base))  # a module beside the configuration, also for the installed script
                importlib.import_module(plugin)
        except RegistryError:
            raise
        except Exception as error:
            raise RegistryError(f"plug-in {plugin!r} could not be imported: {type(error).__name__}: {error}") from error
        finally:
            _plugin_file = None
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except RegistryError:
            raise
        except Exception as error:
            raise RegistryError(
                f"entry point {entry.name!r} ({entry.value}) failed: {type(error).__name__}: {error}"
            ) from error


_imported: dict[Path, tuple[int, int]] = {}  # plug-in file -> its size and time when it was imported


def _import_file(path: Path, forget: Callable[[str], None]) -> None:
    """Import a plug-in file; again, in place of its former self, when it has changed since."""
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if _imported.get(path) == stamp:
        return
    forget(str(path))
    name = f"_bench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _imported[path] = stamp

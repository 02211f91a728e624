"""The two registries, models and datasets: names to info, and builders that are imported at first use.

Info is plain data and torch-free, so listing and planning are instant. The built-in info stands in
``models/models.toml`` and ``datasets/sets.toml``; a plug-in registers with a decorator::

    from bench.registry import register_model

    @register_model(family="mine", summary="two convolutions")
    def tiny_net(num_classes, in_chans, img_size, **options):
        return torch.nn.Sequential(...)
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.util
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.registry.info import Adapter, DatasetInfo, ModelInfo, Option, OptionValue, RegistryError, nearest, resolve
from bench.registry.names import ModelSpec, display_names, is_source, parse_source, read, source_of_path, spell
from bench.registry.plugins import load, plugin_being_imported

Info = TypeVar("Info", ModelInfo, DatasetInfo)


class Registry(Generic[Info]):
    """Names to info: duplicates are errors that show both origins; built-ins are read at first look-up."""

    def __init__(self, kind: str, builtin_module: str) -> None:
        self.kind = kind
        self._builtin_module: str | None = builtin_module
        self._loading = threading.RLock()
        self._info: dict[str, Info] = {}
        self._aliases: dict[str, tuple[tuple[str, ...], str]] = {}

    def add(self, info: Info) -> None:
        """Register ``info``; the same name from the same place replaces itself (a re-imported plug-in)."""
        known = self._info.get(info.name) if self._builtin_module is None else None
        if not re.fullmatch(r"[a-z0-9_.\-]+", info.name):
            raise RegistryError(
                f"{self.kind} {info.name!r} ({info.origin}): names are lower case, digits, '_', '.', '-'"
            )
        if known is None:
            self._load_builtins()
            known = self._info.get(info.name)
        taken = known.origin if known else self._aliases.get(info.name, ((), None))[1]
        if taken is None and info.name in self.aliases() and getattr(info, "family", None) != info.name:
            taken = "the built-in families and groups"
        if taken is not None and taken != info.origin:
            raise RegistryError(
                f"{self.kind} {info.name!r} is registered twice: at {taken} and at {info.origin}; rename one of them"
            )
        self._info[info.name] = info

    def forget(self, plugin_file: str) -> None:
        """Drop what a plug-in file registered, before it is imported again."""
        for name in [name for name, info in self._info.items() if info.plugin_file == plugin_file]:
            del self._info[name]

    def alias(self, name: str, patterns: Sequence[str]) -> None:
        """Let ``name`` stand for several names or variants (``ablations``, ``phantoms``)."""
        self._aliases[name] = (tuple(patterns), _origin(2))

    def _load_builtins(self) -> None:
        with self._loading:  # another thread waits; the module itself, which registers, comes here again
            module, self._builtin_module = self._builtin_module, None
            if module:
                importlib.import_module(module)

    def __getitem__(self, name: str) -> Info:
        self._load_builtins()
        if name not in self._info:
            close = nearest(name, [*self._info, *self.aliases()])
            hint = f"; a model of timm is written timm:{name}"
            if self.kind == "dataset":
                hint = (
                    "" if close else "; images of your own are named by their path, and there is no such file or folder"
                )
            raise RegistryError(f"unknown {self.kind} {name!r}{close}; `bench list {self.kind}s` shows all{hint}")
        return self._info[name]

    def __contains__(self, name: object) -> bool:
        self._load_builtins()
        return name in self._info

    def __iter__(self) -> Iterator[str]:
        self._load_builtins()
        return iter(self._info)

    def values(self) -> list[Info]:
        """The info of each, in registration order (families stay together)."""
        self._load_builtins()
        return list(self._info.values())

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """What stands for several names: registered aliases (``all`` is one), and families or groups."""
        self._load_builtins()
        found: dict[str, tuple[str, ...]] = {name: patterns for name, (patterns, _) in self._aliases.items()}
        for info in self._info.values():
            for group in info.groups:
                found[group] = found.get(group, ()) + (info.name,)  # noqa: RUF005  (mypy loses the type of the other)
        return found

    def expand(self, pattern: str) -> list[str]:
        """Names that an alias, a glob or a name stands for. Raises RegistryError when there are none."""
        aliases = self.aliases()
        if pattern in self._info:
            return [pattern]
        if pattern in aliases:
            return [
                name
                for part in aliases[pattern]
                for name in ([part] if "[" in part or is_source(part) else self.expand(part))
            ]
        if any(c in pattern for c in "*?"):
            if found := fnmatch.filter(self._info, pattern):
                return found
            raise RegistryError(f"no {self.kind} matches {pattern!r}; `bench list {self.kind}s` shows all")
        self[pattern]  # raises, with the nearest name
        raise AssertionError("unreachable")


models: Registry[ModelInfo] = Registry("model", "bench.models._info")
datasets: Registry[DatasetInfo] = Registry("dataset", "bench.datasets._info")


def _origin(depth: int) -> str:
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _place(thing: Callable[..., Any]) -> tuple[str, int]:
    """File and line where a function or class stands; unknown for what was typed into an interpreter."""
    try:
        return inspect.getsourcefile(thing) or "?", inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return "?", 0


def _allowed(info: type[ModelInfo | DatasetInfo], given: Mapping[str, object], where: str) -> None:
    """Refuse what is no field of the info, or one that registering fills in."""
    allowed = {f.name for f in fields(info)} - {"builder", "adapter", "origin", "plugin_file"}
    for key in given.keys() - allowed:
        raise RegistryError(f"{where}: unknown fact {key!r}{nearest(key, allowed)}")


def register_model(name: str | None = None, **info: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder ``(num_classes, in_chans, img_size, **options) -> nn.Module`` under its own name.

    ``info`` are fields of :class:`ModelInfo`; ``family`` defaults to the name. Unknown fields are an error.
    Keywords that a variant may set are read off ``options``; without it, any keyword is passed on.
    """
    _allowed(ModelInfo, info, "register_model")

    def wrap(builder: Callable[..., Any]) -> Callable[..., Any]:
        own = name or builder.__name__
        source, line = _place(builder)
        told = {"family": own, "options": None, **info, "plugin_file": plugin_being_imported() or source}
        models.add(ModelInfo(name=own, builder=builder, origin=f"{source}:{line}", **told))
        return builder

    return wrap


def register_dataset(name: str, **info: Any) -> Callable[[type[Adapter]], type[Adapter]]:
    """Register an :class:`Adapter` class. ``info`` are fields of :class:`DatasetInfo` (task, classes, channels...)."""
    _allowed(DatasetInfo, info, f"register_dataset({name!r})")
    for key in ("task", "classes", "channels"):
        if key not in info:
            raise RegistryError(f"register_dataset({name!r}): {key} is needed")

    def wrap(adapter: type[Adapter]) -> type[Adapter]:
        source, line = _place(adapter)
        told = {**info, "plugin_file": plugin_being_imported() or source}
        datasets.add(DatasetInfo(name=name, adapter=adapter, origin=f"{source}:{line}", **told))
        return adapter

    return wrap


# Names by a scheme: scheme -> "module:function" (or a function) from the whole name to its info. Those of models may
# import the library that they name; those of datasets import no torch and read no image, and the ``name`` they give is
# a spelling that gives the same info again.
MODEL_SCHEMES: dict[str, str | Callable[[str], ModelInfo]] = {"timm": "bench.models.timm_models:timm_info"}
SCHEMES: dict[str, str | Callable[[str], DatasetInfo]] = {
    "folder": "bench.datasets.folder:source_info",
    "csv": "bench.datasets.csv_table:source_info",
    "hf": "bench.datasets.huggingface:source_info",
    "npz": "bench.datasets.medmnist:source_info",
}
_source_infos: dict[str, DatasetInfo] = {}

# --- names of models -------------------------------------------------------------------------------------------


def parse_model(text: str) -> ModelSpec:
    """Parse one name with optional ``[key=value,...]``; options equal to their default are dropped."""
    match = re.fullmatch(r"([^\[\]]+?)(?:\[([^\[\]]*)\])?", text.strip())
    if not match:
        raise RegistryError(f"model {text!r}: write name or name[key=value,key=value]")
    name = match[1]
    options: dict[str, OptionValue] = {}
    for item in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise RegistryError(f"model {text!r}: {item!r} is not key=value")
        options[key.strip()] = read(value.strip())
    if not options:
        return ModelSpec(name)
    return ModelSpec(name, tuple(sorted(check_options(name, options).items())))


def check_options(name: str, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
    """Check ``options`` against what the model takes; drop those equal to their default.

    Raises:
        RegistryError: an unknown option or a value it does not take, with the nearest right one.
    """
    info = model_info(name)
    known = info.options if info.options is not None else _signature_options(info.builder)
    if known is None:
        return options
    checked: dict[str, OptionValue] = {}
    for key, value in options.items():
        if key not in known:
            have = ", ".join(known) or "it has none"
            raise RegistryError(f"model {name!r} has no option {key!r}{nearest(key, known)}; options: {have}")
        value = _option_value(name, key, value, known[key])
        if value != known[key].default or isinstance(value, bool) != isinstance(known[key].default, bool):
            checked[key] = value
    return checked


def _option_value(name: str, key: str, value: OptionValue, option: Option) -> OptionValue:
    """Return ``value`` in the option's own type, or raise RegistryError."""
    said = f"model {name!r}: {key}={spell(value)}"
    if option.choices:
        for choice in option.choices:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise RegistryError(f"{said} is none of {', '.join(map(spell, option.choices))}")
    kind = type(option.default)
    if option.default is None or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        pass
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    else:
        raise RegistryError(f"{said} should be of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RegistryError(f"{said} is not a finite number")
    return value


def _signature_options(builder: str | Callable[..., Any]) -> dict[str, Option] | None:
    """Read a plug-in's options off its builder; None where any keyword goes (``**options``, or a lazy builder)."""
    if isinstance(builder, str):
        return None
    parameters = inspect.signature(builder).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    given = ("num_classes", "in_chans", "img_size")
    empty = inspect.Parameter.empty
    return {p.name: Option(None if p.default is empty else p.default) for p in parameters if p.name not in given}


def model_info(name: str) -> ModelInfo:
    """Information on a registered model, or one of another library (``timm:NAME`` imports timm to check the name)."""
    return _by_scheme("model", name, MODEL_SCHEMES)(name) if is_source(name) else models[name]


def _by_scheme(kind: str, name: str, schemes: Mapping[str, str | Callable[..., Any]]) -> Callable[..., Any]:
    scheme = name.partition(":")[0]
    if scheme not in schemes:
        raise RegistryError(
            f"{kind} {name!r}: unknown scheme {scheme!r}{nearest(scheme, schemes)}; schemes: {', '.join(schemes)}"
        )
    return resolve(schemes[scheme])


def family_of(model: str) -> str:
    """The registered family of a model, variant or not; its name without options where nothing is registered."""
    name = model.partition("[")[0]
    if name.startswith("timm:"):
        return "timm"
    try:
        return models[name].family
    except RegistryError:
        return name


def expand_models(patterns: Sequence[str]) -> list[ModelSpec]:
    """Resolve aliases (``all``, families, ``ablations``), globs, variants and ``timm:`` names, without repeats."""
    found: dict[ModelSpec, None] = {}
    for pattern in patterns:
        base, bracket, rest = pattern.partition("[")
        names = [base] if is_source(base) else models.expand(base.strip())
        for name in names:
            if bracket and "[" in name:
                raise RegistryError(f"model {pattern!r}: {base!r} already stands for variants; name one model instead")
            spec = parse_model(name + bracket + rest)
            model_info(spec.name)
            found[spec] = None
    return list(found)


# --- names of datasets -----------------------------------------------------------------------------------------


def dataset_info(name: str, refresh: bool = False) -> DatasetInfo:
    """Information on a dataset: registered, or named by where it lies (``folder:scans``, ``csv:...``, ``npz:...``).

    Those of a source are remembered, as every Cell asks for them; ``refresh`` looks at the source again.

    Raises:
        RegistryError: an unknown name or scheme, or a source that is not what its scheme expects.
    """
    if not is_source(name):
        path = None if name.partition("[")[0] in datasets else source_of_path(name)
        if path is None:
            return _variant(name) if "[" in name else datasets[name]
        name = path
    source = parse_source(name)
    spelt = str(source)
    if refresh or spelt not in _source_infos:
        info: DatasetInfo = _by_scheme("dataset", spelt, SCHEMES)(spelt)
        _source_infos[spelt] = _source_infos[info.name] = info
    return _source_infos[spelt]


def _variant(name: str) -> DatasetInfo:
    """Information on a registered dataset with options in brackets, as ``kvasir_v1[split=author]``."""
    source = parse_source(f"variant:{name}")
    info = datasets[source.place]
    if not info.variant or source.config:
        known = "write name[key=value]" if info.variant else "it has no options"
        raise RegistryError(f"dataset {name!r}: {known}")
    variant: DatasetInfo = resolve(info.variant)(info, dict(source.options))
    return variant


def expand_datasets(patterns: Sequence[str]) -> list[str]:
    """Resolve ``all``, groups (``medmnist``, ``phantoms``), globs, names and sources (``folder:PATH``), once each."""
    found: dict[str, None] = {}
    for pattern in patterns:
        if is_source(pattern) or "[" in pattern:
            found[dataset_info(pattern, refresh=True).name] = None
            continue
        try:
            found.update(dict.fromkeys(datasets.expand(pattern)))
        except RegistryError:
            if source_of_path(pattern) is None:
                raise
            found[dataset_info(pattern, refresh=True).name] = None
    return list(found)


def is_own_data(pattern: str) -> bool:
    """Whether a dataset is named by where its images lie, as a scheme or a path, and not by a registered name."""
    if is_source(pattern):
        return True
    try:
        return not datasets.expand(pattern.partition("[")[0])
    except RegistryError:
        with contextlib.suppress(RegistryError):
            return source_of_path(pattern) is not None
        return True


def display_name(name: str) -> str:
    """What people see of a dataset: of a source its short name, told apart from the others this process has read."""
    if not is_source(name):
        return name
    return display_names([name, *(info.name for info in _source_infos.values())], list(datasets))[name]


def load_plugins(plugins: Sequence[str], base: Path) -> None:
    """Import the user's Python files (relative to ``base``) or modules, and installed entry points.

    Raises:
        RegistryError: naming the plug-in, and the exception it raised.
    """

    def forget(file: str) -> None:
        models.forget(file)
        datasets.forget(file)

    load(plugins, base, forget)

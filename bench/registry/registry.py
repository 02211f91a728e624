"""The two registries, models and datasets: names to facts, and builders that are imported at first use.

Facts are plain data and torch-free, so listing and planning are instant. The built-in facts stand in
``models/_facts.py`` and ``datasets/_facts.py`` and name their builders as ``"module:attribute"``; a plug-in
registers with a decorator instead::

    from bench.registry import register_model

    @register_model(family="mine", summary="two convolutions")
    def tiny_net(num_classes, in_chans, img_size, **options):
        return torch.nn.Sequential(...)
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.registry.info import (
    TASKS,
    Adapter,
    BlockSplit,
    DatasetInfo,
    Finding,
    LazySplit,
    ModelFacts,
    Option,
    RegistryError,
    RemoteFile,
    Split,
    nearest,
    resolve,
)
from bench.registry.names import (
    ModelSpec,
    SourceName,
    file_stem,
    is_source,
    legible,
    parse_source,
    read,
    spell,
    split_names,
)
from bench.registry.plugins import load, plugin_being_imported

__all__ = [
    "SCHEMES", "TASKS", "Adapter", "BlockSplit", "DatasetInfo", "Finding", "LazySplit", "ModelFacts", "ModelSpec",
    "Option", "Registry", "RegistryError", "RemoteFile", "SourceName", "Split", "add_builtin", "check_options",
    "dataset_facts", "datasets", "expand_datasets", "expand_models", "file_stem", "legible", "load_plugins",
    "model_facts", "models", "nearest", "parse_model", "parse_source", "register_dataset", "register_model",
    "split_names",
]  # fmt: skip

Facts = TypeVar("Facts", ModelFacts, DatasetInfo)


def _gather(
    words: dict[str, tuple[str, ...]], registered: Iterable[ModelFacts | DatasetInfo]
) -> dict[str, tuple[str, ...]]:
    """Add to the aliases the groups of datasets and the families of main models."""
    for facts in registered:
        if isinstance(facts, DatasetInfo):
            groups = facts.groups
        else:
            groups = (facts.family,) if facts.group == "main" else ()
        for group in groups:
            words[group] = (*words.get(group, ()), facts.name)
    return words


class Registry(Generic[Facts]):
    """Names to facts: duplicates are errors that show both origins; built-ins are read at first look-up."""

    def __init__(self, kind: str, builtin_module: str) -> None:
        self.kind = kind
        self._builtin_module: str | None = builtin_module
        self._facts: dict[str, Facts] = {}
        self._aliases: dict[str, tuple[tuple[str, ...], str]] = {}

    def add(self, facts: Facts) -> None:
        """Register ``facts``; the same name from the same place replaces itself (a re-imported plug-in)."""
        known = self._facts.get(facts.name) if self._builtin_module is None else None
        if not re.fullmatch(r"[a-z0-9_.\-]+", facts.name):
            raise RegistryError(
                f"{self.kind} {facts.name!r} ({facts.origin}): names are lower case, digits, '_', '.', '-'"
            )
        if known is None:
            self._load_builtins()
            known = self._facts.get(facts.name)
        taken = known.origin if known else self._aliases.get(facts.name, ((), None))[1]
        if taken is None and facts.name in self.words() and getattr(facts, "family", None) != facts.name:
            taken = "the built-in families and groups"
        if taken is not None and taken != facts.origin:
            raise RegistryError(
                f"{self.kind} {facts.name!r} is registered twice: at {taken} and at {facts.origin}; rename one of them"
            )
        self._facts[facts.name] = facts

    def forget(self, plugin_file: str) -> None:
        """Drop what a plug-in file registered, before it is imported again."""
        for name in [name for name, facts in self._facts.items() if facts.plugin_file == plugin_file]:
            del self._facts[name]

    def alias(self, name: str, patterns: Sequence[str]) -> None:
        """Let ``name`` stand for several names or variants (``ablations``, ``phantoms``)."""
        self._aliases[name] = (tuple(patterns), _origin(2))

    def _load_builtins(self) -> None:
        module, self._builtin_module = self._builtin_module, None
        if module:
            importlib.import_module(module)

    def __getitem__(self, name: str) -> Facts:
        self._load_builtins()
        if name not in self._facts:
            raise RegistryError(
                f"unknown {self.kind} {name!r}{nearest(name, [*self._facts, *self.words()])}; "
                f"`bench list {self.kind}s` shows all"
            )
        return self._facts[name]

    def __contains__(self, name: object) -> bool:
        self._load_builtins()
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        self._load_builtins()
        return iter(self._facts)

    def values(self) -> list[Facts]:
        """All facts in registration order (families stay together)."""
        self._load_builtins()
        return list(self._facts.values())

    def words(self) -> dict[str, tuple[str, ...]]:
        """Words that stand for several names: aliases, families or groups, and ``all``."""
        self._load_builtins()
        return _gather({name: patterns for name, (patterns, _) in self._aliases.items()}, self._facts.values())

    def expand(self, pattern: str) -> list[str]:
        """Names that a word, a glob or a name stands for. Raises RegistryError when there are none."""
        words = self.words()
        if pattern in self._facts:
            return [pattern]
        if pattern in words:
            return [name for part in words[pattern] for name in ([part] if "[" in part else self.expand(part))]
        if any(c in pattern for c in "*?"):
            if found := fnmatch.filter(self._facts, pattern):
                return found
            raise RegistryError(f"no {self.kind} matches {pattern!r}; `bench list {self.kind}s` shows all")
        self[pattern]  # raises, with the nearest name
        raise AssertionError("unreachable")


models: Registry[ModelFacts] = Registry("model", "bench.models._facts")
datasets: Registry[DatasetInfo] = Registry("dataset", "bench.datasets._facts")


def _origin(depth: int) -> str:
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _place(thing: Callable[..., Any]) -> tuple[str, int]:
    """File and line where a function or class stands; unknown for what was typed into an interpreter."""
    try:
        return inspect.getsourcefile(thing) or "?", inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return "?", 0


def register_model(name: str | None = None, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder ``(num_classes, in_chans, img_size, **options) -> nn.Module`` under its own name.

    ``facts`` are fields of :class:`ModelFacts`; ``family`` defaults to the name. Unknown fields are an error.
    Keywords that a variant may set are read off ``options``; without it, any keyword is passed on.
    """
    allowed = {f.name for f in fields(ModelFacts)} - {"builder", "origin", "plugin_file"}
    for key in facts.keys() - allowed:
        raise RegistryError(f"register_model: unknown fact {key!r}{nearest(key, allowed)}")

    def wrap(builder: Callable[..., Any]) -> Callable[..., Any]:
        own = name or builder.__name__
        rest = {"family": own, "options": None, **facts}
        source, line = _place(builder)
        models.add(
            ModelFacts(
                name=own,
                builder=builder,
                origin=f"{source}:{line}",
                plugin_file=plugin_being_imported() or source,
                **rest,
            )
        )
        return builder

    return wrap


def register_dataset(name: str, **facts: Any) -> Callable[[type[Any]], type[Any]]:
    """Register an :class:`Adapter` class. ``facts`` are fields of :class:`DatasetInfo` (task, classes, channels...)."""
    allowed = {f.name for f in fields(DatasetInfo)} - {"adapter", "origin", "plugin_file"}
    for key in facts.keys() - allowed:
        raise RegistryError(f"register_dataset({name!r}): unknown fact {key!r}{nearest(key, allowed)}")
    for key in ("task", "classes", "channels"):
        if key not in facts:
            raise RegistryError(f"register_dataset({name!r}): {key} is needed")

    def wrap(adapter: type[Any]) -> type[Any]:
        source, line = _place(adapter)
        origin = f"{source}:{line}"
        datasets.add(
            DatasetInfo(
                name=name, adapter=adapter, origin=origin, plugin_file=plugin_being_imported() or source, **facts
            )
        )
        return adapter

    return wrap


def add_builtin(facts: ModelFacts | DatasetInfo) -> None:
    """Register built-in facts (called by ``models/_facts.py`` and ``datasets/_facts.py`` only)."""
    if isinstance(facts, ModelFacts):
        models.add(replace(facts, origin=_origin(2)))
    else:
        datasets.add(replace(facts, origin=_origin(2)))


# --- names of models -------------------------------------------------------------------------------------------


def parse_model(text: str) -> ModelSpec:
    """Parse one name with optional ``[key=value,...]``; options equal to their default are dropped."""
    match = re.fullmatch(r"(timm:)?([^\[\]]+?)(?:\[([^\[\]]*)\])?", text.strip())
    if not match:
        raise RegistryError(f"model {text!r}: write name or name[key=value,key=value]")
    name = (match[1] or "") + match[2]
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (match[3] or "").split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise RegistryError(f"model {text!r}: {item!r} is not key=value")
        options[key.strip()] = read(value.strip())
    if not options:
        return ModelSpec(name)
    return ModelSpec(name, tuple(sorted(check_options(name, options).items())))


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check ``options`` against what the model takes; drop those equal to their default.

    Raises:
        RegistryError: an unknown option or a value it does not take, with the nearest right one.
    """
    facts = model_facts(name)
    known = facts.options if facts.options is not None else _signature_options(facts.builder)
    if known is None:
        return options
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            have = ", ".join(known) or "it has none"
            raise RegistryError(f"model {name!r} has no option {key!r}{nearest(key, known)}; options: {have}")
        value = _option_value(name, key, value, known[key])
        if value != known[key].default or isinstance(value, bool) != isinstance(known[key].default, bool):
            checked[key] = value
    return checked


def _option_value(name: str, key: str, value: Any, option: Option) -> Any:
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


def model_facts(name: str) -> ModelFacts:
    """Facts of a registered model, or of ``timm:<name>`` (which imports timm to check the name)."""
    if not name.startswith("timm:"):
        return models[name]
    from bench.models.timm_models import timm_facts

    facts: ModelFacts = timm_facts(name)
    return facts


def expand_models(patterns: Sequence[str]) -> list[ModelSpec]:
    """Resolve words (``all``, families, ``ablations``), globs, variants and ``timm:`` names, without repeats."""
    found: dict[ModelSpec, None] = {}
    for pattern in patterns:
        base, bracket, rest = pattern.partition("[")
        names = [base] if base.startswith("timm:") else models.expand(base.strip())
        for name in names:
            if bracket and "[" in name:
                raise RegistryError(f"model {pattern!r}: {base!r} already stands for variants; name one model instead")
            spec = parse_model(name + bracket + rest)
            model_facts(spec.name)
            found[spec] = None
    return list(found)


# --- names of datasets -----------------------------------------------------------------------------------------

# Datasets named by where they lie: scheme -> "module:function" (or a function) from the whole name to its facts, which
# imports no torch, reads no image, and whose `name` is a spelling that gives the same facts again.
SCHEMES: dict[str, str | Callable[[str], DatasetInfo]] = {
    "folder": "bench.datasets.folder:facts",
    "csv": "bench.datasets.csv_table:facts",
    "hf": "bench.datasets.huggingface:facts",
    "npz": "bench.datasets.medmnist:facts",
}
_source_facts: dict[str, DatasetInfo] = {}


def dataset_facts(name: str, refresh: bool = False) -> DatasetInfo:
    """Facts of a registered dataset, or of one named by where it lies (``folder:scans``, ``csv:...``, ``npz:...``).

    Those of a source are remembered, as every Cell asks for them; ``refresh`` looks at the source again.

    Raises:
        RegistryError: an unknown name or scheme, or a source that is not what its scheme expects.
    """
    if not is_source(name):
        if name not in datasets and os.path.exists(os.path.expanduser(name)):
            kind = "folder" if os.path.isdir(os.path.expanduser(name)) else Path(name).suffix[1:]
            scheme = kind if kind in SCHEMES else "hf" if kind == "parquet" else "csv"
            raise RegistryError(f"dataset {name!r} is a place on this disk; write {scheme}:{name}")
        return _variant(name) if "[" in name else datasets[name]
    source = parse_source(name)
    spelt = str(source)
    if refresh or spelt not in _source_facts:
        if source.scheme not in SCHEMES:
            raise RegistryError(
                f"dataset {name!r}: unknown scheme {source.scheme!r}{nearest(source.scheme, SCHEMES)}; "
                f"schemes: {', '.join(SCHEMES)}"
            )
        facts: DatasetInfo = resolve(SCHEMES[source.scheme])(spelt)
        _source_facts[spelt] = _source_facts[facts.name] = facts
    return _source_facts[spelt]


def _variant(name: str) -> DatasetInfo:
    """Facts of a registered dataset with options in brackets, as ``kvasir_v1[split=author]``."""
    source = parse_source(f"variant:{name}")
    info = datasets[source.place]
    if not info.variant or source.config:
        known = "write name[key=value]" if info.variant else "it has no options"
        raise RegistryError(f"dataset {name!r}: {known}")
    facts: DatasetInfo = resolve(info.variant)(info, dict(source.options))
    return facts


def expand_datasets(patterns: Sequence[str]) -> list[str]:
    """Resolve ``all``, groups (``medmnist``, ``phantoms``), globs, names and sources (``folder:PATH``), once each."""
    found: dict[str, None] = {}
    for pattern in patterns:
        if is_source(pattern) or "[" in pattern:
            found[dataset_facts(pattern, refresh=True).name] = None
        else:
            found.update(dict.fromkeys(datasets.expand(pattern)))
    return list(found)


def load_plugins(plugins: Sequence[str], base: Path) -> None:
    """Import the user's Python files (relative to ``base``) or modules, and installed entry points.

    Raises:
        RegistryError: naming the plug-in, and the exception it raised.
    """

    def forget(plugin_file: str) -> None:
        for registry in (models, datasets):
            registry.forget(plugin_file)

    load(plugins, base, forget)

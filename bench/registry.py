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

import difflib
import fnmatch
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

TASKS = ("multi-class", "binary-class", "multi-label", "ordinal-regression")
ENTRY_POINT_GROUP = "medbench"


class RegistryError(ValueError):
    """A name, option or registration is wrong; the message says which and what would be right."""


def nearest(name: str, candidates: Iterable[str], label: str = "did you mean") -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" ({label} {close[0]!r}?)" if close else ""


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a model that a variant ``name[key=value]`` may set."""

    default: Any
    choices: tuple[Any, ...] = ()
    help: str = ""


def _runs_everywhere(resolution: int, options: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known about a model without building it.

    Attributes:
        params: published or exact parameter count at 1,000 classes and 3 channels.
        macs_g_224: published multiply-adds (10^9, one image, 224 x 224), as its paper counts them.
        unsupported: ``(resolution, options) -> reason or None``; decides in the plan what cannot run.
        options: keywords a variant may set. ``None`` accepts any keyword (passed on to the builder).
        group: ``main`` models make up ``all``; ``twin`` and ``extra`` models are reached by name.
        builder: ``(num_classes, in_chans, img_size, **options) -> nn.Module``, or its ``"module:attribute"``.
        plugin_file: the file that registered it when it is not built in; its bytes enter the Cell's key.
    """

    name: str
    family: str
    builder: str | Callable[..., Any]
    summary: str = ""
    paper: str = ""
    licence: str = ""
    params: int | None = None
    macs_g_224: float | None = None
    published_note: str = ""
    group: str = "main"
    options: Mapping[str, Option] | None = field(default_factory=dict)
    unsupported: Callable[[int, Mapping[str, Any]], str | None] = _runs_everywhere
    origin: str = ""
    plugin_file: str | None = None

    def build(self, num_classes: int, in_chans: int, img_size: int, **options: Any) -> Any:
        """Import the builder if needed and build the network."""
        return _resolve(self.builder, self.name)(
            num_classes=num_classes, in_chans=in_chans, img_size=img_size, **options
        )


class RemoteFile(NamedTuple):
    """A file a dataset needs on disk."""

    name: str
    url: str
    md5: str
    size_bytes: int | None = None


class Split(NamedTuple):
    """One split: ``images`` uint8 (N, H, W, C); ``labels`` int64 (N,), or (N, L) in {0, 1} for multi-label."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


class Adapter(Protocol):
    """Locates, verifies and decodes one source. Constructed with its ``DatasetInfo``."""

    def files(self, size: int) -> tuple[RemoteFile, ...]:
        """Files needed under the data root for images of ``size`` pixels; empty if nothing is read from disk."""

    def fingerprint(self, size: int, root: Path | None) -> str:
        """A string that changes whenever the decoded data would; reads no images where checksums are published."""

    def load(self, size: int, root: Path | None) -> dict[str, Split]:
        """Decode the splits ``train``, ``val`` and ``test``."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known about a dataset without reading it.

    Attributes:
        sizes: side lengths in pixels it exists in; empty if images are made at whatever resolution is asked for.
        mirror_safe: a left-right flip keeps every label (false for left/right organs, for example).
        traps: known defects that a reader of a score should know.
        adapter: the :class:`Adapter` class, or its ``"module:attribute"``.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    channels: int
    adapter: str | Callable[[DatasetInfo], Adapter]
    sizes: tuple[int, ...] = ()
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    modality: str = ""
    summary: str = ""
    licence: str = ""
    citation: str = ""
    source: str = ""
    groups: tuple[str, ...] = ()
    mirror_safe: bool = False
    traps: tuple[str, ...] = ()
    origin: str = ""
    plugin_file: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise RegistryError(f"dataset {self.name!r}: task {self.task!r} is none of {', '.join(TASKS)}")

    def open(self) -> Adapter:
        """Import the adapter if needed and construct it."""
        adapter: Adapter = _resolve(self.adapter, self.name)(self)
        return adapter


Facts = TypeVar("Facts", ModelFacts, DatasetInfo)


def _resolve(target: str | Callable[..., Any], name: str) -> Callable[..., Any]:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return resolved


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


_plugin_file: str | None = None  # set while a plug-in is imported, so that what it registers knows its file


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
            ModelFacts(name=own, builder=builder, origin=f"{source}:{line}", plugin_file=_plugin_file or source, **rest)
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
            DatasetInfo(name=name, adapter=adapter, origin=origin, plugin_file=_plugin_file or source, **facts)
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


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's name and the options its brackets set, as in ``medmamba_tiny[branch=ssm]``."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}[{','.join(f'{k}={_spell(v)}' for k, v in self.options)}]"


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def split_names(text: str) -> list[str]:
    """Split ``"a,b[c=1,d=2]"`` at the commas outside brackets."""
    if not re.fullmatch(r"(?:[^\[\]]|\[[^\[\]]*\])*", text):
        return [text]  # brackets that do not match: whoever reads the name says so
    return [part.strip() for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text) if part.strip()]


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
        options[key.strip()] = _read(value.strip())
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
    said = f"model {name!r}: {key}={_spell(value)}"
    if option.choices:
        for choice in option.choices:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise RegistryError(f"{said} is none of {', '.join(map(_spell, option.choices))}")
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


def expand_datasets(patterns: Sequence[str]) -> list[str]:
    """Resolve ``all``, groups (``medmnist``, ``phantoms``), globs and names, without repeats."""
    return list(dict.fromkeys(name for pattern in patterns for name in datasets.expand(pattern)))


# --- plug-ins --------------------------------------------------------------------------------------------------


def load_plugins(plugins: Sequence[str], base: Path) -> None:
    """Import the user's Python files (relative to ``base``) or modules, and installed entry points.

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
                _import_file(path.resolve())
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


def _import_file(path: Path) -> None:
    """Import a plug-in file; again, in place of its former self, when it has changed since."""
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if _imported.get(path) == stamp:
        return
    for registry in (models, datasets):
        registry.forget(str(path))
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

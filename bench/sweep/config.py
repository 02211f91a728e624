"""bench.toml + preset + flags -> a validated Sweep, with the origin of every value kept for error messages.

Later layers win: defaults, the preset named in the file, the file, ``--preset``, flags and ``--set``.

The preset ``quick`` is the sweep of whoever asks for none: it applies where no models, datasets or preset are named. A
file's own ``preset = "quick"`` likewise gives way to ``--models`` or ``--datasets`` (or those of ``--set``), so that
the protocol of a first look is never taken for that of a real sweep. ``--preset quick`` always applies.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bench.errors import ConfigError as ConfigError
from bench.registry import is_own_data, nearest, split_names
from bench.sweep.recipes import Tuned, plain_words

CONFIG_NAME = "bench.toml"
WHAT = ("sweep.models", "sweep.datasets")  # who names one of these asks for a sweep of their own, not for `quick`


def _listed(value: object) -> object:
    if isinstance(value, str):
        return split_names(value)
    return value if isinstance(value, (list, tuple)) else [value]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("write auto, cpu, cuda or cuda:N")
    return value


Pixels = Annotated[int, Field(ge=8, le=8192)]
Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
PixelList = Annotated[list[Pixels], BeforeValidator(_listed), Field(min_length=1)]
Transfers = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Kind = Literal["accuracy", "efficiency"]
Precision = Literal["fp32", "tf32", "bf16"]
Part = Annotated[float, Field(gt=0, le=1)]
Track = Literal["frozen", "finetune", "scratch"]
Head = Literal["knn11", "knn20", "linear", "medmnistplus", "eva"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SweepSection(_Section):
    """What to train and on what."""

    models: Names = ["all"]
    datasets: Names = ["phantoms"]
    sizes: PixelList = [28]
    resolutions: PixelList = [224]
    resize: Literal["auto", "native", "nearest", "bilinear", "bicubic", "pad"] = "auto"
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)] = [0]
    recipe: str = "medmnist"
    track: Annotated[list[Track], BeforeValidator(_listed)] = []
    finetune_recipe: str | None = None
    heads: Annotated[list[Head], BeforeValidator(_listed), Field(min_length=1)] = ["knn11", "knn20", "linear"]
    shots: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_listed)] = []
    label_fraction: Annotated[list[Part], BeforeValidator(_listed), Field(min_length=1)] = [1.0]
    draws: Annotated[int, Field(ge=1, le=1000)] = 5
    epochs: Annotated[int, Field(ge=1)] | None = None
    tune: Tuned = {}
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    kinds: Annotated[list[Kind], BeforeValidator(_listed), Field(min_length=1)] = ["accuracy", "efficiency"]
    transfer: Transfers = []
    leaks: Literal["warn", "refuse", "drop"] = "warn"
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    preset: Literal["quick", "standard", "paper"] | None = None


class EfficiencySection(_Section):
    """The grid of the efficiency cells; without ``resolutions`` those of the sweep."""

    resolutions: PixelList | None = None
    batches: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)] = [16]
    precisions: Annotated[list[Precision], BeforeValidator(_listed), Field(min_length=1)] = ["fp32"]
    compile: Annotated[list[bool], BeforeValidator(_listed), Field(min_length=1)] = [False]
    modes: Annotated[list[Literal["infer", "train"]], BeforeValidator(_listed), Field(min_length=1)] = ["infer"]
    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    budget_s: Annotated[float, Field(gt=0)] = 3.0


class RunSection(_Section):
    """Where and how to run."""

    device: Annotated[str, AfterValidator(_device)] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    pack: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"  # a CPU has one place then
    out: str | None = None
    data_root: str | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    keep_weights: bool | Literal["recommended"] = "recommended"
    download: bool = True
    skip_missing: bool = False
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    ray_memory_gib: Annotated[float, Field(gt=0)] | None = None
    retry: Annotated[list[Literal["failed", "timeout", "oom", "diverged", "noisy"]], BeforeValidator(_listed)] = []


class Sweep(_Section):
    """A validated sweep. Names of models and datasets are resolved by :func:`bench.plan.plan.make_plan`."""

    sweep: SweepSection = SweepSection()
    efficiency: EfficiencySection = EfficiencySection()
    run: RunSection = RunSection()
    plugins: Annotated[list[str], BeforeValidator(_listed)] = []
    recipe: dict[str, Any] = {}
    transfer: dict[str, dict[str, str | list[str]]] = {}


def _flat(tree: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """``section.key`` -> value."""
    return {f"{section}.{key}": value for section, content in tree.items() for key, value in content.items()}


_FILE = Path(__file__).with_name("presets.toml")
PRESETS = {name: _flat(tree) for name, tree in tomllib.loads(_FILE.read_text(encoding="utf-8")).items()}
SMALLEST: list[str] = PRESETS["quick"]["sweep.models"]  # type: ignore[assignment]
# Of data of one's own, where nothing else is said: what a laptop trains in minutes instead of hours.
OWN: dict[str, object] = {"sweep.models": SMALLEST, "sweep.resolutions": [64], "sweep.recipe": "standard"}
_OWN_SAID = {
    "sweep.models": "the smallest model of each family (--models all: every size)",
    "sweep.resolutions": "64 px (--resolutions)",
    "sweep.recipe": "recipe standard (--recipe)",
}


@dataclass(frozen=True)
class Loaded:
    """A Sweep, where each value came from (``section.key`` -> text), and the folder that plug-ins are relative to.

    ``name`` is that of the run directory: the preset, else the stem of ``--config``, else ``sweep``. ``note`` says
    that the file's preset does not apply, and which defaults of own data do.
    """

    sweep: Sweep
    origins: Mapping[str, str]
    base: Path
    name: str = "sweep"
    note: str = ""

    def origin(self, key: str) -> str:
        """Say where ``section.key`` was set."""
        return self.origins.get(key, "default")


def changed(loaded: Loaded, values: Mapping[str, object]) -> Loaded:
    """The same with other values (``section.key`` -> value), which are not validated."""
    sweep = loaded.sweep
    for key, value in values.items():
        section, _, name = key.partition(".")
        part = getattr(sweep, section).model_copy(update={name: value})
        sweep = sweep.model_copy(update={section: part})
    return replace(loaded, sweep=sweep)


def with_own_defaults(loaded: Loaded, keys: Collection[str] = tuple(OWN)) -> Loaded:
    """The same with those of :data:`OWN` that a sweep of nothing but own data leaves open, and a note that says so.

    Networks that start from published weights keep the usual resolution: they were trained at about that.
    """
    section = loaded.sweep.sweep
    if section.preset or not all(map(is_own_data, section.datasets)):
        return loaded
    left = {key: OWN[key] for key in keys if key not in loaded.origins}
    if section.track or any("pretrained" in name for name in section.models):
        left.pop("sweep.resolutions", None)
    if not left:
        return loaded
    said = f"defaults for data of your own: {', '.join(_OWN_SAID[key] for key in left)}"
    return replace(changed(loaded, left), note="\n".join(filter(None, (loaded.note, said))))


def _keys() -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for section, info in Sweep.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, _Section):
            found.update({f"{section}.{key}": sub for key, sub in model.model_fields.items()})
        else:
            found[section] = info
    return found


def find_key(name: str) -> str:
    """Resolve ``models`` or ``sweep.models`` to ``sweep.models``. Raises ConfigError with the nearest key."""
    keys = _keys()
    # The sections [recipe] and [transfer] hold single values; the bare words are the sweep's, the common wish.
    aliases = {"recipe": "sweep.recipe", "transfer": "sweep.transfer", "plugins.paths": "plugins"}
    if name in aliases or name in keys or name.startswith(("recipe.", "transfer.")):
        return aliases.get(name, name)
    word = name.replace("-", "_")
    bare = [key for key in keys if key.rpartition(".")[2] == word]
    if bare:
        return bare[0]  # of two, the sweep's: it is declared first
    shorts = {key.rpartition(".")[2] for key in keys}
    close = nearest(name, [*keys, *shorts])
    raise ConfigError(f"unknown key {name!r}{close}" + ("" if close else f"; keys: {', '.join(keys)}"))


def _line_of(text: str, section: str, key: str) -> int | None:
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            current = header[1].strip().strip('"')
            if not key and current == section:
                return number
        elif match := re.match(r"\s*[\"']?([\w.\-]+)[\"']?\s*=", line):
            full = f"{current}.{match[1]}" if current else match[1]
            if full == (f"{section}.{key}" if section and key else key or section):
                return number
    return None


def _read_file(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """Flatten a TOML file into ``section.key`` -> value, and the same keys -> ``file, line n``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; --config takes a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for section, content in tree.items():
        if section == "plugins" and isinstance(content, dict) and set(content) <= {"paths"}:
            found = {"plugins": content.get("paths", [])}
        elif isinstance(content, dict) and section != "plugins" and (content or section in Sweep.model_fields):
            found = {f"{section}.{key}": value for key, value in content.items()}
        else:
            found = {section: content}
        values |= found
        for name in found:
            line = _line_of(text, section, "paths" if name == "plugins" else name[len(section) + 1 :])
            origins[name] = f"{path}, line {line}" if line else str(path)
    return values, origins


def _parse_set(item: str) -> tuple[str, object]:
    name, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"--set {item}: write --set key=value")
    try:
        key = find_key(name.strip())
    except ConfigError as error:
        raise ConfigError(f"--set {item}: {error}") from None
    try:
        return key, tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError as error:
        if text.lstrip()[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {item}: {error}") from None
        return key, text


def load(
    config: Path | None = None,
    preset: str | None = None,
    flags: Mapping[str, object] | None = None,
    sets: Iterable[str] = (),
) -> Loaded:
    """Read, layer and validate the configuration.

    Args:
        config: a TOML file; without it, ``bench.toml`` of the current folder where there is one.
        preset: ``quick``, ``standard`` or ``paper``; wins over the file, loses to flags.
        flags: ``section.key`` -> value, from command-line flags or keyword arguments; ``None`` values are ignored.
        sets: ``key=value`` strings of ``--set``.

    Raises:
        ConfigError: naming file and line, or flag, and the nearest right name.
    """
    path = config or (Path(CONFIG_NAME) if Path(CONFIG_NAME).is_file() else None)
    file_values, file_origins = _read_file(path) if path else ({}, {})
    parsed = [(*_parse_set(item), f"--set {item}") for item in sets]
    asked = {key: value for key, value in (flags or {}).items() if value is not None}
    preset_origin = f"--preset {preset}"
    if "sweep.preset" in asked:
        preset = str(asked.pop("sweep.preset"))
    for key, value, origin in parsed:
        if key == "sweep.preset":
            preset, preset_origin = str(value), origin
    parsed = [entry for entry in parsed if entry[0] != "sweep.preset"]
    values: dict[str, object] = {}
    origins: dict[str, str] = {}

    def layer(new: Mapping[str, object], name: str | Mapping[str, str]) -> None:
        for key, value in new.items():
            values[key] = value
            origins[key] = name if isinstance(name, str) else name[key]

    named = [key for key in WHAT if key in asked or key in {entry[0] for entry in parsed}]
    in_file, note = file_values.get("sweep.preset"), ""
    if in_file == "quick" and preset is None and named:
        in_file = None
        del file_values["sweep.preset"]
        flag = f"--{named[0].partition('.')[2]}"
        note = f"preset quick ({file_origins['sweep.preset']}) gives way to {flag}; --preset quick applies both"
    elif not in_file and preset is None and not named and not file_values.keys() & set(WHAT):
        in_file = "quick"
    if in_file:
        origin = file_origins.get("sweep.preset", "default")
        layer({**_preset(in_file, origin), "sweep.preset": in_file}, f"preset {in_file}")
    layer(file_values, file_origins)
    if preset is not None:
        layer({**_preset(preset, preset_origin), "sweep.preset": preset}, preset_origin)
    for key, value in asked.items():
        layer({key: value}, f"--{key.rpartition('.')[2].replace('_', '-')}")
    for key, value, origin in parsed:
        layer({key: value}, origin)
    base = path.resolve().parent if path else Path.cwd()
    sweep = _validate(values, origins)
    return Loaded(sweep, origins, base, sweep.sweep.preset or (config.stem if config else "sweep"), note)


def _preset(name: object, origin: str) -> dict[str, object]:
    if str(name) not in PRESETS:
        raise ConfigError(
            f"{origin}: unknown preset {name!r}{nearest(str(name), PRESETS)}; presets: {', '.join(PRESETS)}"
        )
    return PRESETS[str(name)]


def _validate(values: Mapping[str, object], origins: Mapping[str, str]) -> Sweep:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    try:
        return Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, origins) for item in error.errors())) from None


def _explain(item: ErrorDetails, origins: Mapping[str, str]) -> str:
    section, *rest = (str(part) for part in item["loc"])
    key = f"{section}.{rest[0]}" if rest else section
    where = next((place for name, place in origins.items() if name in (key, section) or name.startswith(f"{key}.")), "")
    where = origins.get(key, where or "configuration")
    if item["type"] == "extra_forbidden":
        known = [name.partition(".") for name in _keys()]
        if not rest:
            return f"{where}: unknown section {section!r}{nearest(section, {name for name, _, _ in known})}"
        own = [name for of, _, name in known if of == section]
        return f"{where}: unknown key {rest[0]!r} in [{section}]{nearest(rest[0], own)}"
    if not rest and item["type"] in ("model_type", "dict_type"):
        return f"{where}: {section!r} is a section: write [{section}] on a line of its own"
    if section == "plugins" and not isinstance(item["input"], str):
        return f'{where}: [plugins] has one key, paths = ["file.py", "module"]'
    hint = nearest(str(item["input"]), _choices(key)) if item["type"] == "literal_error" else ""
    return f"{where}: {key} = {item['input']!r}: {plain_words(item)}{hint}"


def _choices(key: str) -> list[str]:
    found: list[str] = []
    pending: list[object] = [_keys()[key].annotation]
    while pending:
        args = get_args(pending.pop())
        found += [arg for arg in args if isinstance(arg, str)]
        pending += args
    return found

"""How models and datasets are spelt: lists, variants in brackets, sources of a user's own.

Only spelling: whether a name exists is :mod:`bench.registry`'s to say.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bench.registry.info import OptionValue, RegistryError


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's name and the options its brackets set, as in ``medmamba_tiny[branch=ssm]``."""

    name: str
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}[{','.join(f'{k}={spell(v)}' for k, v in self.options)}]"


def bare_model(text: str) -> str:
    """A model's name without what says its weights: neither ``pretrained=`` nor the tag of ``timm:NAME.TAG``."""
    name, _, inside = text.rstrip("]").partition("[")
    options = [item for item in inside.split(",") if item and not item.startswith("pretrained=")]
    if name.startswith("timm:") and not name.startswith("timm:hf-hub:"):
        name = name.partition(".")[0]
    return f"{name}[{','.join(options)}]" if options else name


def spell(value: object) -> str:
    """Write an option's value as it is written in brackets."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(text: str) -> OptionValue:
    """Read an option's value: a truth value, a whole number, a number, or the text itself."""
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


# --- sources of a user's own -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceName:
    """A dataset named by where it lies, as ``csv:scans/list.csv[image=file,label=finding]``.

    Attributes:
        scheme: what stands before the first colon.
        place: a path, or a name on a hub; ``~`` is expanded and ``..`` folded. May hold blanks, any letters, and
            brackets where a path of that spelling exists.
        config: the one item in brackets that is not ``key=value`` (``hf:NAME[config]``), or "".
        options: the others, as text, sorted by key.
        name: what people see instead (``name=`` in brackets), or "": the file's stem or the folder's name.
    """

    scheme: str
    place: str
    config: str = ""
    options: tuple[tuple[str, str], ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}:{self.place}{self._brackets(with_name=True)}"

    def _brackets(self, with_name: bool) -> str:
        items = [*([self.config] if self.config else []), *(f"{key}={_quoted(value)}" for key, value in self.options)]
        items += [f"name={self.name}"] if self.name and with_name else []
        return f"[{','.join(items)}]" if items else ""

    def short_names(self) -> list[str]:
        """Names for people, the shortest first; the last one is the whole."""
        if self.name:
            return [self.name, str(self)]
        parent, last = os.path.split(self.place)
        if last in (".", ".."):
            return [str(self)]
        stem, suffix = os.path.splitext(last)
        stem = stem if suffix.lower() in TABLES else last
        near = f"{os.path.basename(parent)}/{stem}" if parent else stem
        return [stem, stem + self._brackets(with_name=False), near, near + self._brackets(with_name=False), str(self)]


def is_source(name: str) -> bool:
    """Whether a dataset is named by a scheme (``folder:...``) rather than by a registered name."""
    return re.match(r"[a-z][a-z0-9_]+:", name) is not None


def parse_source(text: str) -> SourceName:
    """Parse ``scheme:place[config,key=value]``; a value with commas stands in double quotes or parentheses.

    Raises:
        RegistryError: there is no place, or an item in brackets is said twice or has no key.
    """
    scheme, _, rest = text.strip().partition(":")
    place, inside = rest.strip(), ""
    if place.endswith("]") and "[" in place and not os.path.exists(os.path.expanduser(place)):
        place, _, inside = place[:-1].rpartition("[")
    if not place.strip():
        raise RegistryError(f"dataset {text!r}: missing path after {scheme + ':'!r}; write {scheme}:PATH")
    config, options = "", {}
    for item in filter(None, (part.strip() for part in _items(inside))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if not equals and not config:
            config = key
        elif not equals or not key or key in options:
            raise RegistryError(f"dataset {text!r}: {item!r} is not key=value, or is said twice")
        else:
            options[key] = value
    name = options.pop("name", "")
    return SourceName(scheme, _folded(place.strip()), config, tuple(sorted(options.items())), name)


TABLES = (".csv", ".tsv", ".txt")
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")  # read_table says how to save them as CSV


def source_of_path(text: str) -> str | None:
    """The source that a path means: ``csv:``, ``npz:``, ``hf:`` of a file, ``folder:``; None for what is no path.

    Raises:
        RegistryError: a file that is no table, or what looks like a path and is not there.
    """
    place = text if os.path.exists(os.path.expanduser(text)) else text.partition("[")[0].strip()
    path = os.path.expanduser(place)
    table = os.path.splitext(path)[1].lower() in (*TABLES, *SHEETS)
    if os.path.isdir(path):
        return f"folder:{text}"
    if os.path.isfile(path):
        if table:
            return f"csv:{text}"
        if path.lower().endswith((".npz", ".parquet")):
            return f"{'npz' if path.lower().endswith('.npz') else 'hf'}:{text}"
        raise RegistryError(
            f"dataset {text!r} is a file, but no table (.csv); write csv:PATH, or folder:PATH of images"
        )
    if table or os.sep in place:
        hub = f"; on Hugging Face: hf:{text}" if re.fullmatch(r"[\w.\-]+/[\w.\-]+", place) and not table else ""
        raise RegistryError(f"dataset {text!r}: there is no such file or folder{hub}")
    return None


def display_names(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """What people see of datasets: short names of sources, each another; of all others their own.

    Args:
        names: as in the specs of Cells.
        taken: names that mean something else, as those of registered datasets.
    """
    found = {name: [name] for name in names}
    for name in found:
        if is_source(name):
            found[name] = parse_source(name).short_names()
    while True:
        shown: dict[str, list[str]] = {}
        for name, choices in found.items():
            shown.setdefault(choices[0], []).append(name)
        clashing = [
            n for text, who in shown.items() if len(who) > 1 or (text in taken and is_source(who[0])) for n in who
        ]
        longer = [name for name in clashing if len(found[name]) > 1]
        if not longer:
            return {name: choices[0] for name, choices in found.items()}
        for name in longer:
            del found[name][0]


def _items(inside: str) -> list[str]:
    """Split what stands in brackets at commas, but not inside double quotes or parentheses (of a column's name)."""
    parts = re.findall(r"""(?:"[^"]*"|\([^()]*\)|[^,"()]|["()](?![^,]*["()]))+""", inside)
    return parts if len("".join(parts)) + len(parts) - 1 == len(inside) else inside.split(",")


def _quoted(value: str) -> str:
    return f'"{value}"' if "," in value else value


def _folded(place: str) -> str:
    """Fold a path's ``~``, ``.`` and ``..``; a name on a hub (``owner/name``) stays what it is."""
    return os.path.normpath(os.path.expanduser(place))


def legible(name: str) -> str:
    r"""A file's name as it can be printed and written: bytes that are no UTF-8 become ``\xfc``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_stem(name: str) -> str:
    """Return a file name without suffix for a model or dataset: its name, or what is legible of it and a hash."""
    if re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*", name):
        return name
    source = parse_source(name) if is_source(name) else None
    legible = f"{source.scheme}-{os.path.basename(source.place)}" if source else name
    legible = re.sub(r"[^A-Za-z0-9_\-]+", "_", legible).strip("_")[:60]
    return f"{legible}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

"""Published figures from a CSV, one row per model on a dataset, by the column names in use."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bench import registry
from bench.errors import DataError

COLUMNS: Mapping[str, frozenset[str]] = {
    "dataset": frozenset({"dataset", "data", "data_set"}),
    "model": frozenset({"model", "method", "network"}),
    "acc": frozenset({"acc", "accuracy", "oa"}),
    "auc": frozenset({"auc", "auroc", "roc_auc"}),
    "n_test": frozenset({"n_test", "n", "test_images", "images"}),
    "n_positive": frozenset({"n_positive", "positives"}),
    "seeds": frozenset({"seeds", "runs", "n_seeds"}),
    "acc_spread": frozenset({"acc_spread", "acc_std", "acc_sd", "spread"}),
    "auc_spread": frozenset({"auc_spread", "auc_std", "auc_sd"}),
    "paper": frozenset({"paper", "source"}),
    "proposed": frozenset({"proposed", "ours_is"}),
    "ours": frozenset({"ours"}),
}
PROTOCOL = ("protocol", "differs", "size", "resolution", "resize", "pretrained", "recipe", "split")
_YES = {"1", "yes", "true", "x", "proposed"}
# Test images of the positive class in MedMNIST's two-class sets (official files, data/README of the published results).
POSITIVES = {"breastmnist": 114, "pneumoniamnist": 390}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: figures are shares, None where not given; ``protocol`` holds the columns of PROTOCOL that are filled."""

    dataset: str
    model: str
    acc: float | None
    auc: float | None
    n_test: int | None
    n_positive: int | None
    seeds: int | None
    acc_spread: float | None
    auc_spread: float | None
    paper: str
    proposed: bool
    ours: str
    protocol: Mapping[str, str]


def bundled() -> Path:
    """The collection of published figures that comes with medbench."""
    return Path(str(resources.files("bench.report").joinpath("data", "published_results.csv")))


def read_figures(path: Path) -> list[Figure]:
    """Read a table of published figures.

    Raises:
        DataError: no such file, a column is missing, or a value is not a number; names file, line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = {c: re.sub(r"[\s\-.]+", "_", c.strip().lower()) for c in reader.fieldnames or ()}
            columns = {role: c for c, n in names.items() for role, known in COLUMNS.items() if n in known}
            protocol = {n: c for c, n in names.items() if n in PROTOCOL}
            missing = [role for role in ("dataset", "model") if role not in columns]
            if missing or not {"acc", "auc"} & set(columns):
                needs = ", ".join(missing or ["acc or auc"])
                raise DataError(f"{path}: no column {needs}; it has {', '.join(names) or 'none'} (docs/claims.md)")
            rows = [_figure(path, i, line, columns, protocol) for i, line in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return rows


def _figure(
    path: Path, line: int, row: Mapping[str, str | None], columns: Mapping[str, str], protocol: Mapping[str, str]
) -> Figure:
    def text(role: str) -> str:
        return (row.get(columns.get(role, "")) or "").strip()

    def number(role: str) -> float | None:
        value = text(role).rstrip("%")
        if not value:
            return None
        try:
            return float(value)
        except ValueError:
            raise DataError(f"{path}, line {line}: {columns[role]} {value!r} is not a number") from None

    def share(role: str) -> float | None:
        value = number(role)
        if value is not None and not 0 <= value <= 100:
            raise DataError(
                f"{path}, line {line}: {columns[role]} {value:g} is neither a share (0 to 1) nor a percentage (to 100)"
            )
        percent = value is not None and (value > 1 or text(role).endswith("%"))
        return value / 100 if percent and value is not None else value

    def spread(role: str, figure: str) -> float | None:
        value = number(role)
        in_percent = (number(figure) or 0) > 1
        return value / 100 if value is not None and in_percent else value

    def whole(role: str) -> int | None:
        value = number(role)
        if value is not None and (value != int(value) or value < 1):
            raise DataError(f"{path}, line {line}: {columns[role]} {value:g} must be a whole number, 1 or more")
        return int(value) if value is not None else None

    dataset = text("dataset")
    return Figure(
        dataset, text("model"), share("acc"), share("auc"), whole("n_test") or _known_n(dataset),
        whole("n_positive") or POSITIVES.get(dataset), whole("seeds"), spread("acc_spread", "acc"),
        spread("auc_spread", "auc"), text("paper"), text("proposed").lower() in _YES, text("ours"),
        {name: value for name, column in protocol.items() if (value := (row.get(column) or "").strip())},
    )  # fmt: skip


def _known_n(dataset: str) -> int | None:
    """Test images of a registered dataset."""
    return registry.datasets[dataset].n_test if dataset in list(registry.datasets) else None


def differences(first: Figure, second: Figure) -> list[str]:
    """What is known to differ between the protocols of two rows, in words."""
    found = []
    for name in PROTOCOL:
        a, b = first.protocol.get(name, ""), second.protocol.get(name, "")
        if name in ("differs", "protocol"):
            found += [f"{row.model}: {text}" for row, text in ((first, a), (second, b)) if text and a != b]
        elif a != b:
            found.append(f"{name} {a or 'not stated'} against {b or 'not stated'}")
    seeds = [f"{row.seeds} runs" if row.seeds else "" for row in (first, second)]
    if seeds[0] != seeds[1] and all(seeds):
        found.append(f"mean of {seeds[0]} against {seeds[1]}")
    return found


def named(rows: Iterable[Figure], pattern: str) -> list[Figure]:
    """Rows whose model, or whose paper, is called so (``*`` stands for anything; commas separate several)."""
    from fnmatch import fnmatchcase

    wanted = [part.strip().lower() for part in pattern.split(",") if part.strip()]
    return [r for r in rows if any(fnmatchcase(v.lower(), w) for w in wanted for v in (r.model, r.paper))]

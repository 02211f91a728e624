"""The tables in docs/ that come from the code's own facts; ``python tests/repo/docs_tables.py`` writes them anew."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from bench.registry import DatasetInfo, datasets
from bench.sweep import recipes

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("medmnist", "medmamba-paper", "medmamba-paper-other", "medmamba-repo", "standard", "finetune", "quick")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def recipe_summaries() -> str:
    """One line a recipe."""
    return table(("recipe", "what it is"), ((f"`{name}`", recipes.summary(name)) for name in ORDER))


def recipe_settings() -> str:
    """Fields in which recipes differ from each other or from the neutral value."""
    resolved = {name: recipes.resolve(name) for name in ORDER}
    rows = []
    for field, facts in recipes.FIELDS.items():
        values = [resolved[name][field] for name in ORDER]
        if field != "version" and any(value != facts.default for value in values):
            rows.append((f"`{field}`", *map(_spelt, values)))
    return table(("", *(f"`{name}`" for name in ORDER)), rows)


def _spelt(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(f"{item:.3g}" for item in value) or "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_fields() -> str:
    """Every setting, its neutral value and its meaning."""
    rows = []
    for name, field in recipes.FIELDS.items():
        literals = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
        choices = f" ({', '.join(literals)})" if literals else ""
        rows.append((f"`{name}`", _spelt(field.default), f"{field.description}{choices}"))
    return table(("key", "neutral", "meaning"), rows)


def _datasets(wanted: Callable[[DatasetInfo], bool]) -> str:
    rows = []
    for info in (info for info in datasets.values() if wanted(info)):
        task = "" if info.task in ("multi-class", "binary-class") else f", {info.task}"
        kind = "gray" if info.channels == 1 else "colour"
        images = " / ".join(f"{n:,}" for n in (info.n_train, info.n_val, info.n_test) if n is not None)
        flip = "yes" if info.mirror_safe else "no"
        rows.append(
            (f"`{info.name}`", f"{info.modality}; {len(info.classes)}{task}; {kind}", images, flip, info.licence)
        )
    return table(("name", "images; classes", "train / val / test", "flips", "licence"), rows)


def medmnist_sets() -> str:
    """The twelve sets."""
    return _datasets(lambda info: "medmnist" in info.groups)


def published_sets() -> str:
    """Those to be fetched by hand."""
    return _datasets(lambda info: bool(info.varied))


def phantom_sets() -> str:
    """What each phantom asks."""
    chosen = [info for info in datasets.values() if info.groups and info.groups[0].startswith("phantoms")]
    return table(("name", "classes", "question"), ((f"`{i.name}`", len(i.classes), i.summary) for i in chosen))


def known_issues() -> str:
    """What a reader of a score should know."""
    shared = set.intersection(*(set(info.traps) for info in datasets.values() if "medmnist" in info.groups))
    lines = [f"- all of MedMNIST: {issue}." for issue in sorted(shared)]
    organs = [info for info in datasets.values() if info.name.startswith("organ")]
    for info in datasets.values():
        if info in organs[1:]:
            continue
        who = ", ".join(f"`{i.name}`" for i in organs) if info in organs else f"`{info.name}`"
        lines += [f"- {who}: {issue}." for issue in info.traps if issue not in shared]
    return "\n".join(lines)


def archives() -> str:
    """What to put where, from the adapters."""
    found = []
    for info in datasets.values():
        if info.varied:
            found.append((f"`DATA_ROOT/{info.name}/`", getattr(info.open(), "archive", "")))
    return table(("folder", "what to put there"), found)


def recipe_silences() -> str:
    """What a recipe's file says beside its settings: source, and where that is silent."""
    lines = []
    for name in ORDER:
        text = (recipes.FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        tomllib.loads(text)
        said = " ".join(line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
        if said:
            lines.append(f"- `{name}`: {said}")
    return "\n".join(lines)


EXCERPT = ("model", "AUC", "AUC 95 %", "significantly worse", "params M", "images/s")  # of the README, in this order


def excerpt(board: str) -> str:
    """The first table of a leaderboard, with the columns of the README."""
    lines = re.search(r"^\| # \|.*?(?=\n\n)", board, re.M | re.S)
    assert lines, "the leaderboard has no table of models"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    chosen = [rows[0].index(name) for name in EXCERPT]
    return "\n".join("| " + " | ".join(row[i] for i in chosen) + " |" for row in rows)


def with_excerpt(readme: str) -> str:
    """The README with its excerpt as the leaderboard it names has it today."""
    begin, end = r"(<!-- excerpt of (\S+) -->\n)", r"(<!-- end of excerpt -->)"

    def today(found: re.Match[str]) -> str:
        board = (ROOT / found[2]).read_text(encoding="utf-8")
        return f"{found[1]}{excerpt(board)}\n{found[3]}"

    return re.sub(begin + ".*?" + end, today, readme, flags=re.S)


BLOCKS: dict[str, Callable[[], str]] = {
    "recipe-summaries": recipe_summaries,
    "recipe-silences": recipe_silences,
    "recipe-settings": recipe_settings,
    "recipe-fields": recipe_fields,
    "medmnist-sets": medmnist_sets,
    "phantom-sets": phantom_sets,
    "published-sets": published_sets,
    "archives": archives,
    "known-issues": known_issues,
}


def filled(text: str) -> str:
    """Put each block between its markers."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
        if pattern.search(text):
            content = f"{begin}\n{block()}\n{end}"
            text = pattern.sub(lambda _, content=content: content, text)
    return text


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    front = ROOT / "README.md"
    front.write_text(with_excerpt(front.read_text(encoding="utf-8")), encoding="utf-8")

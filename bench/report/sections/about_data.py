"""What a reader of a score should know of its dataset: the known issues in ``run.json``, and findings. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.record.types import Record, RunInfo, Spec
from bench.report.blocks import Block, Bullets, Details, Section, Text
from bench.report.words import counted, name, natural

MAX_WARNINGS = 4  # of a dataset at the top of a board
MAX_SHOWN = 110  # characters of the first known issue that stand on the folded line


def with_known_issues(sections: Iterable[Section], run_info: RunInfo) -> list[Section]:
    """Put what is known of each dataset below the first paragraph of its section."""
    known = {name(dataset): about(info) for dataset, info in _datasets(run_info).items()}
    return [
        Section(s.title, [*s.blocks[:1], *known.get(s.title, ()), *s.blocks[1:]], s.level) for s in sections
    ]  # fmt: skip


def data_warnings(records: Iterable[Record]) -> list[str]:
    """One sentence a dataset for the top of a board: what was found in its files and pixels; none for older Records."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        for finding in record.get("data", {}).get("findings", ()):
            if finding["severity"] != "note":
                found.setdefault(str(record["spec"].get("dataset")), {})[finding["text"]] = finding["severity"]
    lines = []
    for dataset in sorted(found, key=natural):
        texts = sorted(found[dataset], key=lambda text: found[dataset][text] != "leak")
        more = f"; and {len(texts) - MAX_WARNINGS} more" if len(texts) > MAX_WARNINGS else ""
        leaks = "LEAK, " if "leak" in found[dataset].values() else ""
        lines.append(f"Data of {name(dataset)}: {leaks}{'; '.join(texts[:MAX_WARNINGS])}{more}.")
    return lines


def issues_of_targets(records: Iterable[Record], run_info: RunInfo) -> list[Block]:
    """The same of the datasets that are only transferred to, which have no section of their own."""
    kinds: dict[str, set[str]] = {"accuracy": set(), "transfer": set()}
    for record in records:
        if record["kind"] in kinds:
            kinds[record["kind"]].add(str(record["spec"].get("dataset")))
    known = _datasets(run_info)
    blocks: list[Block] = []
    for dataset in sorted(kinds["transfer"] - kinds["accuracy"], key=natural):
        if found := about(known.get(dataset, {})):
            blocks += [Text(f"{name(dataset)}:"), *found]
    return blocks


def about(info: Spec) -> list[Block]:
    """One sentence on what the images are, and the known issues folded away under the first of them."""
    classes, task = info.get("classes"), info.get("task")
    many = f"{task}, {counted(len(classes), 'class', 'classes')}" if isinstance(classes, list) and task else ""
    licence = f"licence {info['licence']}" if info.get("licence") else ""
    parts = [str(part) for part in (info.get("modality"), many, licence) if part]
    blocks: list[Block] = []
    if parts:
        text = "; ".join(parts)
        blocks.append(Text(text[0].upper() + text[1:] + "."))
    if info.get("spelt"):
        blocks.append(Text(f"Read from {name(str(info['spelt']))}."))
    listed = info.get("traps")
    if issues := tuple(map(str, listed)) if isinstance(listed, list) else ():
        first = issues[0] if len(issues[0]) <= MAX_SHOWN else issues[0][: MAX_SHOWN - 1].rstrip() + "…"
        blocks.append(Details(f"{counted(len(issues), 'known issue')}: {first}", (Bullets(issues),)))
    return blocks


def _datasets(run_info: RunInfo) -> dict[str, Spec]:
    """Of each dataset what the plan wrote; empty for runs from before it did."""
    found = run_info.get("datasets")
    if not isinstance(found, Mapping):
        return {}
    return {str(dataset): info for dataset, info in found.items() if isinstance(info, Mapping)}

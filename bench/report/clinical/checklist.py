"""A reporting checklist with what the Records of a run answer filled in; everything else is left as a question.

The items are numbered as in TRIPOD+AI (Collins et al., BMJ 385:e078378, 2024), STARD-AI (Sounderajah et al., Nature
Medicine 31:3283, 2025) and CLAIM (Tejani et al., Radiology: AI 6:e240300, 2024), in our own words. They help to fill
in the official forms and do not replace them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.metrics.registry import RANKING
from bench.record.types import Spec
from bench.report.clinical.points import decided, positive_note
from bench.report.clinical.subgroups import asked, largest_gaps
from bench.report.rows import Row
from bench.report.sections.per_dataset import size_note
from bench.report.standings import Overall, ReportData
from bench.report.words import fixed, listed, name, span

GUIDELINES = {"tripod-ai": "TRIPOD+AI (2024)", "stard-ai": "STARD-AI (2025)", "claim": "CLAIM (2024 update)"}
_FILE = Path(__file__).parents[1] / "data" / "checklists.csv"
_BOARD = "LEADERBOARD.md"


def checklist(report: ReportData, guideline: str) -> str:
    """The checklist as Markdown: item, what it asks, and the answer or a question mark.

    Args:
        report: the boards of a run.
        guideline: a key of :data:`GUIDELINES`.
    """
    with _FILE.open(newline="", encoding="utf-8") as stream:
        items = [row for row in csv.DictReader(stream) if row["guideline"] == guideline]
    found = {topic: answer(report) for topic, answer in ANSWERS.items()}
    lines, done = [], 0
    for row in items:
        text = found.get(row["topic"], "")
        done += bool(text)
        lines.append(f"| {row['item']} | {row['asks']} | {_cell(text) if text else '**?** to be answered by you'} |")
    head = (
        f"# {GUIDELINES[guideline]}: what this run answers\n\n"
        f"{done} of {len(items)} items are filled in from the records, in part: check each and add what only you "
        "know. "
        "Items are numbered as in the guideline and told in our own words; the official form is the one to hand in.\n\n"
        "| item | asks | answer |\n|---:|:---|:---|\n"
    )
    return head + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- answers ---------------------------------------------------------------------------------------------------


def _of_each(report: ReportData, said: Callable[[Spec], str]) -> str:
    """What ``run.json`` says of each dataset of the boards."""
    used = {row.dataset for row in report.rows}
    known = report.run_info.get("datasets") or {}
    parts = [f"{name(dataset)}: {text}" for dataset, info in known.items() if dataset in used and (text := said(info))]
    return f"{'; '.join(parts)}." if parts else ""


def _stated(report: ReportData, *keys: str) -> str:
    return _of_each(report, lambda info: ", ".join(str(info[key]) for key in keys if info.get(key)))


def _partitions(report: ReportData) -> str:
    splits = ("train", "val", "test")
    counts = _of_each(report, lambda info: ", ".join(f"{s} {n:,}" for s in splits if (n := info.get(f"n_{s}"))))
    tested = {row.dataset: row.evidence.images for row in report.rows if row.evidence}
    folds = {row.dataset: row.folds for row in report.rows if row.folds}
    said = [f"test of {name(dataset)}: {images}" for dataset, images in tested.items()]
    said += [f"{name(dataset)}: all images in {n} folds, each tested once" for dataset, n in folds.items()]
    return f"Images: {counts} {listed(said)}. Who is in which split: `splits/`." if said else ""


def _findings(report: ReportData, *words: str, notes: bool = True) -> str:
    """What was found in the data: texts with one of the words, or all; with or without mere notes."""
    found = [f for r in report.records for f in (r.get("data") or {}).get("findings", ())]
    texts = {f["text"] for f in found if notes or f["severity"] != "note"}
    return "; ".join(sorted(text for text in texts if not words or any(word in text for word in words)))


def _classes(report: ReportData) -> str:
    two = {row.dataset: row for row in report.rows if row.positive}
    positive = "".join(f" {name(dataset)}: {positive_note([row])}" for dataset, row in two.items())
    text = _of_each(report, lambda info: f"{info.get('task')}, classes {listed(map(str, info.get('classes') or ()))}")
    return f"{text}{positive} How the labels were determined is not in the records." if text else ""


def _specs(report: ReportData) -> list[Spec]:
    return [r["spec"] for r in report.records if r["kind"] == "accuracy" and r["status"] == "ok"]


def _several(values: Iterable[object]) -> str:
    return listed(sorted({str(value) for value in values}))


def _preparation(report: ReportData) -> str:
    specs = _specs(report)
    if not specs:
        return ""
    sizes = _several(f"{s.get('resolution')} pixels (from {s.get('size')}, {s.get('resize')})" for s in specs)
    shades = _several(
        f"mean {s['recipe_settings'].get('mean')}, sd {s['recipe_settings'].get('std')}"
        for s in specs
        if s.get("recipe_settings")
    )
    return f"Images fed at {sizes}; gray levels normalised by {shades or 'what the weights expect'}."


def _input(report: ReportData) -> str:
    models = sorted({(row.model, int(row.mean("params") or 0)) for row in report.rows if row.ok})
    shown = listed(f"{name(model)} ({params:,} parameters)" for model, params in models)
    return f"The pixels of one image, nothing else. Networks: {shown}." if models else ""


def _training(report: ReportData) -> str:
    found = {
        f"{s.get('recipe')}: " + ", ".join(f"{k} {v}" for k, v in sorted(s["recipe_settings"].items()) if k != "name")
        for s in _specs(report)
        if s.get("recipe_settings")
    }
    seeds = _several(s.get("seed") for s in _specs(report))
    return f"Recipe {'; '.join(sorted(found))}. Seeds {seeds}. Curves: `history/`." if found else ""


def _selection(report: ReportData) -> str:
    by = _several((s.get("recipe_settings") or {}).get("select") for s in _specs(report))
    return f"The epoch with the best {by} on validation, the earliest of equals; test is scored once." if by else ""


def _software(report: ReportData) -> str:
    found: dict[str, object] = {}
    for record in report.records:
        environment = record["environment"] or {}
        found |= {k: v for k, v in (environment.get("versions") or {}).items() if v}
        found |= {k: environment[k] for k in ("python", "hardware") if environment.get(k)}
    return (
        f"{', '.join(f'{key} {value}' for key, value in sorted(found.items()))}. Command: `run.json`." if found else ""
    )


def _weights(report: ReportData) -> str:
    pretrained = {row.model for row in report.rows if any(r["spec"].get("weights_sha256") for r in row.ok)}
    fresh = {row.model for row in report.rows} - pretrained
    sources = (fresh, "random numbers of the seed"), (pretrained, "pretrained weights (digest in `cells/`)")
    return "; ".join(f"{listed(map(name, sorted(of)))} from {source}" for of, source in sources if of) + "."


def _uncertainty(report: ReportData) -> str:
    patients = any(row.evidence and row.evidence.patients is not None for row in report.rows)
    seeds = max((row.seeds for row in report.rows), default=0)
    by = "patients" if patients else "images"
    again = f"and over {seeds} trainings" if seeds > 1 else "but not over trainings (one seed)"
    return f"95 % intervals over test {by} {again}."


def _size(report: ReportData) -> str:
    return " ".join(filter(None, (size_note(rows) for board in report.boards for rows in _by_dataset(board))))


def _first(report: ReportData) -> list[Row]:
    """The first model of each dataset of the first board."""
    found = ([row for row in rows if row.evidence] for board in report.boards[:1] for rows in _by_dataset(board))
    return [rows[0] for rows in found if rows]


def _by_dataset(board: Overall) -> list[list[Row]]:
    """The rows of each dataset, best first."""
    found = [[s.rows[dataset] for s in board.standings if dataset in s.rows] for dataset in board.datasets]
    return [sorted(rows, key=lambda row: -(row.mean(RANKING.field) or 0.0)) for rows in found]


def _performance(report: ReportData) -> str:
    parts = []
    for row in _first(report):
        text = f"{name(row.model)} on {name(row.dataset)}: {RANKING.label} {fixed(row.mean(RANKING.field))}"
        text += f" ({span(*row.scored.interval(RANKING))})"
        if point := decided(row, report.rule):
            for what, one in (("sensitivity", point.rates.sensitivity), ("specificity", point.rates.specificity)):
                text += f", {what} {report.rule.name} {fixed(one.value)} ({span(one.low, one.high)})"
        parts.append(text)
    return f"{'; '.join(parts)}. All models: `{_BOARD}`." if parts else ""


def _threshold(report: ReportData) -> str:
    if not any(row.positive for row in report.rows):
        return "Probabilities; the decision is the class with the highest one."
    return (
        f"Probabilities; threshold {report.rule.name}: {report.rule.said}; say whether the rule was set "
        "before the test results were seen."
    )


def _calibration(report: ReportData) -> str:
    parts = [
        f"{name(row.model)} on {name(row.dataset)}: ECE {fixed(row.mean('test_ece'))}, {fixed(after)} after "
        f"temperature scaling on validation (temperature {fixed(row.mean('temperature'), 2)})"
        for row in _first(report)
        if (after := row.mean("test_ece_scaled")) is not None
    ]
    return f"{'; '.join(parts)}. Reliability curves: `figures/`." if parts else ""


def _imbalance(report: ReportData) -> str:
    parts = [
        f"{100 * float(point.target.mean()):.1f} % of the test images of {name(row.dataset)} are positive"
        for row in _first(report)
        if (point := decided(row, report.rule))
    ]
    weights = _several((s.get("recipe_settings") or {}).get("class_weights", "none") for s in _specs(report))
    return f"{listed(parts)}; class weights in training: {weights}." if parts else ""


def _subgroups(report: ReportData) -> str:
    parts = [largest_gaps(row, report.rule) for row in _first(report) if asked(row)]
    return f"{' '.join(filter(None, parts))} Table by group: `{_BOARD}`." if any(parts) else ""


def _external(report: ReportData) -> str:
    moved = [r for r in report.records if r["kind"] == "transfer" and r["status"] == "ok"]
    ways = sorted({f"{name(r['spec'].get('source'))} to {name(r['spec'].get('dataset'))}" for r in moved})
    return f"Evaluated on other sets: {listed(ways)}, section Transfer of `{_BOARD}`." if ways else ""


def _confusion(report: ReportData) -> str:
    parts = [
        f"{name(row.model)} on {name(row.dataset)} (truth by row): {row.ok[0]['metrics']['test_confusion']}"
        for row in _first(report)
        if row.ok and row.ok[0]["metrics"].get("test_confusion")
    ]
    return f"{'; '.join(parts)}. Each image's score: `predictions/`." if parts else ""


def _limitations(report: ReportData) -> str:
    found = _findings(report, notes=False)
    return f"Of the data: {found}." if found else ""


MEASURES = (
    "AUC (equal to MedMNIST's evaluator), ACC, average precision, sensitivity and specificity, ECE, Brier score, log "
    "loss; net benefit for two classes; models compared by paired tests on the same images, corrected for the number "
    "of comparisons (docs/methodology.md)."
)
AVAILABILITY = (
    "Records (`cells/`), the scores of every validation and test image (`predictions/`), command and settings "
    "(`run.json`); trained weights where the run kept them (`weights/`)."
)
ANSWERS: Mapping[str, Callable[[ReportData], str]] = {
    "data": lambda report: _stated(report, "modality", "source", "citation"), "partitions": _partitions,
    "disjoint": lambda report: _findings(report, "split", "patient", "folds"),
    "left_out": lambda report: _findings(report, "left out", "dropped", "count as", "missing"), "classes": _classes,
    "preparation": _preparation, "input": _input, "training": _training, "selection": _selection, "software": _software,
    "weights": _weights, "measures": lambda report: MEASURES, "uncertainty": _uncertainty, "size": _size,
    "performance": _performance, "threshold": _threshold, "calibration": _calibration, "imbalance": _imbalance,
    "subgroups": _subgroups, "external": _external, "confusion": _confusion,
    "licence": lambda report: _stated(report, "licence", "source"),
    "availability": lambda report: AVAILABILITY, "limitations": _limitations,
}  # fmt: skip

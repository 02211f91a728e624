"""The first screen of ``report.html``: what was run, which network to take, the table behind that, and examples.

Written as plain HTML, readable and printable without a script. The same figures go into the page's document, from which
``decision.js`` chooses again under the limits of the sliders, by the rule of :mod:`bench.report.recommend`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.metrics.registry import METRICS
from bench.record.paths import predictions_path
from bench.record.types import Fields
from bench.report.blocks import Column, Section, Table, Text
from bench.report.evidence import UNREADABLE, read_saved
from bench.report.recommend import (
    COSTS,
    LATENCY,
    MACS,
    MAX_LOSS,
    PARAMS,
    Cost,
    Recommendation,
    costs_of,
    device_of,
    figure_of,
    recommend,
)
from bench.report.rows import Row
from bench.report.sections.summary import headline, incomplete
from bench.report.standings import Overall, ReportData
from bench.report.words import MISSING, counted, fixed, known, listed, name, significant, span
from bench.stats.leader import selected_leader
from bench.stats.ranking import ALPHA

Document = Fields
MAX_MODELS = 200  # of more the page holds no p values, and so no sliders
EXAMPLES = 3  # right answers, and as many wrong ones
NO_CANDIDATE = "no candidate"  # a random network, which stands there to compare with
MEMORY = next(cost for cost in COSTS if cost.key == "memory_mib")


def decision(report: ReportData, out: Path) -> Document:
    """The figures of the first screen.

    Args:
        report: its Records, rows and boards.
        out: the run directory, for the saved scores of the examples.

    Returns:
        ``title``, ``facts``; and, where a model has a result, ``line`` and ``against`` (as on boards), ``warnings``,
        ``sure``, ``pick``, ``metric``, ``rates`` (what sensitivity and specificity are of), ``models`` (best first,
        with their costs), ``p`` (K x K, uncorrected; None where untested), ``costs``, ``floor`` and ``examples``.
    """
    board = headline(report.boards)
    title = ", ".join(board.counted) if board else str(report.run_info.get("preset") or "efficiency")
    found: Document = {"title": title, "facts": _facts(report, board)}
    if board is None:
        return found
    pick = recommend(report, board=board)
    costs, note, floor = costs_of(report, board)
    judged = board.significance.pairs
    p = None
    if judged and len(board.ranked) <= MAX_MODELS:
        at = [judged.models.index(s.model) for s in board.ranked]
        p = judged.contrast.p_values()[np.ix_(at, at)].tolist()
    rates, heading = _rates(board)
    models = []
    for s in board.ranked:
        low, high = s.interval
        own = {cost.key: costs[s.model].get(cost.key) for cost in (*COSTS, MACS)}
        said = {"model": s.model, "control": s.control, "score": s.score, "low": low, "high": high}
        models.append({**said, "rates": rates[s.model], **own})
    line, against = pick.lines()
    return {
        **found, "line": line, "against": against, "warnings": list(pick.against), "sure": pick.resolve.get("text", ""),
        "pick": pick.model, "note": note, "p": p, "floor": floor,
        "metric": {"label": board.metric.label, "digits": board.metric.digits, "mean": len(board.counted) > 1,
                   "figure": figure_of(board), "device": device_of(note)},
        "rates": heading, "models": models, "alpha": ALPHA, "max_loss": MAX_LOSS, "sign": board.metric.sign,
        "costs": [_limit(cost, models) for cost in COSTS], "by": [asdict(cost) for cost in (LATENCY, MACS, PARAMS)],
        "examples": examples(board, pick, out),
    }  # fmt: skip


def _limit(cost: Cost, models: Sequence[Document]) -> Document:
    """A slider: the values at which it stops, from the loosest to the strictest."""
    given = {m[cost.key] for m in models if known(m[cost.key]) and not m["control"]}
    values = sorted(given, reverse=not cost.more_is_better)
    return {**asdict(cost), "stops": values}


def _facts(report: ReportData, board: Overall | None) -> list[list[str]]:
    """Name and text of each fact of a run."""
    line, _ = incomplete(report.run_info, report.records)
    if board:
        sizes = {d: next((n for s in board.ranked if (n := s.rows[d].n_test)), None) for d in board.counted}
        data = listed(f"{d} ({counted(n, 'test image')})" if n else d for d, n in sizes.items())
        protocol = f"{board.protocol.pixels}, {board.protocol.training}, {board.trained}"
    else:
        data, protocol = "none", ""
    ran = [r for kind in ("accuracy", "efficiency") for r in report.records
           if r["kind"] == kind and r["status"] != "unsupported"]  # fmt: skip
    places = (
        r["spec"].get("hardware") or r["environment"].get("hardware") or r["environment"].get("device") for r in ran
    )
    machines = dict.fromkeys(str(place) for place in places if place)
    done = sum(r["status"] == "ok" for r in report.records)
    state = line or f"complete: {counted(done, 'cell')} with a result"
    if len(report.records) > done and not line:
        state += f", {len(report.records) - done} without"
    found = [
        ["Data", data], ["Protocol", protocol], ["Date", str(report.run_info.get("date") or "not recorded")],
        ["Machine", ", ".join(machines) or "not recorded"], ["State", state],
    ]  # fmt: skip
    return [fact for fact in found if fact[1]]


def _rates(board: Overall) -> tuple[dict[str, list[float | None]], str]:
    """Sensitivity and specificity of each ranked model, and what they are those of."""
    rates = METRICS["sensitivity_macro"].field, METRICS["specificity_macro"].field
    heading = "macro"
    rows = [s.rows[board.counted[0]] for s in board.ranked]
    if len(board.counted) == 1 and (positive := next((row.positive for row in rows if row.positive), None)):
        youden = "test_sensitivity_youden", "test_specificity_youden"
        at = all(row.mean(rate) is not None for row in rows for rate in youden)
        rates = youden if at else ("test_sensitivity", "test_specificity")
        heading = f"{positive.name}{', at Youden' * at}"
    return {s.model: [_mean([s.rows[d] for d in board.counted], rate) for rate in rates] for s in board.ranked}, heading


def _mean(rows: Sequence[Row], metric: str) -> float | None:
    values = [value for row in rows if (value := row.mean(metric)) is not None]
    return float(np.mean(values)) if len(values) == len(rows) else None


# --- examples ------------------------------------------------------------------------------------------------------


def examples(board: Overall, pick: Recommendation, out: Path) -> Document | None:
    """The surest right and the surest wrong answers of the pick's first training on the first dataset; by file name.

    None without saved scores, and for several labels an image. No image is embedded: a report is passed on more freely
    than patients' pixels are (``bench explain`` draws them).
    """
    row = next((s.rows[board.counted[0]] for s in board.ranked if s.model == pick.model), None)
    if row is None or not row.ok:
        return None
    record = row.ok[0]
    try:
        saved = read_saved(predictions_path(out, record["key"]))
    except UNREADABLE:
        return None
    scores = np.stack([1 - saved.scores, saved.scores], axis=1) if saved.scores.ndim == 1 else saved.scores
    labels, names = saved.labels.reshape(len(saved.labels), -1), saved.names
    if labels.shape[1] != 1 or len(labels) != len(scores):
        return None
    truth, said = labels[:, 0].astype(int), scores.argmax(1)
    sure = scores.max(1)
    order = np.argsort(-sure, kind="stable")
    classes = row.classes or tuple(map(str, range(scores.shape[1])))
    lines = [
        [str(names[i]) if names is not None else f"test image {i}", classes[truth[i]],
         classes[said[i]], float(sure[i])]
        for right in (True, False) for i in [i for i in order if (truth[i] == said[i]) == right][:EXAMPLES]
    ]  # fmt: skip
    return {"model": row.model, "dataset": row.dataset, "seed": record["spec"].get("seed"), "lines": lines}


# --- as HTML -------------------------------------------------------------------------------------------------------


def decision_html(found: Document) -> str:
    """The first screen; everything from Records is escaped."""
    facts = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in found["facts"])
    bad = any(k == "State" and v.startswith("INCOMPLETE") for k, v in found["facts"])
    parts = [f'<dl class="run{" incomplete" * bad}">{facts}</dl>']
    if "models" not in found:
        return "".join([*parts, "<p>No network is recommended: no model has a test result.</p>"])
    warnings = "".join(f"<li>{_code(text)}</li>" for text in found["warnings"])
    against = f"Against it:<ul>{warnings}</ul>" if warnings else "Nothing recorded speaks against it."
    against += f"<p>To be sure: {_code(found['sure'])}.</p>" if found["sure"] else ""
    parts.append(f'<p id="pick" aria-live="polite">{_code(found["line"])}</p><div id="against">{against}</div>')
    parts.append('<div id="limits"></div>')
    parts.append("".join(_table(found)))
    return "\n".join(parts)


def _table(found: Document) -> Iterator[str]:
    metric = found["metric"]
    score = f"{'mean ' * metric['mean']}{metric['label']} (95 %)"
    heads = (
        ("model", ""), (score, "n"), (f"sens. / spec. ({found['rates']})", "n"),
        (f"{LATENCY.label} {LATENCY.unit}", "n"), (f"{MEMORY.label} {MEMORY.unit}", "n"),
        ("significantly worse than the pick", ""),
    )  # fmt: skip
    yield '<div class="scroll" role="region" tabindex="0" aria-label="Models"><table id="decision-table"><thead><tr>'
    yield "".join(f'<th scope="col"{_class(kind)}>{_text(head)}</th>' for head, kind in heads)
    yield "</tr></thead><tbody>"
    for one, worse in zip(found["models"], worse_than(found, found["pick"]), strict=True):
        interval = f" <small>{span(one['low'], one['high'], metric['digits'])}</small>" if known(one["low"]) else ""
        rates = " / ".join(fixed(rate, 2) for rate in one["rates"]) if known(one["rates"][0]) else MISSING
        yield (
            f'<tr{_class("pick" * (one["model"] == found["pick"]))}><th scope="row">{_broken(one["model"])}</th>'
            f'<td class="n">{fixed(one["score"], metric["digits"])}{interval}</td><td class="n">{rates}</td>'
            f'<td class="n">{significant(one[LATENCY.key])}</td><td class="n">{significant(one[MEMORY.key])}</td>'
            f"<td>{worse}</td></tr>"
        )
    yield f'</tbody></table></div><p class="note">{_code(found["note"])}</p>'


def worse_than(found: Document, pick: str | None) -> list[str]:
    """For each model the answer to "significantly worse than the pick?"; corrected as against a leader."""
    answers = {one["model"]: NO_CANDIDATE if one["control"] else MISSING for one in found["models"]}
    if pick is None:
        return list(answers.values())
    if found["p"] is not None:
        at = list(answers).index(pick)
        others = [i for i, one in enumerate(found["models"]) if i != at and not one["control"]]
        corrected = selected_leader(np.array([found["p"][at][i] for i in others]))
        for i, p in zip(others, corrected, strict=True):
            worse = p < found["alpha"] and i > at  # they are best first
            answers[found["models"][i]["model"]] = "yes" if worse else "no"
    return list((answers | {pick: "the pick"}).values())


def examples_section(found: Document) -> list[Section]:
    """The six examples; nothing without saved scores."""
    shown = found.get("examples")
    if not shown or not shown["lines"]:
        return []
    columns = (
        Column("image", left=True, code=True), Column("truth", left=True), Column("predicted", left=True),
        Column("probability"), Column("answer", left=True),
    )  # fmt: skip
    lines = [
        (image, truth, said, fixed(sure, 3), "right" if truth == said else "wrong")
        for image, truth, said, sure in shown["lines"]
    ]
    note = f"On {name(shown['dataset'])}, seed {shown['seed']}: the most confident right and wrong predictions."
    return [Section(f"Six predictions of {name(shown['model'])}", [Text(note), Table(columns, lines)], 1)]


def _text(value: object) -> str:
    return html.escape(str(value).replace("`", ""))


def _broken(model: str) -> str:
    """A name that a narrow column may break at its underscores and brackets."""
    return _text(model).replace("_", "_<wbr>").replace("[", "<wbr>[")


def _code(text: str) -> str:
    """Escaped text, names between backticks in bold."""
    parts = html.escape(text).split("`")
    return "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""

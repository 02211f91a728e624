"""Claims as a page: what is supported, one row a claim, how it was judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.claims.judge import ALPHA, NOT_COMPARABLE, OPPOSITE, SUPPORTED, UNSUPPORTED, Claim
from bench.record.types import Fields
from bench.report.blocks import Block, Bullets, Column, Columns, Section, Text, tabled
from bench.report.words import counted, fixed, signed

REASONS = 3  # for which something cannot be judged, that are named
OUTCOMES = (SUPPORTED, UNSUPPORTED, OPPOSITE, NOT_COMPARABLE)
COLUMNS: Columns[Claim] = [
    (Column("dataset", left=True), lambda c: c.proposed.dataset),
    (Column("metric", left=True, drop=8), lambda c: c.metric.upper()),
    (Column("better", left=True), lambda c: c.proposed.model),
    (Column("than", left=True), lambda c: c.other.model),
    (Column("figures", drop=9), lambda c: " / ".join(fixed(getattr(row, c.metric)) for row in (c.proposed, c.other))),
    (Column("difference", drop=4), lambda c: signed(c.difference)),
    (Column("n", drop=3), lambda c: f"{c.proposed.n_test:,}" if c.proposed.n_test else ""),
    (Column("correlation", drop=6), lambda c: _span(c.phi, 2) if c.p else ""),
    (Column("P(false)"), lambda c: _span(c.p, 3)),
    (Column("corrected", drop=1), lambda c: _span(c.corrected, 3)),
    (Column("outcome", left=True), lambda c: c.outcome),
    (Column("why", left=True, wrap=True, drop=2), lambda c: c.reason),
    (Column("protocol differs in", left=True, wrap=True, drop=7), lambda c: "; ".join(c.differs)),
]


def page(claims: Sequence[Claim], source: str) -> Section:
    """The page of one paper's claims; what cannot be judged is counted, and not in the table."""
    names = list(dict.fromkeys(claim.proposed.model for claim in claims))
    several = len(names) > 1  # else the heading names the one
    blocks: list[Block] = [Text(summary(claims)), Bullets(tuple(_notes(claims)))]
    order = {outcome: i for i, outcome in enumerate(OUTCOMES)}
    judged = [claim for claim in claims if claim.outcome != NOT_COMPARABLE]
    ranked = sorted(judged, key=lambda c: (order[c.outcome], c.metric, c.proposed.dataset, c.other.model))
    shown = [cell for cell in COLUMNS if several or cell[0].name != "better"]
    blocks.append(tabled(shown, ranked))
    return Section(f"Claims of {', '.join(names)} ({source})", blocks)


def summary(claims: Sequence[Claim]) -> str:
    """``12 of 49 claimed improvements are supported; 20 if the errors correlate 0.80.``"""
    counts = Counter(claim.outcome for claim in claims)
    claimed = counts[SUPPORTED] + counts[UNSUPPORTED]
    best = sum(1 for c in claims if c.corrected and c.corrected[1] < ALPHA)
    text = f"{counts[SUPPORTED]} of {counted(claimed, 'claimed improvement')} are supported"
    if best != counts[SUPPORTED]:
        text += f", {best} at the highest correlation of errors assumed"
    text += f". In {counted(counts[OPPOSITE], 'comparison')} the other model has the higher figure"
    return f"{text}; {counted(counts[NOT_COMPARABLE], 'comparison')} cannot be judged."


def _notes(claims: Sequence[Claim]) -> list[str]:
    tested = [c for c in claims if c.corrected]
    notes = []
    for metric in ("acc", "auc"):
        own = [c for c in tested if c.metric == metric and c.outcome != OPPOSITE]
        if own:
            low, high = (sum(c.corrected[end] < ALPHA for c in own) for end in (0, 1))
            span = f"{low}" if low == high else f"{low} to {high}"
            notes.append(f"{metric.upper()}: {span} of {len(own)} supported.")
    if any(not c.measured for c in tested):
        ends = next(c.phi for c in tested if not c.measured)
        notes.append(f"The correlation of the errors is not published; {ends[0]:.2f} to {ends[1]:.2f} is assumed.")
    if n := sum(c.measured for c in tested):
        notes.append(f"For {counted(n, 'comparison')} it was measured on our trainings of the two models.")
    notes.append(
        f"P(false) is the probability that the model is not better, given the test images; corrected for all "
        f"{counted(len(tested), 'comparison')} (Holm), below 5 % at every correlation is supported."
    )
    if not any(c.proposed.acc_spread or c.proposed.auc_spread for c in tested):
        notes.append("No spread over trainings is given, so a supported claim is about these trained networks only.")
    reasons = Counter(c.reason for c in claims if c.outcome == NOT_COMPARABLE).most_common()
    notes += [f"{counted(n, 'comparison')} not in the table: {reason}." for reason, n in reasons[:REASONS]]
    if (rest := sum(n for _, n in reasons[REASONS:])) > 0:
        notes.append(f"{counted(rest, 'comparison')} not in the table for other reasons (--json has all).")
    if differs := sum(bool(c.differs) for c in tested):
        notes.append(
            f"In {differs} of {counted(len(tested), 'comparison')} the protocols differ, which alone may explain it."
        )
    return notes


def _span(ends: Sequence[float], digits: int) -> str:
    if not ends:
        return ""
    low, high = (_p(v, digits) for v in (min(ends), max(ends)))
    return low if low == high else f"{low}–{high}"


def _p(value: float, digits: int) -> str:
    return f"<{10**-digits:.{digits}f}" if 0 <= value < 10**-digits else f"{value:.{digits}f}"


def to_json(claims: Sequence[Claim]) -> Fields:
    """All claims with their figures."""
    rows = [
        {
            "dataset": c.proposed.dataset, "metric": c.metric, "proposed": c.proposed.model, "other": c.other.model,
            "difference": c.difference, "n_test": c.proposed.n_test, "correlation": list(c.phi),
            "measured": c.measured, "p_false": list(c.p), "p_false_corrected": list(c.corrected),
            "outcome": c.outcome, "reason": c.reason, "protocol_differs": list(c.differs),
        }
        for c in claims
    ]  # fmt: skip
    return {"summary": {o: sum(c.outcome == o for c in claims) for o in OUTCOMES}, "claims": rows}

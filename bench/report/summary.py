"""The first lines of a leaderboard: what a person would say who has read all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bench.report.accuracy import Overall, Standing
from bench.report.crossings import overtaking
from bench.report.efficiency import noise_floor
from bench.report.results import Record, Row
from bench.report.settings import by_setting
from bench.report.statistics import interval
from bench.report.tables import counted, fixed, listed, name, natural, signed, significant

MAX_PROTOCOLS = 3
MAX_NAMED = 4


def summary(
    boards: Sequence[Overall], rows: Sequence[Row], records: Sequence[Record], skipped: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """Say who leads and whether the data can tell, what chance is, who is fast, and what is missing."""
    if not records:
        return ("Nothing has been measured yet.",)
    ranked = [board for board in boards if board.ranked]
    lines = [_leader(board, len(ranked) > 1) for board in ranked[:MAX_PROTOCOLS]]
    if len(ranked) > MAX_PROTOCOLS:
        lines.append(f"{len(ranked) - MAX_PROTOCOLS} more protocols have tables of their own below.")
    if ranked:
        lines.append(_caution(ranked))
    shown = {board.protocol.resolution for board in ranked}
    fast = (_speed(records, shown), overtaking(records))
    lines += [line for line in (_chance(rows), *fast, _gaps(records), _skipped(skipped)) if line]
    return tuple(lines)


def _leader(board: Overall, several: bool) -> str:
    where = f"{board.protocol.pixels}, {board.protocol.training}: " if several else ""
    first, *others = board.ranked
    n = len(board.counted)
    over = f"mean AUC over {n} datasets" if n > 1 else f"AUC on {name(board.counted[0])}"
    if not others:
        return f"{where}only {name(first.model)} has a full set of results: {over} {fixed(first.auc)}."
    second = others[0]
    assert first.auc is not None and second.auc is not None
    if first.auc == second.auc:
        level = [s.model for s in board.ranked if s.auc == first.auc]
        return f"{where}{listed(_named(level))} share the highest {over}, {fixed(first.auc)}."
    head = (
        f"{where}{name(first.model)} has the highest {over}, {fixed(first.auc)}; "
        f"{name(second.model)} follows with {fixed(second.auc)}."
    )
    return f"{head} {_separation(first, others)}"


def _named(models: Sequence[str]) -> list[str]:
    shown = [name(m) for m in models[:MAX_NAMED]]
    return [*shown, f"{len(models) - MAX_NAMED} more"] if len(models) > MAX_NAMED else shown


def _separation(first: Standing, others: Sequence[Standing]) -> str:
    """Whether the same resampled test images put the leader ahead of the next, and of how many it does."""
    if first.auc_samples is None or others[0].auc_samples is None:
        return "Without their saved scores nothing can be said on whether that difference is real."
    bounds = [interval(first.auc_samples - s.auc_samples) for s in others if s.auc_samples is not None]
    low, high = bounds[0]
    gap = f"The difference is {signed((first.auc or 0) - (others[0].auc or 0))} (95 % {signed(low)} to {signed(high)})"
    if low > 0:
        verdict = "more than the choice of test images explains (retraining and the number of models not considered)"
    else:
        verdict = "which these test images cannot tell from zero"
    level = sum(low <= 0 for low, _ in bounds)
    tail = f" {level} of the {len(bounds)} others cannot be told from the leader." if level and len(bounds) > 1 else ""
    return f"{gap}, {verdict}.{tail}"


def _caution(boards: Sequence[Overall]) -> str:
    seeds = min(board.seeds for board in boards)
    datasets = max(len(board.counted) for board in boards)
    few = f" and {counted(datasets, 'dataset')}" if datasets < 5 else ""
    if seeds < 2:
        return (
            f"With one training run per model{few} the ranks are not significant: how far a second run would land from "
            "the first has not been measured."
        )
    return (
        f"With {seeds} seeds per model{few} no test over seeds was made: hold the differences against the spread over "
        "seeds (AUC sd) before reading the order of neighbours as a ranking."
    )


def _chance(rows: Iterable[Row]) -> str:
    scored = [row for row in rows if row.mean("test_auc") is not None]
    if not scored:
        return ""
    proven = [row for row in scored if row.evidence]
    majority = {row.dataset: row.evidence.majority for row in proven if row.evidence}
    shown = sorted(majority, key=natural)
    frequent = ", ".join(f"{fixed(majority[d])} on {name(d)}" for d in shown[:MAX_NAMED])
    frequent += f" and others on {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else ""
    line = f"Chance is AUC 0.5{f'; the most frequent answer alone gets ACC {frequent}' if frequent else ''}."
    if not proven:
        return line
    clear = sum(interval(row.evidence.auc_samples)[0] > 0.5 for row in proven if row.evidence)
    better = sum((row.mean("test_acc") or 0) > row.evidence.majority for row in proven if row.evidence)
    return (
        f"{line} Of {counted(len(proven), 'result')}, {clear} {_have(clear)} an AUC clear of chance and {better} "
        f"{_have(better)} an ACC above the most frequent answer."
    )


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _speed(records: Sequence[Record], shown: Collection[int]) -> str:
    """The fastest model of the first setting, at a resolution of the accuracy tables if it was measured there."""
    for key, members in by_setting(records).items():
        done = [r for r in members if r["status"] == "ok" and r["metrics"].get("throughput_images_per_s_p50")]
        if len({r["spec"]["model"] for r in done}) < 2:
            continue
        most = Counter(int(r["spec"]["resolution"]) for r in done)
        resolution = max(most, key=lambda r: (r in shown, most[r], r))
        fastest = max(
            (r for r in done if r["spec"]["resolution"] == resolution),
            key=lambda r: r["metrics"]["throughput_images_per_s_p50"],
        )
        speed = significant(fastest["metrics"]["throughput_images_per_s_p50"])
        floor = noise_floor(members)
        noise = f"; the noise floor is {significant(100 * floor, 2)} %" if floor is not None else ""
        return f"Fastest at {resolution} px ({key}): {name(fastest['label'])} with {speed} images/s{noise}."
    return ""


def _gaps(records: Sequence[Record]) -> str:
    statuses = Counter(r["status"] for r in records if r["status"] != "ok")
    if not statuses:
        return ""
    kinds = listed([f"{n} {status}" for status, n in sorted(statuses.items())])
    return f"{sum(statuses.values())} of {counted(len(records), 'cell')} gave no result ({kinds}); reasons are below."


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    return f"Left out because their files are missing or damaged: {listed(_named([d for d, _ in skipped]))}."


def skipped_datasets(run_info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Datasets left out of the sweep, each with its reason; entries are ``name: reason`` or mappings."""
    found = []
    for entry in run_info.get("skipped") or ():
        if isinstance(entry, Mapping):
            text = str(entry.get("dataset") or entry.get("name") or "?")
            size = f" at size {entry['size']}" if entry.get("size") else ""
            found.append((text + size, str(entry.get("reason") or "")))
        elif isinstance(entry, (list, tuple)) and entry:
            found.append((str(entry[0]), " ".join(map(str, entry[1:]))))
        else:  # "breastmnist at 28 pixels: FILE is missing"
            text, _, reason = str(entry).partition(": ")
            found.append((text, reason))
    return sorted(set(found), key=lambda pair: (natural(pair[0]), pair[1]))

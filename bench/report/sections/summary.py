"""The first lines of a leaderboard: what a person would say who has read all of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from bench.metrics.registry import ACC, AUC, RANKING
from bench.record.types import Record, RunInfo
from bench.report.blocks import counted, fixed, listed, name, natural, significant
from bench.report.rows import Row
from bench.report.sections.crossovers import overtaking
from bench.report.sections.growth import DEVICE, time_of
from bench.report.settings import by_setting
from bench.report.standings import Overall, Standing
from bench.report.stats.noise import noise_floor
from bench.report.stats.ranking import MIN_DATASETS
from bench.report.stats.separation import Verdict

MAX_NAMED = 4
MAX_MACHINES = 3


def summary(
    boards: Sequence[Overall], rows: Sequence[Row], records: Sequence[Record], skipped: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """A few lines: who leads, what is proven, what chance is, who is fast on each machine, and what is missing."""
    if not records:
        lines = ["Nothing has been measured yet.", _skipped(skipped)]
        return tuple(line for line in lines if line)
    board = headline(boards)
    shown = {b.protocol.resolution for b in boards if b.ranked}
    lines = [
        _leader(board, sum(bool(b.ranked) for b in boards)) if board else "",
        _proof(board) if board else "",
        _chance(rows),
        *_costs(records, shown),
        " ".join(line for line in (_gaps(records), _skipped(skipped)) if line),
    ]
    return tuple(line for line in lines if line)


def headline(boards: Sequence[Overall]) -> Overall | None:
    """The protocol with the largest table (models times datasets); of equal ones the first."""
    ranked = [board for board in boards if board.ranked]
    return max(ranked, key=lambda b: len(b.ranked) * len(b.counted)) if ranked else None


def _leader(board: Overall, protocols: int) -> str:
    more = protocols - 1
    where = f"At {board.protocol.pixels}, {board.protocol.training}: " if more else ""
    tail = (
        f" {counted(more, 'more protocol')} {_have(more)} {'a table' if more == 1 else 'tables'} below." if more else ""
    )
    first, *others = board.ranked
    n = len(board.counted)
    over = (
        f"mean {board.metric.label} over {n} datasets" if n > 1 else f"{board.metric.label} on {name(board.counted[0])}"
    )
    if not others:
        only = f"{where}only" if where else "Only"
        return f"{only} {name(first.model)} has a full set of results: {over} {board.metric.shown(first.score)}.{tail}"
    level = [s.model for s in board.ranked if s.score == first.score]
    if len(level) > 1:
        head = f"{listed(_named(level))} share the highest {over}, {board.metric.shown(first.score)}."
    else:
        head = f"{name(first.model)} has the highest {over}, {board.metric.shown(first.score)}; "
        head += f"{name(others[0].model)} follows with {board.metric.shown(others[0].score)}."
    return f"{where}{head}{_separation(board, first, others)}{tail}"


def _named(models: Sequence[str]) -> list[str]:
    shown = [name(m) for m in models[:MAX_NAMED]]
    return [*shown, f"{len(models) - MAX_NAMED} more"] if len(models) > MAX_NAMED else shown


def _separation(board: Overall, first: Standing, others: Sequence[Standing]) -> str:
    """Of whom the leader is proven better, and of whom it is not."""
    verdict = board.significance.mean
    if verdict is None:
        return " Whether that difference is real cannot be said: it takes the saved scores of both."
    beaten = set(verdict.worse_than(first.model))
    level = [s.model for s in others if s.model not in beaten]
    it = "It" if verdict.retrained else "As trained here, it" if board.most_seeds > 1 else "As trained here, once, it"
    if not level:
        return f" {it} is proven better than {'every other' if len(others) > 1 else 'that'}."
    if len(others) == 1:
        return " That it is better is not proven: the two cannot be told apart."
    if not beaten:
        return f" That is not proven: none of the {len(others)} others can be told apart from it."
    return (
        f" {it} is proven better than {len(beaten)} of the {len(others)} others, but not than {listed(_named(level))}."
    )


def _proof(board: Overall) -> str:
    """How much of the order is proven, and what more data would take."""
    verdict = board.significance.mean
    seeds, n = board.seeds, len(board.counted)
    if len(board.ranked) < 2:
        return ""
    datasets = _friedman(board) if board.significance.friedman else ""
    if n < MIN_DATASETS:
        datasets = f"{counted(n, 'dataset')} {'is' if n == 1 else 'are'} too few to test if the order holds on others"
    once = "each model was trained once, so how far training again would move it has not been measured"
    if board.most_seeds > 1:
        once = "some models were trained once and are given the spread of those trained again"
    trained = once if seeds < 2 else f"training again is considered ({seeds} seeds)"
    if verdict is None:
        once = once if board.most_seeds < 2 else "some models were trained once"
        why = ("without saved scores no pair can be tested", once if seeds < 2 else "", datasets)
        return f"The order is not a ranking: {'; '.join(part for part in why if part)}."
    return "; ".join(part for part in (_pairs(verdict), trained, datasets) if part) + "."


def _pairs(verdict: Verdict) -> str:
    if verdict.proven == verdict.pairs:
        return f"{'All' if verdict.pairs > 1 else 'The'} {counted(verdict.pairs, 'pair')} of models can be told apart"
    groups = f", which leaves {counted(len(verdict.groups), 'tie group')}" if verdict.groups else ""
    return f"{verdict.proven} of {counted(verdict.pairs, 'pair')} of models can be told apart{groups}"


def _friedman(board: Overall) -> str:
    test = board.significance.friedman
    assert test is not None
    pairs = test.models * (test.models - 1) // 2
    apart = int(test.told_apart.sum())
    return f"with the {test.datasets} datasets as a sample of more, {apart} of {pairs} pairs differ in rank"


def _chance(rows: Iterable[Row]) -> str:
    scored = [row for row in rows if row.mean(RANKING.field) is not None]
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
    clear = sum(row.evidence.interval(AUC)[0] > 0.5 for row in proven if row.evidence)
    better = sum(row.evidence.interval(ACC)[0] > row.evidence.majority for row in proven if row.evidence)
    return (
        f"{line} Of {counted(len(proven), 'result')}, {clear} {_have(clear)} an AUC clear of chance and {better} "
        f"{_have(better)} an ACC clear of the most frequent answer (95 %, each by itself)."
    )


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _costs(records: Sequence[Record], shown: Collection[int]) -> list[str]:
    """Who is fast and how time grows, a line for each machine; a GPU before a CPU."""
    machines: dict[tuple[bool, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "efficiency":
            spec = record["spec"]
            device, hardware = str(spec.get("device") or ""), str(spec.get("hardware") or "")
            machines[not device.startswith("cuda"), hardware, device].append(record)
    said = (" ".join(filter(None, (_speed(of, shown), overtaking(of)))) for _, of in sorted(machines.items()))
    lines = [line for line in said if line]
    if len(lines) > MAX_MACHINES:
        lines[MAX_MACHINES:] = [f"{counted(len(lines) - MAX_MACHINES, 'more machine')}: see the tables."]
    return lines


def _speed(records: Sequence[Record], shown: Collection[int]) -> str:
    """The fastest model of the first setting, at a resolution of the accuracy tables if it was measured there."""
    for key, members in by_setting(records).items():
        done = [r for r in members if r["status"] == "ok" and r["metrics"].get("throughput_images_per_s_p50")]
        seconds, timed = time_of(done)
        what = "images/s on the device" if timed == DEVICE else "images/s"
        if len({r["spec"]["model"] for r in done}) < 2:
            continue
        most = Counter(int(r["spec"]["resolution"]) for r in done)
        resolution = max(most, key=lambda r: (r in shown, most[r], r))
        speeds: dict[str, float] = {}
        for r in done:
            if r["spec"]["resolution"] == resolution and (cost := seconds(r)):
                speeds[r["label"]] = max(1 / cost, speeds.get(r["label"], 0.0))
        first = max(speeds, key=lambda label: speeds[label])
        rest = _within_noise(speeds, first, noise_floor(members, timed))
        return f"Fastest at {resolution} px ({key}): {name(first)} with {significant(speeds[first])} {what}{rest}."
    return ""


def _within_noise(speeds: Mapping[str, float], first: str, floor: float | None) -> str:
    """Whom the noise could have put behind the fastest."""
    if floor is None:
        return ""
    percent = f"{significant(100 * floor, 2)} %"
    near = sorted((m for m in speeds if m != first and speeds[first] / speeds[m] - 1 < floor), key=lambda m: -speeds[m])
    if not near:
        return f"; the noise floor is {percent}"
    shown = [f"{name(m)} ({significant(speeds[m])})" for m in near[:MAX_NAMED]]
    shown += [f"{len(near) - MAX_NAMED} more"] if len(near) > MAX_NAMED else []
    return f"; {listed(shown)} {'is' if len(near) == 1 else 'are'} within the noise floor, {percent}"


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


def skipped_datasets(run_info: RunInfo) -> list[tuple[str, str]]:
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

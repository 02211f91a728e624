"""The first lines of a leaderboard: what a person would say who has read all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from bench.metrics.registry import ACC, AUC, RANKING
from bench.record.store import planned
from bench.record.types import Record, RunInfo
from bench.report.rows import Row
from bench.report.sections.efficiency import unusable_line
from bench.report.sections.growth import DEVICE, time_of
from bench.report.settings import by_setting
from bench.report.speeds import noise_floor
from bench.report.standings import Overall
from bench.report.words import counted, grouped, listed, name, natural, percent, significant, some

MAX_NAMED = 4
MAX_MACHINES = 3


def summary(
    boards: Sequence[Overall], rows: Sequence[Row], records: Sequence[Record], skipped: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """A few lines: who leads, what chance is, who is fast on each machine, and what is missing."""
    if not records:
        lines = ["Nothing has been measured yet.", _skipped(skipped)]
        return tuple(line for line in lines if line)
    board = headline(boards)
    shown = {b.protocol.resolution for b in boards if b.ranked}
    lines = [
        _leader(board, sum(bool(b.ranked) for b in boards)) if board else "",
        _chance(rows),
        *_costs(records, shown),
        unusable_line(records),
        " ".join(line for line in (_gaps(records), _skipped(skipped)) if line),
    ]
    return tuple(line for line in lines if line)


def headline(boards: Sequence[Overall]) -> Overall | None:
    """The protocol that a search chose, else the largest table (candidates times datasets).

    Of equals the first whose networks can be exported: a vote among neighbours is none.
    """

    def order(board: Overall) -> tuple[object, ...]:
        row = next(iter(board.ranked[0].rows.values()))
        vote = "neighbours" in (row.ok[0]["spec"].get("recipe_settings") or {})
        return board.preferred, len(board.candidates) * len(board.counted), not vote

    ranked = [board for board in boards if board.ranked]
    return max(ranked, key=order) if ranked else None


def _leader(board: Overall, protocols: int) -> str:
    """Who ranks first under which protocol, and of how many others it is significantly better."""
    first, *others = board.ranked
    over = f"{'mean ' * (len(board.counted) > 1)}{board.metric.label} {board.over}"
    more = f" {counted(protocols - 1, 'more protocol')} below." if protocols > 1 else ""
    where = f" at {board.protocol.pixels}, {board.protocol.training}" if protocols > 1 else ""
    level = [s.model for s in others if s.score == first.score]
    shared = f", shared with {listed(some([name(m) for m in level], MAX_NAMED))}" if level else ""
    follows = f"; next {name(others[0].model)}, {board.metric.shown(others[0].score)}" if others and not level else ""
    best = f"{over} {board.metric.shown(first.score)}{follows}"
    if not others:
        return f"{name(first.model)} alone has a full set of results{where}: {best}.{more}"
    test = board.significance.leader
    beaten = len(test.worse) if test else 0
    than = "all others" if len(others) > 1 else "the other"
    than = than if beaten == len(others) else f"{beaten} of {len(others)} others"
    lead = f"significantly better than {than}" if beaten else "but not significantly"
    lead = lead if test else "not tested for significance (no saved scores)"
    return f"{name(first.model)} ranks first{where}{shared}, {lead}: {best}.{more}"


def _chance(rows: Iterable[Row]) -> str:
    """How many results are significantly better than chance, each by itself."""
    shown = [row.evidence for row in rows if row.evidence and row.mean(RANKING.field) is not None]
    if not shown:
        return "Chance is AUC 0.5." if any(row.mean(RANKING.field) is not None for row in rows) else ""
    clear = sum(evidence.interval(AUC)[0] > 0.5 for evidence in shown)
    better = sum(evidence.interval(ACC)[0] > evidence.majority for evidence in shown)
    return (
        f"Significantly better than chance (AUC 0.5): {clear} of {counted(len(shown), 'result')}; than always giving "
        f"the most frequent answer (ACC): {better} (95 %, each by itself)."
    )


def _costs(records: Sequence[Record], shown: Collection[int]) -> list[str]:
    """Who is fast, a line for each of the first machines; a GPU before a CPU."""
    timed = [r for r in records if r["kind"] == "efficiency"]

    def machine(record: Record) -> tuple[bool, str, str]:
        device, hardware = (str(record["spec"].get(name) or "") for name in ("device", "hardware"))
        return not device.startswith("cuda"), hardware, device

    machines = grouped(timed, machine)
    return [line for _, own in sorted(machines.items()) if (line := _speed(own, shown))][:MAX_MACHINES]


def _speed(records: Sequence[Record], shown: Collection[int]) -> str:
    """The fastest model of the first setting, at a resolution of the accuracy tables if it was measured there."""
    for key, members in by_setting(records).items():
        timings = ("throughput_images_per_s_p50", "device_images_per_s_p50")
        done = [r for r in members if r["status"] == "ok" and any(r["metrics"].get(m) for m in timings)]
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
        rest = within_noise(speeds, first, noise_floor(members, timed))
        return f"Fastest at {resolution} px ({key}): {name(first)} with {significant(speeds[first])} {what}{rest}."
    return ""


def within_noise(speeds: Mapping[str, float], first: str, floor: float | None) -> str:
    """Whom the noise could have put behind the fastest."""
    if floor is None:
        return ""
    near = sorted((m for m in speeds if m != first and speeds[first] / speeds[m] - 1 < floor), key=lambda m: -speeds[m])
    if not near:
        return f"; the noise floor is {percent(floor)}"
    shown = some([f"{name(m)} ({significant(speeds[m])})" for m in near], MAX_NAMED)
    return f"; {listed(shown)} {'is' if len(near) == 1 else 'are'} within the noise floor, {percent(floor)}"


def _gaps(records: Sequence[Record]) -> str:
    statuses = Counter(r["status"] for r in records if r["status"] != "ok")
    if not statuses:
        return ""
    kinds = listed([f"{n} {status}" for status, n in sorted(statuses.items())])
    return f"{sum(statuses.values())} of {counted(len(records), 'cell')} gave no result ({kinds}); reasons are below."


def incomplete(run_info: RunInfo, records: Iterable[Record], keys: Collection[str] = ()) -> tuple[str, list[str]]:
    """``INCOMPLETE: 12 of 35 cells``, and the commands to run again; both empty where nothing is missing.

    What each command planned is in ``run.json``; a run from before it was written there counts as complete, and so does
    a command that was given up before its first Cell, beside others in the directory.

    Args:
        run_info: what ``run.json`` says.
        records: of the run directory.
        keys: Cells of what was just run; by default all that was planned counts.
    """
    done = {str(record["key"]) for record in records}
    plans = {command: planned(run_info, command) for command in run_info.get("planned") or ()}
    begun = {command: plan for command, plan in plans.items() if plan & done} or plans
    if keys:
        begun = {command: plan for command, plan in plans.items() if plan == set(keys)}
    every = {key for plan in begun.values() for key in plan}
    if every <= done:
        return "", []
    unfinished = [command for command, plan in begun.items() if not plan <= done]
    return f"INCOMPLETE: {len(every & done):,} of {len(every):,} cells", unfinished


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    named = listed(some([name(dataset) for dataset, _ in skipped], MAX_NAMED))
    return f"Left out because their files are missing or damaged: {named}." if skipped else ""


def skipped_datasets(run_info: RunInfo) -> list[tuple[str, str]]:
    """Datasets left out of the sweep, each with its reason."""
    # "breastmnist at 28 pixels: FILE is missing"
    found = {str(entry).partition(": ")[::2] for entry in run_info.get("skipped") or ()}
    return sorted(found, key=lambda pair: (natural(pair[0]), pair[1]))

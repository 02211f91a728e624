"""``bench recommend DATASET --budget 2h``: train what is worth it, within a time, and recommend one network.

Every step is an ordinary sweep into one run directory: what limits of cost rule out goes first, then frozen features of
networks whose weights lie here, then rungs of short trials (:mod:`bench.runner.search.halving`), then full trainings
with all seeds. Nothing is decided by the test split. Before a rung starts it is predicted what it will cost, from
:mod:`bench.plan.estimate` times the pace measured so far; a rung that takes longer starts nothing more in the time that
is kept for the last one.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import registry
from bench.data.weights import lies_here
from bench.deploy.kept import keep_recommended
from bench.errors import ConfigError, say
from bench.plan.base import Plan
from bench.plan.estimate import cost_of, estimate_s, long_time
from bench.plan.look_ahead import look_ahead
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, Cell, TrialCell
from bench.record.paths import record_path, run_file
from bench.record.trials import Trial, better, choose, measure_of, read_trials
from bench.record.types import Fields, Spec
from bench.registry.weights import with_published
from bench.report.build import Report, read_report
from bench.report.recommend import COSTS, PARAMS, Limits, Recommendation, recommend
from bench.report.sections.efficiency import cost_beside
from bench.runner.runner import execute
from bench.runner.search.cost import Predictor, rung_values
from bench.runner.search.diary import Diary, Saving
from bench.runner.search.halving import FINALISTS, KEPT, fitting, go_on, rungs, whole_way
from bench.runner.sweep import ready_plan, run_directory
from bench.sweep import config
from bench.sweep.config import Loaded, changed

# What a search does where nobody says otherwise.
DEFAULTS: Spec = {
    "sweep.models": ["all"], "sweep.recipe": "standard", "sweep.seeds": [0, 1, 2],
    "sweep.tune": {"learning_rate": [1e-4, 3e-4, 1e-3]},
    "efficiency.rounds": 2, "efficiency.budget_s": 0.3,
}  # fmt: skip
HEAD = "linear"  # on frozen features: exact, chooses its setting on validation
FROZEN_SHARE = 0.1  # of the budget, at most, for frozen features


class Interrupted(Exception):  # noqa: N818 - no error: it was asked for
    """The user stopped the search; the same command goes on."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to: the run directory, its recommendation, None where every network was ruled out."""

    out: Path
    recommendation: Recommendation | None


def loaded_for(
    dataset: str, flags: Spec, path: Path | None = None, sets: Iterable[str] = (), device: str = ""
) -> Loaded:
    """The configuration of a search for a dataset: a run directory of its own, ``runs/recommend-NAME``, by default."""
    about = {**flags, "sweep.datasets": dataset}
    if device:
        about["run.device"] = device
    loaded = config.load(path, None, about, sets)
    if loaded.sweep.run.out:
        return loaded
    name = re.sub(r"[^\w.-]+", "-", registry.display_name(dataset)).strip("-")
    return changed(loaded, {"run.out": f"runs/recommend-{name}"})


def search(loaded: Loaded, budget_s: float, limits: Limits, console: Console, command: str) -> Found:
    """Find a network for a dataset.

    Args:
        loaded: the sweep that would train every candidate fully; :data:`DEFAULTS` stand in for what it leaves open.
        budget_s: seconds that all of it may take; the last training may go beyond.
        limits: what the network may cost.
        console: where lines for people go.
        command: what was typed.

    Raises:
        ConfigError: something is unknown or impossible, or the budget is too small for one network: nothing has run.
        MissingFilesError: files of the dataset are missing.
        Interrupted: the user stopped it.
    """
    return _Search(loaded, budget_s, limits, console, command).run()


def with_defaults(loaded: Loaded) -> Loaded:
    """A sweep with what a search does by default.

    Raises:
        ConfigError: it has several resolutions or recipes, tracks, or something else that a search does not vary.
    """
    loaded = changed(loaded, {key: value for key, value in DEFAULTS.items() if key not in loaded.origins})
    loaded = config.with_own_defaults(loaded, ["sweep.resolutions"])
    section = loaded.sweep.sweep
    for key in ("sizes", "resolutions"):
        if len(getattr(section, key)) > 1:
            raise ConfigError(f"{loaded.origin(f'sweep.{key}')}: a search takes one of {key}; name one")
    for key in ("track", "transfer", "shots", "folds"):
        if getattr(section, key):
            raise ConfigError(f"{loaded.origin(f'sweep.{key}')}: a search does not take {key}; leave it out")
    if len(registry.split_names(section.recipe)) > 1:
        raise ConfigError(f"{loaded.origin('sweep.recipe')}: a search takes one recipe; name one")
    kinds = {"sweep.kinds": ["accuracy", "efficiency"], "efficiency.resolutions": section.resolutions}
    return changed(loaded, kinds)


class _Search:
    def __init__(self, loaded: Loaded, budget_s: float, limits: Limits, console: Console, command: str) -> None:
        self.loaded, self.limits, self.console, self.command = with_defaults(loaded), limits, console, command
        self.out = run_directory(loaded)
        section = self.loaded.sweep.sweep
        asked = section.model_dump(mode="json", exclude={"preset", "kinds"})
        asked |= {"recipe values": self.loaded.sweep.recipe, "limits": [str(limits)]}
        self.diary = Diary(self.out, asked, budget_s, self._show)
        self.last: list[str] = []  # keys of the full trainings

    def _show(self, text: str) -> None:
        say(self.console, text)

    def run(self) -> Found:
        plan = ready_plan(self.loaded, self.console, self.command)
        look_ahead(self.loaded, plan, self.out, self.console)
        accuracy = next(cell for cell in plan.cells.values() if isinstance(cell, AccuracyCell))
        self.epochs = int(accuracy.recipe["epochs"])
        self.rungs = rungs(self.epochs)
        names = list(dict.fromkeys(cell.model for cell in plan.cells.values()))
        self.predicted = Predictor(self.loaded, self.out, self.rungs, names)
        every = self.diary.once("candidates", lambda: self._candidates(plan))
        if not every:
            return Found(self.out, None)
        frozen = self._frozen(every)
        names = self.diary.once("networks", lambda: self._affordable(every))
        names = self._within_limits(names)
        for number, epochs in enumerate(self.rungs):
            names = self._rung(number, epochs, names)
        if not names:
            return Found(self.out, None)
        self._last_rung(names)
        return self._recommended(frozen, every)

    # --- who starts --------------------------------------------------------------------------------------------------

    def _candidates(self, plan: Plan) -> list[str]:
        """Every network that can run and keeps the limit of parameters, the cheapest first.

        Raises:
            ConfigError: the budget is too small for any.
        """
        section = self.loaded.sweep.sweep
        over = ", ".join(f"{key} over {', '.join(f'{v:g}' for v in values)}" for key, values in section.tune.items())
        short = " and ".join(map(str, self.rungs)) or "no"
        seeds = ", ".join(map(str, section.seeds))
        self.diary.say(
            f"budget {long_time(self.diary.budget_s)}; every network is tried with {over}; rungs of {short} epochs "
            f"with seed {section.seeds[0]}, after each the best {KEPT:.0%} by validation go on, {FINALISTS} at least; "
            f"the last rung has {self.epochs} epochs and seeds {seeds}"
        )
        cells = {key: cell for key, cell in plan.cells.items() if isinstance(cell, AccuracyCell)}
        seconds: dict[str, float] = {}
        for key, cell in cells.items():
            if key not in plan.unsupported:
                seconds[cell.model] = seconds.get(cell.model, 0.0) + estimate_s(cell, plan.threads, plan.device)
        for model in dict.fromkeys(cell.model for cell in cells.values()):
            reason = next((r for key, r in plan.unsupported.items() if plan.cells[key].model == model), "")
            limit, params = self.limits.max_params, registry.model_info(registry.parse_model(model).name).params
            if limit and params and params > limit:
                reason = f"{PARAMS.text(params)}, more than --max-params"
            if reason:
                seconds.pop(model, None)
                self.diary.say(f"dropped {model}: {reason}")
        every = sorted(seconds, key=lambda model: seconds[model])
        if every and (least := whole_way(self.predicted.costs(every[:1]))) > self.diary.budget_s:
            raise ConfigError(
                f"--budget: {long_time(self.diary.budget_s)} is not enough for the cheapest network, {every[0]}: its "
                f"trials and seeds at {self.epochs} epochs take about {long_time(least)}; use fewer --epochs, "
                "--seeds or --tune values, or a lower --resolutions"
            )
        return every

    def _affordable(self, every: Sequence[str]) -> list[str]:
        """Those whose whole way fits into the budget; the cheapest in any case, which was found to fit."""
        costs = self.predicted.costs(every)
        chosen = fitting(costs, self.diary.left_s) or [0]
        for number, model in enumerate(every):
            if number not in chosen:
                alone = long_time(whole_way(costs[number : number + 1]))
                self.diary.say(f"dropped {model}: not started, its full training alone takes about {alone}")
        names = [every[number] for number in chosen]
        way = long_time(whole_way([costs[number] for number in chosen]))
        self.diary.say(f"{len(names)} networks start, cheapest first: {', '.join(names)} (at most about {way})")
        return names

    def _within_limits(self, names: list[str]) -> list[str]:
        """Measure what the limits ask about, and drop what is beyond them before anything is trained."""
        asked = [(cost, limit) for cost in COSTS if cost is not PARAMS and (limit := getattr(self.limits, cost.limit))]
        if not asked:
            return names
        self._execute({"sweep.models": names, "sweep.kinds": ["efficiency"]}, reserve=lambda: 0.0)

        def kept() -> list[str]:
            found, _ = cost_beside(read_report(self.out)[0].records, self.loaded.sweep.sweep.resolutions[0])
            measured = {code[0]: figures for code, figures in found.items()}
            stay = []
            for model in names:
                beyond = ""
                for cost, limit in asked:
                    value = measured.get(model, {}).get(cost.key)
                    if not value:
                        beyond = f"no usable {cost.label} was measured"
                    elif cost.excess(value, limit) > 1:
                        beyond = f"{cost.text(value)}, beyond the limit"
                if beyond:
                    self.diary.say(f"dropped {model}: {beyond}")
                else:
                    stay.append(model)
            return stay

        return self.diary.once("within limits", kept)

    # --- frozen features ---------------------------------------------------------------------------------------------

    def _frozen(self, every: Sequence[str]) -> bool:
        """Score frozen features of the networks whose weights lie here; whether there were any."""
        names = self.diary.once("frozen", lambda: self._with_weights(every))
        if names:
            keep = (1 - FROZEN_SHARE) * self.diary.budget_s
            # Without the random network that stands beside each on other boards: it is no candidate.
            self._execute(self._frozen_values(names), lambda: keep, _pretrained)
        return bool(names)

    @staticmethod
    def _frozen_values(names: Sequence[str]) -> Fields:
        frozen = {"sweep.track": ["frozen"], "sweep.heads": [HEAD], "sweep.tune": {}, "sweep.kinds": ["accuracy"]}
        return {"sweep.models": list(names), **frozen}

    def _with_weights(self, every: Sequence[str]) -> list[str]:
        specs = {model: with_published(registry.parse_model(model)) for model in every}
        named = {
            m: str(s) for m, s in specs.items() if isinstance(dict(s.options).get("pretrained"), str) or lies_here(s)
        }
        if not named:
            self.diary.say("frozen features not tried: no pretrained weights on this machine (bench fetch --weights)")
            return []
        names: list[str] = []
        for name in named.values():
            plan = make_plan(changed(self.loaded, self._frozen_values([*names, name])))
            if cost_of(plan, ()).seconds <= FROZEN_SHARE * self.diary.budget_s:
                names.append(name)
        without = [model for model in every if model not in named]
        rest = f"; no weights here of {', '.join(without)}" if without else ""
        self.diary.say(f"frozen features with a {HEAD} head: {', '.join(names) or 'too expensive'}{rest}")
        return names

    # --- rungs -------------------------------------------------------------------------------------------------------

    def _rung(self, number: int, epochs: int, names: list[str]) -> list[str]:
        """Run the trials of one rung; return who goes on, the best first."""
        if len(names) <= FINALISTS:
            return names
        title = f"rung {number + 1}"
        start = self.diary.once(f"{title} starts", lambda: self._startable(title, names, number))
        if len(start) <= FINALISTS:
            return start
        half = self.diary.left_s / 2

        def reserve() -> float:
            """For the last rung of the cheapest; with the pace of the trials so far it may grow."""
            return min(half, sum(sorted(costs[-1] for costs in self.predicted.costs(start))[:FINALISTS]))

        plan = self._execute(rung_values(self.loaded, epochs, start), reserve, lambda cell: isinstance(cell, TrialCell))

        def kept() -> list[str]:
            ranked = self._ranked(title, plan, start)
            best = [model for model, _ in ranked[: go_on(len(start))]]
            shown = [f"{model} {said}" for model, said in ranked]
            self.diary.say(f"{title}, {epochs} epochs, kept: {', '.join(shown[: len(best)]) or 'none'}")
            if shown[len(best) :]:
                self.diary.say(f"dropped {', '.join(shown[len(best) :])}: not among the best {go_on(len(start))}")
            return best

        return self.diary.once(f"{title} ends", kept)

    def _startable(self, title: str, names: list[str], number: int) -> list[str]:
        """Of those that might run a rung, who fits into what is left; the first two in any case."""
        costs = [cost[number:] for cost in self.predicted.costs(names)]
        chosen = fitting(costs, self.diary.left_s) or [_cheapest(costs)]
        for place, model in enumerate(names):
            if place not in chosen:
                self.diary.say(f"dropped {model}: from {title} to the end it would not fit into the budget")
        start = [names[place] for place in chosen]
        predicted = sum(costs[place][0] for place in chosen)
        if len(start) > FINALISTS:
            self.diary.say(f"{title} starts with {len(start)} networks, about {long_time(predicted)}")
        return start

    def _ranked(self, title: str, plan: Plan, names: Sequence[str]) -> list[tuple[str, str]]:
        """The networks by their best validation score, and that in words; those without one are dropped."""
        found: dict[str, dict[str, list[Trial]]] = defaultdict(lambda: defaultdict(list))
        trials = read_trials(self.out, [cell for cell in plan.cells.values() if isinstance(cell, TrialCell)])
        for trial in trials:
            found[trial.cell.model][trial.cell.dataset].append(trial)
        measure = measure_of(trials)
        scored = []
        for model in names:
            best = [choose(group, measure) for group in found[model].values()]
            missing = [trial for group in found[model].values() for trial in group if trial.record is None]
            if missing:
                self.diary.say(f"dropped {model}: its trials did not end within the time for {title}")
            elif None in best or not best:
                bad = next(trial for group in found[model].values() for trial in group if trial.status != "ok")
                self.diary.say(f"dropped {model}: no usable trial, {bad}")
            else:
                scores = [one.score(measure) or 0.0 for one in best if one]
                mean = sum(scores) / len(scores)
                taken = "; ".join(", ".join(f"{k}={v:g}" for k, v in one.values.items()) for one in best if one)
                scored.append((better(measure) * mean, model, f"{measure} {mean:.3f} ({taken})"))
        return [(model, said) for _, model, said in sorted(scored, key=lambda one: -one[0])]

    def _last_rung(self, names: list[str]) -> None:
        """Train the finalists fully, with every seed, and measure what they cost."""

        def chosen() -> list[str]:
            costs = [cost[-1:] for cost in self.predicted.costs(names)]
            places = fitting(costs, self.diary.left_s) or [_cheapest(costs)]
            for place, model in enumerate(names):
                if place not in places:
                    self.diary.say(
                        f"dropped {model}: no budget for its full training of about {long_time(costs[place][0])}"
                    )
            stay = [names[place] for place in places]
            about = long_time(sum(costs[place][0] for place in places))
            self.diary.say(f"last rung, {self.epochs} epochs: {', '.join(stay)}, about {about}")
            return stay

        stay = self.diary.once("last rung", chosen)
        plan = self._execute({"sweep.models": stay}, reserve=lambda: 0.0)
        self.last = list(plan.cells)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _recommended(self, frozen: bool, every: Sequence[str]) -> Found:
        report, _ = read_report(self.out)
        if frozen and report.boards:
            report = self._by_validation(report)
        missing = [key for key in self.last if not record_path(self.out, key).is_file()]
        if missing:
            self.diary.say(
                f"the budget is spent; not started: {registry.counted(len(missing), 'cell')} of the last rung"
            )
        report.write(self.out)
        if not any(board.ranked for board in report.boards):
            self.diary.say("the budget was spent before any network was fully trained; repeat with a longer --budget")
            self.diary.save()
            return Found(self.out, None)
        found = recommend(report, self.limits)
        line = keep_recommended(self.out, report, self.limits)
        if "end" not in self.diary.decided or missing:
            full = long_time(sum(costs[-1] for costs in self.predicted.costs(every, again=True)))
            self.diary.decided["end"] = found.model
            took = f"took {long_time(self.diary.spent_s)}"
            self.diary.say(f"{took}; full trainings of all {len(every)} networks would take about {full} at this pace")
        self.diary.save()
        if line:
            self._show(line)
        return Found(self.out, found)

    def _by_validation(self, report: Report) -> Report:
        """Frozen features or full trainings: the protocol with the highest validation AUC is recommended from.

        Frozen networks are not timed, so limits of cost leave full trainings alone.
        """

        def best(identity: str) -> float:
            rows = [row for row in report.rows if row.protocol.identity == identity]
            means: dict[str, list[float]] = defaultdict(list)
            for row in rows:
                means[row.model].append(row.mean("val_auc") or 0.0)
            return max(sum(values) / len(values) for values in means.values())

        boards = [board for board in report.boards if board.ranked]
        if any(cost.limit and getattr(self.limits, cost.limit) for cost in COSTS):
            boards = [board for board in boards if not board.protocol.recipe.startswith("frozen")] or boards
        scores = {board.protocol.identity: (best(board.protocol.identity), board) for board in boards}
        identity = max(scores, key=lambda key: scores[key][0])
        said = [f"{board.protocol.recipe} {score:.3f}" for score, board in scores.values()]
        if "protocol" not in self.diary.decided:
            self.diary.say(f"best validation AUC: {', '.join(said)}")
        self.diary.decided["protocol"] = identity
        info = {**store.read_run(self.out), "preferred_protocol": identity}
        store.write_json(run_file(self.out), info)
        return read_report(self.out)[0]

    # --- running and predicting --------------------------------------------------------------------------------------

    def _execute(
        self, values: Spec, reserve: Callable[[], float], only: Callable[[Cell], bool] = lambda cell: True
    ) -> Plan:
        """Run some Cells of a sweep; nothing is started when no more than ``reserve`` of the budget is left."""
        loaded = changed(self.loaded, values)
        plan = make_plan(loaded)
        plan.cells = {key: cell for key, cell in plan.cells.items() if only(cell)}
        over_at = 0.0

        def look() -> None:
            nonlocal over_at
            over_at = time.monotonic() + self.diary.left_s - reserve()

        look()
        observer = Saving(self.console, self.diary, look)
        outcome = execute(
            loaded, plan, self.out, observer, self.command, time_is_up=lambda: time.monotonic() >= over_at
        )
        self.diary.save()
        if outcome.interrupted:
            raise Interrupted
        return plan


def _cheapest(costs: Sequence[Sequence[float]]) -> int:
    """Who is taken where nobody fits any more: whose training is the likeliest to end in time."""
    return min(range(len(costs)), key=lambda place: whole_way(costs[place : place + 1]))


def _pretrained(cell: Cell) -> bool:
    return isinstance(cell, AccuracyCell) and cell.weights_sha256 is not None

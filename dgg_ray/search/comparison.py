"""The comparison at the end of a study: its baselines, the searches that some of them need, its work.

    make_search       the search that `search.method` names
    ConstantSearch    the small search of `constant`, the best value that is the same for all tasks, and of
                      `two_task`, the value that is best after two tasks and then kept (with DGG the second
                      task is the first that has an α)
    Comparison        a study's search, the searches of its baselines, and the settings compared in the end

Baselines from the search are these two, `runner_up`, and `curve_optimum`, each task's α where its curve is
best (curve_baseline.py). All but the runner-up keep the winner's settings that are not per task, and are
chosen on the search's blocks. Tuned baselines are strategies with a search of their own (tuned_baseline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dgg_ray.config.decisions import stopped_settings
from dgg_ray.config.search_space import largest_values
from dgg_ray.config.sections import FROM_SEARCH, STRATEGY_NAME, Value
from dgg_ray.config.study import Chain, Setting, Study, StudyRuns
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.core.stage import WorkItem
from dgg_ray.search.base import BatchedSearch, Query, SearchMethod
from dgg_ray.search.objective import (
    Evidence,
    Values,
    metric_range,
    objective_values,
    rank_settings,
    values_by_block,
)
from dgg_ray.search.optuna_search import OptunaSearch
from dgg_ray.search.space import value_list
from dgg_ray.search.stage_model_search import StageModelSearch
from dgg_ray.search.stagewise import Stagewise
from dgg_ray.search.tuned_baseline import tuned_search

POINTS = 5  # values of a range that are tried
SPLITS = ("validation", "test")  # evaluated in the comparison


def make_search(
    study: Study, database: Path | None = None, optional: OptionalOutputs | None = None
) -> SearchMethod:
    """Make the search of a study that has one.

    database: file of the copy for optuna-dashboard; the `optional` collects what goes wrong with it.
    """
    assert study.search is not None
    if study.search.method == "stagewise":
        return Stagewise(study)
    if study.search.method == "stage_model":
        return StageModelSearch(study)
    return OptunaSearch(study, database, optional)


def baseline_searches(study: Study, winner: Setting | None) -> dict[str, SearchMethod]:
    """Baseline → its search, for those that need one; none before the study's own search has a winner."""
    if winner is None:
        return {}
    depths = {"constant": len(study.task_names), "two_task": 2}
    wanted = [name for name in study.protocol.baselines if isinstance(name, str) and name in depths]
    searches: dict[str, SearchMethod] = {name: ConstantSearch(study, winner, depths[name]) for name in wanted}
    searches |= {b.title: tuned_search(study, b, winner) for b in study.tuned_baselines}
    for label, search in searches.items():
        search.label = label
    return searches


@dataclass
class Comparison:
    """A study's search, the searches of its baselines, and the settings that are compared in the end.

    search: None for a study without one.
    baseline_searches: by the baseline's label; none before the search has a winner.
    stand_in: whether the first setting that a search proposed stands for a winner that is not known yet.
    """

    study: Study
    search: SearchMethod | None = None
    baseline_searches: Mapping[str, SearchMethod] = field(default_factory=dict)
    stand_in: bool = False

    @classmethod
    def from_study(
        cls, study: Study, carry_out: Callable[[SearchMethod], SearchMethod], stand_in: bool = False
    ) -> Comparison:
        """Carry out the study's search, then the searches of its baselines.

        carry_out: answers a search's queries until it is exhausted, and returns it.
        """
        search = make_search(study) if study.search else None
        return cls.from_search_method(study, search, carry_out, stand_in)

    @classmethod
    def from_search_method(
        cls,
        study: Study,
        search: SearchMethod | None,
        carry_out: Callable[[SearchMethod], SearchMethod],
        stand_in: bool = False,
    ) -> Comparison:
        """Like `from_study`, with an existing search; None for a study without one."""
        own = cls(study, carry_out(search) if search else None, stand_in=stand_in)
        searches = baseline_searches(study, own.chosen)
        return replace(own, baseline_searches={name: carry_out(s) for name, s in searches.items()})

    @property
    def searches(self) -> list[SearchMethod]:
        """All of them, the study's own first."""
        return [*([self.search] if self.search else []), *self.baseline_searches.values()]

    @property
    def tuning(self) -> dict[str, SearchMethod]:
        """Label of a tuned baseline → its search."""
        labels = [baseline.title for baseline in self.study.tuned_baselines]
        return {label: self.baseline_searches[label] for label in labels if label in self.baseline_searches}

    @property
    def chosen(self) -> Setting | None:
        """The recommended setting: {} where nothing is searched, None before one is known."""
        return self.winner_of(self.search) if self.search else {}

    def winner_of(self, search: SearchMethod) -> Setting | None:
        """The winner of a search, or what stands for it."""
        winner = search.winner()
        if winner is None and self.stand_in and search.proposed:
            return search.proposed[0].setting
        return winner

    @cached_property
    def from_search(self) -> dict[str, Study]:
        """Baseline that a search gives → the study at its setting, of those that are known so far.

        Pinned settings are among them, except the recommended one.
        """
        found: dict[str, Setting | None] = {}
        if self.search is not None:
            found["runner_up"] = runner_up(self.search)
        if self.search is not None and "curve_optimum" in self.study.protocol.baselines:
            from dgg_ray.search.curve_baseline import (
                curve_optimum,
            )  # late: trials do without pandas and SciPy

            found["curve_optimum"] = curve_optimum(self.search)
        found |= {name: self.winner_of(own) for name, own in self.baseline_searches.items()}
        known = {name: self.study.at(setting) for name, setting in found.items() if setting is not None}
        chosen = None if self.chosen is None else self.study.at(self.chosen).id
        pinned = {label: self.study.at(setting) for label, setting in self.study.pinned.items()}
        return known | {label: study for label, study in pinned.items() if study.id != chosen}

    @cached_property
    def settings(self) -> dict[str, StudyRuns]:
        """Label → runs on the final blocks, the recommended setting first; none before there is one."""
        chosen = self.chosen
        return {} if chosen is None else self.study.at(chosen).compared_settings(self.from_search)

    @property
    def winner(self) -> StudyRuns | None:
        return next(iter(self.settings.values()), None)

    @property
    def chains(self) -> list[Chain]:
        """Chains of all that the comparison needs."""
        return final_chains(self.settings)


def final_chains(settings: Mapping[str, StudyRuns], stopped_too: bool = False) -> list[Chain]:
    """Chains of all that comparing these settings needs, the untouched model's evaluations among them.

    Settings that were stopped by hand need nothing more, except the first, which is the recommended one.

    stopped_too: whether to return the chains of stopped settings, too, as far as they would go.
    """
    winner = next(iter(settings.values()), None)
    if winner is None:
        return []
    scope = winner.study.protocol.evaluate
    stopped = {} if stopped_too else stopped_settings(winner.study.data.decisions)
    needed = [runs for runs in settings.values() if runs.id == winner.id or runs.id not in stopped]
    chains = [runs.work_items(run, SPLITS, scope) for runs in needed for run in runs]
    item = untouched_item(winner)
    return [*chains, [item]] if item else chains


def untouched_item(winner: StudyRuns) -> WorkItem | None:
    """The untouched model's evaluations, the reference of transfer and retention; None if not needed."""
    study = winner.study
    trained = () if study.protocol.evaluate == "seen" else study.task_names
    tasks = (*trained, *study.evaluate_only)
    return winner.evaluated(winner.untouched_stage, tasks, SPLITS) if tasks else None


def runner_up(search: SearchMethod) -> Setting | None:
    """The best setting that trains other stages: the α of a task that is always first changes nothing."""

    def last_stages(setting: Setting) -> list[str]:
        return [run.stages[-1].key for run in search.study.at(setting).runs]

    settings = [search.proposed[number].setting for number in search.ranking()]
    return next((s for s in settings[1:] if last_stages(s) != last_stages(settings[0])), None)


def comparison_chains(study: Study) -> list[Chain]:
    """Chains of all that comparing the study's setting may need, baselines from a search included."""
    from_search: dict[str, Study] = dict.fromkeys([*FROM_SEARCH, *study.pinned], study)
    for baseline in study.tuned_baselines:
        fixed = {STRATEGY_NAME: baseline.name, **baseline.settings}
        (largest,) = largest_values(baseline.search, study.task_names)
        from_search[baseline.title] = study.at({**fixed, **largest})
    return final_chains(study.compared_settings(from_search))


def first_run_items(study: Study) -> Chain:
    """Everything that the study's first run needs, be it the search's or, without one, the comparison's."""
    if study.search is None:
        return comparison_chains(study)[0]
    _, query = make_search(study).ask() or (0, Query({}, 0))  # there is always a first
    runs = study.at(query.setting).runs
    return runs.work_items(runs[0])


def describe_best_so_far(search: SearchMethod) -> str:
    """The recommended setting and its objective with a 95 % interval over the blocks; empty for none."""
    # Late: pandas and SciPy, which trials do without.
    from dgg_ray.stats.formats import EstimateStyle, format_estimate
    from dgg_ray.stats.intervals import mean_interval, two_way_clusters

    number = search.best()
    if number is None or (evidence := search.answers[number]) is None:
        return ""
    found = []
    names = search.search.objective
    shared = two_way_clusters(search.study.named_blocks)
    for name, column in zip(names, values_by_block(evidence, names).T, strict=True):
        band = mean_interval(column, clusters=shared, within=metric_range(name))
        found.append(f"{name} {format_estimate(band, EstimateStyle('{:.3f}'.format))}")
    setting = search.proposed[number].setting
    first = {order[0] for order in search.study.all_orders}
    idle: set[str] = set()  # per-task settings of the task that opens every order, where they do nothing
    if len(first) == 1:
        idle = {f"strategy.{name}.{task}" for name in search.study.strategy.per_task for task in first}
    return f"{', '.join(found)} with " + ", ".join(f"{k}={v}" for k, v in setting.items() if k not in idle)


class ConstantSearch(BatchedSearch):
    """Search for the best constant: one value for all tasks, compared after `depth` tasks.

    Where several settings are per task, one after another, each with the best of those before it.
    """

    def __init__(self, study: Study, winner: Setting, depth: int) -> None:
        assert study.search is not None
        self.parameters = {path: k for path, k in study.search.space.items() if k.per_task}
        self.kept = {path: winner[path] for path, k in study.search.space.items() if not k.per_task}
        self.chosen: dict[str, Value] = {
            path: value_list(k, POINTS)[0] for path, k in self.parameters.items()
        }
        self.depth = depth
        super().__init__(study)

    def batches(self) -> Iterator[list[Query]]:
        for path, parameter in self.parameters.items():
            tried = [{**self.chosen, path: value} for value in value_list(parameter, POINTS)]
            answers: Any = yield [Query(self.for_all_tasks(values), self.depth) for values in tried]
            judged = [i for i, evidence in enumerate(answers) if evidence is not None]
            if judged:
                best = rank_settings(
                    [self.values_after_depth(answers[i]) for i in judged], [tried[i] for i in judged]
                )[0]
                self.chosen = tried[judged[best]]

    def winner(self) -> Setting | None:
        return self.for_all_tasks(self.chosen) if self.finished and any(self.answers.values()) else None

    def for_all_tasks(self, values: Mapping[str, Value]) -> Setting:
        per_task = {f"{path}.{name}": v for path, v in values.items() for name in self.study.task_names}
        return {**self.kept, **per_task}

    def values_after_depth(self, evidence: Evidence) -> Values:
        """Values of the sequences as they are after `depth` tasks, as if they ended there."""

        def short(scores: list[ScoreMatrix]) -> list[ScoreMatrix]:
            return [matrix.first(self.depth) for matrix in scores]

        baselines = {name: short(scores) for name, scores in evidence.baselines.items()}
        return objective_values(
            Evidence(short(evidence.scores), baselines), self.search.objective, self.constraints
        )

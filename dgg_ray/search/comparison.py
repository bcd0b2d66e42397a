"""Which search a study asks for, and the small searches of the baselines that come from it.

    make_search(study)       the search of `search.method`
    baselines(search)      `constant`: the best value that is the same for all tasks;
                        `two_task`: the value that is best after two tasks, then kept, as one would
                        who cannot search (with DGG the second task is the first that has an α)
    given(…)            these, `runner_up`, and `curve_optimum`, each task's α where its curve is best
                        (curve_baseline.py)
    contenders(…)       the winner and all that it is compared with

All but the runner-up keep the winner's settings that are not per task, and come from the search's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dgg_ray.config.sections import FROM_SEARCH, Value
from dgg_ray.config.study import Setting, Study
from dgg_ray.core.fence import Fence
from dgg_ray.core.interfaces import ScoreMatrix
from dgg_ray.search import evidence
from dgg_ray.search.base import Batches, Method, Query, Whole
from dgg_ray.search.objective import Evidence, Values, by_block, preferred, range_of, values
from dgg_ray.search.space import listed
from dgg_ray.search.stagewise import Stagewise
from dgg_ray.storage.stage_store import StageStore

POINTS = 5  # values of a range that are tried


def make_search(study: Study, database: Path | None = None, fence: Fence | None = None) -> Method:
    """The search of a study that has one.

    database: file of its copy for optuna-dashboard, whose trouble goes to the fence."""
    assert study.search is not None
    if study.search.method == "stagewise":
        return Stagewise(study)
    return Whole(study, database, fence)


def baseline_searches(search: Method) -> dict[str, Method]:
    """Name → its search, for those of the study's baselines that need one; none before there is a winner."""
    winner, study = search.winner(), search.study
    depths = {"constant": len(study.names), "two_task": 2}
    wanted = [
        baseline for baseline in study.protocol.baselines if isinstance(baseline, str) and baseline in depths
    ]
    return (
        {name: ConstantSearch(study, winner, depths[name]) for name in wanted} if winner is not None else {}
    )


def replay_searches(study: Study, store: StageStore) -> tuple[Method | None, dict[str, Method]]:
    """(The search, the searches of its baselines), as far as the store holds them; for a reader."""
    if study.search is None:
        return None, {}
    search = evidence.searched(study, store, make_search(study))
    return search, {
        name: evidence.searched(study, store, own) for name, own in baseline_searches(search).items()
    }


def compared_settings(study: Study, search: Method | None, more: Mapping[str, Method]) -> dict[str, Study]:
    """Label → study on the final blocks, the recommended setting first; none before there is one."""
    if search is None:
        return study.compared_settings()
    winner = search.winner()
    return {} if winner is None else study.at(winner).compared_settings(searched_baselines(search, more))


def searched_baselines(search: Method, more: Mapping[str, Method]) -> dict[str, Setting]:
    """Rival that the search gives → its setting, of those that are known so far."""
    found = {"runner_up": setting} if (setting := runner_up(search)) else {}
    if "curve_optimum" in search.study.protocol.baselines:
        from dgg_ray.search.curve_baseline import (
            read_off,  # late: pandas and SciPy, which trials and brokers do without
        )

        found |= {"curve_optimum": setting} if (setting := read_off(search)) else {}
    return found | {name: setting for name, own in more.items() if (setting := own.winner()) is not None}


def runner_up(search: Method) -> Setting | None:
    """The best setting that learned something else: the α of a task that is always first changes nothing."""

    def learned(setting: Setting) -> list[str]:
        return [run.stages[-1].key for run in search.study.at(setting).runs()]

    settings = [search.proposed[number].setting for number in search.ranking()]
    return next((other for other in settings[1:] if learned(other) != learned(settings[0])), None)


def comparison_items(study: Study) -> list[evidence.Chain]:
    """Chains of all that comparing this setting may ask for, the baselines from the search among it."""
    return evidence.final_works(study.compared_settings({name: {} for name in FROM_SEARCH}))


def first_run_items(study: Study) -> evidence.Chain:
    """All that the first run of the study asks for, of the search or without one of the comparison."""
    if study.search is None:
        return comparison_items(study)[0]
    _, query = make_search(study).ask() or (0, Query({}, 0))  # there is always a first
    at = study.at(query.setting)
    return evidence.work_items(at, at.runs()[0])


def best_so_far(search: Method) -> str:
    """The recommended setting and its objective with a 95 % interval over the blocks; empty for none."""
    # Late: pandas and SciPy, which trials do without.
    from dgg_ray.stats.formats import interval_text
    from dgg_ray.stats.intervals import mean_interval, ways_of

    number = search.best()
    if number is None or (evidence := search.told[number]) is None:
        return ""
    found = []
    names = search.search.objective
    shared = ways_of(search.study.named_blocks)
    for name, column in zip(names, by_block(evidence, names).T, strict=True):
        band = mean_interval(column, clusters=shared, within=range_of(name))
        found.append(f"{name} {interval_text(*band, form='{:.3f}'.format)}")
    setting = search.proposed[number].setting
    idle = {f"strategy.alpha.{order[0]}" for order in search.study.all_orders}  # where it is one task alone
    return f"{', '.join(found)} with " + ", ".join(f"{k}={v}" for k, v in setting.items() if {k} != idle)


class ConstantSearch(Batches):
    """One value for all tasks, for each setting that is searched per task; judged after `depth` tasks.

    Where several settings are per task, one after another, each with the best of those before it.
    """

    def __init__(self, study: Study, winner: Setting, depth: int) -> None:
        assert study.search is not None
        self.parameters = {path: k for path, k in study.search.space.items() if k.per_task}
        self.kept = {path: winner[path] for path, k in study.search.space.items() if not k.per_task}
        self.chosen: dict[str, Value] = {path: listed(k, POINTS)[0] for path, k in self.parameters.items()}
        self.depth = depth
        super().__init__(study)

    def batches(self) -> Iterator[list[Query]]:
        for path, parameter in self.parameters.items():
            tried = [{**self.chosen, path: value} for value in listed(parameter, POINTS)]
            answers: Any = yield [Query(self.spread(values), self.depth) for values in tried]
            judged = [i for i, evidence in enumerate(answers) if evidence is not None]
            if judged:
                best = preferred([self.early(answers[i]) for i in judged], [tried[i] for i in judged])[0]
                self.chosen = tried[judged[best]]

    def winner(self) -> Setting | None:
        return self.spread(self.chosen) if self.finished and any(self.told.values()) else None

    def spread(self, values: Mapping[str, Value]) -> Setting:
        per_task = {f"{path}.{name}": v for path, v in values.items() for name in self.study.names}
        return {**self.kept, **per_task}

    def early(self, evidence: Evidence) -> Values:
        """Values of the sequences as they are after `depth` tasks, as if they ended there."""

        def short(scores: list[ScoreMatrix]) -> list[ScoreMatrix]:
            d = self.depth
            return [ScoreMatrix(m.R[:d, :d], m.sizes[:d], m.base[:d]) for m in scores]

        beside = {name: short(scores) for name, scores in evidence.beside.items()}
        return values(Evidence(short(evidence.scores), beside), self.search.objective, self.constraints)

"""Search by Optuna: whole settings, proposed in an order that no machine's speed can change."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from dgg_ray.config.search_space import searched_values
from dgg_ray.config.sections import STRATEGY_NAME, Search, Value
from dgg_ray.config.study import Setting, Study, WarmStart
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.search import pruning
from dgg_ray.search.base import Query
from dgg_ray.search.dashboard import Copy
from dgg_ray.search.objective import Evidence, Values
from dgg_ray.search.space import (
    Space,
    all_combinations,
    belongs_to,
    contains,
    distribution_of,
    grid_settings,
    search_space,
)
from dgg_ray.search.whole_settings import WholeSettings

optuna.logging.set_verbosity(optuna.logging.WARNING)
STARTUP = 10  # settings drawn at random first, as many as a generation of nsga2 has; fewer for few trials


class OptunaSearch(WholeSettings):
    """Settings proposed by one of Optuna's samplers, which is told their results in the order proposed.

    first: the searched values of the setting to begin with, which need not lie in the space; the sampler
    learns of it only if it does.
    """

    def __init__(
        self,
        study: Study,
        database: Path | None = None,
        optional: OptionalOutputs | None = None,
        fixed: Setting | None = None,
        first: Setting | None = None,
    ) -> None:
        super().__init__(study, fixed)
        self.space = list(searched_values(self.search.space, study.task_names))
        self.first = first
        self.grid = grid_settings(study, self.search) if self.search.method == "grid" else []
        if first is not None and self.grid:
            self.grid = [first, *(setting for setting in self.grid if setting != first)]
        self.passed_on = 0  # number of results that the sampler knows
        self.trials: list[optuna.Trial | None] = []  # None for one that the sampler does not know
        self.optuna = optuna_study(study, self.search)
        self.copy: Copy | None = None
        if first is not None and self._in_space(first):
            self.optuna.enqueue_trial(self._named(first))
        self._warm_start(study.data.warm_starts)
        for setting in self.grid:
            if setting is not first:
                self.optuna.enqueue_trial(self._named(setting))
        if database:
            self.copy_to(database, optional or OptionalOutputs())

    def copy_to(self, database: Path, optional: OptionalOutputs, fresh: bool = True) -> None:
        """Keep a copy of the search in a file for optuna-dashboard.

        fresh: whether the file is made anew; else this search is added to those that it holds.
        """
        self.copy = Copy(self.optuna, self.search.objective, database, optional, fresh)
        self.copy.update()

    @property
    def count(self) -> int | None:
        return len(self.grid) or super().count

    def next(self) -> Query | None:
        query = super().next()
        asked = len(self.trials) > len(self.proposed)
        if query is None and asked and (trial := self.trials.pop()):  # its stages would be too many
            self.optuna.tell(trial, state=TrialState.FAIL)
        return query

    def propose(self) -> Setting:
        while self.passed_on <= self.last_known:
            self._pass_on(self.passed_on)
        return self._next_values()

    def _next_values(self) -> Setting:
        """The searched values of the next setting; a value is drawn only if its strategy has it."""
        if not self.trials and self.first is not None and not self._in_space(self.first):
            self.trials.append(None)
            return self.first
        common = {v.key: distribution_of(v.parameter) for v in self.space if v.strategies is None}
        trial = self.optuna.ask(common)
        self.trials.append(trial)
        strategy = trial.params.get(STRATEGY_NAME)
        for value in self.space:
            if value.strategies and belongs_to(value, strategy):
                suggest(trial, value.key, distribution_of(value.parameter))
        return {v.path: trial.params[v.key] for v in self.space if belongs_to(v, strategy)}

    def _in_space(self, setting: Setting) -> bool:
        """Return whether a setting's searched values are among those that may be proposed."""
        space = search_space(self.study, self.search, setting.get(STRATEGY_NAME))
        return all(contains(distribution, setting[path]) for path, distribution in space.items())

    def _named(self, setting: Setting) -> dict[str, Value]:
        """A setting's searched values under the names that Optuna knows."""
        own = [v for v in self.space if belongs_to(v, setting.get(STRATEGY_NAME))]
        return {v.key: setting[v.path] for v in own if v.path in setting}

    def _warm_start(self, warm: Sequence[WarmStart]) -> None:
        """Tell Optuna the results of older studies, best first, and what to try first.

        What a setting does not say, such as the values of a new task, is sampled.
        """
        for known in self.warm_starts():
            self.optuna.enqueue_trial(self._named(known.setting), skip_if_exists=True)
        for setting, of, _ in warm:
            own = [v for v in self.space if belongs_to(v, setting.get(STRATEGY_NAME))]
            if len(setting) == len(own) and of:
                distributions = {v.key: distribution_of(v.parameter) for v in own}
                known_values = self._named(setting)
                self.optuna.add_trial(
                    create_trial(params=known_values, distributions=distributions, values=list(of))
                )

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.finished:
            while self.passed_on < len(self.trials):
                self._pass_on(self.passed_on)

    def estimate(self, number: int) -> Values | None:
        """The setting's values; those of a pruned one are extrapolated. None where it failed."""
        evidence, test = self.answers[number], self.proposed[number].pruning_test
        if evidence is None:
            return None
        values = self.values(evidence)
        if np.isfinite(values.objective).all():
            return values
        if test is None:
            return None
        evaluated = {n: v for n, v in self.evaluated().items() if n <= number - self.search.parallel}
        best = next(n for n in evaluated if self.proposed[n].setting == test.incumbents[0])
        incumbent = self.answers[best]
        assert incumbent is not None
        return pruning.extrapolate(
            evidence, incumbent, list(evaluated.values()), self.search.objective, self.constraints
        )

    def _pass_on(self, number: int) -> None:
        """Tell the sampler the result of a setting."""
        values, trial = self.estimate(number), self.trials[number]
        self.passed_on += 1
        if trial is None:
            return
        if values is not None and self.constraints:
            trial.set_user_attr("excess", list(values.excess))
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self.optuna.tell(trial, None if values is None else list(values.objective), state=state)
        if self.copy:
            self.copy.update()


def optuna_study(study: Study, search: Search) -> optuna.Study:
    """Create the study in memory, where no other program can interfere."""
    return optuna.create_study(
        study_name=study.name,
        sampler=sampler(search),
        directions=[StudyDirection.MAXIMIZE] * len(search.objective),
    )


def sampler(search: Search) -> optuna.samplers.BaseSampler:
    if search.method in ("random", "grid"):  # a grid's settings are queued, nothing is sampled
        return optuna.samplers.RandomSampler(seed=search.seed)
    excess_of: Any = (lambda trial: trial.user_attrs.get("excess", [0.0])) if search.constraints else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func: its heir is new in Optuna 5
        if search.method == "nsga2":
            size = STARTUP if search.stages else max(4, search.trials // 4)
            return optuna.samplers.NSGAIISampler(
                population_size=size, seed=search.seed, constraints_func=excess_of
            )
        startup = STARTUP if search.stages else max(4, search.trials // 3)
        return optuna.samplers.TPESampler(
            seed=search.seed, n_startup_trials=startup, constraints_func=excess_of
        )


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Draw a value of a trial that is asked for already."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def propose(
    space: Space, seed: int, count: int, known: Sequence[Setting], first: Sequence[Setting] = ()
) -> list[Setting]:
    """Propose up to `count` different settings of a small space that are not known yet, by TPE.

    known: settings evaluated so far, best first. first: settings to begin with. Where the space has no more
    combinations than asked for, all of them are returned.
    """
    if all(isinstance(d, CategoricalDistribution) for d in space.values()):
        every = [s for s in all_combinations(space, seed) if s not in known]
        if len(every) <= count:
            return every
    found: list[Setting] = []
    for setting in first:
        found += [setting] if setting not in known and setting not in found and len(found) < count else []
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0 if known else 1000),
        direction=StudyDirection.MAXIMIZE,
    )
    for i, setting in enumerate(reversed(known)):
        # Ranks in place of values: constraints and several objectives are in them.
        study.add_trial(create_trial(params=dict(setting), distributions=dict(space), value=float(i)))
    for _ in range(20 * count):
        if len(found) >= count:
            break
        setting = study.ask(dict(space)).params
        if setting not in known and setting not in found:
            found.append(setting)
    return found

"""Search by Optuna: whole settings, proposed in an order that no machine's speed can change."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from dgg_ray.config.sections import Search
from dgg_ray.config.study import Setting, Study, WarmStart
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.search import pruning
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.dashboard import Copy
from dgg_ray.search.objective import Evidence, Values
from dgg_ray.search.space import Space, all_combinations, search_space

optuna.logging.set_verbosity(optuna.logging.WARNING)
WARM_SETTINGS = 3  # of an older study: tried first


class OptunaSearch(SearchMethod):
    """Whole settings, each evaluated on every block unless it is pruned.

    Setting n is proposed with the results of the settings 0 … n - parallel, told in their order.
    """

    def __init__(
        self, study: Study, database: Path | None = None, optional: OptionalOutputs | None = None
    ) -> None:
        super().__init__(study)
        self.space = search_space(study, self.search)
        self.grid = all_combinations(self.space, self.search.seed) if self.search.method == "grid" else []
        self.passed_on = 0  # number of results that the sampler knows
        self.trials: list[optuna.Trial] = []
        self.optuna = optuna_study(study, self.search)
        objectives = self.search.objective
        self.copy = (
            Copy(self.optuna, objectives, database, optional or OptionalOutputs()) if database else None
        )
        warm_start(self.optuna, self.space, study.data.warm_starts)
        for setting in self.grid:
            self.optuna.enqueue_trial(dict(setting))
        if self.copy:
            self.copy.update()

    @property
    def count(self) -> int:
        """Number of settings that will be proposed in all."""
        return len(self.grid) or self.search.trials

    @property
    def exhausted(self) -> bool:
        return len(self.proposed) >= self.count

    def next(self) -> Query | None:
        last = len(self.proposed) - self.search.parallel  # the last setting whose result must be known
        if self.exhausted or any(n not in self.answers for n in range(last + 1)):
            return None
        while self.passed_on <= last:
            self._pass_on(self.passed_on)
        trial = self.optuna.ask(dict(self.space))
        self.trials.append(trial)
        setting = {path: trial.params[path] for path in self.space}
        return Query(setting, len(self.study.task_names), self._pruning_test(last))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.finished:
            while self.passed_on < self.count:
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
        if values is not None and self.constraints:
            trial.set_user_attr("excess", list(values.excess))
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self.optuna.tell(trial, None if values is None else list(values.objective), state=state)
        self.passed_on += 1
        if self.copy:
            self.copy.update()

    def _pruning_test(self, last: int) -> pruning.PruningTest | None:
        """The test against the best of the settings up to `last`; None before two can be compared."""
        if not self.search.prune_level:
            return None
        evaluated = {n: v for n, v in self.evaluated().items() if n <= last}
        settings = [self.proposed[n].setting for n in evaluated]
        evidence = [evidence for n in evaluated if (evidence := self.answers[n])]
        return pruning.make_test(self.study, settings, list(evaluated.values()), evidence)


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
            size = max(4, search.trials // 4)
            return optuna.samplers.NSGAIISampler(
                population_size=size, seed=search.seed, constraints_func=excess_of
            )
        startup = max(4, search.trials // 3)  # Optuna's default, 10, is all of a small study
        return optuna.samplers.TPESampler(
            seed=search.seed, n_startup_trials=startup, constraints_func=excess_of
        )


def warm_start(study: optuna.Study, space: Space, warm: Sequence[WarmStart]) -> None:
    """Tell Optuna the results of older studies, best first, and what to try first.

    Tried first are all settings of a study that this one goes on from, whose stages are stored, and
    WARM_SETTINGS of others. What a setting does not say, such as the values of a new task, is sampled.
    """
    for known in (*(k for k in warm if k.depth), *[k for k in warm if not k.depth][:WARM_SETTINGS]):
        study.enqueue_trial(dict(known.setting), skip_if_exists=True)
    for setting, of, _ in warm:
        if len(setting) == len(space) and of:
            study.add_trial(create_trial(params=dict(setting), distributions=dict(space), values=list(of)))


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

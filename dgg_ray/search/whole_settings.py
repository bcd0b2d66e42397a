"""Searches that propose whole settings, one after another."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from dgg_ray.config.study import Setting, Study
from dgg_ray.search import pruning
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.objective import Evidence, Values


class WholeSettings(SearchMethod):
    """Whole settings, each evaluated on every block unless it is pruned.

    Setting n is proposed with the results of the settings 0 … n - parallel. The search ends after
    `search.trials` settings. With `search.stages` it ends before the first setting whose stages, with all
    that were proposed before, would be more.

    fixed: values that every setting has. stages: keys of the stages of all settings proposed.
    """

    def __init__(self, study: Study, fixed: Setting | None = None) -> None:
        super().__init__(study)
        self.fixed = fixed or {}
        self.stages: set[str] = set()
        self.over = False

    @property
    def count(self) -> int | None:
        """Number of settings that will be proposed in all; None where a number of stages is the limit."""
        return None if self.search.stages else self.search.trials

    @property
    def all_proposed(self) -> bool:
        return self.over or (self.count is not None and len(self.proposed) >= self.count)

    @property
    def last_known(self) -> int:
        """Number of the last setting whose result the next proposal is made from; negative for none."""
        return len(self.proposed) - self.search.parallel

    @abstractmethod
    def propose(self) -> Setting | None:
        """Return the searched values of the next setting; None where the space holds no other."""

    def next(self) -> Query | None:
        if self.all_proposed or any(n not in self.answers for n in range(self.last_known + 1)):
            return None
        values = self.propose()
        setting = {**self.fixed, **(values or {})}
        if values is None or not self._fits(setting):
            self.over = True
            return None
        return Query(setting, len(self.study.task_names), self._pruning_test())

    def _fits(self, setting: Setting) -> bool:
        """Return whether the limit allows the setting's stages, which are then counted."""
        if not self.search.stages:
            return True
        stages = self.stages | self.stages_of(setting)
        if len(stages) > self.search.stages:
            return False
        self.stages = stages
        return True

    def stages_of(self, setting: Setting) -> set[str]:
        """The keys of a setting's stages on all blocks."""
        return {stage.key for run in self.study.at(setting).runs for stage in run.stages}

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.count is None and not self.returned and (query := self.next()) is not None:
            self.proposed.append(query)  # so that it is known at once whether more will come
            self.returned.append((len(self.proposed) - 1, query))

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

    def _pruning_test(self) -> pruning.PruningTest | None:
        """The test against the best of the settings that are known; None before two can be compared."""
        if not self.search.prune_level:
            return None
        evaluated = {n: v for n, v in self.evaluated().items() if n <= self.last_known}
        settings = [self.proposed[n].setting for n in evaluated]
        evidence = [evidence for n in evaluated if (evidence := self.answers[n])]
        return pruning.make_test(self.study, settings, list(evaluated.values()), evidence)

"""Searches that propose whole settings, one after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from dgg_ray.config.study import Setting, Study, WarmStart
from dgg_ray.search import pruning
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.objective import Evidence

WARM_SETTINGS = 3  # of an older study: tried first
REPEATS = 20  # settings in a row without a new stage, after which a space counts as exhausted


class WholeSettings(SearchMethod):
    """Whole settings, each evaluated on every block unless it is pruned.

    Setting n is proposed with the results of the settings 0 … n - parallel. The search ends after
    `search.trials` settings. With `search.stages` it ends before the first setting whose stages, with all
    that were proposed before, would be more; or after REPEATS settings that need no new one.

    fixed: values that every setting has. stages: keys of the stages of all settings proposed, which are
    counted with `search.stages` alone. repeats: settings since one needed a new stage.
    """

    def __init__(self, study: Study, fixed: Setting | None = None) -> None:
        super().__init__(study)
        self.fixed = fixed or {}
        self.stages: set[str] = set()
        self.repeats = 0
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
        self.repeats = self.repeats + 1 if len(stages) == len(self.stages) else 0
        if len(stages) > self.search.stages or self.repeats > REPEATS:
            return False
        self.stages = stages
        return True

    def stages_of(self, setting: Setting) -> set[str]:
        """The keys of a setting's stages on all blocks."""
        return {stage.key for run in self.study.at(setting).runs for stage in run.stages}

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.count is None:
            self.look_ahead()

    def warm_starts(self) -> Iterator[WarmStart]:
        """Yield the settings of older studies that are tried first.

        They are all of a study that this one goes on from, whose stages are stored, and WARM_SETTINGS others.
        """
        warm = self.study.data.warm_starts
        yield from (known for known in warm if known.depth)
        yield from [known for known in warm if not known.depth][:WARM_SETTINGS]

    def _pruning_test(self) -> pruning.PruningTest | None:
        """The test against the best of the settings that are known; None before two can be compared."""
        if not self.search.prune_level:
            return None
        evaluated = {n: v for n, v in self.evaluated().items() if n <= self.last_known}
        settings = [self.proposed[n].setting for n in evaluated]
        evidence = [evidence for n in evaluated if (evidence := self.answers[n])]
        return pruning.make_test(self.study, settings, list(evaluated.values()), evidence)

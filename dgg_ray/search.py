"""Proposes settings, in a sequence that no machine's speed can change.

Optuna's samplers learn from results in the order in which they arrive, and that depends on the
machine. Here setting n is proposed knowing the results of the settings 0 … n - parallel and of no
others, told in their order. So a study that was killed and run again, on another machine or with
more workers, proposes the same settings; and with the stages in the store, it is there where it was
in a second. Optuna's own database is a copy for `optuna-dashboard`, written and never read.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dgg_ray import draws
from dgg_ray.study import Knob, Search, Study, Value

Setting = Mapping[str, Value]
Proposal = tuple[int, Setting]


class Proposals:
    """Ask for a setting, tell what came of it.

    proposed: every setting so far, by number; told: its objective values, or None where a run of it failed.
    """

    def __init__(self, study: Study, database: Path | None = None) -> None:
        assert study.search is not None
        self.search = study.search
        self.space = space(study, study.search)
        self.grid = grid(self.space, self.search.seed) if self.search.sampler == "grid" else []
        self.proposed: list[Setting] = []
        self.told: dict[int, list[float] | None] = {}
        self.returned: deque[Proposal] = deque()
        self.passed_on = 0  # results up to here are known to the sampler
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if database:
            database.unlink(missing_ok=True)
        self.optuna = optuna.create_study(
            study_name=study.name,
            storage=f"sqlite:///{database}" if database else None,
            sampler=sampler(self.search),
            directions=[StudyDirection.MAXIMIZE] * len(self.search.objective),
        )
        for setting in self.grid:
            self.optuna.enqueue_trial(dict(setting))
        if database:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.optuna.set_metric_names(list(self.search.objective))

    @property
    def count(self) -> int:
        """Settings that there will be in all."""
        return len(self.grid) or self.search.trials

    @property
    def finished(self) -> bool:
        return len(self.told) == self.count

    def ask(self) -> Proposal | None:
        """The next setting; None while results that it must know are open, or when all are out."""
        if self.returned:
            return self.returned.popleft()
        number = len(self.proposed)
        if number >= self.count or any(n not in self.told for n in range(number - self.search.parallel + 1)):
            return None
        while self.passed_on <= number - self.search.parallel:
            self._pass_on(self.passed_on)
        trial = self.optuna.ask(self.space)
        self.proposed.append({path: trial.params[path] for path in self.space})
        return number, self.proposed[-1]

    def put_back(self, proposal: Proposal) -> None:
        """Return a setting that was asked for and not judged; it is the next to be asked for."""
        self.returned.append(proposal)

    def tell(self, number: int, values: list[float] | None) -> None:
        """What came of setting `number`; None where it could not be judged."""
        self.told[number] = values
        if self.finished:
            while self.passed_on < self.count:
                self._pass_on(self.passed_on)

    def _pass_on(self, number: int) -> None:
        values = self.told[number]
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self.optuna.tell(number, values, state=state)
        self.passed_on += 1

    def best(self) -> int | None:
        """Number of the recommended setting; None while none was judged.

        With several objectives: of the Pareto front, the one with the highest mean of them. Of
        equals, the one proposed first.
        """
        judged = {n: v for n, v in sorted(self.told.items()) if v is not None}
        front = [n for n, v in judged.items() if not any(dominates(w, v) for w in judged.values())]
        return max(front, key=lambda n: (sum(judged[n]), -n), default=None)


def dominates(a: list[float], b: list[float]) -> bool:
    """Whether a is at least as high in every objective and higher in one."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def space(study: Study, search: Search) -> dict[str, BaseDistribution]:
    """Dotted path → what it is drawn from; a knob that is per task is one path for each task."""
    paths: dict[str, BaseDistribution] = {}
    for path, knob in search.space.items():
        for dotted in [f"{path}.{name}" for name in study.names] if knob.per_task else [path]:
            paths[dotted] = distribution(knob)
    return paths


def distribution(knob: Knob) -> BaseDistribution:
    if knob.values is not None:
        return CategoricalDistribution(knob.values)
    assert knob.low is not None
    assert knob.high is not None
    if isinstance(knob.low, int) and isinstance(knob.high, int):
        return IntDistribution(knob.low, knob.high, log=knob.log)
    return FloatDistribution(knob.low, knob.high, log=knob.log)


def grid(space: Mapping[str, BaseDistribution], seed: int) -> list[Setting]:
    """Every combination of listed values, shuffled, so that the first part of them is a fair sample."""
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    combinations = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    return [combinations[i] for i in draws.generator(seed, "", "grid").permutation(len(combinations))]


def sampler(search: Search) -> optuna.samplers.BaseSampler:
    if search.sampler in ("random", "grid"):  # a grid's settings are queued, nothing is sampled
        return optuna.samplers.RandomSampler(seed=search.seed)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=max(4, search.trials // 4), seed=search.seed)
    startup = max(4, search.trials // 3)  # Optuna's default, 10, is all of a small study
    return optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup)

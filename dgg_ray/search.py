"""Proposes what to try next, in a sequence that no machine's speed can change.

    Probe     a setting, on every block of the search, as far as `depth` tasks of each order
    Method    ask for a probe, tell what the store says of it, ask what is best

A method is a pure function of the study and of what it was told. Optuna's samplers learn from results in
the order in which they arrive, and that depends on the machine; here whole setting n is proposed
knowing the results of the settings 0 … n - parallel and of no others, told in their order, and
stagewise batches wait for each other. So a study that was killed and run again, on another machine or
with more workers, proposes the same; and with the stages in the store, it is there where it was in a
second. Optuna's own database is a copy for `optuna-dashboard`, written and never read.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

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

from dgg_ray import draws, plugins
from dgg_ray.preference import Constraint, Evidence, Values, own_scores, preferred, values
from dgg_ray.racing import Race, paired_spread
from dgg_ray.study import Knob, Search, Setting, Study, Value

optuna.logging.set_verbosity(optuna.logging.WARNING)
Space = Mapping[str, BaseDistribution]
Known = tuple[Setting, Values]


class Probe(NamedTuple):
    """What is to be judged.

    depth: tasks of each order; race: against whom, where it may be given up; block: the only one of the
    study's blocks that is asked for; None is all.
    """

    setting: Setting
    depth: int
    race: Race | None = None
    block: int | None = None


class Method(ABC):
    """Ask for a probe, tell what came of it.

    proposed: every probe so far, by number; told: what the store said of it, None where a run failed.
    """

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        self.study, self.search = study, study.search
        self.constraints = [c for text in self.search.subject_to if (c := Constraint.parse(text))]
        self.proposed: list[Probe] = []
        self.told: dict[int, Evidence | None] = {}
        self.returned: deque[tuple[int, Probe]] = deque()

    @abstractmethod
    def next(self) -> Probe | None:
        """The next probe; None while results that it must know are open, or when all are out."""

    @property
    @abstractmethod
    def out(self) -> bool:
        """Whether no further probe will come."""

    def ask(self) -> tuple[int, Probe] | None:
        if self.returned:
            return self.returned.popleft()
        probe = self.next()
        if probe is None:
            return None
        self.proposed.append(probe)
        return len(self.proposed) - 1, probe

    def put_back(self, number: int, probe: Probe) -> None:
        """Return a probe that was asked for and not judged; it is the next to be asked for."""
        self.returned.append((number, probe))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        """What came of probe `number`; None where it could not be judged."""
        self.told[number] = evidence

    @property
    def finished(self) -> bool:
        return self.out and not self.returned and len(self.told) == len(self.proposed)

    def values(self, evidence: Evidence) -> Values:
        return values(evidence, self.search.objective, self.constraints)

    def judged(self) -> dict[int, Values]:
        """Numbers of the settings judged to the end of every block, each setting once."""
        found: dict[int, Values] = {}
        settings = []
        for number, evidence in sorted(self.told.items()):
            probe = self.proposed[number]
            short = probe.depth < len(self.study.names) or probe.block is not None
            if evidence is None or short or probe.setting in settings:
                continue
            of = self.values(evidence)
            if np.isfinite(of.objective).all():
                found[number] = of
                settings.append(probe.setting)
        return found

    def ranking(self) -> list[int]:
        """Numbers of the settings judged to the end, best first."""
        judged = self.judged()
        numbers = list(judged)
        return [numbers[i] for i in preferred([judged[n] for n in numbers])]

    def best(self) -> int | None:
        """Number of the recommended setting; None while none was judged."""
        return next(iter(self.ranking()), None)

    def winner(self) -> Setting | None:
        """The recommended setting."""
        best = self.best()
        return None if best is None else self.proposed[best].setting


class Batches(Method):
    """A method written as one generator: it yields lists of probes and is sent their evidence."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.steps = self.batches()
        self.first, self.batch, self.over = 0, next(self.steps, []), False
        self.over = not self.batch

    @abstractmethod
    def batches(self) -> Iterator[list[Probe]]:
        """A generator; what it is sent for a batch is a list of evidence, None for what failed."""

    def next(self) -> Probe | None:
        while not self.over:
            handed = len(self.proposed) - self.first
            if handed < len(self.batch):
                return self.batch[handed]
            numbers = range(self.first, len(self.proposed))
            if any(n not in self.told for n in numbers):
                return None
            self.first = len(self.proposed)
            try:
                self.batch = self.steps.send([self.told[n] for n in numbers])  # type: ignore[attr-defined]
            except StopIteration:
                self.over = True
        return None

    @property
    def out(self) -> bool:
        return self.over

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if not self.returned and (probe := self.next()) is not None:
            self.proposed.append(probe)  # known at once: whether more will come, and what
            self.returned.append((len(self.proposed) - 1, probe))


class Whole(Method):
    """Whole settings, each judged on every block unless it falls behind in a race."""

    def __init__(self, study: Study, database: Path | None = None, warm: Sequence[Known] = ()) -> None:
        super().__init__(study)
        self.space = space(study, self.search)
        self.grid = grid(self.space, self.search.seed) if self.search.method == "grid" else []
        self.passed_on = 0  # results up to here are known to the sampler
        self.trials: list[optuna.Trial] = []
        self.optuna = optuna_study(study, database, len(self.search.objective))
        warm_start(self.optuna, self.space, warm)
        for setting in self.grid:
            self.optuna.enqueue_trial(dict(setting))

    @property
    def count(self) -> int:
        """Settings that there will be in all."""
        return len(self.grid) or self.search.trials

    @property
    def out(self) -> bool:
        return len(self.proposed) >= self.count

    def next(self) -> Probe | None:
        known = len(self.proposed) - self.search.parallel  # up to this one, and it too
        if self.out or any(n not in self.told for n in range(known + 1)):
            return None
        while self.passed_on <= known:
            self._pass_on(self.passed_on)
        trial = self.optuna.ask(dict(self.space))
        self.trials.append(trial)
        setting = {path: trial.params[path] for path in self.space}
        return Probe(setting, len(self.study.names), self.race(known))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.finished:
            while self.passed_on < self.count:
                self._pass_on(self.passed_on)

    def _pass_on(self, number: int) -> None:
        of, trial = self.estimate(number), self.trials[number]
        if of is not None and self.constraints:
            trial.set_user_attr("excess", list(of.excess))
        state = TrialState.FAIL if of is None else TrialState.COMPLETE
        self.optuna.tell(trial, None if of is None else list(of.objective), state=state)
        self.passed_on += 1

    def estimate(self, number: int) -> Values | None:
        """The setting's values; of one that was given up, the best one's plus its differences so far."""
        evidence, race = self.told[number], self.proposed[number].race
        if evidence is None:
            return None
        of = self.values(evidence)
        if np.isfinite(of.objective).all() or race is None:
            return of if np.isfinite(of.objective).all() else None
        rival = next(n for n, p in enumerate(self.proposed) if p.setting == race.incumbents[0])
        best = self.told[rival]
        assert best is not None
        estimates = []
        for name in self.search.objective:
            score = plugins.find("metrics", name)
            mine = np.array([score(s) for s in evidence.scores])
            theirs = np.array([score(s) for s in best.scores])
            there = ~np.isnan(mine)
            # Given up inside its first block, it has no difference yet: the worst score seen stands in.
            gap = (mine - theirs)[there].mean() if there.any() else -theirs.mean()
            estimates.append(float(theirs.mean() + gap))
        return Values(tuple(estimates), tuple(0.0 if np.isnan(e) else e for e in of.excess))

    def race(self, known: int) -> Race | None:
        """Against the best of the settings up to `known`; None where that says nothing yet."""
        judged = {n: v for n, v in self.judged().items() if n <= known} if self.search.race else {}
        if len(judged) < 2 or len(self.study.blocks) < 2:
            return None
        numbers = list(judged)
        order = [numbers[i] for i in preferred([judged[n] for n in numbers])]
        best = judged[order[0]]
        if any(best.excess):
            return None  # nothing that may be recommended is known
        evidence = {n: self.told[n] for n in numbers}
        spread = []
        for name in self.search.objective:
            score = plugins.find("metrics", name)
            table = np.array([[score(s) for s in e.scores] for e in evidence.values() if e])
            spread.append(paired_spread(table))
        if any(not freedom for _, freedom in spread):
            return None
        orders = [order for order, _ in self.study.blocks]
        runs = [pair for e in evidence.values() if e for pair in zip(orders, e.scores, strict=True)]
        hopes = {task: max(scores) for task, scores in own_scores(runs).items()}
        count = 1 if len(self.search.objective) == 1 else 3
        incumbents = tuple(self.proposed[n].setting for n in order[:count] if not any(judged[n].excess))
        assert self.search.race is not None
        return Race(incumbents, self.search.race, hopes, tuple(spread))


# -- spaces, and Optuna ----------------------------------------------------------------------------


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


def grid(space: Space, seed: int) -> list[Setting]:
    """Every combination of listed values, shuffled, so that the first part of them is a fair sample."""
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    combinations = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    return [combinations[i] for i in draws.generator(seed, "", "grid").permutation(len(combinations))]


def listed(knob: Knob, count: int) -> list[Value]:
    """The values of a list; of a range, `count` at even distances."""
    if knob.values is not None:
        return list(knob.values)
    assert knob.low is not None
    assert knob.high is not None
    spaced = np.geomspace if knob.log else np.linspace
    points = spaced(knob.low, knob.high, count).tolist()
    whole = isinstance(knob.low, int) and isinstance(knob.high, int)
    return list(dict.fromkeys(round(p) for p in points)) if whole else points


def optuna_study(study: Study, database: Path | None, objectives: int) -> optuna.Study:
    if database:
        database.unlink(missing_ok=True)
    assert study.search is not None
    found = optuna.create_study(
        study_name=study.name,
        storage=f"sqlite:///{database}" if database else None,
        sampler=sampler(study.search),
        directions=[StudyDirection.MAXIMIZE] * objectives,
    )
    if database:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            found.set_metric_names(list(study.search.objective))
    return found


def sampler(search: Search) -> optuna.samplers.BaseSampler:
    if search.method in ("random", "grid"):  # a grid's settings are queued, nothing is sampled
        return optuna.samplers.RandomSampler(seed=search.seed)
    limits: Any = (lambda trial: trial.user_attrs.get("excess", [0.0])) if search.subject_to else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.method == "nsga2":
            size = max(4, search.trials // 4)
            return optuna.samplers.NSGAIISampler(
                population_size=size, seed=search.seed, constraints_func=limits
            )
        startup = max(4, search.trials // 3)  # Optuna's default, 10, is all of a small study
        return optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup, constraints_func=limits)


def warm_start(study: optuna.Study, space: Space, warm: Sequence[Known]) -> None:
    """Tell Optuna what an older study found, and let it try that study's three best settings first.

    Values that the present space does not have are left out, tasks that the older study did not have
    are sampled.
    """
    usable = [({k: v for k, v in s.items() if k in space and contains(space[k], v)}, of) for s, of in warm]
    usable = [(setting, of) for setting, of in usable if setting]
    for i in preferred([of for _, of in usable])[:3]:
        study.enqueue_trial(dict(usable[i][0]), skip_if_exists=True)
    for setting, of in usable:
        known = {k: space[k] for k in setting}
        if len(setting) == len(space) and len(of.objective) == len(study.directions):
            study.add_trial(
                create_trial(params=dict(setting), distributions=known, values=list(of.objective))
            )


def contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def propose(
    space: Space, seed: int, count: int, known: Sequence[Known], first: Sequence[Setting] = ()
) -> list[Setting]:
    """`count` different settings of a small space that are not known yet, by TPE; fewer where there are no more.

    first: settings to begin with. Where all combinations are no more than asked for, it is all of them.
    """
    tried = [setting for setting, _ in known]
    if all(isinstance(d, CategoricalDistribution) for d in space.values()):
        every = [s for s in grid(space, seed) if s not in tried]
        if len(every) <= count:
            return every
    found = [s for s in first if s not in tried][:count]
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0 if known else 1000),
        direction=StudyDirection.MAXIMIZE,
    )
    for i, place in enumerate(reversed(preferred([of for _, of in known]))):
        # Ranks in place of values: constraints and several objectives are in them.
        study.add_trial(create_trial(params=dict(known[place][0]), distributions=dict(space), value=float(i)))
    for _ in range(20 * count):
        if len(found) >= count:
            break
        setting = study.ask(dict(space)).params
        if setting not in tried and setting not in found:
            found.append(setting)
    return found

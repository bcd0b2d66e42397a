"""Search with a model of single stages: settings whose predicted end is best, or may be.

    first    a line of constants through the space: one setting's values are varied at a time, equal for all
             tasks, the others in the middle of theirs
    then     by turns the setting with the highest prediction, and the one with the highest prediction plus
             one standard deviation, among those met by steps in one value at a time from several starts

The model (stage_model.py) learns from every stage, and the line shows it each task's values once. A search
task by task (stagewise.py) decides a task before it knows what later tasks make of it; here every prediction
is of a whole sequence. So guidance that pays later counts, and a search may be stopped after any setting.

Settings are ranked by estimates of their mean final score. A setting that was lucky on the validation
examples has neighbours that were not. So its estimate lies between its own score and the model's prediction:
of the differences between the two, the share that evaluating on so few examples explains is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from dgg_ray.config.study import Setting, Study
from dgg_ray.core import plugins, rng
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.search.objective import Evidence, Values, rank_settings
from dgg_ray.search.stage_model import Axis, StageModel
from dgg_ray.search.whole_settings import WholeSettings

EXPLORING = (0.0, 1.0)  # standard deviations that count as gain, by turns
BEST, RANDOM = 5, 3  # starts of the steps: the best settings so far, and drawn ones
MOST_STEPS = 20
MOST_MET = 500  # settings on the way that may be proposed
DRAWS = 200  # of a setting that is not known yet, before the space counts as exhausted
BROKEN = 10  # how much more a point counts by which a constraint is broken than one of the objective
DIGITS = 9  # to which predictions are compared, so that machines that round otherwise agree
LEAST_NOISE = 0.05  # scores nearer to 0 or 1 are taken to vary like this one


class StageModelSearch(WholeSettings):
    """Whole settings, proposed from a model of single stages; see the head of this file."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        space = self.search.space
        self.per_task = {path: Axis.of(p) for path, p in space.items() if p.per_task}
        self.shared = {path: Axis.of(p) for path, p in space.items() if not p.per_task}
        own = {f"{path}.{task}": axis for path, axis in self.per_task.items() for task in study.task_names}
        self.axes = own | self.shared
        orders = [order for order, _ in study.blocks]
        matters = self.first_task_matters()
        self.model = StageModel(orders, self.axes, list(self.per_task), matters)
        self.sizes = np.array([len(axis.values) for axis in self.axes.values()])
        always_first = {order[0] for order in orders}
        idle = always_first if len(always_first) == 1 and not any(matters) else ()
        # Numbers of the axes that bear on a stage: not of a task that is first in every order, with DGG.
        self.active = [
            i
            for i, path in enumerate(self.axes)
            if path.rpartition(".")[2] not in idle or path in self.shared
        ]
        self.tried: set[tuple[Any, ...]] = set()  # values on the active axes, of the settings proposed
        self.ends: set[tuple[str, ...]] = set()  # their last stages
        self.first = [*self.warm_settings(), *self.constants()]
        self.learned = 0  # number of settings that the model knows
        self.ranked: tuple[tuple[int, int], list[int]] = (
            (-1, -1),
            [],
        )  # for so many answers, so many learned

    def first_task_matters(self) -> list[bool]:
        """For each block, whether the values of its first task bear on any stage: with DGG, none do."""
        middle = self.setting_of(self.middle)
        matters = []
        for block, (order, _) in enumerate(self.study.blocks):
            changed = dict(middle)
            for path, axis in self.per_task.items():
                changed[f"{path}.{order[0]}"] = axis.values[0 if axis.line[0] else -1]
            ends = [self.study.at(setting).runs[block].stages[-1].key for setting in (middle, changed)]
            matters.append(ends[0] != ends[1])
        return matters

    # -- what is tried first -----------------------------------------------------------------------

    @property
    def middle(self) -> np.ndarray:
        """The numbers of the middle values; (axes,)."""
        return np.array([axis.line[0] for axis in self.axes.values()])

    def setting_of(self, levels: np.ndarray) -> Setting:
        return {path: axis.values[int(i)] for (path, axis), i in zip(self.axes.items(), levels, strict=True)}

    def constants(self) -> Iterator[Setting]:
        """Yield the line of constants: of each searched setting every value, the same for all tasks."""
        paths = list(self.axes)
        lines = []
        for name, axis in [*self.per_task.items(), *self.shared.items()]:
            own = [i for i, path in enumerate(paths) if path == name or path.rpartition(".")[0] == name]
            lines.append([(own, level) for level in axis.line])
        for k in range(max(map(len, lines), default=0)):
            for line in lines:
                if k < len(line):
                    levels = self.middle
                    levels[line[k][0]] = line[k][1]
                    yield self.setting_of(levels)

    def warm_settings(self) -> Iterator[Setting]:
        """Yield the best settings of older studies; all of one that this study goes on from.

        The values of a new task go through its line, from setting to setting.
        """
        for k, known in enumerate(self.warm_starts()):
            fresh = {path: axis.values[axis.line[k % len(axis.line)]] for path, axis in self.axes.items()}
            yield {path: known.setting.get(path, value) for path, value in fresh.items()}

    # -- proposals ---------------------------------------------------------------------------------

    def propose(self) -> Setting | None:
        while self.first:
            setting = self.first.pop(0)
            if self.is_new(setting):
                return setting
        self.learn(self.last_known)
        climbed = self.climb() if self.model.can_predict else ()
        return next((s for s in chain(climbed, self.drawn_settings()) if self.is_new(s)), None)

    def is_new(self, setting: Setting) -> bool:
        """Return whether a setting trains other stages than those proposed, of which it then is one."""
        paths = list(self.axes)
        values = tuple(setting[paths[i]] for i in self.active)
        if values in self.tried:  # the keys of stages take longer
            return False
        self.tried.add(values)
        ends = tuple(run.stages[-1].key for run in self.study.at(setting).runs)
        if ends in self.ends:
            return False
        self.ends.add(ends)
        return True

    def drawn_settings(self) -> Iterator[Setting]:
        for draw in range(DRAWS):
            yield self.setting_of(self.drawn_levels("stage model", len(self.proposed) * DRAWS + draw))

    def drawn_levels(self, purpose: str, step: int) -> np.ndarray:
        """The numbers of values that are drawn, each equally likely; (axes,)."""
        words = rng.words(len(self.sizes), self.search.seed, "", purpose, step)
        return np.array([int(w) * n >> 64 for w, n in zip(words, self.sizes.tolist(), strict=True)])

    def learn(self, last: int) -> None:
        """Learn from the settings up to number `last`, in their order."""
        while self.learned <= last:
            evidence, setting = self.answers[self.learned], self.proposed[self.learned].setting
            self.learned += 1
            for block, run in enumerate(self.study.at(setting).runs if evidence else ()):
                keys = [stage.key for stage in run.stages]
                self.model.add(setting, block, keys, evidence.scores[block].R)  # type: ignore[union-attr]

    @property
    def learned_from(self) -> list[Evidence]:
        return [evidence for n in range(self.learned) if (evidence := self.answers[n])]

    def climb(self) -> Iterator[Setting]:
        """Climb by steps in one value at a time; yield the settings met, the most promising first."""
        evaluated = {n: values for n, values in self.evaluated().items() if n <= self.last_known}
        starts = [self.levels_of(self.proposed[n].setting) for n in self.rank(evaluated)[:BEST]]
        number = len(self.proposed) * RANDOM
        starts += [self.drawn_levels("stage model starts", number + draw) for draw in range(RANDOM)]
        levels = np.tile(self.middle, (len(starts), 1))
        levels[:, self.active] = np.array(starts)[:, self.active]
        levels = np.unique(levels, axis=0)
        bounds = self.usual_bounds()
        value = self.promise(levels, bounds)
        met, promises = [levels.copy()], [value.copy()]
        climbing = np.ones(len(levels), bool)
        for _ in range(MOST_STEPS):
            here = np.flatnonzero(climbing)
            if not len(here):
                break
            steps = neighbours(levels[here], self.sizes, self.active)  # (settings, steps, axes)
            promise = self.promise(steps.reshape(-1, len(self.sizes)), bounds).reshape(steps.shape[:2])
            met.append(steps.reshape(-1, len(self.sizes)))
            promises.append(promise.ravel())
            best, highest = promise.argmax(axis=1), promise.max(axis=1)
            better = highest > value[here]
            levels[here[better]] = steps[better, best[better]]
            value[here[better]] = highest[better]
            climbing[here[~better]] = False
            _, first = np.unique(levels, axis=0, return_index=True)
            climbing &= np.isin(np.arange(len(levels)), first)
        every, first = np.unique(np.concatenate(met), axis=0, return_index=True)
        for i in np.argsort(-np.concatenate(promises)[first], kind="stable")[:MOST_MET]:
            yield self.setting_of(every[i])

    def levels_of(self, setting: Setting) -> np.ndarray:
        """The numbers of the values that lie nearest to a setting's; (axes,)."""
        nearest = [
            ((axis.points - axis.place(setting[path])) ** 2).sum(axis=1).argmin()
            for path, axis in self.axes.items()
        ]
        return np.array(nearest)

    # -- what a setting promises -------------------------------------------------------------------

    def promise(self, levels: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Return one number for what each setting promises at this turn; −inf where a metric has no value.

        Several objectives are weighed anew at each turn (Knowles, ParEGO, IEEE Trans. Evolutionary
        Computation 10(1), 2006, here with a weighted sum). bounds: see `usual_bounds`.
        """
        exploring = EXPLORING[len(self.proposed) % len(EXPLORING)]
        matrices, deviations = self.model.predict(self.model.points(levels), exploring > 0)
        objectives = self.predicted(self.search.objective, matrices)
        value = objectives @ self.weights() + exploring * self.deviation_of_faa(deviations)
        kept = self.predicted([c.metric for c in self.constraints], matrices) - bounds
        value -= BROKEN * np.maximum(-kept, 0).sum(axis=1)
        return np.nan_to_num(np.round(value, DIGITS), nan=-np.inf)

    def weights(self) -> np.ndarray:
        """The weights of the objectives at this turn, drawn evenly from all that add up to 1."""
        if len(self.search.objective) == 1:
            return np.ones(1)
        words = rng.words(len(self.search.objective), self.search.seed, "", "weights", len(self.proposed))
        drawn = -np.log((words.astype(float) + 1) / 2.0**64)
        return drawn / drawn.sum()

    def predicted(self, metrics: Sequence[str], matrices: Sequence[np.ndarray]) -> np.ndarray:
        """(settings, metrics): the metrics of predicted scores, as means over the blocks."""
        known, count = self.learned_from[0], len(matrices[0])
        means = np.zeros((count, len(metrics)))
        for R, like in zip(matrices, known.scores, strict=True):
            rest = (like.sizes, like.base, like.outside, like.outside_base)  # the same for all settings
            scores = ScoreMatrix(R, *(np.broadcast_to(one, (count, *one.shape)) for one in rest))
            for i, name in enumerate(metrics):
                means[:, i] += plugins.find("metrics", name)(scores) / len(matrices)
        return means

    def usual_bounds(self) -> np.ndarray:
        """Return the least value that each constraint allows; a baseline counts with its mean so far."""
        bounds = []
        for c in self.constraints:
            metric, baseline = plugins.find("metrics", c.metric), 0.0
            if c.baseline:
                known = [metric(scores) for one in self.learned_from for scores in one.baselines[c.baseline]]
                baseline = float(np.nanmean(known))
            bounds.append(c.bound + baseline)
        return np.array(bounds)

    def deviation_of_faa(self, deviations: Sequence[np.ndarray]) -> np.ndarray:
        """The standard deviation of the predicted mean final score; the tasks of a run err together."""
        of_blocks = [
            deviation @ (scores.sizes / scores.sizes.sum())
            for deviation, scores in zip(deviations, self.learned_from[0].scores, strict=True)
        ]
        return np.sqrt(np.square(of_blocks).sum(axis=0)) / len(of_blocks)

    # -- the recommendation ------------------------------------------------------------------------

    def ranking(self) -> list[int]:
        """Numbers of the settings evaluated to the end, the best by their estimates first.

        While the search goes on, the model may not know the newest answers: what it learns when must not
        depend on who asks.
        """
        if self.finished:
            self.learn(len(self.proposed) - 1)
        state = (len(self.answers), self.learned)
        if self.ranked[0] != state:
            self.ranked = (state, self.rank(self.evaluated()))
        return self.ranked[1]

    def rank(self, evaluated: Mapping[int, Values]) -> list[int]:
        """Rank settings by estimates of their mean final score; by their values if more is asked for."""
        numbers, values = list(evaluated), list(evaluated.values())
        settings = [self.proposed[n].setting for n in numbers]
        if self.search.objective == ("faa",) and not self.constraints and self.model.can_predict and numbers:
            own = np.array([one.objective[0] for one in values])
            evidence = [known for n in numbers if (known := self.answers[n])]
            values = [Values((estimate,)) for estimate in self.estimates(own, settings, evidence)]
        return [numbers[i] for i in rank_settings(values, settings)]

    def estimates(
        self, own: np.ndarray, settings: Sequence[Setting], evidence: Sequence[Evidence]
    ) -> list[float]:
        """The settings' mean final scores: between their own ones and the model's predictions."""
        points = [self.model.points_of(setting) for setting in settings]
        stacked = {path: np.concatenate([one[path] for one in points]) for path in self.axes}
        predicted = self.predicted(["faa"], self.model.predict(stacked)[0])[:, 0]
        left = own - predicted - (own - predicted).mean()
        share = 1 - noise_of_evaluation(evidence) / max(float((left**2).mean()), 1e-12)
        return np.round(predicted + max(share, 0.0) * left, DIGITS).tolist()


def neighbours(levels: np.ndarray, sizes: np.ndarray, active: Sequence[int]) -> np.ndarray:
    """All settings that differ from these in one active value at most; (settings, steps, axes)."""
    steps = np.repeat(levels[:, None], int(sizes[active].sum()), axis=1)
    start = 0
    for axis in active:
        steps[:, start : start + sizes[axis], axis] = np.arange(sizes[axis])
        start += sizes[axis]
    return steps


def noise_of_evaluation(evidence: Sequence[Evidence]) -> float:
    """The mean variance that finite validation splits put on the mean final score of a setting.

    On a block of tasks with n_i examples and final scores p_i, Σ_i n_i p_i (1 - p_i) / (Σ_i n_i)².
    """
    variances = []
    for one in evidence:
        blocks = []
        for scores in one.scores:
            p = np.clip(scores.R[-1], LEAST_NOISE, 1 - LEAST_NOISE)
            blocks.append((scores.sizes * p * (1 - p)).sum() / scores.sizes.sum() ** 2)
        variances.append(np.mean(blocks) / len(blocks))
    return float(np.mean(variances))

"""Search with a model of single stages: settings whose predicted end is best, or might be.

    first    a line of constants through the space: one setting's values are varied at a time, equal for all
             tasks, the others in the middle of theirs
    then     by turns the setting that the model predicts to be best, and the one with the highest prediction
             plus one standard deviation, found by steps in one value at a time from several starts

The model (stage_model.py) learns from every stage, and the line shows it each task's values once. A search
task by task (stagewise.py) decides a task before it knows what later tasks make of it; here every prediction
is of a whole sequence. So guidance that pays later counts, and a search may be stopped after any setting.

The recommendation is the best evaluated setting by an estimate: the model's prediction, plus the part of what
the setting's own score differs from it that is more than the noise of evaluation. A setting that was lucky on
the validation examples has neighbours that were not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

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
DRAWS = 200  # of a setting that is not known yet, before the space counts as exhausted
WARM_SETTINGS = 3  # of an older study: tried first
DIGITS = 9  # to which predictions are compared, so that machines that round otherwise agree


class StageModelSearch(WholeSettings):
    """Whole settings, proposed from a model of single stages; see the head of this file."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        space = self.search.space
        self.per_task = {path: Axis.of(p) for path, p in space.items() if p.per_task}
        self.shared = {path: Axis.of(p) for path, p in space.items() if not p.per_task}
        self.model = self.new_model([True] * len(study.blocks))
        self.axes = self.model.axes
        self.ends: set[tuple[str, ...]] = set()  # last stages of the settings proposed
        self.first = [*self.warm_settings(), *self.constants()]
        self.model = self.new_model(self.first_task_matters())
        self.learned = 0  # number of settings that the model knows
        self.ranked: tuple[tuple[int, int], list[int]] = ((-1, -1), [])  # and for which answers

    def new_model(self, first_matters: Sequence[bool]) -> StageModel:
        orders = [order for order, _ in self.study.blocks]
        return StageModel(orders, self.per_task, self.shared, first_matters)

    def first_task_matters(self) -> list[bool]:
        """For each block, whether the values of its first task bear on any stage: with DGG, none do."""
        middle = self.setting_of(self.middle)
        found = []
        for block, (order, _) in enumerate(self.study.blocks):
            changed = dict(middle)
            for path, axis in self.per_task.items():
                changed[f"{path}.{order[0]}"] = axis.values[0 if axis.line[0] else -1]
            ends = [self.study.at(setting).runs[block].stages[-1].key for setting in (middle, changed)]
            found.append(ends[0] != ends[1])
        return found

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
        """Yield the best settings of older studies; all of one that this study goes on from."""
        warm, middle = self.study.data.warm_starts, self.setting_of(self.middle)
        for known in (*(k for k in warm if k.depth), *[k for k in warm if not k.depth][:WARM_SETTINGS]):
            yield {path: known.setting.get(path, value) for path, value in middle.items()}

    # -- proposals ---------------------------------------------------------------------------------

    def propose(self) -> Setting | None:
        while self.first:
            setting = self.first.pop(0)
            if self.is_new(setting):
                return setting
        self.learn(self.last_known)
        found = self.climb() if self.learned_anything else []
        return next((s for s in chain(found, self.drawn_settings()) if self.is_new(s)), None)

    def is_new(self, setting: Setting) -> bool:
        """Return whether a setting trains other stages than those proposed, of which it then is one."""
        ends = tuple(run.stages[-1].key for run in self.study.at(setting).runs)
        if ends in self.ends:
            return False
        self.ends.add(ends)
        return True

    def drawn_settings(self) -> Iterator[Setting]:
        sizes = [len(axis.values) for axis in self.axes.values()]
        for draw in range(DRAWS):
            step = len(self.proposed) * DRAWS + draw
            words = rng.words(len(sizes), self.search.seed, "", "stage model", step)
            yield self.setting_of(np.array([int(w) * n >> 64 for w, n in zip(words, sizes, strict=True)]))

    @property
    def known(self) -> list[Evidence]:
        """The evidence that was learned from."""
        return [evidence for n in range(self.learned) if (evidence := self.answers[n])]

    @property
    def learned_anything(self) -> bool:
        return all(place.inputs for places in self.model.places for place in places)

    def learn(self, last: int) -> None:
        """Learn from the settings up to number `last`, in their order."""
        while self.learned <= last:
            evidence, setting = self.answers[self.learned], self.proposed[self.learned].setting
            self.learned += 1
            for block, run in enumerate(self.study.at(setting).runs if evidence else ()):
                keys = [stage.key for stage in run.stages]
                self.model.add(setting, block, keys, evidence.scores[block].R)  # type: ignore[union-attr]

    def climb(self) -> list[Setting]:
        """The settings where steps in one value at a time end, the most promising first."""
        number = len(self.proposed)
        known = {n: values for n, values in self.evaluated().items() if n <= self.last_known}
        starts = [self.levels_of(self.proposed[n].setting) for n in self.rank(known)[:BEST]]
        sizes = np.array([len(axis.values) for axis in self.axes.values()])
        for draw in range(RANDOM):
            words = rng.words(len(sizes), self.search.seed, "", "stage model starts", number * RANDOM + draw)
            starts.append(np.array([int(w) * int(n) >> 64 for w, n in zip(words, sizes, strict=True)]))
        places = np.unique(np.array(starts), axis=0)
        value = self.promise(places)
        open_ = np.ones(len(places), bool)
        for _ in range(MOST_STEPS):
            here = np.flatnonzero(open_)
            if not len(here):
                break
            steps = neighbours(places[here], sizes)  # (places, steps, axes)
            promise = self.promise(steps.reshape(-1, len(sizes))).reshape(steps.shape[:2])
            best = promise.argmax(axis=1)
            highest = promise.max(axis=1)
            better = highest > value[here]
            places[here[better]] = steps[better, best[better]]
            value[here[better]] = highest[better]
            open_[here[~better]] = False
            _, first = np.unique(places, axis=0, return_index=True)
            open_ &= np.isin(np.arange(len(places)), first)
        return [self.setting_of(places[i]) for i in np.argsort(-value, kind="stable")]

    def levels_of(self, setting: Setting) -> np.ndarray:
        """The numbers of the values that lie nearest to a setting's."""
        return np.array(
            [
                ((axis.points - axis.place(setting[path])) ** 2).sum(axis=1).argmin()
                for path, axis in self.axes.items()
            ]
        )

    # -- what a setting promises -------------------------------------------------------------------

    def promise(self, levels: np.ndarray) -> np.ndarray:
        """What settings promise at this turn, as one number each; −inf where a metric has no value.

        Several objectives are weighed anew at each turn (Knowles, ParEGO, IEEE Trans. Evolutionary
        Computation 10(1), 2006, here with a weighted sum). Broken constraints count ten times.
        """
        exploring = EXPLORING[len(self.proposed) % len(EXPLORING)]
        matrices, deviation = self.model.predict(self.model.points(levels), exploring > 0)
        table = self.predicted_values(matrices)
        weights = rng.make_rng(self.search.seed, "", "stage model weights", len(self.proposed)).dirichlet(
            np.ones(len(self.search.objective))
        )
        count = len(self.search.objective)
        value = table[:, :count] @ weights + exploring * deviation
        value -= 10 * np.maximum(-table[:, count:], 0).sum(axis=1)
        return np.nan_to_num(np.round(value, DIGITS), nan=-np.inf)

    def predicted_values(self, matrices: Sequence[np.ndarray]) -> np.ndarray:
        """(settings, objectives + constraints), as `mean_values` takes them: means over the blocks."""
        known = self.known[0]
        columns = []
        for block, R in enumerate(matrices):
            like, count = known.scores[block], len(R)
            stack = ScoreMatrix.stack([like] * count)
            stack = ScoreMatrix(R, stack.sizes, stack.base, stack.outside, stack.outside_base)
            of = [
                np.broadcast_to(plugins.find("metrics", name)(stack), count) for name in self.search.objective
            ]
            for c in self.constraints:
                least = c.bound + (self.usual_baseline(c.metric, c.baseline, block) if c.baseline else 0.0)
                of.append(np.broadcast_to(plugins.find("metrics", c.metric)(stack), count) - least)
            columns.append(np.stack(of, axis=1))
        return np.mean(columns, axis=0)

    def usual_baseline(self, metric: str, baseline: str, block: int) -> float:
        """The mean value of a constraint's baseline on a block, over the settings that are known."""
        known = [evidence.baselines[baseline][block] for evidence in self.known]
        return float(np.nanmean([plugins.find("metrics", metric)(scores) for scores in known]))

    # -- the recommendation ------------------------------------------------------------------------

    def ranking(self) -> list[int]:
        """Numbers of the settings evaluated to the end, the best by their estimates first."""
        if self.finished:  # before, what is learned when must not depend on who asks
            self.learn(len(self.proposed) - 1)
        state = (len(self.answers), self.learned)
        if self.ranked[0] != state:
            self.ranked = (state, self.rank(self.evaluated()))
        return self.ranked[1]

    def rank(self, evaluated: Mapping[int, Values]) -> list[int]:
        """Rank settings by estimates of their mean final score; by their values if more is asked for."""
        numbers, values = list(evaluated), list(evaluated.values())
        settings = [self.proposed[n].setting for n in numbers]
        if self.search.objective == ("faa",) and not self.constraints and self.learned_anything and numbers:
            own = np.array([of.objective[0] for of in values])
            evidence = [found for n in numbers if (found := self.answers[n])]
            values = [Values((estimate,)) for estimate in self.estimates(own, settings, evidence)]
        return [numbers[i] for i in rank_settings(values, settings)]

    def estimates(
        self, own: np.ndarray, settings: Sequence[Setting], evidence: Sequence[Evidence]
    ) -> list[float]:
        """The settings' mean final scores, each drawn from its own value towards the model's prediction.

        Of the differences between the two, the share that evaluating on few examples explains is dropped.
        """
        points = [self.model.points_of(setting) for setting in settings]
        stacked = {path: np.concatenate([of[path] for of in points]) for path in self.axes}
        matrices, _ = self.model.predict(stacked)
        predicted = np.mean([R[:, -1].mean(axis=1) for R in matrices], axis=0)
        left = own - predicted - (own - predicted).mean()
        share = 1 - noise_of_evaluation(evidence) / max(float((left**2).mean()), 1e-12)
        return np.round(predicted + max(share, 0.0) * left, DIGITS).tolist()


def neighbours(levels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """All settings that differ from these in one value at most; (settings, steps, axes)."""
    steps = np.repeat(levels[:, None], int(sizes.sum()), axis=1)
    start = 0
    for axis, size in enumerate(sizes.tolist()):
        steps[:, start : start + size, axis] = np.arange(size)
        start += size
    return steps


def noise_of_evaluation(evidence: Sequence[Evidence]) -> float:
    """The mean variance that finite validation sets put on the mean final score of a setting."""
    found = []
    for of in evidence:
        blocks = []
        for scores in of.scores:
            p = np.clip(scores.R[-1], 0.05, 0.95)
            blocks.append(np.mean(p * (1 - p) / np.maximum(scores.sizes, 1)) / len(p))
        found.append(np.mean(blocks) / len(blocks))
    return float(np.mean(found))

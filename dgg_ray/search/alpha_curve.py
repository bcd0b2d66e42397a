"""The trade-off of a task's α: two monotone curves, the α to use read off them, and how sure that is.

    new(α)    score on the task right after learning it, falls
    old(α)    mean change of the earlier tasks' scores over the same stage, rises
              R[t, i] - R[t-1, i], mean over i < t

Every stage counts that learned the task after another one, also of runs that did not go on, and once,
whoever shares it. Its block is the order of the tasks so far with the seed; within a block, stages that
differ in this α alone are compared first, then those of equal other settings (monotone_fit.py). Bands are
over clusters of blocks (intervals.py) by the orders so far: equal ones with other seeds are one cluster, and
so are those with one first task and seed. Where one order so far has all that compares α, the curve is that
beginning's, its seeds are independent, and the sentences say so: of other beginnings such bands cover 85 %.
Between the α tried curves are interpolated; beyond them nothing is said. Where one α is shared by all tasks
it also shaped the parent of all but the second, and that is in the curves.

Which α to use. The mean final score of an order of T tasks changes with the α of a task that has p before
it by

    (p · Δold + Δnew) · k / T

if later stages keep the differences in proportion, each at k of its size, old tasks and the new one alike.
This is an approximation: later stages have an α of their own, and keep more or less of some tasks. The α
with the highest sum is the same for all k > 0, so it is read off at k = 1; `weight` makes old tasks count
for more. The curves are straight between the α tried, so no α between them is better than the best of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dgg_ray.config.sections import ALPHA, name_of
from dgg_ray.stats.monotone_fit import MonotoneFit, band_half_width, comparable_stages, fit_effects, isotonic

EXACT = 8  # more values of α between 0 and 1 than this are averaged in as many neighbouring groups
SERIES = {"new": False, "old": True}  # whether it rises with α
ENDS = {"new": (0.0, 1.0), "old": (-1.0, 1.0)}  # a score, and a change of scores
AFFORDABLE = 0.02  # of the new task's score


COLUMNS = ["task", "alpha", "new", "old", "earlier", "tasks", "block", "alike", "peers"]


@dataclass(frozen=True)
class Tradeoff:
    """The two curves of one task's α, at the K values of α tried, in their order.

    new, old: (K,), scores and changes of scores, at the mean level of the blocks.
    earlier, tasks: mean number of tasks before this one, and in an order.
    stages: the distinct stages behind it, columns of `stages_of`, and in new_level and old_level how far
        their block lies above the mean level.
    """

    task: str
    alpha: np.ndarray
    new: np.ndarray
    old: np.ndarray
    fit: MonotoneFit
    stages: pd.DataFrame

    @property
    def earlier(self) -> float:
        return float(self.stages["earlier"].mean())

    @property
    def tasks(self) -> float:
        return float(self.stages["tasks"].mean())

    @property
    def anchors(self) -> tuple[bool, bool]:
        """Return whether α = 0 and α = 1 were tried."""
        return bool(self.alpha[0] == 0), bool(self.alpha[-1] == 1)

    @property
    def beginning(self) -> str | None:
        """The tasks so far of the only order that compares α, joined by " > "; None where several do."""
        compares = self.stages.groupby("block")["alpha"].nunique() > 1
        found = {block.rpartition(", seed ")[0] for block in compares.index[compares]}
        return found.pop() if len(found) == 1 else None

    def at(self, alpha: float) -> tuple[float, float]:
        """(new, old) between the α tried; nan beyond them."""
        new, old = (np.interp(alpha, self.alpha, y, np.nan, np.nan) for y in (self.new, self.old))
        return float(new), float(old)

    def difference(self, i: int, j: int) -> dict[str, tuple[float, float, float]]:
        """new and old at the j-th α minus the i-th: (difference, low, high), a 95 % band within blocks."""
        draws = self.fit.resamples[:, j] - self.fit.resamples[:, i]
        half = band_half_width(draws, self.fit.blocks[[i, j]].min())
        gaps = [y[j] - y[i] for y in (self.new, self.old)]
        return {
            n: (float(g), *band(float(g), h)) for n, g, h in zip(SERIES, gaps, half.tolist(), strict=True)
        }

    def counts(self, weight: float = 1.0) -> np.ndarray:
        """Return the weights of a difference in new and in old in the mean final score; shape (2,)."""
        return np.array([1.0, weight * self.earlier]) / self.tasks

    def points(self, weight: float = 1.0) -> pd.DataFrame:
        """Return one row per α tried: both curves with 95 % bands, and what it does for the mean final score.

        gain: against the best α, ≤ 0; gain_low, gain_high: its band, paired within blocks, pointwise; nan
            for fewer than 2 clusters. open: it cannot be told apart from the best one.
        """
        count = self.counts(weight)
        value = np.column_stack([self.new, self.old]) @ count
        best = int(np.argmax(value.round(12)))  # of equals the lowest α: it learns the new task better
        draws, blocks = self.fit.resamples @ count, self.fit.blocks
        half = band_half_width(draws - draws[:, [best]], np.minimum(blocks, blocks[best]))
        rows = pd.DataFrame({"task": self.task, "alpha": self.alpha})
        width = band_half_width(self.fit.resamples, blocks[:, None])
        for i, name in enumerate(SERIES):
            y = getattr(self, name)
            rows[name] = y
            rows[f"{name}_low"], rows[f"{name}_high"] = band(y, width[:, i], ENDS[name])
        rows["gain"] = gain = (value - value[best]).round(12)  # equals but for rounding are equals
        rows["gain_low"], rows["gain_high"] = band(gain, half, (-count.sum(), count.sum()))
        rows["best"] = rows.index == best
        rows["open"] = ~(rows["gain_high"] < 0)  # nan too: without a band nothing is ruled out
        rows["stages"], rows["blocks"] = self.fit.stages, blocks
        return rows

    def at_least(self, loss: float = AFFORDABLE) -> float:
        """The largest α at which the new task loses at most `loss` of its score at the lowest α tried.

        FACIL's rule of how stable to be (Masana et al., TPAMI 2023, arXiv:2010.15277, after De Lange et al.,
        TPAMI 2022, arXiv:1909.08383); their loss is a share of the best score, here it is a difference.
        """
        floor = self.new[0] - loss - 1e-12
        last = int(np.flatnonzero(self.new >= floor)[-1])
        if last == len(self.alpha) - 1:
            return float(self.alpha[-1])
        around = [last + 1, last]  # np.interp wants what it reads to rise
        return float(np.interp(floor, self.new[around], self.alpha[around]))


def band(value: Any, half: Any, within: tuple[float, float] = (-1.0, 1.0)) -> tuple[Any, Any]:
    """(low, high) of value ± half, cut off where the scale ends, but never short of the value itself."""
    low, high = np.minimum(within[0], value), np.maximum(within[1], value)
    return np.maximum(value - half, low), np.minimum(value + half, high)


def fitted(stages: pd.DataFrame) -> list[Tradeoff]:
    """The curves of every task whose α was tried at two values or more that a block connects; by task.

    stages: as `stages_of` gives them.
    """
    made = [of_task(str(task), group) for task, group in stages.groupby("task", sort=True)]
    return [tradeoff for tradeoff in made if tradeoff]


def of_task(task: str, stages: pd.DataFrame) -> Tradeoff | None:
    """Fit one task's curves; None where fewer than two α can be compared."""
    values = np.sort(stages["alpha"].unique())
    inner = values[(values > 0) & (values < 1)]
    groups = [values[values <= 0], *np.array_split(inner, EXACT), values[values >= 1]]
    groups = [near for near in groups if len(near)]
    group = {value: i for i, near in enumerate(groups) for value in near}
    stages = stages.assign(place=stages["alpha"].map(group), number=numbers(stages["block"]))
    stages = stages.loc[comparable_stages(stages["place"], stages["number"])]
    kept, place = np.unique(stages["place"], return_inverse=True)
    if len(kept) < 2:
        return None
    block = numbers(stages["block"])
    peers = stages[["alike", "peers"]].apply(numbers)
    parts = [name.rpartition(", seed ") for name in stages["block"].unique()]
    effects = fit_effects(
        place, block, peers, stages[list(SERIES)], block_names=[(o, int(seed)) for o, _, seed in parts]
    )
    new, old = (
        isotonic(effects.levels[:, i], effects.stages, rising) for i, rising in enumerate(SERIES.values())
    )
    level = pd.DataFrame(effects.block_effects[block], stages.index, [f"{name}_level" for name in SERIES])
    stages = stages.drop(columns=["place", "number"]).join(level)
    alpha = np.array([groups[i].mean() for i in kept])
    return Tradeoff(task, alpha, new, old, effects, stages)


def numbers(labels: pd.Series) -> np.ndarray:
    """Labels as numbers from 0."""
    return pd.factorize(labels)[0]


# -- which stages there are ------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Runs of one order: what was searched, and how they scored.

    R: (n, T, T), scores in [0, 1], nan where not evaluated; seeds: (n,); values: searched setting, by its
        dotted path → (n,).
    """

    order: tuple[str, ...]
    R: np.ndarray
    seeds: Sequence[int]
    values: Mapping[str, np.ndarray]


class Guided(NamedTuple):
    """A stage of an order that has a searched α: its place, the tasks up to it, the path of its α and of
    those before it, and (printed, dotted) name of the other searched settings that bear on it."""

    place: int
    seen: tuple[str, ...]
    own: str
    before: list[str]
    others: list[tuple[str, str]]


def stages_of(
    groups: Iterable[Runs], parameters: Sequence[str], tasks: Collection[str], path: str = ALPHA
) -> pd.DataFrame:
    """Return one row per distinct stage that trained a task with a searched α after another one.

    task, alpha: the task and its α.
    new: its score right after its training. old: mean change of the earlier tasks' scores in this stage.
    earlier, tasks: number of tasks before it, and in the order.
    block: the order so far, with the seed.
    alike: the block and all searched settings but α; equal for stages that may be compared.
    peers: the same with the earlier tasks' α; equal for stages that differ in this α alone.

    Runs count as far as they were evaluated.

    parameters: dotted paths of the searched parameters. tasks: names of the evaluated tasks.
    """
    found: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    for runs in groups:
        for part in of_runs(runs, guided(runs.order, parameters, tasks, path)):
            for column, new in zip(COLUMNS, part, strict=True):
                found[column].extend(new)
    table = pd.DataFrame(found).astype({"alpha": float, "new": float, "old": float})
    once = table.dropna().drop_duplicates(["alpha", "peers"])  # peers hold the task
    return once.sort_values(["task", "alpha", "peers"], kind="stable", ignore_index=True)


def of_runs(runs: Runs, stages: Iterable[Guided]) -> Iterator[tuple[Any, ...]]:
    """Yield COLUMNS of the runs, stage by stage, each run up to where it was evaluated."""
    R, order = runs.R, runs.order
    evaluated = np.isfinite(np.where(np.tri(len(order), dtype=bool), R, 0).sum(axis=2))
    for t, seen, own, before, others in stages:
        kept = np.flatnonzero(evaluated[:, t])
        so_far = f"{' > '.join(seen)}, seed "
        block = [f"{so_far}{runs.seeds[int(i)]}" for i in kept]
        named = [
            [f", {name} {value}" for value in runs.values[parameter][kept]] for name, parameter in others
        ]
        alike = ["".join(parts) for parts in zip(block, *named, strict=True)]
        parents = np.array([runs.values[path][kept] for path in before], dtype=float)
        parents = parents.reshape(len(before), len(kept)).T
        peers = [f"{a}, α before {parent}" for a, parent in zip(alike, parents.tolist(), strict=True)]
        old = (R[kept, t, :t] - R[kept, t - 1, :t]).mean(axis=1)
        same = ([value] * len(kept) for value in (seen[-1], t, len(order)))
        task, earlier, tasks = same
        yield task, runs.values[own][kept], R[kept, t, t], old, earlier, tasks, block, alike, peers


def alpha_paths(parameters: Sequence[str], tasks: Collection[str], path: str = ALPHA) -> dict[str, str]:
    """Return task → the path that holds its α, for every task whose α was searched.

    path: the setting whose curves are fitted. It is DGG's α, or another setting that a strategy declares
        in `per_task`; these modules call its values α.
    """
    own = {p.removeprefix(f"{path}."): p for p in parameters if p.startswith(f"{path}.")}
    shared = dict.fromkeys(sorted(tasks), path) if path in parameters else {}
    return {**shared, **own}


def guided(
    order: Sequence[str], parameters: Sequence[str], tasks: Collection[str], path: str
) -> list[Guided]:
    """The stages of an order that learn a task with a searched α after another one."""
    paths, found = alpha_paths(parameters, tasks, path), []
    for t, task in enumerate(order):
        if t and task in paths:
            seen, before = tuple(order[: t + 1]), order[1:t]  # the first task of an order has no guidance
            # Of the others those that bear on a stage: of all tasks, and of the tasks seen.
            unseen = tuple(f".{name}" for name in {*tasks} - {*seen})
            rest = [path for path in parameters if path not in paths.values() and not path.endswith(unseen)]
            others = [(name_of(path), path) for path in rest]
            found.append(Guided(t, seen, paths[task], [paths[n] for n in before if n in paths], others))
    return found

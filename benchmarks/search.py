"""What a search finds, and what it takes: stagewise against whole settings, on studies whose best is known.

    python benchmarks/search.py                     30 studies of 6 tasks, on one order and on four
    python benchmarks/search.py --studies 60 --noise 0.02

Claim: stagewise with a beam of 2 is at least as near the best setting as 100 trials of TPE, with at most a
fifth of the stages trained. Rivals, in the same run and on the same studies: TPE and random search, 100
whole settings each, with every stage that settings share counted once, and the whole grid. A study is a
law of its own (simulate.py): an α per task out of 7 values, a buffer of 20.

Regret: the true mean final score of the best setting of the grid minus that of the recommended one, both
by the law without noise; mean ± standard error over the studies. Nothing here is timed: stages are counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from os import cpu_count
from typing import NamedTuple

import numpy as np

from dgg_ray import judge, methods
from dgg_ray.law import Law
from dgg_ray.sections import Knob, Orders, Search
from dgg_ray.simulate import MemoryStore, Simulated, imagined
from dgg_ray.strategies.dgg import DGG
from dgg_ray.study import Study

ALPHA, ALPHAS, BUFFER = "strategy.alpha", (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), 20
TRIALS = 100
STAGEWISE = [(1, 5), (2, 5), (3, 5), (2, 7)]  # beam, values tried at each task
STEPS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # trials after which TPE is looked at


class Found(NamedTuple):
    """stages: trained; regret: of what is recommended then."""

    stages: int
    regret: float


def imagine(tasks: int, orders: int, seed: int, noise: float, **search) -> Study:
    space = {ALPHA: Knob(values=ALPHAS, per_task=True)}
    return imagined(
        tasks, DGG(buffer=BUFFER), simulation=Law(seed=seed, noise=noise),
        orders=Orders("random", orders, seed), search=Search(space, seed=seed, **search),
    )  # fmt: skip


class Truth:
    """The law's mean final score of every setting of the grid, without noise: (values, …), an axis a task."""

    def __init__(self, study: Study) -> None:
        self.names, self.law = study.names, study.simulation
        axes = np.meshgrid(*[ALPHAS] * len(self.names), indexing="ij", sparse=True)
        self.alphas = dict(zip(self.names, axes, strict=True))
        finals = [self.final(order) for order in study.all_orders]
        self.scores = sum(finals) / len(finals)

    def final(self, order: tuple[str, ...]) -> np.ndarray:
        """`Law.learned` along an order, for all settings at once: it takes arrays for α."""
        skills = {order[0]: self.law.learned({}, order[0], 0.0, BUFFER, 8)[order[0]]}
        for task in order[1:]:
            skills = self.law.learned(skills, task, self.alphas[task], BUFFER, 8)  # type: ignore[arg-type]
        shape = [len(ALPHAS)] * len(self.names)
        return np.broadcast_to(sum(skills.values()) / len(order), shape)

    def regret(self, setting) -> float:
        # On one order the first task's α is never decided, and has no effect.
        place = tuple(ALPHAS.index(setting.get(f"{ALPHA}.{name}", 0.0)) for name in self.names)
        return float(self.scores.max() - self.scores[place])


def searched(study: Study, truth: Truth) -> Iterator[Found]:
    """At some whole settings and at the end: stages trained so far, regret of what is best so far."""
    store, method = MemoryStore(), methods.method(study)
    shop = Simulated.of(study, store)
    while (proposal := method.ask()) is not None:
        number, probe = proposal
        while chains := judge.needs(study, store, probe):
            for work in (work for chain in chains for work in chain):
                shop.obtain(work)
        method.tell(number, judge.evidence(study, store, probe))
        if method.finished or (study.search.method != "stagewise" and number + 1 in STEPS):
            winner = method.winner()
            yield Found(len(store.records), truth.regret(winner) if winner else np.nan)


def shown(regrets: np.ndarray) -> str:
    return f"{regrets.mean():.4f} ± {regrets.std(ddof=1) / len(regrets) ** 0.5:.4f}"


def table(orders: int, studies: int, tasks: int, noise: float) -> None:
    laws = [imagine(tasks, orders, seed, noise) for seed in range(studies)]
    truths = [Truth(study) for study in laws]
    print(f"{orders} order(s), {tasks} tasks, {len(ALPHAS)} α each, {studies} studies, noise {noise}")
    print(f"  {'search':<28}{'regret':>18}{'stages':>9}")

    def run(label: str, **search) -> np.ndarray:
        """(studies, looks, 2): stages, regret."""
        of = [imagine(tasks, orders, seed, noise, **search) for seed in range(studies)]
        paths = [list(searched(study, truth)) for study, truth in zip(of, truths, strict=True)]
        last = np.array([path[-1] for path in paths])
        print(f"  {label:<28}{shown(last[:, 1]):>18}{last[:, 0].mean():>9.0f}", flush=True)
        return last if search["method"] == "stagewise" else np.array(paths)

    ours = {
        (beam, tries): run(f"stagewise b = {beam}, tries {tries}", method="stagewise", beam=beam, tries=tries)
        for beam, tries in STAGEWISE
    }
    tpe = run(f"TPE, {TRIALS} trials", method="tpe", trials=TRIALS)
    run(f"random, {TRIALS} trials", method="random", trials=TRIALS)
    beginnings = {order[:t] for order in laws[0].all_orders for t in range(1, tasks + 1)}
    whole = sum(len(ALPHAS) ** (len(beginning) - 1) for beginning in beginnings)
    print(f"  {'the whole grid, by counting':<28}{'0 without noise':>18}{whole:>9,}")

    mine, theirs = ours[2, 5], tpe[:, -1]
    ratio = theirs[:, 0].mean() / mine[:, 0].mean()
    gap = mine[:, 1] - theirs[:, 1]
    holds = ratio >= 5 and gap.mean() <= 0
    print(f"  regret of b = 2, tries 5 minus TPE's, paired: {shown(gap)}; TPE's stages / its: {ratio:.1f}")
    print(f"  claim (no more regret, ≤ 1/5 of the stages): {'holds' if holds else 'DOES NOT HOLD'}")
    reached = np.flatnonzero(tpe[:, :, 1].mean(axis=0) <= mine[:, 1].mean())
    if len(reached):
        print(f"  TPE is as near after {tpe[:, reached[0], 0].mean():.0f} stages")
    else:
        print(f"  TPE is not as near within {TRIALS} trials")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of a stage's scores")
    parser.add_argument(
        "--orders", type=int, nargs="*", default=[1, 4], help="a table for each number of them"
    )
    o = parser.parse_args()
    print(f"{platform.machine()}, {cpu_count()} CPU cores")
    for orders in o.orders:
        table(orders, o.studies, o.tasks, o.noise)


if __name__ == "__main__":
    main()

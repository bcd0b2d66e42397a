"""What a search finds, and what it takes: stagewise against whole settings, on studies whose best is known.

    python benchmarks/search.py                     30 studies of 6 tasks, on one order and on four
    python benchmarks/search.py --studies 60 --noise 0.02
    python benchmarks/search.py --bend 1 --transfer 0.3     a law by which others feel a task's α
    python benchmarks/search.py --bend -2                   a law by which guidance pays later

Looked at: whether stagewise with a beam of 2 is at least as near the best setting as 100 trials of TPE, with
at most a fifth of the stages trained. That hangs on the law, and does not hold where guidance pays later.
Rivals, in the same run and on the same studies: TPE and random search, 100 whole settings each, with every
stage that settings share counted once, the best constant α, each of the 7 tried, and the whole grid. A study
is a law of its own (simulation.py): an α per task out of 7 values, a buffer of 20. The law as it is grants
what a search task by task takes for granted; with `bend` and `transfer` it does not. To TPE a list of values
is categories; as what it may be kept from by that, the same number of its trials on the range from 0 to 1
stands beside.

Regret: the true mean final score of the best setting of the grid minus that of the recommended one, both
by the law without noise; mean ± standard error over the studies. Nothing here is timed: stages are counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np

from dgg_ray.config.sections import Orders, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.search import comparison
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

ALPHA, ALPHAS, BUFFER = "strategy.alpha", (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), 20
LISTED, RANGE = (
    SearchParameter(values=ALPHAS, per_task=True),
    SearchParameter(low=0.0, high=1.0, per_task=True),
)
TRIALS = 100
STAGEWISE = [(1, 5), (2, 5), (3, 5), (2, 7)]  # beam, values tried at each task
STEPS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # trials after which TPE is looked at


class Found(NamedTuple):
    """stages: trained; regret: of what is recommended then."""

    stages: int
    regret: float


def imagine(tasks: int, orders: int, law: ResponseModel, parameter: SearchParameter = LISTED, **search) -> Study:
    return synthetic_study(
        tasks, DGG(buffer=BUFFER), simulation=law, orders=Orders("random", orders, law.seed),
        search=Search({ALPHA: parameter}, seed=law.seed, **search),
    )  # fmt: skip


class Truth:
    """The law's mean final scores without noise. best: of the settings on the grid."""

    def __init__(self, study: Study) -> None:
        self.names, self.law = study.task_names, study.simulation
        axes = np.meshgrid(*[ALPHAS] * len(self.names), indexing="ij", sparse=True)
        self.orders = study.all_orders
        shape = [len(ALPHAS)] * len(self.names)
        self.best = float(np.broadcast_to(self.mean(dict(zip(self.names, axes, strict=True))), shape).max())

    def mean(self, alphas: Mapping[str, Any]) -> Any:
        """Over the orders, of one setting or of all at once: `Law.learned` takes arrays for α."""
        finals = []
        for order in self.orders:
            skills: dict[str, Any] = {}
            for task in order:
                skills = self.law.trained(skills, task, alphas[task], BUFFER, 8)
            finals.append(sum(skills.values()) / len(order))
        return sum(finals) / len(finals)

    def regret(self, setting) -> float:
        # On one order the first task's α is never decided, and has no effect.
        constant = setting.get(ALPHA, 0.0)
        alphas = {name: setting.get(f"{ALPHA}.{name}", constant) for name in self.names}
        return self.best - float(self.mean(alphas))


def searched(study: Study, truth: Truth) -> Iterator[Found]:
    """At some whole settings and at the end: stages trained so far, regret of what is best so far."""
    store, method = MemoryStore(), comparison.make_search(study)
    reader = EvidenceReader(study, store)
    runner = SimulatedRunner.of(study, store)
    while (proposal := method.ask()) is not None:
        number, query = proposal
        while chains := reader.missing(query):
            for item in (item for chain in chains for item in chain):
                runner.run(item)
        method.tell(number, reader.evidence(query))
        if method.finished or (study.search.method != "stagewise" and number + 1 in STEPS):
            winner = method.winner()
            yield Found(len(store.records), truth.regret(winner) if winner else np.nan)


def shown(regrets: np.ndarray) -> str:
    return f"{regrets.mean():.4f} ± {regrets.std(ddof=1) / len(regrets) ** 0.5:.4f}"


def table(orders: int, tasks: int, laws: Sequence[ResponseModel]) -> None:
    plain = [imagine(tasks, orders, law) for law in laws]
    truths = [Truth(study) for study in plain]
    print(f"{orders} order(s), {tasks} tasks, {len(ALPHAS)} α each, {len(laws)} studies like {laws[0]}")
    print(f"  {'search':<28}{'regret':>18}{'stages':>9}")

    def run(label: str, **search) -> np.ndarray:
        """(studies, looks, 2): stages, regret."""
        of = [imagine(tasks, orders, law, **search) for law in laws]
        paths = [list(searched(study, truth)) for study, truth in zip(of, truths, strict=True)]
        last = np.array([path[-1] for path in paths])
        print(f"  {label:<28}{shown(last[:, 1]):>18}{last[:, 0].mean():>9.0f}", flush=True)
        return last if search["method"] == "stagewise" else np.array(paths)

    ours = {
        (beam, tries): run(
            f"stagewise b = {beam}, tries {tries}", method="stagewise", beam=beam, values_per_task=tries
        )
        for beam, tries in STAGEWISE
    }
    tpe = run(f"TPE, {TRIALS} trials", method="tpe", trials=TRIALS)
    run(f"TPE, {TRIALS} trials, range", method="tpe", trials=TRIALS, parameter=RANGE)
    run(f"random, {TRIALS} trials", method="random", trials=TRIALS)
    run("the best constant α", method="grid", parameter=SearchParameter(values=ALPHAS))
    beginnings = {order[:t] for order in plain[0].all_orders for t in range(1, tasks + 1)}
    whole = sum(len(ALPHAS) ** (len(beginning) - 1) for beginning in beginnings)
    print(f"  {'the whole grid, by counting':<28}{'0 without noise':>18}{whole:>9,}")

    mine, theirs = ours[2, 5], tpe[:, -1]
    ratio = theirs[:, 0].mean() / mine[:, 0].mean()
    gap = mine[:, 1] - theirs[:, 1]
    holds = ratio >= 5 and gap.mean() <= 0
    print(f"  regret of b = 2, tries 5 minus TPE's, paired: {shown(gap)}; TPE's stages / its: {ratio:.1f}")
    print(
        f"  under this law, no more regret with ≤ 1/5 of the stages: {'holds' if holds else 'DOES NOT HOLD'}"
    )
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
    parser.add_argument("--bend", type=float, default=0.0, help="of the law (simulation.py)")
    parser.add_argument("--transfer", type=float, default=0.0, help="of the law (simulation.py)")
    o = parser.parse_args()
    print(f"{platform.machine()}, {cpu_count()} CPU cores")
    like = ResponseModel(noise=o.noise, bend=o.bend, transfer=o.transfer)
    for orders in o.orders:
        table(orders, o.data.tasks, [replace(like, seed=seed) for seed in range(o.studies)])


if __name__ == "__main__":
    main()

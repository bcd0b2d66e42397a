"""Regret and cost of searches: stagewise against whole settings, on studies whose best setting is known.

    python benchmarks/search.py                     30 studies of 6 tasks, on one order and on four
    python benchmarks/search.py --studies 60 --noise 0.02
    python benchmarks/search.py --bend 1 --transfer 0.3     each α affects other tasks
    python benchmarks/search.py --bend -2                   guidance pays later

The claim: stagewise search with a beam of 2 comes at least as near the best setting as 100 trials of TPE, and
trains at most a fifth of the stages. It depends on the response model, and fails where guidance pays later.

Baselines, in the same run and on the same studies: TPE and random search with 100 whole settings each (stages
that settings share count once), the best constant α out of 7 values, and the whole grid. Each study has a
response model of its own (simulation.py), an α per task out of 7 values, and a buffer of 20. The default
response model satisfies the assumptions of a search task by task; with `bend` and `transfer` it does not. TPE
treats a list of values as categories, which may hold it back, so TPE on the range from 0 to 1 is measured
too.

Regret is the true mean final score of the best setting of the grid minus that of the recommended setting,
both without noise; mean ± standard error over the studies. Nothing is timed: the cost is a number of stages.
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
CHECKED_TRIALS = (
    1,
    2,
    3,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    70,
    80,
    90,
    100,
)  # trials after which a search is checked


class Progress(NamedTuple):
    """A moment of a search. stages: trained so far; regret: of the setting that is recommended then."""

    stages: int
    regret: float


def make_study(
    tasks: int, orders: int, model: ResponseModel, parameter: SearchParameter = LISTED, **search
) -> Study:
    return synthetic_study(
        tasks, DGG(buffer=BUFFER), simulation=model, orders=Orders("random", orders, model.seed),
        search=Search({ALPHA: parameter}, seed=model.seed, **search),
    )  # fmt: skip


class Truth:
    """The true mean final scores of settings, without noise. best: the highest on the grid."""

    def __init__(self, study: Study) -> None:
        self.names, self.model = study.task_names, study.simulation
        axes = np.meshgrid(*[ALPHAS] * len(self.names), indexing="ij", sparse=True)
        self.orders = study.all_orders
        shape = [len(ALPHAS)] * len(self.names)
        self.best = float(np.broadcast_to(self.mean(dict(zip(self.names, axes, strict=True))), shape).max())

    def mean(self, alphas: Mapping[str, Any]) -> Any:
        """Return the mean over the orders; α may be arrays, for many settings at once."""
        finals = []
        for order in self.orders:
            skills: dict[str, Any] = {}
            for task in order:
                skills = self.model.trained(skills, task, alphas[task], BUFFER, 8)
            finals.append(sum(skills.values()) / len(order))
        return sum(finals) / len(finals)

    def regret(self, setting) -> float:
        # With one order, the first task's α is never searched, and has no effect.
        constant = setting.get(ALPHA, 0.0)
        alphas = {name: setting.get(f"{ALPHA}.{name}", constant) for name in self.names}
        return self.best - float(self.mean(alphas))


def run_search(study: Study, truth: Truth) -> Iterator[Progress]:
    """Yield the progress after some whole settings and at the end."""
    store, method = MemoryStore(), comparison.make_search(study)
    reader = EvidenceReader(study, store)
    runner = SimulatedRunner.of(study, store)
    while (proposal := method.ask()) is not None:
        number, query = proposal
        while chains := reader.missing(query):
            for item in (item for chain in chains for item in chain):
                runner.run(item)
        method.tell(number, reader.evidence(query))
        if method.finished or (study.search.method != "stagewise" and number + 1 in CHECKED_TRIALS):
            winner = method.winner()
            yield Progress(len(store.records), truth.regret(winner) if winner else np.nan)


def mean_and_error(regrets: np.ndarray) -> str:
    return f"{regrets.mean():.4f} ± {regrets.std(ddof=1) / len(regrets) ** 0.5:.4f}"


def print_table(orders: int, tasks: int, models: Sequence[ResponseModel]) -> None:
    plain = [make_study(tasks, orders, model) for model in models]
    truths = [Truth(study) for study in plain]
    print(f"{orders} order(s), {tasks} tasks, {len(ALPHAS)} α each, {len(models)} studies like {models[0]}")
    print(f"  {'search':<28}{'regret':>18}{'stages':>9}")

    def run(label: str, **search) -> np.ndarray:
        """Return (studies, checks, 2): stages and regret."""
        studies = [make_study(tasks, orders, model, **search) for model in models]
        paths = [list(run_search(study, truth)) for study, truth in zip(studies, truths, strict=True)]
        last = np.array([path[-1] for path in paths])
        print(f"  {label:<28}{mean_and_error(last[:, 1]):>18}{last[:, 0].mean():>9.0f}", flush=True)
        return last if search["method"] == "stagewise" else np.array(paths)

    stagewise = {
        (beam, values): run(
            f"stagewise b = {beam}, {values} values", method="stagewise", beam=beam, values_per_task=values
        )
        for beam, values in STAGEWISE
    }
    tpe = run(f"TPE, {TRIALS} trials", method="tpe", trials=TRIALS)
    run(f"TPE, {TRIALS} trials, range", method="tpe", trials=TRIALS, parameter=RANGE)
    run(f"random, {TRIALS} trials", method="random", trials=TRIALS)
    run("the best constant α", method="grid", parameter=SearchParameter(values=ALPHAS))
    beginnings = {order[:t] for order in plain[0].all_orders for t in range(1, tasks + 1)}
    grid_stages = sum(len(ALPHAS) ** (len(beginning) - 1) for beginning in beginnings)
    print(f"  {'the whole grid (counted)':<28}{'0 without noise':>18}{grid_stages:>9,}")

    beam_2, tpe_end = stagewise[2, 5], tpe[:, -1]
    ratio = tpe_end[:, 0].mean() / beam_2[:, 0].mean()
    gap = beam_2[:, 1] - tpe_end[:, 1]
    holds = ratio >= 5 and gap.mean() <= 0
    print(f"  regret of b = 2, 5 values minus TPE's, paired: {mean_and_error(gap)}; stage ratio: {ratio:.1f}")
    print(
        "  under this response model, no more regret with ≤ 1/5 of the stages: "
        f"{'holds' if holds else 'DOES NOT HOLD'}"
    )
    reached = np.flatnonzero(tpe[:, :, 1].mean(axis=0) <= beam_2[:, 1].mean())
    if len(reached):
        print(f"  TPE reaches the same regret after {tpe[:, reached[0], 0].mean():.0f} stages")
    else:
        print(f"  TPE does not reach it within {TRIALS} trials")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of a stage's scores")
    parser.add_argument(
        "--orders", type=int, nargs="*", default=[1, 4], help="numbers of orders, a table each"
    )
    parser.add_argument("--bend", type=float, default=0.0, help="of the response model (simulation.py)")
    parser.add_argument("--transfer", type=float, default=0.0, help="of the response model (simulation.py)")
    o = parser.parse_args()
    print(f"{platform.machine()}, {cpu_count()} CPU cores")
    model = ResponseModel(noise=o.noise, bend=o.bend, transfer=o.transfer)
    for orders in o.orders:
        print_table(orders, o.tasks, [replace(model, seed=seed) for seed in range(o.studies)])


if __name__ == "__main__":
    main()

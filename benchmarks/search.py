"""Regret against stages of searches, on simulated studies whose best setting is known.

    python benchmarks/search.py                                 all kinds and searches, 1 order, 30 studies
    python benchmarks/search.py --studies 200 --orders 1 4 --csv regret.csv --figure regret.png
    python benchmarks/search.py --models peak heavy --searches stage_model tpe

Each study has 6 tasks, an α per task out of 7 values, a buffer of 20, and a response model
(config/simulation.py) with constants of its own, of one of these kinds:

    own        a task's α acts in its own stage alone
    felt       more of a high score is forgotten, and new tasks suffer where old ones are forgotten
    delayed    half-forgotten tasks are lost faster, so guidance pays later; a change of α costs a new task
    peak       guidance protects near one α, and not far below or above it
    heavy      felt, peak and change together, with noise that has heavy tails (Student t, 3 degrees)

Searches: `stage_model`; `stagewise` with several beams; Optuna's TPE on the listed values and on the range
from 0 to 1; random settings; one α for all tasks.

Regret is the true mean final score of the best setting of the grid minus that of the setting which the search
recommends after so many stages, both without noise, in points; mean ± standard error over the studies. It is
below 0 where a value between those of the grid is better. Stages are counted for each order, and stages that
settings share count once. A search without an evaluated setting at a number of stages has no regret there;
one that ended earlier keeps its last. Nothing is timed, and all searches are on the same studies.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import cpu_count
from pathlib import Path
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
LISTED = SearchParameter(values=ALPHAS, per_task=True)
RANGE = SearchParameter(low=0.0, high=1.0, per_task=True)
CONSTANT = SearchParameter(values=ALPHAS)
BUDGETS = (50, 100, 200, 400)  # stages for each order
TICKS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # of the regret, in points
MODELS = {
    "own": ResponseModel(),
    "felt": ResponseModel(bend=1, transfer=0.3),
    "delayed": ResponseModel(bend=-2, change=0.3),
    "peak": ResponseModel(peak=0.3),
    "heavy": ResponseModel(bend=1, transfer=0.3, change=0.3, peak=0.3, tails=3),
}
SEARCHES: dict[str, tuple[SearchParameter, dict[str, Any]]] = {
    "stage_model": (LISTED, {"method": "stage_model"}),
    "stagewise 2, 5 values": (LISTED, {"method": "stagewise", "beam": 2, "values_per_task": 5}),
    "stagewise 2": (LISTED, {"method": "stagewise", "beam": 2, "values_per_task": 7}),
    "stagewise 3": (LISTED, {"method": "stagewise", "beam": 3, "values_per_task": 7}),
    "stagewise 6": (LISTED, {"method": "stagewise", "beam": 6, "values_per_task": 7}),
    "tpe": (LISTED, {"method": "tpe"}),
    "tpe range": (RANGE, {"method": "tpe"}),
    "random": (LISTED, {"method": "random"}),
    "constant": (CONSTANT, {"method": "grid"}),
}


class Moment(NamedTuple):
    """A moment of a search. stages: asked for so far; regret: of the setting that is recommended then."""

    stages: int
    regret: float


def make_study(tasks: int, orders: int, model: ResponseModel, name: str) -> Study:
    """A study of one search, which ends at the largest budget where it has no end of its own."""
    parameter, options = SEARCHES[name]
    if options["method"] in ("stage_model", "tpe", "random"):
        options = {**options, "stages": BUDGETS[-1] * orders}
    return synthetic_study(
        tasks, DGG(buffer=BUFFER), simulation=model, orders=Orders("random", orders, model.seed),
        search=Search({ALPHA: parameter}, seed=model.seed, **options),
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
            before: Any = 0.0
            for task in order:
                skills = self.model.trained(skills, task, alphas[task], BUFFER, 8, before)
                before = alphas[task] if len(skills) > 1 else 0.0
            finals.append(sum(skills.values()) / len(order))
        return sum(finals) / len(finals)

    def regret(self, setting: Mapping[str, Any]) -> float:
        constant = setting.get(ALPHA, 0.0)
        alphas = {name: setting.get(f"{ALPHA}.{name}", constant) for name in self.names}
        return self.best - float(self.mean(alphas))


def run_search(study: Study, truth: Truth) -> Iterator[Moment]:
    """Carry out a search; yield a moment after each answer."""
    store, method = MemoryStore(), comparison.make_search(study)
    reader, runner = EvidenceReader(study, store), SimulatedRunner.of(study, store)
    last, regret = None, np.nan
    while (proposal := method.ask()) is not None:
        number, query = proposal
        while chains := reader.missing(query):
            for item in (item for chain in chains for item in chain):
                runner.run(item)
        method.tell(number, reader.evidence(query))
        winner = method.winner()
        if winner is not None:
            regret = truth.regret(winner) if winner != last else regret
            last = winner
            yield Moment(len(store.records), regret)


def regrets_at(moments: Sequence[Moment], orders: int) -> list[float]:
    """The regret at each budget: of the last moment that it allows; nan where it allows none."""
    return [
        next((m.regret for m in reversed(moments) if m.stages <= budget * orders), np.nan)
        for budget in BUDGETS
    ]


class Curve(NamedTuple):
    """Regrets of a search, in points: (studies, budgets). stages: at its end, for each order."""

    regrets: np.ndarray
    stages: float

    @property
    def mean(self) -> np.ndarray:
        return np.where(self.whole, self.regrets.mean(axis=0), np.nan)

    @property
    def error(self) -> np.ndarray:
        return self.regrets.std(axis=0, ddof=1) / len(self.regrets) ** 0.5

    @property
    def whole(self) -> np.ndarray:
        """At which budgets every study has a regret."""
        return ~np.isnan(self.regrets).any(axis=0)


def curve_of(name: str, models: Sequence[ResponseModel], tasks: int, orders: int) -> Curve:
    found, ends = [], []
    for model in models:
        study = make_study(tasks, orders, model, name)
        moments = list(run_search(study, Truth(study)))
        found.append(regrets_at(moments, orders))
        ends.append(moments[-1].stages / orders)
    return Curve(100 * np.array(found), float(np.mean(ends)))


def describe(curve: Curve) -> str:
    cells = [
        f"{mean:6.2f} ± {error:4.2f}" if known else f"{'–':>13}"
        for mean, error, known in zip(curve.mean, curve.error, curve.whole, strict=True)
    ]
    return "".join(f"{cell:>16}" for cell in cells) + f"{curve.stages:>9.0f}"


def write_csv(file: Path, curves: Mapping[tuple[str, int, str], Curve]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["response_model", "orders", "search", "stages", "regret", "error", "studies"])
        for (kind, orders, name), curve in curves.items():
            for row in zip(BUDGETS, curve.mean, curve.error, strict=True):
                writer.writerow([kind, orders, name, *row, len(curve.regrets)])


def draw(file: Path, curves: Mapping[tuple[str, int, str], Curve]) -> None:
    """Draw mean regret ± standard error against stages: a panel for each kind and number of orders."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(kind for kind, _, _ in curves))
    counts = list(dict.fromkeys(orders for _, orders, _ in curves))
    names = list(dict.fromkeys(name for _, _, name in curves))
    figure, axes = plt.subplots(
        len(counts), len(kinds), figsize=(3 * len(kinds), 2.8 * len(counts) + 0.6), sharex=True, squeeze=False
    )
    for (kind, orders, name), curve in curves.items():
        panel = axes[counts.index(orders), kinds.index(kind)]
        bold = {"linewidth": 2.4, "zorder": 3} if name == names[0] else {"linewidth": 1}
        panel.errorbar(
            BUDGETS,
            curve.mean,
            curve.error,
            marker="o",
            markersize=3,
            label=name,
            color=f"C{names.index(name)}",
            **bold,
        )
        panel.set_title(f"{kind}, {orders} order{'s' * (orders > 1)}", fontsize=9)
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        low, high = panel.get_ylim()
        panel.set_yticks([tick for tick in TICKS if low <= tick <= high], labels=None)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("stages for each order")
    for row in axes:
        row[0].set_ylabel("regret, points")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--orders", type=int, nargs="*", default=[1], help="numbers of orders, a table each")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--csv", type=Path, help="file for all means and errors")
    parser.add_argument("--figure", type=Path, help="file for the curves")
    o = parser.parse_args()
    print(f"{platform.machine()}, {cpu_count()} CPU cores; regret in points ± standard error")
    curves: dict[tuple[str, int, str], Curve] = {}
    for orders in o.orders:
        for kind in o.models:
            models = [replace(MODELS[kind], seed=seed) for seed in range(o.studies)]
            print(f"{kind}, {orders} order(s), {o.tasks} tasks, {len(ALPHAS)} α each, {o.studies} studies")
            print(f"  {'search':<22}" + "".join(f"{f'{b} stages':>16}" for b in BUDGETS) + f"{'ends at':>9}")
            for name in o.searches:
                curve = curves[kind, orders, name] = curve_of(name, models, o.tasks, orders)
                print(f"  {name:<22}{describe(curve)}", flush=True)
    if o.csv:
        write_csv(o.csv, curves)
    if o.figure:
        draw(o.figure, curves)


if __name__ == "__main__":
    main()

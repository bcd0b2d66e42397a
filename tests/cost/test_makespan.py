"""Wall time: on paper, compared with simulations of whole studies, and its interval."""

import numpy as np
import pytest

from dgg_ray.config.sections import Orders, Search, SearchParameter, Workers
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.makespan import Node, WorkRequest, build_dag, critical_path
from dgg_ray.cost.model import CostModel, profiling_items
from dgg_ray.cost.rates import Measurement, Part, RateModel
from dgg_ray.planning.plan import dry_run_search, plan
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

SPACE = {"strategy.alpha": SearchParameter(values=(0.0, 0.05, 0.1, 0.3, 1.0), per_task=True)}


def study_of(method, orders, groups, tasks=6, trials=12, **search):
    return synthetic_study(
        tasks,
        DGG(buffer=20),
        orders=Orders("random", orders),
        search=Search(SPACE, method=method, trials=trials, **search),
        workers=Workers(groups=groups, engine="simulated"),
    )


def profiled(study):
    """Return a store that holds the study's profiles and nothing else."""
    store = MemoryStore()
    for item in profiling_items(study):
        SimulatedRunner.of(study, store).run(item)
    return store


# -- on paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "wall"),
    # A chain of 3 + 3 + 3 and four of 2, in the order of requests. One group: all of it. Two: the second of
    # the chain, requested at 3, is behind all the others and starts at 5. Four: the chain alone.
    [(1, 17), (2, 11), (4, 9)],
)
def test_the_makespan_is_the_longest_chain_or_the_sum(groups, wall):
    predecessors, seconds = [[], [0], [1], [], [], [], []], [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    assert sum(seconds[node] for node in critical_path(predecessors, seconds, groups)) == wall


def test_a_node_that_waits_in_the_queue_is_on_the_path_of_the_group_that_takes_it():
    # Two groups: 0 until 5 and 1 until 4, then 2 from 4 until 7, after 1 in the same group.
    assert critical_path([[], [], []], [5.0, 4.0, 3.0], 2) == [1, 2]


def test_a_barrier_takes_no_worker_group_and_lets_nothing_past():
    predecessors, seconds = [[], [], [0, 1], [2], [2]], [1.0, 4.0, 0.0, 2.0, 3.0]
    assert critical_path(predecessors, seconds, 2) == [1, 4]
    assert critical_path(predecessors, seconds, 1) == [0, 1, 3, 4]


def test_work_requested_twice_is_done_once_and_waits_for_its_parent_and_the_earlier_requests():
    study = synthetic_study(2, DGG())
    first, second = study.runs[0].stages
    evaluation, other = study.runs.evaluation("task0", "test"), study.runs.evaluation("task1", "test")
    requests = [
        WorkRequest([WorkItem(first, (evaluation,)), WorkItem(second, (evaluation,))]),
        WorkRequest([WorkItem(first, (evaluation,))]),
        WorkRequest([WorkItem(second, (evaluation, other))], after=2),
    ]

    def cost_of(stage, trains, evaluations):
        return [stage.task, trains, *(evaluation.task for evaluation in evaluations)]

    assert list(build_dag(requests, {}, cost_of)) == [
        Node(["task0", True, "task0"], []),
        Node(["task1", True, "task0"], [0]),
        Node([], [0, 1]),  # the first request is finished
        Node([], [2, 0]),  # and the second
        Node(["task1", False, "task1"], [3, 0, 1]),
    ]
    stored = {first.key: {evaluation.key}}
    assert [node.cost for node in build_dag(requests[:2], stored, cost_of)] == [["task1", True, "task0"]]


# -- compared with simulations ---------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize(("method", "orders"), [("tpe", 1), ("stagewise", 1), ("tpe", 4)])
def test_the_predicted_wall_time_is_within_a_tenth_of_a_simulation(method, orders):
    store = profiled(study_of(method, orders, 1))
    for groups in (1, 4, 8):
        study = study_of(method, orders, groups)
        predicted = plan(study, store).cost_forecast.remaining
        simulated = simulate_study(study).hours
        assert predicted.amounts()["wall hours"].mean == pytest.approx(simulated, rel=0.1)
        assert predicted.wall.mean >= 0.999 * predicted.seconds.mean / groups


# -- its interval ----------------------------------------------------------------------------------


def draw_wall_times(study):
    """Draw rates and times a thousand times, and yield the predicted and the true wall time.

    Each task is profiled in three rounds, tasks differ, and stages scatter by 10 %. Only training takes time
    here, and the work items are exactly those predicted.
    """
    names, scatter, rng = list(study.task_names), 0.1, np.random.default_rng(0)
    requests = [
        WorkRequest([WorkItem(item.stage) for item in request.work_request.work_items], request.after)
        for request in dry_run_search(EvidenceReader(study, MemoryStore())).requests
    ]
    model = CostModel(study, MemoryStore())
    nodes = list(build_dag(requests, {}, model.parts))
    predecessors, stages = (
        [node.predecessors for node in nodes],
        [i for i, node in enumerate(nodes) if node.cost],
    )
    counts = np.array([[nodes[i].cost[0].counts.get(name, 0.0) for name in names] for i in stages])
    profiles = [Part("train", {name: 64.0}, 8) for name in names for _ in range(3)]
    setup = RateModel(["", *names], [Measurement(Part("setup", {"": 1.0}, 8), 1e-6)] * 3)
    for _ in range(1000):
        pace = np.exp(0.5 * rng.standard_normal(len(names)))
        amounts = 64 * np.repeat(pace, 3) * np.exp(scatter * rng.standard_normal(len(profiles)))
        train = RateModel(["", *names], list(map(Measurement, profiles, amounts)))
        model._rates = {"train": train, "setup": setup}
        seconds = np.zeros(len(nodes))
        seconds[stages] = counts @ pace * np.exp(scatter * rng.standard_normal(len(stages)))
        path = critical_path(predecessors, seconds.tolist(), study.workers.groups)
        yield model.predict(requests).wall, seconds[path].sum()


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("parallel", "least"),
    # Two settings at a time: as it should be. Four in step on four groups: the last of four is waited for.
    [(2, 930), (4, 900)],
)
def test_950_of_a_thousand_wall_intervals_hold_and_900_where_all_groups_wait(parallel, least):
    study = study_of("tpe", 1, 4, tasks=3, trials=6, parallel=parallel)
    held = sum(wall.low <= true <= wall.high for wall, true in draw_wall_times(study))
    assert least <= held <= 970

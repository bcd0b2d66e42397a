"""Wall time: on paper, beside rehearsals of whole studies, and its interval."""

import numpy as np
import pytest

from dgg_ray.config.sections import Orders, Search, SearchParameter, Workers
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.makespan import Ask, longest, nodes
from dgg_ray.cost.model import CostModel, profiling_items
from dgg_ray.cost.rates import Part, Rate
from dgg_ray.planning.plan import foresee, plan
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import rehearse
from dgg_ray.training.simulated import MemoryStore, Simulated, imagined

SPACE = {"strategy.alpha": SearchParameter(values=(0.0, 0.05, 0.1, 0.3, 1.0), per_task=True)}


def study(method, orders, groups, tasks=6, trials=12, **search):
    return imagined(
        tasks,
        DGG(buffer=20),
        orders=Orders("random", orders),
        search=Search(SPACE, method=method, trials=trials, **search),
        workers=Workers(groups=groups, engine="simulated"),
    )


def measured(of):
    """A store that holds the study's profiles and nothing else."""
    store = MemoryStore()
    for item in profiling_items(of):
        Simulated.of(of, store).obtain(item)
    return store


# -- on paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "wall"),
    # A chain of 3 + 3 + 3 and four of 2, in the order of asking. One fleet: all of it. Two: the second of
    # the chain, asked for at 3, is behind all the others and begins at 5. Four: the chain alone.
    [(1, 17), (2, 11), (4, 9)],
)
def test_the_end_waits_for_the_longest_chain_or_for_the_sum(groups, wall):
    after, seconds = [[], [0], [1], [], [], [], []], [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    assert sum(seconds[node] for node in longest(after, seconds, groups)) == wall


def test_a_piece_that_waits_in_the_queue_is_on_the_path_of_the_fleet_it_gets():
    # Two groups: 0 until 5 and 1 until 4, then 2 from 4 until 7, after 1 on the same fleet.
    assert longest([[], [], []], [5.0, 4.0, 3.0], 2) == [1, 2]


def test_a_gate_takes_no_fleet_and_lets_nothing_past():
    after, seconds = [[], [], [0, 1], [2], [2]], [1.0, 4.0, 0.0, 2.0, 3.0]
    assert longest(after, seconds, 2) == [1, 4]
    assert longest(after, seconds, 1) == [0, 1, 3, 4]


def test_what_is_asked_for_twice_is_done_once_and_waits_for_its_parent_and_for_what_was_told():
    of = imagined(2, DGG())
    first, second = of.runs()[0].stages
    evaluation, other = of.evaluation("task0", "test"), of.evaluation("task1", "test")
    asks = [
        Ask([WorkItem(first, (evaluation,)), WorkItem(second, (evaluation,))]),
        Ask([WorkItem(first, (evaluation,))]),
        Ask([WorkItem(second, (evaluation, other))], after=2),
    ]

    def parts_of(stage, trained_tasks, evaluations):
        return [stage.task, trained_tasks, *(evaluation.task for evaluation in evaluations)]

    assert list(nodes(asks, {}, parts_of)) == [
        (["task0", True, "task0"], []),
        (["task1", True, "task0"], [0]),
        ([], [0, 1]),  # the first ask is over
        ([], [2, 0]),  # and the second
        (["task1", False, "task1"], [3, 0, 1]),
    ]
    there = {first.key: {evaluation.key}}
    assert [node.parts for node in nodes(asks[:2], there, parts_of)] == [["task1", True, "task0"]]


# -- beside rehearsals -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "orders"), [("tpe", 1), ("stagewise", 1), ("tpe", 4)])
def test_wall_time_is_within_a_tenth_of_what_a_rehearsal_takes(method, orders):
    store = measured(study(method, orders, 1))
    for groups in (1, 4, 8):
        of = study(method, orders, groups)
        predicted = plan(of, store).outlook.rest
        assert predicted.amounts()["wall hours"].mean == pytest.approx(rehearse(of).hours, rel=0.1)
        assert predicted.wall.mean >= 0.999 * predicted.seconds.mean / groups


# -- its interval ----------------------------------------------------------------------------------


def drawn(of):
    """Prediction and what came, for rates and times that are drawn: three rounds of each task's profile, tasks
    that differ, stages that scatter by 10 %. Only learning takes time here, and the works are as foreseen.
    """
    names, scatter, rng = list(of.names), 0.1, np.random.default_rng(0)
    asks = [
        Ask([WorkItem(w.stage) for w in one.ask.work_items], one.after)
        for one in foresee(of, MemoryStore())[0]
    ]
    model = CostModel(of, MemoryStore())
    found = list(nodes(asks, {}, model.parts_of))
    after, stages = [node.after for node in found], [i for i, node in enumerate(found) if node.parts]
    counts = np.array([[found[i].parts[0].counts.get(name, 0.0) for name in names] for i in stages])
    probed = [Part("learn", {name: 64.0}, 8) for name in names for _ in range(3)]
    begin = Rate(["", *names], [(Part("begin", {"": 1.0}, 8), 1e-6)] * 3)
    for _ in range(1000):
        pace = np.exp(0.5 * rng.standard_normal(len(names)))
        took = 64 * np.repeat(pace, 3) * np.exp(scatter * rng.standard_normal(len(probed)))
        rate = Rate(["", *names], list(zip(probed, took, strict=True)))
        model.__dict__["rates"] = {"learn": rate, "begin": begin}
        came = np.zeros(len(found))
        came[stages] = counts @ pace * np.exp(scatter * rng.standard_normal(len(stages)))
        path = longest(after, came.tolist(), of.workers.groups)
        yield model.predict(asks).wall, came[path].sum()


@pytest.mark.parametrize(
    ("parallel", "least"),
    # Two settings at a time: as it should be. Four in step on four groups: the last of four is waited for.
    [(2, 930), (4, 900)],
)
def test_of_a_thousand_wall_intervals_950_hold_what_came_and_900_where_all_fleets_wait(parallel, least):
    of = study("tpe", 1, 4, tasks=3, trials=6, parallel=parallel)
    held = sum(wall.low <= came <= wall.high for wall, came in drawn(of))
    assert least <= held <= 970

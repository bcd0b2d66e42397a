"""The search over tasks, on simulated studies whose optimum is known."""

from itertools import product

import numpy as np
import pytest

from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.stagewise import Stagewise, halving_depths
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

VALUES = (0.0, 0.2, 0.5, 1.0)
EXACT = ResponseModel(noise=0.0, evaluation_noise=False, seed=3)
PER_TASK = {"strategy.alpha": SearchParameter(values=VALUES, per_task=True)}


def study(tasks=4, orders=1, law=EXACT, space=None, **search):
    search = {"method": "stagewise", "values_per_task": 4, "audit_fraction": 0.0, **search}
    return synthetic_study(
        tasks,
        DGG(alpha=0.1, buffer=20),
        simulation=law,
        orders=Orders("random", orders),
        search=Search(space or PER_TASK, **search),
    )


def truth(of, setting):
    """Mean final score over the study's orders, by the law."""
    at, finals = of.at(setting), []
    for order in of.all_orders:
        skills: dict[str, float] = {}
        for task in order:
            alpha, rank = at.strategy.alpha_for(task), at.adapter.rank
            skills = of.simulation.trained(skills, task, alpha, at.strategy.buffer, rank)
        finals.append(np.mean(list(skills.values())))
    return float(np.mean(finals))


def best_of_all(of):
    names = [f"strategy.alpha.{name}" for name in of.task_names]
    return max(truth(of, dict(zip(names, v, strict=True))) for v in product(VALUES, repeat=len(names)))


@pytest.mark.parametrize("seed", range(4))
def test_without_noise_one_order_ends_at_the_best_of_all_settings(seed):
    of = study(law=ResponseModel(noise=0.0, evaluation_noise=False, seed=seed))
    found = simulate_study(of, compare=False)
    assert truth(of, found.search.winner()) == pytest.approx(best_of_all(of), abs=1e-3)


def by_hand(of, fails=lambda query: False):
    """The search walked query by query on a store of its own: (search, shop)."""
    search, runner = Stagewise(of), SimulatedRunner.of(of, MemoryStore())
    reader = EvidenceReader(of, runner.store)
    while (proposal := search.ask()) is not None:
        number, query = proposal
        for item in (item for chain in reader.missing(query) for item in chain):
            runner.run(item)
        search.tell(number, None if fails(query) else reader.evidence(query))
    return search, runner


def test_a_level_learns_one_stage_for_each_value_of_each_kept_state():
    # One order of 4 tasks: 4 values on 1 state, then 4 on each of 2, twice; then the revision.
    search, runner = by_hand(study(beam=2))
    levels = [query.depth for query in search.proposed if query.block is None]
    assert levels[:20] == [2] * 4 + [3] * 8 + [4] * 8
    revised = [query for query in search.proposed if query.block is not None]
    assert len(revised) == 3 * 4  # a value for each task but the first
    # The winner's path was kept all along: only its other values at each place, known, are looked at.
    assert len(runner.store.records) <= 1 + 4 + 8 + 8 + 3


def test_a_wider_beam_and_no_noise_are_never_worse():
    scores = [
        truth(o := study(tasks=5, beam=b), simulate_study(o, compare=False).search.winner()) for b in (1, 3)
    ]
    assert scores[1] >= scores[0] - 1e-12


@pytest.mark.parametrize("orders", [1, 3])
def test_what_is_found_does_not_depend_on_the_number_of_worker_groups(orders):
    of = study(tasks=4, orders=orders, law=ResponseModel(seed=1), audit_fraction=0.2)
    a, b = simulate_study(of, 1, compare=False), simulate_study(of, 7, compare=False)
    assert a.search.proposed == b.search.proposed
    assert a.search.winner() == b.search.winner()
    assert a.store.records.keys() == b.store.records.keys()
    assert a.hours > b.hours


def test_several_orders_share_values_by_the_tasks_name():
    of = study(tasks=4, orders=3, law=ResponseModel(noise=0.0, evaluation_noise=False, seed=2))
    found = simulate_study(of, compare=False)
    winner = found.search.winner()
    placed = {order[t] for order in of.all_orders for t in range(1, 4)}
    assert set(winner) == {f"strategy.alpha.{name}" for name in placed}
    assert truth(of, winner) == pytest.approx(best_of_all(of), abs=0.003)


def test_the_refinement_mends_values_that_were_chosen_at_an_early_place():
    # Three orders decide a task where it comes first; what is best later shows only then.
    of = study(tasks=5, orders=4, law=ResponseModel(noise=0.0, evaluation_noise=False, seed=5), beam=1)
    search = simulate_study(of, compare=False).search
    early = search.proposed[next(n for n, p in enumerate(search.proposed) if p.block is not None) - 1]
    judged = search.evaluated()
    assert truth(of, search.winner()) >= truth(of, early.setting)
    assert max(judged.values(), key=lambda v: v.objective) == judged[search.best()]


def test_rank_and_buffer_are_outer_choices_that_are_halved_along_the_tasks():
    space = {
        **PER_TASK,
        "adapter.rank": SearchParameter(values=(2, 32)),
        "strategy.buffer": SearchParameter(values=(5, 100)),
    }
    search = simulate_study(study(tasks=4, space=space, global_candidates=4), compare=False).search
    winner = search.winner()
    assert (winner["adapter.rank"], winner["strategy.buffer"]) == (32, 100)  # the law: more is better
    outer = lambda p: (p.setting["adapter.rank"], p.setting["strategy.buffer"])  # noqa: E731
    by_depth = {d: {outer(p) for p in search.proposed if p.depth == d} for d in (2, 3, 4)}
    assert [len(by_depth[d]) for d in (2, 3, 4)] == [4, 2, 1]


def test_halvings_leave_one_combination_before_the_last_task():
    assert halving_depths(1, 6) == set()
    assert halving_depths(4, 6) == {3, 5}
    assert halving_depths(8, 9) == {3, 5, 7}


def test_the_audit_finishes_dropped_states_and_recommends_one_that_wins():
    of = study(tasks=5, law=ResponseModel(seed=4, noise=0.02), audit_fraction=0.3, beam=1)
    search = simulate_study(of, compare=False).search
    assert search.audited
    values = search.evaluated()
    for dropped in search.audited:
        query = search.proposed[dropped.number]
        assert dropped.state.setting.items() <= query.setting.items()
        assert query.depth == 5
        assert dropped.state.depth < 5
    assert values[search.best()].objective == max(v.objective for v in values.values())
    spent = sum(5 - d.state.depth for d in search.audited)
    assert spent <= 0.3 / 0.7 * len(search.extrapolator.states)


def test_a_failed_state_is_dropped_and_the_search_goes_on():
    of = study(tasks=3)
    second = f"strategy.alpha.{of.all_orders[0][1]}"
    best = by_hand(of)[0].winner()[second]
    search, _ = by_hand(of, fails=lambda query: query.setting.get(second) == best)
    assert search.finished
    assert search.winner()[second] != best


def test_ranges_are_searched_in_two_rounds():
    space = {"strategy.alpha": SearchParameter(low=0.0, high=1.0, per_task=True)}
    of = study(tasks=4, space=space, values_per_task=6, law=EXACT)
    found = simulate_study(of, compare=False).search
    assert truth(of, found.winner()) > best_of_all(of) - 0.01
    second = [p for p in found.proposed if p.depth == 2 and p.block is None]
    assert len({tuple(p.setting.items()) for p in second}) == 6


def test_a_constraint_holds_for_the_winner_where_it_can():
    space = {"strategy.alpha": SearchParameter(values=(0.0, 0.3, 0.6, 1.0), per_task=True)}
    free = study(tasks=4, space=space, objective=("stability",), law=EXACT)
    bound = study(
        tasks=4,
        space=space,
        objective=("stability",),
        constraints=("plasticity >= finetune - 5 points",),
        law=EXACT,
    )
    unbound, kept = simulate_study(free, compare=False).search, simulate_study(bound, compare=False).search
    assert kept.evaluated()[kept.best()].excess == (0.0,)

    def plasticity(of, setting):
        own = [
            of.simulation.trained({"x": 0.5}, t, of.at(setting).strategy.alpha_for(t), 0, 8)[t]
            for t in of.all_orders[0][1:]
        ]
        return np.mean(own)

    nothing = {f"strategy.alpha.{name}": 0.0 for name in bound.task_names}
    assert plasticity(bound, kept.winner()) >= plasticity(bound, nothing) - 0.05
    assert plasticity(free, unbound.winner()) < plasticity(bound, kept.winner())


def test_the_baselines_of_the_search_are_one_value_for_all_and_the_value_after_two_tasks():
    baselines = ("runner_up", "constant", "two_task", "replay")
    of = synthetic_study(
        4,
        DGG(alpha=0.1, buffer=20),
        simulation=EXACT,
        orders=Orders("random", 2),
        search=Search(PER_TASK, method="stagewise", values_per_task=4),
        protocol=Protocol(held_out=2, baselines=baselines),
    )
    found = simulate_study(of)
    assert list(found.final) == ["dgg", *baselines]
    constant = {f"strategy.alpha.{n}": v for n in of.task_names for v in [0]}
    best = max(VALUES, key=lambda v: truth(of, dict.fromkeys(constant, v)))
    assert set(found.final["constant"].study.strategy.alpha.values()) == {best}
    assert len(set(found.final["two_task"].study.strategy.alpha.values())) == 1
    assert truth(of, found.search.winner()) >= truth(of, dict.fromkeys(constant, best)) - 1e-9
    orders = {order for at in found.final.values() for order, _ in at.blocks}
    assert not orders & set(of.all_orders)
    assert {seed for order, seed in found.final["dgg"].blocks} == {1, 2}


def test_the_refinement_may_keep_a_value_of_a_range_that_the_best_run_has():
    space = {"strategy.alpha": SearchParameter(low=0.0, high=1.0, per_task=True)}
    search = simulate_study(study(tasks=3, orders=3, space=space, values_per_task=4), compare=False).search
    first = next(n for n, p in enumerate(search.proposed) if p.block is not None)
    whole = [p.setting for p in search.proposed[:first] if p.depth == 3]
    tried = {p.setting["strategy.alpha.task0"] for p in search.proposed[first:] if p.block is not None}
    assert tried & {setting["strategy.alpha.task0"] for setting in whole}


def test_a_refinement_of_which_every_query_fails_leaves_the_best_as_it_was():
    search, _ = by_hand(study(tasks=3), fails=lambda query: query.block is not None)
    assert search.finished
    assert search.winner() is not None

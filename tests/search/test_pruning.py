"""A setting that is behind is given up, and the best one is not."""

from dataclasses import replace

import numpy as np
import pytest

from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.core.rng import make_rng
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.planning.plan import plan
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.pruning import (
    PruningTest,
    critical_value,
    paired_spread,
    should_prune,
    trails_beyond_chance,
)
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study

BLOCKS = tuple(((("a", "b")), seed) for seed in range(4))
ALONE = (0, 1, 2, 3)  # each block is a cluster


def run(*finals, own=0.5, depth=2):
    """Matrices of two tasks that both end at each of `finals`."""
    found = []
    for final in finals:
        R = np.array([[own, np.nan], [final, final]])
        R[depth:] = np.nan
        found.append(ScoreMatrix(R, np.ones(2), np.zeros(2)))
    return found


def pruning_test(level=0.3, spread=0.1, freedom=10, best_scores=None):
    return PruningTest(({},), level, best_scores or {"a": 0.9, "b": 0.9}, ((spread, freedom),), ALONE)


def test_the_margin_is_students_t_of_the_pooled_spread():
    # level 0.3 over 3 looks: t(0.9, 10) = 1.372; one block: given up beyond 0.1372 behind
    theirs = [run(0.8, 0.8, 0.8, 0.8)]
    assert critical_value(0.1, 10) == pytest.approx(1.372, abs=1e-3)
    assert not should_prune(pruning_test(), ["faa"], BLOCKS, run(0.8 - 0.137), theirs)
    assert should_prune(pruning_test(), ["faa"], BLOCKS, run(0.8 - 0.138), theirs)
    # two blocks: 0.1372 / √2 = 0.0970 behind in the mean
    assert not should_prune(pruning_test(), ["faa"], BLOCKS, run(0.75, 0.66), theirs)  # 0.095
    assert should_prune(pruning_test(), ["faa"], BLOCKS, run(0.75, 0.65), theirs)  # 0.1


def test_the_candidates_own_spread_counts_where_it_is_larger():
    theirs = [run(0.8, 0.8, 0.8, 0.8)]
    assert should_prune(pruning_test(spread=0.01), ["faa"], BLOCKS, run(0.75, 0.75, 0.75), theirs)
    assert not should_prune(
        pruning_test(spread=0.01), ["faa"], BLOCKS, run(0.95, 0.95, 0.35), theirs
    )  # as far behind


def test_between_tasks_the_best_that_is_known_stands_for_what_is_to_come():
    theirs = [run(0.8, 0.8, 0.8, 0.8)]
    # After task a at 0.5, with b hoped at 0.9: (0.5 + 0.9) / 2 = 0.7, 0.1 behind; at b = 0.7: 0.2 behind
    assert not should_prune(pruning_test(), ["faa"], BLOCKS, run(0.0, depth=1), theirs)
    assert should_prune(pruning_test(best_scores={"b": 0.7}), ["faa"], BLOCKS, run(0.0, depth=1), theirs)
    assert not should_prune(
        pruning_test(best_scores={}), ["faa"], BLOCKS, run(0.0, depth=1), theirs
    )  # nothing known: 1


def test_with_two_objectives_it_must_be_behind_in_both():
    two = PruningTest(({},), 0.3, {}, ((0.1, 10), (0.1, 10)), ALONE)
    theirs = [run(0.8, 0.8, 0.8, 0.8)]
    both = ["stability", "plasticity"]
    assert should_prune(two, both, BLOCKS, run(0.3), theirs)
    better = run(0.3)
    better[0].R[1, 1] = 0.9  # plasticity
    assert not should_prune(two, both, BLOCKS, better, theirs)


def test_what_was_run_to_its_end_is_judged_and_not_pruned():
    theirs = [run(0.8, 0.8, 0.8, 0.8)]
    assert not should_prune(pruning_test(), ["faa"], BLOCKS, run(0.1, 0.1, 0.1, 0.1), theirs)


def test_the_spread_is_the_residual_of_settings_and_blocks():
    # Residuals ±0.1 in a 2 × 2 table: sum of squares 0.04, one degree of freedom, twice that
    table = np.array([[0.5, 0.7], [0.7, 0.5]])
    assert paired_spread(table, (0, 1)) == (pytest.approx((2 * 0.04) ** 0.5), 1)
    assert paired_spread(table + np.array([[0.0, 0.3]]), (0, 1)) == (pytest.approx(0.08**0.5), 1)
    assert paired_spread(np.ones((1, 5)), range(5))[1] == 0
    assert paired_spread(np.eye(3), (0, 0, 0))[1] == 0  # one cluster: nothing to estimate it from


def test_seeds_of_an_order_are_one_cluster_of_the_spread_and_of_the_differences():
    # Means 0.5 and 0.7 again, two seeds each; within clusters ±0.1 for one setting, ∓0.1 for the other:
    # sum of squares 8 · 0.01 on 2 degrees of freedom, of which a mean over two has taken half away.
    table = np.array([[0.4, 0.6, 0.6, 0.8], [0.8, 0.6, 0.6, 0.4]])
    assert paired_spread(table, (0, 0, 1, 1)) == (pytest.approx((2 * (0.04 + 0.04 / 2)) ** 0.5), 1)
    # level 0.1, spread 0.1: given up beyond 0.1372 behind in one cluster, whatever its seeds, 0.0970 in two
    behind = np.array([-0.13] * 3)
    assert not trails_beyond_chance(behind, 0.1, 0.1, 10, (0, 0, 0, 1))
    assert trails_beyond_chance(behind, 0.1, 0.1, 10, (0, 1, 1, 2))
    assert not trails_beyond_chance(
        np.array([-0.14, -0.14, -0.05]), 0.1, 0.1, 10, (0, 0, 1)
    )  # 0.095 in the mean


def simulated(seed, level, low=0.0, high=1.0):
    return synthetic_study(
        3,
        DGG(alpha=0.1, buffer=20),
        simulation=ResponseModel(seed=seed, noise=0.01),
        orders=Orders("random", 4),
        own_seeds=True,
        search=Search(
            {"strategy.alpha": SearchParameter(low=low, high=high, per_task=True)},
            method="random",
            trials=8,
            prune_level=level,
            seed=seed,
        ),
    )


def truth(of, setting):
    at, total = of.at(setting), 0.0
    for order in of.all_orders:
        skills: dict[str, float] = {}
        for task in order:
            skills = of.simulation.trained(skills, task, at.strategy.alpha_for(task), 20, 8)
        total += sum(skills.values())
    return total


def search_and_count(seed, level, **space):
    """Return whether the best setting was pruned, how many were, and how many stages were trained."""
    of = simulated(seed, level, **space)
    found = simulate_study(of, 4, compare=False)
    search = found.search
    best = max(range(8), key=lambda n: truth(of, search.proposed[n].setting))
    judged = search.evaluated()
    return best not in judged, 8 - len(judged), found.stages


def simulate_pruning(
    level, gap, spreads, objectives, studies=1000, orders=3, seeds=1, own=0.0, tied=True, seed=0
):
    """Return the share of studies whose best setting was pruned, and the mean number of pruned settings.

    A setting's score on a block is the mean of two tasks' that lose nothing; after the first, the second
    counts as the highest seen, as in a run. Half of the noise is the block's, and of the other half the
    share `own` is what an order does to the setting with all its seeds; `tied`: as the search takes them.
    The first in `spreads` is best, by `gap` in every objective; settings come in a random order, each
    judged against all before it.
    """
    rng = make_rng(seed, "", "races")
    lost = many = 0
    for _ in range(studies):
        shape = (len(spreads), orders * seeds, 2, objectives)
        noise = (1 - own) ** 0.5 * rng.normal(size=shape)
        if own:  # the same on both tasks: spread as wide as the mean over the tasks is of the rest
            alike = rng.normal(size=(len(spreads), orders, 1, objectives)) / 2**0.5
            noise = noise + own**0.5 * np.repeat(alike, seeds, axis=1)
        scores = np.reshape(spreads, (-1, 1, 1, 1)) * noise + rng.normal(size=shape[1:])
        scores[0] += gap
        clusters = np.repeat(np.arange(orders), seeds) if tied else np.arange(orders * seeds)
        judged: list[int] = []
        for candidate in rng.permutation(len(spreads)):
            if len(judged) > 1 and is_pruned(scores, judged, candidate, level, clusters):
                lost, many = lost + (candidate == 0), many + 1
            else:
                judged.append(candidate)
    return lost / studies, many / studies


def is_pruned(scores, judged, candidate, level, clusters):
    """Return whether any look prunes it: between the tasks, or at the end of a block but the last."""
    ends, objectives = scores.mean(axis=2), range(scores.shape[3])
    blocks = scores.shape[1]
    spread = [paired_spread(ends[judged, :, j], clusters) for j in objectives]
    best = judged[int(ends[judged].mean(axis=(1, 2)).argmax())]
    hope = scores[judged, :, 1].max(axis=(0, 1))
    extrapolated = (scores[candidate, :, 0] + hope) / 2
    each = level / len(judged) / (blocks - 1)
    for b in range(blocks):
        for last in (extrapolated[b], ends[candidate, b])[: 1 if b == blocks - 1 else 2]:
            d = np.vstack([ends[candidate, :b], last]) - ends[best, : b + 1]
            if all(trails_beyond_chance(d[:, j], each, *spread[j], clusters) for j in objectives):
                return True
    return False


LANDSCAPES = {  # settings' spreads, the best one's lead, objectives
    "equal": ([1.0] * 5, 0.0, 1),
    "apart": ([1.0] * 5, 0.5, 1),
    "unequal": ([1.0, 0.3, 0.3, 2.0, 3.0], 0.0, 1),
    "the best is noisy": ([1.5, 1.0, 1.0, 1.0, 1.0], 0.0, 1),
    "two objectives": ([1.0] * 5, 1.0, 2),
}


@pytest.mark.statistics
@pytest.mark.parametrize("level", [0.05, 0.2])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_best_setting_is_pruned_less_often_than_the_level_says(name, level):
    spreads, gap, objectives = LANDSCAPES[name]
    lost, many = simulate_pruning(level, gap, spreads, objectives)
    assert lost < level
    assert many > lost


@pytest.mark.statistics
def test_it_is_so_where_an_order_acts_on_what_a_setting_does_with_all_its_seeds():
    # 17 % are lost where the seeds of an order count as independent.
    settings = {"studies": 200, "orders": 2, "seeds": 3, "own": 0.9}
    assert simulate_pruning(0.05, 0.0, [1.0] * 8, 1, **settings)[0] < 0.05
    assert simulate_pruning(0.05, 0.0, [1.0] * 8, 1, **settings, tied=False)[0] > 0.08


def test_a_pruned_search_saves_stages_and_keeps_the_best_where_settings_differ():
    pruned = [search_and_count(seed, 0.2) for seed in range(5)]
    full = [search_and_count(seed, None) for seed in range(5)]
    assert not any(lost for lost, _, _ in pruned)
    assert sum(many for _, many, _ in pruned) >= 5
    assert sum(many for _, many, _ in full) == 0
    assert sum(stages for _, _, stages in pruned) < sum(stages for _, _, stages in full)


def test_plan_says_on_how_many_independent_clusters_a_pruned_search_rests():
    said = plan(simulated(0, 0.05), MemoryStore()).pruning_test
    assert said.startswith(
        "over 4 independent clusters of 4 blocks, the best setting is lost in at most 5% of"
    )
    one = replace(simulated(0, 0.05), orders=Orders("shared_prefix", 2), own_seeds=False)
    assert plan(one, MemoryStore()).pruning_test.startswith("prunes nothing")
    assert not plan(simulated(0, None), MemoryStore()).pruning_test


def test_a_pruned_search_is_the_same_on_any_number_of_worker_groups():
    a, b = (simulate_study(simulated(3, 0.2), groups, compare=False) for groups in (1, 5))
    assert a.search.proposed == b.search.proposed
    assert a.search.evaluated() == b.search.evaluated()
    assert a.store.records.keys() == b.store.records.keys()


def test_the_sampler_is_told_the_best_ones_score_plus_the_differences_so_far():
    of = simulated(1, 0.2)
    search = simulate_study(of, compare=False).search
    given = [n for n in range(8) if n not in search.evaluated() and search.answers[n] is not None]
    assert given
    for n in given:
        baseline = next(
            m
            for m, p in enumerate(search.proposed)
            if p.setting == search.proposed[n].pruning_test.incumbents[0]
        )
        assert search.estimate(n).objective[0] < search.evaluated()[baseline].objective[0]


@pytest.mark.parametrize("seed", [0, 2])
def test_a_pruned_search_read_again_from_its_store_is_the_search_that_was_run(seed):
    # Values of a list repeat, and an order's first α has no effect: settings share stages, so that the store
    # holds more of a setting that was given up than it asked for itself.
    of = synthetic_study(
        3,
        DGG(alpha=0.1, buffer=20),
        simulation=ResponseModel(seed=seed, noise=0.02),
        orders=Orders("random", 2),
        seeds=(0, 1),
        search=Search(
            {"strategy.alpha": SearchParameter(values=(0.0, 0.3, 1.0), per_task=True)},
            method="random",
            trials=24,
            prune_level=0.3,
            parallel=4,
            seed=seed,
        ),
        protocol=Protocol(baselines=("constant", "replay")),
    )
    found = simulate_study(of, 3)
    assert len(found.search.evaluated()) < 20
    again = EvidenceReader(of, found.store).fast_forward_past_failures(make_search(of))
    assert again.proposed == found.search.proposed
    assert again.evaluated() == found.search.evaluated()
    assert again.finished

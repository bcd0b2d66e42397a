"""The search proposes the same settings, however fast or in whatever order results come."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from study_samples import with_data

from dgg_ray.config.sections import Search, SearchParameter
from dgg_ray.config.study import Study, WarmStart
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded
from dgg_ray.search.objective import Evidence, dominates, simplicity
from dgg_ray.search.optuna_search import OptunaSearch, propose
from dgg_ray.search.pruning import PruningTest
from dgg_ray.strategies.dgg import DGG


def study(**search):
    space = {
        "strategy.alpha": SearchParameter(values=(0.0, 0.1, 0.5, 1.0), per_task=True),
        "strategy.buffer": SearchParameter(low=4, high=64, log=True),
        "adapter.rank": SearchParameter(values=(2, 4, 8)),
    }
    readers = {"digits": Embedded(), "words": Embedded()}
    return Study("toy", Model(), readers, DGG(), search=Search(**{"space": space, "trials": 18, **search}))


def scored(final: float, new: float = 0.5) -> Evidence:
    """Evidence of one block: two tasks that end at `final` each, stability; the second began at `new`."""
    R = np.array([[0.5, np.nan], [final, final]])
    R[1, 1] = new
    return Evidence([ScoreMatrix(R, sizes=np.array([1.0, 0.0]), base=np.zeros(2))], {})


def value(setting):
    alpha = setting["strategy.alpha.digits"] + 2 * setting["strategy.alpha.words"]
    final = 0.9 - (alpha - 1) ** 2 / 10 - setting.get("strategy.buffer", 0) / 1000
    return scored(final, setting["adapter.rank"] / 10)


def finish(proposals, seed):
    """Judge everything, in an order and with pauses that the seed shuffles; setting 5 fails."""
    shuffle, open_ = random.Random(seed), []
    while not proposals.finished:
        if (proposal := proposals.ask()) and shuffle.random() < 0.9:
            open_.append(proposal)
            continue
        if proposal:
            proposals.return_query(*proposal)
        number, query = open_.pop(shuffle.randrange(len(open_))) if open_ else proposals.ask()
        failed = number == 5
        proposals.tell(number, None if failed else value(query.setting))
    return [query.setting for query in proposals.proposed]


@pytest.mark.parametrize("method", ["tpe", "random", "nsga2"])
@pytest.mark.parametrize("objective", [("faa",), ("stability", "plasticity")])
def test_proposals_do_not_depend_on_the_order_of_results(method, objective):
    sequences = [
        finish(OptunaSearch(study(method=method, objective=objective, parallel=4)), seed) for seed in range(6)
    ]
    assert all(sequence == sequences[0] for sequence in sequences)
    assert len(sequences[0]) == 18


def test_proposals_are_the_same_with_a_database_that_optuna_opens(tmp_path: Path):
    database = tmp_path / "search.db"
    with_database = OptunaSearch(study(), database)
    assert finish(with_database, 1) == finish(OptunaSearch(study()), 2)

    opened = optuna.load_study(study_name="toy", storage=f"sqlite:///{database}")
    states = [trial.state.name for trial in opened.trials]
    assert (states.count("COMPLETE"), states.count("FAIL")) == (17, 1)
    assert opened.trials[with_database.best()].value == opened.best_value  # of equals the simplest


def test_more_parallel_settings_wait_for_older_results():
    proposals = OptunaSearch(study(parallel=3))
    asked = [proposals.ask() for _ in range(5)]
    assert [a and a[0] for a in asked] == [0, 1, 2, None, None]
    proposals.tell(1, scored(0.0))
    assert proposals.ask() is None  # 3 must know 0
    proposals.tell(0, scored(0.0))
    number, _ = proposals.ask()
    assert number == 3


def known(alpha, depth=0, **more):
    return WarmStart({"strategy.alpha.digits": alpha, **more}, (), depth)


def proposed(warm, **search):
    """Values of α for the digits, as they are proposed without any result known."""
    proposals = OptunaSearch(with_data(study(parallel=18, **search), warm_starts=tuple(warm)))
    return [proposals.ask()[1].setting for _ in range(18)]


@pytest.mark.parametrize("method", ["tpe", "random", "nsga2"])
def test_a_warm_start_tries_three_settings_of_another_study_and_all_of_one_it_goes_on_from(method):
    alphas = [0.5, 0.1, 1.0, 0.0]
    ranks = {"adapter.rank": 8, "strategy.buffer": 33}
    settings = proposed([known(a, **ranks) for a in alphas], method=method)
    assert [s["strategy.alpha.digits"] for s in settings[:3]] == alphas[:3]
    assert [s["strategy.buffer"] == 33 for s in settings[:4]] == [True, True, True, False]
    settings = proposed([known(a, 1, **ranks) for a in alphas], method=method)
    assert [s["strategy.alpha.digits"] for s in settings[:4]] == alphas
    assert len({s["strategy.alpha.words"] for s in settings}) > 1  # what they do not say is sampled


def test_whole_settings_with_their_values_are_results_to_the_sampler():
    whole = {"strategy.alpha.words": 0.0, "adapter.rank": 2, "strategy.buffer": 4}
    told = OptunaSearch(
        with_data(study(), warm_starts=(known(0.5, **whole)._replace(objectives=(0.7,)), known(0.1, **whole)))
    )
    assert [t.value for t in told.optuna.get_trials(states=[optuna.trial.TrialState.COMPLETE])] == [0.7]


def test_the_grid_proposes_every_combination_once():
    space = {
        "adapter.rank": SearchParameter(values=(2, 4, 8)),
        "strategy.alpha": SearchParameter(values=(0.0, 0.5), per_task=True),
    }
    proposals = OptunaSearch(study(method="grid", space=space))
    settings = {tuple(sorted(s.items())) for s in finish(proposals, 0)}
    assert proposals.count == len(settings) == 3 * 2 * 2


def test_a_log_range_between_whole_numbers_gives_whole_numbers():
    buffers = {s["strategy.buffer"] for s in finish(OptunaSearch(study(method="random")), 0)}
    assert all(isinstance(b, int) and 4 <= b <= 64 for b in buffers)


def test_of_a_pareto_front_the_highest_mean_is_recommended():
    proposals = OptunaSearch(study(objective=("stability", "plasticity"), trials=4, parallel=4))
    for values in ([0.2, 0.9], [0.6, 0.6], [0.5, 0.6], [0.8, 0.3]):
        proposals.tell(proposals.ask()[0], scored(*values))
    assert proposals.best() == 1  # 2 is dominated; 1.2 beats 1.1 and 1.1


def test_of_equal_settings_the_simplest_is_recommended():
    proposals = OptunaSearch(study(trials=3, parallel=3))
    for values in ([0.4], [0.7], [0.7]):
        proposals.tell(proposals.ask()[0], scored(*values))
    assert proposals.best() == min((1, 2), key=lambda n: simplicity(proposals.proposed[n].setting))


def test_a_point_does_not_dominate_itself():
    assert dominates([0.5, 0.6], [0.5, 0.5])
    assert not dominates([0.5, 0.5], [0.5, 0.5])
    assert not dominates([0.6, 0.4], [0.5, 0.5])


def test_a_setting_reaches_the_field_that_its_path_names():
    at = study().at({"strategy.alpha.words": 0.5, "adapter.rank": 4})
    assert at.strategy.alpha == {"digits": 0.1, "words": 0.5}
    assert at.adapter.rank == 4
    with pytest.raises(KeyError, match="alhpa"):
        study().at({"strategy.alhpa": 0.5})


def test_a_baseline_takes_over_the_settings_that_it_shares():
    dgg = replace(study(), strategy=DGG(alpha=0.3, buffer=17))
    assert dgg.with_strategy("replay").strategy.buffer == 17
    assert dgg.with_strategy("l2sp").strategy.buffer == 17
    assert dgg.with_strategy("finetune").strategy.effect("words", ("digits",)) == {}


def test_equal_settings_to_begin_with_are_one():
    parameters = {"adapter.rank": IntDistribution(2, 64)}
    first = [{"adapter.rank": 8}] * 3
    found = propose(parameters, 0, 4, [], first)
    assert found[0] == {"adapter.rank": 8}
    assert len({s["adapter.rank"] for s in found}) == len(found) == 4


def test_a_setting_given_up_in_its_first_block_is_told_as_the_worst_that_is_known():
    # Backward transfer is negative: 0 would be the best of all.
    raced = OptunaSearch(study(objective=("backward_transfer",), trials=6, parallel=1))
    for final in (0.4, 0.3):  # 0.5 at first: −0.1 and −0.2
        raced.tell(raced.ask()[0], scored(final))
    number, query = raced.ask()
    best = raced.proposed[0].setting
    raced.proposed[number] = query._replace(pruning_test=PruningTest((best,), 0.1, {}, ((0.1, 3),), (0,)))
    unfinished = scored(0.2)
    unfinished.scores[0].R[1] = np.nan
    raced.answers[number] = unfinished
    assert raced.estimate(number).objective == pytest.approx((-0.2,))

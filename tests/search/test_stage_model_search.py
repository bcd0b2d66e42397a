"""The search with a model of single stages, on simulated studies whose optimum is known."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from dgg_ray.config.decisions import Decision
from dgg_ray.config.sections import Orders, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import WarmStart
from dgg_ray.core import plugins
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.objective import Evidence, hypervolume
from dgg_ray.search.stage_model_search import StageModelSearch, neighbours, noise_of_evaluation
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

VALUES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ALPHA = "strategy.alpha"
PER_TASK = {ALPHA: SearchParameter(values=VALUES, per_task=True)}
LAW = ResponseModel(seed=3)
EXACT = replace(LAW, noise=0.0, evaluation_noise=False)


def study(tasks=4, orders=1, law=LAW, space=PER_TASK, **search):
    search = {"method": "stage_model", "trials": 15, **search}
    return synthetic_study(
        tasks, DGG(buffer=20), simulation=law, orders=Orders("random", orders), search=Search(space, **search)
    )


class Walk:
    """A search, answered by the simulated stages of a store of its own."""

    def __init__(self, of):
        self.search, self.store = make_search(of), MemoryStore()
        self.reader, self.runner = EvidenceReader(of, self.store), SimulatedRunner.of(of, self.store)

    def answer(self, number, query):
        while chains := self.reader.missing(query):
            for item in (item for chain in chains for item in chain):
                self.runner.run(item)
        self.search.tell(number, self.reader.evidence(query))

    def finish_queries(self):
        self.finish()
        return self.search.proposed

    def finish(self, seed=None):
        """Answer everything, in an order and with pauses that the seed shuffles."""
        shuffle, open_ = random.Random(seed), []
        while not self.search.finished:
            proposal = self.search.ask()
            if proposal and (seed is None or shuffle.random() < 0.9):
                open_.append(proposal)
                if seed is not None:
                    continue
            elif proposal:
                self.search.return_query(*proposal)
            if open_:
                self.answer(*open_.pop(shuffle.randrange(len(open_))))
        return [query.setting for query in self.search.proposed]


def truth(of, setting):
    """The mean final score over the study's orders, without noise."""
    at, finals = of.at(setting), []
    for order in of.all_orders:
        skills, before = {}, 0.0
        for task in order:
            alpha = at.strategy.alpha_for(task)
            skills = of.simulation.trained(skills, task, alpha, at.strategy.buffer, at.adapter.rank, before)
            before = alpha if len(skills) > 1 else 0.0
        finals.append(np.mean(list(skills.values())))
    return float(np.mean(finals))


def best_of_all(of):
    names = [f"{ALPHA}.{name}" for name in of.task_names]
    return max(truth(of, dict(zip(names, v, strict=True))) for v in product(VALUES, repeat=len(names)))


def test_it_begins_with_a_line_of_constants():
    walk = Walk(study())
    settings = walk.finish()
    first = [set(setting.values()) for setting in settings[: len(VALUES)]]
    assert first == [{VALUES[i]} for i in (3, 1, 5, 0, 2, 4, 6)]
    # One first stage for all of them, then three stages each.
    assert len(walk.search.stages_of(settings[0]) | walk.search.stages_of(settings[1])) == 1 + 2 * 3
    assert len(settings) == 15


def test_each_line_goes_through_the_middle_of_the_others():
    space = {**PER_TASK, "adapter.rank": SearchParameter(values=(4, 8, 16))}
    settings = Walk(study(2, space=space, trials=9)).finish()
    alphas, ranks = [s[f"{ALPHA}.task0"] for s in settings], [s["adapter.rank"] for s in settings]
    assert sorted(zip(alphas, ranks, strict=True)) == sorted([*((a, 8) for a in VALUES), (0.3, 4), (0.3, 16)])


@pytest.mark.parametrize("orders", [1, 3])
def test_proposals_do_not_depend_on_the_order_of_results(orders):
    of = study(orders=orders, parallel=4)
    sequences = [Walk(of).finish(seed) for seed in (None, 1, 2)]
    assert sequences[1] == sequences[0]
    assert sequences[2] == sequences[0]


def test_whoever_asks_for_the_best_meanwhile_changes_nothing():
    of, asked = study(), Walk(study())
    tell = asked.search.tell
    asked.search.tell = lambda number, evidence: (tell(number, evidence), asked.search.winner())
    assert asked.finish() == Walk(of).finish()


@pytest.mark.parametrize("method", ["stage_model", "tpe", "random"])
def test_a_limit_of_stages_is_kept_and_a_larger_one_begins_alike(method):
    found = []
    for limit in (30, 60):
        walk = Walk(study(method=method, stages=limit))
        settings = walk.finish()
        assert len(walk.store.records) <= limit
        assert walk.search.winner() is not None
        found.append(settings)
    assert found[1][: len(found[0])] == found[0]
    assert len(found[1]) > len(found[0])


@pytest.mark.parametrize(
    "law",
    [EXACT, replace(EXACT, bend=-2.0, change=0.3), replace(EXACT, peak=0.3)],
    ids=["own", "delayed", "peak"],
)
def test_without_noise_it_ends_near_the_best_of_all_settings(law):
    of = study(5, law=law, stages=120)
    walk = Walk(of)
    walk.finish()
    assert best_of_all(of) - truth(of, walk.search.winner()) < 0.005  # 2401 settings differ in their stages


def test_settings_that_train_the_same_stages_are_tried_once():
    """With one order, the first task's α bears on nothing: two values of two tasks are two settings."""
    of = study(2, space={ALPHA: SearchParameter(values=(0.1, 0.5), per_task=True)})
    walk = Walk(of)
    settings = walk.finish()
    (order,) = of.all_orders
    assert sorted(setting[f"{ALPHA}.{order[1]}"] for setting in settings) == [0.1, 0.5]
    assert walk.search.finished


def test_one_value_is_one_setting():
    assert len(Walk(study(2, space={ALPHA: SearchParameter(values=(0.1,), per_task=True)})).finish()) == 1


def test_where_everything_fails_it_goes_on_and_recommends_nothing():
    search = StageModelSearch(study(trials=12))
    while (proposal := search.ask()) is not None:
        search.tell(proposal[0], None)
    assert len(search.proposed) == 12
    assert search.finished
    assert search.winner() is None


def test_scores_that_are_missing_everywhere_teach_nothing():
    search = StageModelSearch(study(trials=12))
    R = np.full((4, 4), np.nan)
    while (proposal := search.ask()) is not None:
        search.tell(proposal[0], Evidence([ScoreMatrix(R, np.full(4, 100.0), np.zeros(4))], {}))
    assert len(search.proposed) == 12
    assert search.winner() is None


def test_several_objectives_are_searched_for_along_their_front():
    """By turns one objective and the other weighs more, so more of the front is found than by constants."""
    walk = Walk(study(objective=("stability", "plasticity"), law=EXACT, trials=25))
    walk.finish()
    values = {n: of.objective for n, of in walk.search.evaluated().items()}
    constants = [of for n, of in values.items() if n < len(VALUES)]
    later = [of for n, of in values.items() if n >= len(VALUES)]
    assert hypervolume(later) > hypervolume(constants) + 0.005
    assert max(of[0] for of in later) > max(of[0] for of in constants)
    assert walk.search.winner() is not None


def test_a_constraint_keeps_proposals_on_its_side():
    """Most of what is tried for the mean final score alone has a stability below 49 points."""
    kept = []
    for constraints in ((), ("stability >= 49 points",)):
        walk = Walk(study(trials=25, law=EXACT, constraints=constraints))
        walk.finish()
        later = [walk.search.answers[n] for n in walk.search.evaluated() if n >= len(VALUES)]
        stability = [np.mean([plugins.find("metrics", "stability")(s) for s in one.scores]) for one in later]
        kept.append(np.mean(np.array(stability) >= 0.49))
    assert kept[1] > kept[0] + 0.2


def test_what_older_studies_found_best_is_tried_first():
    of = study()
    warm = {f"{ALPHA}.{name}": 0.7 for name in of.task_names[:3]}  # it did not know the fourth task
    of = replace(of, data=replace(of.data, warm_starts=(WarmStart(warm, (0.5,), 3),)))
    first = StageModelSearch(of).ask()[1].setting
    assert first == {**warm, f"{ALPHA}.{of.task_names[3]}": 0.3}


def test_a_lucky_setting_is_not_recommended_for_its_luck():
    """A setting that its neighbours and the model contradict must be ahead by more than noise explains."""
    of = study(law=replace(EXACT, evaluation_noise=False), trials=12)
    walk = Walk(of)
    walk.finish()
    search = walk.search
    worst = search.ranking()[-1]
    scores = search.answers[worst].scores[0]
    own = {n: values.objective[0] for n, values in search.evaluated().items()}
    gap = max(own.values()) - own[worst]
    lucky = scores.R.copy()
    lucky[-1] += gap + 0.001
    few = ScoreMatrix(lucky, np.full(4, 4.0), scores.base)  # four examples a task: all of it may be luck
    search.answers[worst] = Evidence([few], {})
    ranked = search.rank(search.evaluated())
    assert max(search.evaluated(), key=lambda n: search.evaluated()[n].objective) == worst
    assert ranked[0] != worst


def test_the_noise_of_evaluation_by_hand():
    """Of 100 and 50 examples: (100 · 0.25 + 50 · 0.16) / 150² on one block, half of that on two."""
    scores = ScoreMatrix(np.array([[0.5, np.nan], [0.5, 0.8]]), np.array([100.0, 50.0]), np.zeros(2))
    one = (100 * 0.25 + 50 * 0.16) / 150**2
    assert noise_of_evaluation([Evidence([scores], {})]) == pytest.approx(one)
    assert noise_of_evaluation([Evidence([scores, scores], {})] * 3) == pytest.approx(one / 2)


def test_estimates_weigh_tasks_by_their_examples_as_the_objective_does():
    """Without noise of evaluation an estimate is the setting's own score, whatever the sizes of the tasks."""
    of = study(law=EXACT)
    data = {
        name: replace(task, sizes={**task.sizes, "validation": size})
        for (name, task), size in zip(of.data.tasks.items(), (10**7, 10**5, 10**5, 10**5), strict=True)
    }
    of = replace(of, data=replace(of.data, tasks=data))
    walk = Walk(of)
    walk.finish()
    values = walk.search.evaluated()
    by_value = sorted(values, key=lambda n: -values[n].objective[0])
    assert walk.search.ranking()[:3] == by_value[:3]


@pytest.mark.parametrize("method", ["stage_model", "tpe", "random", "nsga2"])
def test_a_limit_of_stages_ends_also_where_the_space_has_fewer(method):
    space = {ALPHA: SearchParameter(values=(0.1, 0.5), per_task=True)}
    walk = Walk(study(2, space=space, method=method, stages=50))
    settings = walk.finish()
    assert walk.search.finished
    assert len(walk.store.records) <= 3
    assert len(settings) < 30


@pytest.mark.parametrize(
    ("orders", "seeds"), [((("a", "b", "c"), ("a", "c", "b")), (0,)), ((("a", "b", "c"),), (0, 1))]
)
def test_blocks_that_begin_alike_are_all_learned_from(orders, seeds):
    of = synthetic_study(
        ("a", "b", "c"), DGG(buffer=20), simulation=LAW, orders=Orders("given", given=orders), seeds=seeds,
        search=Search(PER_TASK, method="stage_model", trials=10),
    )  # fmt: skip
    walk = Walk(of)
    walk.finish()
    assert walk.search.model.can_predict
    assert list(walk.search.climb())


def test_a_pinned_setting_is_not_pruned_with_a_limit_of_stages_either():
    of = study(orders=4, prune_level=0.2, stages=200, method="random", law=replace(LAW, noise=0.0))
    walk = Walk(of)
    pruned = [q for q in walk.finish_queries() if q.pruning_test]
    pin = of.at(pruned[-1].setting).id
    decision = Decision("pin", 1, setting=pin, values=pruned[-1].setting)
    again = Walk(replace(of, data=replace(of.data, decisions=(decision,))))
    asked = [q for q in again.finish_queries() if of.at(q.setting).id == pin]
    assert [q.pruning_test for q in asked] == [None]


def test_steps_change_one_value():
    found = neighbours(np.array([[0, 1], [1, 1]]), np.array([2, 3]), [0, 1])
    assert found[0].tolist() == [[0, 1], [1, 1], [0, 0], [0, 1], [0, 2]]
    assert found.shape == (2, 5, 2)
    assert neighbours(np.array([[0, 1]]), np.array([2, 3]), [1])[0].tolist() == [[0, 0], [0, 1], [0, 2]]

"""Baselines that are tuned by a search of their own, and searches that choose the strategy too."""

from dataclasses import replace

import pytest
from study_samples import GOOD, faults

from dgg_ray import Study, load_study
from dgg_ray.config import loader
from dgg_ray.config.json_schema import schema
from dgg_ray.config.sections import STRATEGY_NAME, Orders, Protocol, Search, SearchParameter, TunedBaseline
from dgg_ray.config.study_mapping import study_mapping
from dgg_ray.core.hashing import digest
from dgg_ray.core.plugins import plugin_name
from dgg_ray.cost.model import profiled_ranks
from dgg_ray.planning.plan import dry_run_search, plan
from dgg_ray.search.comparison import Comparison, comparison_chains, make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.optuna_search import OptunaSearch
from dgg_ray.search.tuned_baseline import tuned_search
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.ewc import EWC
from dgg_ray.strategies.l2sp import L2SP
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study

STRENGTH = {"strategy.strength": SearchParameter(low=0.01, high=10.0, log=True)}
TUNED = TunedBaseline("l2sp", STRENGTH, trials=6)
SPACE = {
    "strategy.alpha": SearchParameter(values=(0.0, 0.3, 1.0)),
    "strategy.buffer": SearchParameter(values=(20, 60)),
}
NAMED = {
    "strategy.dgg.alpha": SearchParameter(values=(0.1, 0.3), per_task=True),
    STRATEGY_NAME: SearchParameter(values=("dgg", "l2sp")),
    "strategy.buffer": SearchParameter(values=(20, 60)),
    "strategy.l2sp.strength": SearchParameter(values=(0.5, 2.0)),
}


SEARCH = Search(SPACE, trials=5, seed=3)


def study(*baselines, search: Search | None = SEARCH, **sections) -> Study:
    sections = {
        "orders": Orders("random", 2),
        "protocol": Protocol(held_out=2, baselines=baselines),
    } | sections
    return synthetic_study(3, DGG(alpha=0.2, buffer=10, norm="tensor"), search=search, **sections)


def settings(search) -> list[dict]:
    return [dict(query.setting) for query in search.proposed]


# -- tuned baselines -------------------------------------------------------------------------------


def test_a_tuned_baseline_tries_its_default_first_then_as_many_settings_as_its_budget_allows():
    result = simulate_study(study(TUNED))
    tried = settings(result.baselines["l2sp"])
    assert len(tried) == TUNED.trials
    assert tried[0]["strategy.strength"] == L2SP().strength
    assert len({s["strategy.strength"] for s in tried}) == TUNED.trials
    assert all(s[STRATEGY_NAME] == "l2sp" for s in tried)
    assert all("strategy.alpha" not in s for s in tried)


def test_a_tuned_baseline_keeps_the_buffer_of_the_winner_and_no_setting_of_its_strategy():
    result = simulate_study(study(TUNED))
    winner = result.search.winner()
    assert {s["strategy.buffer"] for s in settings(result.baselines["l2sp"])} == {winner["strategy.buffer"]}
    assert winner["strategy.buffer"] != 10  # the study's own, which is not searched
    compared = result.final["l2sp"].study.strategy
    assert compared == L2SP(buffer=winner["strategy.buffer"], strength=compared.strength)


def test_a_tuned_baseline_is_no_worse_than_its_default_on_the_blocks_of_the_search():
    for seed in range(4):
        result = simulate_study(study(TUNED, search=Search(SPACE, trials=3, seed=seed)))
        search = result.baselines["l2sp"]
        values = search.evaluated()
        assert values[search.best()].objective >= values[0].objective
        assert all(len(search.answers[n].scores) == 2 for n in values)  # one matrix per block


def test_the_default_is_tried_first_also_where_it_lies_outside_the_space():
    far = replace(TUNED, search={"strategy.strength": SearchParameter(low=100.0, high=1e6, log=True)})
    tried = [s["strategy.strength"] for s in settings(simulate_study(study(far)).baselines["l2sp"])]
    assert tried[0] == L2SP().strength
    assert all(100 <= strength <= 1e6 for strength in tried[1:])
    assert len(tried) == TUNED.trials


@pytest.mark.parametrize(
    ("values", "count"), [((0.1, 1.0), 2), ((0.5, 1.0), 3)], ids=["default listed", "default not listed"]
)
def test_a_grid_has_the_default_and_each_listed_value_once(values, count):
    grid = TunedBaseline("l2sp", {"strategy.strength": SearchParameter(values=values)}, method="grid")
    tried = [s["strategy.strength"] for s in settings(simulate_study(study(grid)).baselines["l2sp"])]
    assert tried[0] == 0.1
    assert sorted(tried) == sorted({0.1, *values})
    assert len(tried) == count


def test_fixed_settings_stay_and_the_winners_do_not_replace_them():
    fixed = replace(TUNED, settings={"strategy.buffer": 33, "training.epochs": 2}, trials=2)
    search = tuned_search(
        study(fixed), fixed, {"strategy.buffer": 60, "adapter.rank": 4, "strategy.alpha": 1.0}
    )
    number, query = search.ask()
    assert number == 0
    assert query.setting == {
        STRATEGY_NAME: "l2sp",
        "strategy.buffer": 33,
        "adapter.rank": 4,
        "training.epochs": 2,
        "strategy.strength": 0.1,
    }


def test_a_tuned_baseline_of_the_studys_own_strategy_starts_from_the_files_values_not_from_the_winners():
    own = TunedBaseline(
        "dgg", {"strategy.scale": SearchParameter(values=(True, False))}, label="DGG again", trials=2
    )
    result = simulate_study(study(own))
    strategy = result.final["DGG again"].study.strategy
    assert (strategy.alpha, strategy.norm) == (0.2, "tensor")


def test_a_study_without_a_search_compares_with_tuned_baselines():
    result = simulate_study(study(TUNED, search=None))
    assert result.search is None
    assert len(settings(result.baselines["l2sp"])) == TUNED.trials
    assert list(result.final) == ["dgg", "l2sp"]
    assert result.final["dgg"].study.strategy.alpha == 0.2


def test_a_strategy_shares_only_what_means_the_same_in_both():
    assert study().with_strategy("l2sp").strategy == L2SP(buffer=10)
    strong = synthetic_study(2, L2SP(buffer=10, strength=7.0))
    assert strong.with_strategy("dgg").strategy == DGG(buffer=10)
    assert strong.with_strategy("ewc").strategy == EWC(buffer=10)  # whose strength has another unit
    assert strong.with_strategy("gem").strategy.buffer == 10  # its own field, with the same meaning


def test_the_search_of_a_baseline_continues_from_the_store_as_it_was():
    result = simulate_study(study(TUNED))
    again = Comparison.from_study(
        result.study, EvidenceReader(result.study, result.store).fast_forward_past_failures
    )
    assert settings(again.baseline_searches["l2sp"]) == settings(result.baselines["l2sp"])
    assert {k: v.id for k, v in again.settings.items()} == {k: v.id for k, v in result.final.items()}


# -- plan and budget -------------------------------------------------------------------------------


def test_a_plan_counts_the_stages_of_tuned_baselines():
    without, tuned = (plan(study(*b).simulated(), MemoryStore()) for b in ((), (TUNED,)))
    # 6 settings on 2 blocks of 3 tasks, then one setting on 2 final blocks.
    assert tuned.requested - without.requested == 6 * 2 * 3 + 2 * 3
    assert tuned.tuned == {"l2sp": 6}
    assert "tuned baselines" in str(tuned)
    assert "l2sp on 6 settings" in str(tuned)
    assert "tuned baselines" not in str(without)


def test_the_plan_of_a_finished_study_is_exact_and_all_of_it_is_stored():
    result = simulate_study(study(TUNED))
    done = dry_run_search(EvidenceReader(result.study, result.store))
    assert done.exact
    assert done.tuned == {"l2sp": 6}
    items = [item for query in done.requests for item in query.work_request.work_items]
    assert items
    assert all(result.store.has(item) for item in items)


def test_a_plan_of_a_study_without_a_search_counts_its_tuned_baselines():
    alone = plan(study(TUNED, search=None), MemoryStore())
    assert alone.tuned == {"l2sp": 6}
    assert alone.requested == 6 * 2 * 3 + 2 * 2 * 3


def test_a_budget_reserves_the_comparison_with_the_largest_setting_of_a_tuned_baseline():
    space = {
        "strategy.buffer": SearchParameter(values=(5, 70)),
        "adapter.rank": SearchParameter(values=(2, 16)),
    }
    large = TunedBaseline("l2sp", space)
    stages = [item.stage for chain in comparison_chains(study(large)) for item in chain]
    assert (
        max(
            sum(stage.replayed_examples({"task0": 99, "task1": 99, "task2": 99}).values()) for stage in stages
        )
        == 140
    )
    assert {stage.adapter.rank for stage in stages if stage.trained_tasks} == {8, 16}
    assert profiled_ranks(study(large)) == [2, 8, 16]


# -- searched strategies ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tpe", "random", "nsga2"])
def test_a_setting_has_the_parameters_of_its_strategy_alone(method):
    result = simulate_study(study(search=Search(NAMED, method=method, trials=20)))
    alphas = {f"strategy.alpha.task{i}" for i in range(3)}
    own = {"dgg": alphas, "l2sp": {"strategy.strength"}}
    tried = settings(result.search)
    assert {s[STRATEGY_NAME] for s in tried} == {"dgg", "l2sp"}
    for setting in tried:
        assert set(setting) == {STRATEGY_NAME, "strategy.buffer", *own[setting[STRATEGY_NAME]]}
        assert plugin_name(result.study.at(setting).strategy) == setting[STRATEGY_NAME]
    assert next(iter(result.final)) == result.search.winner()[STRATEGY_NAME]


def test_a_grid_lists_the_valid_combinations_alone():
    search = make_search(study(search=Search(NAMED, method="grid")))
    assert search.count == 2**3 * 2 + 2 * 2  # α of three tasks and a buffer; a strength and a buffer
    tried = []
    for _ in range(search.count):
        number, query = search.ask()
        search.tell(number, None)
        tried.append(tuple(sorted(query.setting.items())))
    assert len(set(tried)) == search.count


def test_a_parameter_without_a_prefix_is_searched_for_every_strategy_that_has_it():
    space = {STRATEGY_NAME: SearchParameter(values=("finetune", "l2sp")), **STRENGTH}
    search = OptunaSearch(study(search=Search(space, method="random", trials=12, parallel=12)))
    tried = [search.ask()[1].setting for _ in range(12)]
    assert {("strategy.strength" in s, s[STRATEGY_NAME]) for s in tried} == {
        (True, "l2sp"),
        (False, "finetune"),
    }


def test_a_searched_strategy_keeps_the_files_values_of_its_own():
    at = study().at({"strategy.buffer": 7, STRATEGY_NAME: "dgg"})
    assert at.strategy == DGG(alpha=0.2, buffer=7, norm="tensor")
    assert study().at({"strategy.strength": 2.0, STRATEGY_NAME: "l2sp"}).strategy == L2SP(
        strength=2.0, buffer=10
    )


def test_the_most_expensive_setting_is_of_the_strategy_that_replays_most():
    space = {
        STRATEGY_NAME: SearchParameter(values=("finetune", "replay", "l2sp")),
        "strategy.l2sp.buffer": SearchParameter(values=(90,)),
        "strategy.replay.buffer": SearchParameter(values=(40,)),
    }
    assert study(search=Search(space)).most_expensive.strategy == L2SP(buffer=90)


# -- faults ----------------------------------------------------------------------------------------


def with_baseline(text: str, more: str = "") -> str:
    return f"{GOOD}{more}protocol:\n  baselines:\n    - {text}\n"


def searching(space: str, more: str = "") -> str:
    head = GOOD[: GOOD.index("  space:")]
    return f"{head}  space: {space}\n{more}"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (
            "{name: l2sp, search: {strategy.strengh: [1]}}",
            "search.strategy.strengh",
            "Did you mean 'strategy.strength'?",
        ),
        ("{name: l2sp, search: {strategy.strength: [-1]}}", "search.strategy.strength", "must be at least 0"),
        ("{name: l2sp, search: {strategy.strength: [1]}, trials: 0}", "trials", "must be at least 1, got 0"),
        ("{name: l2sp, search: {strategy.strength: [1]}, method: tp}", "method", "Did you mean 'tpe'?"),
        ("{name: l2sp, search: {strategy.strength: [1]}, method: stagewise}", "method", "must be one of"),
        ("{name: l2sp, serch: {strategy.strength: [1]}}", "serch", "Did you mean 'search'?"),
        ("{name: l2sp}", "search", "is required"),
        ("{name: l2sp, search: {}}", "search", "needs at least 1"),
        ("{name: l2s, search: {strategy.strength: [1]}}", "name", "Did you mean 'l2sp'?"),
        ("{name: dgg, search: {strategy.alpha: [1]}}", "label", "needs a label of its own"),
        (
            "{name: l2sp, label: replay, search: {strategy.strength: [1]}}",
            "label",
            "needs a label of its own",
        ),
        (
            "{name: l2sp, search: {strategy.strength: {per_task: [1]}}}",
            "search.strategy.strength",
            "must be a number",
        ),
        ("{name: l2sp, search: {strategy.name: [dgg]}}", "search.strategy.name", "a baseline of its own"),
        (
            "{name: l2sp, search: {strategy.strength: {low: 1, high: 2}}, method: grid}",
            "search.strategy.strength",
            "list of values",
        ),
        (
            "{name: l2sp, search: {strategy.strength: [1]}, settings: {strategy.strength: 2}}",
            "settings.strategy.strength",
            "in one place",
        ),
        (
            "{name: l2sp, search: {strategy.strength: [1]}, settings: {strategy.buffr: 2}}",
            "settings.strategy.buffr",
            "strategy.buffer",
        ),
    ],
)
def test_a_fault_of_a_tuned_baseline_is_told_with_its_path(load, text, path, words):
    assert words in faults(load, with_baseline(text))[f"protocol.baselines[0].{path}"]


def test_two_baselines_of_a_name_need_a_label(load):
    tuned = "{name: l2sp, search: {strategy.strength: [1]}}"
    for first in ("l2sp", tuned):
        text = with_baseline(f"{first}\n    - {tuned}")
        assert "label of its own" in faults(load, text)["protocol.baselines[1].label"]
    assert load(with_baseline(f"l2sp\n    - {tuned.replace('name: l2sp', 'name: l2sp, label: x')}"))


@pytest.mark.parametrize("more", ["  objective: plasticity\n", "  constraints: plasticity >= 10 %\n"])
def test_a_baseline_cannot_be_tuned_by_a_metric_that_has_no_value_for_it(load, more):
    text = with_baseline("{name: joint, search: {training.learning_rate: [1e-3]}}", more)
    assert "plasticity, which has no value" in faults(load, text)["protocol.baselines[0].name"]


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (searching("{strategy.name: [dgg, l2s]}"), "strategy.name", "Did you mean 'l2sp'?"),
        (searching("{strategy.name: [dgg, dgg]}"), "strategy.name", "each strategy once"),
        (searching("{strategy.name: [dgg, joint]}"), "strategy.name", "one task after another"),
        (searching("{strategy.name: {low: 1, high: 2}}"), "strategy.name", "list of strategies"),
        (
            searching(
                "{strategy.name: [dgg, l2sp], strategy.dgg.alpha: {per_task: [0.1]}}", "  method: stagewise\n"
            ),
            "strategy.name",
            "one strategy",
        ),
        (
            searching("{strategy.name: [dgg, l2sp], strategy.strengh: [1]}"),
            "strategy.strengh",
            "Did you mean 'strategy.strength'?",
        ),
        (
            searching("{strategy.name: [dgg, l2sp], strategy.dgg.alfa: [1]}"),
            "strategy.dgg.alfa",
            "no such path",
        ),
        (
            searching("{strategy.name: [dgg, l2sp], strategy.dgg.alpha: [2]}"),
            "strategy.dgg.alpha",
            "must be at most 1",
        ),
        (
            searching("{strategy.name: [dgg, l2sp], strategy.buffer: [1], strategy.dgg.buffer: [2]}"),
            "strategy.dgg.buffer",
            "is searched as `strategy.buffer` too",
        ),
    ],
)
def test_a_fault_of_a_searched_strategy_is_told_with_its_path(load, text, path, words):
    assert words in faults(load, text)[f"search.space.{path}"]


def test_a_baseline_from_the_curves_needs_one_strategy(load):
    text = searching("{strategy.name: [dgg, l2sp], strategy.alpha: {per_task: [0.1]}}")
    text += "protocol: {baselines: [constant]}\n"
    assert "needs one strategy" in faults(load, text)["protocol.baselines[0]"]


# -- files -----------------------------------------------------------------------------------------


def test_a_study_with_tuned_baselines_is_the_same_after_it_was_written_and_read(load):
    text = with_baseline(
        "{name: l2sp, label: x, search: {strategy.strength: [0.1, 1]}, settings: {strategy.buffer: 3}}"
    )
    first = load(text)
    assert first.tuned_baselines[0].search["strategy.strength"].values == (0.1, 1.0)
    again = load_study(study_mapping(first, loader.KEYS))
    assert again.protocol == first.protocol
    assert {name for kind, name in first.plugins_used if kind == "strategies"} == {"dgg", "l2sp"}


def test_the_schema_allows_the_short_forms_of_a_baselines_search():
    form = schema()["$defs"]["TunedBaseline"]["properties"]["search"]
    assert {"type": "array", "minItems": 1} in form["additionalProperties"]["anyOf"]
    assert "SearchParameter" not in digest_free(schema())


def digest_free(value) -> str:
    assert digest(value)  # plain JSON
    return repr(value)

"""What a search may ask for; every fault is told before anything starts."""

from dataclasses import replace

import pytest
from study_samples import GOOD, faults

from dgg_ray.readers.embedded import Embedded

STAGEWISE = GOOD.replace("search:\n", "search:\n  method: stagewise\n")


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (STAGEWISE + "  beam: 0\n", "search.beam", "must be at least 1, got 0"),
        (STAGEWISE + "  values_per_task: 1\n", "search.values_per_task", "must be at least 2, got 1"),
        (STAGEWISE + "  audit_fraction: 0.9\n", "search.audit_fraction", "must be at most 0.5"),
        (
            STAGEWISE + "  prune_level: 0.05\n",
            "search.prune_level",
            "`stagewise` drops settings between tasks anyway",
        ),
        (STAGEWISE.replace("{per_task: [0, 0.5]}", "[0, 0.5]"), "search.space", "searched per task"),
        (STAGEWISE + "  stages: 90\n", "search.stages", "follow from `beam` and `values_per_task`, got 90"),
        # Two orders of three tasks with two seeds: twelve stages, of which no two orders share a first one.
        (GOOD + "  stages: 11\n", "search.stages", "at least 12, the stages of one setting on all blocks"),
        (
            GOOD.replace("name: dgg, alpha: 0.2, buffer: 5", "name: joint") + "  method: stage_model\n",
            "search.method",
            "`stage_model` needs a strategy that trains one task after another",
        ),
        (
            GOOD.replace("  space:\n", "  method: stage_model\n  space:\n    strategy.name: [dgg, replay]\n"),
            "search.space.strategy.name",
            "`stage_model` searches the settings of one strategy",
        ),
        (GOOD + "  prune_level: 0.7\n", "search.prune_level", "must be less than 0.5"),
        (GOOD + "  method: tpee\n", "search.method", "Did you mean 'tpe'?"),
        (GOOD + "  objective: faaa\n", "search.objective", "Did you mean 'faa'?"),
        (GOOD + "  objective: [stability, forgetting]\n", "search.objective", "objectives are maximised"),
        (
            GOOD + "  constraints: plasticity >= finetun - 2 points\n",
            "search.constraints[0]",
            "Did you mean 'finetune'?",
        ),
        (
            GOOD + "  constraints: [plastic >= finetune]\n",
            "search.constraints[0]",
            "Did you mean 'plasticity'?",
        ),
        (
            GOOD + "  constraints: [plasticity]\n",
            "search.constraints[0]",
            "METRIC >= STRATEGY - NUMBER points",
        ),
        (GOOD + "  constraints: [faa >= joint]\n", "search.constraints[0]", "one task after another"),
        (
            GOOD + "protocol: {baselines: [runner_upp]}\n",
            "protocol.baselines[0]",
            "Did you mean 'runner_up'?",
        ),
        (
            GOOD.replace("{per_task: [0, 0.5]}", "[0, 0.5]") + "protocol: {baselines: [constant]}\n",
            "protocol.baselines[0]",
            "searched per task",
        ),
        (
            GOOD + "protocol: {held_out: 2, final_seeds: [4]}\n",
            "protocol.final_seeds",
            "have their own seeds",
        ),
        (
            GOOD.replace("{design: random, count: 2}", "{design: all}") + "protocol: {held_out: 2}\n",
            "protocol.held_out",
            "must be at most 0: so many orders took no part in the choice, got 2",
        ),
        (
            GOOD.replace("count: 2", "count: 5") + "protocol: {held_out: 2}\n",
            "protocol.held_out",
            "must be at most 1",
        ),
        (
            GOOD + "protocol: {held_out: [[digits, charts, wordz]]}\n",
            "protocol.held_out[0]",
            "must name each of digits, words, charts once, got ['digits', 'charts', 'wordz']. Did you mean",
        ),
        (
            GOOD + "protocol: {held_out: [[digits, charts]]}\n",
            "protocol.held_out[0]",
            "must name each of digits, words, charts once",
        ),
        (
            GOOD.replace("{design: random, count: 2}", "[[words, digits, charts]]")
            + "protocol: {held_out: [[digits, words, charts], [words, digits, charts]]}\n",
            "protocol.held_out[1]",
            "must be an order that took no part in the choice, but `orders` has it",
        ),
        (
            GOOD + "protocol: {held_out: [[digits, words, charts], [digits, words, charts]]}\n",
            "protocol.held_out",
            "must be different orders, got 1 twice",
        ),
        (GOOD + "protocol: {held_out: []}\n", "protocol.held_out", "needs at least 1 order, has 0"),
        (GOOD + "protocol: {held_out: 2.5}\n", "protocol.held_out", "must be a whole number or a list"),
    ],
)
def test_a_fault_is_told_with_its_path_and_what_is_right(load, text, path, words):
    assert words in faults(load, text)[path]


def test_a_baseline_from_the_search_needs_a_search(load):
    text = GOOD[: GOOD.index("search:")] + "protocol: {baselines: [runner_up]}\n"
    assert "needs a search" in faults(load, text)["protocol.baselines[0]"]


ALONE = GOOD[: GOOD.index("orders:")]  # no orders, seeds or search
LLAVA = "model: {name: auto, path: nowhere, four_bit: true}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            STAGEWISE + "  beam: 0\nprotocol: {baselines: [runner_up, constant, two_task]}\n",
            "search.beam",
        ),
        (
            GOOD.replace("model: embedded", LLAVA) + "workers: {engine: simulated, gpus: 1, groups: 0}\n",
            "workers.groups",
        ),
        (ALONE + "orders: [[digits, charts, wordz]]\nprotocol: {held_out: 2}\n", "orders[0]"),
        (
            ALONE.replace("name: words, ", "").replace("alpha: 0.2", "alpha: {words: 0.2}")
            + "orders: [[digits, words, charts]]\nprotocol: {baselines: [{A: {strategy.alpha.words: 1}}]}\n",
            "tasks[1].name",
        ),
        (
            GOOD[: GOOD.index("  - {name: words")]
            + GOOD[GOOD.index("strategy:") : GOOD.index("seeds:")].replace(
                "{design: random, count: 2}", "[[digits, words]]"
            )
            + GOOD[GOOD.index("search:") :]
            + "  objective: [stability, plasticity]\n",
            "tasks",
        ),
    ],
)
def test_nothing_is_said_of_what_rests_on_a_broken_part(load, text, path):
    assert list(faults(load, text)) == [path]


def test_settings_are_not_chosen_on_test_by_accident(load, monkeypatch):
    read = Embedded.read

    def same(self, name):
        task = read(self, name)
        if name != "words":
            return task
        examples = {**task.examples, "validation": task.examples["test"]}
        return replace(task, examples=examples, digests={**task.digests, "validation": task.digests["test"]})

    monkeypatch.setattr(Embedded, "read", same)
    fault = faults(load, GOOD)["tasks"]
    assert "words: validation and test hold the same examples" in fault
    assert "protocol.selection_split: test" in fault
    broken = "protocol: {selection_split: test, max_new_tokens: 0}\n"
    assert list(faults(load, GOOD + broken)) == ["protocol.max_new_tokens"]
    assert load(GOOD + "protocol: {selection_split: test}\n").protocol.selection_split == "test"


def test_held_out_blocks_have_orders_and_seeds_of_their_own(load):
    study = load(GOOD + "protocol: {held_out: 3}\n")
    orders, seeds = zip(*study.final_blocks, strict=True)
    assert len(set(orders)) == 3
    assert not set(orders) & set(study.all_orders)
    assert seeds == (4, 5, 6)  # the search's are 0 and 3


def test_a_limit_of_stages_that_is_spent_on_constants_says_what_it_can_do(load):
    """Two orders of three tasks with two seeds: 12 stages; a change of all α trains 8 of them anew.

    The line holds the middle, one more α and six more learning rates: 12 + 8 + 6 · 12 stages.
    """
    model = GOOD.replace("search:\n", "search:\n  method: stage_model\n")
    (warning,) = [w for w in load(model + "  stages: 35\n").data.warnings if "search.stages" in w]
    assert "search.stages = 35 is enough for about 3 of the 8 settings" in warning
    assert "with more than about 92" in warning
    assert not [w for w in load(model + "  stages: 92\n").data.warnings if "search.stages" in w]


def test_a_broken_section_does_not_hide_a_search_that_cannot_be_looked_at(load):
    """Searched settings are checked once their section is right; until then no other rule looks at them."""
    text = GOOD.replace("high: 1e-2, ", "") + "training: {epochs: 0}\n"
    assert list(faults(load, text)) == ["training.epochs"]
    assert "search.space.training.learning_rate" in faults(load, text.replace("epochs: 0", "epochs: 1"))

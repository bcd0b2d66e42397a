"""What the page says of blocks, seeds and trades is what was run."""

import dataclasses

import pytest
from order_samples import ORDERS as CYCLE
from order_samples import study
from prediction_samples import study as examples

from dgg_ray.analysis.run_table import BLOCK
from dgg_ray.core.fence import Fence
from dgg_ray.report.answer import blocks_in_words, blocks_sentence
from dgg_ray.report.questions import along, wrong

ORDERS = ("a > b", "b > a")


def seeded(seeds, **methods):
    """Methods with a score in every block; seeds: order → its seeds."""
    found = study({name: {o: [(0.5, 0.6)] * 3 for o in ORDERS} for name in ("dgg", *methods)})
    table = found.table.copy()
    table["seed"] = [seeds[order][seed] for order, seed in table[BLOCK].itertuples(index=False)]
    return dataclasses.replace(found, table=table)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (((0, 1, 2), (0, 1, 2)), "2 orders with 3 seeds"),
        (((0, 1, 2), (3, 4, 5)), "2 orders with 3 seeds each, of their own"),
    ],
)
def test_seeds_that_serve_one_order_are_not_counted_as_if_they_served_all(seeds, said):
    assert blocks_in_words(seeded(dict(zip(ORDERS, seeds, strict=True)))) == said


def test_methods_are_said_to_have_the_same_blocks_only_where_they_have():
    whole = seeded(dict.fromkeys(ORDERS, (0, 1, 2)), replay=True)
    same = (
        "All methods were trained and evaluated on the same blocks: 2 orders with 3 seeds, validation split."
    )
    assert blocks_sentence(whole, "validation") == same
    rows = whole.table
    last = (
        (rows["setting"] == "replay")
        & (rows["order"] == "b > a")
        & (rows["seed"] == 2)
        & (rows["stage"] == 1)
    )
    assert blocks_sentence(dataclasses.replace(whole, table=rows[~last]), "validation") == (
        "Not every method has finished every block (2 orders with 3 seeds, validation split): a difference "
        "is over those that both have."
    )


def test_the_trade_of_a_constant_alpha_has_the_interval_of_its_differences():
    scores = {"s0": (0.5, 0.4, 0.3), "s1": (0.6, 0.6, 0.7)}  # of every task, by order: both metrics alike
    rows = {name: {o: (x,) * 3 for o, x in zip(CYCLE, of, strict=True)} for name, of in scores.items()}
    made = study(rows, parameters=("strategy.alpha",), tried=tuple(scores))
    # 10, 20 and 40 points: 23.3 ± 4.3027 · 15.3 / √3
    change = "by +23.3 points (95 % CI −14.6 to +61.3)"
    assert along(made) == [
        f"With one α for all tasks, α = 1 in place of 0 changes stability {change} and plasticity {change}, "
        "over the blocks that both were judged on."
    ]


def test_a_run_in_which_a_task_came_last_is_said_not_to_count_for_its_questions():
    # of two runs, a came last in one and b in the other: each question could be lost in one run
    (first, second, *_) = wrong(examples(), {}, Fence()).sentences
    assert first.endswith("in at least one of 2 runs of dgg.")
    assert second.startswith("On a card, a run in which the task came last does not count")

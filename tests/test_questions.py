"""What the page says of blocks, seeds and trades is what was run."""

import dataclasses

import pytest
from test_robustness import study

from dgg_ray.outcomes import BLOCK
from dgg_ray.questions import blocks_in_words, blocks_sentence

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

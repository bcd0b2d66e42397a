"""Seeds of each order's own: what a study says, which blocks come of it, and what `plan` says of them."""

from dataclasses import replace

import pytest
from study_samples import GOOD, faults

from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.core.orders import design
from dgg_ray.planning.plan import plan
from dgg_ray.stats import power
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study

SHARED, OWN = "seeds: [0, 3]", "seeds: per_order"


def study(count=3, seeds=(0,), own=True, design="random", **parts):
    orders = Orders(design, count)
    return synthetic_study(4, DGG(alpha=0.3, buffer=20), orders=orders, seeds=seeds, own_seeds=own, **parts)


def test_a_study_says_how_many_seeds_each_order_has_of_its_own(load):
    one = load(GOOD.replace(SHARED, OWN))
    assert [seed for _, seed in one.blocks] == [0, 1]
    two = load(GOOD.replace(SHARED, "seeds: {per_order: 2}"))
    assert [(one.all_orders.index(order), seed) for order, seed in two.blocks] == [
        (0, 0), (0, 1000), (1, 1), (1, 1001)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "path", "rule"),
    [
        ("per_ordre", "seeds", "Did you mean 'per_order'?"),
        ("{per_order: 0}", "seeds.per_order", "must be at least 1, got 0"),
        ("{per_orders: 2}", "seeds.per_orders", "no such setting. Did you mean 'per_order'?"),
    ],
)
def test_other_words_for_it_are_faults_with_the_nearest_name(load, seeds, path, rule):
    assert rule in faults(load, GOOD.replace(SHARED, f"seeds: {seeds}"))[path]


def test_more_orders_than_seeds_lie_apart_are_a_fault(load):
    many = "".join(
        f"  - {{name: t{i}, reader: embedded, train: 12, validation: 10, test: 10}}\n" for i in "abcd"
    )
    text = GOOD.replace("strategy:", many + "strategy:").replace("count: 2", "count: 1001")
    text = text.replace("reader: embedded", "reader: embedded, source: digits")
    said = faults(load, text.replace(SHARED, OWN))
    assert "the seeds of at most 1,000 orders" in said["seeds"]


def test_more_orders_and_more_seeds_keep_the_blocks_that_were_there():
    few = set(study(3).blocks)
    assert few < set(study(5).blocks)
    assert few < set(study(3, (0, 1)).blocks)
    assert len(set(study(5, (0, 1, 2)).blocks)) == len({seed for _, seed in study(5, (0, 1, 2)).blocks}) == 15


def test_held_out_blocks_have_seeds_of_no_search_block_whatever_is_added():
    held = Protocol(held_out=3)
    few, many = study(3, protocol=held), study(9, protocol=held)
    assert {seed for _, seed in few.final_blocks} == {seed for _, seed in many.final_blocks}
    assert not {seed for _, seed in few.final_blocks} & {seed for _, seed in many.blocks}


def test_final_seeds_are_made_each_order_s_own_too():
    final = study(2, protocol=Protocol(final_seeds=(0, 1)))
    assert [seed for _, seed in final.final_blocks] == [0, 1000, 1, 1001]
    assert set(final.blocks) < set(final.final_blocks)


def test_shared_seeds_stay_as_they_were():
    assert [seed for _, seed in study(2, (0, 3), own=False).blocks] == [0, 3, 0, 3]
    assert [s for _, s in study(2, (0, 3), own=False, protocol=Protocol(held_out=2)).final_blocks] == [4, 5]


def test_plan_says_what_either_way_costs_a_setting():
    # Two orders on each of four beginnings of two tasks: 4 · (2 + 2 · 2) = 24 stages, and 8 · 4 = 32 apart.
    shared = study(None, own=False, design="shared_prefix")
    said = str(plan(shared, MemoryStore()))
    assert (
        "all orders share seed 0, and the results depend on it; `seeds: per_order` would make orders" in said
    )
    assert "independent, at 32 stages per setting instead of 24" in said
    own = str(plan(replace(shared, own_seeds=True), MemoryStore()))
    assert "each order has its own, so orders are independent; shared seeds would train 24 stages" in own
    cyclic = str(plan(study(2, (0, 1), own=False, design="cyclic"), MemoryStore()))
    assert "share the same 2 seeds" in cyclic
    assert "`seeds: {per_order: 2}` would make orders independent, at no additional stage" in cyclic
    assert "joint trains one run per seed" in cyclic  # two runs, and eight with own seeds
    alone = study(2, (0, 1), own=True, design="cyclic", protocol=Protocol(baselines=("replay",)))
    assert "independent; which costs no additional stage" in str(plan(alone, MemoryStore()))
    for elsewhere in (alone, replace(shared, protocol=Protocol(held_out=2))):
        assert "joint" not in plan(elsewhere, MemoryStore()).seeding
    assert "seeds  " not in str(plan(study(1), MemoryStore()))
    search = Search({"strategy.alpha": SearchParameter(values=(0.0, 0.3))}, method="grid")
    assert "the search's choice depends on it" in str(plan(study(2, own=False, search=search), MemoryStore()))


def test_orders_with_seeds_of_their_own_are_as_many_clusters():
    # 24 orders that share a seed are 4 clusters, worth 24 / 2.5 blocks; with own seeds 24 of each.
    orders = design("all", "abcd")
    *_, shared = power.effective_samples(orders, 1)
    *_, own = power.effective_samples(orders, 1, own_seeds=True)
    assert shared == pytest.approx((9.6, 3))
    assert own == pytest.approx((24, 23))
    assert power.orders_needed(3.0, 3.0, orders, 1, own_seeds=True) == power.blocks_needed(3.0, 3.0)
    assert power.orders_needed(3.0, 3.0, orders, 1) is None

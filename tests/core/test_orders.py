"""Designs of orders."""

from collections import Counter
from itertools import pairwise, permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgg_ray.core.orders import DESIGNS, design, existing

TASKS = ("a", "b", "c")
NAMES = "abcdefghi"
SEEDED = ("random", "latin", "williams", "shared_prefix")


def places(orders):
    """How often each task stands in each position: the different numbers."""
    return {Counter(order[t] for order in orders)[task] for t in range(len(orders[0])) for task in orders[0]}


def stages(orders):
    """Distinct stages of one setting and seed: the beginnings."""
    return len({order[: t + 1] for order in orders for t in range(len(order))})


def likeness(tasks, seed):
    half = np.triu(np.random.default_rng(seed).random((tasks, tasks)), 1)
    return half + half.T + np.eye(tasks)


def test_all_is_every_permutation():
    assert sorted(design("all", TASKS)) == sorted(permutations(TASKS))


def test_random_orders_differ_and_never_outnumber_the_permutations():
    orders = design("random", TASKS, count=50)
    assert len(orders) == len(set(orders)) == 6
    assert all(sorted(order) == list(TASKS) for order in orders)


def test_given_without_orders_is_the_order_of_the_file():
    assert design("given", TASKS) == [TASKS]
    assert design("given", TASKS, given=[("c", "a", "b")]) == [("c", "a", "b")]


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_draws_other_orders(name):
    assert design(name, "abcdef", count=5, seed=4) != design(name, "abcdef", count=5, seed=5)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(DESIGNS)), tasks=st.integers(2, 7), seed=st.integers(0, 99), data=st.data()
)
def test_every_design_has_different_orders_of_all_tasks_and_grows_by_adding_some(name, tasks, seed, data):
    size = existing(tasks).get(name, 0)
    if not size:
        return
    names, alike = NAMES[:tasks], likeness(tasks, seed)
    many = data.draw(st.integers(1, min(size, 60)))
    few = data.draw(st.integers(1, many))
    orders = design(name, names, many, seed, likeness=alike)
    assert len(orders) == len(set(orders)) == many
    assert {"".join(sorted(order)) for order in orders} == {names}
    assert design(name, names, few, seed, likeness=alike) == orders[:few]


def test_the_draws_of_random_do_not_change_between_versions():
    assert design("random", "abcd", count=3) == [tuple("acbd"), tuple("cdba"), tuple("dabc")]


def test_cyclic_begins_the_order_of_the_file_at_each_task():
    assert design("cyclic", TASKS) == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")]


@pytest.mark.parametrize("name", ["cyclic", "latin", "williams"])
@pytest.mark.parametrize("tasks", range(2, 10))
def test_each_task_stands_in_each_position_of_a_square_once(name, tasks):
    assert places(design(name, NAMES[:tasks], tasks, seed=tasks)) == {1}


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_latin_squares_go_on_until_every_order_is_there(tasks):
    orders = design("latin", NAMES[:tasks], factorial(tasks), seed=7)
    assert len(set(orders)) == factorial(tasks)
    for start in range(0, len(orders), tasks):
        assert places(orders[start : start + tasks]) == {1}


def test_some_rows_of_a_square_have_no_task_twice_in_a_position():
    assert places(design("latin", "abcdef", count=4)) == {0, 1}


@pytest.mark.parametrize("tasks", range(2, 10))
def test_williams_has_each_task_right_before_each_other_equally_often(tasks):
    orders = design("williams", NAMES[:tasks], seed=tasks)
    each = 1 if tasks % 2 == 0 else 2
    assert len(orders) == each * tasks
    before = Counter(pair for order in orders for pair in pairwise(order))
    assert before == dict.fromkeys(permutations(NAMES[:tasks], 2), each)


def test_shared_beginnings_save_stages():
    # 6 beginnings of 3 tasks; the 3 that are left end in 4 ways, which begin in 3: 3 + 4 + 4 stages
    orders = design("shared_prefix", "abcdef", prefix_length=3, suffixes=4)
    assert len(orders) == 24
    assert sorted(Counter(order[:3] for order in orders).values()) == [4] * 6
    assert stages(orders) == 6 * (3 + 3 + 4 + 4) == 84
    assert 24 * 6 / stages(orders) == pytest.approx(1.71, abs=0.01)


def test_random_orders_share_little():
    # 6 (1 - (5/6)^12) = 5.3 first stages, 30 (1 - (29/30)^12) = 10.0 second ones, 11.5, 11.8, 12, 12: 62.6
    counts = [stages(design("random", "abcdef", 12, seed)) for seed in range(100)]
    assert 72 / np.mean(counts) == pytest.approx(1.15, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(tasks=st.integers(3, 7), seed=st.integers(0, 9), data=st.data())
def test_positions_are_balanced_over_all_beginnings_and_endings(tasks, seed, data):
    prefix = data.draw(st.integers(1, tasks - 2))
    endings = data.draw(st.integers(2, min(8, factorial(tasks - prefix))))
    orders = design("shared_prefix", NAMES[:tasks], seed=seed, prefix_length=prefix, suffixes=endings)
    assert sorted(Counter(order[:prefix] for order in orders).values()) == [endings] * tasks
    assert places(orders) == {endings}
    if endings <= tasks - prefix:  # they part right after the beginning
        assert len({order[: prefix + 1] for order in orders}) == len(orders)


def test_the_first_endings_make_a_williams_square():
    orders = design("shared_prefix", "abcdef", prefix_length=2, suffixes=3, seed=5)
    assert orders[::3] == design("williams", "abcdef", seed=5)


def test_extreme_is_both_chains_and_their_reverses():
    # On a line at 0, 1, 3, 7 the nearest neighbours are in a row, and the farthest jump over the middle.
    places = np.array([3, 0, 7, 1])  # of a, b, c, d
    alike = 1 - abs(places[:, None] - places) / 10
    found = design("extreme", "abcd", likeness=alike)
    # Farthest from d: c (6), b (7), a (3) = 16; from b: c (7), d (6), a (2) = 15; from a and c: 12.
    assert found == [tuple("bdac"), tuple("cadb"), tuple("dcba"), tuple("abcd")]


def test_designs_that_need_three_tasks_do_not_exist_for_two():
    assert set(existing(2)) == {"given", "all", "random", "cyclic", "latin", "williams"}
    assert set(existing(3)) == set(DESIGNS)

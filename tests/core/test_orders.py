"""Tests of the order designs."""

from collections import Counter
from itertools import pairwise, permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgg_ray.core.orders import DESIGNS, available_designs, design

TASKS = ("a", "b", "c")
NAMES = "abcdefghi"
SEEDED = ("random", "latin", "williams", "shared_prefix")


def position_counts(orders):
    """Return the distinct numbers of how often a task takes a position."""
    return {Counter(order[t] for order in orders)[task] for t in range(len(orders[0])) for task in orders[0]}


def stage_count(orders):
    """Return the number of distinct stages of one setting and seed: the distinct beginnings."""
    return len({order[: t + 1] for order in orders for t in range(len(order))})


def random_similarity(tasks, seed):
    half = np.triu(np.random.default_rng(seed).random((tasks, tasks)), 1)
    return half + half.T + np.eye(tasks)


def test_all_is_every_permutation():
    assert sorted(design("all", TASKS)) == sorted(permutations(TASKS))


def test_random_orders_differ_and_never_outnumber_the_permutations():
    orders = design("random", TASKS, count=50)
    assert len(orders) == len(set(orders)) == 6
    assert all(sorted(order) == list(TASKS) for order in orders)


def test_given_without_orders_is_the_files_own_order():
    assert design("given", TASKS) == [TASKS]
    assert design("given", TASKS, given=[("c", "a", "b")]) == [("c", "a", "b")]


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_draws_other_orders(name):
    assert design(name, "abcdef", count=5, seed=4) != design(name, "abcdef", count=5, seed=5)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(DESIGNS)), tasks=st.integers(2, 7), seed=st.integers(0, 99), data=st.data()
)
def test_a_design_has_distinct_orders_and_a_larger_count_keeps_the_first(name, tasks, seed, data):
    size = available_designs(tasks).get(name, 0)
    if not size:
        return
    names, alike = NAMES[:tasks], random_similarity(tasks, seed)
    many = data.draw(st.integers(1, min(size, 60)))
    few = data.draw(st.integers(1, many))
    orders = design(name, names, many, seed=seed, similarity=alike)
    assert len(orders) == len(set(orders)) == many
    assert {"".join(sorted(order)) for order in orders} == {names}
    assert design(name, names, few, seed=seed, similarity=alike) == orders[:few]


def test_the_draws_of_random_do_not_change_between_versions():
    assert design("random", "abcd", count=3) == [tuple("acbd"), tuple("cdba"), tuple("dabc")]


def test_cyclic_starts_the_files_order_at_each_task():
    assert design("cyclic", TASKS) == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")]


@pytest.mark.parametrize("name", ["cyclic", "latin", "williams"])
@pytest.mark.parametrize("tasks", range(2, 10))
def test_each_task_takes_each_position_of_a_square_once(name, tasks):
    assert position_counts(design(name, NAMES[:tasks], tasks, seed=tasks)) == {1}


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_latin_squares_continue_until_every_order_is_used(tasks):
    orders = design("latin", NAMES[:tasks], factorial(tasks), seed=7)
    assert len(set(orders)) == factorial(tasks)
    for start in range(0, len(orders), tasks):
        assert position_counts(orders[start : start + tasks]) == {1}


def test_in_some_rows_of_a_square_no_task_takes_a_position_twice():
    assert position_counts(design("latin", "abcdef", count=4)) == {0, 1}


@pytest.mark.parametrize("tasks", range(2, 10))
def test_williams_has_each_task_directly_before_each_other_equally_often(tasks):
    orders = design("williams", NAMES[:tasks], seed=tasks)
    each = 1 if tasks % 2 == 0 else 2
    assert len(orders) == each * tasks
    before = Counter(pair for order in orders for pair in pairwise(order))
    assert before == dict.fromkeys(permutations(NAMES[:tasks], 2), each)


def test_shared_beginnings_save_stages():
    # 6 beginnings of 3 tasks; the other 3 tasks have 4 suffixes with 3 first tasks: 3 + 4 + 4 stages
    orders = design("shared_prefix", "abcdef", prefix_length=3, suffixes=4)
    assert len(orders) == 24
    assert sorted(Counter(order[:3] for order in orders).values()) == [4] * 6
    assert stage_count(orders) == 6 * (3 + 3 + 4 + 4) == 84
    assert 24 * 6 / stage_count(orders) == pytest.approx(1.71, abs=0.01)


def test_random_orders_share_few_stages():
    # 6 (1 - (5/6)^12) = 5.3 first stages, 30 (1 - (29/30)^12) = 10.0 second ones, 11.5, 11.8, 12, 12: 62.6
    counts = [stage_count(design("random", "abcdef", 12, seed=seed)) for seed in range(100)]
    assert 72 / np.mean(counts) == pytest.approx(1.15, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(tasks=st.integers(3, 7), seed=st.integers(0, 9), data=st.data())
def test_positions_are_balanced_over_all_beginnings_and_suffixes(tasks, seed, data):
    prefix = data.draw(st.integers(1, tasks - 2))
    suffixes = data.draw(st.integers(2, min(8, factorial(tasks - prefix))))
    orders = design("shared_prefix", NAMES[:tasks], seed=seed, prefix_length=prefix, suffixes=suffixes)
    assert sorted(Counter(order[:prefix] for order in orders).values()) == [suffixes] * tasks
    assert position_counts(orders) == {suffixes}
    if suffixes <= tasks - prefix:  # suffixes differ right after the beginning
        assert len({order[: prefix + 1] for order in orders}) == len(orders)


def test_the_first_suffixes_make_a_williams_square():
    orders = design("shared_prefix", "abcdef", prefix_length=2, suffixes=3, seed=5)
    assert orders[::3] == design("williams", "abcdef", seed=5)


def test_extreme_is_both_chains_and_their_reverses():
    # On a line at 0, 1, 3, 7 the nearest neighbours are in a row, and the farthest jump over the middle.
    places = np.array([3, 0, 7, 1])  # of a, b, c, d
    alike = 1 - abs(places[:, None] - places) / 10
    found = design("extreme", "abcd", similarity=alike)
    # Farthest from d: c (6), b (7), a (3) = 16; from b: c (7), d (6), a (2) = 15; from a and c: 12.
    assert found == [tuple("bdac"), tuple("cadb"), tuple("dcba"), tuple("abcd")]


def test_designs_that_need_three_tasks_do_not_exist_for_two():
    assert set(available_designs(2)) == {"given", "all", "random", "cyclic", "latin", "williams"}
    assert set(available_designs(3)) == set(DESIGNS)

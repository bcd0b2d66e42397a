"""Designs of orders."""

from itertools import permutations

from dgg_ray.orders import design

TASKS = ("a", "b", "c")


def test_all_is_every_permutation():
    assert sorted(design("all", TASKS)) == sorted(permutations(TASKS))


def test_random_orders_differ_and_never_outnumber_the_permutations():
    orders = design("random", TASKS, count=50)
    assert len(orders) == len(set(orders)) == 6
    assert all(sorted(order) == list(TASKS) for order in orders)


def test_a_larger_count_keeps_the_orders_that_were_there():
    assert design("random", "abcdef", count=9, seed=4)[:5] == design("random", "abcdef", count=5, seed=4)


def test_another_seed_draws_other_orders():
    assert design("random", "abcdef", count=5, seed=4) != design("random", "abcdef", count=5, seed=5)


def test_given_without_orders_is_the_order_of_the_file():
    assert design("given", TASKS) == [TASKS]
    assert design("given", TASKS, given=[("c", "a", "b")]) == [("c", "a", "b")]

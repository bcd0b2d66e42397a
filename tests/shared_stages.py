"""Many simulated studies at once, whose runs share stages and with them the stages' noise."""

from functools import cache
from itertools import permutations

import numpy as np

from dgg_ray.core.rng import make_rng

POSITION, NOISE, STUDIES = 0.01, 0.02, 1000


def carry_of(tasks: int) -> np.ndarray:
    return np.linspace(-0.03, 0.03, tasks)


def fixed(orders: np.ndarray) -> np.ndarray:
    """Return the part of the final scores that the orders cause: (…, T) by position → (…, T) by task."""
    tasks = orders.shape[-1]
    place = np.argsort(orders, axis=-1)
    carried = np.zeros(orders.shape)
    carried[..., 1:] = carry_of(tasks)[orders[..., :-1]]
    return 0.4 + 0.02 * np.arange(tasks) + POSITION * place + np.take_along_axis(carried, place, axis=-1)


def noise(orders: np.ndarray, rng: np.random.Generator, seeds: int = 1) -> np.ndarray:
    """Return noise summed over each run's stages, equal where runs share a stage.

    (studies, orders, T) → (studies, orders, seeds, T).
    """
    studies, count, tasks = orders.shape
    total = np.zeros((studies, count, seeds, tasks))
    code = np.broadcast_to(np.arange(studies)[:, None], (studies, count))
    for t in range(tasks):
        code = code * tasks + orders[..., t]
        stages, which = np.unique(code, return_inverse=True)
        total += NOISE * rng.standard_normal((len(stages), seeds, tasks))[which.reshape(code.shape)]
    return total


@cache
def random_orders(tasks: int, count: int) -> np.ndarray:
    """Return (STUDIES, count, T) orders, none twice in a study."""
    rng = make_rng(0, "", "orders", 100 * tasks + count)
    if tasks < 7:
        every = np.array(list(permutations(range(tasks))))
        return every[np.argsort(rng.random((STUDIES, len(every))), axis=1)[:, :count]]
    return np.argsort(rng.random((STUDIES, count, tasks)), axis=-1)  # 24 of 8! orders are hardly ever equal


@cache
def finals(tasks: int, count: int) -> np.ndarray:
    """Return (STUDIES, count, T) final scores of one seed."""
    orders = random_orders(tasks, count)
    return fixed(orders) + noise(orders, make_rng(0, "", "noise", 100 * tasks + count))[:, :, 0]


@cache
def expected(tasks: int) -> np.ndarray:
    """Return (orders, T), the expected scores of all orders, or of many."""
    rng = make_rng(0, "", "truth")
    every = permutations(range(tasks)) if tasks < 7 else (rng.permutation(tasks) for _ in range(5000))
    return fixed(np.array(list(every)))


def order_names(orders: np.ndarray) -> list[str]:
    return [" > ".join(map(str, order)) for order in orders]

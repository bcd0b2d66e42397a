"""Intervals cover the truth as often as they say: on held-out blocks, after a search, with shared stages."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shared_stages import expected, finals, fixed, named, noise, random_orders

from dgg_ray.analysis.optimism import below
from dgg_ray.analysis.run_table import BLOCK
from dgg_ray.config.simulation import Law
from dgg_ray.core import draws
from dgg_ray.core.orders import design, others
from dgg_ray.report.figures.stability_plasticity import AXES, bands
from dgg_ray.stats.intervals import clusters_of, mean_interval, paired_difference, ways_of

STUDIES, TASKS, BUFFER, RANK = 2000, 6, 20, 8
LAW = Law(seed=3, noise=0.02, place=0.01)
ALPHAS = (0.0, 0.1, 0.3, 0.6, 1.0)
NAMES = tuple(f"task{i}" for i in range(TASKS))


def learned(orders: np.ndarray, noise: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """(α, …) final accuracies. orders: (…, T); noise: (α, …, T, T), by stage and task; exam: (α, …, T)."""
    natures = np.array([LAW.nature(name) for name in NAMES])
    skills = np.zeros((len(ALPHAS), *orders.shape))  # by place in the order
    for t in range(TASKS):
        top, rigid, frail, _ = np.moveaxis(natures[orders[..., t]], -1, 0)
        alpha = np.array(ALPHAS if t else [0.0] * len(ALPHAS)).reshape(-1, *[1] * (orders.ndim - 1))
        kept = 1 - frail * (1 - 0.85 * (1 - (1 - alpha) ** 2)) / (1 + BUFFER / 50)
        skills[..., :t] *= kept[..., None]
        own = top * (1 - 0.3 * 2 ** (-RANK / 8)) * (1 - rigid * alpha**2) - LAW.place * t
        skills[..., t] = own
        skills[..., : t + 1] = np.clip(skills[..., : t + 1] + noise[..., t, : t + 1], 0, 1)
    return np.clip(skills + evaluation * np.sqrt(skills * (1 - skills) / 500), 0, 1).mean(axis=-1)


def drawn(orders: np.ndarray, salt: str) -> tuple[np.ndarray, np.ndarray]:
    """(validation, test) accuracies (α, …), half of the training noise common to all settings."""
    rng = draws.generator(0, "", salt)
    shape = (*orders.shape[:-1], TASKS, TASKS)
    common, own = rng.standard_normal(shape), rng.standard_normal((len(ALPHAS), *shape))
    noise = LAW.noise * (common + own) / 2**0.5
    evaluations = rng.standard_normal((2, len(ALPHAS), *orders.shape))
    return learned(orders, noise, evaluations[0]), learned(orders, noise, evaluations[1])


@cache
def truth() -> np.ndarray:
    """(α,) mean over random orders and seeds."""
    rng = draws.generator(1, "", "truth")
    orders = np.argsort(rng.random((40_000, TASKS)), axis=1)
    return drawn(orders, "truth")[1].mean(axis=-1)


def numbered(orders) -> list[list[int]]:
    return [[NAMES.index(name) for name in order] for order in orders]


@cache
def simulated(held_out: int):
    """Per study: the winner, what the search saw of it, and (validation, test) of all on the final blocks.

    Searched on two orders with two seeds each, as studies are; the final orders are those of the protocol.
    """
    tasks = list(NAMES)
    first = [design("random", tasks, 2, s, (), None, 2, ()) for s in range(STUDIES)]
    search = np.repeat([numbered(orders) for orders in first], 2, axis=1)
    seen = drawn(search, "search")[0].mean(axis=-1)  # (α, studies)
    final = np.array([numbered(others(tasks, orders, held_out, s)) for s, orders in enumerate(first)])
    return seen.argmax(axis=0), seen.max(axis=0), drawn(final, f"final {held_out}")


def covered(found, true) -> bool:
    return found.low <= true <= found.high


def test_the_vectorised_law_is_the_law():
    orders = np.array([[2, 0, 1, 5, 4, 3]])
    none = np.zeros((len(ALPHAS), 1, TASKS, TASKS))
    found = learned(orders, none, none[..., 0])[:, 0]
    for alpha, faa in zip(ALPHAS, found, strict=True):
        skills: dict[str, float] = {}
        for task in orders[0]:
            skills = LAW.learned(skills, NAMES[task], alpha, BUFFER, RANK)
        assert faa == pytest.approx(np.mean(list(skills.values())))


@pytest.mark.whole
@pytest.mark.parametrize("blocks", [3, 4, 8])
def test_intervals_over_held_out_blocks_cover_whatever_the_search_chose(blocks):
    winner, seen, (validation, test) = simulated(blocks)
    level, difference, total, choice = [], [], [], []
    for s, w in enumerate(winner):
        mine, true = test[w, s], truth()[w]
        level.append(covered(mean_interval(mine), true))
        total.append(covered(below(seen[s], mean_interval(mine), True), seen[s] - true))
        choice.append(covered(below(seen[s], mean_interval(validation[w, s]), True), seen[s] - true))
        baseline = 0 if w else len(ALPHAS) - 1  # replay, or the other end where replay itself won
        difference.append(covered(paired_difference(mine, test[baseline, s]), true - truth()[baseline]))
    for share in map(np.mean, (level, difference, total, choice)):
        assert 0.93 <= share <= 0.97


@pytest.mark.whole
@pytest.mark.parametrize(("seeds", "below"), [(2, 0.945), (4, 0.91)])
def test_the_blocks_of_the_search_hold_as_far_as_their_orders_are_independent(seeds, below):
    tasks = list(NAMES)
    first = [design("random", tasks, 4, s, (), None, 2, ()) for s in range(STUDIES)]
    crossed = drawn(np.repeat([numbered(o) for o in first], seeds, axis=1), f"crossed {seeds}")[0]
    winner = crossed.mean(axis=-1).argmax(axis=0)
    blocks = [[(" > ".join(order), seed) for order in orders for seed in range(seeds)] for orders in first]
    found = [
        mean_interval(crossed[w, s], clusters=clusters_of(tuple(blocks[s]))) for s, w in enumerate(winner)
    ]
    level = [covered(i, truth()[w]) for i, w in zip(found, winner, strict=True) if i.n > 2]
    alone = [covered(mean_interval(crossed[w, s]), truth()[w]) for s, w in enumerate(winner)]
    assert 0.93 <= np.mean(level) <= 0.97
    assert np.mean(alone) < below  # as if blocks of one order shared nothing
    assert all(np.isnan(i.low) for i in found if i.n < 3)


SHARED = [(4, 12), (6, 24), (8, 24)]  # tasks, random orders with one seed


@pytest.mark.parametrize(("tasks", "count"), SHARED)
def test_intervals_of_means_and_paired_differences_hold_where_orders_share_stages(tasks, count):
    orders = random_orders(tasks, count)
    ours = finals(tasks, count).mean(axis=-1)
    rng = draws.generator(0, "", "rival", tasks)
    baseline = (0.5 * fixed(orders) + noise(orders, rng)[:, :, 0]).mean(axis=-1)
    mean, half = expected(tasks).mean(), 0.5 * expected(tasks).mean()
    level, difference, alone = [], [], []
    for order, mine, theirs in zip(orders, ours, baseline, strict=True):
        shared = clusters_of(tuple((name, 0) for name in named(order)))
        level.append(covered(mean_interval(mine, clusters=shared), mean))
        difference.append(covered(paired_difference(mine, theirs, clusters=shared), half))
        alone.append(covered(mean_interval(mine), mean))
    assert 0.93 <= np.mean(level) <= 0.97
    assert 0.93 <= np.mean(difference) <= 0.97
    assert np.mean(alone) < 0.92


@pytest.mark.parametrize("blocks", [3, 4, 5, 8])
def test_the_crosses_of_the_figure_hold(blocks):
    orders = random_orders(6, blocks)
    table = np.stack([finals(6, blocks)[..., :2].mean(axis=-1), finals(6, blocks).mean(axis=-1)], axis=-1)
    true = expected(6)[:, :2].mean(), expected(6).mean()
    held: list[tuple[bool, bool]] = []
    for order, rows in zip(orders, table, strict=True):
        index = pd.MultiIndex.from_arrays([named(order), [0] * blocks], names=BLOCK)
        found = bands(pd.DataFrame(rows, index, list(AXES)))
        if found["clusters"] > 2:
            held.append(
                tuple(found[f"{a}_low"] <= t <= found[f"{a}_high"] for a, t in zip(AXES, true, strict=True))
            )
    assert len(held) > 0.5 * len(orders)
    assert (np.mean(held, axis=0) >= 0.93).all()
    assert (np.mean(held, axis=0) <= 0.97).all()


@pytest.mark.whole
def test_the_score_that_was_chosen_for_is_too_good_on_average():
    orders = np.argsort(draws.generator(2, "", "luck").random((STUDIES, 2, TASKS)), axis=-1)
    seen = drawn(orders, "luck")[0].mean(axis=-1)
    luck = seen - truth()[:, None]
    of_choice = luck[seen.argmax(axis=0), np.arange(STUDIES)] - luck.mean(axis=0)  # same blocks, all settings
    assert of_choice.mean() > 3 * of_choice.std() / STUDIES**0.5


# -- skewed scores near the ends of the scale, orders and seeds ------------------------------------


@cache
def benchmark():
    """benchmarks/coverage.py, whose figures are in the docs."""
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("skewed_scores", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and named tuples ask for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("place", "at_most"), [((0.97, 0.03), 0.91), ((0.10, 0.06), 0.945)])
def test_intervals_hold_near_the_ends_of_the_scale_where_plain_t_does_not(place, at_most):
    run = benchmark()
    shown, plain, gap, there, _ = run.other_orders(run.Design(4, 1, own=True), place, 600)
    assert 0.93 <= shown <= 0.97
    assert plain < at_most
    assert 0.93 <= gap <= 0.97
    assert there == 1


@pytest.mark.whole
@pytest.mark.parametrize("orders", [3, 6, 8])
@pytest.mark.parametrize("place", [(0.03, 0.02), (0.65, 0.06), (0.97, 0.03)])
def test_intervals_over_held_out_blocks_hold_anywhere_on_the_scale(orders, place):
    run = benchmark()
    shown, *_ = run.other_orders(run.Design(orders, 1, own=True), place, 2000)
    assert 0.93 <= shown <= 0.97


@pytest.mark.whole
@pytest.mark.parametrize(("orders", "seeds"), [(6, 2), (6, 3), (24, 2)])
@pytest.mark.parametrize("place", [(0.65, 0.06), (0.97, 0.03)])
def test_intervals_hold_where_orders_share_seeds(orders, seeds, place):
    run = benchmark()
    shown, _, gap, *_ = run.other_orders(run.Design(orders, seeds), place, 1000)
    assert 0.93 <= shown <= 0.98
    assert 0.93 <= gap <= 0.98


@pytest.mark.parametrize("design", [(2, 3), (2, 2, True)])
def test_intervals_on_these_orders_hold_over_seeds(design):
    run = benchmark()
    covered_, width = run.these_orders(run.Design(*design), (0.65, 0.06), 500)
    assert 0.925 <= covered_ <= 0.975
    assert width < 15  # two orders alone would give ±50 points and more


def test_orders_of_one_seed_speak_of_that_seed():
    # 24 orders, sd 0.047, with one seed, sd 0.016: of other seeds the interval says too little
    rng = draws.generator(0, "", "one seed")
    of_order, of_seed = rng.normal(0, 0.047, (1000, 24)), rng.normal(0, 0.016, (1000, 1))
    blocks = ways_of(tuple((f"task{i} > b", 0) for i in range(24)))
    found = [mean_interval(row, clusters=blocks) for row in of_order + of_seed]
    assert 0.93 <= np.mean([covered(i, s) for i, s in zip(found, of_seed[:, 0], strict=True)]) <= 0.97
    assert np.mean([covered(i, 0) for i in found]) < 0.85

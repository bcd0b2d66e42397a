"""Fitted rates: predictions on paper, and intervals with the right coverage."""

import numpy as np
import pytest

from dgg_ray.cost.rates import Measurement, Part, RateModel, combine

TASKS = ["a", "b", "c", "d"]


def draw_amounts(rng, truth, parts, scatter):
    """Draw what parts really take: exp(μ + a + b · log rank), times lognormal scatter."""
    a, b = truth
    plain = [sum(n * np.exp(a[name]) for name, n in p.counts.items()) * p.rank**b for p in parts]
    return np.array(plain) * np.exp(scatter * rng.standard_normal(len(parts)))


@pytest.mark.statistics
@pytest.mark.parametrize(("stages", "scatter"), [(2, 0.1), (60, 0.1), (60, 0.3)])
def test_about_950_of_a_thousand_intervals_hold_the_true_amount(stages, scatter):
    rng = np.random.default_rng(stages)
    measured = [Part("train", {name: 32.0}, rank) for name in TASKS for rank in (4, 16) for _ in range(3)]
    parts = [
        Part("train", {name: 900.0, other: 100.0} if i % 2 else {name: 500.0}, rank)
        for i, (name, other, rank) in enumerate(
            zip(
                rng.choice(TASKS, stages), rng.choice(TASKS, stages), rng.choice([4, 16], stages), strict=True
            )
        )
    ]
    held = 0
    for _ in range(1000):
        truth = dict(zip(TASKS, rng.standard_normal(4), strict=True)), rng.uniform(0, 0.5)
        amounts = draw_amounts(rng, truth, measured, scatter)
        rate = RateModel(TASKS, list(map(Measurement, measured, amounts)))
        predicted = combine([rate.sum(parts)])
        held += predicted.low <= draw_amounts(rng, truth, parts, scatter).sum() <= predicted.high
    assert 930 <= held <= 970


def test_scatter_averages_out_and_doubt_about_the_rate_does_not():
    rng = np.random.default_rng(0)
    part = Part("train", {"a": 1.0}, 8)
    rate = RateModel(["a"], [Measurement(part, took) for took in np.exp(0.2 * rng.standard_normal(25))])

    def width(count):
        predicted = combine([rate.sum([part] * count)])
        return np.log(predicted.high / predicted.low)

    assert width(1) > 4 * width(1000)
    assert width(3000) == pytest.approx(width(10**4), rel=0.02)
    # 25 measurements: doubt 1/√25 of the scatter, and one stage has both: √(1/25) against √(1 + 1/25)
    assert width(10**4) / width(1) == pytest.approx((1 / 26) ** 0.5, rel=0.02)


def measurement(counts, rank, amount):
    return Measurement(Part("train", counts, rank), amount)


def test_a_mixed_stage_takes_what_its_tasks_take():
    measurements = [measurement({"a": 10.0}, 8, 10.0), measurement({"b": 10.0}, 8, 40.0)] * 20
    mean = RateModel(["a", "b"], measurements).sum([Part("train", {"a": 3.0, "b": 1.0}, 8)]).mean
    assert mean == pytest.approx(3 * 1 + 1 * 4, rel=0.02)


def test_a_task_or_rank_that_was_never_measured_is_predicted_from_the_others_with_a_wide_interval():
    measurements = [measurement({name: 10.0}, 8, 10.0) for name in ("a", "b") for _ in range(10)]
    rate = RateModel(["a", "b", "c"], measurements)
    known, task, rank = (
        combine([rate.sum([Part("train", {name: 100.0}, r)])]) for name, r in (("a", 8), ("c", 8), ("a", 64))
    )
    assert known.high / known.low < 1.5
    assert task.low < known.mean < task.high
    assert task.high / task.low > 20
    assert rank.high / rank.low > 3


def test_the_rank_trend_reaches_a_rank_between():
    measurements = [measurement({"a": 1.0}, rank, rank**0.3) for rank in (2, 8, 32) for _ in range(5)]
    mean = RateModel(["a"], measurements).sum([Part("train", {"a": 1.0}, 16)]).mean
    assert mean == pytest.approx(16**0.3, rel=0.02)

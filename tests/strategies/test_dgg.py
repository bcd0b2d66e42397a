"""The DGG update against a float64 reference written from the formula alone, in NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dgg_ray.core.interfaces import ShardedTensors
from dgg_ray.strategies.dgg import DGG, add_guidance
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.l2sp import L2SP
from dgg_ray.strategies.replay import Replay

STEPS = 10_000


def reference(theta, anchor, g, norm, scale):
    """g + d · min(1, ‖g‖/‖d‖) in float64, over the concatenation or tensor by tensor."""
    if norm == "tensor":
        return [
            r
            for t, a, x in zip(theta, anchor, g, strict=True)
            for r in reference([t], [a], [x], "global", scale)
        ]
    d = np.concatenate(
        [(t.astype(np.float64) - a.astype(np.float64)).ravel() for t, a in zip(theta, anchor, strict=True)]
    )
    flat = np.concatenate([x.astype(np.float64).ravel() for x in g])
    size = np.sqrt((d**2).sum())
    factor = min(1.0, np.sqrt((flat**2).sum()) / size) if scale and size > 0 else 1.0
    whole, out, first = flat + factor * d, [], 0
    for x in g:
        out.append(whole[first : first + x.size].reshape(x.shape))
        first += x.size
    return out


@pytest.mark.parametrize("norm", ["global", "tensor"])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 0.3, 50.0])
def test_guidance_equals_the_formula_in_float64(norm, scale, distance):
    for seed in range(25):
        random = np.random.default_rng(seed)
        shapes = [
            tuple(random.integers(1, 9, size=random.integers(1, 4))) for _ in range(random.integers(1, 7))
        ]
        anchor = [random.normal(size=s).astype(np.float32) for s in shapes]
        theta = [a + np.float32(distance) * random.normal(size=a.shape).astype(np.float32) for a in anchor]
        g = [random.normal(size=s).astype(np.float32) for s in shapes]
        expected = reference(theta, anchor, g, norm, scale)

        gradients = ShardedTensors(torch.from_numpy(x.copy()) for x in g)
        add_guidance(
            ShardedTensors(torch.from_numpy(t) for t in theta),
            [torch.from_numpy(a) for a in anchor],
            gradients,
            norm,
            scale,
        )

        for mine, right in zip(gradients, expected, strict=True):
            # float32 keeps 24 bits of the largest number that took part
            largest = max(1.0, np.abs(right).max())
            assert np.abs(mine.numpy() - right).max() <= 1e-6 * largest


@pytest.mark.parametrize("norm", ["global", "tensor"])
def test_shards_of_tensors_are_guided_like_whole_tensors(norm):
    # Two processes: one holds the first tensor and two elements of the second, the other the rest.
    random = torch.Generator().manual_seed(0)
    theta, anchor, g = ([torch.randn(n, generator=random) for n in (3, 5)] for _ in range(3))
    whole = ShardedTensors(x.clone() for x in g)
    add_guidance(ShardedTensors(theta), anchor, whole, norm)

    def cut(tensors):
        return [tensors[0], tensors[1][:2]], [tensors[0][:0], tensors[1][2:]]

    def squares(mine):
        return torch.stack([x.square().sum() for x in mine])

    (t0, t1), (a0, a1), (g0, g1) = cut(theta), cut(anchor), cut([x.clone() for x in g])
    others = torch.cat([squares(g1), squares([t - a for t, a in zip(t1, a1, strict=True)])])
    add_guidance(ShardedTensors(t0, total=lambda values: values + others), a0, ShardedTensors(g0), norm)
    assert torch.allclose(torch.cat(g0), torch.cat(cut(whole)[0]), rtol=1e-6)


def test_both_branches_of_the_cap():
    theta, anchor = ShardedTensors([torch.tensor([3.0, 0.0])]), [torch.tensor([0.0, 0.0])]
    small = ShardedTensors([torch.tensor([0.0, 1.0])])  # ‖g‖ = 1 < ‖d‖ = 3: ĝ = d/3
    large = ShardedTensors([torch.tensor([0.0, 4.0])])  # ‖g‖ = 4 > ‖d‖ = 3: ĝ = d

    add_guidance(theta, anchor, small)
    add_guidance(theta, anchor, large)

    assert small[0].tolist() == [1.0, 1.0]
    assert large[0].tolist() == [3.0, 4.0]


def test_guidance_is_zero_at_the_anchor_even_without_a_gradient():
    at = ShardedTensors([torch.tensor([1.0, 2.0])])
    still = ShardedTensors([torch.zeros(2)])
    add_guidance(at, at, still)
    assert still[0].tolist() == [0.0, 0.0]


def test_without_a_gradient_the_cap_lets_nothing_through():
    gradients = ShardedTensors([torch.zeros(2)])
    add_guidance(ShardedTensors([torch.tensor([3.0, 4.0])]), [torch.zeros(2)], gradients)
    assert gradients[0].tolist() == [0.0, 0.0]


def test_descent_on_the_guidance_moves_towards_the_anchor():
    theta, gradients = torch.tensor([5.0, -1.0]), ShardedTensors([torch.tensor([0.0, 0.5])])
    add_guidance(ShardedTensors([theta]), [torch.tensor([1.0, -1.0])], gradients)
    assert (theta - 0.1 * gradients[0])[0] < theta[0]


def opened(alpha, gate="bernoulli", task="words", seed=3):
    dgg = DGG(alpha=alpha, gate=gate)
    dgg.begin_task(ShardedTensors([torch.zeros(1)]), task, ("digits",), seed)
    return {step for step in range(STEPS) if dgg.is_open(step)}


@pytest.mark.whole
def test_the_gate_opens_on_a_share_alpha_of_the_steps():
    for alpha in (0.05, 0.2, 0.7):
        deviation = abs(len(opened(alpha)) - STEPS * alpha)
        assert deviation < 4 * np.sqrt(STEPS * alpha * (1 - alpha))  # 4 sd of the binomial


def test_a_larger_alpha_opens_on_a_superset_of_the_steps():
    steps = [opened(alpha) for alpha in (0.05, 0.2, 0.7, 1.0)]
    assert all(small < large for small, large in pairwise(steps))
    assert len(steps[-1]) == STEPS


@pytest.mark.whole
def test_draws_differ_between_tasks_and_seeds_and_are_reproducible():
    assert opened(0.3) == opened(0.3)
    assert opened(0.3) != opened(0.3, task="charts")
    assert opened(0.3) != opened(0.3, seed=4)


def test_the_periodic_gate_opens_evenly():
    steps = sorted(opened(0.25, gate="periodic"))
    assert steps == list(range(3, STEPS, 4))


@pytest.mark.parametrize("percent", range(1, 100))
def test_the_periodic_gate_opens_as_often_as_alpha_says(percent):
    # 100 · 0.29 is 28.999999999999996 in binary
    dgg = DGG(alpha=percent / 100, gate="periodic")
    dgg.memory.update(task="words", seed=0)
    assert sum(dgg.is_open(step) for step in range(100)) == percent


def test_the_first_task_of_an_order_has_no_guidance_and_no_anchor():
    dgg = DGG(alpha=1.0)
    dgg.begin_task([torch.ones(2)], "words", (), 0)
    gradients = [torch.tensor([1.0, 2.0])]
    dgg.edit_gradient([torch.zeros(2)], gradients, 0)
    assert gradients[0].tolist() == [1.0, 2.0]
    assert dgg.memory == {}


def test_alpha_follows_the_name_of_the_task():
    dgg = DGG(alpha={"words": 0.2, "charts": 0.0}, buffer=5)
    assert dgg.effect("words", ("charts",))["dgg"]["alpha"] == 0.2
    assert dgg.effect("charts", ("words",)) == {"buffer": 5}


def test_settings_that_train_alike_have_an_equal_effect():
    earlier = ("digits",)
    assert DGG(alpha=0.0).effect("words", earlier) == Finetune().effect("words", earlier) == {}
    assert DGG(alpha=0.0, buffer=7).effect("words", earlier) == Replay(buffer=7).effect("words", earlier)
    assert DGG(alpha=1.0).effect("w", earlier) == DGG(alpha=0.1, gate="always").effect("w", earlier)
    assert DGG(alpha=0.5).effect("w", earlier) != DGG(alpha=0.5, norm="tensor").effect("w", earlier)
    assert L2SP(strength=0.0, buffer=7).effect("words", earlier) == Replay(buffer=7).effect("words", earlier)


def test_l2sp_adds_the_gradient_of_half_lambda_times_the_squared_distance():
    l2sp = L2SP(strength=0.5)
    l2sp.begin_task([torch.tensor([1.0, 1.0])], "words", ("digits",), 0)
    gradients = [torch.tensor([0.25, 0.0])]
    l2sp.edit_gradient([torch.tensor([3.0, 0.0])], gradients, 0)
    assert gradients[0].tolist() == [0.25 + 0.5 * 2.0, 0.5 * -1.0]


def test_unscaled_guidance_on_every_step_is_l2sp_with_strength_one():
    theta, anchor = [torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 1.0])]
    by_dgg, by_l2sp = [torch.tensor([0.1, 0.2])], [torch.tensor([0.1, 0.2])]
    dgg, l2sp = DGG(alpha=1.0, scale=False), L2SP(strength=1.0)
    for strategy, gradients in ((dgg, by_dgg), (l2sp, by_l2sp)):
        strategy.begin_task(anchor, "words", ("digits",), 0)
        strategy.edit_gradient(theta, gradients, 0)
    assert torch.equal(by_dgg[0], by_l2sp[0])

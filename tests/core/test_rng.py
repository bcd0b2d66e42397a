"""Draws equal the published Philox algorithm, so no version of a library can change them."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
import torch
from llava_samples import read, sample

from dgg_ray.core import rng
from dgg_ray.core.strategy import replay_sample
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.batches import shuffled_batches

MASK = 2**64 - 1


def philox(key: int, counter: int) -> list[int]:
    """Return four words: ten rounds of Philox-4x64 as in Salmon et al. 2011, figure 2."""
    k0, k1 = key & MASK, key >> 64
    c = [counter >> 64 * i & MASK for i in range(4)]
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def expected_words(count: int, seed: int, task: str, purpose: str, step: int) -> list[int]:
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{task}\0{purpose}".encode()).digest()[:16], "little")
    blocks = (philox(key, (step << 128) + 1 + i) for i in range(-(-count // 4)))
    return [word for block in blocks for word in block][:count]


@pytest.mark.parametrize("step", [0, 7])
def test_words_equal_the_published_algorithm(step):
    expected = expected_words(11, 3, "words", "shuffle", step)
    assert rng.words(11, 3, "words", "shuffle", step).tolist() == expected


def test_all_draws_follow_from_the_words():
    (word,) = expected_words(1, 0, "words", "gate", 5)
    assert rng.uniform(0, "words", "gate", 5) == (word >> 11) / 2**53
    assert rng.integer(0, "words", "gate", 5) == word >> 1
    assert rng.below(10, 0, "words", "gate", 5) == word * 10 // 2**64
    keys = expected_words(9, 0, "words", "gate", 5)
    assert rng.permutation(9, 0, "words", "gate", 5) == sorted(range(9), key=keys.__getitem__)


@pytest.fixture()
def other_random_sources(monkeypatch):
    """Make every other source of random numbers raise, because its next version may draw other numbers."""

    def other_version(*_, **__):
        raise AssertionError("another version of a library draws something else")

    for module, names in (
        (np.random, ("Generator", "default_rng", "RandomState", "permutation", "shuffle", "rand", "choice")),
        (random, ("Random", "random", "shuffle", "sample", "randrange", "choice")),
        (torch, ("Generator", "randperm", "rand", "randint", "multinomial", "bernoulli")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, other_version)


def test_the_examples_of_a_task_are_drawn_from_words_alone(tmp_path, other_random_sources):
    task = read(sample(tmp_path), limit=4, limit_test=2)
    assert [len(task.examples[split]) for split in ("train", "validation", "test")] == [4, 1, 2]


def test_the_batches_of_a_stage_and_its_replay_are_drawn_from_words_alone(world, other_random_sources):
    (stage,) = world.stages_of("fours", strategy=DGG(alpha=0.5), batch_size=1, epochs=3)
    examples = world.tasks["fours"].examples["train"]
    batches = [batch[0].id for batch in shuffled_batches(examples, stage)]
    assert sorted(batches) == sorted([example.id for example in examples] * 3)
    assert len(replay_sample(world.tasks["fours"], 2, seed=0)) == min(2, len(examples))


@pytest.mark.parametrize("gate", ["bernoulli", "periodic", "always"])
def test_the_gate_of_dgg_is_drawn_from_words_alone(other_random_sources, gate):
    strategy = DGG(alpha=0.5, gate=gate)
    strategy.memory.update(task="words", seed=0)
    opened = sum(strategy.is_open(step) for step in range(200))
    assert opened == 200 if gate == "always" else 60 < opened < 140


def test_permutations_and_integers_are_uniform():
    seen = Counter(tuple(rng.permutation(3, 0, "", "uniform", step)) for step in range(6000))
    assert len(seen) == 6
    numbers = Counter(rng.below(6, 0, "", "below", step) for step in range(6000))
    assert sorted(numbers) == list(range(6))
    for counts in (seen, numbers):
        # chi-squared with 5 degrees of freedom: 20.5 is exceeded once in a thousand
        assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


def test_permutations_of_zero_and_one_elements():
    assert rng.permutation(0, 0, "", "") == []
    assert rng.permutation(1, 0, "", "") == [0]

"""Everything random, from counters.

A draw is a function of (seed, task, step, purpose) and of nothing else: no global state, so a
draw is equal on all ranks without communication, equal after a resume, and equal for every
setting that is compared (common random numbers).

The generator is Philox-4x64 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"):
key = 128 bits of SHA-256 over (seed, task, purpose), counter = step. Numbers and permutations are made
here from its 64-bit words, which are the algorithm's: NumPy promises its bit generators to be the same in
every version, and what `Generator` makes of their words it does not.
"""

from __future__ import annotations

import hashlib

import numpy as np


def bits(seed: int, task: str, purpose: str, step: int = 0) -> np.random.Philox:
    """A source of words of its own for this (seed, task, purpose, step); `purpose` keeps uses apart."""
    digest = hashlib.sha256(f"{seed}\0{task}\0{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    # The step fills the counter's high words: each step owns 2^128 blocks, so steps never overlap.
    return np.random.Philox(key=key, counter=[0, 0, step, 0])


def words(count: int, seed: int, task: str, purpose: str, step: int = 0) -> np.ndarray:
    """(count,) uint64, uniform: the first words of that source."""
    return bits(seed, task, purpose, step).random_raw(count)


def uniform(seed: int, task: str, purpose: str, step: int) -> float:
    """u in [0, 1), uniform, a multiple of 2^-53."""
    return int(words(1, seed, task, purpose, step)[0] >> np.uint64(11)) * 2.0**-53


def integer(seed: int, task: str, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for a library with a generator of its own, such as torch."""
    return int(words(1, seed, task, purpose, step)[0] >> np.uint64(1))


def permutation(count: int, seed: int, task: str, purpose: str, step: int = 0) -> list[int]:
    """0 … count - 1 in random order, all orders alike: places sorted by a random word each.

    Two words are equal with a probability below count² / 2^65; the earlier place is first then.
    """
    return np.argsort(words(count, seed, task, purpose, step), kind="stable").tolist()


def below(bound: int, seed: int, task: str, purpose: str, step: int = 0) -> int:
    """A whole number from 0 to bound - 1, all alike but for bound / 2^64."""
    return int(words(1, seed, task, purpose, step)[0]) * bound >> 64


def generator(seed: int, task: str, purpose: str, step: int = 0) -> np.random.Generator:
    """NumPy's generator on that source, for pictures, simulated scores and resamples.

    Another version of NumPy may draw others; embedded tasks are keyed by the pictures themselves."""
    return np.random.Generator(bits(seed, task, purpose, step))

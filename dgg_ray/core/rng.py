"""Counter-based random numbers: a draw is a function of (seed, task, step, purpose) and of nothing else.

There is no global state. So a draw is equal on all ranks without communication, equal after a resume, and
equal for all settings that are compared (common random numbers).

The generator is Philox-4x64 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key
is 128 bits of SHA-256 over (seed, task, purpose), the counter is the step. This module makes numbers and
permutations from the generator's 64-bit words. NumPy promises the words of its bit generators to be the same
in every version, but not the numbers that `Generator` makes of them.

`purpose` keeps the uses of one seed apart. It is part of the random stream: another purpose gives other
draws.
"""

from __future__ import annotations

import hashlib

import numpy as np


def bits(seed: int, task: str, purpose: str, step: int = 0) -> np.random.Philox:
    """Return the bit generator of this (seed, task, purpose, step)."""
    key_digest = hashlib.sha256(f"{seed}\0{task}\0{purpose}".encode()).digest()
    key = np.frombuffer(key_digest[:16], dtype="<u8")
    # The step fills the counter's high words: each step owns 2^128 blocks, so steps never overlap.
    return np.random.Philox(key=key, counter=[0, 0, step, 0])


def words(count: int, seed: int, task: str, purpose: str, step: int = 0) -> np.ndarray:
    """Draw (count,) uint64, uniform: the first words of that bit generator."""
    return bits(seed, task, purpose, step).random_raw(count)


def uniform(seed: int, task: str, purpose: str, step: int) -> float:
    """Draw u in [0, 1), uniform, a multiple of 2^-53."""
    return int(words(1, seed, task, purpose, step)[0] >> np.uint64(11)) * 2.0**-53


def integer(seed: int, task: str, purpose: str, step: int = 0) -> int:
    """Draw a 63-bit seed for a library with a generator of its own, such as torch."""
    return int(words(1, seed, task, purpose, step)[0] >> np.uint64(1))


def permutation(count: int, seed: int, task: str, purpose: str, step: int = 0) -> list[int]:
    """Draw a permutation of 0 … count - 1, uniform over all orders: positions sorted by one random word each.

    Two words are equal with a probability below count² / 2^65; then the earlier position comes first.
    """
    return np.argsort(words(count, seed, task, purpose, step), kind="stable").tolist()


def below(bound: int, seed: int, task: str, purpose: str, step: int = 0) -> int:
    """Draw an integer from 0 to bound - 1, uniform up to bound / 2^64."""
    return int(words(1, seed, task, purpose, step)[0]) * bound >> 64


def make_rng(seed: int, task: str, purpose: str, step: int = 0) -> np.random.Generator:
    """Return NumPy's generator on that bit generator, for images, simulated scores and resampling.

    Another version of NumPy may draw other numbers. Embedded tasks are therefore keyed by their images.
    """
    return np.random.Generator(bits(seed, task, purpose, step))

"""Everything random, from counters.

A draw is a function of (seed, task, step, purpose) and of nothing else: no global state, so a
draw is equal on all ranks without communication, equal after a resume, and equal for every
setting that is compared (common random numbers).

The generator is Philox-4x64 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"):
key = 128 bits of SHA-256 over (seed, task, purpose), counter = step.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, task: str, purpose: str, step: int = 0) -> np.random.Generator:
    """A generator of its own for this (seed, task, purpose, step); `purpose` keeps uses apart."""
    digest = hashlib.sha256(f"{seed}\0{task}\0{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype=np.uint64)
    # The step fills the counter's high words: each step owns 2^128 blocks, so steps never overlap.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, 0]))


def uniform(seed: int, task: str, purpose: str, step: int) -> float:
    """u in [0, 1), uniform."""
    return float(generator(seed, task, purpose, step).random())


def integer(seed: int, task: str, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for a library with a generator of its own, such as torch."""
    return int(generator(seed, task, purpose, step).integers(2**63 - 1))

"""The similarity of two tasks' training examples, by words and simple image statistics, without a model.

    similarity(a, b) = mean over three views of  Σ_x √( p_a(x) · p_b(x) )       Bhattacharyya's coefficient

    view       x                                                  p(x)
    questions  a word of a question                               its share of all words
    answers    a word of an answer                                its share of all words
    images     brightness and contrast, in eighths of the range   share of the images; no image is an x too

1 where two tasks have the same shares in each view, 0 where they have nothing in common. It compares the form
of tasks, not their meaning. It serves to arrange tasks; no result depends on its size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image

from dgg_ray.core import image_conversion
from dgg_ray.core.interfaces import Example, Task

EXAMPLES = 200  # of a task, evenly spread, so that shares are known to a few hundredths

Shares = dict[Hashable, float]
Profile = tuple[Shares, Shares, Shares]  # questions, answers, images


def profile_of(task: Task) -> Profile:
    """Summarize a task for the similarity, so that its examples need not stay in memory."""
    train = task.examples["train"]
    sample = train[:: -(-len(train) // EXAMPLES)]
    return (
        shares(word for example in sample for word in words_of(example.question)),
        shares(word for example in sample for word in words_of(example.answer)),
        shares(grey_statistics(example) for example in sample),
    )


def similarity_matrix(profiles: Sequence[Profile]) -> tuple[tuple[float, ...], ...]:
    """The similarity of each pair of tasks: (T, T), symmetric, in [0, 1]."""
    return tuple(tuple(similarity(a, b) for b in profiles) for a in profiles)


def similarity(a: Profile, b: Profile) -> float:
    # Sorted, because a sum of floats depends on the sequence of its terms, and orders must not.
    views = [
        sum(sorted((p * q[x]) ** 0.5 for x, p in view.items() if x in q))
        for view, q in zip(a, b, strict=True)
    ]
    return round(sum(views) / len(views), 9)


def shares(items: Iterable[Hashable]) -> Shares:
    counts = Counter(items)
    return {x: n / counts.total() for x, n in counts.items()}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grey_statistics(example: Example) -> tuple[int, int] | None:
    """Mean and standard deviation of the grey values, in eighths of [0, 256) and [0, 128)."""
    if example.image is None:
        return None
    source = example.image
    with Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(source) as image:
        image.draft("L", (64, 64))  # a JPEG is decoded at a lower resolution
        grey = np.asarray(image_conversion.to_rgb(image).convert("L"))
    return int(grey.mean() // 32), min(int(grey.std() // 16), 7)

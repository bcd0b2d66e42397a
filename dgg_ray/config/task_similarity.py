"""How similarity two tasks' training examples are, from words_of and simple picture statistics, without a model.

    likeness(a, b) = mean over three views of  Σ_x √( p_a(x) · p_b(x) )         Bhattacharyya's coefficient

    view       x                                                  p(x)
    questions  a word of a question                               its share of all words_of
    answers    a word of an answer                                its share of all words_of
    pictures   brightness and contrast, in eighths of the range   share of the pictures; none is an x too

1 where two tasks have the same shares in each view, 0 where they have nothing in common. It tells tasks apart
by form, not by meaning; it serves to order tasks, and no result depends on its size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image

from dgg_ray.core import image_conversion
from dgg_ray.core.interfaces import Example, Task

EXAMPLES = 200  # of a task, evenly spread: shares are known to a few hundredths

Shares = dict[Hashable, float]
Profile = tuple[Shares, Shares, Shares]  # questions, answers, pictures


def profile_of(task: Task) -> Profile:
    """What the likeness needs of a task; small, so that the examples can be let go."""
    train = task.examples["train"]
    taken = train[:: -(-len(train) // EXAMPLES)]
    return (
        shares(word for example in taken for word in words_of(example.question)),
        shares(word for example in taken for word in words_of(example.answer)),
        shares(image_size(example) for example in taken),
    )


def similarity_matrix(profiles: Sequence[Profile]) -> tuple[tuple[float, ...], ...]:
    """(T, T), symmetric, in [0, 1]."""
    return tuple(tuple(similarity(a, b) for b in profiles) for a in profiles)


def similarity(a: Profile, b: Profile) -> float:
    # Sorted: a sum of floats depends on its sequence, and orders must not.
    views = [
        sum(sorted((p * q[x]) ** 0.5 for x, p in view.items() if x in q))
        for view, q in zip(a, b, strict=True)
    ]
    return round(sum(views) / len(views), 9)


def shares(found: Iterable[Hashable]) -> Shares:
    counts = Counter(found)
    return {x: n / counts.total() for x, n in counts.items()}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def image_size(example: Example) -> tuple[int, int] | None:
    """Mean and standard deviation of the grey values, in eighths of [0, 256) and [0, 128)."""
    if example.image is None:
        return None
    image = example.image
    with Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image) as picture:
        picture.draft("L", (64, 64))  # JPEG: fewer pixels are made
        grey = np.asarray(image_conversion.to_rgb(picture).convert("L"))
    return int(grey.mean() // 32), min(int(grey.std() // 16), 7)

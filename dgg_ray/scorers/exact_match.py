"""Share of the answers that are exactly right.

Two texts are equal by the rule of `texts.py`: case, width, white space, what cannot be seen and one final
full stop do not count. Any of the example's references is right too. An absent answer is wrong, and
stays in the denominator.

Where we differ from the evaluation scripts that LLaVA, CoIN and MCITlib publish: theirs divide by
the answers that were written, and CoIN's takes either text within the other as right, by which an
empty answer is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.core.texts import plain

VERSION = 2  # 2: texts.py


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """`each` is 0 or 1, `value` their mean; 0 for no examples."""
    each = tuple(
        float(is_right(prediction, example))
        for prediction, example in zip(predictions, examples, strict=True)
    )
    return Score(sum(each) / max(len(each), 1), each)


def is_right(prediction: str | None, example: Example) -> bool:
    said = plain(prediction or "")
    return said != "" and said in {plain(text) for text in (example.answer, *example.references)}


def remarks(examples: Sequence[Example]) -> Iterator[tuple[int, str]]:
    """(How many examples, what is to be known of them)."""
    empty = sum(not any(map(plain, (example.answer, *example.references))) for example in examples)
    yield empty, "have an empty gold answer, so that nothing is right"

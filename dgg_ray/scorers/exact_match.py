"""Share of the answers that are exactly right.

Two texts are equal by the rule of `core/text_normalization.py`: case, width, white space, invisible
characters and one final full stop do not count. Any of the example's references is right too. An absent
answer is wrong, and stays in the denominator.

Where we differ from the evaluation scripts that LLaVA, CoIN and MCITlib publish: theirs divide by
the number of answers written. CoIN's accepts either text inside the other, so an empty answer is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.core.text_normalization import normalize_text

VERSION = 2  # 2: normalised texts


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """`each` is 0 or 1, `value` their mean; 0 for no examples."""
    each = tuple(
        float(is_right(prediction, example))
        for prediction, example in zip(predictions, examples, strict=True)
    )
    return Score(sum(each) / max(len(each), 1), each)


def is_right(prediction: str | None, example: Example) -> bool:
    answer = normalize_text(prediction or "")
    return answer != "" and answer in {normalize_text(text) for text in (example.answer, *example.references)}


def remarks(examples: Sequence[Example]) -> Iterator[tuple[int, str]]:
    """Yield (number of examples, remark on them)."""
    empty = sum(not any(map(normalize_text, (example.answer, *example.references))) for example in examples)
    yield empty, "have an empty gold answer, so that nothing is right"

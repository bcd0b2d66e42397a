"""Share of the answers that are exactly right.

Case, white space around and repeated within, and one final full stop do not count. Any of the
example's references is right too. An absent answer is wrong, and stays in the denominator.

Where we differ from the evaluation scripts that LLaVA, CoIN and MCITlib publish: theirs divide by
the answers that were written, and CoIN's takes either text within the other as right, by which an
empty answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgg_ray.contracts import Example, Score


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


def plain(text: str) -> str:
    """Lower case, single spaces, no final full stop (unless it is all there is)."""
    text = " ".join(text.casefold().split())
    return text.removesuffix(".").rstrip() or text

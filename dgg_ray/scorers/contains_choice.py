"""Share of the multiple-choice questions in which the right option, and no other, was named.

The options are the example's choices, or else those that the question shows; an answer names one by
its label or by its text. What counts as an option and as naming one is the rule at the head of
`_choices.py`. The gold answer is read by the same rule: `B`, `green` and `B. green` are one.

The options named must be those of the gold answer: one more is wrong, and so is none. Where two
options have one text and the gold answer is that text, either is right. A question without options,
or with a gold answer that names none of them, is judged by equal text (`texts.py`); `dgg-ray plan`
counts both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.core.texts import plain
from dgg_ray.scorers._choices import Offer, named, offered

VERSION = 2  # 2: options in one line, lower case, bold, numbers; identity by label; texts.py


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """`each` is 0 or 1, `value` their mean; 0 for no examples. An absent answer is wrong."""
    each = tuple(
        float(is_right(prediction or "", example))
        for prediction, example in zip(predictions, examples, strict=True)
    )
    return Score(sum(each) / max(len(each), 1), each)


def is_right(prediction: str, example: Example) -> bool:
    offer = options(example)
    wanted = named(example.answer, offer)
    if not wanted:
        return plain(prediction) != "" and plain(prediction) == plain(example.answer)
    said = named(prediction, offer)
    one = len({offer.texts[i] for i in wanted}) == 1
    return bool(said) and (said <= wanted if one else said == wanted)


def options(example: Example) -> Offer:
    return offered(example.question, tuple(example.choices))


def remarks(examples: Sequence[Example]) -> Iterator[tuple[int, str]]:
    """(How many examples, what is to be known of them)."""
    offers = [options(example) for example in examples]
    bare = sum(not offer.texts for offer in offers)
    yield bare, "show no options to `contains_choice`; their answers must be equal in text"
    pairs = [(example, offer) for example, offer in zip(examples, offers, strict=True) if offer.texts]
    golds = [named(example.answer, offer) for example, offer in pairs]
    yield sum(not gold for gold in golds), "have a gold answer that names none of their options"
    several = "have a gold answer that names several of their options, which must all be named"
    yield sum(len(gold) > 1 for gold in golds), several
    twice = "have two options of one text, which only a label tells apart"
    yield sum(len(set(offer.texts)) < len(offer.texts) for _, offer in pairs), twice

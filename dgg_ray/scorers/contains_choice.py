"""Share of the multiple-choice questions in which the answer names the right option and no other.

The options are the example's choices, or else those that the question shows; an answer names one by
its label or by its text. The head of `_choices.py` defines options and how an answer names them. The gold
answer is read by the same rule: `B`, `green` and `B. green` are one.

The options named must be those of the gold answer: an additional one is wrong, and so is none. Where two
options have one text and the gold answer is that text, either is right. A question without options,
or with a gold answer that names none of them, is scored by equal text (`core/text_normalization.py`);
`dgg-ray plan` counts both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.core.text_normalization import normalize_text
from dgg_ray.scorers._choices import AnswerOptions, named_options, options_of

VERSION = 2  # 2: options in one line, lower case, bold, numbers; identity by label; normalised texts


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """`each` is 0 or 1, `value` their mean; 0 for no examples. An absent answer is wrong."""
    each = tuple(
        float(is_right(prediction or "", example))
        for prediction, example in zip(predictions, examples, strict=True)
    )
    return Score(sum(each) / max(len(each), 1), each)


def is_right(prediction: str, example: Example) -> bool:
    options = options_of_example(example)
    gold = named_options(example.answer, options)
    if not gold:
        answer = normalize_text(prediction)
        return answer != "" and answer == normalize_text(example.answer)
    named = named_options(prediction, options)
    gold_has_one_text = len({options.texts[i] for i in gold}) == 1
    return bool(named) and (named <= gold if gold_has_one_text else named == gold)


def options_of_example(example: Example) -> AnswerOptions:
    return options_of(example.question, tuple(example.choices))


def remarks(examples: Sequence[Example]) -> Iterator[tuple[int, str]]:
    """Yield (number of examples, remark on them)."""
    all_options = [options_of_example(example) for example in examples]
    without = sum(not options.texts for options in all_options)
    yield without, "show no options to `contains_choice`; their answers must be equal in text"
    pairs = [(e, options) for e, options in zip(examples, all_options, strict=True) if options.texts]
    golds = [named_options(example.answer, options) for example, options in pairs]
    yield sum(not gold for gold in golds), "have a gold answer that names none of their options"
    several = "have a gold answer that names several of their options, which must all be named"
    yield sum(len(gold) > 1 for gold in golds), several
    duplicated = "have two options of one text, which only a label tells apart"
    yield sum(len(set(options.texts)) < len(options.texts) for _, options in pairs), duplicated

"""Answer styles: a share of a task's training examples, asked and answered in another style.

A model that is trained on one-word answers soon gives nothing else, and then seems to have forgotten what it
only cannot phrase any more: superficial forgetting, as SEFE [1] calls it. Its *answer style diversification*
gives a share of each task's training examples another style. `What colour is it?` – `red` becomes

    yes_no             What colour is it? Is the answer "blue"? Answer with yes or no.     no
    multiple_choice    What colour is it?                                                  B
                       A. green
                       B. red
                       C. blue
                       D. orange
                       Answer with the option's letter.
    sentence           What colour is it? Answer with a sentence.                          The answer is red.

Every second `yes_no` asks about the right answer. A request for a style at a question's end, such as "Answer
the question using a single word or phrase.", gives way to the new one.

Where we differ from [1]. SEFE has a language model write the answers, in five styles. These are fixed forms,
in English, and three: nothing here can write an explanation. So only short answers are rewritten, of one line
and at most MOST_WORDS words. Wrong answers are drawn uniformly from the other short answers of the task's
training examples, or from the example's own choices; one may be right too, as "animal" is for a dog. Yes and
no are never wrong answers, and an example with one of them takes only `sentence`. One whose question offers
options takes all but `multiple_choice`.

A draw is a function of (seed, task, position of the example) alone.

[1] Chen et al., SEFE, ICML 2025, arXiv:2505.02486. Its other part is the strategy `reg_lora`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dgg_ray.core import rng
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import AnswerStyle, AnswerStyles, Example, Task
from dgg_ray.core.phrases import join_names
from dgg_ray.core.text_normalization import normalize_text

MOST_WORDS = 5
WRONG_ANSWERS: Mapping[AnswerStyle, int] = {"yes_no": 1, "multiple_choice": 3, "sentence": 0}
LETTERS = "ABCD"
REQUEST = re.compile(  # a last sentence
    r"(?:\n\s*|(?<=[.?!:;])\s+)(?:please\s+)?(?:answer|reply|respond)\s+(?:(?:to\s+)?the\s+question\s+)?"
    r"(?:with|using|in|by|only|briefly|concisely|directly|yes)\b[^.?!\n]*[.!]?\s*$",
    re.IGNORECASE,
)
OPTIONS = re.compile(r"(?:^|\s)\(?A[.):]\s.+\s\(?B[.):]\s", re.DOTALL)
SHORT = f"one line and at most {MOST_WORDS} words"


def with_answer_styles(task: Task, settings: AnswerStyles) -> Task:
    """Return the task with a share of its training examples in other styles, and a digest that says so.

    Where nothing is rewritten, the digest stays. Raises StudyError where no example can be rewritten; a
    warning says how many were, if they are fewer than wanted or lack a style.
    """
    examples = task.examples["train"]
    if not examples or not settings.share:
        return task
    rewriting = Rewriting(task.name, examples, settings)
    wanted = max(round(settings.share * len(examples)), 1)
    rewritten = rewriting.rewrite(wanted)
    if not rewritten:
        rule = f"needs training answers of {SHORT}, and different ones: {rewriting.needs(rewriting.styles)}"
        raise StudyError([Fault("answer_styles", rule, rewriting.found)], task.name)
    train = tuple(rewritten[i][1] if i in rewritten else example for i, example in enumerate(examples))
    changes = [[i, e.question, e.answer, [*e.choices]] for i, (_, e) in sorted(rewritten.items())]
    shortfall = rewriting.shortfall(wanted, [style for style, _ in rewritten.values()])
    return replace(
        task,
        examples={**task.examples, "train": train},
        digests={**task.digests, "train": digest([task.digests["train"], changes])},
        warnings=(*task.warnings, *shortfall),
    )


@dataclass(frozen=True, eq=False)
class Rewriting:
    """The training examples of a task, and the styles that each can have."""

    task: str
    examples: Sequence[Example]
    settings: AnswerStyles

    @cached_property
    def styles(self) -> tuple[AnswerStyle, ...]:
        """The wanted styles, each once."""
        return tuple(dict.fromkeys(self.settings.styles))

    @cached_property
    def pools(self) -> dict[bool, dict[str, str]]:
        """Short answers to questions without and with options: normalized → as first written."""
        pools: dict[bool, dict[str, str]] = {False: {}, True: {}}
        for example in self.examples:
            if is_short(example.answer) and not is_yes_or_no(example.answer):
                pools[offers_options(example)].setdefault(normalize_text(example.answer), example.answer)
        return pools

    @cached_property
    def possible(self) -> dict[int, tuple[AnswerStyle, ...]]:
        """Position of each example that can be rewritten → the styles that it can have."""
        styles = {i: tuple(self.possible_styles(example)) for i, example in enumerate(self.examples)}
        return {i: some for i, some in styles.items() if some}

    def possible_styles(self, example: Example) -> Iterator[AnswerStyle]:
        if not is_short(example.answer):
            return
        pool, right = self.pool_of(example), right_answers(example)
        wrong = 0 if is_yes_or_no(example.answer) else len(pool) - sum(text in pool for text in right)
        for style in self.styles:
            has_it = style == "multiple_choice" and offers_options(example)
            if not has_it and wrong >= WRONG_ANSWERS[style]:
                yield style

    def pool_of(self, example: Example) -> dict[str, str]:
        """Return the answers among which the wrong ones of an example are: normalized → text."""
        own = {normalize_text(text): text for text in example.choices}
        return own if normalize_text(example.answer) in own else self.pools[offers_options(example)]

    def rewrite(self, wanted: int) -> dict[int, tuple[AnswerStyle, Example]]:
        """Rewrite so many examples, or all that can be: position → (style, example in that style).

        The styles take turns; an example that cannot have the next one takes the first after it that it can.
        """
        places = list(self.possible)
        drawn = rng.permutation(len(places), self.settings.seed, self.task, "answer styles")[:wanted]
        rewritten: dict[int, tuple[AnswerStyle, Example]] = {}
        asks_right = True
        for turn, place in enumerate(places[k] for k in drawn):
            first = turn % len(self.styles)
            in_turn = (*self.styles[first:], *self.styles[:first])
            style: AnswerStyle = next(style for style in in_turn if style in self.possible[place])
            example, wrong = self.examples[place], self.draw_wrong_answers(place, WRONG_ANSWERS[style])
            if style == "sentence":
                rewritten[place] = style, in_a_sentence(example)
            elif style == "yes_no":
                rewritten[place] = style, with_yes_or_no(example, "" if asks_right else wrong[0])
                asks_right = not asks_right  # neither answer may prevail
            else:
                order = rng.permutation(1 + len(wrong), self.settings.seed, self.task, "option order", place)
                rewritten[place] = style, with_options(example, wrong, order)
        return rewritten

    def draw_wrong_answers(self, place: int, count: int) -> list[str]:
        """Draw different wrong answers to the example at a position, uniformly."""
        example = self.examples[place]
        right = right_answers(example)
        candidates = [text for key, text in self.pool_of(example).items() if key not in right]
        words = rng.words(count, self.settings.seed, self.task, "wrong answers", place)
        return [candidates.pop(int(word) * len(candidates) >> 64) for word in words]

    # -- what cannot be rewritten ------------------------------------------------------------------

    @property
    def found(self) -> str:
        """The short answers that the examples have, in words."""
        short = sum(is_short(example.answer) for example in self.examples)
        different = f"{len(self.pools[False])} different to questions without options, besides yes and no"
        return f"{short:,} of {len(self.examples):,} ({different})"

    def needs(self, styles: Iterable[AnswerStyle]) -> str:
        """The number of different answers that each style needs, in words."""
        return join_names([f"{1 + WRONG_ANSWERS[style]} for {style}" for style in styles])

    def shortfall(self, wanted: int, used: Sequence[AnswerStyle]) -> tuple[str, ...]:
        """A sentence where fewer examples were rewritten than wanted, or where a style is missing."""
        missing: list[AnswerStyle] = [
            s for s in self.styles if not any(s in some for some in self.possible.values())
        ]
        if len(used) == wanted and not missing:
            return ()
        counts = Counter(used)
        each = join_names([f"{counts[style]} as {style}" for style in self.styles])
        note = f"answer_styles rewrote {len(used):,} of {wanted:,} training examples, {each}"
        needs = f"; needed are {self.needs(missing)}" if missing else ""
        return (f"{note}; answers of {SHORT}: {self.found}{needs}",)


# -- the styles ------------------------------------------------------------------------------------


def in_a_sentence(example: Example) -> Example:
    said = f"The answer is {example.answer.removesuffix('.')}."
    return restated(example, " Answer with a sentence.", said)


def with_yes_or_no(example: Example, wrong: str) -> Example:
    """Ask whether an answer is right: the wrong one, or the example's own where none is given."""
    asked = f' Is the answer "{wrong or example.answer}"? Answer with yes or no.'
    return restated(example, asked, "no" if wrong else "yes")


def with_options(example: Example, wrong: Sequence[str], order: Sequence[int]) -> Example:
    """Offer the answer among wrong ones. order: a permutation; the right answer is where it has 0."""
    answers = (example.answer, *wrong)
    options = tuple(answers[k] for k in order)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    asked = "\n".join(["", *lines, "Answer with the option's letter."])
    return restated(example, asked, LETTERS[order.index(0)], options)


def restated(example: Example, asked: str, answer: str, choices: tuple[str, ...] = ()) -> Example:
    """Return the example with its question followed by `asked`, and another answer."""
    question = REQUEST.sub("", example.question).rstrip() or example.question
    return replace(example, question=question + asked, answer=answer, references=(), choices=choices)


# -- the answers -----------------------------------------------------------------------------------


def is_short(answer: str) -> bool:
    """Return whether an answer can be asked about, and offered as an option."""
    return 0 < len(answer.split()) <= MOST_WORDS and "\n" not in answer.strip()


def is_yes_or_no(answer: str) -> bool:
    return normalize_text(answer) in ("yes", "no")


def right_answers(example: Example) -> set[str]:
    return {normalize_text(text) for text in (example.answer, *example.references)}


def offers_options(example: Example) -> bool:
    return bool(example.choices) or OPTIONS.search(example.question) is not None

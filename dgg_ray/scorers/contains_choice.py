"""Share of the lettered questions in which the right option, and no other, was named.

An option is named by its letter, `B`, `(B)`, `B.`, `B) text`, `answer: B`, `option B`, or by its text
as whole words. Two different options named are wrong, and so is none. The options are the
example's choices, or the question's lettered lines, `A. …`, `B) …`, `(C) …`.

A bare option text comes before a bare letter (options may be letters themselves). Of two texts of
which one holds the other, "red" and "dark red", the longer is named. Denials are not understood:
"not B, but (A)" names A only, "not a cat" names the cat. A question without options, or with an
answer that names none of them, is judged by equal text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dgg_ray.contracts import Example, Score

LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):])[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
BARE = re.compile(r"\(?([A-Z])\)?[.):]?", re.IGNORECASE)
FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):](?=\s))", re.IGNORECASE)
WITHIN = re.compile(r"\(([A-Z])\)")
AFTER_A_WORD = re.compile(  # "Answer: A dog" is about a dog, hence the extra condition for A
    r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*(A\b(?!\s+\w)|[B-Z]\b)"
)


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """`each` is 0 or 1, `value` their mean; 0 for no examples. An absent answer is wrong."""
    each = tuple(
        float(is_right(prediction or "", example))
        for prediction, example in zip(predictions, examples, strict=True)
    )
    return Score(sum(each) / max(len(each), 1), each)


def is_right(prediction: str, example: Example) -> bool:
    offered = options(example)
    wanted = named(example.answer, offered)
    if len(wanted) != 1:
        return plain(prediction) != "" and plain(prediction) == plain(example.answer)
    return named(prediction, offered) == wanted


def options(example: Example) -> list[str]:
    """The options' texts in plain form, in the order of their letters; [] where none are offered."""
    if example.choices:
        lettered = [LINE.fullmatch(choice) for choice in example.choices]
        if all(line and letter_of(line) == i for i, line in enumerate(lettered)):
            return [plain(line[3]) for line in lettered if line]  # the choices bring their letters
        return [plain(choice) for choice in example.choices]
    found: list[str] = []
    for line in LINE.finditer(example.question):
        if letter_of(line) == len(found):  # A, B, C, … : another initial at a line's start is no option
            found.append(plain(line[3]))
    return found if len(found) > 1 else []


def named(text: str, offered: Sequence[str]) -> set[str]:
    """The options that a text names, each by its own text."""
    said = plain(text)
    if said in offered:
        return {said}
    if (bare := BARE.fullmatch(text.strip())) and (option := at_letter(bare, offered)):
        return {option}
    letters = [FIRST.match(text.strip()), *WITHIN.finditer(text), *AFTER_A_WORD.finditer(text)]
    found = {option for letter in letters if letter and (option := at_letter(letter, offered))}
    for option in sorted(set(offered), key=len, reverse=True):
        whole = rf"(?<![\w-])(?<!\w[.,]){re.escape(option)}(?![\w-]|[.,]\w)"
        said, count = re.subn(whole, " | ", said)
        found |= {option} if count else set()
    return found


def at_letter(match: re.Match[str], offered: Sequence[str]) -> str:
    """The option with the matched letter, empty where there is none."""
    i = letter_of(match)
    return offered[i] if i < len(offered) else ""


def letter_of(match: re.Match[str]) -> int:
    """0 for A; the letter is the first group that took part."""
    return ord(next(group for group in match.groups() if group).upper()) - ord("A")


def plain(text: str) -> str:
    """Lower case, single spaces, no final full stop (unless it is all there is)."""
    text = " ".join(text.casefold().split())
    return text.removesuffix(".").rstrip() or text

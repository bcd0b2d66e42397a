"""Scorers against an oracle: it makes questions, answers and predictions, and knows what each should score.

DGG_RAY_EXAMPLES=6000 pytest tests/scorers/test_properties_scorers.py      many more inputs
"""

import os
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from dgg_ray.core.interfaces import Example
from dgg_ray.core.text_normalization import normalize_text
from dgg_ray.scorers import contains_choice, exact_match

many = settings(max_examples=int(os.environ.get("DGG_RAY_EXAMPLES", "200")))

# -- multiple choice -------------------------------------------------------------------------------

TEXTS = [
    "red",
    "dark red",
    "a small dog",
    "3",
    "3.5",
    "New York",
    "ice-cream",
    "yes",
    "café",
    "红色",
    "none of the others",
]
LABELS = {"upper": "ABCDE", "lower": "abcde", "digits": "12345"}
MARKS = ["({})", "{})", "{}.", "{}:", "[{}]", "**{}.**", "({})", "Option {}:"]
JOINTS = ["\n", " ", "; ", ", ", "\n- "]
HEADS = ["Which is it?", "What does J. Smith hold, (a) thing?", "Who wrote this in 1990?", "哪个？"]
OFFERS = ["\n", "\nOptions:\n", " Options: ", " Choices: ", "\n选项: "]
TAILS = [
    "",
    "\nAnswer with the option's letter from the given choices directly.",
    "\nAnswer:",
    "\nPlease choose one.",
]

GOLD = ["{L}", "({L})", "{L}.", "{T}", "{L}. {T}", "({L}) {T}"]
NAMES_ONE = [
    "{L}",
    "({L})",
    "{L}.",
    "{L})",
    "**{L}**",
    "{T}",
    "{T}.",
    "{L}. {T}",
    "({L}) {T}",
    "Answer: {L}",
    "Answer: ({L})",
]
NAMES_ONE += [
    "The answer is {L}.",
    "the answer is ({L}) because of what {U} is",
    "option {L}",
    "Option ({L})",
    "{L}: {T}",
]
NAMES_ONE += [
    "I see {U} there, so the answer is {L}.",
    "The correct answer is option {L}",
    "\\boxed{{{L}}}",
    " {L} \n",
    "{L}\n",
]
NAMES_TWO = [
    "{L} or {M}",
    "({L}) or ({M})",
    "The answer is {L} or {M}.",
    "({L}) ({M})",
    "{L}, {M}",
    "{L}. {U}",
    "({L}) {U}",
]
NAMES_NONE = ["", " ", "I cannot say", "unknown", "\u200b", "xyzzy"]


@st.composite
def questions(draw):
    """(Question, labels, texts, choices of the record)."""
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=5, unique=True))
    labels = LABELS[draw(st.sampled_from(sorted(LABELS)))][: len(texts)]
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["plain", "lettered"]))
        lettered = tuple(f"{label}. {text}" for label, text in zip("ABCDE", texts, strict=False))
        return (
            draw(st.sampled_from(HEADS)),
            "ABCDE"[: len(texts)],
            texts,
            lettered if kind == "lettered" else tuple(texts),
        )
    mark, joint = draw(st.sampled_from(MARKS)), draw(st.sampled_from(JOINTS))
    shown = joint.join(f"{mark.format(label)} {text}" for label, text in zip(labels, texts, strict=True))
    return (
        draw(st.sampled_from(HEADS)) + draw(st.sampled_from(OFFERS)) + shown + draw(st.sampled_from(TAILS)),
        labels,
        texts,
        (),
    )


def written(form, labels, texts, i, j):
    return form.format(L=labels[i], T=texts[i], M=labels[j], U=texts[j])


@many
@given(questions(), st.data())
def test_an_answer_scores_what_it_means(made, data):
    question, labels, texts, choices = made
    pick = st.integers(0, len(texts) - 1)
    right, said, other = data.draw(pick), data.draw(pick), data.draw(pick)
    if set(texts) & set(labels):
        return
    gold = written(data.draw(st.sampled_from(GOLD)), labels, texts, right, other)
    kind = data.draw(st.sampled_from(["one", "two", "none"]))
    if kind == "one":
        prediction = written(data.draw(st.sampled_from(NAMES_ONE)), labels, texts, said, other)
        wanted = said == right
    elif kind == "two":
        if said == other:
            return
        prediction, wanted = written(data.draw(st.sampled_from(NAMES_TWO)), labels, texts, said, other), False
    else:
        prediction, wanted = data.draw(st.sampled_from(NAMES_NONE)), False
    example = Example("0", question, gold, choices=choices)
    assert contains_choice.options_of_example(example).texts == tuple(map(normalize_text, texts))
    assert contains_choice.score([prediction], [example]).value == wanted, (prediction, gold)


ANYTHING = st.text(max_size=40) | st.text("ABab().: *\n12,;optionrswe", max_size=60)


@many
@given(ANYTHING, ANYTHING, ANYTHING, st.lists(ANYTHING, max_size=4))
def test_any_text_is_scored_and_the_gold_answer_itself_is_right(question, gold, prediction, choices):
    example = Example("0", question, gold, choices=tuple(choices))
    for scorer in (contains_choice, exact_match):
        assert scorer.score([prediction], [example]).value in (0.0, 1.0)
        assert (
            scorer.score([gold], [example]).value == (normalize_text(gold) != "") or scorer is contains_choice
        )
        assert [count for count, _ in scorer.remarks([example])]
    if normalize_text(gold):
        assert contains_choice.score([gold], [example]).value == 1


# -- equality of texts -----------------------------------------------------------------------------

WORDS = st.text(
    st.characters(categories=["L", "N", "P"], exclude_characters="".join("İı.。।۔።｡．")),
    min_size=1,
    max_size=12,
)
VARIANTS = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "composed": lambda text: unicodedata.normalize("NFC", text),
    "upper": lambda text: text.upper() if text.upper().casefold() == text.casefold() else text,
    "folded": str.casefold,
    "wide": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "unseen": lambda text: "\u200b".join(text) + "\ufeff",
    "spaced": lambda text: f"\u3000 {text}\u00a0\n",
    "stopped": lambda text: text + ".",
    "stopped in Chinese": lambda text: text + "。",
}


@many
@given(WORDS, st.lists(st.sampled_from(sorted(VARIANTS)), max_size=4, unique=True))
def test_indistinguishable_variants_are_one_text(text, names):
    variant = text
    for name in sorted(names, key=lambda n: n.startswith("stopped")):
        if not (name.startswith("stopped") and normalize_text(variant) != normalize_text(text)):
            variant = VARIANTS[name](variant)
    if sum(name.startswith("stopped") for name in names) < 2:
        assert normalize_text(variant) == normalize_text(text), names


@many
@given(st.text("abcXYZ019 -'²½,", max_size=8), st.text("abcXYZ019 -'²½,", max_size=8))
def test_texts_that_differ_in_more_than_case_and_space_are_different(one, other):
    same = " ".join(one.lower().split()) == " ".join(other.lower().split())
    assert (normalize_text(one) == normalize_text(other)) == same


@many
@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text) or normalize_text(text).endswith(
        (".", "。", "।", "۔", "።")
    )

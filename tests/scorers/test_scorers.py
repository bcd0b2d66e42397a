"""Scorers: numbers that can be checked on paper, and what every file in scorers/ promises."""

import importlib
import random
import shutil
import sys

import pytest

from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError
from dgg_ray.core.interfaces import Example
from dgg_ray.scorers import caption, caption_light, contains_choice, exact_match

# Java takes ten seconds to read METEOR's tables, each time.
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "caption")) for name in plugins.names("scorers")
]
LETTERED = "Which is a fruit?\nA. stone\nB. plum\nC. dark plum\nAnswer with the letter."


def scorer(name):
    module = importlib.import_module(f"dgg_ray.scorers.{name}")
    if hasattr(module, "ready") and module.ready():
        pytest.skip(module.ready())
    return module.score


def asked(*answers, question="What is it?", **more):
    return [Example(str(i), question, answer, **more) for i, answer in enumerate(answers)]


# -- every scorer ----------------------------------------------------------------------------------

CAPTIONS = ["a plum on a plate", "two dogs run in the deep snow", "the café is open", "a red bus and a tree"]


@pytest.mark.parametrize("name", NAMES)
class TestEveryScorer:
    def test_right_predictions_score_highest(self, name):
        score, examples = scorer(name), asked(*CAPTIONS)
        best = score(CAPTIONS, examples)
        worse = score([CAPTIONS[0], "a cat", "", "a red bus"], examples)
        assert 0 <= worse.value < best.value <= 1
        assert all(a <= b for a, b in zip(worse.each, best.each, strict=True))
        assert all(0 <= value <= 1 for value in (*worse.each, *best.each))

    def test_absent_predictions_are_wrong_and_stay_in_the_denominator(self, name):
        score = scorer(name)
        nothing = score([None, "", None, "  "], asked(*CAPTIONS))
        assert nothing.value == pytest.approx(0, abs=1e-6)
        assert nothing.each == pytest.approx((0, 0, 0, 0), abs=1e-6)
        assert score([CAPTIONS[0], None], asked(*CAPTIONS[:2])).each[1] == pytest.approx(0, abs=1e-6)

    def test_the_order_of_the_examples_does_not_matter(self, name):
        score, examples = scorer(name), asked(*CAPTIONS)
        said = [CAPTIONS[0], "two dogs", None, "a tree"]
        order = random.Random(3).sample(range(4), 4)
        mixed = score([said[i] for i in order], [examples[i] for i in order])
        straight = score(said, examples)
        assert mixed.value == pytest.approx(straight.value, rel=1e-9)
        assert mixed.each == pytest.approx([straight.each[i] for i in order], rel=1e-9)

    def test_no_examples_score_zero(self, name):
        assert scorer(name)([], []) == (0.0, ())

    def test_unequal_lengths_are_refused(self, name):
        with pytest.raises(ValueError, match=r"."):
            scorer(name)(["a"], asked("a", "b"))


# -- exact match -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["plum tree", "Plum  Tree", " plum\ntree. ", "PLUM TREE ."])
def test_case_white_space_and_a_final_full_stop_do_not_count(said):
    assert exact_match.score([said], asked("plum tree")).value == 1


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("cafe\u0301", "café"),  # decomposed
        ("ＰＬＵＭ１２", "plum12"),  # full width
        ("plum\u00a0tree", "plum tree"),  # a no-break space
        ("梅\u3000树。", "梅 树"),  # an ideographic space, a full stop of Chinese
        ("\ufeffpl\u00adu\u200bm\u200f", "plum"),  # what cannot be seen
        ("STRASSE", "Straße"),
        ("İstanbul", "istanbul"),
        ("ΟΔΟΣ", "οδος"),
        ("यह।", "यह"),
    ],
)
def test_invisible_and_meaningless_differences_do_not_count(said, answer):
    assert exact_match.score([said], asked(answer)).value == 1
    assert exact_match.score([answer], asked(said)).value == 1


@pytest.mark.parametrize(
    ("said", "answer"),
    [("10²", "102"), ("1,000", "1000"), ("٣", "3"), ("ı", "i"), ("½", "1⁄2"), ("\u200b", "\u200b")],
)
def test_differences_of_meaning_count(said, answer):
    assert exact_match.score([said], asked(answer)).value == 0


@pytest.mark.parametrize("said", ["plum", "a plum tree", "plum tree..", "plumtree", "plum tree!", None, "."])
def test_every_other_difference_counts(said):
    assert exact_match.score([said], asked("plum tree")).value == 0


def test_one_right_of_three_is_a_third():
    assert exact_match.score(["1", "7", None], asked("1", "2", "3")) == (1 / 3, (1.0, 0.0, 0.0))


def test_a_full_stop_can_be_the_answer_and_decimals_keep_theirs():
    assert exact_match.score([".", "3.5", "35"], asked(".", "3.5.", "3.5")).each == (1, 1, 0)


def test_an_empty_answer_is_never_right():
    assert exact_match.score([None, "", " "], asked("", "", "")).value == 0


def test_any_reference_is_right():
    examples = asked("sofa", references=("couch", "settee")) * 3
    assert exact_match.score(["Couch.", "sofa", "chair"], examples).each == (1, 1, 0)


# -- lettered options ------------------------------------------------------------------------------

NAMING_B = ["B", "b", "(B)", "B.", "B)", "(b).", "B) plum", "B. Plum.", "b) plum", "answer: B", "Answer: (B)"]
NAMING_B += ["The answer is B.", "The answer is B because it grows", "option B", "plum", "It is a Plum."]
NAMING_NOT_ONLY_B = ["A", "C", "D", "B. stone", "B or (C) and (B)", "A. or (B)", "plum or stone", "dark plum"]
NAMING_NOT_ONLY_B += ["", None, "Bob", "plumage", "it grows", "a-plum-b"]


@pytest.mark.parametrize("answer", ["B", "(B)", "plum", "B. plum"])
@pytest.mark.parametrize("said", NAMING_B)
def test_an_option_is_named_by_letter_or_text(said, answer):
    assert contains_choice.score([said], asked(answer, question=LETTERED)).value == 1


@pytest.mark.parametrize("said", NAMING_NOT_ONLY_B)
def test_no_option_a_wrong_one_or_two_are_wrong(said):
    assert contains_choice.score([said], asked("B", question=LETTERED)).value == 0


@pytest.mark.parametrize("form", ["A. {}\nB. {}", "(A) {}\n(B) {}", "A) {}\nB) {}", "  A: {}\n  B: {}"])
def test_options_are_read_from_the_question(form):
    question = "Where?\n" + form.format("in Rome", "in Oslo") + "\nS. Holm took it."
    assert contains_choice.options_of_example(asked("B", question=question)[0]).texts == (
        "in rome",
        "in oslo",
    )


def test_choices_of_the_record_come_before_the_question():
    examples = asked("dragon", question=LETTERED, choices=("helmet", "dragon"))
    assert contains_choice.score(["It shows a dragon"], examples).value == 1
    assert contains_choice.score(["B"], examples).value == 1
    assert contains_choice.score(["C"], examples).value == 0


def test_choices_may_bring_their_letters():
    examples = asked("B", choices=("A. helmet", "B. dragon"))
    assert contains_choice.score(["dragon"], examples).value == 1


def test_numbers_count_as_whole_numbers():
    examples = asked("2", choices=("1", "2", "2.5")) * 7
    said = ["2", "2.", "It is 2.", "It is 2.5", "It is 12", "It is 0.2", "It is 2.7"]
    assert contains_choice.score(said, examples).each == (1, 1, 1, 0, 0, 0, 0)


def test_the_longer_of_two_nested_option_texts_is_named():
    examples = asked("C", question=LETTERED) * 2
    assert contains_choice.score(["It is a dark plum", "It is a plum"], examples).each == (1, 0)


def test_an_article_is_no_label():
    examples = asked("dog", choices=("cat", "dog"))
    assert contains_choice.score(["Answer: A dog"], examples).value == 1


def test_without_options_the_text_must_be_equal():
    assert contains_choice.score(["Oslo.", "in Oslo", None], asked("Oslo") * 3).each == (1, 0, 0)


FORMS = [
    "Which?\nOptions: (A) red (B) green (C) blue",
    "Which? Options:(A)red(B)green(C)blue",
    "Which? A) red B) green C) blue",
    "Which? A. red B. green C. blue\nAnswer with the option's letter.",
    "Which? A: red B: green C: blue",
    "Which?\n**A** red\n**B** green\n**C** blue",
    "Which? **A.** red **B.** green **C.** blue",
    "Which? a) red; b) green; c) blue",
    "Which? (a) red, (b) green, or (c) blue?",
    "Which?\n- A. red\n- B. green\n- C. blue",
    "Which?\nOption A: red\nOption B: green\nOption C: blue",
    "Which?\nA - red\nB - green\nC - blue",
    "[A] red [B] green [C] blue",
    "A) red B) green\nC) blue",
    "哪个？选项：（A）red（B）green（C）blue",
    "哪个？A、red B、green C、blue",
    "Which of (A) and (B)? (A) red (B) green (C) blue. Answer with (A), (B) or (C).",
    "Which? (A) red (B) green (C) blue Answer:",
]


@pytest.mark.parametrize("question", FORMS)
def test_options_are_read_in_the_forms_of_common_datasets(question):
    offer = contains_choice.options_of_example(asked("B", question=question)[0])
    assert (offer.labels, offer.texts) == (("a", "b", "c"), ("red", "green", "blue"))


@pytest.mark.parametrize("question", ["1. red\n2. green", "(1) red (2) green", "Options: 1) red 2) green"])
def test_options_may_have_numbers_as_labels(question):
    examples = asked("2", question=question) * 6
    assert contains_choice.score(["2", "(2)", "green", "Option 2", "1", "2 or 1"], examples).each == (
        1,
        1,
        1,
        1,
        0,
        0,
    )


@pytest.mark.parametrize("form", ["{}. ", "({}) ", "{}) ", "{:02}. ", "Option {}: ", "**{}** "])
@pytest.mark.parametrize("joint", ["\n", " "])
@pytest.mark.parametrize("first", [0, 1])
def test_labels_may_have_two_digits(form, joint, first):
    if "Option" in form and joint == " ":
        return
    names = ["red", "green", "blue", "pink", "teal", "gold", "grey", "lime", "navy", "plum", "rose", "tan"]
    lines = joint.join(form.format(i) + name for i, name in enumerate(names, first))
    offer = contains_choice.options_of_example(asked("12", question=f"Which?\n{lines}")[0])
    assert offer.texts == tuple(names)
    assert offer.labels == tuple(map(str, range(first, first + 12)))
    last = str(first + 11)
    said = [
        last,
        f"({last})",
        f"**{last}**",
        f"{last}. tan",
        f"option {last}",
        "tan",
        "1",
        "13",
        f"1 or {last}",
    ]
    each = contains_choice.score(said, asked(*[last] * len(said), question=f"Which?\n{lines}")).each
    assert each == (1, 1, 1, 1, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "question",
    [
        "Who was J. A. B. Smith?",
        "Vitamin A. B. subtilis?",
        "Is it A or B?",
        "See (A) or (B).",
        "In (a)?",
        "A: yes",
    ],
)
def test_letters_without_texts_are_no_options(question):
    assert contains_choice.options_of_example(asked("B", question=question)[0]).texts == ()


RIGHT = """b | **B** | (B) green | B) green | B: green | B, green | B because it is | B is right
Ｂ | （B） | 'B' | It is B. | I choose B | the answer is b | The answer is (B) because the red one is no leaf
The answer is **B**. | The red one is a fox, so the answer is B. | The correct answer is option B.
Final answer: B | answer = b | \\boxed{B} | The best choice is B | Correct option: B
the answer is green | 答案是B。 | B。 | B! | B; | 选B | {B} | <answer>B</answer>
<think>A is a fox.</think><answer> (B) </answer> | <ANSWER>green</ANSWER>
Therefore, B. | So, B | so B | Thus (B). | Hence: B | It is round. Therefore B. That is all. | So B is right.
The answer is clearly B | The answer is likely B. | the answer is most likely (b) because it is
The answer is, therefore, B. | It is clearly B. | The best choice is definitely B
A is wrong, so B | Option A is wrong, so B. | Not A, but B | The answer is not A, but B.
(A) is wrong. Thus, B | B is the right one | B is correct"""
WRONG = """A or B | a or b | A/B | both A and B | A, B | The answer is B. red | B. red
The answer is A. The answer is B | A cat | the answer is a dog | evergreen | neither | D
the answer is a | It is A, not B | A. | (A) because of (B)
B is wrong | B is not right | B is the wrong one | Not B, but A | B is wrong, so A | It is hardly B
The answer is unlikely B | the answer is likely a dog | So A is right, not B | Therefore, A. | So B or A"""


def listed(text):
    return [form.strip() for line in text.splitlines() for form in line.split(" | ")]


@pytest.mark.parametrize("question", FORMS[:3])
@pytest.mark.parametrize("answer", ["B", "green", "B. green", "(B)", "b"])
def test_an_answer_names_one_option_in_the_ways_that_models_write(question, answer):
    said = listed(RIGHT) + listed(WRONG)
    each = contains_choice.score(said, asked(*[answer] * len(said), question=question)).each
    assert dict(zip(said, each, strict=True)) == dict.fromkeys(listed(RIGHT), 1) | dict.fromkeys(
        listed(WRONG), 0
    )


def test_options_of_one_text_are_told_apart_by_their_labels():
    choices = ("red", "red", "blue")
    said = ["A", "B", "A. red", "B. red", "red", "C"]
    assert contains_choice.score(said, asked(*["A"] * 6, choices=choices)).each == (1, 0, 1, 0, 0, 0)
    assert contains_choice.score(said, asked(*["red"] * 6, choices=choices)).each == (1, 1, 1, 1, 1, 0)


def test_several_options_of_the_gold_answer_must_all_be_named():
    said = ["A and C", "A", "A, B and C", "C, A"]
    assert contains_choice.score(said, asked(*["A, C"] * 4, choices=("x1", "x2", "x3"))).each == (1, 0, 0, 1)


def test_unusable_examples_are_counted_before_anything_starts():
    examples = [*asked("B", "E", "A and B", question=LETTERED), *asked("B", "", question="What is it?")]
    assert [count for count, _ in contains_choice.remarks(examples)] == [2, 1, 1, 0]
    assert [count for count, _ in exact_match.remarks(examples)] == [1]


# -- captions --------------------------------------------------------------------------------------


def test_light_caption_scores_of_one_image_can_be_computed_by_hand():
    # said: 3 words, wanted: 6, of which "a red plum" begins: all 3 unigrams, 2 bigrams, 1 trigram are there
    # and there is no 4-gram. BLEU-1..3 = exp(1 - 6/3); BLEU-4 has 0 of 0, (1e-15/1e-9)^(1/4) of that.
    # ROUGE-L: precision 1, recall 1/2, β = 1.2. CIDEr: log(1 picture / 1 picture) = 0.
    pytest.importorskip("pycocoevalcap")
    brevity = 2.718281828459045 ** (1 - 6 / 3)
    rouge = (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1)
    expected = (3 * brevity + brevity * 1e-6 ** (1 / 4) + rouge + 0) / 6
    score = caption_light.score(["A red plum."], asked("a red plum on a plate"))
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert score.each == pytest.approx((expected,), rel=1e-6)


def test_a_perfect_caption_score_is_clipped_to_one():
    pytest.importorskip("pycocoevalcap")
    assert caption_light.score(CAPTIONS, asked(*CAPTIONS)) == (1.0, (1.0, 1.0, 1.0, 1.0))


def test_captions_in_another_form_of_unicode_are_the_same():
    pytest.importorskip("pycocoevalcap")
    examples = asked("the café is open", "two dogs run")
    assert caption_light.score(["the cafe\u0301 is open", "two\u200b dogs run"], examples).value == 1


def test_captions_are_compared_with_all_references():
    pytest.importorskip("pycocoevalcap")
    examples = asked("not used", references=("a plum on a plate", "fruit lies on a dish"))
    one_of_two = caption_light.score(["fruit lies on a dish"], examples)
    assert one_of_two.value == pytest.approx((4 + 1 + 0) / 6, rel=1e-6)  # BLEU 1, ROUGE-L 1, CIDEr 0


def test_an_absent_caption_does_not_match_a_reference_without_words():
    pytest.importorskip("pycocoevalcap")
    assert caption_light.score([None], asked("…")).value == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_full_captions_add_meteor():
    # One picture said word for word: BLEU-1..4 = ROUGE-L = 1, CIDEr = 0, and METEOR = 1: it has no
    # penalty for order where the whole caption is one chunk.
    pytest.importorskip("pycocoevalcap")
    score = caption.score(["A plum on a plate."], asked("a plum on a plate"))
    assert score.value == pytest.approx((4 + 1 + 1 + 0) / 7, abs=1e-6)


@pytest.mark.parametrize("module", [caption, caption_light])
def test_a_missing_package_is_reported_before_anything_starts(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert "pip install 'dgg_ray[caption]'" in module.ready()
    with pytest.raises(DggError, match="pycocoevalcap"):
        module.score(["a"], asked("a"))


def test_a_missing_java_names_the_scorer_without_it(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert "caption_light" in caption.ready()
    assert caption_light.ready() == ""
    with pytest.raises(DggError, match="Java"):
        caption.score(["a"], asked("a"))

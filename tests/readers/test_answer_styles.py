"""A share of a task's training examples is rewritten in other styles, by rules to check by hand."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from study_samples import GOOD, faults

from dgg_ray import cli, study_to_yaml
from dgg_ray.core import rng
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import SPLITS, AnswerStyles, Example, Task
from dgg_ray.readers._answer_styles import with_answer_styles
from dgg_ray.readers._task_reading import read_task
from dgg_ray.readers.embedded import Embedded

COLOURS = ("red", "green", "blue", "yellow", "purple")
DIGESTS = {split: 64 * digit for split, digit in zip(SPLITS, "123", strict=True)}
CAPTION = "a red bus waits in front of a cafe"
READER = """\
import json
from dataclasses import dataclass
from pathlib import Path

from dgg_ray.plugin import SPLITS, Example, Reader, Task


@dataclass(frozen=True)
class Mine(Reader):
    file: Path

    def read(self, name):
        rows = json.loads(self.file.read_text())
        examples = [Example(row["question_id"], row["text"], row["answer"]) for row in rows]
        return Task(name, dict.fromkeys(SPLITS, examples))
"""


def make_task(*answers: str, question: str = "What colour is it?", **fields) -> Task:
    """A task with these answers; all of its splits are alike."""
    examples = [Example(str(i), question, answer, **fields) for i, answer in enumerate(answers)]
    return Task("toy", dict.fromkeys(SPLITS, examples), DIGESTS)


def rewritten(task: Task, share: float = 1.0, *styles, seed: int = 0) -> list[Example]:
    """The training examples after the rewriting."""
    settings = AnswerStyles(share, styles, seed) if styles else AnswerStyles(share, seed=seed)
    return list(with_answer_styles(task, settings).examples["train"])


def style_of(example: Example) -> str:
    for style, end in (
        ("yes_no", "Answer with yes or no."),
        ("multiple_choice", "Answer with the option's letter."),
        ("sentence", "Answer with a sentence."),
    ):
        if example.question.endswith(end):
            return style
    return ""


# -- what is rewritten -----------------------------------------------------------------------------


def test_a_share_is_rewritten_in_each_style_alike_and_every_second_yes_no_is_a_yes():
    task = make_task(*COLOURS * 8)  # 40 examples; 0.6 of them are 24, and 8 of each style
    examples = rewritten(task, 0.6)
    assert Counter(map(style_of, examples)) == {"": 16, "yes_no": 8, "multiple_choice": 8, "sentence": 8}
    assert Counter(e.answer for e in examples if style_of(e) == "yes_no") == {"yes": 4, "no": 4}


def test_a_rewritten_example_says_the_same_as_before():
    before = make_task(*COLOURS * 8)
    for old, new in zip(before.examples["train"], rewritten(before), strict=True):
        assert (new.id, new.image) == (old.id, old.image)
        assert new.question.startswith("What colour is it?")
        if style_of(new) == "sentence":
            assert new.question == "What colour is it? Answer with a sentence."
            assert new.answer == f"The answer is {old.answer}."
        elif style_of(new) == "yes_no":
            (asked,) = re.findall(r'Is the answer "(\w+)"\?', new.question)
            assert asked in COLOURS
            assert new.answer == ("yes" if asked == old.answer else "no")
        else:
            options = dict(re.findall(r"^([ABCD])\. (\w+)$", new.question, re.MULTILINE))
            assert list(options) == list("ABCD")
            assert tuple(options.values()) == new.choices
            assert len(set(new.choices)) == 4
            assert set(new.choices) <= set(COLOURS)
            assert options[new.answer] == old.answer


def test_the_right_option_and_the_wrong_answers_are_drawn_uniformly():
    task = make_task(*COLOURS * 400)
    examples = rewritten(task, 1.0, "multiple_choice")
    letters = Counter(example.answer for example in examples)
    # Each of four letters has 500 of 2,000 on average, with a standard deviation of √(2000 · 3/16) = 19.
    assert all(abs(letters[letter] - 500) < 4 * 19.4 for letter in "ABCD")
    wrong = Counter(c for new in examples for c in new.choices if c != new.choices["ABCD".index(new.answer)])
    # A colour is wrong in 1,600 of the 2,000 questions, and drawn in 3/4 of them: 1,200, ± √(1600 · 3/16).
    assert all(abs(wrong[colour] - 1200) < 4 * 17.4 for colour in COLOURS)


def test_wrong_answers_are_drawn_without_the_right_one_and_none_twice(monkeypatch):
    words = {"red": [0, 0, 0], "green": [2**64 - 1] * 3}
    monkeypatch.setattr(rng, "words", lambda count, *_: np.array(words[count_of.pop()][:count], np.uint64))
    monkeypatch.setattr(rng, "permutation", lambda count, *_: list(range(count)))
    count_of = ["green", "red"]
    examples = rewritten(make_task("red", "green", "blue", "blue", "yellow"), 0.4, "multiple_choice")
    assert examples[0].choices == ("red", "green", "blue", "yellow")  # always the first that is left
    assert examples[1].choices == ("green", "yellow", "blue", "red")  # always the last


def test_a_larger_share_keeps_what_a_smaller_one_rewrote():
    task = make_task(*COLOURS * 4)
    few, many = rewritten(task, 0.25), rewritten(task, 0.75)
    assert [sum(bool(style_of(example)) for example in some) for some in (few, many)] == [5, 15]
    for small, large in zip(few, many, strict=True):
        assert not style_of(small) or (small.question, small.answer) == (large.question, large.answer)


def test_another_seed_or_another_task_rewrites_others():
    def places(name, seed):
        task = Task(name, make_task(*COLOURS * 8).examples, DIGESTS)
        return {e.id for e in rewritten(task, 0.5, seed=seed) if style_of(e)}

    assert places("toy", 0) == places("toy", 0)
    assert places("toy", 0) != places("toy", 1)
    assert places("toy", 0) != places("other", 0)


def test_another_accepted_answer_is_never_a_wrong_one():
    reds = make_task(*["red", "Crimson."] * 4, references=("red", "crimson")).examples["train"]
    blues = make_task(*["blue"] * 4).examples["train"]
    examples = rewritten(Task("toy", dict.fromkeys(SPLITS, (*reds, *blues)), DIGESTS), 1.0, "yes_no")
    asked = [re.findall(r'Is the answer "([\w.]+)"', example.question)[0] for example in examples]
    assert {word for word, e in zip(asked[:8], examples, strict=False) if e.answer == "no"} == {"blue"}
    assert "no" in [example.answer for example in examples[:8]]
    assert all(example.references == () for example in examples)


def test_a_request_for_a_style_gives_way_to_the_new_one():
    def asked(question):
        return rewritten(make_task("red", "blue", question=question), 1.0, "sentence")[0].question

    assert (
        asked("Which?\nAnswer the question using a single word or phrase.")
        == "Which? Answer with a sentence."
    )
    assert asked("Which one? Please answer with one word") == "Which one? Answer with a sentence."
    for kept in ("What is the answer?", "Which? Answer: red or blue", "Reply with one word."):
        assert asked(kept) == f"{kept} Answer with a sentence."


def test_yes_and_no_are_no_wrong_answers_and_become_sentences():
    examples = rewritten(make_task("Yes", "no", *COLOURS[:4]), 1.0)
    assert [style_of(example) for example in examples[:2]] == ["sentence", "sentence"]
    assert examples[0].answer == "The answer is Yes."
    assert not re.search(r"(?i)\b(yes|no)\b(?! or no|\.)", "".join(e.question for e in examples[2:]))


def test_a_question_with_options_is_asked_about_its_own_options():
    options = ("one", "two", "three", "four")
    task = make_task("one", "two", "one", "two", *COLOURS)
    train = [Example(e.id, e.question, e.answer, choices=options) for e in task.examples["train"][:4]]
    train = [*train, *task.examples["train"][4:]]
    examples = rewritten(Task("toy", {**task.examples, "train": train}, DIGESTS), 1.0)
    assert {style_of(example) for example in examples[:4]} <= {"yes_no", "sentence"}
    said = [re.findall(r'Is the answer "(\w+)"', example.question) for example in examples]
    assert {word for words in said[:4] for word in words} <= set(options)
    assert not {word for words in said[4:] for word in words} & set(options)
    in_text = make_task("A", "B", "C", "D", question="Which?\nA. red\nB. blue\nC. green\nD. pink")
    assert {style_of(e) for e in rewritten(in_text, 1.0)} == {"yes_no", "sentence"}


# -- keys ------------------------------------------------------------------------------------------


def test_only_the_training_split_changes_and_only_where_something_is_rewritten():
    task = make_task(*COLOURS * 2)
    other = with_answer_styles(task, AnswerStyles(0.2))
    assert other.examples["test"] == task.examples["test"]
    assert {split for split in SPLITS if other.digests[split] != task.digests[split]} == {"train"}
    assert with_answer_styles(task, AnswerStyles(0.0)) is task
    assert other.digests == with_answer_styles(task, AnswerStyles(0.2)).digests
    elsewhere = Task("toy", task.examples, {**DIGESTS, "train": 64 * "4"})  # such as other images
    assert with_answer_styles(elsewhere, AnswerStyles(0.2)).digests["train"] != other.digests["train"]
    different = [AnswerStyles(0.4), AnswerStyles(0.2, ("sentence",)), AnswerStyles(0.2, seed=1)]
    digests = {with_answer_styles(task, settings).digests["train"] for settings in different}
    assert len(digests | {other.digests["train"]}) == 4


def test_the_rewritten_task_is_the_same_everywhere():
    task = read_task(Embedded(train=20, answer_styles=AnswerStyles(0.2)), "relations")
    assert task.digests["test"] == Embedded(train=20).read("relations").digests["test"]
    assert {i: e.answer for i, e in enumerate(task.examples["train"]) if style_of(e)} == {
        4: "The answer is left.",
        7: "C",
        17: "yes",
        18: "no",
    }
    assert task.digests["train"][:12] == "933502179625"


def test_a_study_trains_the_rewritten_examples_under_keys_of_their_own(load):
    plain = load(GOOD)
    styled = load(GOOD.replace("name: words, ", "name: words, answer_styles: {share: 0.5}, "))
    assert sum(bool(style_of(e)) for e in styled.read_tasks()["words"].examples["train"]) == 6
    run = plain.runs.run(("digits", "charts", "words"), 0)
    other = styled.runs.run(("digits", "charts", "words"), 0)
    same = [a.key == b.key for a, b in zip(run.stages, other.stages, strict=True)]
    assert same == [True, True, False]
    assert all(
        plain.runs.evaluation(*split) == styled.runs.evaluation(*split)
        for split in plain.runs.evaluations
        if split != ("words", "train")
    )
    assert "answer_styles: {share: 0.5}" in study_to_yaml(styled)
    nothing = load(GOOD.replace("name: words, ", "name: words, answer_styles: {share: 0}, "))
    assert nothing.data.tasks == plain.data.tasks


def test_every_reader_rewrites_alike(load, tmp_path):
    rows = [{"question_id": str(i), "text": f"Which, {i}?", "answer": COLOURS[i % 5]} for i in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "styled_reader.py").write_text(READER)
    wanted = {(e.question, e.answer) for e in rewritten(make_task_of(rows), 0.3)}
    assert sum(bool(style_of(Example("", *pair))) for pair in wanted) == 6
    for entry in (
        "{name: toy, reader: llava, train: rows.json, validation: rows.json, test: rows.json",
        "{name: toy, reader: styled_reader:Mine, file: rows.json",
    ):
        line = "{name: charts, reader: embedded, train: 12, validation: 10, test: 10"
        text = GOOD.replace(line, f"{entry}, answer_styles: {{share: 0.3}}")
        study = load(text + "protocol: {selection_split: test}\n")
        assert {(e.question, e.answer) for e in study.read_task("toy").examples["train"]} == wanted


def make_task_of(rows) -> Task:
    examples = [Example(row["question_id"], row["text"], row["answer"]) for row in rows]
    return Task("toy", dict.fromkeys(SPLITS, examples), DIGESTS)


# -- what cannot be rewritten ----------------------------------------------------------------------


def test_a_style_that_a_task_cannot_have_is_left_out_with_a_warning():
    task = with_answer_styles(make_task(*["left", "right"] * 4), AnswerStyles(1.0))
    assert Counter(map(style_of, task.examples["train"])) == {"yes_no": 3, "sentence": 5}
    assert task.warnings == (
        "answer_styles rewrote 8 of 8 training examples, 3 as yes_no, 0 as multiple_choice and 5 as "
        "sentence; answers of one line and at most 5 words: 8 of 8 (2 different to questions without "
        "options, besides yes and no); needed are 4 for multiple_choice",
    )


def test_examples_that_are_too_few_are_counted():
    task = with_answer_styles(make_task(*COLOURS, *[CAPTION] * 15), AnswerStyles(0.5))
    assert Counter(map(style_of, task.examples["train"])) == {
        "": 15,
        "yes_no": 2,
        "multiple_choice": 2,
        "sentence": 1,
    }
    (warning,) = task.warnings
    assert warning.startswith(
        "answer_styles rewrote 5 of 10 training examples, 2 as yes_no, 2 as multiple_choice"
    )
    assert "5 of 20 (5 different" in warning
    assert with_answer_styles(make_task(*COLOURS), AnswerStyles(1.0)).warnings == ()


def test_a_task_of_captions_is_a_fault():
    with pytest.raises(StudyError) as caught:
        rewritten(make_task(*[CAPTION] * 3), 0.2)
    (fault,) = caught.value.faults
    assert str(fault) == (
        "answer_styles: needs training answers of one line and at most 5 words, and different ones: "
        "2 for yes_no, 4 for multiple_choice and 1 for sentence, got 0 of 3 (0 different to questions "
        "without options, besides yes and no)"
    )
    with pytest.raises(StudyError, match=r"4 for multiple_choice, got 9 of 9 \(3 different"):
        rewritten(make_task(*COLOURS[:3] * 3), 0.2, "multiple_choice")


def test_the_fault_of_a_task_has_its_place_in_the_study_and_exit_code_2(load, tmp_path, capsys):
    rows = [{"question_id": str(i), "text": "Describe it.", "answer": CAPTION} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    entry = "{name: toy, reader: llava, train: rows.json, validation: rows.json, test: rows.json"
    line = "{name: charts, reader: embedded, train: 12, validation: 10, test: 10"
    file = tmp_path / "study.yaml"
    file.write_text(GOOD.replace(line, f"{entry}, answer_styles: {{share: 0.3}}"))
    assert cli.main(["plan", str(file)]) == 2
    assert "line 6  tasks[2].answer_styles: needs training answers of one line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ("{share: 1.5}", ".share", "must be at most 1, got 1.5"),
        ("{share: -0.1}", ".share", "must be at least 0, got -0.1"),
        ("{}", ".share", "is required"),
        ("0.2", "", "must be a mapping of settings, got 0.2"),
        ("{share: 0.2, style: [sentence]}", ".style", "no such setting. Did you mean 'styles'?"),
        ("{share: 0.2, styles: [yesno]}", ".styles[0]", "Did you mean 'yes_no'?"),
        ("{share: 0.2, styles: []}", ".styles", "needs at least 1, has 0"),
        ("{share: 0.2, seed: -1}", ".seed", "must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_faults(load, given, path, message):
    found = faults(load, GOOD.replace("name: words, ", f"name: words, answer_styles: {given}, "))
    assert message in found[f"tasks[1].answer_styles{path}"]


def test_a_task_that_is_only_evaluated_has_none(load):
    text = GOOD.replace("name: charts, ", "name: charts, evaluate_only: true, answer_styles: {share: 0.2}, ")
    assert "the task is only evaluated" in faults(load, text)["tasks[2].answer_styles"]

"""The embedded tasks and the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.models import embedded as model_file
from dgg_ray.readers import embedded as task_file
from dgg_ray.readers.embedded import COLOURS, DIGITS, NUMBERS, PHRASINGS, SIDES, TASKS, WORDS, Embedded

UNTOUCHED = 0.39
ANSWERS = {
    "digits": DIGITS,
    "shapes": COLOURS,
    "counting": NUMBERS,
    "relations": SIDES,
    "words": WORDS,
    "charts": COLOURS,
}
TEST_DIGESTS = {  # of the default's test split, first 12 hex digits
    "digits": "50ade0e5f94e",
    "shapes": "a47050319a5a",
    "counting": "e91ef61d2887",
    "relations": "cb2052ede678",
    "words": "9c58f3ba8d73",
    "charts": "f547ca15a394",
}


@pytest.fixture(scope="module")
def tasks():
    return {name: Embedded().read(name) for name in TASKS}


@pytest.fixture(scope="module")
def loaded():
    return model_file.Embedded().load()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_everywhere(name, tasks):
    assert tasks[name].digests["test"][:12] == TEST_DIGESTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_requested_number_of_examples(name, tasks):
    assert [len(tasks[name].examples[split]) for split in SPLITS] == [300, 100, 100]


@pytest.mark.parametrize("name", TASKS)
def test_no_image_with_its_question_occurs_twice_in_a_task(name, tasks):
    every = [example for split in SPLITS for example in tasks[name].examples[split]]
    assert len({(example.image.tobytes(), example.question) for example in every}) == 500
    assert len({example.id for example in every}) == 500


def test_no_two_splits_share_a_handwritten_digit():
    indices = [
        task_file.digit_index(0, split, i) for split in SPLITS for i in range(task_file.MAX_EXAMPLES[split])
    ]
    assert len(set(indices)) == len(indices) == 1000


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_from_a_closed_set_and_all_of_them_occur(name, tasks):
    assert {example.answer for example in tasks[name].examples["train"]} == set(ANSWERS[name])


@pytest.mark.parametrize("name", TASKS)
def test_no_answer_is_so_frequent_that_guessing_it_scores_well(name, tasks):
    answers = [example.answer for example in tasks[name].examples["test"]]
    assert max(answers.count(answer) for answer in set(answers)) <= 35


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_three_phrasings_and_uses_all_of_them(name, tasks):
    starts = {phrasing.split("{")[0] for phrasing in PHRASINGS[name]}
    questions = [example.question for example in tasks[name].examples["test"]]
    assert len(starts) >= 3
    assert all(any(question.startswith(start) for question in questions) for start in starts)


def test_a_larger_task_contains_the_smaller_one_and_has_the_same_test_split():
    small, large = (Embedded(train=train).read("shapes") for train in (50, 60))
    some, more = small.examples["train"], large.examples["train"][:50]
    assert [example.answer for example in some] == [example.answer for example in more]
    assert all((a.image == b.image).all() for a, b in zip(some, more, strict=True))
    assert small.digests["test"] == large.digests["test"]


def test_another_seed_draws_other_images():
    assert Embedded(seed=1, train=10).read("words").digests != Embedded(train=10).read("words").digests


def test_the_tallest_bar_has_the_colour_of_the_answer(tasks):
    for example in tasks["charts"].examples["test"]:
        if "highest" in example.question:
            strong = np.ptp(example.image.astype(int), axis=2) > 60  # the background is paler than any bar
            row = int(strong.any(1).argmax()) + 1  # below the smoothed edge
            colour = example.image[row][strong[row]].mean(0)
            nearest = min(task_file.COLOURS, key=lambda c: abs(colour - task_file.COLOURS[c]).sum())
            assert nearest == example.answer, example.id


def test_an_unknown_task_is_a_fault_that_suggests_the_nearest():
    with pytest.raises(StudyError, match=r"'digit'.*Did you mean 'digits'"):
        Embedded().read("digit")


def test_the_weights_are_small_enough_to_ship():
    assert (model_file.FOLDER / "model.safetensors").stat().st_size <= 5 * 2**20
    assert model_file.Embedded().faults() == []
    assert len(model_file.Embedded().fingerprint()) == 64


def test_the_auto_classes_load_the_same_model(loaded):
    # as a notebook or another project loads it
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(model_file.FOLDER, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_file.FOLDER, local_files_only=True)
    assert type(model) is type(loaded[0])
    assert torch.equal(model.lm_head.weight, loaded[0].lm_head.weight)
    assert tokenizer("Ünusual 漢字")["input_ids"] == loaded[1].tokenizer("Ünusual 漢字")["input_ids"]


def test_any_text_can_be_encoded_and_decoded(loaded):
    tokenizer = loaded[1].tokenizer
    for text in ("Ünusual 漢字 🙂", "Answer the question using a single word or phrase."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_is_one_token_and_a_sequence_is_short(name, tasks, loaded):
    _, processor = loaded
    assert all(len(processor.tokenizer(f" {answer}")["input_ids"]) == 1 for answer in ANSWERS[name])
    assert max(len(row) for row in prompts(processor, tasks[name].examples["test"])) <= 32


@pytest.mark.whole
def test_the_untouched_model_has_the_recorded_score_on_digits(tasks, loaded):
    examples = tasks["digits"].examples["test"]
    right = [a == e.answer for a, e in zip(answers(*loaded, examples), examples, strict=True)]
    assert sum(right) / 100 == pytest.approx(UNTOUCHED, abs=0.02)


def prompts(processor, examples) -> list[list[int]]:
    return processor(images=[e.image for e in examples], text=[chat(processor, e) for e in examples])[
        "input_ids"
    ]


def chat(processor, example) -> str:
    content = [{"type": "image"}, {"type": "text", "text": example.question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def answers(model, processor, examples) -> list[str]:
    batch = processor(
        images=[example.image for example in examples],
        text=[chat(processor, example) for example in examples],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    with torch.inference_mode():
        written = model.generate(**batch, max_new_tokens=2, do_sample=False)
    new = written[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]

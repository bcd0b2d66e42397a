"""Faults and notes about examples before a GPU is requested, from the embedded model's real processor."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from study_samples import with_data

from dgg_ray import Study, api, cli, load_study
from dgg_ray.config import data_warnings
from dgg_ray.core import image_conversion
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import Example, Task
from dgg_ray.core.strategy import Strategy
from dgg_ray.models.embedded import Embedded
from dgg_ray.training import preflight
from dgg_ray.training.encoding import Encoder

STUDY = """\
name: small
model: embedded
tasks:
  - {name: one, reader: llava, train: one.json, test: one_test.json}
  - {name: two, reader: llava, train: two.json, test: two.json}
strategy: {name: dgg, alpha: 0.2, buffer: 5}
training: {batch_size: 1}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture()
def study(tmp_path):
    """A function that writes and loads the study, with test records of `one` as (question, answer, size)."""

    def make(*records, more="", text=STUDY):
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        plain = [("Which?", f"{i}", None) for i in range(12)]
        for name, some in (("one", plain), ("two", plain), ("one_test", records)):
            content = []
            for i, (question, answer, size) in enumerate(some):
                picture = {}
                if size:
                    Image.new("RGB", size).save(tmp_path / f"{name}{i}.png")
                    picture = {"image": f"{name}{i}.png"}
                content.append({"question_id": f"{i}", "text": question, "answer": answer} | picture)
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "study.yaml").write_text(text + more)
        return load_study(tmp_path / "study.yaml")

    return make


def notes(study):
    return [note for note in preflight.check(study) if note.startswith("one")]


def test_gold_answers_beyond_the_limit_are_counted_with_the_number_needed(study):
    # The embedded tokenizer falls back to one token per byte, so it has to count the x's itself.
    tokenizer = Embedded().processor().tokenizer
    needs = len(tokenizer("x" * 40, add_special_tokens=False)["input_ids"])
    found_notes = notes(study(("Which?", "x" * 40, None), ("Which?", "b", None)))
    assert len(found_notes) == 1
    assert found_notes[0].startswith("one: 1 of 2 gold answers in test need up to")
    assert (
        f"protocol.max_new_tokens is 16: set {needs + 1}" in found_notes[0]
        or f"set {needs + 2}" in found_notes[0]
    )


def test_a_study_in_which_no_answer_can_be_right_is_refused(study):
    with pytest.raises(StudyError, match="as it is, no answer can be right") as caught:
        preflight.check(study(("Which?", "x" * 40, None), ("Which?", "y" * 50, None)))
    assert [fault.path for fault in caught.value.faults] == ["protocol.max_new_tokens"]


def test_gold_answers_beyond_the_limit_in_several_tasks_are_one_fault_with_one_number(study):
    text = STUDY.replace("test: two.json", "test: one_test.json")
    with pytest.raises(StudyError) as caught:
        preflight.check(study(("Which?", "x" * 40, None), ("Which?", "y" * 50, None), text=text))
    (fault,) = caught.value.faults
    assert fault.path == "protocol.max_new_tokens"
    assert "one: 2 of 2 gold answers in test" in fault.rule
    assert "two: 2 of 2 gold answers in test" in fault.rule
    assert fault.rule.count("set ") == 1


def test_a_long_answer_that_begins_with_its_option_can_be_right(study):
    asked = "Which?\n(A) red\n(B) green"
    text = STUDY.replace("test: one_test.json", "test: one_test.json, scorer: contains_choice")
    assert len(notes(study((asked, "B. " + "green " * 20, None), text=text))) <= 1  # a note, and no fault


def test_special_tokens_in_texts_are_reported_and_those_for_images_refused(study):
    tokenizer = Embedded().processor().tokenizer
    mark = tokenizer.eos_token
    found_notes = notes(
        study((f"Which {mark}?", "a", None), ("Which?", f"a {mark}", None), ("Which?", "b", None))
    )
    assert [note.split(" (first")[0] for note in found_notes] == [
        f"one: 1 of 3 questions in test contain `{mark}`",
        f"one: 1 of 3 answers in test contain `{mark}`",
    ]
    task = Task("one", {"test": [Example("7", "Which?", "an <image>")]}, {})
    encoder = Encoder(Embedded().processor(), torch.device("cpu"))
    split_check = preflight.SplitCheck(task, "test", encoder, 16, 0, "tasks[0].test")
    split_check.run()
    (fault,) = split_check.faults
    assert fault.path == "tasks[0].test"
    assert "1 of 1 answers in test contain `<image>` (first: 7), which stands for an image" in fault.rule


def test_prompts_beyond_the_models_context_are_counted(study):
    context = Embedded().context_length()
    assert context > 0
    found_notes = notes(study(("x" * 4 * context, "a", None), ("Which?", "a", None)))
    assert len(found_notes) == 1
    assert "1 of 2 examples in test have up to" in found_notes[0]
    assert f"the model has positions for {context:,}" in found_notes[0]
    with pytest.raises(StudyError, match="1 of 1 examples in test have up to"):
        preflight.check(study(("x" * 4 * context, "a", (40, 30))))


def test_images_that_the_processor_refuses_are_counted_with_the_first_one(study, monkeypatch):
    processor = Embedded().processor()

    class RefusesNarrowImages:
        """Refuses narrow images, as Qwen's processor does."""

        def __getattr__(self, name):
            return getattr(processor, name)

        def __call__(self, text, images, **more):
            if images is not None and images.size[0] > 200 * images.size[1]:
                raise ValueError("absolute aspect ratio must be smaller than 200")
            return processor(text=text, images=images, **more)

    monkeypatch.setattr(Embedded, "processor", lambda self: RefusesNarrowImages())
    records = [("Which?", "a", (801, 4)), ("Which?", "a", (40, 30)), ("Which?", "a", (801, 4))]
    with pytest.raises(
        StudyError, match="2 of 3 examples cannot be prepared by the model's processor"
    ) as caught:
        preflight.check(study(*records))
    assert "801 × 4 pixels): ValueError: absolute aspect ratio" in str(caught.value)


def test_a_result_is_cached_by_content_and_computed_again_after_a_change(study, monkeypatch):
    long = ("Which?", "x" * 40, None)
    first = preflight.check(study(long, ("Which?", "b", None)))
    monkeypatch.setattr(preflight, "check_examples", lambda study: pytest.fail("the result is cached"))
    assert preflight.check(study(long, ("Which?", "b", None))) == first
    monkeypatch.setattr(preflight, "check_examples", lambda study: ([], ["computed again"]))
    assert preflight.check(study(long, ("Which?", "c", None))) == ["computed again"]
    assert preflight.check(study(long, ("Which?", "b", None), more="protocol: {max_new_tokens: 17}\n")) == [
        "computed again"
    ]


@pytest.mark.parametrize("plugin", ["scorers/exact_match", "models/embedded"])
def test_an_edited_scorer_or_model_is_checked_again(study, plugin):
    before = study(("Which?", "a", None))
    after = with_data(before, source_hashes={**before.data.source_hashes, plugin: "0123456789abcdef"})
    assert preflight.cache_path(before) == preflight.cache_path(replace(before, name="other"))
    assert preflight.cache_path(before) != preflight.cache_path(after)


def test_running_a_study_from_python_prints_the_commands_warnings(study, monkeypatch, tmp_path, capsys):
    asked = study(("Which?", "x" * 40, None), ("Which?", "b", None))
    monkeypatch.setattr(api, "run_checked_study", lambda study, out, *how: "run")
    assert api.run_study(asked, tmp_path / "out") == "run"
    err = capsys.readouterr().err
    assert "warning: one answer in test is worth more than a point" in err
    assert "warning: one: 1 of 2 gold answers in test need up to" in err


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_an_image_rotated_by_exif_has_the_size_that_the_processor_sees(tmp_path, kind, turn):
    file, exif = tmp_path / f"a.{kind}", Image.Exif()
    exif[image_conversion.ORIENTATION_TAG] = turn
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    with Image.open(file) as image:
        seen = image_conversion.to_rgb(image).size
    assert preflight.image_size(file) == seen == ((40, 30) if turn < 5 else (30, 40))


def test_a_simulated_study_and_a_missing_model_give_one_line(study):
    (line,) = preflight.check(study(("Which?", "a", None), more="workers: {engine: simulated}\n"))
    assert "the study is simulated" in line
    path = "model: {name: llava_1_5, path: some/model, revision: " + "a" * 40 + "}"
    (line,) = preflight.check(study(("Which?", "a", None), text=STUDY.replace("model: embedded", path)))
    assert "the model is not on this machine" in line


def test_of_many_sizes_the_extremes_and_some_between_are_sampled():
    rng = np.random.default_rng(0)
    sizes = [preflight.ImageSize(int(w), int(h)) for w, h in rng.integers(20, 900, (2000, 2))]
    some = preflight.sample_sizes([*sizes, None])
    assert len(some) <= 2 * preflight.MAX_SIZES
    assert None in some
    for key in (lambda s: s[0], lambda s: s[1], lambda s: s[0] / s[1], lambda s: s[0] * s[1]):
        assert {key(min(sizes, key=key)), key(max(sizes, key=key))} <= {key(s) for s in some if s}
    assert preflight.sample_sizes(sizes[:5]) == sizes[:5]


# -- sizes -----------------------------------------------------------------------------------------


def test_small_data_are_warned_about_with_their_numbers(study):
    more = "search: {space: {strategy.buffer: [5, 20, 30]}}\n"
    text = STUDY.replace("alpha: 0.2", "alpha: {two: 0.1}").replace("batch_size: 1", "batch_size: 8")
    warnings = study(("Which?", "a", None), ("Which?", "b", None), more=more, text=text).data.warnings
    assert any("is worth more than a point: 2 in `one` (50.0 points) and 12 in" in line for line in warnings)
    assert any(line.startswith("one answer in validation is worth") for line in warnings)
    assert any("strategy.buffer 20 and 30: more than the training examples of" in line for line in warnings)
    assert any(
        "strategy.alpha names no value for `one`, which will be trained with α = 0" in line
        for line in warnings
    )
    assert any(
        "so few optimizer steps hardly train a task: `one` (2) and `two` (2)" in line for line in warnings
    )


def test_examples_that_a_scorer_cannot_use_are_reported(study):
    text = STUDY.replace("test: one_test.json", "test: one_test.json, scorer: contains_choice")
    asked = "Which? Options: (A) red (B) green"
    warnings = study(("Which?", "a", None), (asked, "B", None), (asked, "C", None), text=text).data.warnings
    assert any("1 of 3 questions in test show no options to `contains_choice`" in line for line in warnings)
    assert any("1 of 3 questions in test have a gold answer that names none" in line for line in warnings)


def test_large_data_give_no_warnings():
    examples = [Example(str(i), "Which?", "a") for i in range(100)]
    task = Task("one", dict.fromkeys(("train", "validation", "test"), examples), {})
    assert list(data_warnings.task_warnings(SEARCHED, task)) == []
    assert list(data_warnings.study_warnings(SEARCHED, {})) == []


SEARCHED = Study(name="s", model=Embedded(), readers={}, strategy=Strategy())


def test_plan_prints_the_warnings(study, tmp_path, capsys, monkeypatch):
    study(("Which?", "x" * 40, None), ("Which?", "b", None))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "study.yaml"]) == 0
    assert "warning: one: 1 of 2 gold answers in test need up to" in capsys.readouterr().err

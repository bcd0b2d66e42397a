"""What is said of examples before a GPU is asked for: by the real processor of the embedded model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dgg_ray import Study, api, cli, load_study
from dgg_ray.config import cautions
from dgg_ray.core import pixels
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import Example, Task
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
    """Makes the study of test records of `one`, as (question, answer, width, height or None)."""

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


def test_answers_that_cannot_be_written_to_their_end_are_counted_with_the_number_needed(study):
    # The embedded tokenizer has a token for each byte it knows no longer piece for, so x's are counted by it.
    tokenizer = Embedded().processor().tokenizer
    needs = len(tokenizer("x" * 40, add_special_tokens=False)["input_ids"])
    found = notes(study(("Which?", "x" * 40, None), ("Which?", "b", None)))
    assert len(found) == 1
    assert found[0].startswith("one: 1 of 2 gold answers in test need up to")
    assert f"protocol.max_new_tokens is 16: set {needs + 1}" in found[0] or f"set {needs + 2}" in found[0]


def test_where_no_answer_can_be_right_the_study_is_refused(study):
    with pytest.raises(StudyError, match="as it is, no answer can be right") as caught:
        preflight.check(study(("Which?", "x" * 40, None), ("Which?", "y" * 50, None)))
    assert [fault.path for fault in caught.value.faults] == ["protocol.max_new_tokens"]


def test_answers_too_long_in_several_tasks_are_one_fault_with_the_number_that_all_need(study):
    text = STUDY.replace("test: two.json", "test: one_test.json")
    with pytest.raises(StudyError) as caught:
        preflight.check(study(("Which?", "x" * 40, None), ("Which?", "y" * 50, None), text=text))
    (fault,) = caught.value.faults
    assert fault.path == "protocol.max_new_tokens"
    assert "one: 2 of 2 gold answers in test" in fault.rule
    assert "two: 2 of 2 gold answers in test" in fault.rule
    assert fault.rule.count("set ") == 1


def test_a_long_answer_whose_option_is_named_at_its_start_can_be_right(study):
    asked = "Which?\n(A) red\n(B) green"
    text = STUDY.replace("test: one_test.json", "test: one_test.json, scorer: contains_choice")
    assert len(notes(study((asked, "B. " + "green " * 20, None), text=text))) <= 1  # a note, and no fault


def test_special_tokens_in_texts_are_named_and_those_for_pictures_refused(study):
    tokenizer = Embedded().processor().tokenizer
    mark = tokenizer.eos_token
    found = notes(study((f"Which {mark}?", "a", None), ("Which?", f"a {mark}", None), ("Which?", "b", None)))
    assert [note.split(" (first")[0] for note in found] == [
        f"one: 1 of 3 questions in test hold `{mark}`",
        f"one: 1 of 3 answers in test hold `{mark}`",
    ]
    task = Task("one", {"test": [Example("7", "Which?", "an <image>")]}, {})
    encoder = Encoder(Embedded().processor(), torch.device("cpu"))
    look = preflight.Look(task, "test", encoder, 16, 0, "tasks[0].test")
    look.at_all()
    (fault,) = look.faults
    assert fault.path == "tasks[0].test"
    assert "1 of 1 answers in test hold `<image>` (first: 7), which stands for a picture" in fault.rule


def test_prompts_beyond_the_model_s_positions_are_counted(study):
    context = Embedded().context()
    assert context > 0
    found = notes(study(("x" * 4 * context, "a", None), ("Which?", "a", None)))
    assert len(found) == 1
    assert "1 of 2 examples in test have up to" in found[0]
    assert f"the model has positions for {context:,}" in found[0]
    with pytest.raises(StudyError, match="1 of 1 examples in test have up to"):
        preflight.check(study(("x" * 4 * context, "a", (40, 30))))


def test_pictures_that_the_processor_refuses_are_counted_with_the_first(study, monkeypatch):
    processor = Embedded().processor()

    class Narrow:
        """As Qwen's is."""

        def __getattr__(self, name):
            return getattr(processor, name)

        def __call__(self, text, images, **more):
            if images is not None and images.size[0] > 200 * images.size[1]:
                raise ValueError("absolute aspect ratio must be smaller than 200")
            return processor(text=text, images=images, **more)

    monkeypatch.setattr(Embedded, "processor", lambda self: Narrow())
    records = [("Which?", "a", (801, 4)), ("Which?", "a", (40, 30)), ("Which?", "a", (801, 4))]
    with pytest.raises(
        StudyError, match="2 of 3 examples cannot be prepared by the model's processor"
    ) as caught:
        preflight.check(study(*records))
    assert "801 × 4 pixels): ValueError: absolute aspect ratio" in str(caught.value)


def test_what_was_found_is_known_by_content_and_found_anew_when_it_changes(study, monkeypatch):
    long = ("Which?", "x" * 40, None)
    first = preflight.check(study(long, ("Which?", "b", None)))
    monkeypatch.setattr(preflight, "looked_at", lambda study: pytest.fail("it was known"))
    assert preflight.check(study(long, ("Which?", "b", None))) == first
    monkeypatch.setattr(preflight, "looked_at", lambda study: ([], ["anew"]))
    assert preflight.check(study(long, ("Which?", "c", None))) == ["anew"]
    assert preflight.check(study(long, ("Which?", "b", None), more="protocol: {max_new_tokens: 17}\n")) == [
        "anew"
    ]


@pytest.mark.parametrize("plugin", ["scorers/exact_match", "models/embedded"])
def test_a_scorer_or_a_model_of_ones_own_that_is_edited_is_asked_anew(study, plugin):
    before = study(("Which?", "a", None))
    after = replace(before, codes={**before.codes, plugin: "0123456789abcdef"})
    assert preflight.remembered(before) == preflight.remembered(replace(before, name="other"))
    assert preflight.remembered(before) != preflight.remembered(after)


def test_a_study_that_python_runs_says_what_the_command_says(study, monkeypatch, tmp_path, capsys):
    asked = study(("Which?", "x" * 40, None), ("Which?", "b", None))
    monkeypatch.setattr(api, "carry_out", lambda study, out, *how: "run")
    assert api.run_study(asked, tmp_path / "out") == "run"
    said = capsys.readouterr().err
    assert "warning: test is so small that one answer is worth more than a point" in said
    assert "warning: one: 1 of 2 gold answers in test need up to" in said


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_picture_that_exif_turns_has_the_size_that_the_processor_sees(tmp_path, kind, turn):
    file, exif = tmp_path / f"a.{kind}", Image.Exif()
    exif[pixels.ORIENTATION] = turn
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    with Image.open(file) as image:
        seen = pixels.shown(image).size
    assert preflight.size_of(file) == seen == ((40, 30) if turn < 5 else (30, 40))


def test_a_simulated_study_and_a_model_elsewhere_are_told_in_a_line(study):
    (line,) = preflight.check(study(("Which?", "a", None), more="workers: {engine: simulated}\n"))
    assert "the study is simulated" in line
    path = "model: {name: llava_1_5, path: some/model, revision: " + "a" * 40 + "}"
    (line,) = preflight.check(study(("Which?", "a", None), text=STUDY.replace("model: embedded", path)))
    assert "the model is not on this machine" in line


def test_of_many_sizes_the_extremes_are_tried_and_some_between():
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(20, 900, (2000, 2))]
    some = preflight.chosen([*sizes, None])
    assert len(some) <= 2 * preflight.SHAPES
    assert None in some
    for key in (lambda s: s[0], lambda s: s[1], lambda s: s[0] / s[1], lambda s: s[0] * s[1]):
        assert {key(min(sizes, key=key)), key(max(sizes, key=key))} <= {key(s) for s in some if s}
    assert preflight.chosen(sizes[:5]) == sizes[:5]


# -- sizes -----------------------------------------------------------------------------------------


def test_small_data_are_told_with_their_numbers(study):
    more = "search: {space: {strategy.buffer: [5, 20, 30]}}\n"
    text = STUDY.replace("alpha: 0.2", "alpha: {two: 0.1}").replace("batch_size: 1", "batch_size: 8")
    said = study(("Which?", "a", None), ("Which?", "b", None), more=more, text=text).warnings
    assert any("one answer is worth more than a point: 2 in `one` (50.0 points) and 12 in" in s for s in said)
    assert any(line.startswith("validation is so small") for line in said)
    assert any("strategy.buffer 20 and 30: more than the training examples of" in line for line in said)
    assert any(
        "strategy.alpha names no value for `one`, which will be learned with α = 0" in line for line in said
    )
    assert any("so few optimizer steps hardly learn a task: `one` (2) and `two` (2)" in line for line in said)


def test_what_a_scorer_cannot_use_is_told_by_plan(study):
    text = STUDY.replace("test: one_test.json", "test: one_test.json, scorer: contains_choice")
    asked = "Which? Options: (A) red (B) green"
    said = study(("Which?", "a", None), (asked, "B", None), (asked, "C", None), text=text).warnings
    assert any("1 of 3 questions in test show no options to `contains_choice`" in line for line in said)
    assert any("1 of 3 questions in test have a gold answer that names none" in line for line in said)


def test_large_data_are_told_nothing_of():
    examples = [Example(str(i), "Which?", "a") for i in range(100)]
    task = Task("one", dict.fromkeys(("train", "validation", "test"), examples), {})
    assert list(cautions.of_task(SEARCHED, task)) == []
    assert list(cautions.of_study(SEARCHED, {})) == []


SEARCHED = Study(name="s", model=Embedded(), readers={}, strategy=None)  # type: ignore[arg-type]


def test_plan_prints_what_was_found(study, tmp_path, capsys, monkeypatch):
    study(("Which?", "x" * 40, None), ("Which?", "b", None))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "study.yaml"]) == 0
    assert "warning: one: 1 of 2 gold answers in test need up to" in capsys.readouterr().err

"""The forms of records: each is read with its intended meaning, or refused with the reason."""

import gzip
import json

import pytest
from llava_samples import edit, faults, only_fault, question, read, sample, turn, write, write_image
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return sample(tmp_path)


def examples_of(folder, *records):
    """The test examples, as (id, question, answer, image's name)."""
    write(folder / "test.json", list(records))
    return [(e.id, e.question, e.answer, e.image and e.image.name) for e in read(folder).examples["test"]]


def refused(folder, *records):
    write(folder / "test.json", list(records))
    return only_fault(folder)


def warned(folder, *records):
    write(folder / "test.json", list(records))
    return read(folder).warnings


# -- unread keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("image_path", "images", "img", "picture", "image_file", "imageFile", "Image", "input_image"),
        *("image_url", "img_path", "photo", "image_1", "pixel_values", "image_base64", "file_name", "file"),
    ],
)
@pytest.mark.parametrize("inside", [lambda name: name, lambda name: [name], lambda name: {"path": name}])
def test_an_image_under_another_key_is_a_fault_that_suggests_the_right_key(folder, key, inside):
    record = question("q", None, "x")
    del record["image"]
    fault = refused(folder, record | {key: inside("7.png")})
    assert (fault.path, fault.rule, fault.near) == (f"test[0].{key}", "no such key", "image")


@pytest.mark.parametrize("key", ["video", "videos", "audio", "audio_path", "point_cloud", "depth", "speech"])
def test_another_medium_is_a_fault_with_and_without_an_image(folder, key):
    for record in (question("q", "7.png", "x"), question("q", None, "x")):
        fault = refused(folder, record | {key: "clip.mp4"})
        assert fault.path == f"test[0].{key}"
        assert "cannot be shown to a model" in fault.rule


@pytest.mark.parametrize("nothing", [None, "", [], [None], {}])
@pytest.mark.parametrize("key", ["video", "images", "system", "hint"])
def test_an_empty_value_is_accepted_under_any_key(folder, key, nothing):
    assert warned(folder, question("q", "7.png", "x") | {key: nothing}) == ()


@pytest.mark.parametrize(
    "same",
    [
        {"image_path": "/data/photos/7.png"},
        {"image_url": "https://example.org/photos/7.jpg?size=large"},
        {"images": ["7.png"]},
        {"file_name": "7.png"},
    ],
)
def test_the_same_image_under_a_second_key_is_accepted(folder, same):
    assert warned(folder, question("q", "7.png", "x") | same) == ()


@pytest.mark.parametrize(
    "second",
    [
        {"image2": "B/0001.png"},
        {"image_b": "B/0001.png"},
        {"image_after": "B/0001.png"},
        {"images": ["B/0001.png"]},
        {"depth": "B/0001.png"},
        {"depth": "A/0001.npy"},
        {"video": "A/0001.mp4"},
        {"image_path": "/data/B/0001.png"},
    ],
    ids=str,
)
def test_another_image_with_the_same_file_name_is_a_fault(folder, second):
    for place in ("A", "B"):
        write_image(folder / place / "0001.png")
    fault = refused(folder, question("q", "A/0001.png", "x") | second)
    assert fault.path == f"test[0].{next(iter(second))}"


@pytest.mark.parametrize("key", ["image_id", "source", "hint", "mask", "flickr_url"])
def test_another_file_under_an_ignored_key_is_noted(folder, key):
    other = "https://example.org/8.png" if key == "flickr_url" else "8.png"
    assert warned(folder, question("q", "7.png", "x") | {key: other}) == (
        f"test: ignored keys: `{key}` (1 record)",
    )


def test_a_second_image_is_a_fault(folder):
    fault = refused(folder, question("q", "7.png", "x") | {"images": ["7.png", "8.png"]})
    assert (fault.path, fault.near) == ("test[0].images", "image")


def test_metadata_are_accepted(folder):
    metadata = {
        "question_type": "colour",
        "source": "coco",
        "image_id": "7",
        "image_size": [8, 6],
        "width": 8,
        "has_image": True,
        "num_images": 1,
        "license": "CC0",
        "video_id": "v7",
        "split": "val",
        "score": 0.5,
    }
    assert warned(folder, question("q", "7.png", "x") | metadata) == ()


def test_ignored_keys_are_noted_with_the_number_of_records(folder):
    records = [question(str(i), "7.png", "x", f"{i}?") | {"hint": "look"} for i in range(3)]
    records[0]["options"] = ["x", "y"]
    assert warned(folder, *records) == (
        "test: ignored keys: `hint` (3 records), `options`; did you mean `choices`? (1 record)",
    )


@pytest.mark.parametrize(("key", "near"), [("choises", "choices"), ("refrences", "references")])
def test_a_misspelt_key_is_a_fault_although_the_record_is_complete_without_it(folder, key, near):
    fault = refused(folder, question("q", "7.png", "x") | {key: ["x", "y"]})
    assert (fault.path, fault.rule, fault.near) == (f"test[0].{key}", "no such key", near)


@pytest.mark.parametrize("key", ["video\ud800", "system\x1b[31m", "choises\n"])
def test_a_key_that_cannot_be_printed_is_escaped_in_the_fault(folder, key):
    fault = refused(folder, question("q", "7.png", "x") | {key: "clip.mp4"})
    assert str(fault).isprintable()
    str(fault).encode()


@pytest.mark.parametrize("key", ["system", "system_prompt", "tools"])
def test_instructions_that_a_model_is_not_shown_are_a_fault(folder, key):
    assert "is not shown to a model" in refused(folder, question("q", "7.png", "x") | {key: "Be brief."}).rule


@pytest.mark.parametrize(("key", "near"), [("response", "answer"), ("label", "answer"), ("anser", "answer")])
def test_an_answer_under_another_key_is_a_fault_that_suggests_the_right_key(folder, key, near):
    record = question("q", "7.png", "x")
    record[key] = record.pop("answer")
    assert refused(folder, record).near == near


def test_a_question_under_another_key_is_a_fault_that_suggests_the_right_key(folder):
    record = question("q", "7.png", "x")
    record["question"] = record.pop("text")
    assert refused(folder, record).near == "text"


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nothing", "shown"), [(None, "null"), ([], "[]"), ([None], "[null]")])
def test_an_image_token_without_an_image_is_a_fault(folder, nothing, shown):
    fault = refused(folder, turn("q", nothing, "x"))
    assert (fault.path, fault.found) == ("test[0].image", shown)
    assert fault.rule == "is required, as the question contains <image>"


@pytest.mark.parametrize("nothing", [None, []])
def test_a_record_without_token_and_image_is_text_only(folder, nothing):
    assert examples_of(folder, question("q", nothing, "x")) == [("q", "What is this?", "x", None)]


@pytest.mark.parametrize(
    "token",
    ["<video>", "<audio>", "<point_cloud>", "<Image>", "<img>", "<image_1>", "<|image_pad|>", "<speech>"],
)
def test_a_token_of_another_medium_or_model_is_a_fault(folder, token):
    fault = refused(folder, turn("q", "7.png", "x", f"{token}\nWhat is this?"))
    assert (fault.path, fault.found) == ("test[0].conversations[0].value", token)


@pytest.mark.parametrize("text", ["is 3 < 4?", "<b>bold</b>?", "<img src='a.png'>?", "a <- b -> c", "<s>"])
def test_other_angle_brackets_are_text(folder, text):
    assert examples_of(folder, turn("q", "7.png", "x", f"<image>\n{text}"))[0][1] == text


@pytest.mark.parametrize("token", ["<image>", "<video>"])
def test_a_token_in_an_answer_a_reference_or_a_choice_is_a_fault(folder, token):
    assert refused(folder, turn("q", "7.png", f"see {token}")).path == "test[0].conversations[1].value"
    assert refused(folder, question("q", "7.png", token)).path == "test[0].answer"
    assert refused(folder, question("q", "7.png", "x") | {"references": [token]}).path == "test[0].references"
    assert refused(folder, question("q", "7.png", "x") | {"choices": ["x", token]}).path == "test[0].choices"


def test_two_image_tokens_in_a_conversation_are_a_fault(folder):
    record = turn("q", "7.png", "x")
    record["conversations"] += turn("q", "7.png", "y")["conversations"]
    fault = refused(folder, record)
    assert (fault.rule, fault.found) == ("must contain <image> at most once", "2 times")


# -- turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize(
    "asks", [("from", "human", "value"), ("role", "user", "content"), ("from", "USER", "value")]
)
def test_turns_are_read_with_all_usual_keys_and_roles(folder, key, asks):
    who, name, what = asks
    answers = {"human": "gpt", "user": "assistant", "USER": "ASSISTANT"}[name]
    turns = [{who: name, what: "<image>\nWhat is this?"}, {who: answers, what: "a plum"}]
    assert examples_of(folder, {"id": "q", "image": "7.png", key: turns}) == [
        ("q", "What is this?", "a plum", "7.png")
    ]


def test_a_content_in_parts_gives_its_texts_and_its_image(folder):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "a plum"}]},
    ]
    assert examples_of(folder, {"image": "7.png", "messages": turns}) == [
        ("#0", "What is this?", "a plum", "7.png")
    ]
    assert refused(folder, {"messages": turns}).path == "test[0].image"


@pytest.mark.parametrize(
    "part",
    [{"type": "image", "image": "7.png"}, {"type": "image_url", "image_url": {"url": "7.png"}}, "text"],
)
def test_an_image_inside_a_turn_is_refused(folder, part):
    turns = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "x"},
    ]
    assert "the image under `image`" in refused(folder, {"messages": turns}).rule


@pytest.mark.parametrize(
    "who",
    [
        ("gpt", "human"),
        ("human",),
        ("human", "human"),
        ("human", "gpt", "human"),
        ("human", "function"),
        ("human", "tool", "gpt"),
        ("human", "bot"),
        ("None", "gpt"),
    ],
)
def test_turns_that_do_not_alternate_or_have_unknown_roles_are_refused(folder, who):
    turns = [{"from": name, "value": f"{name}?"} for name in who]
    fault = refused(folder, {"id": "q", "conversations": turns})
    assert (fault.rule, fault.found) == ("must be pairs of human and gpt turns", ", ".join(who).lower())


def test_a_system_turn_is_refused_unless_it_is_empty(folder):
    record = turn("q", "7.png", "x")
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert "is not shown a system turn" in refused(folder, record).rule
    record["conversations"][0]["value"] = ""
    assert examples_of(folder, record) == [("q", "What is this?", "x", "7.png")]


def test_text_and_answer_must_agree_with_the_turns(folder):
    record = turn("q", "7.png", "x")
    assert examples_of(folder, record | {"answer": "x", "text": "What is this?"})[0][2] == "x"
    assert refused(folder, record | {"answer": "y"}).path == "test[0].answer"
    assert refused(folder, record | {"text": "Where?"}).path == "test[0].text"
    assert "not both" in refused(folder, record | {"messages": record["conversations"]}).rule


def test_conversations_of_several_turns_and_loss_weights_are_noted(folder):
    record = turn("q", "7.png", "x")
    record["conversations"] += turn("q", None, "y", "And this?")["conversations"]
    record["conversations"][3]["weight"] = 0
    assert warned(folder, record) == (
        "test: ignored keys: `weight` (1 record)",
        "test: conversations of several turns, whose questions are asked without the earlier turns: 1 record",
    )


# -- values ----------------------------------------------------------------------------------------


def test_whole_numbers_are_read_digit_by_digit(folder):
    large = 2**64 + 1
    text = json.dumps([question(large, "7.png", -5), question(2**63, "7.png", 10**400, "How many?")])
    (folder / "test.json").write_text(text)
    first, second = read(folder).examples["test"]
    assert (first.id, first.answer) == ("18446744073709551617", "-5")
    assert (second.id, second.answer) == ("9223372036854775808", "1" + "0" * 400)


def test_a_number_too_long_for_python_is_read_as_text(folder):
    text = json.dumps([question("q", "7.png", "ANSWER")]).replace('"ANSWER"', "7" * 5000)
    (folder / "test.json").write_text(text)
    assert read(folder).examples["test"][0].answer == "7" * 5000


@pytest.mark.parametrize("value", [2.5, 5.0, True, False, {}, ["x"], float("nan"), float("inf")])
def test_an_answer_without_a_unique_text_form_is_refused(folder, value):
    assert refused(folder, question("q", "7.png", value)).rule == "must be text"


@pytest.mark.parametrize(
    "value", ["\u200b", " \ufeff \u200d ", "\u00a0", "\u00ad", *"\u202a\ufe0f\u2061\u180e"]
)
def test_an_answer_of_invisible_characters_is_empty(folder, value):
    assert refused(folder, question("q", "7.png", value)).rule == "must not be empty"


def test_a_null_id_or_answer_counts_as_absent(folder):
    record = question(None, "7.png", None) | {"references": ["a plum", "a prune"]}
    assert examples_of(folder, record) == [("#0", "What is this?", "a plum", "7.png")]
    assert refused(folder, question("q", "7.png", None)).rule.startswith("must contain `conversations`")


def test_a_number_and_its_text_are_the_same_id(folder):
    fault = refused(folder, question(7, "7.png", "x"), question("7", "8.png", "y"))
    assert (fault.path, fault.rule) == ("test[1].id", "must be unique in its split")


# -- JSON ------------------------------------------------------------------------------------------

ONE, TWO = question("a", "7.png", "x"), question("b", "8.png", "y")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ONE, TWO]),
        json.dumps([ONE, TWO], indent=2).replace("\n", "\r\n"),
        f"{json.dumps(ONE)}\n{json.dumps(TWO)}",
        f"\n{json.dumps(ONE)}\r\n\r\n {json.dumps(TWO)} \r\n",
        f"{json.dumps(ONE)}\r{json.dumps(TWO)}\r",
        f"{json.dumps(ONE, indent=1)}\n{json.dumps(TWO, indent=1)}\n",
        "\ufeff" + json.dumps([ONE, TWO]),
    ],
    ids=["list", "CRLF", "lines", "empty lines", "CR", "spread", "mark"],
)
@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_lists_and_lines_are_recognised_by_the_files_content(folder, text, name, pack):
    (folder / name).write_bytes(pack(text.encode()))
    assert [(e.id, e.answer) for e in read(folder, test=folder / name).examples["test"]] == [
        ("a", "x"),
        ("b", "y"),
    ]


def test_a_key_written_twice_is_a_fault_on_its_line(folder):
    lines = [json.dumps(ONE), json.dumps(TWO).replace('"answer"', '"answer": "z", "answer"')]
    (folder / "test.json").write_text("\n".join(lines))
    fault = only_fault(folder)
    assert (fault.path, fault.line, fault.found) == ("test[1]", 2, "'answer' twice")
    (folder / "test.json").write_text("[" + ",\n".join(lines) + "]")
    assert only_fault(folder) == fault


def test_a_key_written_twice_in_a_turn_is_a_fault(folder):
    text = json.dumps([turn("q", "7.png", "x")]).replace('"value": "x"', '"value": "x", "value": "y"')
    (folder / "test.json").write_text(text)
    assert only_fault(folder).found == "'value' twice"


def test_commas_after_json_lines_are_one_fault_with_their_number(folder):
    text = "".join(json.dumps(question(i, "7.png", "x", f"{i}?")) + ",\n" for i in range(50))
    (folder / "test.json").write_text("\n" + text)
    fault = only_fault(folder)
    assert "no comma after a record" in fault.rule
    assert (fault.line, fault.found) == (2, "50 of them, the first on this line")


def test_a_comma_before_the_closing_bracket_is_a_fault(folder):
    (folder / "test.json").write_text(f"[{json.dumps(ONE)},\n]")
    fault = only_fault(folder)
    assert (fault.line, fault.found) == (
        1,
        f"a comma stands before the closing bracket at column {len(json.dumps(ONE)) + 2}",
    )


@pytest.mark.parametrize("wrapper", [{"data": [ONE, TWO]}, {"info": {}, "questions": [ONE]}])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_records_inside_an_object_is_recognised(folder, wrapper, indent):
    (folder / "test.json").write_text(json.dumps(wrapper, indent=indent))
    fault = only_fault(folder)
    assert fault.rule == "must be a JSON list or JSON lines"
    assert f"under {list(wrapper)[-1]!r}, write that list alone" in fault.found


def test_an_object_of_records_by_id_is_recognised(folder):
    (folder / "test.json").write_text(json.dumps({"a": ONE, "b": TWO}))
    assert only_fault(folder).found == "one object with the keys a, b"


@pytest.mark.parametrize("rest", ['"text"', "7", "null", "[]", '["a"]'])
def test_a_value_that_is_no_record_is_refused_after_a_broken_line(folder, rest):
    (folder / "test.json").write_text('{"oops\n' + rest)
    assert [fault.line for fault in faults(folder)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("[]".encode("utf-16"), "UTF-16"),
        ("[]".encode("utf-16-le"), "UTF-16"),
        ("[]".encode("utf-16-be"), "UTF-16"),
        ("[]".encode("utf-32"), "UTF-32"),
        ("[]".encode("utf-32-be"), "UTF-32"),
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"PAR1 and more", "a Parquet file"),
    ],
)
def test_other_encodings_and_formats_are_recognised(folder, content, name):
    (folder / "test.json").write_bytes(content)
    fault = only_fault(folder)
    assert (fault.rule, fault.found.partition(";")[0]) == ("must be UTF-8 text", name)


def test_a_gzip_file_that_is_cut_off_is_refused(folder):
    (folder / "test.json").write_bytes(gzip.compress(json.dumps([ONE] * 100).encode())[:-20])
    assert only_fault(folder).rule == "must be readable"


# -- links -----------------------------------------------------------------------------------------


def test_data_files_may_be_links_and_the_fault_of_a_broken_one_shows_its_target(folder):
    (folder / "test.json").rename(folder / "there.json")
    (folder / "test.json").symlink_to(folder / "there.json")
    assert len(read(folder).examples["test"]) == 3
    (folder / "there.json").unlink()
    assert only_fault(folder).found.startswith(f"test.json, a broken link to {folder}"[:100])


def test_an_image_folder_may_be_a_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("link") / "images"
    link.symlink_to(folder)
    assert read(folder, images=link).digests == read(folder).digests


# -- captions --------------------------------------------------------------------------------------


def captioned(folder, names, captions=None):
    """Write a caption file with `caption of NAME` for each name."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    notes = [{"image_id": i, "caption": f"caption of {name}"} for i, name in enumerate(names)]
    write(folder / "captions.json", {"images": images, "annotations": notes} | (captions or {}))


def in_folders(folder):
    """Write images of train and test with equal file names."""
    for split, shades in (("train", (10, 20, 30)), ("test", (40, 50, 60))):
        for i, shade in enumerate(shades):
            write_image(folder / split / f"{i}.png", shade=shade)
        records = [question(f"{split}{i}", f"{split}/{i}.png", "x") for i in range(3)]
        write(folder / f"{split}.json", records)


def test_captions_of_full_paths_belong_to_these_images_only(folder):
    in_folders(folder)
    captioned(folder, [f"test/{i}.png" for i in range(3)])
    task = read(folder, references=folder / "captions.json")
    assert [e.references for e in task.examples["test"]] == [(f"caption of test/{i}.png",) for i in range(3)]
    assert {e.references for e in task.examples["validation"]} == {()}


def test_captions_of_file_names_that_two_images_share_are_refused(folder):
    in_folders(folder)
    captioned(folder, [f"{i}.png" for i in range(3)])
    found = faults(folder, references=folder / "captions.json")
    assert {fault.rule.partition(",")[0] for fault in found} == {
        "must be listed by its full path in the `references` file"
    }
    assert [fault.path for fault in found if fault.path.startswith("test")] == [
        f"test[{i}].image" for i in range(3)
    ]


def test_a_caption_is_not_used_for_another_image_with_the_same_file_name(folder):
    in_folders(folder)
    captioned(folder, ["train/0.png", "test/1.png", "test/2.png"])
    fault = only_fault(folder, references=folder / "captions.json")
    assert (fault.path, fault.found) == ("test[0].image", "test/0.png")


def test_captions_of_another_folder_are_matched_by_unique_file_names(folder):
    captioned(folder, [f"val2014/{i}.png" for i in (7, 8, 9)])
    examples = read(folder, references=folder / "captions.json").examples["test"]
    assert [e.references for e in examples] == [(f"caption of val2014/{i}.png",) for i in (7, 8, 9)]


def test_captions_of_two_images_with_the_same_file_name_are_not_mixed(folder):
    captioned(folder, ["a/7.png", "b/7.png", "8.png", "9.png"])
    fault = only_fault(folder, references=folder / "captions.json")
    assert (fault.path, fault.found) == ("test[0].image", "'a/7.png' and 'b/7.png' for '7.png'")


def test_an_id_of_two_images_and_a_caption_without_an_image_are_faults(folder):
    images = [{"id": 1, "file_name": f"{i}.png"} for i in (7, 8)]
    captioned(folder, ["7.png", "8.png", "9.png"], {"images": images})
    found = faults(folder, references=folder / "captions.json")
    assert {(fault.path, fault.rule) for fault in found} == {
        ("references.images[1].id", "must be the id of one image"),
        ("references.annotations[0].image_id", "must be the id of one of `images`"),
        ("references.annotations[2].image_id", "must be the id of one of `images`"),
    } | {("test[1].image", "must have a caption in the `references` file")} | {
        ("test[2].image", "must have a caption in the `references` file")
    }


def test_captions_and_the_records_own_references_are_not_mixed(folder):
    captioned(folder, ["7.png", "8.png", "9.png"])
    edit(folder / "test.json", lambda test: test[0].update(references=["my own"]))
    assert only_fault(folder, references=folder / "captions.json").path == "test[0].references"


# -- notes ----------------------------------------------------------------------------------------


def test_examples_without_an_image_are_counted_by_split(folder):
    edit(folder / "test.json", lambda test: [record.pop("image") for record in test])
    assert read(folder).warnings == (
        "3 of 3 examples in test have no image, while 6 of 6 in train have one",
        "2 of 3 examples in test repeat another one (same question, same image); "
        "answers differ for 1 question",
    )


def test_a_task_of_text_only_has_no_note_on_images(folder):
    write(folder / "train.json", [{"text": f"{i}?", "answer": "x"} for i in range(5)])
    write(folder / "test.json", [{"text": "one?", "answer": "x"}])
    assert read(folder).warnings == ()


def test_other_answers_to_questions_of_train_are_counted(folder):
    edit(folder / "test.json", lambda test: test.append(question("q", "3.png", "other")))
    edit(folder / "test.json", lambda test: test.append(question("r", "4.png", "answer 4")))
    write(folder / "validation.json", [question("v", "9.png", "x", "Else?")])
    assert read(folder, validation=folder / "validation.json").warnings == (
        "2 of 5 examples in test are also in train (same question, same image), "
        "1 of them with another answer",
    )


def test_images_with_several_frames_are_counted(folder):
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (1, 120)]
    frames[0].save(folder / "7.gif", save_all=True, append_images=frames[1:])
    edit(folder / "test.json", lambda test: test[0].update(image="7.gif"))
    (warning,) = read(folder).warnings
    assert warning == "1 image with several frames or pages: only the first of each is shown"

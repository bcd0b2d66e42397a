"""The LLaVA reader on small files: the task that it returns, and the faults of bad data."""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from llava_samples import edit, faults, only_fault, question, read, sample, turn, write, write_image
from PIL import Image

from dgg_ray.readers import _images
from dgg_ray.readers._data_files import SHOWN


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return sample(tmp_path)


# -- tasks ----------------------------------------------------------------------------------------


def test_both_kinds_of_record_become_examples(folder):
    task = read(folder, validation_share=0.3)
    example = task.examples["test"][1]
    assert (example.id, example.question, example.answer) == ("q8", "What is this?", "answer 8")
    assert example.image == folder / "8.png"
    assert {split: len(task.examples[split]) for split in task.examples} == {
        "train": 5,  # 0.3 of 7 images are 2
        "validation": 2,
        "test": 3,
    }
    trained = [*task.examples["train"], *task.examples["validation"]]
    assert {e.id: (e.question, e.answer) for e in trained}["a4"] == ("What is this?", "answer 4")


def test_json_lines_and_a_byte_order_mark_are_read(folder):
    lines = "\n".join(json.dumps(question(i, f"{i}.png", "x")) for i in (7, 8))
    (folder / "test.jsonl").write_text("\ufeff" + lines + "\n\n", encoding="utf-8")
    assert [e.id for e in read(folder, test=folder / "test.jsonl").examples["test"]] == ["7", "8"]


@pytest.mark.parametrize(
    ("asked", "question_"),
    [
        ("<image>\nName it.\nOne word.", "Name it.\nOne word."),
        ("Name it.\n<image>", "Name it."),
        ("Name it.\n<image>\nOne word.", "Name it.\nOne word."),
        ("<image>Name it.\nA. plum\nB. pear", "Name it.\nA. plum\nB. pear"),
        ("Name it.", "Name it."),
    ],
)
def test_the_image_token_is_removed_with_its_line_break_and_options_stay(folder, asked, question_):
    write(folder / "test.json", [turn("1", "7.png", "plum", asked)])
    assert read(folder).examples["test"][0].question == question_


def test_references_choices_numbers_text_only_and_missing_ids_are_read(folder):
    records = [
        {"text": "One and one?", "answer": 2, "choices": ["1", "2"]},
        {"text": "Caption?", "image": ["7.png"], "references": ["a plum", "fruit"]},
    ]
    write(folder / "test.json", records)
    sum_, caption = read(folder).examples["test"]
    assert (sum_.id, sum_.image, sum_.answer, sum_.choices) == ("#0", None, "2", ("1", "2"))
    assert (caption.id, caption.answer, caption.references) == ("#1", "a plum", ("a plum", "fruit"))
    assert caption.image == folder / "7.png"


def test_every_pair_of_a_long_conversation_is_an_example(folder):
    record = turn("c", "7.png", "plum")
    record["conversations"] += [{"from": "human", "value": "Ripe?"}, {"from": "gpt", "value": "yes"}]
    write(folder / "test.json", [record])
    examples = read(folder).examples["test"]
    assert [(e.id, e.question, e.answer) for e in examples] == [
        ("c", "What is this?", "plum"),
        ("c#1", "Ripe?", "yes"),
    ]
    assert examples[1].image == folder / "7.png"


def test_validation_is_divided_by_image(folder):
    records = [turn(f"{i}-{k}", f"{i}.png", f"{k}", f"Question {k}?") for k in range(3) for i in range(7)]
    write(folder / "train.json", records)
    examples = read(folder, validation_share=0.4).examples
    sides = [{e.image for e in examples[split]} for split in ("train", "validation")]
    assert [len(side) for side in sides] == [4, 3]  # 0.4 of 7 are 2.8
    assert not sides[0] & sides[1]
    assert [len(examples[split]) for split in ("train", "validation")] == [12, 9]


def test_the_division_depends_on_its_seed_alone(folder):
    def validation_ids(seed):
        return tuple(e.id for e in read(folder, split_seed=seed, validation_share=0.4).examples["validation"])

    assert validation_ids(1) == validation_ids(1)
    assert len({validation_ids(seed) for seed in range(8)}) > 1


def test_limits_take_nested_samples_in_the_order_of_the_file(folder):
    def ids(split, **settings):
        validation = write_validation(folder)
        return [e.id for e in read(folder, validation=validation, **settings).examples[split]]

    large, small = ids("train", limit=5), ids("train", limit=3)
    assert (len(large), len(small)) == (5, 3)
    assert set(small) < set(large)
    assert large == sorted(large)
    assert len(ids("test", limit_test=2)) == 2
    assert len(ids("test", limit=2)) == 3


def test_images_that_a_limit_leaves_out_are_not_read(folder):
    used = {e.id for split in ("train", "validation") for e in read(folder, limit=2).examples[split]}
    for i in range(7):
        if f"a{i}" not in used:
            (folder / f"{i}.png").unlink()
    assert len(read(folder, limit=2).examples["train"]) == 2


def test_captions_are_matched_by_file_name_and_not_by_number(folder):
    captions = {
        "images": [
            {"id": 1, "file_name": "9.png"},
            {"id": 2, "file_name": "7.png"},
            {"id": 3, "file_name": "8.png"},
        ],
        "annotations": [{"image_id": i, "caption": f"caption {i}{k}"} for k in "ab" for i in (1, 2, 3)],
    }
    write(folder / "captions.json", captions)
    found = [e.references for e in read(folder, references=folder / "captions.json").examples["test"]]
    assert found == [("caption 2a", "caption 2b"), ("caption 3a", "caption 3b"), ("caption 1a", "caption 1b")]


# -- digests ---------------------------------------------------------------------------------------


def test_the_digest_depends_on_content_and_not_on_the_folder(folder, tmp_path_factory):
    before = read(folder).digests
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    os.rename(folder, elsewhere)
    assert read(elsewhere).digests == before
    assert all(len(value) == 64 for value in before.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda test: test[0].update(answer="another"),
        lambda test: test[0].update(text="Another?"),
        lambda test: test[0].update(question_id="another"),
        lambda test: test[0].update(references=["a", "b"]),
        lambda test: test[0].update(choices=["a", "b"]),
        lambda test: test[0].pop("image"),
        lambda test: test.reverse(),
    ],
)
def test_every_field_enters_the_digest_of_its_split_only(folder, change):
    before = read(folder).digests
    edit(folder / "test.json", change)
    after = read(folder).digests
    assert after["test"] != before["test"]
    assert after["train"] == before["train"]


def test_a_changed_image_changes_the_digest_although_its_path_is_known(folder):
    before = read(folder).digests["test"]
    write_image(folder / "8.png", shade=99)
    assert read(folder).digests["test"] != before


# -- warnings --------------------------------------------------------------------------------------


def test_examples_in_both_train_and_test_are_recognised_by_the_content_of_their_images(folder):
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    edit(folder / "test.json", lambda test: test.append(question("q", "copy.png", "answer 3")))
    assert read(folder, validation=write_validation(folder)).warnings == (
        "1 of 4 examples in test are also in train (same question, same image)",
    )


def test_another_question_about_the_same_image_gives_no_note(folder):
    edit(folder / "test.json", lambda test: test.append(question("q", "3.png", "yes", "Is it 3?")))
    task = read(folder)
    assert (len(task.examples["test"]), task.warnings) == (4, ())


def write_validation(folder):
    write(folder / "validation.json", [question("v", "9.png", "x", "Something else?")])
    return folder / "validation.json"


# -- faults ----------------------------------------------------------------------------------------


def test_a_missing_file_is_a_fault_that_suggests_the_nearest_name(folder):
    fault = only_fault(folder, train=folder / "trian.json", images=folder)
    assert (fault.path, fault.found, fault.near) == ("train", str(folder / "trian.json"), "train.json")


def test_a_file_that_is_cut_off_is_a_fault_with_its_line(folder):
    text = (folder / "test.json").read_text()
    (folder / "test.json").write_text(text[: text.index('"q9"') + 3])
    fault = only_fault(folder)
    assert (fault.path, fault.rule) == ("test", "must be valid JSON")
    assert fault.line == text[: text.index('"q9"')].count("\n") + 1
    assert "cut off" in fault.found


def test_a_broken_json_line_is_a_fault_and_the_other_lines_are_read(folder):
    lines = [json.dumps(question("1", "7.png", "x")), "{oops}", json.dumps(question("2", "8.png", ""))]
    (folder / "test.json").write_text("\n".join(lines))
    assert [(fault.line, fault.rule) for fault in faults(folder)] == [
        (2, "must be valid JSON"),
        (3, "must not be empty"),
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must contain at least one record"),
        ("[]", "must contain at least one record"),
        (' {"data":\n [1]}', "must be a JSON list or JSON lines"),
        ("id,image,text", "must be a JSON list or JSON lines"),
        ("[" * 100_000, "must not be nested so deeply"),
        ('[{"text": "a", "answer": "b"},]', "must be valid JSON"),
        ('[{"text": "a", "answer": "b"}] [', "must be valid JSON"),
        ('[{"text": "a", "answer": "\\ud800"}]', "must be text without lone surrogates"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_refused(folder, text, rule):
    (folder / "test.json").write_text(text)
    assert only_fault(folder).rule == rule


def test_a_file_in_another_encoding_is_refused_with_its_line(folder):
    (folder / "test.json").write_bytes('[\n{"text": "café"}]'.encode("latin-1"))
    fault = only_fault(folder)
    assert (fault.rule, fault.line) == ("must be UTF-8 text", 2)
    assert fault.found == "byte 0xe9, which is 'é' in Latin-1 and Windows-1252"


@pytest.mark.parametrize(
    ("change", "path", "rule"),
    [
        (lambda r: r.pop("answer"), "test[1]", "must contain `conversations`, or `text` and `answer`"),
        (lambda r: r.update(answer=" "), "test[1].answer", "must not be empty"),
        (lambda r: r.update(answer=["x"]), "test[1].answer", "must be text"),
        (lambda r: r.update(text=None), "test[1].text", "must be text"),
        (lambda r: r.update(text="<image>"), "test[1].text", "must contain a question besides <image>"),
        (lambda r: r.update(text="<image><image> x"), "test[1]", "must contain <image> at most once"),
        (lambda r: r.update(question_id={}), "test[1].question_id", "must be text"),
        (lambda r: r.update(question_id="q7"), "test[1].id", "must be unique in its split"),
        (lambda r: r.update(choices="AB"), "test[1].choices", "must be a list of texts"),
        (lambda r: r.update(references=["a", 1.5]), "test[1].references[1]", "must be text"),
        (lambda r: r.update(image=7.5), "test[1].image", "must be text"),
        (lambda r: r.update(image=["7.png", "8.png"]), "test[1].image", "must be one image"),
        (lambda r: r.update(image="none.png"), "test[1].image", "must be a file in the image folder"),
        (lambda r: r.update(image="x" * 300), "test[1].image", "must be a file in the image folder"),
        (lambda r: r.update(image="."), "test[1].image", "must be an image that can be decoded"),
        (lambda r: r.update(image="../8.png"), "test[1].image", "must be a path inside the image folder"),
        (lambda r: r.update(image="/8.png"), "test[1].image", "must be a path inside the image folder"),
        (
            lambda r: r.update(conversations=[]),
            "test[1].conversations",
            "must be pairs of human and gpt turns",
        ),
        (
            lambda r: r.update(conversations=["hi"]),
            "test[1].conversations",
            "must be a list of {from, value}",
        ),
    ],
)
def test_a_record_that_breaks_a_rule_is_a_fault_with_path_and_line(folder, change, path, rule):
    edit(folder / "test.json", lambda test: change(test[1]))
    fault = only_fault(folder)
    assert (fault.path, fault.rule, fault.line) == (
        path,
        rule,
        8,
    )  # records of six lines, the list opens on 1
    assert fault.file == str(folder / "test.json")


def test_turns_must_come_in_pairs_and_an_image_token_needs_an_image(folder):
    half, bare = turn("h", "1.png", "x"), turn("b", "2.png", "x")
    half["conversations"].pop()
    bare.pop("image")
    edit(folder / "train.json", lambda train: train.extend([half, bare]))
    assert [(fault.path, fault.rule) for fault in faults(folder)] == [
        ("train[7].conversations", "must be pairs of human and gpt turns"),
        ("train[8].image", "is required, as the question contains <image>"),
    ]


def test_a_misspelt_key_is_a_fault_that_suggests_the_right_one(folder):
    edit(folder / "train.json", lambda train: train[2].update(conversation=train[2].pop("conversations")))
    assert only_fault(folder).near == "conversations"


def test_a_misspelt_image_is_a_fault_that_suggests_the_right_one(folder):
    write_image(folder / "photos" / "kitchen.png")
    edit(folder / "test.json", lambda test: test[0].update(image="photos/kichten.png"))
    assert only_fault(folder).near == "kitchen.png"


def test_images_that_are_cut_off_empty_or_of_no_image_format_are_refused(folder):
    noise = Image.effect_noise((64, 64), 80)
    noise.save(folder / "7.jpg")
    whole = (folder / "7.jpg").read_bytes()
    (folder / "7.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    png = (folder / "8.png").read_bytes()
    (folder / "8.png").write_bytes(png[:-20])
    (folder / "9.png").write_text("<html>not found</html>")
    (folder / "10.png").write_bytes(b"")
    edit(folder / "test.json", lambda test: test[0].update(image="7.jpg"))
    edit(folder / "test.json", lambda test: test.append(question("q10", "10.png", "x")))
    found = faults(folder)
    assert [fault.path for fault in found] == [f"test[{i}].image" for i in range(4)]
    assert {fault.rule for fault in found} == {"must be an image that can be decoded"}
    assert "truncated" in found[0].found
    assert "not a known image format" in found[2].found
    assert "empty file" in found[3].found


def test_links_in_the_image_folder_may_lead_out_of_it(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("outside")
    write_image(elsewhere / "coco" / "far.png", shade=77)
    (folder / "link.png").symlink_to(elsewhere / "coco" / "far.png")
    (folder / "link").symlink_to(elsewhere)
    edit(folder / "test.json", lambda test: test[0].update(image="link.png"))
    edit(folder / "test.json", lambda test: test[1].update(image="link/coco/far.png"))
    assert [e.image.read_bytes() for e in read(folder).examples["test"][:2]] == [
        (elsewhere / "coco" / "far.png").read_bytes()
    ] * 2


def test_links_that_lead_nowhere_or_in_a_circle_are_described(folder):
    (folder / "link").symlink_to(folder / "gone")
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    edit(folder / "test.json", lambda test: test[0].update(image="link/x.png"))
    edit(folder / "test.json", lambda test: test[1].update(image="a.png"))
    nowhere, circle = faults(folder)
    assert {nowhere.rule, circle.rule} == {"must be a file in the image folder"}
    assert f"the link 'link' leads to {folder / 'gone'}"[:60] in nowhere.found
    assert "the link 'a.png' leads to" in circle.found


def test_two_dots_in_a_path_ignore_where_a_link_leads(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("outside") / "inner"
    elsewhere.mkdir()
    write_image(elsewhere.parent / "8.png", shade=1)
    (folder / "link").symlink_to(elsewhere)
    edit(folder / "test.json", lambda test: test[0].update(image="link/../8.png"))
    assert read(folder).examples["test"][0].image == folder / "8.png"


def test_an_absolute_path_into_the_image_folder_is_accepted(folder):
    before = read(folder).digests
    edit(folder / "test.json", lambda test: test[0].update(image=str(folder / "7.png")))
    assert read(folder).digests == before


def test_a_missing_image_folder_is_one_fault(folder):
    fault = only_fault(folder, images=folder / "pictures")
    assert (fault.path, fault.rule) == ("images", "must be a folder that exists")


def test_a_single_image_cannot_be_divided(folder):
    write(folder / "train.json", [turn("a", "1.png", "x")])
    assert "name a `validation` file" in only_fault(folder).rule


def test_a_test_image_without_a_caption_is_a_fault(folder):
    captions = {"images": [{"id": 1, "file_name": "7.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    write(folder / "captions.json", captions)
    assert [fault.path for fault in faults(folder, references=folder / "captions.json")] == [
        "test[1].image",
        "test[2].image",
    ]


@pytest.mark.parametrize(
    "captions", [[], {}, {"images": [{}]}, {"images": [], "annotations": [{"image_id": 1}]}]
)
def test_a_caption_file_of_another_form_is_refused(folder, captions):
    write(folder / "captions.json", captions)
    fault = only_fault(folder, references=folder / "captions.json")
    assert (fault.path.partition(".")[0], fault.file) == ("references", str(folder / "captions.json"))


def test_the_faults_of_all_files_are_raised_together(folder):
    edit(folder / "train.json", lambda train: train[3].update(image="gone.png"))
    edit(folder / "test.json", lambda test: test[0].pop("text"))
    found = faults(folder, references=folder / "captions.json")
    assert {fault.path for fault in found} >= {"train[3].image", "test[0]", "references"}


def test_a_fault_of_a_thousand_records_is_shown_twenty_times_and_counted(folder):
    edit(folder / "test.json", lambda test: test.extend(question(i, f"no{i}.png", "x") for i in range(1000)))
    edit(folder / "test.json", lambda test: test[0].update(answer=""))
    found = faults(folder)
    missing = [fault for fault in found if "must be a file in the image folder" in fault.rule]
    assert len(missing) == SHOWN + 1
    assert sum("980 more from here on" in fault.rule for fault in missing) == 1
    assert len(found) == SHOWN + 2


# -- the image cache -------------------------------------------------------------------------------


def test_a_known_image_is_not_decoded_again(tmp_path, monkeypatch):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    write_image(file)
    first = _images.inspect_images([file], cache)
    monkeypatch.setattr(_images, "decode_image", lambda path: pytest.fail(f"{path} is decoded again"))
    assert _images.inspect_images([file], cache) == first


def test_a_copy_under_another_name_is_not_decoded_again(tmp_path, monkeypatch):
    file, copy, cache = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "cache.sqlite"
    write_image(file)
    first = _images.inspect_images([file], cache)[file]
    copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(_images, "decode_image", lambda path: pytest.fail(f"{path} is decoded again"))
    assert _images.inspect_images([copy], cache)[copy] == first


def test_another_image_with_the_same_name_size_and_times_is_decoded(tmp_path):
    file, cache = tmp_path / "a.bmp", tmp_path / "cache.sqlite"
    write_image(file)
    long_ago = time.time_ns() - 10**12
    os.utime(file, ns=(long_ago, long_ago))
    first, before = _images.inspect_images([file], cache), file.stat()
    with file.open("r+b") as opened:  # in place, as `cp -p` and `rsync -t` do: the inode stays
        content = opened.read()
        opened.seek(0)
        opened.write(content[:-6] + bytes(6))
    os.utime(file, ns=(long_ago, long_ago))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, long_ago, before.st_ino)
    assert _images.inspect_images([file], cache)[file].digest not in ("", first[file].digest)


def test_other_tables_of_the_cache_are_ignored(tmp_path):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    write_image(file)
    with closing(sqlite3.connect(cache)) as older, older:
        older.execute("CREATE TABLE picture (path TEXT PRIMARY KEY, size INT, changed INT, digest TEXT)")
        about = file.stat()
        row = (str(file), about.st_size, about.st_mtime_ns, "0" * 64)
        older.execute("INSERT INTO picture VALUES (?, ?, ?, ?)", row)
    assert _images.inspect_images([file], cache)[file].digest not in ("", "0" * 64)


@pytest.mark.parametrize("cache", ["damaged", "folder", "unwritable/place/cache.sqlite"])
def test_an_unusable_cache_changes_no_result(tmp_path, cache):
    file = tmp_path / "a.png"
    write_image(file)
    (tmp_path / "damaged").write_text("this is no database " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "unwritable").write_text("a file where a folder is wanted")
    (found,) = _images.inspect_images([file], tmp_path / cache).values()
    assert len(found.digest) == 64


def test_a_damaged_cache_is_replaced(tmp_path):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    write_image(file)
    cache.write_text("this is no database " * 100)
    _images.inspect_images([file], cache)
    _images.inspect_images([file], cache)
    assert cache.read_bytes().startswith(b"SQLite format 3")


def test_the_cache_is_in_the_systems_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert _images.cache_file() == Path("/somewhere/dgg_ray/images.sqlite")

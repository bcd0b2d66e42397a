"""The LLaVA reader, on small files made here: what it gives, and what bad data get."""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from llava_samples import edit, faults, only_fault, picture, question, read, sample, turn, write
from PIL import Image

from dgg_ray.readers import _pictures
from dgg_ray.readers._data_faults import SHOWN


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return sample(tmp_path)


# -- what it gives ---------------------------------------------------------------------------------


def test_both_kinds_of_record_become_examples(folder):
    task = read(folder, validation_share=0.3)
    example = task.examples["test"][1]
    assert (example.id, example.question, example.answer) == ("q8", "What is this?", "answer 8")
    assert example.image == folder / "8.png"
    assert {split: len(task.examples[split]) for split in task.examples} == {
        "train": 5,  # 0.3 of 7 pictures are 2
        "validation": 2,
        "test": 3,
    }
    learned = [*task.examples["train"], *task.examples["validation"]]
    assert {e.id: (e.question, e.answer) for e in learned}["a4"] == ("What is this?", "answer 4")


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
def test_the_image_token_goes_with_its_line_break_and_options_stay(folder, asked, question_):
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


def test_validation_is_divided_by_picture(folder):
    records = [turn(f"{i}-{k}", f"{i}.png", f"{k}", f"Question {k}?") for k in range(3) for i in range(7)]
    write(folder / "train.json", records)
    examples = read(folder, validation_share=0.4).examples
    sides = [{e.image for e in examples[split]} for split in ("train", "validation")]
    assert [len(side) for side in sides] == [4, 3]  # 0.4 of 7 are 2.8
    assert not sides[0] & sides[1]
    assert [len(examples[split]) for split in ("train", "validation")] == [12, 9]


def test_the_division_follows_its_seed_alone(folder):
    def apart(seed):
        return tuple(e.id for e in read(folder, split_seed=seed, validation_share=0.4).examples["validation"])

    assert apart(1) == apart(1)
    assert len({apart(seed) for seed in range(8)}) > 1


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


def test_pictures_that_a_limit_leaves_out_are_not_looked_at(folder):
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


def test_the_digest_follows_content_and_not_place(folder, tmp_path_factory):
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
def test_every_field_enters_the_digest_of_its_split_alone(folder, change):
    before = read(folder).digests
    edit(folder / "test.json", change)
    after = read(folder).digests
    assert after["test"] != before["test"]
    assert after["train"] == before["train"]


def test_a_changed_picture_changes_the_digest_though_it_was_seen_before(folder):
    before = read(folder).digests["test"]
    picture(folder / "8.png", shade=99)
    assert read(folder).digests["test"] != before


# -- warnings --------------------------------------------------------------------------------------


def test_examples_in_train_and_test_are_told_by_the_content_of_their_pictures(folder):
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    edit(folder / "test.json", lambda test: test.append(question("q", "copy.png", "answer 3")))
    assert read(folder, validation=write_validation(folder)).warnings == (
        "1 of 4 examples in test are in train too (same question, same picture)",
    )


def test_another_question_about_the_same_picture_is_no_warning(folder):
    edit(folder / "test.json", lambda test: test.append(question("q", "3.png", "yes", "Is it 3?")))
    task = read(folder)
    assert (len(task.examples["test"]), task.warnings) == (4, ())


def write_validation(folder):
    write(folder / "validation.json", [question("v", "9.png", "x", "Something else?")])
    return folder / "validation.json"


# -- faults ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_nearest(folder):
    fault = only_fault(folder, train=folder / "trian.json", images=folder)
    assert (fault.path, fault.found, fault.near) == ("train", str(folder / "trian.json"), "train.json")


def test_a_file_that_is_cut_off_is_told_by_its_line(folder):
    text = (folder / "test.json").read_text()
    (folder / "test.json").write_text(text[: text.index('"q9"') + 3])
    fault = only_fault(folder)
    assert (fault.path, fault.rule) == ("test", "must be whole JSON")
    assert fault.line == text[: text.index('"q9"')].count("\n") + 1
    assert "cut off" in fault.found


def test_a_broken_json_line_is_told_by_its_line_and_the_others_are_read(folder):
    lines = [json.dumps(question("1", "7.png", "x")), "{oops}", json.dumps(question("2", "8.png", ""))]
    (folder / "test.json").write_text("\n".join(lines))
    assert [(fault.line, fault.rule) for fault in faults(folder)] == [
        (2, "must be whole JSON"),
        (3, "must not be empty"),
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must hold at least one record"),
        ("[]", "must hold at least one record"),
        (' {"data":\n [1]}', "must be a JSON list or JSON lines"),
        ("id,image,text", "must be a JSON list or JSON lines"),
        ("[" * 100_000, "must not be nested that deeply"),
        ('[{"text": "a", "answer": "b"},]', "must be whole JSON"),
        ('[{"text": "a", "answer": "b"}] [', "must be whole JSON"),
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
        (lambda r: r.pop("answer"), "test[1]", "must hold `conversations`, or `text` and `answer`"),
        (lambda r: r.update(answer=" "), "test[1].answer", "must not be empty"),
        (lambda r: r.update(answer=["x"]), "test[1].answer", "must be text"),
        (lambda r: r.update(text=None), "test[1].text", "must be text"),
        (lambda r: r.update(text="<image>"), "test[1].text", "must hold a question beside <image>"),
        (lambda r: r.update(text="<image><image> x"), "test[1]", "must hold <image> once at most"),
        (lambda r: r.update(question_id={}), "test[1].question_id", "must be text"),
        (lambda r: r.update(question_id="q7"), "test[1].id", "must be used once in a split"),
        (lambda r: r.update(choices="AB"), "test[1].choices", "must be a list of texts"),
        (lambda r: r.update(references=["a", 1.5]), "test[1].references[1]", "must be text"),
        (lambda r: r.update(image=7.5), "test[1].image", "must be text"),
        (lambda r: r.update(image=["7.png", "8.png"]), "test[1].image", "must be one picture"),
        (lambda r: r.update(image="none.png"), "test[1].image", "must be a file in the image folder"),
        (lambda r: r.update(image="x" * 300), "test[1].image", "must be a file in the image folder"),
        (lambda r: r.update(image="."), "test[1].image", "must be a picture that decodes"),
        (lambda r: r.update(image="../8.png"), "test[1].image", "must be a path inside the image folder"),
        (lambda r: r.update(image="/8.png"), "test[1].image", "must be a path inside the image folder"),
        (lambda r: r.update(conversations=[]), "test[1].conversations", "must be pairs of human and gpt"),
        (
            lambda r: r.update(conversations=["hi"]),
            "test[1].conversations",
            "must be a list of {from, value}",
        ),
    ],
)
def test_a_record_that_breaks_a_rule_is_told_by_path_and_line(folder, change, path, rule):
    edit(folder / "test.json", lambda test: change(test[1]))
    fault = only_fault(folder)
    assert (fault.path, fault.rule, fault.line) == (
        path,
        rule,
        8,
    )  # records of six lines, the list opens on 1
    assert fault.file == str(folder / "test.json")


def test_turns_must_come_in_pairs_and_an_image_must_be_there_for_its_token(folder):
    half, bare = turn("h", "1.png", "x"), turn("b", "2.png", "x")
    half["conversations"].pop()
    bare.pop("image")
    edit(folder / "train.json", lambda train: train.extend([half, bare]))
    assert [(fault.path, fault.rule) for fault in faults(folder)] == [
        ("train[7].conversations", "must be pairs of human and gpt"),
        ("train[8].image", "is needed where the question holds <image>"),
    ]


def test_a_misspelt_key_is_answered_with_the_right_one(folder):
    edit(folder / "train.json", lambda train: train[2].update(conversation=train[2].pop("conversations")))
    assert only_fault(folder).near == "conversations"


def test_a_misspelt_picture_is_answered_with_the_right_one(folder):
    picture(folder / "photos" / "kitchen.png")
    edit(folder / "test.json", lambda test: test[0].update(image="photos/kichten.png"))
    assert only_fault(folder).near == "kitchen.png"


def test_pictures_that_are_cut_off_empty_or_no_pictures_are_refused(folder):
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
    assert {fault.rule for fault in found} == {"must be a picture that decodes"}
    assert "truncated" in found[0].found
    assert "no picture format" in found[2].found
    assert "empty file" in found[3].found


def test_links_in_the_image_folder_are_followed_wherever_they_lead(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("outside")
    picture(elsewhere / "coco" / "far.png", shade=77)
    (folder / "link.png").symlink_to(elsewhere / "coco" / "far.png")
    (folder / "door").symlink_to(elsewhere)
    edit(folder / "test.json", lambda test: test[0].update(image="link.png"))
    edit(folder / "test.json", lambda test: test[1].update(image="door/coco/far.png"))
    assert [e.image.read_bytes() for e in read(folder).examples["test"][:2]] == [
        (elsewhere / "coco" / "far.png").read_bytes()
    ] * 2


def test_links_that_lead_nowhere_or_in_a_circle_are_told(folder):
    (folder / "door").symlink_to(folder / "gone")
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    edit(folder / "test.json", lambda test: test[0].update(image="door/x.png"))
    edit(folder / "test.json", lambda test: test[1].update(image="a.png"))
    nowhere, circle = faults(folder)
    assert {nowhere.rule, circle.rule} == {"must be a file in the image folder"}
    assert f"the link 'door' leads to {folder / 'gone'}"[:60] in nowhere.found
    assert "the link 'a.png' leads to" in circle.found


def test_a_name_that_goes_back_stays_where_it_says_whatever_a_link_leads_to(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("outside") / "inner"
    elsewhere.mkdir()
    picture(elsewhere.parent / "8.png", shade=1)
    (folder / "door").symlink_to(elsewhere)
    edit(folder / "test.json", lambda test: test[0].update(image="door/../8.png"))
    assert read(folder).examples["test"][0].image == folder / "8.png"


def test_a_whole_name_that_leads_into_the_image_folder_is_that_picture(folder):
    before = read(folder).digests
    edit(folder / "test.json", lambda test: test[0].update(image=str(folder / "7.png")))
    assert read(folder).digests == before


def test_a_missing_image_folder_is_one_fault(folder):
    fault = only_fault(folder, images=folder / "pictures")
    assert (fault.path, fault.rule) == ("images", "must be a folder that exists")


def test_one_picture_cannot_be_divided(folder):
    write(folder / "train.json", [turn("a", "1.png", "x")])
    assert "name a `validation` file" in only_fault(folder).rule


def test_a_test_picture_without_a_caption_is_a_fault(folder):
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


def test_faults_of_all_files_come_at_once(folder):
    edit(folder / "train.json", lambda train: train[3].update(image="gone.png"))
    edit(folder / "test.json", lambda test: test[0].pop("text"))
    found = faults(folder, references=folder / "captions.json")
    assert {fault.path for fault in found} >= {"train[3].image", "test[0]", "references"}


def test_the_same_fault_a_thousand_times_is_shown_twenty_times_and_counted(folder):
    edit(folder / "test.json", lambda test: test.extend(question(i, f"no{i}.png", "x") for i in range(1000)))
    edit(folder / "test.json", lambda test: test[0].update(answer=""))
    found = faults(folder)
    missing = [fault for fault in found if "must be a file in the image folder" in fault.rule]
    assert len(missing) == SHOWN + 1
    assert sum("980 more from here on" in fault.rule for fault in missing) == 1
    assert len(found) == SHOWN + 2


# -- the cache of pictures -------------------------------------------------------------------------


def test_a_known_picture_is_not_decoded_again(tmp_path, monkeypatch):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    picture(file)
    first = _pictures.inspect([file], cache)
    monkeypatch.setattr(_pictures, "look", lambda path: pytest.fail(f"{path} is decoded again"))
    assert _pictures.inspect([file], cache) == first


def test_a_copy_under_another_name_is_not_decoded_again(tmp_path, monkeypatch):
    file, copy, cache = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "cache.sqlite"
    picture(file)
    first = _pictures.inspect([file], cache)[file]
    copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(_pictures, "look", lambda path: pytest.fail(f"{path} is decoded again"))
    assert _pictures.inspect([copy], cache)[copy] == first


def test_another_picture_of_equal_size_name_and_times_is_another_picture(tmp_path):
    file, cache = tmp_path / "a.bmp", tmp_path / "cache.sqlite"
    picture(file)
    long_ago = time.time_ns() - 10**12
    os.utime(file, ns=(long_ago, long_ago))
    first, before = _pictures.inspect([file], cache), file.stat()
    with file.open("r+b") as opened:  # in place, as `cp -p` and `rsync -t` do: the inode stays
        content = opened.read()
        opened.seek(0)
        opened.write(content[:-6] + bytes(6))
    os.utime(file, ns=(long_ago, long_ago))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, long_ago, before.st_ino)
    assert _pictures.inspect([file], cache)[file].digest not in ("", first[file].digest)


def test_a_cache_of_an_older_version_is_not_read(tmp_path):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    picture(file)
    with closing(sqlite3.connect(cache)) as older, older:
        older.execute("CREATE TABLE picture (path TEXT PRIMARY KEY, size INT, changed INT, digest TEXT)")
        about = file.stat()
        row = (str(file), about.st_size, about.st_mtime_ns, "0" * 64)
        older.execute("INSERT INTO picture VALUES (?, ?, ?, ?)", row)
    assert _pictures.inspect([file], cache)[file].digest not in ("", "0" * 64)


@pytest.mark.parametrize("cache", ["damaged", "folder", "unwritable/place/cache.sqlite"])
def test_an_unusable_cache_costs_time_and_nothing_else(tmp_path, cache):
    file = tmp_path / "a.png"
    picture(file)
    (tmp_path / "damaged").write_text("this is no database " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "unwritable").write_text("a file where a folder is wanted")
    (found,) = _pictures.inspect([file], tmp_path / cache).values()
    assert len(found.digest) == 64


def test_a_damaged_cache_is_begun_anew(tmp_path):
    file, cache = tmp_path / "a.png", tmp_path / "cache.sqlite"
    picture(file)
    cache.write_text("this is no database " * 100)
    _pictures.inspect([file], cache)
    _pictures.inspect([file], cache)
    assert cache.read_bytes().startswith(b"SQLite format 3")


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert _pictures.cache_file() == Path("/somewhere/dgg_ray/pictures.sqlite")

"""The LLaVA reader against an oracle: records are generated with their meaning, or with a fault.

Records are written in all the forms that data sets use, and files in all the forms of JSON. The reader must
return exactly the generated examples. A record with a fault must be refused, and no other one. Damaged files
raise StudyError and nothing else.

The tests marked as slow check the same properties on many more examples.
"""

import gzip
import json
import os
import random
import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from dgg_ray.core.errors import StudyError
from dgg_ray.readers.llava import Llava

MANY = 1500  # examples of each property; each has several records
FEW = min(25, int(os.environ.get("DGG_RAY_EXAMPLES", "25")))
IMAGES = ("a.png", "b.png", "sub/a.png", "sub/deep/d e.png", "é.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of images and a training file; tests write their test files next to them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for i, name in enumerate(IMAGES):
            (folder / "img" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((3, 2, 3), 10 + i, dtype=np.uint8)).save(folder / "img" / name)
        train = [{"image": name, "text": f"train {name}?", "answer": "x"} for name in IMAGES]
        (folder / "train.json").write_text(json.dumps(train))
        yield folder


def read(folder, content, name="test.json"):
    (folder / name).write_bytes(content)
    return Llava(folder / "train.json", test=folder / name, images=folder / "img").read("task")


# -- meanings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meant:
    """A record's meaning: (question, answer) for each pair of turns, and the fields they share."""

    id: str | int | None
    pairs: tuple[tuple[str, str], ...]
    image: str | None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def examples(self, index):
        id_ = f"#{index}" if self.id is None else str(self.id)
        return [
            (id_ if k == 0 else f"{id_}#{k}", ask, answer, self.image, self.references, self.choices)
            for k, (ask, answer) in enumerate(self.pairs)
        ]


letters = st.sampled_from(list("abcXYZ019 .,:;!?'\"\\/{}[]()#-_é漢😀\n\t%$&*+=|~`^@<\u200b\u00a0"))
pieces = st.one_of(
    st.text(letters, min_size=1, max_size=8),
    st.sampled_from(["<b>", "a -> b", "3 < 4", "</s>", "<img src='x'>", "A. plum\nB. pear", "null", "true"]),
)
texts = (
    st.lists(pieces, min_size=1, max_size=3)
    .map("".join)
    .map(str.strip)
    .filter(lambda text: text.strip("\u200b \u00a0\n\t"))
)
ids = st.one_of(st.none(), st.integers(-(2**70), 2**70), st.text("abcdefgh", min_size=1))
lists = st.lists(texts, max_size=3).map(tuple)
meanings = st.builds(
    Meant,
    id=ids,
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(tuple),
    image=st.one_of(st.none(), st.sampled_from(IMAGES)),
    references=lists,
    choices=lists,
)


# -- forms ---------------------------------------------------------------------------------------

WHO = (
    ("from", "human", "gpt", "value"),
    ("role", "user", "assistant", "content"),
    ("from", "User", "GPT", "value"),
)
METADATA = {
    "source": "coco",
    "question_type": "colour",
    "width": 8,
    "has_image": True,
    "image_id": "a",
    "meta": {},
}
TOKEN = "<image>"


@dataclass
class Written:
    """A record, and the choices made in writing it."""

    fields: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)  # those in `fields`, to be changed
    what: str = "value"


def write(meant: Meant, draw: random.Random, folder) -> Written:
    """One of the ways to write that record, each meaning the same."""
    written = Written()
    fields = written.fields
    if meant.id is not None or draw.random() < 0.1:
        fields[draw.choice(["id", "question_id"])] = meant.id
    if meant.image is not None:
        names = (meant.image, f"./{meant.image}", f"x/../{meant.image}", str(folder / "img" / meant.image))
        name = draw.choice(names)
        fields["image"] = [name] if draw.random() < 0.2 else name
    elif draw.random() < 0.5:
        fields["image"] = draw.choice([None, []])
    asked = [text for text, _ in meant.pairs]
    if meant.image is not None and draw.random() < 0.7:
        asked[0] = draw.choice([f"{TOKEN}\n{asked[0]}", f"{asked[0]}\n{TOKEN}", f"{TOKEN}{asked[0]}"])
    answers = [whole_number(answer, draw) for _, answer in meant.pairs]
    if len(asked) == 1 and draw.random() < 0.4:
        fields |= {"text": asked[0], "answer": answers[0]}
    else:
        who, human, gpt, written.what = draw.choice(WHO)
        if draw.random() < 0.1:
            written.turns.append({who: "system", written.what: ""})
        for ask, answer in zip(asked, answers, strict=True):
            said = parts(ask, draw) if written.what == "content" and draw.random() < 0.3 else ask
            written.turns += [{who: human, written.what: said}, {who: gpt, written.what: answer}]
        fields[draw.choice(["conversations", "messages"])] = written.turns
    for key, values in (("references", meant.references), ("choices", meant.choices)):
        if values or draw.random() < 0.1:
            fields[key] = list(values) or draw.choice([None, []])
    for key in draw.sample(sorted(METADATA), draw.randrange(3)):
        fields[key] = METADATA[key]
    for key in draw.sample(["video", "images", "hint", "tools"], draw.randrange(2)):
        fields[key] = draw.choice([None, "", []])
    shuffled = list(fields.items())
    draw.shuffle(shuffled)
    written.fields = dict(shuffled)
    return written


def whole_number(text, draw):
    """An answer of digits may be written as a number."""
    return int(text) if re.fullmatch(r"0|[1-9]\d*", text) and draw.random() < 0.7 else text


def parts(asked, draw):
    """A content in parts, whose texts are joined by line breaks."""
    if asked.startswith(f"{TOKEN}\n"):
        return [{"type": "image"}, {"type": "text", "text": asked.removeprefix(f"{TOKEN}\n")}]
    return [{"type": "text", "text": asked, **({"image": None} if draw.random() < 0.3 else {})}]


def file_of(records, draw):
    """One of the ways to write a file of records."""
    ascii_ = draw.random() < 0.5
    if draw.random() < 0.5:
        text = json.dumps(records, indent=draw.choice([None, 0, 1]), ensure_ascii=ascii_)
    else:
        indent = draw.choice([None, None, 1])
        each = [json.dumps(record, indent=indent, ensure_ascii=ascii_) for record in records]
        text = draw.choice(["\n", "\n\n"]).join(each) + draw.choice(["", "\n"])
    text = text.replace("\n", draw.choice(["\n", "\r\n", "\r"]))
    content = draw.choice(["", "\ufeff", " ", "\n"]) + text
    raw = content.encode(errors="surrogatepass")  # `operated` may have put surrogates there
    return gzip.compress(raw) if draw.random() < 0.2 else raw


# -- faults --------------------------------------------------------------------------------------


def without_answer(written, draw):
    key = "answer" if not written.turns else written.what
    (written.turns[-1] if written.turns else written.fields)[key] = draw.choice(
        ["", "  ", "\u200b", 2.5, True, {}, float("nan")]
    )


def token_in_answer(written, draw):
    key = "answer" if not written.turns else written.what
    token = draw.choice([TOKEN, "<video>", "<Image>", "<|image_pad|>"])
    (written.turns[-1] if written.turns else written.fields)[key] = f"see {token} there"


def other_token(written, draw):
    key = "text" if not written.turns else written.what
    asks = written.turns[-2] if written.turns else written.fields
    asks[key] = draw.choice(["<video>", "<audio>", "<point_cloud>", "<img>", "<image_2>"]) + "\nwhat?"


def second_token(written, draw):
    key = "text" if not written.turns else written.what
    asks = written.turns[-2] if written.turns else written.fields
    asks[key] = f"{TOKEN}\nwhat is {TOKEN}?"


def token_without_image(written, draw):
    written.fields.pop("image", None)
    if draw.random() < 0.7:
        written.fields["image"] = draw.choice([None, [], [None]])
    key = "text" if not written.turns else written.what
    (written.turns[-2] if written.turns else written.fields)[key] = f"{TOKEN}\nwhat?"


def image_under_another_key(written, draw):
    written.fields.pop("image", None)
    keys = ["image_path", "images", "img", "picture", "imageFile", "Image", "image_url", "file_name"]
    written.fields[draw.choice(keys)] = draw.choice(["a.png", ["b.png"], {"path": "a.png"}])


def other_medium(written, draw):
    key = draw.choice(["video", "audio", "videos", "point_cloud", "audio_path", "depth"])
    written.fields[key] = draw.choice(["clip.mp4", ["one.wav"], {"path": "x.npy"}])


def wrong_image(written, draw):
    written.fields["image"] = draw.choice(
        ["gone.png", "../a.png", "/a.png", "sub", "", ["a.png", "b.png"], 7.5, True, {"path": "a.png"}]
    )


def misspelt(written, draw):
    wrong = draw.choice(["refrences", "reference", "choises"])
    key = "choices" if wrong == "choises" else "references"
    written.fields.pop(key, None)
    written.fields[wrong] = ["x", "y"]


def wrong_turns(written, draw):
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x"}]
    change = draw.choice(["half", "swapped", "system", "nobody", "tool", "none", "text"])
    changed = {
        "half": turns[:1],
        "swapped": turns[::-1],
        "system": [{"from": "system", "value": "Be brief."}, *turns],
        "nobody": [turns[0], turns[1] | {"from": "bot"}],
        "tool": [turns[0], {"from": "tool", "value": "7"}, turns[1]],
        "none": [],
        "text": ["what?", "x"],
    }[change]
    for key in ("conversations", "messages", "text", "answer", "references"):
        written.fields.pop(key, None)
    written.fields["conversations"] = changed


def contradicted(written, draw):
    other = {"text": "what?", "answer": "x"} if written.turns else {}
    turns = [{"from": "human", "value": "what else?"}, {"from": "gpt", "value": "quite another"}]
    written.fields |= other or {"conversations": turns}


def unshown_instruction(written, draw):
    written.fields[draw.choice(["system", "tools", "system_prompt"])] = draw.choice(["Be brief.", ["call"]])


def no_question(written, draw):
    for key in ("text", "conversations", "messages"):
        written.fields.pop(key, None)
    written.fields[draw.choice(["question", "prompt", "conversation", "other"])] = "what?"


FAULTS = (
    *(
        without_answer,
        token_in_answer,
        other_token,
        second_token,
        token_without_image,
        image_under_another_key,
    ),
    *(other_medium, wrong_image, misspelt, wrong_turns, contradicted, unshown_instruction, no_question),
)


def distinct(records):
    """No two records of one id: that would be a fault."""
    taken, result = set(), []
    for i, record in enumerate(records):
        names = {id_ for id_, *_ in record.examples(i)}
        if taken & names or any(id_.startswith("#") for id_ in names if record.id is not None):
            record = replace(record, id=f"only {i}")
            names = {id_ for id_, *_ in record.examples(i)}
        taken |= names
        result.append(record)
    return result


# -- the properties --------------------------------------------------------------------------------

seeds = st.integers(0, 2**32)
records_of = st.lists(meanings, min_size=1, max_size=6).map(distinct)


def repeated(check, *given_, few=FEW, many=MANY):
    """The property on a few examples, and, marked as slow, on many."""
    quiet = {"suppress_health_check": list(HealthCheck), "derandomize": True}
    quiet["phases"] = [Phase.generate]  # examples that depend on a seed cannot be shrunk
    return (
        settings(max_examples=few, **quiet)(given(*given_)(check)),
        pytest.mark.slow(settings(max_examples=many, **quiet)(given(*given_)(check))),
    )


def returns_the_generated_examples(data, records, seed):
    draw = random.Random(seed)
    task = read(data, file_of([write(meant, draw, data).fields for meant in records], draw))
    found = [
        (e.id, e.question, e.answer, e.image and name_of(e.image, data), e.references, e.choices)
        for e in task.examples["test"]
    ]
    assert found == [example for i, meant in enumerate(records) for example in meant.examples(i)]


def name_of(image, data):
    return str(image.relative_to(data / "img"))


def gives_the_same_digests_in_every_form(data, records, seed):
    draw = random.Random(seed)
    one, other = (
        read(data, file_of([write(meant, draw, data).fields for meant in records], draw)) for _ in "ab"
    )
    assert one.digests == other.digests


def refuses_the_faulty_record_and_no_other(data, records, seed):
    draw = random.Random(seed)
    written = [write(meant, draw, data) for meant in records]
    bad = draw.randrange(len(written))
    fault = draw.choice(FAULTS)
    fault(written[bad], draw)
    with pytest.raises(StudyError) as caught:
        read(data, file_of([w.fields for w in written], draw))
    assert {f.path.partition("]")[0] for f in caught.value.faults} == {f"test[{bad}"}, fault.__name__


def refuses_keys_written_twice(data, records, seed):
    draw = random.Random(seed)
    lines = [json.dumps(write(meant, draw, data).fields) for meant in records]
    bad = draw.randrange(len(lines))
    key = draw.choice(["answer", "image", "id", "conversations", "note"])
    lines[bad] = f'{{"{key}": 1, "{key}": 2}}'
    with pytest.raises(StudyError) as caught:
        read(data, "\n".join(lines).encode())
    twice = [f for f in caught.value.faults if f.rule == "must contain each key once"]
    assert [(f.path, f.line, f.found) for f in twice] == [(f"test[{bad}]", bad + 1, f"'{key}' twice")]


ODD = [
    *(None, True, 0, -1, 1.5, 2**80, "", "\ud800", "\0", "<image>", "x" * 300),
    *([], {}, [[]], ["a.png"], {"a": {}}),
]
SPLINTERS = [
    *(b"{", b"}", b"[", b"]", b",", b'"', b":", b"\\", b"\n"),
    *(b"\xff", b"\0", b"1e999", b"\\ud800", b"NaN"),
]


def raises_only_study_errors(data, records, seed):
    draw = random.Random(seed)
    content = [write(meant, draw, data).fields for meant in records]
    if draw.random() < 0.5:
        content = operated(content, draw)
    raw = bytearray(json.dumps(content).encode() if draw.random() < 0.5 else file_of(content, draw))
    for _ in range(draw.randrange(4)):
        at, to = sorted(draw.choices(range(len(raw) + 1), k=2))
        how = draw.randrange(5)
        if how == 0:
            raw[at : at + draw.randrange(4)] = draw.choice(SPLINTERS)
        elif how == 1:
            del raw[at:to]
        elif how == 2:
            raw[at:at] = raw[at:to]
        elif how == 3:
            raw[at : at + 1] = bytes([draw.randrange(256)])
        else:
            del raw[to:]
    try:
        task = read(data, bytes(raw))
    except StudyError as error:
        str(error).encode()
    else:
        assert all(example.question and example.answer for example in task.examples["test"])
        str(task.warnings).encode()


def operated(content, draw):
    """JSON with a value put in some place where another was."""
    places: list[tuple[Any, Any]] = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    content = json.loads(json.dumps(content))
    walk(content)
    for holder, key in draw.choices(places, k=draw.randrange(1, 4)) if places else ():
        if isinstance(holder, dict) and draw.random() < 0.3:
            holder[draw.choice(["image", "video", "text", "answer", "\ud800", "", "id"])] = draw.choice(ODD)
        else:
            holder[key] = draw.choice(ODD)
    return content


def raises_only_study_errors_for_captions(data, names, seed):
    draw = random.Random(seed)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    notes = [{"image_id": i, "caption": f"caption of {name}"} for i, name in enumerate(names)]
    content = operated({"images": images, "annotations": notes}, draw)
    (data / "captions.json").write_bytes(json.dumps(content).encode())
    test = [{"image": name, "text": "what?", "answer": "x"} for name in IMAGES]
    (data / "test.json").write_text(json.dumps(test))
    files = {"train": data / "train.json", "test": data / "test.json", "images": data / "img"}
    try:
        task = Llava(**files, references=data / "captions.json").read("task")
    except StudyError as error:
        str(error).encode()
    else:
        assert all(example.references for example in task.examples["test"])


def gives_each_image_its_own_captions(data, names, tails, seed):
    """Check captions of the images `names`; `tails`: the file names images without their folders."""
    said = [name.rpartition("/")[2] if tails else name for name in names]
    images = [{"id": i, "file_name": name} for i, name in enumerate(said)]
    notes = [{"image_id": i, "caption": f"caption of {name}"} for i, name in enumerate(names)]
    random.Random(seed).shuffle(images)
    (data / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    test = [{"image": name, "text": "what?", "answer": "x"} for name in names]
    (data / "test.json").write_text(json.dumps(test))
    files = {"train": data / "train.json", "test": data / "test.json", "images": data / "img"}
    reader = Llava(**files, references=data / "captions.json")
    if tails and "sub/a.png" in names:  # "a.png" is the full path of another image of train
        with pytest.raises(StudyError) as caught:
            reader.read("task")
        path = "references" if "a.png" in names else f"test[{names.index('sub/a.png')}]"
        assert path in {f.path.partition(".")[0] for f in caught.value.faults}
    else:
        examples = reader.read("task").examples["test"]
        assert [e.references for e in examples] == [(f"caption of {name}",) for name in names]


some_names = st.lists(st.sampled_from(IMAGES), min_size=1, unique=True)

test_records_are_read_with_their_meaning, test_many_records_are_read_with_their_meaning = repeated(
    returns_the_generated_examples, records_of, seeds
)
test_the_form_changes_no_digest, test_many_forms_change_no_digest = repeated(
    gives_the_same_digests_in_every_form, records_of, seeds, few=10, many=500
)
test_faulty_records_are_refused_and_no_others, test_many_faulty_records_are_refused_and_no_others = repeated(
    refuses_the_faulty_record_and_no_other, records_of, seeds
)
test_keys_written_twice_are_refused, test_many_keys_written_twice_are_refused = repeated(
    refuses_keys_written_twice, records_of, seeds, few=10, many=200
)
test_damage_raises_only_study_errors, test_much_damage_raises_only_study_errors = repeated(
    raises_only_study_errors, records_of, seeds, few=60, many=5000
)
test_damaged_captions_raise_only_study_errors, test_many_damaged_captions_raise_only_study_errors = repeated(
    raises_only_study_errors_for_captions, some_names, seeds, few=25, many=1000
)
test_images_get_their_own_captions, test_many_images_get_their_own_captions = repeated(
    gives_each_image_its_own_captions, some_names, st.booleans(), seeds, few=10, many=100
)

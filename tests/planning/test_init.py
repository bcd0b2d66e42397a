"""`dgg-ray init` writes a study for the tasks that it discovers, and `dgg-ray plan` accepts it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from dgg_ray import cli, load_study
from dgg_ray.core.errors import StudyError
from dgg_ray.planning.discover import discover_tasks
from dgg_ray.planning.init import init

OPTIONS = "Which one?\nA. red\nB. green"


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("DGG_RAY_DATA", raising=False)


def records(count: int, answer: str = "red", question: str = "What?", **more) -> list[dict]:
    return [
        {"question_id": f"q{i}", "image": f"{i % 5}.png", "text": question, "answer": answer, **more}
        for i in range(count)
    ]


def write(file: Path, content: list[dict], pictures: Path | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    else:
        file.write_text(json.dumps(content), encoding="utf-8")
    folder = pictures or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, len(file.name) % 256, 9)).save(folder / f"{i}.png")


def names_of(root: Path) -> dict[str, set[str]]:
    return {task.name: set(task.files) for task in discover_tasks(root)[0]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("charts/train.json", "charts/test.jsonl"),
        ("charts_train.json", "charts_test.json"),
        ("train_charts.json", "test_charts.json"),
        ("train/charts.json", "test/charts.json"),
        ("deep/er/charts.train.jsonl", "deep/er/charts.test.jsonl"),
        ("Charts/Train.JSON", "Charts/Test.JSON"),
    ],
)
def test_files_belong_together_by_their_names(tmp_path, train, test):
    write(tmp_path / train, records(12), tmp_path / "images")
    write(tmp_path / test, records(4), tmp_path / "images")
    (task,), left_out = discover_tasks(tmp_path)
    assert left_out == []
    assert task.name.lower() == "charts"
    assert (task.files["train"], task.files["test"]) == (tmp_path / train, tmp_path / test)
    assert task.images == tmp_path / "images"
    assert task.examples == {"train": 12, "test": 4}


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev"])
def test_validation_files_have_many_names(tmp_path, word):
    for split in ("train", "test", word):
        write(tmp_path / f"menus_{split}.json", records(8))
    assert names_of(tmp_path) == {"menus": {"train", "test", "validation"}}


def test_equal_names_in_several_folders_become_unique(tmp_path):
    for folder in ("a/vqa", "b/vqa", "c/other", "07"):
        for split in ("train", "test"):
            write(tmp_path / folder / f"{split}.json", records(8))
    assert set(names_of(tmp_path)) == {"a_vqa", "b_vqa", "other", "task_07"}


def test_files_that_cannot_be_used_are_left_out_with_the_reason(tmp_path):
    write(tmp_path / "alone" / "train.json", records(8))
    write(tmp_path / "odd" / "train.json", [{"text": 3}])
    write(tmp_path / "odd" / "test.json", records(8))
    write(tmp_path / "lost" / "train.json", records(8))
    write(tmp_path / "lost" / "test.json", [{**r, "image": "gone/0.png"} for r in records(8)])
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    tasks, left_out = discover_tasks(tmp_path)
    assert tasks == []
    alone, lost, odd = sorted(left_out)
    assert alone == "alone/train.json: no test file of the same name beside it"
    assert lost.startswith("lost: its images, such as 'gone/0.png', are in no folder")
    assert odd.startswith("odd: ")


@pytest.mark.parametrize(
    ("more", "scorer"),
    [
        ({}, "exact_match"),
        ({"question": OPTIONS, "answer": "B"}, "contains_choice"),
        ({"choices": ["red", "green"]}, "contains_choice"),
        ({"references": ["a plum", "one plum"], "answer": "a plum"}, "caption_light"),
        ({"answer": "a green plum that lies on a plate of glass"}, "caption_light"),
    ],
)
def test_the_scorer_suits_the_answers(tmp_path, more, scorer):
    for split in ("train", "test"):
        write(tmp_path / f"x_{split}.json", records(8, **more))
    assert [task.scorer for task in discover_tasks(tmp_path)[0]] == [scorer]


def test_a_link_that_leads_back_ends(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "x" / f"{split}.json", records(8))
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    assert set(names_of(tmp_path)) == {"x"}


def two_tasks(root: Path) -> None:
    for name, answer in (("menus", "red"), ("signs", "a much longer answer")):
        write(root / name / "train.json", records(20, answer), root / "images")
        write(root / name / "test.json", records(10, "green"), root / "images")


def test_the_file_is_a_study_with_a_comment_on_every_setting(tmp_path, capsys):
    two_tasks(tmp_path / "data")
    file = tmp_path / "study.yaml"
    assert cli.main(["init", "--data", str(tmp_path / "data"), "--out-file", str(file)]) == 0
    output = capsys.readouterr().out
    assert "menus: 20 train, validation a tenth of train, 10 test" in output
    assert f"dgg-ray plan {file}" in output
    study = load_study(file)
    assert study.task_names == ("menus", "signs")
    assert study.name == "data"
    assert study.protocol.max_new_tokens == 10  # of the embedded tokenizer, the end among them
    text = file.read_text(encoding="utf-8")
    assert str(tmp_path) not in text  # what lies below the study's folder is relative to it
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if line.strip() and not line.lstrip().startswith(("#", "-", "name: ")) and not line.endswith(":"):
            assert above.lstrip().startswith("#"), line
    assert cli.main(["plan", str(file), "--out", str(tmp_path / "out")]) == 0


def test_data_outside_the_folder_have_absolute_paths(tmp_path):
    two_tasks(tmp_path / "data")
    init(tmp_path / "data", file=tmp_path / "studies" / "x.yaml", name="x")
    assert str(tmp_path / "data" / "menus" / "train.json") in (tmp_path / "studies" / "x.yaml").read_text(
        "utf-8"
    )


def test_the_study_is_named_after_the_data_folder(tmp_path, monkeypatch):
    two_tasks(tmp_path / "mine")
    (tmp_path / "mine" / "studies").mkdir()
    monkeypatch.chdir(tmp_path / "mine" / "studies")
    assert init(Path("..")).file == Path("mine.yaml")
    assert load_study("mine.yaml").name == "mine"


@pytest.mark.whole
def test_the_next_command_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(init(embedded=True, file=Path("my data.yaml"))).endswith("next: dgg-ray plan 'my data.yaml'")


def test_the_embedded_tasks_need_no_data(tmp_path):
    init(embedded=True, file=tmp_path / "x.yaml")
    assert load_study(tmp_path / "x.yaml").task_names == ("digits", "words", "shapes", "charts")


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("mine", encoding="utf-8")
    assert cli.main(["init", "--embedded", "--out-file", str(tmp_path / "x.yaml")]) == 2
    assert "--out-file: must be a new file" in capsys.readouterr().err
    assert (tmp_path / "x.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "--data: is required"),
        ({"data": Path("no/such")}, "--data: must be a folder that exists"),
        ({"data": Path("."), "embedded": True}, "--embedded: needs no data"),
        ({"embedded": True, "model": "embeded"}, "--model: must be one of .*Did you mean 'embedded'"),
        ({"embedded": True, "model": "llava_1_5"}, "llava_1_5=FOLDER"),
        (
            {"embedded": True, "model": "llava_1_5=no/such"},
            "--model: must be a folder that exists, as .*@COMMIT",
        ),
        ({"embedded": True, "model": "llava_1_5=no/such@main"}, "--model: must be a commit"),
        ({"embedded": True, "model": "llava_1_5=."}, "--model: must hold config.json"),
        ({"embedded": True, "model": "embedded=foo"}, "--model: embedded comes with its weights"),
        ({"embedded": True, "name": "a/b"}, "--name: must be letters.*got 'a/b'"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=message):
        init(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_tasks_says_why(tmp_path):
    write(tmp_path / "alone" / "train.json", records(8))
    with pytest.raises(StudyError, match=r"holds 0(.|\n)*left out: alone/train.json: no test file"):
        init(tmp_path, file=tmp_path / "x.yaml")


def test_a_person_is_asked_for_what_was_not_given(tmp_path, monkeypatch):
    two_tasks(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    answers = {"Folder": "data", "Model": "", "Name": "mine", "File": ""}
    asked = []

    def ask(question: str, default: str) -> str:
        asked.append(question.split()[0].rstrip(":"))
        return answers[asked[-1]] or default

    written = init(ask=ask)
    assert asked == ["Folder", "Model", "Name", "File"]
    assert written.file == Path("mine.yaml")
    assert load_study("mine.yaml").name == "mine"
